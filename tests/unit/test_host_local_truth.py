"""host-local goes by its files: rewritten, of other spellings, unreadable, of a namespace gone."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Any

import pytest

from cni.ipam.host_local import reservation
from cni.ipam.host_local.directory import open_store
from cni.netns import liveness
from cni.netns.namespace import Identity
from tests.harness.pinned import Pinned, unmount_all

from .ipam_node import Failure, Ipam

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def network(data_dir: Path, subnet: str = "10.0.0.0/24", **ipam: Any) -> Ipam:
    keys = {"type": "host-local", "dataDir": str(data_dir), "subnet": subnet, **ipam}
    return Ipam("host-local", {"cniVersion": "1.1.0", "name": "net", "ipam": keys})


def held(data_dir: Path) -> dict[str, str]:
    """Name -> content of the reservations."""
    directory = data_dir / "net"
    names = (name for name in os.listdir(directory) if name[0] in "0123456789abcdef:")
    return {name: (directory / name).read_bytes().decode() for name in names}


# --- rewritten in place: the directory does not change, and the index knows nothing of it ---


@pytest.mark.parametrize("content", ["c1", "c1\n", " c1\r\neth0 \n", "c1\r\neth0"])
@pytest.mark.parametrize("before", ["c1", "other"])
def test_a_file_that_was_rewritten_is_released(tmp_path: Path, content: str, before: str) -> None:
    ipam = network(tmp_path)
    for cid in (before, "c9"):
        ipam.add(cid)
    (tmp_path / "net" / "10.0.0.2").write_text(content)
    ipam.check("c1")
    ipam.delete("c1")
    assert held(tmp_path) == {"10.0.0.3": "c9\r\neth0"}
    ipam.delete("c1")
    ipam.delete("c9")
    assert not held(tmp_path)


def test_in_a_large_directory_too(tmp_path: Path) -> None:
    """Its own file, the one that prevResult names; any other one is GC's."""
    ipam = network(tmp_path, "10.0.0.0/16")
    for n in range(200):
        ipam.add(f"x{n}")
    for name, content in (("10.0.0.2", "x0"), ("10.0.0.3", "c1\r\neth0"), ("10.0.0.4", "c2")):
        (tmp_path / "net" / name).write_text(content)
    ipam.delete("x0")
    ipam.delete("c1", prevResult={"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.3/16"}]})
    assert "10.0.0.2" not in held(tmp_path)
    assert "10.0.0.3" not in held(tmp_path)
    ipam.gc(*((f"x{n}", "eth0") for n in range(200)))
    assert "10.0.0.4" not in held(tmp_path)
    assert len(held(tmp_path)) == 197


def test_a_file_that_was_rewritten_is_its_new_owners(tmp_path: Path) -> None:
    ipam = network(tmp_path)
    ipam.add("c1")
    (tmp_path / "net" / "10.0.0.2").write_text("c2\r\neth0")
    with pytest.raises(Failure, match="Failed to find address"):
        ipam.check("c1")
    ipam.delete("c1")
    assert held(tmp_path) == {"10.0.0.2": "c2\r\neth0"}
    ipam.gc(("c2", "eth0"))
    assert held(tmp_path) == {"10.0.0.2": "c2\r\neth0"}
    ipam.gc()
    assert not held(tmp_path)


# --- the same address in another spelling ---

SPELLINGS = [
    ("::1:0/112", "::1:2", ["::0.1.0.2", "0:0::1:2", "0000::0001:0002"]),
    ("fd00::/64", "fd00::2", ["FD00::2", "fd00:0:0:0:0:0:0:2", "fd00::0002"]),
    ("10.0.0.0/24", "10.0.0.2", ["::ffff:10.0.0.2", "::ffff:a00:2"]),
]
EACH = [(subnet, go, other) for subnet, go, others in SPELLINGS for other in others]


@pytest.mark.parametrize(("subnet", "canonical", "spelling"), EACH)
def test_an_address_counts_by_its_value(
    tmp_path: Path, subnet: str, canonical: str, spelling: str
) -> None:
    ipam = network(tmp_path, subnet)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / spelling).write_text("other\r\neth0")
    got = [text.partition("/")[0] for cid in ("a", "b") for text in ipam.add(cid)]
    assert canonical not in got
    assert len(set(got)) == 2
    with pytest.raises(Failure, match=rf"requested IP address {canonical} is not available") as e:
        ipam.add("c", env_args=f"IP={spelling}")
    assert f"container other (eth0) holds it: {tmp_path}/net/{spelling}" in e.value.details
    ipam.delete("other")
    assert set(held(tmp_path)) == set(got)
    assert ipam.add("c", env_args=f"IP={spelling}")[0].startswith(f"{canonical}/")


