"""Kubeconfigs, in YAML and JSON, and the account of a pod: where the API is, how to log in."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cni.store import kubeconfig, kubeconfig_yaml
from cni.store.interface import Refused

KUBEADM = """\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {ca}
    server: https://10.0.0.1:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: system:node:n1
  name: system:node:n1@kubernetes
current-context: system:node:n1@kubernetes
kind: Config
preferences: {{}}
users:
- name: system:node:n1
  user:
    client-certificate: pki/client.pem
    client-key: /keys/client.key
"""
CA = b"-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"
Json = dict[str, Any]


def config(user: Json | None = None, **cluster: Any) -> Json:
    return {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://api:6443", **cluster}}],
        "users": [{"name": "u", "user": user if user is not None else {"token": "t"}}],
    }


def written(directory: Path, value: Json) -> str:
    path = directory / "config"
    path.write_text(json.dumps(value))
    return str(path)


def test_a_kubeconfig_as_kubeadm_writes_it(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki/client.pem").write_bytes(b"CERT")
    (tmp_path / "client.key").write_bytes(b"KEY")
    path = tmp_path / "config"
    text = KUBEADM.format(ca=base64.b64encode(CA).decode())
    path.write_text(text.replace("/keys", str(tmp_path)))
    access = kubeconfig.read(str(path))
    assert access.server == "https://10.0.0.1:6443"
    assert access.trust.ca_data == CA.decode()
    assert access.trust.cert_file == str(tmp_path / "pki/client.pem")
    assert access.trust.key_file == str(tmp_path / "client.key")
    assert access.bearer() == ""


def test_a_token_file_is_read_each_time_and_comes_before_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    access = kubeconfig.read(
        written(
            tmp_path, config({"token": "old", "tokenFile": "token"}, **{"tls-server-name": "k"})
        )
    )
    assert access.bearer() == "one"
    (tmp_path / "token").write_text("two")
    assert access.bearer() == "two"
    assert access.trust.server_name == "k"
    (tmp_path / "token").write_text("a\nb")
    with pytest.raises(Refused, match="token"):
        access.bearer()


def test_a_certificate_in_the_kubeconfig_itself(tmp_path: Path) -> None:
    data = base64.b64encode(CA).decode()
    user = {"client-certificate-data": data, "client-key-data": data}
    trust = kubeconfig.read(written(tmp_path, config(user))).trust
    assert Path(trust.cert_file).read_bytes() == Path(trust.key_file).read_bytes() == CA
    assert not list(tmp_path.glob("*.pem")), "a key is written to no disk"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({**config(), "current-context": ""}, "current-context"),
        ({**config(), "current-context": "d"}, "contexts has no context 'd'"),
        ({**config(), "clusters": []}, "clusters has no cluster 'k'"),
        ({**config(), "users": None}, "users has no user 'u'"),
        (config({"exec": {"command": "aws"}}), r"by a program \(exec\)"),
        (config({"auth-provider": {"name": "gcp"}}), "auth-provider"),
        (config({"username": "a", "password": "b"}), "user name"),
        (config({"client-key-data": "AA=="}), "come together"),
        (config({"token": 7}), "token is not a string"),
        (config(server="http://api"), "https://"),
        (config(**{"certificate-authority-data": "?"}), "base64"),
        (config(**{"proxy-url": "http://p"}), "proxy-url"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, value: Json, why: str) -> None:
    with pytest.raises(Refused, match=why):
        kubeconfig.read(written(tmp_path, value))


@pytest.mark.parametrize("text", ["- a", "a", "", "{", "a: &x b", "\tb: c"])
def test_a_file_that_is_no_kubeconfig_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(Refused, match=str(path)) as raised:
        kubeconfig.read(str(path))
    assert "-o json" in raised.value.remedy
    with pytest.raises(Refused, match="does not exist"):
        kubeconfig.read(f"{path}-none")


@pytest.mark.parametrize(
    ("host", "server"),
    [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")],
)
def test_the_account_of_a_pod(tmp_path: Path, host: str, server: str) -> None:
    env = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(Refused, match="not a pod"):
        kubeconfig.in_cluster(env, str(tmp_path))
    (tmp_path / "ca.crt").write_bytes(CA)
    (tmp_path / "token").write_text("t")
    access = kubeconfig.in_cluster(env, str(tmp_path))
    assert (access.server, access.bearer()) == (server, "t")
    assert access.trust.ca_file == str(tmp_path / "ca.crt")
    with pytest.raises(Refused, match="not a pod"):
        kubeconfig.in_cluster({}, str(tmp_path))


# --- YAML ---

SCALARS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])) | st.booleans()
VALUES = st.recursive(
    SCALARS | st.integers(-5, 1000) | st.none(),
    lambda each: (
        st.lists(each, min_size=1, max_size=3)
        | st.dictionaries(st.text("abc-x", min_size=1), each, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc-", min_size=1), VALUES))
def test_what_is_understood_is_what_everybody_understands(value: Json) -> None:
    text = yaml.safe_dump(value, width=10_000, allow_unicode=True)
    try:
        assert kubeconfig_yaml.decode(text) == value
    except ValueError:
        pass  # it may refuse, but never misread


@pytest.mark.parametrize(
    "text",
    [
        KUBEADM.format(ca="TUlJ"),
        "a:\n  - b: 1\n    c: [] # nothing\n  -\n    d: {}\n  - - x\n    - z\n",
        "a: |\n  one\n\n    two\n  three\n\nb: |-\n  x\nc:\n",
        "# c\n---\na: \"q \\\" \\n\"\n'b c': 'it''s'\n\"d\": x#y # z\n",
        "a:\n- b\n- c:\n  - d\n- e\nf: -5\ng: ~\nh: null\ni: true\n",
        "a: http://x:1/y?z\nb: a-b_c\nc: 10.1.2.3\n",
    ],
)
def test_documents_as_people_write_them(text: str) -> None:
    assert kubeconfig_yaml.decode(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: &x b", "a: *x", "a: !t b", "a: {b: c}", "a: [b]", "a: >\n  b", "a: b: c", "a: 'b",
        "a: yes", "a: 1.5", "a: 0x1f", "a: 012", "a: b\n   c: d", "a: b\na: c", "a: b\n---\nc: d",
        "a: \"\\q\"", "a: b\n c", "? a", "a: |+\n b", "a: |\n    b\n  c\n",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_an_error_with_its_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"line [0-9]"):
        kubeconfig_yaml.decode(text)
