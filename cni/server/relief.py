"""Additional workers for a while, if all workers are busy for long; exec, if those are busy, too.

A request may wait for something that takes seconds: an address that is probed, a DHCP server, a
plugin of another project. If all workers do, requests that need a millisecond would wait for them.
So the supervisor starts as many workers again, and ends them when they have been idle for long. A
burst of short requests does not count: more workers would not make it faster. If there may be no
more workers, the supervisor turns the waiting clients away, which then run by exec at once.

A client waits for a look of the supervisor, and for as many starts of workers as `most` allows:
less than a second together (tests/unit/test_relief.py), and in most cases a quarter of that.
"""

from __future__ import annotations

import enum
import select
from _socket import socket as Socket
from collections.abc import Callable, Collection, Mapping

from .slots import SlotState

_BUSY = 0.25  # seconds; a worker that is busy for longer than that probably waits
_IDLE = 10.0  # seconds after which an additional worker without requests ends
_SOON = 0.125  # seconds to the next look while as many workers as usual are busy
# The most workers: so many times the usual number, but not more than that. Each needs memory.
_TIMES, _MOST = 3, 32


class Verdict(enum.Enum):
    """What the clients that wait for a worker need."""

    PATIENCE = enum.auto()
    WORKERS = enum.auto()
    EXEC = enum.auto()


def most(workers: int) -> int:
    """The most workers at a time, if `workers` is the usual number."""
    return max(workers, min(_TIMES * workers, _MOST))


def judge(
    states: Collection[SlotState], usual: int, waits: Callable[[], bool], now: float
) -> Verdict:
    """Decide by the states of all workers; `waits` says whether a client waits for one.

    More workers than `usual` are needed if all are busy, as many as usual for long. The others may
    have been busy for a moment only: they were started for the same reason.
    """
    if not states:  # none can be started
        return Verdict.EXEC if waits() else Verdict.PATIENCE
    held = sum(_is_held(state, now) for state in states)
    all_busy = all(state.busy_since for state in states)
    if not all_busy or held < min(usual, len(states)) or not waits():
        return Verdict.PATIENCE
    return Verdict.WORKERS if len(states) < most(usual) else Verdict.EXEC


def pause(states: Collection[SlotState], usual: int, longest: float) -> float:
    """Seconds until the supervisor should look again."""
    busy = sum(state.busy_since > 0 for state in states)
    return min(_SOON, longest) if busy >= usual else longest


def unneeded(states: Mapping[int, SlotState], usual: Collection[int], now: float) -> set[int]:
    """The additional workers (process ids) that have been idle for long, if a usual one is idle.

    `states` contains all workers by process id, `usual` the ids of those that are always there.
    """
    idle = {pid: state.last_active for pid, state in states.items() if not state.busy_since}
    if idle.keys().isdisjoint(usual):
        return set()
    return {pid for pid, since in idle.items() if pid not in usual and now - since > _IDLE}


def is_readable(listener: Socket) -> bool:
    """Does a client wait to be accepted?"""
    waiting = select.poll()
    waiting.register(listener.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


def _is_held(state: SlotState, now: float) -> bool:
    return state.busy_since > 0 and now - state.busy_since > _BUSY
