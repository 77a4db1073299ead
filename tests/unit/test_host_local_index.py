"""host-local's index: it spares reading every file, and nobody can tell that it is there.

A clock that ticks once a second stands in for kernels whose clock is coarse: all that a test does
falls into one tick, so only the seal can tell that somebody else has been there.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cni.ipam.host_local import index, reservation
from cni.ipam.host_local.directory import open_store
from cni.ipam.host_local.index import Index, Many
from cni.ipam.host_local.store import Store
from cni.protocol.address import format_ip, parse_ip

from .ipam_node import Failure, Ipam, environment

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

GO = Path("/usr/lib/cni/host-local")
SECOND = 1_000_000_000


def network(data_dir: Path, subnet: str = "10.0.0.0/16", **ipam: Any) -> Ipam:
    conf = {"type": "host-local", "dataDir": str(data_dir), "ranges": [[{"subnet": subnet}]]}
    return Ipam("host-local", {"cniVersion": "1.1.0", "name": "net", "ipam": {**conf, **ipam}})


def fill(data_dir: Path, *numbers: int) -> None:
    """Reservations in 10.0.0.0/16, each of a container of its own."""
    directory = data_dir / "net"
    directory.mkdir(exist_ok=True)
    for number in numbers:
        name = f"10.0.{number >> 8}.{number & 255}"
        (directory / name).write_bytes(f"old{number}\r\neth0".encode())


def differences(data_dir: Path) -> list[str] | None:
    with open_store(str(data_dir), "net") as store:
        return store.index_differences()


@pytest.fixture
def coarse_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose times are of whole seconds, unless somebody has set one."""
    make_coarse(monkeypatch)


def make_coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed: set[int] = set()
    utime, stamp = os.utime, index._stamp

    def set_time(path: Any, *, ns: tuple[int, int]) -> None:
        sealed.add(ns[1])
        utime(path, ns=ns)

    def coarse(directory: int) -> tuple[int, int, int, int]:
        device, inode, mtime, _ = stamp(directory)
        return device, inode, mtime if mtime in sealed else mtime // SECOND, 0

    monkeypatch.setattr(os, "utime", set_time)
    monkeypatch.setattr(index, "_stamp", coarse)


# --- what it is for ---


class Counter:
    """Counts calls into the kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        for name in ("open", "read", "pread", "pwrite", "stat", "listdir", "getxattr"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            self.calls += 1
            return function(*args, **more)

        return call

    def of(self, ipam: Ipam, verb: str, cid: str) -> int:
        self.calls = 0
        ipam.call(verb, cid)
        return self.calls


def test_cost_does_not_depend_on_the_reservations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten of them; 2,000 in a row; a /21 with 3 free addresses that are far apart."""
    few, many, full = (tmp_path / name for name in ("few", "many", "full"))
    for each in (few, many, full):
        each.mkdir()
    fill(few, *range(2, 12))
    fill(many, *range(2, 2002))
    fill(full, *(n for n in range(2, 2047) if n not in (700, 1400, 2000)))
    nodes = [network(few), network(many), network(full, "10.0.0.0/21")]
    for ipam in nodes:
        ipam.add("first")
    counter = Counter(monkeypatch)
    for verb in ("ADD", "CHECK", "STATUS", "DEL"):
        costs = [counter.of(ipam, verb, "second") for ipam in nodes]
        # A small index is read at once; a span that ends without a free address costs a look more.
        assert max(costs) <= costs[0] + 10, verb
        assert abs(costs[1] - costs[2]) <= 6, verb
        assert 0 < costs[0] < 40, verb


def test_is_as_the_files(tmp_path: Path) -> None:
    """Long random work through it, in IPv4 and IPv6, over many of its pages."""
    rng = random.Random(1)
    ipam = network(tmp_path, ranges=[[{"subnet": "10.0.0.0/16"}], [{"subnet": "fd00::/64"}]])
    held: dict[str, list[str]] = {}
    for n in range(400):
        if held and rng.random() < 0.3:
            ipam.delete(cid := rng.choice(sorted(held)))
            del held[cid]
        else:
            wanted = f"10.0.{rng.randrange(1, 255)}.{rng.randrange(256)}"
            v6 = f"fd00::{rng.randrange(1 << 16):x}:{rng.randrange(1 << 16):x}"
            asked = {"runtimeConfig": {"ips": [wanted, v6]}} if rng.random() < 0.6 else {}
            held[f"c{n}"] = ipam.add(f"c{n}", **asked)
        if n % 40 == 0:
            assert differences(tmp_path) == []
    assert differences(tmp_path) == []
    names = {name for name in os.listdir(tmp_path / "net") if name[0] in "1f"}
    assert names == {ip.partition("/")[0] for ips in held.values() for ip in ips}