@pytest.mark.parametrize(("subnet", "canonical", "others"), SPELLINGS)
def test_names_are_those_of_go(
    tmp_path: Path, subnet: str, canonical: str, others: list[str]
) -> None:
    ipam = network(tmp_path, subnet)
    assert ipam.add()[0].startswith(f"{canonical}/")
    assert set(held(tmp_path)) == {canonical}
    assert (tmp_path / "net" / "last_reserved_ip.0").read_text() == canonical


def test_two_spellings_fill_a_range_once(tmp_path: Path) -> None:
    """Counted by name, a range of two would seem full with one address taken."""
    ipam = network(tmp_path, "fd00::/126", gateway="fd00::9", exclude=["fd00::3"])
    (tmp_path / "net").mkdir()
    for name in ("fd00::1", "FD00::1"):
        (tmp_path / "net" / name).write_text("other\r\neth0")
    ipam.call("STATUS")
    assert ipam.add("a") == ["fd00::2/126"]
    with pytest.raises(Failure, match="no IP addresses available"):
        ipam.call("STATUS")
    with pytest.raises(Failure, match="no IP addresses available") as full:
        ipam.add("b")
    assert "2 of 2 addresses are in use" in full.value.details


def test_a_range_without_addresses_is_not_called_full(tmp_path: Path) -> None:
    """To remove containers, as is advised for a full one, would not help."""
    ipam = network(tmp_path, "10.0.0.0/30", exclude=["10.0.0.2"])
    for verb in ("ADD", "STATUS"):
        with pytest.raises(Failure, match="no IP addresses available") as empty:
            ipam.call(verb)
        assert "no address to hand out" in empty.value.details


# --- what cannot be read is not "there is none" ---


