"""A signal, or an error, at any system call of an ADD: its result stands, or nothing is left.

strace sends the signal, or has the call fail, when the plugin enters it; so each point is exact. A
clean run is listed first; its calls from the moment the request is read are the points. The
everyday run takes a sample, CNI_CRASH_ALL=1 takes all.

Either the exit status is 0 and the result is on stdout, and CHECK and DEL find it as it says; or it
is 1, one JSON error is on stdout, and the node and the container are as before. So it is, too,
while Python starts, before it reads the request: tests/build/test_start.py.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import Reply, difference
from tests.harness.requires import ensure
from tests.harness.server import Server, serving
from tests.harness.wait import wait_until

from .test_crash import CASES, CHAINED, EVERY, Point, World, needing, points_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]

SAMPLE = 10  # points of one plugin, in an everyday run
TREE = "/.cni-"  # our own modules: one that cannot be read is a broken installation
SIGNALS = ("TERM", "INT", "HUP")
# Where a failure is anybody's: the others fail for want of memory, or not at all.
FAILING = frozenset(
    """
    sendto sendmsg recvfrom recvmsg write pwrite64 writev ftruncate socket bind setsockopt
    openat link linkat rename renameat renameat2 unlink unlinkat mkdir mkdirat flock utimensat
    fsync socketpair clone ioctl statx newfstatat readlink getdents64 pread64
    """.split()  # noqa: SIM905
)


class Run:
    """One ADD under strace: its exit status, what it printed."""

    def __init__(self, world: World, *options: str) -> None:
        document = json.dumps(world.conf)
        done = world.host.run(
            subprocess.run,
            ["strace", "-qq", "-o", "/dev/null", *options, world.runtime.bin_dir / world.plugin],
            input=document.encode(),
            capture_output=True,
            # strace sees this process only: the work has to be done in it
            env={**world.runtime.environment("ADD", world.container), "CNI_SERVER": "off"},
            cwd="/",
            timeout=120,
        )
        self.rc, self.stdout = done.returncode, done.stdout.decode(errors="replace")
        self.stderr = done.stderr.decode(errors="replace")

    def __str__(self) -> str:
        return f"exit status {self.rc}, stdout {self.stdout}, stderr {self.stderr}"


def judge(world: World, run: Run | Reply) -> list[str]:
    """What is wrong after an ADD; the world is left clean if nothing is."""
    told = "Traceback" in run.stderr
    if run.rc == 0:
        result = json.loads(run.stdout)
        conf = {**world.conf, "prevResult": result}
        reply = world.runtime.check(world.plugin, conf, world.container)
        if reply.rc != 0 and "not implemented" not in reply.stdout:
            return ["the result does not stand", str(reply)]
        world.delete()
    elif run.rc == 1:
        error = json.loads(run.stdout)
        if not isinstance(error.get("code"), int) or not error.get("msg"):
            return [f"no error object: {run}"]
        world.finish()
    elif run.stdout or run.rc not in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        return [str(run)]
    else:
        world.finish()
    found = difference(world.clean, world.state())
    if found or told:
        return [*found, str(run)]
    return []


def points(world: World, names: frozenset[str] | None) -> list[Point]:
    """The calls of a clean ADD; all, or those with one of the names."""
    world.prepare()
    assert world.strace("ADD", "-o", str(world.trace)) == 0
    world.delete()
    if world.plugin in CHAINED:
        world.interface(False)  # vrf's DEL leaves it without its IPv6 addresses
    trace = world.trace.read_text(errors="replace")
    found = points_of(trace, every=True)
    if names is None:
        return list(found)
    return [one for one in found if one.name in names and TREE not in one.text]


def sample(found: list[Point], seed: str) -> list[Point]:
    """All points, or some spread evenly."""
    if EVERY:
        return found
    step = max(len(found) / SAMPLE, 1)
    start = random.Random(seed).random() * step
    return [found[int(start + number * step) % len(found)] for number in range(SAMPLE)]


class Worlds:
    """Makes a new world after each that was left wrong."""

    def __init__(self, bin_dir: Path, name: str, directory: Path) -> None:
        self.bin_dir, self.name, self.directory = bin_dir, name, directory
        self.made: list[World] = []
        self.ended = 0  # ADDs that said that a signal had ended them

    def fresh(self) -> World:
        place = self.directory / str(len(self.made))
        self.made.append(World(self.bin_dir, CASES[self.name], place))
        return self.made[-1]

    def close(self) -> None:
        for world in self.made:
            world.close()

    def try_all(self, found: list[Point], inject: str) -> list[str]:
        """The failures of an ADD for each point, at which strace does what `inject` says."""
        failures = []
        world = self.made[-1]
        for number, point in enumerate(found):
            what = inject.replace("SIGNAL", SIGNALS[number % len(SIGNALS)])
            world.prepare()
            run = Run(
                world,
                *("-e", f"trace={point.name}"),
                *("-e", f"inject={point.name}:{what}:when={point.ordinal}"),
            )
            self.ended += "interrupted by" in run.stdout
            wrong = judge(world, run)
            if wrong:
                failures.append("\n    ".join([f"{what} at {point}", *wrong]))
                world = self.fresh()
        return failures


@pytest.fixture
def worlds(
    request: pytest.FixtureRequest, bin_dir: Path, tmp_path: Path, _namespaces: None
) -> Iterator[Worlds]:
    ensure(["nft"])
    made = Worlds(bin_dir, request.node.callspec.params["name"], tmp_path)
    yield made
    made.close()


ALL = [needing(name) for name in CASES]


@pytest.mark.parametrize("name", ALL)
def test_a_signal_at_any_call(name: str, worlds: Worlds) -> None:
    found = points(worlds.fresh(), None)
    assert len(found) > 10, "the trace shows no work"
    failures = worlds.try_all(sample(found, name), "signal=SIGNAL")
    assert not failures, "\n".join(failures)
    assert worlds.ended, "no ADD was ended by a signal"


@pytest.mark.parametrize("name", ALL)
def test_an_error_of_any_call(name: str, worlds: Worlds) -> None:
    found = points(worlds.fresh(), FAILING)
    assert len(found) > 2, "the trace shows no work"
    failures = worlds.try_all(sample(found, name), "error=EIO")
    assert not failures, "\n".join(failures)


# -- through the server ---------------------------------------------------------------------------


@contextlib.contextmanager
def traced(server: Server, *options: str) -> Iterator[None]:
    """strace looks at the only worker."""
    (worker,) = wait_until(lambda: len(server.workers()) == 1 and server.workers(), "a worker")
    tracer = subprocess.Popen(["strace", "-qq", "-p", str(worker), *options])
    status = Path(f"/proc/{worker}/status")
    wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), "strace looks at the worker")
    try:
        yield
    finally:
        tracer.terminate()
        tracer.wait()


SERVED = ("host-local", "bridge-filtered", "ptp", "portmap", "portmap-iptables", "flannel")


@pytest.mark.parametrize("name", SERVED)
def test_a_signal_at_any_call_of_a_worker(name: str, worlds: Worlds, tmp_path: Path) -> None:
    world = worlds.fresh()
    failures, ended = [], 0
    with serving(world.runtime, tmp_path / "socket", "--workers", "1") as server:
        world.add()
        world.delete()
        with traced(server, "-o", str(world.trace)):
            world.add()
        world.delete()
        begin = "read(0,\n"  # which a worker does not do
        found = list(points_of(begin + world.trace.read_text(errors="replace"), every=True))[1:]
        assert len(found) > 10, "the trace shows no work"
        for number, point in enumerate(sample(found, f"{name} served")):
            sent = f"signal={SIGNALS[number % len(SIGNALS)]}"
            ordinal = point.ordinal - (point.name == "read")
            inject = f"inject={point.name}:{sent}:when={ordinal}"
            world.prepare()
            with traced(server, "-o", "/dev/null", "-e", f"trace={point.name}", "-e", inject):
                reply = world.runtime.add(world.plugin, world.conf, world.container)
            ended += "interrupted by" in reply.stdout
            wrong = judge(world, reply)
            if wrong:
                failures.append("\n    ".join([f"{sent} at {point}", *wrong]))
                break
    assert not failures, "\n".join(failures)
    assert ended, "no ADD was ended by a signal"