def test_nearly_full_and_full(tmp_path: Path) -> None:
    ipam = network(tmp_path, "10.0.0.0/20")
    fill(tmp_path, *(n for n in range(2, 4095) if n not in (9, 4093)))
    assert ipam.add("a") == ["10.0.0.9/20"]
    assert ipam.add("b") == ["10.0.15.253/20"]
    with pytest.raises(Failure, match="no IP addresses available") as caught:
        ipam.add("c")
    assert "4093 of 4093 addresses are in use" in caught.value.details
    ipam.delete("old1000")
    assert ipam.add("c") == ["10.0.3.232/20"]
    assert differences(tmp_path) == []


def test_grows(tmp_path: Path) -> None:
    """A bucket that overflows has it built anew, larger."""
    ipam = network(tmp_path)
    small = None
    for n in range(400):
        ipam.add(f"c{n}")
        small = small or (tmp_path / ".cni" / "net.index").stat().st_size
    ipam.check("c0")
    assert (tmp_path / ".cni" / "net.index").stat().st_size > small
    assert differences(tmp_path) == []
    for n in range(400):
        ipam.delete(f"c{n}")
    assert differences(tmp_path) == []


def test_many_files_of_one_content(tmp_path: Path) -> None:
    """Who has no `exclude` blocks addresses so."""
    ipam = network(tmp_path)
    fill(tmp_path)
    for n in range(2, 60):
        (tmp_path / "net" / f"10.0.0.{n}").write_bytes(b"blocked\r\neth0")
    assert ipam.add("a") == ["10.0.0.60/16"]
    with pytest.raises(Failure, match="duplicate allocation"):
        ipam.add("blocked")
    for n in range(8):
        assert ipam.add("b", env_args=f"IP=10.0.1.{n}") == [f"10.0.1.{n}/16"]
    assert ipam.add("b", env_args="IP=10.0.1.8") == ["10.0.1.8/16"]
    for cid in ("b", "blocked"):
        ipam.delete(cid)
    assert {name for name in os.listdir(tmp_path / "net") if name[0] == "1"} == {"10.0.0.60"}


def test_owners_whose_hashes_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "crc32", lambda _: 7)
    ipam = network(tmp_path)
    assert [ipam.add(f"c{n}") for n in range(5)] == [[f"10.0.0.{n}/16"] for n in range(2, 7)]
    ipam.delete("c1")
    ipam.check("c2")
    with pytest.raises(Failure):
        ipam.check("c1")
    assert differences(tmp_path) == []


# --- when it is believed ---


@pytest.mark.usefixtures("coarse_clock")
def test_notices_what_others_do_in_the_same_tick(tmp_path: Path) -> None:
    ipam = network(tmp_path, "10.0.0.0/28")
    directory = tmp_path / "net"
    rng = random.Random(3)
    held: dict[str, str] = {}
    for n in range(300):
        name = f"10.0.0.{rng.randrange(2, 15)}"
        if name in held:  # somebody removes it, and perhaps makes it anew
            (directory / name).unlink()
            del held[name]
        if rng.random() < 0.5:
            directory.mkdir(exist_ok=True)
            (directory / name).write_bytes(f"hand{n}\r\neth0".encode())
            held[name] = f"hand{n}"
        code, output = ipam.raw("ADD", f"c{n}")
        if len(held) == 13:
            assert code == 1
            ipam.delete(held.popitem()[1])
        else:
            got = json.loads(output)["ips"][0]["address"].partition("/")[0]
            assert got not in held
            held[got] = f"c{n}"
        victim = rng.choice(sorted(held))
        ipam.delete(held.pop(victim))
        assert not (directory / victim).exists()
        assert {each for each in os.listdir(directory) if each[0] == "1"} == set(held)


@pytest.mark.usefixtures("coarse_clock")
@pytest.mark.skipif(not GO.exists(), reason="needs Debian's containernetworking-plugins")
def test_notices_what_the_reference_does_in_the_same_tick(tmp_path: Path) -> None:
    ipam = network(tmp_path, "10.0.0.0/29")
    rng = random.Random(4)
    held: dict[str, str] = {}
    for n in range(150):
        cid = rng.choice("abcdefg")
        run = (ipam.raw, go)[rng.random() < 0.5]
        if cid in held:
            assert run(*((ipam,) if run is go else ()), "DEL", cid)[0] == 0
            del held[cid]
            continue
        code, output = run(*((ipam,) if run is go else ()), "ADD", cid)
        assert code == (len(held) == 5), (n, output)
        if code == 0:
            got = json.loads(output)["ips"][0]["address"]
            assert got not in held.values()
            held[cid] = got
        assert len([name for name in os.listdir(tmp_path / "net") if name[0] == "1"]) == len(held)