class Disk:
    """Reads of some files fail, as a broken disk lets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: set[str] = set()
        real = reservation.content_of_open

        def read(fd: int, name: str) -> bytes:
            if os.path.basename(name) in self.broken:
                raise OSError(5, os.strerror(5), name)
            return real(fd, name)

        monkeypatch.setattr(reservation, "content_of_open", read)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("indexed", [True, False])
def test_delete_says_what_it_cannot_read(tmp_path: Path, disk: Disk, indexed: bool) -> None:
    ipam = network(tmp_path, ranges=[[{"subnet": "fd00::/64"}]])
    ipam.add("c1")
    if not indexed:
        os.utime(tmp_path / "net")
    disk.broken = {"fd00::2"}
    for _ in range(2):
        with pytest.raises(Failure, match=r"fd00::2: input/output error"):
            ipam.delete("c1")
        assert set(os.listdir(tmp_path / "net")) & {"10.0.0.2", "fd00::2"} == {"fd00::2"}
    disk.broken = set()
    ipam.delete("c1")
    assert not held(tmp_path)


def test_an_unreadable_file_stays_taken_and_no_index_forgets_it(tmp_path: Path, disk: Disk) -> None:
    ipam = network(tmp_path)
    ipam.add("c1")
    os.utime(tmp_path / "net")
    disk.broken = {"10.0.0.2"}
    with pytest.raises(Failure, match=r"10.0.0.2: input/output error"):
        ipam.add("c2")  # nobody knows whether it has an address already
    with pytest.raises(Failure, match=r"10.0.0.2: input/output error"):
        ipam.check("c1")
    with pytest.raises(Failure, match=r"10.0.0.2: input/output error"):
        ipam.gc()
    disk.broken = set()
    ipam.check("c1")
    assert ipam.add("c2") == ["10.0.0.3/24"]
    ipam.delete("c1")
    assert set(held(tmp_path)) == {"10.0.0.3"}


def test_the_index_does_not_hide_what_cannot_be_read(tmp_path: Path, disk: Disk) -> None:
    network(tmp_path).add("c1")
    disk.broken = {"10.0.0.2"}
    with open_store(str(tmp_path), "net") as store:
        owned = store.releasable("c1", "eth0")
    assert (owned.names, len(owned.errors)) == ([], 1)


def test_gc_releases_the_others(tmp_path: Path, disk: Disk) -> None:
    ipam = network(tmp_path)
    for cid in ("a", "b", "c"):
        ipam.add(cid)
    disk.broken = {"10.0.0.3"}
    with pytest.raises(Failure, match=r"10.0.0.3: input/output error"):
        ipam.gc(("c", "eth0"))
    disk.broken = set()
    assert set(held(tmp_path)) == {"10.0.0.3", "10.0.0.4"}


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """The next files cannot be opened: EMFILE."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 2, before[1]))  # directory and lock
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_delete_without_descriptors_fails_and_can_be_repeated(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ipam = network(tmp_path)
    ipam.add("c1")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    request.getfixturevalue("few_descriptors")
    try:
        with pytest.raises(Failure, match="too many open files"):
            ipam.delete("c1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert set(held(tmp_path)) == {"10.0.0.2"}
    ipam.delete("c1")
    assert not held(tmp_path)


@pytest.mark.parametrize("size", [4089, 4090, 4091, 4096, 130_000])
def test_a_long_container_id(tmp_path: Path, size: int) -> None:
    """As long as the kernel lets an environment variable be."""
    ipam = network(tmp_path)
    assert ipam.add("c" * size) == ["10.0.0.2/24"]
    ipam.check("c" * size)
    ipam.delete("c" * size)
    assert not held(tmp_path)


# --- files of others ---


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "large"])
def test_what_is_no_file_is_taken_and_nobodys(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net" / "10.0.0.2"
    path.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    else:
        path.write_bytes(b"x" * ((2 << 20) + 1))
    ipam = network(tmp_path)
    assert ipam.add("c1") == ["10.0.0.3/24"]
    with pytest.raises(Failure, match=r"requested IP address 10.0.0.2 is not available"):
        ipam.add("c2", env_args="IP=10.0.0.2")
    ipam.check("c1")
    ipam.delete("c1")
    ipam.delete("c1")
    ipam.gc()
    assert os.path.lexists(path)


@pytest.mark.parametrize("name", ["lock", "last_reserved_ip.0"])
def test_nobody_waits_for_a_fifo(tmp_path: Path, name: str) -> None:
    (tmp_path / "net").mkdir()
    os.mkfifo(tmp_path / "net" / name)
    ipam = network(tmp_path)
    if name == "lock":
        with pytest.raises(Failure, match=r"open .*/net/lock: is a fifo, not a regular file"):
            ipam.add("c1")
        return
    assert ipam.add("c1") == ["10.0.0.2/24"]
    assert (tmp_path / "net" / name).read_text() == "10.0.0.2"


# --- configurations that DEL does not need ---


@pytest.mark.parametrize(
    ("keys", "env_args"),
    [
        ({"ranges": "x"}, ""),
        ({"ranges": [[]]}, ""),
        ({"subnet": "10.0.0.7/24"}, ""),
        ({"subnet": 5}, ""),
        ({"routes": [{"dst": "x"}]}, ""),
        ({"gateway": "x"}, ""),
        ({"rangeStart": "10.9.0.1"}, ""),
        ({"exclude": ["x"]}, ""),
        ({"resolvConf": 7}, ""),
        ({"reclaimOnBoot": "x"}, ""),
        ({"sticky": 1}, ""),
        ({}, "rubbish"),
    ],
)
@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_a_broken_configuration_keeps_nothing_reserved(
    tmp_path: Path,
    keys: dict[str, Any],
    env_args: str,
    verb: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    network(tmp_path).add("c1")
    broken = network(tmp_path, **keys)
    if verb == "GC":
        broken.gc()
    else:
        broken.delete("c1", env_args=env_args)
        assert "the configuration is not valid, which DEL passes over" in capfd.readouterr().err
    assert not held(tmp_path)


def test_a_version_without_room_is_told_after_the_release(tmp_path: Path) -> None:
    """As the reference's DEL, whose tests look for it."""
    network(tmp_path).add("c1")
    more = [[{"subnet": "10.0.1.0/24"}]]
    old = network(tmp_path, ranges=more)
    with pytest.raises(Failure, match="does not support more than 1 address per family"):
        old.call("DEL", "c1", cniVersion="0.2.0")
    assert not held(tmp_path)


def test_keys_of_others_are_not_read(tmp_path: Path) -> None:
    ipam = network(tmp_path)
    more = {"dns": {"nameservers": "192.0.2.53"}, "runtimeConfig": {"mac": 5}}
    ipam.call("ADD", "c1", **more)
    ipam.call("CHECK", "c1", **more)
    ipam.call("DEL", "c1", **more)
    assert not held(tmp_path)


# --- the namespace of an earlier ADD ---


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    (tmp_path / "ns").mkdir()
    yield tmp_path / "ns"
    unmount_all(tmp_path / "ns")


def in_namespace(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """CNI_NETNS of the next requests."""
    from . import ipam_node

    real = ipam_node.environment

    def environment(verb: str, cid: str, ifname: str, args: str) -> dict[str, str]:
        return {**real(verb, cid, ifname, args), "CNI_NETNS": path}

    monkeypatch.setattr(ipam_node, "environment", environment)


def test_an_add_takes_the_place_of_one_whose_namespace_is_gone(
    tmp_path: Path, pinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ipam = network(tmp_path, ranges=[[{"subnet": "fd00::/64"}]])
    first = Pinned(pinned / "first")
    in_namespace(monkeypatch, first.path)
    got = ipam.add("c1")
    ipam.add("c2")
    with pytest.raises(Failure, match="duplicate allocation is not allowed"):
        ipam.add("c1")
    second = Pinned(pinned / "second")
    in_namespace(monkeypatch, second.path)
    with pytest.raises(Failure, match="duplicate allocation is not allowed"):
        ipam.add("c1")  # the first still exists
    before = held(tmp_path)
    first.unmount()
    assert ipam.add("c1") == got
    assert held(tmp_path) == before
    with pytest.raises(Failure, match="duplicate allocation is not allowed"):
        ipam.add("c1")
    ipam.delete("c1")
    ipam.delete("c2")
    assert not held(tmp_path)


def test_the_same_path_names_another_namespace(
    tmp_path: Path, pinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ipam = network(tmp_path)
    first = Pinned(pinned / "one")
    in_namespace(monkeypatch, first.path)
    got = ipam.add("c1")
    first.unmount()
    Pinned(pinned / "one")
    assert ipam.add("c1") == got
    ipam.delete("c1")
    assert not held(tmp_path)


def test_a_requested_address_is_the_owners_own(
    tmp_path: Path, pinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ipam = network(tmp_path)
    first = Pinned(pinned / "one")
    in_namespace(monkeypatch, first.path)
    ipam.add("c1", env_args="IP=10.0.0.77")
    with pytest.raises(Failure, match="is not available"):
        ipam.add("c1", env_args="IP=10.0.0.77")
    first.unmount()
    assert ipam.add("c1", env_args="IP=10.0.0.77") == ["10.0.0.77/24"]


def test_of_an_unknown_namespace_it_stays_an_error(tmp_path: Path) -> None:
    """CNI_NETNS of these requests names nothing; so it is with files of the reference."""
    ipam = network(tmp_path)
    ipam.add("c1")
    with pytest.raises(Failure, match="duplicate allocation is not allowed"):
        ipam.add("c1")


def test_what_is_noted_is_of_this_namespace_though_the_file_was_anothers(
    tmp_path: Path, pinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A released file is used again, with the notes of the new reservation."""
    ipam = network(tmp_path)
    first = Pinned(pinned / "one")
    in_namespace(monkeypatch, first.path)
    ipam.add("c1")
    note = os.getxattr(tmp_path / "net" / "10.0.0.2", reservation.NAMESPACE)
    assert note == reservation.namespace_note(first.path)
    ipam.delete("c1")
    in_namespace(monkeypatch, "/nosuch")
    ipam.add("c2")
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(tmp_path / "net" / "10.0.0.3", reservation.NAMESPACE)


def test_the_notes_fit_into_an_inode_of_ext4() -> None:
    """Of 256 bytes, 96 are for extended attributes; a block for the rest would cost each ADD."""
    note = reservation.namespace_note("/proc/self/ns/net")
    entries = ((reservation.BOOT, b"x" * 16), (reservation.NAMESPACE, note))
    size = 4 + 4  # header, and the end of the list
    for name, value in entries:
        size += 16 + -(-(len(name) - len("user.")) // 4) * 4 + -(-len(value) // 4) * 4
    assert size <= 96


def test_doubt_is_no_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(str(tmp_path), "net") as opened:
        assert opened.reserve("10.0.0.2", b"a\r\nb", b"short")
        assert not opened.is_of_gone_namespace("10.0.0.2", "")
        assert not opened.is_of_gone_namespace("10.0.0.3", "")

    def unknown(*_: object) -> bool:
        raise OSError(24, "EMFILE")

    monkeypatch.setattr(liveness, "_exists", unknown)
    assert not liveness.is_gone(Identity(4, 1), "/nosuch")
