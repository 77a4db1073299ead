"""The pieces of `cni sysdump`: what is masked, the archive, and parts that hang."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import stat
import tarfile
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.cli import errors
from cni.cli.sysdump import collect as collecting
from cni.cli.sysdump import state
from cni.cli.sysdump.anonymous import Anonymiser
from cni.cli.sysdump.archive import Archive
from cni.cli.sysdump.collect import File, Part, collect
from cni.cli.sysdump.mask import ADDRESSES, MASKED, SECRETS, Mask

SALT = b"salt"
SECRET = Mask({SECRETS}, SALT)
ALL = Mask({SECRETS, ADDRESSES}, SALT, ["node-7.example.com"], ["shop/web-0", "default/db"])
NOTHING = Mask(set(), SALT)


# --- secrets ---

HIDDEN = "hunter2-Zk9"


@pytest.mark.parametrize(
    "text",
    [
        '{"password": "hunter2-Zk9"}',
        '{"a": {"apiKey": "hunter2-Zk9"}}',
        '{"a": [{"client-key-data": ["hunter2-Zk9"]}]}',
        '{"TOKEN": {"value": "hunter2-Zk9"}}',
        '{"plugins": [{"type": "x", "secretName": "hunter2-Zk9"}',  # torn
        '{"plugins": [{"type": "x", "password": "hunter2-Zk9',
        "{'password': 'hunter2-Zk9'}",
        "password: hunter2-Zk9\nother: 1\n",
        'token="hunter2-Zk9"',
        "PRIVATE_KEY=hunter2-Zk9 next",
        'level=error msg="login password=hunter2-Zk9 failed"',
        '{"env": "X_AUTH_TOKEN=hunter2-Zk9"}',
        '{"stdin": "{\\"password\\": \\"hunter2-Zk9\\"}"}',
        "GET https://admin:hunter2-Zk9@registry.example/v2/",
        "Authorization: Basic hunter2-Zk9",
        "curl -H 'Bearer hunter2-Zk9'",
        "eyJhbGciOiJIUzI1NiJ9.hunter2-Zk9.hunter2-Zk9",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2-Zk9\n-----END RSA PRIVATE KEY-----",
        '{"ca": "-----BEGIN CERTIFICATE-----\\nhunter2-Zk9\\n"}',
        '{"cniArgs": [["IgnoreUnknown", "1"], ["DB_LOGIN", "hunter2-Zk9"]]}',
        '{"env": {"CNI_ARGS": "IgnoreUnknown=1;DB_LOGIN=hunter2-Zk9"}}',
        "CNI_ARGS=IgnoreUnknown=1;DB_LOGIN=hunter2-Zk9",
        '{"capabilityArgs": {"io.kubernetes.cri.pod-annotations": {"x": "hunter2-Zk9"}}}',
        '{"password": "hunter2-Zk9", "password": "x"}',
        '{"x": {"password": "hunter2-Zk9"}, "x": {}}',
    ],
)
@pytest.mark.parametrize("mask", [SECRET, ALL], ids=["secrets", "all"])
def test_no_secret_is_shown(text: str, mask: Mask) -> None:
    shown = mask.content(text.encode()).decode()
    assert HIDDEN not in shown
    assert MASKED in shown
    assert HIDDEN in NOTHING.content(text.encode()).decode()


# --- any secret, in any of these forms, wherever the form stands ---

SECRETS_OF_ALL_KINDS = st.text(
    st.sampled_from("abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789_.~+/-"),
    min_size=8,
    max_size=40,
).map(lambda text: f"x7{text}9Q")
KEYS = st.sampled_from(
    [
        "password",
        "pw",
        "dbPw",
        "DB_PASSWORD",
        "api-key",
        "apiKey",
        "client_secret",
        "token",
        "psk",
        "PGPASSWORD",
        "mypassphrase",
        "X-Api-Key",
        "MYSQL_PWD",
        "private-key",
        "accessKey",
        "auth",
    ]
)
FORMS = st.sampled_from(
    [
        "--{key}={secret}",
        "run --{key} {secret} --verbose",
        "--{key}='{secret}'",
        "{key}={secret}",
        "{key}: {secret}",
        "{key} = {secret}; next",
        'level=error {key}="{secret}" x=1',
        "{key}:{secret}",
        "{key}: |\n  {secret}\n  {secret}\nname: x\n",
        "Authorization: Basic {secret}",
        "Cookie: a={secret}",
        "curl -H 'Authorization: Token {secret}'",
        "Bearer {secret}",
        "http://x/?{key}={secret}&a=b",
        "https://admin:{secret}@example/",
        "//u:{secret}@h/",
        "curl -u admin:{secret} http://x",
        "-----BEGIN EC PRIVATE KEY-----\n{secret}\n-----END EC PRIVATE KEY-----",
        "sshpass -p {secret} ssh x",
        "sshpass -p{secret} ssh x",
        "mysql -h db -u root -p{secret} shop",
        "/usr/bin/mysqldump --all-databases -u root -p'{secret}'",
        "mariadb-admin -p{secret} ping",
        "redis-cli -h 10.0.0.1 -a {secret} ping",
        "ldapsearch -x -D cn=admin -w {secret} -b dc=x",
        "mongosh --host db -u root -p {secret}",
        "docker login -u admin -p {secret} registry",
        "ipmitool -I lanplus -U root -P {secret} power",
        "openssl rsa -in x -passin pass:{secret}",
        "smbclient //h/share -U admin%{secret}",
        "Proxy-Authorization: Digest username=a, response={secret}",
        "PGPASSWORD '{secret}'",
    ]
)
INTO = st.lists(
    st.sampled_from(["string", "list", "document", "log", "nothing"]), max_size=3
)  # what the form is put into, from inside to outside


def put_into(text: str, ways: list[str]) -> str:
    for way in ways:
        if way == "string":
            text = json.dumps({"args": text, "name": "web-0"})
        elif way == "list":
            text = json.dumps({"command": ["x", text]})
        elif way == "document":
            text = json.dumps({"plugins": [{"type": "x", "env": text}], "name": "n"}, indent=2)
        elif way == "log":
            text = f"Nov 29 host containerd: {text}"
    return text


@given(SECRETS_OF_ALL_KINDS, KEYS, FORMS, INTO, st.integers(0, 30))
def test_secrets_of_any_kind_are_masked(
    hidden: str, key: str, form: str, ways: list[str], torn: int
) -> None:
    if "@" in form and "/" in hidden:
        return  # no URL has that
    torn = 0 if "@" in form else torn  # before @ nothing says that it is a password
    text = put_into(form.format(key=key, secret=hidden), ways)
    for end in (len(text), max(len(text) - torn, text.rfind(hidden) + len(hidden))):
        shown = SECRET.content(text[:end].encode()).decode()
        assert hidden not in shown
        assert MASKED in shown


@given(SECRETS_OF_ALL_KINDS, KEYS)
def test_secrets_in_lists_and_pairs(hidden: str, key: str) -> None:
    for value in (
        {"args": [f"--{key}", hidden, "--verbose"]},
        {"headers": ["Authorization", f"Basic {hidden}"]},
        {"env": [{"name": key, "value": hidden}]},
        {"env": [{"Key": key, "Value": hidden}]},
        {"env": [f"{key}={hidden}", "A=b"]},
    ):
        assert hidden not in SECRET.content(json.dumps(value).encode()).decode()
        torn = json.dumps(value).rstrip("]}")
        assert hidden not in SECRET.content(torn.encode()).decode(), torn


@pytest.mark.parametrize(
    "text",
    [
        *("AKIAIOSFODNN7EXAMPLE", "id ASIAIOSFODNN7EXAMPLE;", "ghp_" + "a1" * 18),
        *("glpat-" + "a1" * 10, "xoxb-12345-abcdef", "Basic YWRtaW46aHVudGVyMg=="),
        *("OTEL_EXPORTER_OTLP_HEADERS=x-a=hunter2-Zk9,y=1", "wpa_psk hunter2-Zk9"),
        "src 10.0.0.1 enc cbc(aes) 0x00112233445566778899aabbccddeeff",
        "auth-trunc hmac(sha256) 0x00112233445566778899aabbccddeeff 128",
    ],
)
def test_forms_of_secrets_without_a_key(text: str) -> None:
    words = [each for each in re.split(r"[\s;=,]", text) if len(each) > 10 and "_" not in each[:5]]
    shown = SECRET.text(text)
    assert MASKED in shown
    assert not [each for each in words if each in shown and "(" not in each and "-" not in each]


# --- what must stay ---

ADDRESS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.tuples(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8)).map(
        lambda both: f"{both[0].hex()}-{both[1].hex()}"
    ),
    st.from_regex(r"(token|auth|secret|key|basic)-[a-z]{3,8}-[0-9a-f]{5}", fullmatch=True),
    st.from_regex(r"/(var|run|etc)/[a-z]{2,8}/(key|token|pass)[a-z]?/x\.json", fullmatch=True),
)
AROUND = st.sampled_from(
    [
        "{}",
        "-d {} -j ACCEPT",
        "inet {}/24 scope global eth0",
        "{}:80@eth0",
        "pod {} started",
        '{{"address": "{}"}}',
        '{{"containerID": "{}", "ifname": "eth0"}}',
        "dev {}: up",
        "from {}",
        "tcp dport 80 dnat to {}",
        "{}@if7",
        "id: {}",
        "K8S_POD_NAME={}",
        "[{}]",
        "see {}, then go",
        "--password-file={}",
        "found by its key {}",
        "image busybox:{}@sha256:00",
    ]
)


@given(ADDRESS, AROUND)
def test_addresses_ids_and_names_are_no_secrets(value: str, around: str) -> None:
    text = around.format(value)
    assert SECRET.content(text.encode()).decode() == text


def test_a_large_text_takes_time_in_proportion(tmp_path: Path) -> None:
    """Lines of a log without end, and words without end: nothing is read again and again."""
    for piece in ("a:b@c d=e ", "password=", "[{'\"\\", "x" * 50, "key: |\n  ", "Cookie: ", "//a:"):
        text = piece * (20_000 // len(piece))
        SECRET.text(text)


@pytest.mark.parametrize("end", [None, -40])
def test_the_configuration_in_a_cache_is_masked_although_it_is_base64(end: int | None) -> None:
    config = json.dumps({"name": "net", "plugins": [{"type": "x", "password": HIDDEN * 9}]})
    record = {"kind": "cniCacheV1", "config": base64.b64encode(config.encode()).decode()}
    whole = json.dumps({**record, "ifName": "eth0", "more": "x" * 60})
    shown = SECRET.content(whole[:end].encode()).decode()
    assert base64.b64encode(config.encode()).decode()[8:40] not in shown
    assert HIDDEN not in shown
    if end is None:
        assert json.loads(shown)["config"]["plugins"] == [{"type": "x", "password": MASKED}]


@pytest.mark.parametrize(
    "text",
    [
        '{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "bridge", "mtu": 1500}]}',
        '{"cniArgs": [["K8S_POD_NAME", "web-0"], ["IgnoreUnknown", "1"]]}',
        '{"b":  1,   "a": 2}',
        "default via 10.0.0.1 dev eth0 proto static\n",
        'monkey = banana\n"keyring": "x"\n',
        '{"token": null, "password": "", "key": false}',
    ],
)
def test_what_is_no_secret_stays_as_it_was_written(text: str) -> None:
    assert SECRET.content(text.encode()).decode() == text


@given(st.binary(max_size=200))
def test_anything_can_be_masked(data: bytes) -> None:
    SECRET.content(data)
    ALL.content(data)
    assert NOTHING.content(data) == data


# --- addresses ---

V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)


def common(one: bytes, other: bytes) -> int:
    """How many bits two addresses share from the beginning."""
    different = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return len(one) * 8 - different.bit_length()


@given(V4, st.integers(0, 31), st.binary(min_size=4, max_size=4))
def test_subnets_of_ipv4_keep_their_structure(one: object, at: int, salt: bytes) -> None:
    first = ip_address(str(one)).packed
    other = (int.from_bytes(first, "big") ^ 1 << (31 - at)).to_bytes(4, "big")
    anonymous = Anonymiser(salt)
    if any(each[0] in (0, 127) or each[0] >= 224 for each in (first, other)):
        return
    assert common(anonymous.address(first), anonymous.address(other)) == at


@given(V4, V6)
def test_what_kind_an_address_is_stays(v4: object, v6: object) -> None:
    anonymous = Anonymiser(SALT)
    for each in (v4, v6):
        before = ip_address(str(each))
        after = ip_address(anonymous.address(before.packed))
        for kind in ("is_loopback", "is_link_local", "is_multicast", "is_unspecified"):
            assert getattr(before, kind) == getattr(after, kind), (before, after)
    private = ip_network("10.0.0.0/8"), ip_network("192.168.0.0/16"), ip_network("172.16.0.0/12")
    before4 = ip_address(str(v4))
    after4 = ip_address(anonymous.address(before4.packed))
    assert [before4 in each for each in private] == [after4 in each for each in private]


@pytest.mark.parametrize(
    "text",
    ["10.22.33.4", "fd00:1234::5", "2001:db8:7:8:9:a:b:c", "fe80::5054:ff:fe12:3456", "8.8.4.4"],
)
@pytest.mark.parametrize(
    "around", ["{}", '"{}"', "[{}]:80", "{}:443", "x_{}", "dev {}%eth0", "{}/24"]
)
def test_an_address_is_replaced_wherever_it_stands(text: str, around: str) -> None:
    if ":" in text and around in ("{}:443", "x_{}"):
        return  # nobody writes that
    shown = ALL.text(around.format(text))
    assert text not in shown
    assert shown != around.format(text)
    assert ALL.text(around.format(text)) == shown


def test_the_same_address_has_the_same_stand_in_everywhere() -> None:
    inside = json.loads(
        ALL.content(b'{"ips": [{"address": "10.22.33.4/24", "gateway": "10.22.33.1"}]}')
    )
    address, gateway = inside["ips"][0]["address"], inside["ips"][0]["gateway"]
    assert ALL.text("-s 10.22.33.4/32 -j SNAT") == f"-s {address.partition('/')[0]}/32 -j SNAT"
    assert ip_address(gateway) in ip_network(address, strict=False)
    network = ALL.text("10.22.33.0/24")
    assert ip_address(gateway) in ip_network(network)  # strictly a network: no bits of hosts
    assert ip_address(gateway) in ip_network(ALL.text("10.22.0.0/16"))
    assert address != "10.22.33.4/24"


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "0.0.0.0/0", "::/0", "::1", "255.255.255.0", "ff02::1", "224.0.0.1"),
        *("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01", "12:34:56", "cni 1.1.0"),
    ],
)
def test_what_says_nothing_of_a_node_stays(text: str) -> None:
    assert ALL.text(text) == text


def test_a_link_local_address_follows_its_mac() -> None:
    mac = ALL.text("address 52:54:00:12:34:56").split()[1]
    raw = bytes.fromhex(mac.replace(":", ""))
    host = bytes((raw[0] ^ 2,)) + raw[1:3] + b"\xff\xfe" + raw[3:]
    assert ip_address(ALL.text("fe80::5054:ff:fe12:3456")).packed[8:] == host
    assert raw[0] & 3 == 2
    assert mac != "52:54:00:12:34:56"


def test_names() -> None:
    shown = ALL.text(
        "Nov 29 node-7 containerd: pod shop/web-0 at node-7.example.com, k8s_POD_db_default"
    )
    assert not [each for each in ("node-7", "web-0", "shop", "example", "_db_") if each in shown]
    assert "default" in shown
    assert "containerd" in shown
    pod = ALL.text("web-0")
    args = json.loads(ALL.content(b'{"cniArgs": [["K8S_POD_NAME", "web-0"]]}'))
    assert args["cniArgs"] == [["K8S_POD_NAME", pod]]
    assert ALL.text("K8S_POD_NAMESPACE=other;K8S_POD_NAME=unknown-to-us").count("pod-") == 1
    assert "example.com" not in ALL.text("server: https://api.example.com:6443/x")
    dns = json.loads(ALL.content(b'{"dns": {"domain": "corp.example", "search": ["a.corp"]}}'))
    assert "corp" not in str(dns)


# --- the archive ---


def unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert all(each.isreg() and each.mode == 0o600 for each in archive)
        return {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]


@given(
    st.dictionaries(
        st.text(
            st.characters(exclude_characters="\0/", exclude_categories=["Cs"]),
            min_size=1,
            max_size=150,
        ),
        st.binary(max_size=2000),
        max_size=5,
    )
)
def test_tar_reads_what_is_written(files: dict[str, bytes]) -> None:
    directory = Path(os.environ.get("TMPDIR", "/tmp")) / f"sysdump-{os.urandom(8).hex()}"
    directory.mkdir()
    path = directory / "x.tar.gz"
    try:
        with Archive(str(path)) as archive:
            for name, data in files.items():
                archive.add(f"d/{name}", data, 1)
            archive.finish()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert unpacked(path.read_bytes()) == {f"d/{name}": data for name, data in files.items()}
    finally:
        for each in directory.iterdir():
            each.unlink()
        directory.rmdir()


def test_an_archive_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with Archive(str(tmp_path / "x.tar.gz")) as archive:
        archive.add("a", b"x", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_when_told(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "x.tar.gz", tmp_path / "elsewhere"
    path.write_text("old")
    with pytest.raises(errors.Refused):
        Archive(str(path))
    assert path.read_text() == "old"
    with Archive(str(path), force=True) as archive:
        archive.finish()
    assert unpacked(path.read_bytes()) == {}
    path.unlink()
    elsewhere.write_text("mine")
    path.symlink_to(elsewhere)
    with pytest.raises(errors.CommandError):
        Archive(str(path))
    with Archive(str(path), force=True) as archive:
        archive.finish()
    assert elsewhere.read_text() == "mine"
    assert not path.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_somebody_makes_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    with Archive(str(path)) as archive:
        path.write_text("theirs")
        with pytest.raises(errors.Refused):
            archive.finish()
    assert path.read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, make: object) -> None:
    path = tmp_path / "x.tar.gz"
    make(path)  # type: ignore[operator]
    with pytest.raises(errors.CommandError):
        Archive(str(path), force=True)


# --- parts ---


def lines(found: Iterator[File]) -> list[tuple[str, bytes, str]]:
    return [(each.name, each.data, each.error) for each in found]


def test_a_part_that_hangs_is_given_up_and_what_it_had_is_kept() -> None:
    def gather(_: Mask) -> Iterator[File]:
        yield File("a", "", b"1")
        time.sleep(600)

    found = lines(collect(Part("slow", gather), NOTHING, 1.5))
    assert found == [("a", b"1", ""), ("slow", b"", "given up: it took too long")]


def test_a_part_that_fails_or_dies_says_so() -> None:
    def fails(_: Mask) -> Iterator[File]:
        yield File("a", "", b"1")
        raise ValueError("bad 10.1.2.3 password=x")

    def dies(_: Mask) -> Iterator[File]:
        yield File("a", "", b"1")
        os._exit(3)

    found = lines(collect(Part("x", fails), ALL, 60))
    assert found[0] == ("a", b"1", "")
    assert found[1][2].startswith("ValueError: bad 10.")
    assert "10.1.2.3" not in found[1][2]
    assert MASKED in found[1][2]
    assert lines(collect(Part("y", dies), NOTHING, 60))[-1][2] == "its process ended with code 3"


def test_a_part_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "PART_BYTES", 1 << 20)

    def gather(_: Mask) -> Iterator[File]:
        while True:
            yield File("a", "", bytes(100_000))

    found = lines(collect(Part("x", gather), NOTHING, 60))
    assert found[-1][2] == "given up: it is larger than 1 MiB"
    assert 0 < len(found) < 20


def test_what_a_part_started_is_ended_with_it(tmp_path: Path) -> None:
    def gather(_: Mask) -> Iterator[File]:
        child = os.fork()
        if child == 0:
            time.sleep(600)
        yield File("pid", "", str(child).encode())
        time.sleep(600)

    found = lines(collect(Part("x", gather), NOTHING, 1.5))
    pid = int(found[0][1])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as status:
                if status.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except (FileNotFoundError, ProcessLookupError):  # the latter between open and read
            return
    raise AssertionError("it still runs")


# --- state ---


def test_state_is_read_without_following_or_waiting(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    root = tmp_path / "state"
    (root / "intent").mkdir(parents=True)
    (root / "intent" / "good.bridge").write_text("{}")
    (root / "intent" / "link").symlink_to(secret)
    (root / "elsewhere").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    (root / "binary").write_bytes(b"\0\1\2")
    (root / "huge").write_bytes(b"x" * (3 << 20))
    (root / "10.1.2.3").write_bytes(b"abc\r\neth0")
    os.mkfifo(root / "10.1.2.4")
    found = {each.path: each for each in state.read(str(root))}
    assert b"not yours" not in b"".join(each.data for each in found.values())
    assert found["intent/good.bridge"].data == b"{}"
    assert found["huge"].problem == f"cut: has {3 << 20} bytes"
    assert 0 < len(found["huge"].data) < 1 << 20
    assert found["binary"].problem == "binary: only listed"
    assert "fifo" not in found
    listing = found[""].data.decode()
    for name in ("intent/link", "fifo", "binary", "elsewhere", "10.1.2.4"):
        assert name in listing
    assert found["reservations"].data == b"10.1.2.3\tabc\\r\\neth0\n"


def test_a_directory_with_very_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_MOST_FILES", 20)
    monkeypatch.setattr(state, "_MOST_LISTED", 30)
    for number in range(40):
        (tmp_path / f"f{number:03}").write_text("x")
    found = list(state.read(str(tmp_path)))
    assert sum(each.path.startswith("f") for each in found) == 20
    assert any("more" in each.problem for each in found)
    assert len(found[0].data.splitlines()) == 31
