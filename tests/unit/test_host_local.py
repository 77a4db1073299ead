"""host-local: the intents of the reference's tests, results and files, verb by verb."""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from cni import lockfile
from cni.ipam.host_local import resolvconf
from cni.ipam.host_local.directory import open_store
from cni.protocol.errors import CNIError, TryAgainLater
from tests.harness.wait import wait_for_open

from .ipam_node import ALL_VERSIONS, Child, Failure, Ipam

if TYPE_CHECKING:
    from pathlib import Path


# Newer Pythons warn of forks beside threads: pytest-timeout has one.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def host_local(data_dir: Path, version: str = "1.1.0", **ipam: Any) -> Ipam:
    return Ipam(
        "host-local",
        {
            "cniVersion": version,
            "name": "mynet",
            "type": "bridge",
            "ipam": {"type": "host-local", "dataDir": str(data_dir), **ipam},
        },
    )


def one_range(data_dir: Path, subnet: str = "10.1.2.0/24", **keys: Any) -> Ipam:
    return host_local(data_dir, ranges=[[{"subnet": subnet, **keys}]])


def files(data_dir: Path, network: str = "mynet") -> dict[str, str]:
    return {each.name: each.read_bytes().decode() for each in (data_dir / network).iterdir()}


def leases(data_dir: Path, network: str = "mynet") -> dict[str, str]:
    return {
        name: content
        for name, content in files(data_dir, network).items()
        if name != "lock" and not name.startswith("last_reserved_ip.")
    }


def fails(ipam: Ipam, msg: str, verb: str = "ADD", **more: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        ipam.call(verb, **more)
    assert caught.value.msg == msg
    return caught.value


# --- results and files ---

ROUTES = [
    {"dst": "0.0.0.0/0"},
    {"dst": "::/0"},
    {"dst": "192.168.0.0/16", "gw": "1.1.1.1"},
    {"dst": "2001:db8:2::/64", "gw": "2001:db8:3::1"},
]


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_dual_stack(tmp_path: Path, version: str) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.3\n")
    data = tmp_path / "a" / "b"
    ipam = host_local(
        data,
        version,
        resolvConf=str(resolv),
        ranges=[
            [{"subnet": "10.1.2.0/24"}, {"subnet": "10.2.2.0/24"}],
            [{"subnet": "2001:db8:1::0/64"}],
        ],
        routes=ROUTES,
    )
    result = ipam.call("ADD")
    dns = {"nameservers": ["192.0.2.3"]}
    if version < "0.3.0":
        assert result == {
            "cniVersion": version,
            "ip4": {
                "ip": "10.1.2.2/24",
                "gateway": "10.1.2.1",
                "routes": [ROUTES[0], ROUTES[2]],
            },
            "ip6": {
                "ip": "2001:db8:1::2/64",
                "gateway": "2001:db8:1::1",
                "routes": [ROUTES[1], ROUTES[3]],
            },
            "dns": dns,
        }
    else:
        ips = [
            {"version": "4", "address": "10.1.2.2/24", "gateway": "10.1.2.1"},
            {"version": "6", "address": "2001:db8:1::2/64", "gateway": "2001:db8:1::1"},
        ]
        if version >= "1.0.0":
            for ip in ips:
                del ip["version"]
        assert result == {"cniVersion": version, "ips": ips, "routes": ROUTES, "dns": dns}
    state = {
        "last_reserved_ip.0": "10.1.2.2",
        "last_reserved_ip.1": "2001:db8:1::2",
        "lock": "",
    }
    held = {"10.1.2.2": "c1\r\neth0", "2001:db8:1::2": "c1\r\neth0"}
    assert files(data) == {**state, **held}
    if version >= "0.4.0":
        ipam.check()
    ipam.delete()
    assert files(data) == state
    if version >= "0.4.0":
        fails(ipam, "host-local: Failed to find address added by container c1", "CHECK")


def test_modes(tmp_path: Path) -> None:
    data = tmp_path / "a" / "b"
    before = os.umask(0o022)
    try:
        one_range(data).add()
    finally:
        os.umask(before)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (data / "mynet").iterdir()}
    assert modes == {"10.1.2.2": 0o600, "last_reserved_ip.0": 0o600, "lock": 0o750}
    assert {stat.S_IMODE(each.stat().st_mode) for each in (data, data.parent)} == {0o755}


