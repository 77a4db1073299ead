"""SIGKILL at any moment of ADD and DEL: what clears up afterwards leaves nothing.

strace kills the plugin when it enters a chosen system call, so each point is exact. A clean run is
listed first; the points are its calls that change something (or, with CNI_CRASH_ALL=every, all from
the moment the request is read): between two of those nothing can be told apart from outside. The
everyday run takes a sample; CNI_CRASH_ALL=1 takes all points.

"Nothing is left" means: no more than a clean ADD and DEL leave (the bridge, the lock, the note of
the last address).
"""

from __future__ import annotations

import itertools
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.harness import difference
from tests.harness.requires import ensure
from tests.harness.wait import last_seen
from tests.harness.world import (
    CASES,
    CHANGE_NOTHING,
    CHANGING_EXISTING,
    DELETE_NOTHING,
    EVERY,
    IN_CONTAINER,
    Point,
    World,
    needing,
    points_of,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]

SAMPLE = 6  # points of one plugin and verb, in an everyday run

# How a runtime, or the operator, may clear up.
RECOVERIES = ("DEL", "DEL without a namespace", "GC")


def chosen(points: list[Point], seed: str) -> list[tuple[Point, str]]:
    """Points, each with a way to clear up: all of both, or some spread evenly.

    Always among them: the moment when a link exists that does not carry its owner's name yet.
    """
    if EVERY:
        return [(point, how) for point in points for how in RECOVERIES]
    step = max(len(points) / SAMPLE, 1)
    start = random.Random(seed).random() * step
    sample = [points[int(start + number * step) % len(points)] for number in range(SAMPLE)]
    return [
        *((point, RECOVERIES[number % len(RECOVERIES)]) for number, point in enumerate(sample)),
        *((after, how) for after in just_made(points) for how in RECOVERIES),
    ]


def just_made(points: list[Point]) -> list[Point]:
    """What comes right after the making of a link."""
    pairs = itertools.pairwise(points)
    return [after for point, after in pairs if "NLM_F_EXCL|NLM_F_CREATE" in point.text]


def trial(world: World, verb: str, point: Point, how: str) -> list[str]:
    """Kill a verb, clear up: what is wrong then."""
    if verb == "DEL":
        world.add()
    else:
        world.prepare()
    reached = world.kill(verb, point)
    if left := last_seen(world.processes, wanted=lambda seen: not seen):
        return [f"processes left: {left}"]
    if verb == "ADD" or reached:
        reply = world.recover(how)
        if reply.rc != 0:
            return [str(reply)]
        if reply.stdout:
            return [f"{how} printed {reply.stdout}"]
    else:
        world.finish()
    found = difference(world.clean, world.state())
    if not found:
        world.add()
        world.delete()
    return found


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("name", [needing(name) for name in CASES if name not in CHANGE_NOTHING])
def test_killed(name: str, verb: str, bin_dir: Path, tmp_path: Path) -> None:
    # Not as a mark: the guest, where all this takes long, is for the links that only it has.
    ensure(["nft"])
    worlds: list[World] = []

    def fresh() -> World:
        worlds.append(World(bin_dir, CASES[name], tmp_path / str(len(worlds))))
        return worlds[-1]

    failures = []
    try:
        world = fresh()
        if verb == "DEL":
            world.add()
        else:
            world.prepare()
        points = world.points(verb)
        if verb == "ADD":
            world.delete()
        else:
            world.finish()
        idle = verb == "DEL" and name in DELETE_NOTHING
        assert idle or len(points) > 2, "the trace shows no work"
        for point, recovery in chosen(points, f"{name} {verb}"):
            how = "DEL" if CASES[name]["type"] in IN_CONTAINER else recovery
            if CASES[name]["type"] in CHANGING_EXISTING and how != "DEL":
                how = "ADD and DEL"
            wrong = trial(world, verb, point, how)
            if wrong:
                failures.append("\n    ".join([f"at {point}\n  then {how}:", *wrong]))
                world = fresh()
    finally:
        for used in worlds:
            used.close()
    assert not failures, f"{verb} killed:\n" + "\n".join(failures)


def test_points_are_counted_as_strace_does() -> None:
    trace = 'openat(AT_FDCWD, "/x")\nsendto(3, "")\nread(0, "{}")\nsendto(4)\nopenat(3, O_CREAT)\n'
    assert [(p.name, p.ordinal) for p in points_of(trace, every=False)] == [
        ("sendto", 2),
        ("openat", 2),
    ]
