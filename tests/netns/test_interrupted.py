"""A signal, or an error, at any system call of ADD, DEL and GC, by exec and through a server.

strace sends the signal, or has the call fail, when the plugin enters it; so each point is exact. A
clean run is listed first; its calls from the moment the request is read are the points. Here a
sample of them is taken, and all of a plugin that has few; `make test-faults` takes all.

After an ADD either the exit status is 0 and the result is on stdout, and CHECK and DEL find it as
it says; or it is 1, one JSON error is on stdout, and the node and the container are as before. So
it is, too, while Python starts, before it reads the request: tests/build/test_start.py. A DEL or
GC that says that it worked has left nothing; one that ends with an error can be repeated.
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
from tests.harness.server import serving
from tests.harness.wait import wait_until
from tests.harness.world import (
    CASES,
    EVERY,
    IN_CONTAINER,
    WORK_ON_INTERFACE,
    Point,
    World,
    needing,
    points_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.server import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]

SAMPLE = 10  # points of one plugin, in an everyday run …
FEW = 30  # … unless there are no more than these
TREE = "/.cni-"  # our own modules: one that cannot be read is a broken installation
SIGNALS = ("TERM", "INT", "HUP")
# Where a failure is anybody's: the others fail for want of memory, or not at all.
FAILING = frozenset(
    """
    sendto sendmsg recvfrom recvmsg write pwrite64 writev ftruncate socket bind setsockopt
    open openat link linkat rename renameat renameat2 unlink unlinkat mkdir mkdirat flock utimensat
    fsync socketpair clone clone3 fork vfork ioctl statx newfstatat
    stat lstat fstat readlink getdents64 pread64
    setxattr fsetxattr getxattr fgetxattr pipe2 dup dup3 read epoll_create1 epoll_ctl
    """.split()  # noqa: SIM905
)
# The error, beside EIO, that the kernel may have of each.
OTHER_ERRORS = {
    "EMFILE": "open openat socket socketpair pipe2 dup dup3 epoll_create1",
    "ENOBUFS": "sendto sendmsg recvfrom setsockopt bind",
    "ENOSPC": "write pwrite64 writev ftruncate link linkat rename renameat renameat2 mkdir mkdirat "
    "setxattr fsetxattr",
    "EAGAIN": "clone clone3 fork vfork",
}
ERROR_OF = {name: error for error, names in OTHER_ERRORS.items() for name in names.split()}


def any_signal(number: int, _: Point) -> str:
    return f"signal={SIGNALS[number % len(SIGNALS)]}"


def eio(_number: int, _: Point) -> str:
    return "error=EIO"


def other_error(_number: int, point: Point) -> str:
    return f"error={ERROR_OF.get(point.name, 'ENOMEM')}"


class Run:
    """One verb under strace: its exit status, what it printed."""

    def __init__(self, world: World, verb: str, *options: str) -> None:
        conf = world.conf
        if verb == "GC":
            conf = {**conf, "cni.dev/valid-attachments": []}
        done = world.host.run(
            subprocess.run,
            ["strace", "-qq", "-o", "/dev/null", *options, world.runtime.bin_dir / world.plugin],
            input=json.dumps(conf).encode(),
            capture_output=True,
            # strace sees this process only: the work has to be done in it
            env={**world.runtime.environment(verb, world.container), "CNI_SERVER": "off"},
            cwd="/",
            timeout=120,
        )
        self.rc, self.stdout = done.returncode, done.stdout.decode(errors="replace")
        self.stderr = done.stderr.decode(errors="replace")

    def __str__(self) -> str:
        return f"exit status {self.rc}, stdout {self.stdout}, stderr {self.stderr}"


def no_answer(run: Run | Reply) -> list[str]:
    """What is wrong with how an ADD, DEL or GC ended that printed no result."""
    if run.rc == 0 and not run.stdout:
        return []
    if run.rc == 1:
        with contextlib.suppress(json.JSONDecodeError, AttributeError):
            error = json.loads(run.stdout)
            if isinstance(error.get("code"), int) and error.get("msg"):
                return []
        return [f"no error object: {run}"]
    if run.stdout or run.rc not in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        return [str(run)]
    return []


def judge_add(world: World, run: Run | Reply) -> list[str]:
    """What is wrong after an ADD; the world is left clean if nothing is."""
    if run.rc == 0:
        result = json.loads(run.stdout)
        conf = {**world.conf, "prevResult": result}
        reply = world.runtime.check(world.plugin, conf, world.container)
        if reply.rc != 0 and "not implemented" not in reply.stdout:
            return ["the result does not stand", str(reply), str(run)]
        world.delete()
    else:
        wrong = no_answer(run)
        if wrong:
            return wrong
        world.finish()
    return left(world, run)


def judge_delete(world: World, run: Run | Reply) -> list[str]:
    """What is wrong after a DEL; one that failed is repeated."""
    wrong = no_answer(run)
    if wrong:
        return wrong
    if run.rc:
        world.delete()
    else:
        world.finish()
    return left(world, run)


def judge_gc(world: World, run: Run | Reply) -> list[str]:
    """What is wrong after a GC of all; a DEL does what it did not do, and what no GC does."""
    wrong = no_answer(run)
    if wrong:
        return wrong
    gone = run.rc == 0 and world.plugin not in IN_CONTAINER
    if not gone:
        world.delete()
    else:
        world.finish()
    return left(world, run)


JUDGES = {"ADD": judge_add, "DEL": judge_delete, "GC": judge_gc}


def left(world: World, run: Run | Reply) -> list[str]:
    """What is not as before, and tracebacks."""
    found = difference(world.clean, world.state())
    if found or "Traceback" in run.stderr:
        return [*found, str(run)]
    return []


def points(world: World, verb: str, names: frozenset[str] | None) -> list[Point]:
    """The calls of a clean run; all, or those with one of the names."""
    begin(world, verb)
    clean = Run(world, verb, "-o", str(world.trace))
    assert clean.rc == 0, clean
    if verb != "DEL":
        world.delete()
    else:
        world.finish()
    if world.plugin in WORK_ON_INTERFACE:
        world.interface(False)  # vrf's DEL leaves it without its IPv6 addresses
    trace = world.trace.read_text(errors="replace")
    found = points_of(trace, every=True)
    if names is None:
        return list(found)
    return [one for one in found if one.name in names and TREE not in one.text]


def begin(world: World, verb: str) -> None:
    """What comes before the verb."""
    if verb == "ADD":
        world.prepare()
    else:
        world.add()


def sample(found: list[Point], seed: str) -> list[Point]:
    """All points, or some spread evenly."""
    if EVERY or len(found) <= FEW:
        return found
    step = max(len(found) / SAMPLE, 1)
    start = random.Random(seed).random() * step
    return [found[int(start + number * step) % len(found)] for number in range(SAMPLE)]


class Worlds:
    """Makes a new world after each that was left wrong."""

    def __init__(self, bin_dir: Path, name: str, directory: Path) -> None:
        self.bin_dir, self.name, self.directory = bin_dir, name, directory
        self.made: list[World] = []
        self.ended = 0  # runs that said that a signal had ended them

    def fresh(self, *, served: bool = True) -> World:
        if self.made:
            self.made[-1].close()
        place = self.directory / str(len(self.made))
        self.made.append(World(self.bin_dir, CASES[self.name], place, served=served))
        return self.made[-1]

    def close(self) -> None:
        for world in self.made:
            world.close()

    def failures(self, verb: str, found: list[Point], inject: Callable[[int, Point], str]) -> str:
        """Run the verb once for each point: what was wrong, a paragraph each."""
        failures = []
        world = self.made[-1]
        for number, point in enumerate(found):
            what = inject(number, point)
            begin(world, verb)
            run = Run(
                world,
                verb,
                *("-e", f"trace={point.name}"),
                *("-e", f"inject={point.name}:{what}:when={point.ordinal}"),
            )
            self.ended += "interrupted by" in run.stdout
            try:
                wrong = JUDGES[verb](world, run)
            except AssertionError as error:
                wrong = [str(error), str(run)]
            if wrong:
                failures.append("\n    ".join([f"{verb}, {what} at {point}", *wrong]))
                world = self.fresh()
        return "\n".join(failures)


@pytest.fixture
def worlds(
    request: pytest.FixtureRequest, bin_dir: Path, tmp_path: Path, _namespaces: None
) -> Iterator[Worlds]:
    ensure(["nft"])
    made = Worlds(bin_dir, request.node.callspec.params["name"], tmp_path)
    yield made
    made.close()


ALL = [needing(name) for name in CASES]
each_plugin = pytest.mark.parametrize("name", ALL)


@each_plugin
def test_a_signal_at_any_call(name: str, worlds: Worlds) -> None:
    found = points(worlds.fresh(), "ADD", None)
    assert len(found) > 2, "the trace shows no work"
    failures = worlds.failures("ADD", sample(found, name), any_signal)
    assert not failures, failures
    assert worlds.ended, "no ADD was ended by a signal"


# tuning's GC leaves an interface as it is, since it goes with its container; macvlan's removes the
# shim, too, which DEL leaves for the next one.
NO_GC = frozenset({"tuning", "macvlan-shim"})
REMOVALS = [
    needing(name, verb)
    for verb in ("DEL", "GC")
    for name in CASES
    if verb == "DEL" or name not in NO_GC
]


@pytest.mark.parametrize("inject", [eio, other_error])
@pytest.mark.parametrize(("verb", "name"), [*(needing(name, "ADD") for name in CASES), *REMOVALS])
def test_an_error_of_any_call(
    verb: str, inject: Callable[[int, Point], str], name: str, worlds: Worlds
) -> None:
    found = points(worlds.fresh(), verb, FAILING)
    assert found, "the trace shows no work"
    failures = worlds.failures(verb, sample(found, f"{name} {verb}"), inject)
    assert not failures, failures


@pytest.mark.parametrize(("verb", "name"), REMOVALS)
def test_a_signal_at_any_call_of_a_removal(verb: str, name: str, worlds: Worlds) -> None:
    found = points(worlds.fresh(), verb, None)
    failures = worlds.failures(verb, sample(found, f"{name} {verb}"), any_signal)
    assert not failures, failures


# -- through the server ---------------------------------------------------------------------------


@contextlib.contextmanager
def traced(server: Server, *options: str) -> Iterator[None]:
    """strace looks at the only worker."""
    tracer = None
    while tracer is None:
        (worker,) = wait_until(lambda: len(server.workers()) == 1 and server.workers(), "a worker")
        tracer = _attach(worker, *options)
    try:
        yield
    finally:
        tracer.terminate()
        tracer.wait()


def _attach(worker: int, *options: str) -> subprocess.Popen[bytes] | None:
    """strace, when it looks at the worker; None if that has ended, as one does that is worn."""
    tracer = subprocess.Popen(
        ["strace", "-qq", "-p", str(worker), *options], stderr=subprocess.DEVNULL
    )
    status = Path(f"/proc/{worker}/status")

    def looks() -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return "TracerPid:\t0\n" not in status.read_text()
        return True

    wait_until(looks, "strace looks at the worker")
    if status.exists():
        return tracer
    tracer.wait()
    return None


def served_points(world: World, server: Server, names: frozenset[str] | None) -> list[Point]:
    """The calls of the worker for a clean ADD; the second one, as the first loads modules."""
    world.add()
    world.delete()
    world.prepare()
    with traced(server, "-o", str(world.trace)):
        world.runtime.add(world.plugin, world.conf, world.container).succeeded()
    world.delete()
    if world.plugin in WORK_ON_INTERFACE:
        world.interface(False)
    start = "read(0,\n"  # which a worker does not do
    found = list(points_of(start + world.trace.read_text(errors="replace"), every=True))[1:]
    own = [Point(p.name, p.ordinal - (p.name == "read"), p.text) for p in found]
    return own if names is None else [point for point in own if point.name in names]


def served_failures(
    worlds: Worlds,
    directory: Path,
    inject: Callable[[int, Point], str],
    names: frozenset[str] | None,
) -> str:
    """As Worlds.failures, for an ADD through a server."""
    failures, world, number = [], worlds.fresh(served=False), 0
    found: list[Point] = []
    while not number or number < len(found):
        with serving(world.runtime, directory / f"socket{number}", "--workers", "1") as server:
            if not found:
                found = sample(served_points(world, server, names), f"{worlds.name} served")
                assert len(found) > 2, "the trace shows no work"
            while number < len(found):
                point, what = found[number], inject(number, found[number])
                number += 1
                action = f"inject={point.name}:{what}:when={point.ordinal}"
                world.prepare()
                with traced(server, "-o", "/dev/null", "-e", f"trace={point.name}", "-e", action):
                    reply = world.runtime.add(world.plugin, world.conf, world.container)
                worlds.ended += "interrupted by" in reply.stdout
                wrong = judge_add(world, reply)
                if wrong:
                    failures.append("\n    ".join([f"{what} at {point}", *wrong]))
                    break
        if number < len(found):
            world = worlds.fresh(served=False)
    return "\n".join(failures)


@each_plugin
def test_a_signal_at_any_call_of_a_worker(name: str, worlds: Worlds, tmp_path: Path) -> None:
    failures = served_failures(worlds, tmp_path, any_signal, None)
    assert not failures, failures
    assert worlds.ended, "no ADD was ended by a signal"


@each_plugin
@pytest.mark.parametrize("inject", [eio, other_error])
def test_an_error_of_any_call_of_a_worker(
    inject: Callable[[int, Point], str], name: str, worlds: Worlds, tmp_path: Path
) -> None:
    failures = served_failures(worlds, tmp_path, inject, FAILING)
    assert not failures, failures