def test_spec_example(tmp_path: Path) -> None:
    ipam = host_local(
        tmp_path,
        "0.4.0",
        ranges=[[{"subnet": "10.22.0.0/24"}], [{"subnet": "fd00:22::/64"}]],
        routes=[{"dst": "0.0.0.0/0"}],
    )
    code, output = ipam.raw("ADD")
    assert code == 0
    assert " ".join(output.decode().split()) == (
        '{ "cniVersion": "0.4.0", "ips": [ { "version": "4", "address": "10.22.0.2/24", '
        '"gateway": "10.22.0.1" }, { "version": "6", "address": "fd00:22::2/64", '
        '"gateway": "fd00:22::1" } ], "routes": [ { "dst": "0.0.0.0/0" } ], "dns": {} }'
    )


def test_networks_and_interfaces_are_apart(tmp_path: Path) -> None:
    first = one_range(tmp_path)
    second = one_range(tmp_path, "10.3.0.0/24")
    second.conf["name"] = "other"
    assert first.add() == ["10.1.2.2/24"]
    assert second.add() == ["10.3.0.2/24"]
    assert first.add(ifname="eth1") == ["10.1.2.3/24"]
    first.delete()
    assert leases(tmp_path) == {"10.1.2.3": "c1\r\neth1"}
    assert leases(tmp_path, "other") == {"10.3.0.2": "c1\r\neth0"}
    first.delete(ifname="eth1")
    second.delete()
    assert not leases(tmp_path)
    assert not leases(tmp_path, "other")


def test_a_second_add_of_an_attachment_fails(tmp_path: Path) -> None:
    ipam = one_range(tmp_path)
    text = (
        "failed to allocate for range 0: 10.1.2.2 has been allocated to c1, duplicate allocation "
        "is not allowed"
    )
    ipam.add()
    fails(ipam, text)
    assert ipam.add("c2") == ["10.1.2.3/24"]
    assert "DEL" in fails(ipam, text).details
    assert set(leases(tmp_path)) == {"10.1.2.2", "10.1.2.3"}
    ipam.delete()
    ipam.delete("c2")
    assert not leases(tmp_path)


def test_files_of_old_versions(tmp_path: Path) -> None:
    ipam = one_range(tmp_path)
    directory = tmp_path / "mynet"
    directory.mkdir()
    (directory / "10.1.2.9").write_text("c1\n")
    ipam.check()
    fails(
        ipam,
        "failed to allocate for range 0: 10.1.2.9 has been allocated to c1, duplicate "
        "allocation is not allowed",
    )
    ipam.delete("c2")
    assert set(leases(tmp_path)) == {"10.1.2.9"}
    # A file with the interface is released alone if there is one.
    (directory / "10.1.2.10").write_text("c1\r\neth0")
    ipam.delete()
    assert set(leases(tmp_path)) == {"10.1.2.9"}
    ipam.delete()
    assert not leases(tmp_path)


def test_delete_removes_every_file_of_the_attachment(tmp_path: Path) -> None:
    ipam = one_range(tmp_path)
    ipam.add()
    (tmp_path / "mynet" / "10.9.9.9").write_text(" c1\r\neth0\n")
    ipam.delete()
    assert not leases(tmp_path)
    ipam.delete()
    ipam.delete("unknown")


def test_delete_makes_the_directory(tmp_path: Path) -> None:
    one_range(tmp_path / "new").delete()
    assert files(tmp_path / "new") == {"lock": ""}


def test_nothing_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ipam = one_range(tmp_path)
    ipam.add()
    ipam.delete()
    assert capfd.readouterr().err == ""


# --- round robin ---


def state(data_dir: Path, taken: list[str], last: str | None) -> None:
    directory = data_dir / "mynet"
    directory.mkdir(parents=True)
    for name in taken:
        (directory / name).write_text("other\r\neth0")
    if last is not None:
        (directory / "last_reserved_ip.0").write_text(last)


TWO = [
    {"subnet": "10.0.1.0/29", "rangeStart": "10.0.1.2", "rangeEnd": "10.0.1.3"},
    {"subnet": "10.0.2.0/29", "rangeStart": "10.0.2.3", "rangeEnd": "10.0.2.5"},
]
SLASH29 = [{"subnet": "10.0.0.0/29"}]


