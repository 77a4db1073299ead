"""host-local with many processes at once, and with processes that die at any point."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni import interrupts, lockfile
from cni.ipam.host_local.directory import open_store
from cni.ipam.host_local.store import Store
from tests.harness.wait import wait_until

from .ipam_node import Child, Ipam, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Newer Pythons warn of forks beside threads: pytest-timeout has one.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

GO = Path("/usr/lib/cni/host-local")
REST = {"lock", "last_reserved_ip.0", "last_reserved_ip.1"}


def dual(data_dir: Path, v4: str = "10.0.0.0/24") -> Ipam:
    return Ipam(
        "host-local",
        {
            "cniVersion": "1.1.0",
            "name": "net",
            "ipam": {
                "type": "host-local",
                "dataDir": str(data_dir),
                "ranges": [[{"subnet": v4}], [{"subnet": "fd00::/64"}]],
            },
        },
    )


def names(data_dir: Path) -> set[str]:
    directory = data_dir / "net"
    return set(os.listdir(directory)) if directory.exists() else set()


def held(data_dir: Path) -> set[str]:
    return names(data_dir) - REST


def together(count: int, go: Path, function: Callable[[int], Any]) -> list[Any]:
    """Run `function` in that many processes at the same time; what each returned."""

    def run(number: int) -> Any:
        wait_until(go.exists, "the start")
        return function(number)

    children = [Child(run, number) for number in range(count)]
    go.touch()
    values = [child.value() for child in children]
    go.unlink()
    return values


# --- many at once ---


@pytest.mark.parametrize(("count", "each"), [(16, 12), (64, 3)])
def test_concurrent_adds_are_unique(tmp_path: Path, count: int, each: int) -> None:
    ipam = dual(tmp_path)

    def add(number: int) -> list[str]:
        return [ip for n in range(each) for ip in ipam.add(f"c{number}-{n}")]

    def delete(number: int) -> None:
        for n in range(each):
            ipam.delete(f"c{number}-{n}")

    got = [ip for ips in together(count, tmp_path / "go", add) for ip in ips]
    assert len(set(got)) == len(got) == 2 * count * each
    # Nobody skipped an address: they are the first ones of the range.
    assert {f"10.0.0.{n}/24" for n in range(2, 2 + count * each)} <= set(got)
    together(count, tmp_path / "go", delete)
    assert names(tmp_path) == REST


def test_a_full_range_under_load(tmp_path: Path) -> None:
    """Five addresses and many who want one: never twice the same, and none is lost."""
    ipam = dual(tmp_path, "10.0.0.0/29")
    marks = tmp_path / "marks"
    marks.mkdir()

    def work(number: int) -> int:
        got = 0
        for n in range(40):
            cid = f"c{number}-{n}"
            code, output = ipam.raw("ADD", cid)
            if code:
                assert b"no IP addresses available" in output
                continue
            got += 1
            mark = marks / json.loads(output)["ips"][0]["address"].partition("/")[0]
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            time.sleep(0.001)
            mark.unlink()
            ipam.delete(cid)
        return got

    assert sum(together(12, tmp_path / "go", work)) > 40
    assert names(tmp_path) == REST


# --- death at every step ---

STEPS = (
    "open", "close", "read", "write", "link", "unlink", "rename", "mkdir", "listdir", "stat",
    "pread", "pwrite", "utime", "fstat", "setxattr", "getxattr",
)  # fmt: skip


def run_mortal(ipam: Ipam, verb: str, cid: str, steps: int, tmpfile: bool) -> None:
    """In a child: run the verb; the call into the kernel after `steps` of them is SIGKILL."""
    left = steps

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **more)

        return call

    if not tmpfile:
        os.O_TMPFILE = 0x40000000 | os.O_DIRECTORY  # no more than an error, as in old kernels
    for name in STEPS:
        setattr(os, name, mortal(getattr(os, name)))
    fcntl.flock = mortal(fcntl.flock)
    code, output = ipam.raw(verb, cid)
    assert code == 0, output


def kill_at_every_step(ipam: Ipam, verb: str, tmpfile: bool = True) -> Iterator[str]:
    """The container, after each death in its verb; ends when a verb came through."""
    for step in range(300):
        code = Child(run_mortal, ipam, verb, f"victim{step}", step, tmpfile).wait()
        if code == 0:
            assert step > 10
            return
        assert code == -signal.SIGKILL
        yield f"victim{step}"
    pytest.fail("never came through")


def index_is_right(data_dir: Path) -> None:
    """If anybody would believe it."""
    with open_store(str(data_dir), "net") as store:
        assert not store.index_differences()


def never_partial(directory: Path) -> None:
    """What a reader without our lock sees: whole reservations."""
    for each in directory.iterdir() if directory.exists() else ():
        if each.name[0] in "1f":
            assert each.read_bytes().endswith(b"\r\neth0"), each


@pytest.mark.parametrize("tmpfile", [True, False])
def test_killed_add(tmp_path: Path, tmpfile: bool) -> None:
    """DEL removes all that it left."""
    ipam = dual(tmp_path)
    most = 0
    for victim in kill_at_every_step(ipam, "ADD", tmpfile):
        never_partial(tmp_path / "net")
        index_is_right(tmp_path)
        most = max(most, len(held(tmp_path)))
        ipam.delete(victim)
        index_is_right(tmp_path)
        assert names(tmp_path) <= REST, victim
    assert most in (2, 3)
    # The one that came through has two addresses, and another one gets two as well.
    assert len(held(tmp_path)) == 2
    assert len(ipam.add("next")) == 2


@pytest.mark.slow
def test_killed_adds_without_delete(tmp_path: Path) -> None:
    """Each leaves at most one address of each set, and GC takes them all."""
    ipam = dual(tmp_path)
    ipam.add("survivor")
    for step in range(60):
        assert Child(run_mortal, ipam, "ADD", f"c{step}", step, False).wait() == -signal.SIGKILL
        never_partial(tmp_path / "net")
    assert len(held(tmp_path)) <= 2 + 60 * 2 + 1
    ipam.gc(("survivor", "eth0"))
    assert held(tmp_path) == {"10.0.0.2", "fd00::2"}


def test_killed_delete(tmp_path: Path) -> None:
    """Another DEL finishes it, and a GC would."""
    ipam = dual(tmp_path)
    for n in range(12):
        ipam.add(f"other{n}")
    ipam.add("victim0")
    for deaths, victim in enumerate(kill_at_every_step(ipam, "DEL"), 1):
        assert 24 <= len(held(tmp_path)) <= 26
        index_is_right(tmp_path)
        ipam.delete(victim)
        assert len(held(tmp_path)) == 24
        ipam.add(f"victim{deaths}")
    assert len(held(tmp_path)) == 24
    ipam.gc()
    assert names(tmp_path) == REST


@pytest.mark.slow
def test_random_kills(tmp_path: Path) -> None:
    """Real SIGKILLs at random moments."""
    ipam = dual(tmp_path)
    steady = {ip.partition("/")[0] for ip in ipam.add("steady")}
    rng = random.Random(5)

    def work(cid: str) -> None:
        while True:
            ipam.add(cid)
            ipam.delete(cid)
            ipam.add(cid)
            ipam.gc(("steady", "eth0"))

    for n in range(60):
        child = Child(work, f"c{n}")
        time.sleep(0.003 + rng.random() / 50)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        never_partial(tmp_path / "net")
        ipam.delete(f"c{n}")
        assert held(tmp_path) == steady
    ipam.delete("steady")
    assert names(tmp_path) == REST


def test_sigterm_undoes_an_add(tmp_path: Path) -> None:
    """Signals that can be caught end in an error, with the addresses released again."""
    ipam = dual(tmp_path)

    def work() -> str:
        def wait(*_: object) -> None:
            with interrupts.waiting():
                time.sleep(60)

        Store.set_last_reserved = wait  # type: ignore[method-assign]
        interrupts.install()
        code, output = ipam.raw("ADD")
        assert code == 1
        return str(json.loads(output)["msg"])

    child = Child(work)
    wait_until(lambda: held(tmp_path), "an address is reserved")
    child.kill(signal.SIGTERM)
    assert "SIGTERM" in child.value()
    assert names(tmp_path) == {"lock"}


# --- together with the reference, on one directory ---


def go(ipam: Ipam, verb: str, cid: str) -> Any:
    done = subprocess.run(
        [GO],
        input=json.dumps({**ipam.conf, "cniVersion": "1.0.0"}).encode(),
        env=environment(verb, cid, "eth0", ""),
        stdout=subprocess.PIPE,
    )
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout) if done.stdout else None


@pytest.mark.skipif(not GO.exists(), reason="needs Debian's containernetworking-plugins")
def test_shares_the_directory_with_the_reference(tmp_path: Path) -> None:
    ipam = dual(tmp_path)
    assert ipam.add("ours1") == ["10.0.0.2/24", "fd00::2/64"]
    result = go(ipam, "ADD", "theirs1")
    assert [ip["address"] for ip in result["ips"]] == ["10.0.0.3/24", "fd00::3/64"]
    assert ipam.add("ours2") == ["10.0.0.4/24", "fd00::4/64"]
    content = (tmp_path / "net" / "10.0.0.3").read_bytes()
    assert content.replace(b"theirs1", b"ours2") == (tmp_path / "net" / "10.0.0.4").read_bytes()
    go(ipam, "CHECK", "ours1")
    ipam.check("theirs1")
    go(ipam, "DEL", "ours1")
    go(ipam, "DEL", "ours2")
    ipam.delete("theirs1")
    assert names(tmp_path) == REST


@pytest.mark.skipif(not GO.exists(), reason="needs Debian's containernetworking-plugins")
def test_concurrent_with_the_reference(tmp_path: Path) -> None:
    ipam = dual(tmp_path)
    child = Child(lambda: [ip for n in range(60) for ip in ipam.add(f"ours{n}")])
    theirs = [ip["address"] for n in range(60) for ip in go(ipam, "ADD", f"theirs{n}")["ips"]]
    assert len(set(theirs + child.value())) == 240


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not GO.exists(), reason="needs Debian's containernetworking-plugins")
def test_many_with_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 processes, every other one the reference, on one directory."""
    # The kernel's queue for the lock serves the reference first; ours get it when that is empty,
    # which on a busy machine may be later than a runtime waits.
    monkeypatch.setattr(lockfile, "TIMEOUT", 500.0)
    ipam = dual(tmp_path, "10.0.0.0/16")

    def add(number: int) -> list[str]:
        cids = [f"c{number}-{n}" for n in range(3)]
        if number % 2:
            return [ip["address"] for cid in cids for ip in go(ipam, "ADD", cid)["ips"]]
        return [ip for cid in cids for ip in ipam.add(cid)]

    def delete(number: int) -> None:
        for n in range(3):  # what the other one added
            cid = f"c{(number + 1) % 64}-{n}"
            go(ipam, "DEL", cid) if number % 2 else ipam.delete(cid)

    got = [ip for ips in together(64, tmp_path / "go", add) for ip in ips]
    assert len(set(got)) == len(got) == 64 * 3 * 2
    together(64, tmp_path / "go", delete)
    assert names(tmp_path) == REST
    index_is_right(tmp_path)
