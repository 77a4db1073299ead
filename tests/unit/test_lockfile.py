"""Who waits for a lock gets it before many others that came later.

Nothing is timed: waiters are played, with a clock of their own, and hand-overs are counted.
"""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING

import pytest

from cni import lockfile

if TYPE_CHECKING:
    from collections.abc import Callable

HOLD, BETWEEN = 0.001, 0.0005  # seconds: how long the lock is kept, and until it is wanted again
ATTEMPT = 0.00005  # what an attempt takes


def most_overtaken(waiters: int, pause: Callable[[float, float], float], hand_overs: int) -> int:
    """For how many others somebody had to wait, where all want the lock again and again."""
    chance = random.Random(7)
    queue = [(chance.random() * 0.01, number) for number in range(waiters)]
    heapq.heapify(queue)
    waiting: dict[int, tuple[float, int]] = {}  # since when, and how many had got the lock by then
    pauses: dict[int, float] = {}
    free = done = most = 0
    while done < hand_overs:
        now, number = heapq.heappop(queue)
        since, before = waiting.setdefault(number, (now, done))
        if now >= free:
            most = max(most, done - before)
            free, done = now + HOLD * chance.uniform(0.5, 1.5), done + 1
            del waiting[number]
            pauses.pop(number, None)
            again = free + BETWEEN * chance.uniform(0.5, 1.5)
        else:
            pauses[number] = pause(now - since, pauses.get(number, 0.0))
            again = now + ATTEMPT + pauses[number] * chance.uniform(0.95, 1.05)
        heapq.heappush(queue, (again, number))
    return most


@pytest.mark.parametrize("waiters", [4, 16, 64])
def test_nobody_is_overtaken_by_very_many(waiters: int) -> None:
    assert most_overtaken(waiters, lockfile.pause_after, 8_000) < 100 + 5 * waiters


def test_pauses_that_only_grow_are_not_fair() -> None:
    """So what the test above asserts is not true of any pauses."""

    def growing(_: float, last: float) -> float:
        return min(last * 2, 0.01) if last else 0.0005

    assert most_overtaken(64, growing, 8_000) > 100 + 5 * 64


def test_pauses_are_short_and_end() -> None:
    """Neither a busy loop nor a sleep that a lock, once it is free, waits for."""
    pauses = [lockfile.pause_after(waited / 1000, 0.01) for waited in range(10_000)]
    assert min(pauses) >= 0.001
    assert max(pauses) <= 0.01