@pytest.mark.parametrize(
    ("ranges", "taken", "last", "want"),
    [
        ([{"subnet": "10.0.0.0/24"}], [], None, "10.0.0.2"),
        ([{"subnet": "2001:db8:1::0/64"}], [], None, "2001:db8:1::2"),
        ([{"subnet": "10.0.0.0/30"}], [], None, "10.0.0.2"),
        ([{"subnet": "10.0.0.0/24"}], ["10.0.0.2"], None, "10.0.0.3"),
        (SLASH29, [], "10.0.0.2", "10.0.0.3"),
        (SLASH29, [], "10.0.0.5", "10.0.0.6"),
        (SLASH29, [], "10.0.0.6", "10.0.0.2"),
        (SLASH29, [], "128.0.0.1", "10.0.0.2"),
        (SLASH29, [], "10.0.0.7", "10.0.0.2"),
        (SLASH29, [], "rubbish", "10.0.0.2"),
        (SLASH29, [], "", "10.0.0.2"),
        (SLASH29, [], "fd00::1", "10.0.0.2"),
        (SLASH29, ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"], "10.0.0.3", "10.0.0.3"),
        (SLASH29, ["10.0.0.4", "10.0.0.5", "10.0.0.6"], "10.0.0.3", "10.0.0.2"),
        (TWO, [], None, "10.0.1.2"),
        (TWO, [], "10.0.1.2", "10.0.1.3"),
        (TWO, [], "10.0.1.3", "10.0.2.3"),
        (TWO, [], "10.0.2.4", "10.0.2.5"),
        (TWO, [], "10.0.2.5", "10.0.1.2"),
        (TWO, ["10.0.1.3"], "10.0.1.2", "10.0.2.3"),
        (TWO, ["10.0.1.2", "10.0.1.3"], "10.0.2.5", "10.0.2.3"),
        (
            [{"subnet": "fd00::/64", "rangeStart": "fd00::ffff:ffff:ffff:fffe"}],
            [],
            "fd00::ffff:ffff:ffff:ffff",
            "fd00::ffff:ffff:ffff:fffe",
        ),
        (
            [{"subnet": "10.0.0.0/29", "rangeStart": "10.0.0.4", "gateway": "10.0.0.5"}],
            [],
            "10.0.0.4",
            "10.0.0.6",
        ),
    ],
)
def test_next_address(
    tmp_path: Path, ranges: list[Any], taken: list[str], last: str | None, want: str
) -> None:
    state(tmp_path, taken, last)
    ipam = host_local(tmp_path, ranges=[ranges])
    assert [text.partition("/")[0] for text in ipam.add()] == [want]
    assert files(tmp_path)["last_reserved_ip.0"] == want


def test_a_crash_looping_container_walks_the_range(tmp_path: Path) -> None:
    ipam = one_range(tmp_path, "10.0.0.0/29")
    seen = []
    for _ in range(7):
        seen += ipam.add()
        ipam.delete()
    hosts = [2, 3, 4, 5, 6, 2, 3]
    assert seen == [f"10.0.0.{n}/29" for n in hosts]


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "3"), ("10.1.2.2", "3"), ("10.1.2.100", "101"), ("10.1.2.254", "3"), ("x" * 300, "3")],
)
def test_last_reserved_is_written_in_place(tmp_path: Path, before: str, after: str) -> None:
    """A file that takes its name would be written to the disk at once (ext4's auto_da_alloc)."""
    ipam = one_range(tmp_path)
    ipam.add("a")
    path = tmp_path / "mynet" / "last_reserved_ip.0"
    inode = path.stat().st_ino
    path.write_text(before)
    ipam.add("b")
    assert path.read_text() == f"10.1.2.{after}"
    assert path.stat().st_ino == inode


def test_last_reserved_is_not_written_through_a_link(tmp_path: Path) -> None:
    ipam = one_range(tmp_path)
    ipam.add("a")
    path = tmp_path / "mynet" / "last_reserved_ip.0"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    ipam.add("b")
    assert (path.is_symlink(), path.read_text()) == (False, "10.1.2.3")
    assert not (tmp_path / "elsewhere").exists()


