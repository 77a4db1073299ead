"""tuning's validation, allow-list and backup file, without a kernel."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cni.call import Call
from cni.kernel import ethtool, sysctl
from cni.kernel.ethtool import Feature
from cni.owner import Owner
from cni.plugins.tuning import backup as _tuning_backup
from cni.plugins.tuning import settings as _tuning_settings
from cni.plugins.tuning.backup import Backup, File, Holder
from cni.plugins.tuning.settings import Conf, Settings
from cni.protocol.config import decode_object
from cni.protocol.errors import CNIError
from cni.protocol.request import Request

if TYPE_CHECKING:
    from pathlib import Path

OWNER = Owner("net", "c1", "eth0")


def settings(conf: dict[str, Any] | str, args: str = "", ifname: str = "eth0") -> Settings:
    document = conf if isinstance(conf, str) else json.dumps(conf)
    request = Request("ADD", "c1", "/run/netns/x", ifname, args, [], document.encode(), {})
    raw = decode_object(request.stdin)
    return Settings(Call("tuning", request, raw, "1.0.0", Conf, "", lambda *_: (False, None)))


# -- names of sysctls -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.all.rp_filter", "net/ipv4/conf/all/rp_filter"),
        ("net.ipv4.conf.eth0.100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net/ipv6/neigh/a.b.c/retrans_time_ms", "net/ipv6/neigh/a.b.c/retrans_time_ms"),
        ("net.ipv6.conf.IFNAME.5.mtu", "net/ipv6/conf/IFNAME.5/mtu"),
        ("net.mpls.conf.lo.input", "net/mpls/conf/lo/input"),
        ("net.netfilter.nf_log.10", "net/netfilter/nf_log/10"),
    ],
)
def test_sysctl_names(key: str, name: str) -> None:
    assert sysctl.parse(key) == name


@pytest.mark.parametrize(
    "key",
    [
        "", "net", "net.", "kernel.foo", "netx.core.y", "/net/ipv4/ip_forward", "net//ipv4/x",
        "net/ipv4/../../kernel/core_pattern", "net....kernel.core_pattern", "net/./core/x",
        "net/ipv4/conf/../../../kernel/x/y", "net.ipv4.ip_forward\0", "/proc/sys/net/core/x",
    ],
)  # fmt: skip
def test_keys_that_are_refused(key: str) -> None:
    with pytest.raises(CNIError) as caught:
        settings({"sysctl": {key: "1"}})
    assert caught.value.msg == f'invalid net sysctl key: "{key.replace(".", "/")}"'


@given(st.text("net./ipv4conf\0-", max_size=40) | st.text(max_size=20))
@example("net/../kernel/core_pattern")
@example("net/ipv4/conf/./../../x/y")
@example("net.ipv4.conf...x.y")
def test_no_key_leads_out_of_net(key: str) -> None:
    try:
        name = sysctl.parse(key)
    except ValueError:
        return
    path = os.path.normpath(f"/proc/sys/{name}")
    assert path == f"/proc/sys/{name}"
    assert path.startswith("/proc/sys/net/")
    assert "\0" not in path


@given(st.sampled_from(["a.b", "...", "IFNAME", "x" * 15, "eth0.100", "é"]))
def test_no_interface_name_leads_out_of_net(ifname: str) -> None:
    found = settings({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}, ifname=ifname)
    assert list(found.sysctl) == [f"net/ipv4/conf/{ifname}/arp_filter"]


def test_the_first_placeholder_is_replaced() -> None:
    found = settings({"sysctl": {"net.ipv4.conf.IFNAME.IFNAME": "1"}})
    assert list(found.sysctl) == ["net/ipv4/conf/eth0/IFNAME"]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [("1\t2", "1 2", True), ("1", " 1", True), ("1 2", "12", False), ("", "0", False)],
)
def test_values_of_several_numbers(one: str, other: str, equal: bool) -> None:
    assert sysctl.same(one, other) is equal


# -- duplicate keys -------------------------------------------------------------------------------

TEXTS = st.text('ab"\\{}:, \n', max_size=5)


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=4))
def test_duplicate_keys(pairs: list[tuple[str, str]]) -> None:
    """Found in the text, whatever the strings contain."""
    inside = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs)
    twice = len({key for key, _ in pairs}) < len(pairs)
    try:
        settings(f'{{"name": "sysctl", "SYSCTL": {{{inside}}}, "prevResult": {{"sysctl": 1}}}}')
        refused = False
    except CNIError as error:
        refused = error.msg == "duplicated sysctl keys are not allowed"
    assert refused is twice


@pytest.mark.parametrize("value", ["null", "5", "[]", '{"net.a": null}', '{"net.a": {"b": "c"}}'])
def test_what_is_no_map_of_texts_is_left_to_the_decoder(value: str) -> None:
    try:
        settings(f'{{"sysctl": {value}}}')
    except CNIError as error:
        assert "cannot unmarshal" in error.msg  # noqa: PT017


@pytest.mark.parametrize("extra", ['"note": "\\ud800"', '"note": 1e999', '"\\udc00": ["\\ud83d"]'])
def test_duplicate_keys_beside_what_only_go_reads(extra: str) -> None:
    kept = settings(f'{{{extra}, "sysctl": {{"net.a": "1", "net.\\u0062": "2"}}}}')
    assert kept.sysctl == {"net/a": "1", "net/b": "2"}
    with pytest.raises(CNIError, match="duplicated sysctl keys"):
        settings(f'{{{extra}, "sysctl": {{"net.a": "1", "net.\\u0061": "2"}}}}')


# -- the allow-list -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "key", "allowed"),
    [
        ("net.ipv4.ip_forward", "net.ipv4.ip_forward", True),
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward", True),
        ("net.ipv4.ip_forward", "net.ipv4.ip_forward_use_pmtu", False),
        ("^net.ipv4.ip_forward$", "net.ipv4.ip_forward", True),
        ("^net.ipv4.ip_forward$", "net.ipv4.ip_forward\n", False),
        ("ipv4", "net.ipv4.ip_forward", False),
        ("a|net.core.x", "net.core.x", True),
        ("a|net.core.x", "net.core.xy", False),
        ("a\n\n  net\\.ipv4\\..*  \n", "net.ipv4.ip_forward", True),
        ("", "net.ipv4.ip_forward", False),
        ("(?i)NET.*", "net.core.x", True),
    ],
)
def test_allowlist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, key: str, allowed: bool
) -> None:
    path = tmp_path / "allowlist.conf"
    monkeypatch.setattr(_tuning_settings, "ALLOWLIST", str(path))
    _tuning_settings.require_allowed([key])
    path.write_text(lines)
    _tuning_settings.require_allowed([])
    if allowed:
        _tuning_settings.require_allowed([key])
    else:
        with pytest.raises(CNIError, match=r"is not allowed\. Only the following sysctls"):
            _tuning_settings.require_allowed([key])


@pytest.mark.parametrize("content", [b"(", b"[[:alpha:]]+", b"*", b"\xff\xfe"])
def test_a_bad_allowlist_allows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    path = tmp_path / "allowlist.conf"
    path.write_bytes(b".*\n" + content)
    monkeypatch.setattr(_tuning_settings, "ALLOWLIST", str(path))
    with pytest.raises(CNIError, match=r"error parsing regexp|not utf-8"):
        _tuning_settings.require_allowed(["net.core.x"])
    monkeypatch.setattr(_tuning_settings, "ALLOWLIST", str(tmp_path))
    with pytest.raises(CNIError, match="is a directory"):
        _tuning_settings.require_allowed(["net.core.x"])


# -- the backup file ------------------------------------------------------------------------------


def holder(network: str = "net", container_id: str = "c1") -> Holder:
    return Holder(network, container_id, "eth0", "cookie 1")


BACKUPS = st.builds(
    Backup,
    mac=st.sampled_from(["", "c2:11:00:00:00:01", "c2:11:00:00:00:02"]),
    promisc=st.none() | st.booleans(),
    mtu=st.integers(0, 3),
    allmulti=st.none() | st.booleans(),
    txqlen=st.none() | st.integers(0, 3),
    sysctl=st.dictionaries(st.sampled_from("ab"), st.tuples(*[st.sampled_from("123")] * 2)),
    ethtool=st.dictionaries(st.sampled_from("ab"), st.booleans()),
    owner=st.just(holder()),
)


@given(BACKUPS, BACKUPS)
def test_what_was_there_first_stays(first: Backup, second: Backup) -> None:
    both = first.over(second)
    assert both.link == {**second.link, **first.link}
    assert both.ethtool == {**second.ethtool, **first.ethtool}
    assert both.sysctl.keys() == first.sysctl.keys() | second.sysctl.keys()
    for name, (before, ours) in both.sysctl.items():
        assert before == (first.sysctl.get(name) or second.sysctl[name])[0]
        assert ours == (second.sysctl.get(name) or first.sysctl[name])[1]
    assert first.over(Backup(owner=holder())) == first
    assert Backup(owner=holder()).empty


@given(backup=BACKUPS)
def test_files(tmp_path_factory: pytest.TempPathFactory, backup: Backup) -> None:
    directory = tmp_path_factory.mktemp("tuning") / "made"
    file = File(str(directory), OWNER)
    assert file.read() is None
    file.remove()
    file.write(backup)
    assert file.read() == backup
    assert os.listdir(directory) == ["c1_eth0.json"]
    file.remove()
    assert os.listdir(directory) == []


def test_what_the_reference_writes(tmp_path: Path) -> None:
    text = '{\n "mac": "c2:11:00:00:00:01",\n "promisc": false,\n "mtu": 1500,\n "txQLen": 0\n}'
    (tmp_path / "c1_eth0.json").write_text(text)
    found = File(str(tmp_path), OWNER).read()
    assert found is not None
    assert found.link == {"mac": "c2:11:00:00:00:01", "promisc": False, "mtu": 1500, "txqlen": 0}
    assert found.owner is None
    File(str(tmp_path), OWNER).write(found)
    assert (tmp_path / "c1_eth0.json").read_text() == text


@given(st.binary(max_size=60) | st.text('{}":,macmtu0[]', max_size=40).map(str.encode))
def test_any_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("tuning")
    (directory / "c1_eth0.json").write_bytes(content)
    found = File(str(directory), OWNER).read()
    assert found is None or isinstance(found, Backup)
    _tuning_backup.collect(str(directory), "net", [])
    assert os.listdir(directory) == ["c1_eth0.json"]  # nobody knows whose it is


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text('{"mtu": 7}')
    (tmp_path / "c1_eth0.json").symlink_to(tmp_path / "target")
    with pytest.raises(CNIError, match=r"open .*c1_eth0\.json: "):
        File(str(tmp_path), OWNER).read()


def test_gc_removes_what_a_killed_add_left(tmp_path: Path) -> None:
    """Also a file that was being written, of which nothing but the name is known."""
    others = Owner("other", "c1", "eth0"), Owner("net", "c2", "eth0")
    for owner in (OWNER, *others):
        (tmp_path / f".{owner.key}").touch()
        File(str(tmp_path), owner).write(
            Backup(mtu=5, owner=Holder(owner.network, owner.container_id, owner.ifname, "x"))
        )
        (tmp_path / f".{owner.key}").touch()
    (tmp_path / "c1_eth0.json").unlink()  # the last owner's of that name was "other"
    File(str(tmp_path), OWNER).write(Backup(mtu=5, owner=holder()))
    (tmp_path / f".{OWNER.key}").touch()
    _tuning_backup.collect(str(tmp_path), "net", [others[1]])
    assert sorted(os.listdir(tmp_path)) == sorted(
        [f".{others[0].key}", f".{others[1].key}", "c2_eth0.json"]
    )


# -- features -------------------------------------------------------------------------------------

ON, OFF, FIXED = (
    Feature(True, True, False),
    Feature(False, False, False),
    Feature(False, False, True),
)
FEATURES = {
    "rx-gro": ON,
    "rx-gro-list": OFF,
    "tx-tcp-segmentation": ON,
    "tx-tcp6-segmentation": OFF,
    "tx-tcp-ecn-segmentation": FIXED,
    "tx-checksum-ipv4": FIXED,
}


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("rx-gro-list", ["rx-gro-list"]),
        ("gro", ["rx-gro"]),
        ("tso", ["tx-tcp-segmentation", "tx-tcp6-segmentation"]),
        ("tx", ["tx-checksum-ipv4"]),
    ],
)
def test_names_of_features(name: str, names: list[str]) -> None:
    assert ethtool.select(FEATURES, name) == names


@pytest.mark.parametrize("name", ["nosuch", "", "lro", "tx-tcp*"])
def test_unknown_features(name: str) -> None:
    with pytest.raises(KeyError):
        ethtool.select(FEATURES, name)
