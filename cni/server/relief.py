"""Additional workers for a while, if all workers are busy for long.

A request may wait for something that takes seconds: an address that is probed, a DHCP server, a
plugin of another project. If all workers do, requests that need a millisecond would wait for them.
So the supervisor starts as many workers again, and ends them when they have been idle for long. A
burst of short requests does not count: more workers would not make it faster.
"""

from __future__ import annotations

import select
from _socket import socket as Socket
from collections.abc import Collection, Iterable, Mapping

from .slots import SlotState

_BUSY = 0.25  # seconds; a worker that is busy for longer than that probably waits
_IDLE = 10.0  # seconds after which an additional worker without requests ends
# The most workers: so many times the usual number, but not more than that. Each needs memory.
_TIMES, _MOST = 3, 32


def most(workers: int) -> int:
    """The most workers at a time, if `workers` is the usual number."""
    return max(workers, min(_TIMES * workers, _MOST))


def needed(states: Iterable[SlotState], listener: Socket, now: float) -> bool:
    """Is every worker busy for long, and does a client wait for one?"""
    all_busy = all(state.busy_since and now - state.busy_since > _BUSY for state in states)
    return all_busy and _is_readable(listener)


def unneeded(states: Mapping[int, SlotState], usual: Collection[int], now: float) -> set[int]:
    """The additional workers (process ids) that have been idle for long, if a usual one is idle.

    `states` contains all workers by process id, `usual` the ids of those that are always there.
    """
    idle = {pid: state.last_active for pid, state in states.items() if not state.busy_since}
    if idle.keys().isdisjoint(usual):
        return set()
    return {pid for pid, since in idle.items() if pid not in usual and now - since > _IDLE}


def _is_readable(listener: Socket) -> bool:
    waiting = select.poll()
    waiting.register(listener.fileno(), select.POLLIN)
    return bool(waiting.poll(0))