def test_a_released_file_is_used_again(tmp_path: Path) -> None:
    """To make one takes ext4 long where many come and go."""
    ipam = one_range(tmp_path)
    ipam.add("first")
    inode = (tmp_path / "mynet" / "10.1.2.2").stat().st_ino
    ipam.delete("first")
    assert set(files(tmp_path)) == {"lock", "last_reserved_ip.0"}
    ipam.add("2")
    status = (tmp_path / "mynet" / "10.1.2.3").stat()
    assert (status.st_ino, status.st_nlink, stat.S_IMODE(status.st_mode)) == (inode, 1, 0o600)
    assert leases(tmp_path) == {"10.1.2.3": "2\r\neth0"}
    ipam.add("3")
    ipam.delete("2")
    ipam.delete("3")
    assert set(os.listdir(tmp_path / ".cni")) == {"mynet.index", "mynet.spare"}


def test_killed_between_keeping_a_file_and_releasing_it(tmp_path: Path) -> None:
    """It has two names: what is written to one must not get into the other."""
    ipam = one_range(tmp_path)
    ipam.add("first")
    os.link(tmp_path / "mynet" / "10.1.2.2", tmp_path / ".cni" / "mynet.spare")
    ipam.add("second")
    assert leases(tmp_path) == {"10.1.2.2": "first\r\neth0", "10.1.2.3": "second\r\neth0"}
    assert (tmp_path / "mynet" / "10.1.2.3").stat().st_nlink == 1


@pytest.mark.parametrize("kind", ["directory", "link", "fifo", "mode"])
def test_a_spare_file_that_is_none(tmp_path: Path, kind: str) -> None:
    ipam = one_range(tmp_path)
    ipam.add("first")
    spare, other = tmp_path / ".cni" / "mynet.spare", tmp_path / "other"
    other.write_text("precious")
    if kind == "directory":
        spare.mkdir()
    elif kind == "link":
        spare.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(spare, 0o600)
    else:
        spare.write_text("x")
        spare.chmod(0o666)
    ipam.add("second")
    ipam.delete("first")
    assert leases(tmp_path) == {"10.1.2.3": "second\r\neth0"}
    status = (tmp_path / "mynet" / "10.1.2.3").lstat()
    assert (stat.S_ISREG(status.st_mode), stat.S_IMODE(status.st_mode)) == (True, 0o600)
    assert other.read_text() == "precious"


