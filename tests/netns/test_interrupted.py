"""A signal, or an error, at any system call of an ADD: its result stands, or nothing is left.

strace sends the signal, or has the call fail, when the plugin enters it; so each point is exact. A
clean run is listed first; its calls from the moment the request is read are the points. The
everyday run takes a sample, CNI_CRASH_ALL=1 takes all.

Either the exit status is 0 and the result is on stdout, and CHECK and DEL find it as it says; or it
is 1, one JSON error is on stdout, and the node and the container are as before. Until Python has
installed its handlers a signal just ends the process.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import difference
from tests.harness.requires import ensure

from .test_crash import CASES, EVERY, Point, World, needing, points_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
        self.code, self.output = done.returncode, done.stdout
        self.stderr = done.stderr.decode(errors="replace")

    def __str__(self) -> str:
        return f"exit status {self.code}, stdout {self.output!r}, stderr {self.stderr}"


def judge(world: World, run: Run) -> list[str]:
    """What is wrong after an ADD; the world is left clean if nothing is."""
    told = "Traceback" in run.stderr
    if run.code == 0:
        result = json.loads(run.output)
        conf = {**world.conf, "prevResult": result}
        reply = world.runtime.check(world.plugin, conf, world.container)
        if reply.rc != 0 and "not implemented" not in reply.stdout:
            return ["the result does not stand", str(reply)]
        world.delete()
    elif run.code == 1:
        error = json.loads(run.output)
        if not isinstance(error.get("code"), int) or not error.get("msg"):
            return [f"no error object: {run}"]
        world.finish()
    elif run.output or run.code not in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
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


@pytest.mark.parametrize("name", ALL)
def test_an_error_of_any_call(name: str, worlds: Worlds) -> None:
    found = points(worlds.fresh(), FAILING)
    assert len(found) > 2, "the trace shows no work"
    failures = worlds.try_all(sample(found, name), "error=EIO")
    assert not failures, "\n".join(failures)