def go(ipam: Ipam, verb: str, cid: str) -> tuple[int, bytes]:
    done = subprocess.run(
        [GO],
        input=json.dumps({**ipam.conf, "cniVersion": "1.0.0"}).encode(),
        env=environment(verb, cid, "eth0", ""),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout


def test_a_file_system_that_keeps_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No seal holds there: the index is never believed."""
    utime = os.utime
    monkeypatch.setattr(
        os, "utime", lambda path, ns: utime(path, ns=(ns[0], ns[1] // SECOND * SECOND))
    )
    ipam = network(tmp_path)
    for n in range(5):
        assert ipam.add(f"c{n}") == [f"10.0.0.{n + 2}/16"]
        assert differences(tmp_path) is None
    ipam.delete("c3")
    assert not (tmp_path / "net" / "10.0.0.5").exists()


@pytest.mark.parametrize("obstacle", ["file", "directory", "read-only"])
def test_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str) -> None:
    if obstacle == "file":
        (tmp_path / ".cni").write_text("")
    elif obstacle == "directory":
        (tmp_path / ".cni" / "net.index").mkdir(parents=True)
    else:

        def refuse(*_: Any) -> int:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(os, "pwrite", refuse)
    ipam = network(tmp_path, "10.0.0.0/29", sticky=True)
    pod = {"env_args": "IgnoreUnknown=1;K8S_POD_NAME=p"}
    for n in range(5):
        ipam.add(f"c{n}", **pod)
    with pytest.raises(Failure, match="no IP addresses available"):
        ipam.add("c9", **pod)
    ipam.delete("c2", **pod)
    assert ipam.add("c9", **pod) == ["10.0.0.4/29"]
    ipam.gc()
    assert set(os.listdir(tmp_path / "net")) == {"lock", "last_reserved_ip.0"}


def test_a_full_disk_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write into the index fails: the ADD succeeds, and nothing wrong is believed."""
    ipam = network(tmp_path, ranges=[[{"subnet": "10.0.0.0/16"}], [{"subnet": "fd00::/64"}]])
    ipam.add("first")
    real = os.pwrite
    for fails_at in range(12):
        left = fails_at

        def full(fd: int, data: bytes, at: int) -> int:
            nonlocal left
            left -= 1
            return real(fd, data, at) if left >= 0 else real(fd, data[:1], at)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            assert len(ipam.add(f"c{fails_at}")) == 2
        assert not differences(tmp_path)
        ipam.delete(f"c{fails_at}")
        assert not differences(tmp_path)
    assert left > 0


def test_a_damaged_index(tmp_path: Path) -> None:
    """Whatever is in the file: no address twice, and no exception."""
    rng = random.Random(2)
    ipam = network(tmp_path)
    got = set()
    for n in range(200):
        got.update(ipam.add(f"c{n}"))
        file = tmp_path / ".cni" / "net.index"
        if file.exists():
            data = bytearray(file.read_bytes())
            for _ in range(30):
                data[rng.randrange(64, len(data))] = rng.choice((0, 255, rng.randrange(256)))
            file.write_bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
    assert len(got) == 200
    (tmp_path / ".cni" / "net.index").unlink(missing_ok=True)
    assert set(os.listdir(tmp_path / "net")) >= {ip.partition("/")[0] for ip in got}


def test_what_is_changed_without_the_lock_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody makes or removes files in the middle of our ADD."""
    ipam = network(tmp_path, "10.0.0.0/29")
    ipam.add("a")
    real = Store.set_last_reserved

    def meddle(store: Store, range_id: int, name: str) -> None:
        (tmp_path / "net" / "10.0.0.2").unlink()
        (tmp_path / "net" / "10.0.0.4").write_bytes(b"hand\r\neth0")
        real(store, range_id, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "set_last_reserved", meddle)
        assert ipam.add("b") == ["10.0.0.3/29"]
    # The index missed both. Nothing is handed out twice, and nothing stays lost.
    assert ipam.add("c") == ["10.0.0.5/29"]
    assert {ipam.add(cid)[0] for cid in "de"} == {"10.0.0.6/29", "10.0.0.2/29"}
    with pytest.raises(Failure, match="no IP addresses available"):
        ipam.add("f")


def test_gc_finds_it_wrong(tmp_path: Path) -> None:
    ipam = network(tmp_path)
    ipam.add("a")
    ipam.add("b")
    with open_store(str(tmp_path), "net") as store:
        assert store.last_reserved(0)
        store.set_last_reserved(0, "10.0.0.9")
        (tmp_path / "net" / "10.0.0.3").unlink()
    assert differences(tmp_path)
    ipam.gc(("a", "eth0"), ("b", "eth0"))
    assert differences(tmp_path) is None


def test_names_that_are_no_addresses(tmp_path: Path) -> None:
    """Such a file may be a container's all the same; then there is no index."""
    ipam = network(tmp_path)
    ipam.add("a")
    (tmp_path / "net" / "10.0.0.9_old").write_bytes(b"b\r\neth0")
    ipam.add("c")
    assert differences(tmp_path) is None
    ipam.delete("b")
    assert not (tmp_path / "net" / "10.0.0.9_old").exists()
    ipam.add("d")
    assert differences(tmp_path) == []


# --- another boot ---


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Any:
    boots = iter(range(1, 100))

    def boot() -> None:
        identity = bytes([next(boots)]) * 16
        monkeypatch.setattr(reservation, "_told", [(identity, True)])

    boot()
    return boot


def test_reservations_of_an_earlier_boot(tmp_path: Path, reboot: Any) -> None:
    ipam = network(tmp_path, "10.0.0.0/29")
    for n in range(5):
        ipam.add(f"c{n}")
    with pytest.raises(Failure):
        ipam.call("STATUS")
    reboot()
    # Before anybody has taken the lock, they are free for STATUS: else no pod would ever come.
    assert ipam.call("STATUS") is None
    assert ipam.add("c3") == ["10.0.0.2/29"]
    assert {name for name in os.listdir(tmp_path / "net") if name[0] == "1"} == {"10.0.0.2"}
    assert differences(tmp_path) == []
    with pytest.raises(Failure, match="duplicate"):
        ipam.add("c3")


def test_reservations_of_the_reference_and_of_an_earlier_boot(tmp_path: Path, reboot: Any) -> None:
    """They carry no mark: they are of the boot in which we first see them."""
    ipam = network(tmp_path, "10.0.0.0/29")
    fill(tmp_path, 2)
    os.utime(tmp_path / "net" / "10.0.0.2", (0, 0))  # what a clock says does not count
    assert ipam.add("c") == ["10.0.0.3/29"]
    reboot()
    fill(tmp_path, 4)
    ipam.delete("unknown")
    assert {name for name in os.listdir(tmp_path / "net") if name[0] == "1"} == {"10.0.0.4"}
    reboot()
    ipam.gc()
    ipam.delete("unknown")
    assert not {name for name in os.listdir(tmp_path / "net") if name[0] == "1"}


def test_reclaim_on_boot_can_be_switched_off(tmp_path: Path, reboot: Any) -> None:
    ipam = network(tmp_path, "10.0.0.0/29", reclaimOnBoot=False)
    for n in range(5):
        ipam.add(f"c{n}")
    reboot()
    for verb in ("ADD", "STATUS"):
        with pytest.raises(Failure, match="no IP addresses available"):
            ipam.call(verb, "other")
    ipam.check("c3")


def test_an_unknown_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc there is no index, and nothing is reclaimed."""
    ipam = network(tmp_path)
    ipam.add("a")
    monkeypatch.setattr(reservation, "_told", [(b"", False)])
    assert ipam.add("b") == ["10.0.0.3/16"]
    ipam.delete("a")
    assert differences(tmp_path) is None


# --- the file itself ---


@pytest.mark.parametrize("width", [4, 16])
def test_first_free(tmp_path: Path, width: int) -> None:
    base = int.from_bytes(parse_ip("10.0.0.0" if width == 4 else "fd00::"), "big")
    taken = {0, 1, 2, 5, 4095, 4096, 4097, *range(8192, 8192 + 4096 * 2)}
    names = {format_ip((base + n).to_bytes(width, "big")): b"x%d" % n for n in taken}
    (tmp_path / "d").mkdir()
    found = Index.build(str(tmp_path / "i"), b"b" * 16, names)
    for low in (0, 1, 3, 5, 4090, 4095, 4097, 8191, 8192, 9000, 16383, 16384, 20000):
        for high in (low, low + 1, low + 3, low + 5000, 30000):
            if high >= low:
                want = next((n for n in range(low, high + 1) if n not in taken), None)
                got = found.first_free(width, base + low, base + high)
                assert got == (None if want is None else base + want), (low, high)
    other = {4: 16, 16: 4}[width]
    assert found.first_free(other, 1, 5) == 1
    found.close()


def test_addresses_of_many(tmp_path: Path) -> None:
    names = {f"10.0.0.{n}": b"same" for n in range(30)}
    found = Index.build(str(tmp_path / "i"), b"b" * 16, {**names, "10.0.1.1": b"x", "::1": b"x"})
    with pytest.raises(Many):
        found.addresses(b"same")
    assert sorted(map(format_ip, found.addresses(b"x"))) == ["10.0.1.1", "::1"]
    assert found.addresses(b"y") == []
    found.close()