def test_unreadable_last_reserved(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Said on stderr; only what is left in its place fails the ADD, which leaves nothing."""
    state(tmp_path, [], None)
    (tmp_path / "mynet" / "last_reserved_ip.0").mkdir()
    error = fails(
        one_range(tmp_path),
        f"failed to allocate for range 0: open {tmp_path}/mynet/last_reserved_ip.0: is a directory",
    )
    assert error.code == 999
    assert "Error retrieving last reserved ip" in capfd.readouterr().err
    assert set(os.listdir(tmp_path / "mynet")) == {"lock", "last_reserved_ip.0"}


def test_exhausted(tmp_path: Path) -> None:
    ipam = one_range(tmp_path, "10.0.0.0/29")
    for n in range(5):
        ipam.add(f"c{n}")
    os.utime(tmp_path / "mynet" / "10.0.0.4", (0, 0))
    error = fails(
        ipam,
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.6",
        cid="c9",
    )
    assert "5 of 5 addresses" in error.details
    assert (
        "held the longest: 10.0.0.4 by container c2 (eth0) since 1970-01-01T00:00:00Z, 10.0.0.2"
        in error.details
    )
    ipam.delete("c3")
    assert ipam.add("c9") == ["10.0.0.5/29"]


def test_no_address_at_all(tmp_path: Path) -> None:
    ranges = [{"subnet": "10.0.0.0/29", "rangeEnd": "10.0.0.1"}]
    fails(
        host_local(tmp_path, ranges=[ranges]),
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.1",
    )


def test_a_failing_set_releases_the_others(tmp_path: Path) -> None:
    small = {"subnet": "10.9.0.0/29", "rangeStart": "10.9.0.2", "rangeEnd": "10.9.0.2"}
    ipam = host_local(tmp_path, ranges=[[{"subnet": "10.1.2.0/24"}], [small]])
    ipam.add("c1")
    fails(
        ipam,
        "failed to allocate for range 1: no IP addresses available in range set: 10.9.0.2-10.9.0.2",
        cid="c2",
    )
    assert set(leases(tmp_path)) == {"10.1.2.2", "10.9.0.2"}
    # What an earlier ADD of the same attachment got is not touched.
    fails(
        ipam,
        "failed to allocate for range 1: 10.9.0.2 has been allocated to c1, duplicate "
        "allocation is not allowed",
        env_args="IP=10.1.2.99",
    )
    assert set(leases(tmp_path)) == {"10.1.2.2", "10.9.0.2"}


def test_a_failure_after_the_allocation_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        raise CNIError("no")

    monkeypatch.setattr("cni.ipam.host_local.plugin.Result", broken)
    fails(one_range(tmp_path), "no")
    assert not leases(tmp_path)


def test_undoing_spares_what_is_no_longer_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        (tmp_path / "mynet" / "10.1.2.2").write_bytes(b"other\r\neth0")
        raise CNIError("no")

    monkeypatch.setattr("cni.ipam.host_local.plugin.Result", broken)
    fails(one_range(tmp_path), "no")
    assert leases(tmp_path) == {"10.1.2.2": "other\r\neth0"}


# --- requested addresses ---


def test_requested(tmp_path: Path) -> None:
    ipam = one_range(tmp_path)
    assert ipam.add("c1", env_args="IP=10.1.2.88") == ["10.1.2.88/24"]
    assert ipam.add("c2", env_args="IP=10.1.2.89/16") == ["10.1.2.89/24"]
    assert ipam.add("c3", args={"cni": {"ips": ["10.1.2.90/24"]}}) == ["10.1.2.90/24"]
    assert ipam.add("c4", runtimeConfig={"ips": ["10.1.2.91"]}) == ["10.1.2.91/24"]
    assert ipam.add("c5", RuntimeConfig={"IPs": ["10.1.2.92"]}) == ["10.1.2.92/24"]
    # A requested address also moves round robin on.
    assert ipam.add("c6") == ["10.1.2.93/24"]
    # There is no check for another address of the same attachment.
    assert ipam.add("c1", env_args="IP=10.1.2.87") == ["10.1.2.87/24"]
    ipam.delete("c1")
    assert not {"10.1.2.87", "10.1.2.88"} & set(leases(tmp_path))


def test_requested_from_several_sets(tmp_path: Path) -> None:
    ipam = host_local(
        tmp_path,
        ranges=[
            [{"subnet": "172.16.1.0/24"}, {"subnet": "10.1.2.0/24"}],
            [{"subnet": "2001:db8:1::/64"}],
            [{"subnet": "192.168.0.0/24"}],
        ],
    )
    everything: dict[str, Any] = {
        "env_args": "IP=10.1.2.88",
        "args": {"cni": {"ips": ["2001:db8:1::999", "10.1.2.88/24"]}},
        "runtimeConfig": {"ips": ["2001:db8:1::999/64"]},
    }
    result = ipam.call("ADD", **everything)
    assert result["ips"] == [
        {"address": "10.1.2.88/24", "gateway": "10.1.2.1"},
        {"address": "2001:db8:1::999/64", "gateway": "2001:db8:1::1"},
        {"address": "192.168.0.2/24", "gateway": "192.168.0.1"},
    ]
    ipam.delete(**everything)
    assert not leases(tmp_path)


REQUESTED_ERRORS = [
    ({"env_args": "IP=10.1.2.1"}, "failed to allocate for range 0: requested ip 10.1.2.1 is "
     "subnet's gateway"),
    ({"env_args": "IP=10.1.2.5"}, "failed to allocate for range 0: requested IP address 10.1.2.5 "
     "is not available in range set 10.1.2.1-10.1.2.100,10.1.3.1-10.1.3.254"),
    ({"env_args": "IP=10.1.2.101"}, "failed to allocate all requested IPs: 10.1.2.101"),
    ({"env_args": "IP=10.1.2.255"}, "failed to allocate all requested IPs: 10.1.2.255"),
    ({"env_args": "IP=10.1.2.0"}, "failed to allocate all requested IPs: 10.1.2.0"),
    ({"runtimeConfig": {"ips": ["10.1.2.9", "10.1.2.8", "fd00::1"]}},
     "failed to allocate all requested IPs: 10.1.2.8 fd00::1"),
    ({"runtimeConfig": {"ips": ["x"]}}, "invalid IP address x"),
    ({"args": {"cni": {"ips": ["10.0.0.1/x"]}}}, "invalid IP address 10.0.0.1/x"),
    ({"args": {"cni": {"ips": [""]}}}, "cannot understand ip: IP <nil> not v4 nor v6"),
    ({"env_args": "IP=x"}, 'ARGS: error parsing value of pair "IP=x": invalid IP address x'),
    ({"env_args": "A=1;IP=10.1.2.3"}, 'ARGS: unknown args ["A=1"]'),
    ({"env_args": "A"}, 'ARGS: invalid pair "A"'),
]  # fmt: skip


@pytest.mark.parametrize(("more", "msg"), REQUESTED_ERRORS)
def test_requested_errors(tmp_path: Path, more: dict[str, Any], msg: str) -> None:
    state(tmp_path, ["10.1.2.5"], None)
    ranges = [{"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.100"}, {"subnet": "10.1.3.0/24"}]
    fails(host_local(tmp_path, ranges=[ranges]), msg, **more)
    assert set(leases(tmp_path)) == {"10.1.2.5"}


def test_requesting_what_the_attachment_has_does_not_release_it(tmp_path: Path) -> None:
    ipam = one_range(tmp_path)
    ipam.add(env_args="IP=10.1.2.88")
    with pytest.raises(Failure, match=r"10.1.2.88 is not available"):
        ipam.add(env_args="IP=10.1.2.88")
    assert set(leases(tmp_path)) == {"10.1.2.88"}


def test_a_taken_requested_address_names_its_holder(tmp_path: Path) -> None:
    ipam = one_range(tmp_path)
    ipam.add("c1")
    with pytest.raises(Failure) as caught:
        ipam.add("c2", env_args="IP=10.1.2.2")
    assert "container c1 (eth0)" in caught.value.details


# --- files that are not whole, or not ours ---


@pytest.mark.parametrize("content", ["", "\r\n", " "])
def test_torn_files_are_free(tmp_path: Path, content: str) -> None:
    state(tmp_path, [], None)
    torn = tmp_path / "mynet" / "10.1.2.2"
    torn.write_text(content)
    ipam = one_range(tmp_path)
    assert ipam.add() == ["10.1.2.2/24"]
    assert torn.read_bytes() == b"c1\r\neth0"
    (tmp_path / "mynet" / "10.1.2.50").write_text(content)
    assert ipam.add("c2", env_args="IP=10.1.2.50") == ["10.1.2.50/24"]


def test_foreign_files(tmp_path: Path) -> None:
    state(tmp_path, [], None)
    directory = tmp_path / "mynet"
    (directory / "README").write_text("hello")
    (directory / "10.1.2.2").mkdir()
    (directory / "10.1.2.3").symlink_to("nowhere")
    (directory / ".new").write_text("left by a kill")
    ipam = one_range(tmp_path)
    assert ipam.add() == ["10.1.2.4/24"]
    ipam.delete()
    ipam.gc()
    assert set(os.listdir(directory)) == {
        "README", "10.1.2.2", "10.1.2.3", "lock", "last_reserved_ip.0",
    }  # fmt: skip


@pytest.mark.parametrize("without", ["O_TMPFILE", "links", "proc"])
def test_poorer_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    real_open, real_link = os.open, os.link

    def poor_open(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real_open(path, flags, *rest, **more)

    def no_link(src: Any, dst: Any, **more: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    def no_proc(src: Any, dst: Any, **more: Any) -> None:
        real_link(str(src).replace("/proc", "/nosuch"), dst, **more)

    if without == "O_TMPFILE":
        monkeypatch.setattr(os, "open", poor_open)
    else:
        monkeypatch.setattr(os, "link", no_link if without == "links" else no_proc)
    ipam = one_range(tmp_path, "10.0.0.0/29")
    for n in range(5):
        ipam.add(f"c{n}")
    with pytest.raises(Failure, match="no IP addresses available"):
        ipam.add("c5")
    with pytest.raises(Failure, match="is not available"):
        ipam.add("c5", env_args="IP=10.0.0.3")
    (tmp_path / "mynet" / "10.0.0.4").write_text("")
    assert ipam.add("c5") == ["10.0.0.4/29"]
    assert set(leases(tmp_path)) == {f"10.0.0.{n}" for n in range(2, 7)}


def test_a_file_in_the_making_is_overwritten(tmp_path: Path) -> None:
    state(tmp_path, [], None)
    (tmp_path / "mynet" / ".new").write_text("the long content that a killed ADD left")
    ipam = one_range(tmp_path)
    assert ipam.add(env_args="IP=10.1.2.9") == ["10.1.2.9/24"]
    assert files(tmp_path) == {
        "10.1.2.9": "c1\r\neth0",
        "last_reserved_ip.0": "10.1.2.9",
        "lock": "",
    }


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    ipam = one_range(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("cni.ipam.host_local.store.os.write", full)
        code, output = ipam.raw("ADD")
    assert code == 1
    assert b"no space left on device" in output
    assert set(os.listdir(tmp_path / "mynet")) == {"lock"}


# --- the directory and the lock ---


def test_data_dir_is_a_file(tmp_path: Path) -> None:
    data = tmp_path / "file"
    data.write_text("")
    ipam = one_range(data)
    error = fails(ipam, f"mkdir {data}: not a directory")
    assert "ipam.dataDir" in error.details
    fails(ipam, f"mkdir {data}: not a directory", "DEL")
    assert fails(ipam, f"host-local: cannot write to {data}", "STATUS").code == 50


def test_data_dir_cannot_be_made() -> None:
    ipam = host_local("/proc/nosuch", subnet="10.0.0.0/24")  # type: ignore[arg-type]
    fails(ipam, "mkdir /proc/nosuch: no such file or directory")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/etc", ""])
def test_stays_below_data_dir(tmp_path: Path, name: str) -> None:
    with pytest.raises(CNIError, match="invalid network name"), open_store(str(tmp_path), name):
        pass
    assert not os.listdir(tmp_path)


def test_lock_names_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ipam = one_range(tmp_path)
    ipam.add()
    monkeypatch.setattr(lockfile, "TIMEOUT", 0.1)
    fd = os.open(tmp_path / "mynet" / "lock", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for verb in ("ADD", "DEL", "CHECK"):
            with pytest.raises(Failure) as caught:
                ipam.call(verb, "c2")
            assert caught.value.code == 11
            want = f"cannot lock {tmp_path}/mynet/lock: held by pid {os.getpid()} ("
            assert caught.value.msg.startswith(want)
            assert "python" in caught.value.msg
    finally:
        os.close(fd)
    assert ipam.add("c2") == ["10.1.2.3/24"]


def test_lock_waits(tmp_path: Path) -> None:
    ipam = one_range(tmp_path)
    with open_store(str(tmp_path), "mynet") as store:
        other = Child(ipam.add)
        wait_for_open(other.pid, tmp_path / "mynet" / "lock")
        # It was there first, but waits: so it gets what is left.
        assert store.reserve("10.1.2.2", b"x")
    assert other.value() == ["10.1.2.3/24"]


def test_lock_in_a_directory_that_was_replaced(tmp_path: Path) -> None:
    """Whoever waited for the lock of a directory that is gone gets that of the new one."""
    ipam = one_range(tmp_path)
    with open_store(str(tmp_path), "mynet"):
        child = Child(ipam.add)
        wait_for_open(child.pid, tmp_path / "mynet" / "lock")
        (tmp_path / "mynet").rename(tmp_path / "old")
        with open_store(str(tmp_path), "mynet", timeout=60) as second:
            # the child may have been the first in the new directory
            names = ["10.1.2.2", "10.1.2.3"]
            taken = next(name for name in names if second.reserve(name, b"x"))
    names.remove(taken)
    assert child.value() == [f"{names[0]}/24"]
    assert leases(tmp_path) == {taken: "x", names[0]: "c1\r\neth0"}
    with (
        open_store(str(tmp_path), "net"),
        pytest.raises(TryAgainLater),
        open_store(str(tmp_path), "net", timeout=0.05),
    ):
        pass


def test_store_sees_its_own_changes(tmp_path: Path) -> None:
    with open_store(str(tmp_path), "net") as store:
        assert store.leases() == {}
        assert store.reserve("10.0.0.2", b"a\r\nb")
        assert not store.reserve("10.0.0.2", b"c\r\nd")
        assert store.leases() == {"10.0.0.2": b"a\r\nb"}
        assert store.owned_by("a", "b") == ["10.0.0.2"]
        store.release("10.0.0.2")
        store.release("10.0.0.2")
        assert store.leases() == {}


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    ipam = one_range(tmp_path, "10.0.0.0/29")

    def cycle() -> None:
        for n in range(7):
            ipam.raw("ADD", f"c{n}")
        for n in range(7):
            ipam.raw("DEL", f"c{n}")

    cycle()
    before = len(os.listdir("/proc/self/fd"))
    cycle()
    assert len(os.listdir("/proc/self/fd")) == before


# --- GC and STATUS ---


def test_gc(tmp_path: Path) -> None:
    ipam = one_range(tmp_path)
    other = one_range(tmp_path, "10.3.0.0/24")
    other.conf["name"] = "other"
    other.add("gone")
    for cid in ("kept", "gone", "half"):
        ipam.add(cid)
        ipam.add(cid, "eth1")
    directory = tmp_path / "mynet"
    (directory / "10.1.2.100").write_text("kept")
    (directory / "10.1.2.101").write_text("gone")
    (directory / "10.1.2.102").write_text("")
    (directory / "10.1.2.103").write_text("not\r\nhost-local's\r\nat all")
    ipam.gc(("kept", "eth0"), ("kept", "eth1"), ("half", "eth1"))
    assert leases(tmp_path) == {
        "10.1.2.2": "kept\r\neth0",
        "10.1.2.3": "kept\r\neth1",
        "10.1.2.7": "half\r\neth1",
        "10.1.2.100": "kept",
        "10.1.2.103": "not\r\nhost-local's\r\nat all",
    }
    assert {"lock", "last_reserved_ip.0"} <= set(files(tmp_path))
    assert set(leases(tmp_path, "other")) == {"10.3.0.2"}
    assert ipam.call("GC") is None
    assert len(leases(tmp_path)) == 5
    ipam.gc()
    assert set(leases(tmp_path)) == {"10.1.2.103"}


def test_gc_without_state_or_ranges(tmp_path: Path) -> None:
    ipam = host_local(tmp_path / "none")
    ipam.gc()
    assert not os.listdir(tmp_path)
    assert ipam.call("STATUS") is None
    assert not os.listdir(tmp_path)


def test_status(tmp_path: Path) -> None:
    ipam = host_local(tmp_path, ranges=[[{"subnet": "10.0.0.0/29"}], [{"subnet": "fd00::/64"}]])
    assert ipam.call("STATUS") is None
    for n in range(5):
        assert ipam.call("STATUS") is None
        ipam.add(f"c{n}")
    error = fails(
        ipam,
        "host-local: no IP addresses available in range set: 10.0.0.1-10.0.0.6",
        "STATUS",
    )
    assert error.code == 50
    ipam.delete("c2")
    assert ipam.call("STATUS") is None
    # A torn file is a free address.
    (tmp_path / "mynet" / "10.0.0.4").write_text("")
    assert ipam.call("STATUS") is None
    (tmp_path / "mynet" / "10.0.0.4").write_text("x")
    with pytest.raises(Failure):
        ipam.call("STATUS")


# --- resolv.conf ---


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", {}),
        ("nameserver 192.0.2.0\nnameserver 192.0.2.1\n",
         {"nameservers": ["192.0.2.0", "192.0.2.1"]}),
        ("nameserver 192.0.2.0\n#nameserver 192.0.2.1\n ; x y\nnameserver\n",
         {"nameservers": ["192.0.2.0"]}),
        ("\tnameserver\t192.0.2.0 ignored\r\ndomain a\ndomain b c\nsearch x y\nsearch z\n"
         "options ndots:5 rotate\noptions edns0\nsortlist 1\n",
         {"nameservers": ["192.0.2.0"], "domain": "b", "search": ["x", "y", "z"],
          "options": ["ndots:5", "rotate", "edns0"]}),
    ],
)  # fmt: skip
def test_resolv_conf(text: str, want: dict[str, Any]) -> None:
    assert resolvconf.parse(text).as_dict() == want


def test_resolv_conf_missing(tmp_path: Path) -> None:
    missing = tmp_path / "nosuch"
    ipam = host_local(tmp_path / "data", subnet="10.0.0.0/24", resolvConf=str(missing))
    fails(ipam, f"open {missing}: no such file or directory")
    fails(
        host_local(tmp_path / "data", subnet="10.0.0.0/24", resolvConf=str(tmp_path)),
        f"read {tmp_path}: is a directory",
    )
    assert not (tmp_path / "data").exists()
    ipam.delete()
