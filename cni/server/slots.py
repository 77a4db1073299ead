"""Memory that the supervisor and its workers share, with one slot a worker."""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

_FIELDS = 5  # of eight bytes, in the order of SlotState


class SlotState(NamedTuple):
    """The state of a slot's worker. Times are seconds of time.monotonic()."""

    last_active: float
    busy_since: float  # 0 if the worker is idle
    started: float  # 0 if there is no worker
    served: int  # requests, including those of earlier workers in this slot
    declined: int  # clients that left before the request began


class Slot:
    """The shared memory of one worker, which writes it; the others read.

    One instruction writes each field, so that a reader never sees half a number. (struct.pack_into
    would not do: it clears the memory first.)
    """

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        start = number * _FIELDS * 8
        fields = memoryview(memory)[start : start + _FIELDS * 8]
        self._times = fields[:24].cast("d")
        self._counts = fields[24:].cast("Q")

    def start_worker(self, served: int | None = None) -> None:
        """Note that a new worker has the slot. `served` sets the count; None keeps the old one."""
        now = time.monotonic()
        self._times[0], self._times[1], self._times[2] = now, 0.0, now
        if served is not None:
            self._counts[0] = served
        self._counts[1] = 0

    def end_worker(self) -> None:
        """Note that the slot has no worker, and gets none for now."""
        self._times[1] = self._times[2] = 0.0

    def begin_request(self) -> None:
        """Note that the worker has begun a request."""
        self._times[1] = time.monotonic()
        self._counts[0] += 1

    def end_request(self) -> None:
        """Note that the worker is idle again."""
        self._times[0] = time.monotonic()
        self._times[1] = 0.0

    def count_declined(self) -> None:
        """Note that a client left after the hello, perhaps because it is of another build."""
        self._counts[1] += 1

    def read(self) -> SlotState:
        """The slot's present state."""
        last_active, busy_since, started = self._times
        served, declined = self._counts
        return SlotState(last_active, busy_since, started, served, declined)


class Mark:
    """A number that the supervisor writes and all workers read, without a system call."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, 8)).cast("Q")

    def set(self, value: int) -> None:
        """Write the number, of 64 bits."""
        self._memory[0] = value

    def get(self) -> int:
        """The number that was written last; 0 at first."""
        return self._memory[0]


def encode(build: str, supervisor: int, slots: Sequence[Slot]) -> bytes:
    """The answer to STATUS, a JSON object; `supervisor` is its process id."""
    states = [slot.read() for slot in slots]
    return msgspec.json.encode(
        {
            "build": build,
            "pid": supervisor,
            "workers": sum(state.started > 0 for state in states),
            "busy": sum(state.busy_since > 0 for state in states),
            "served": sum(state.served for state in states),
        }
    )


def allocate(count: int) -> list[Slot]:
    """`count` slots in memory that children forked from now on share."""
    memory = mmap.mmap(-1, count * _FIELDS * 8)
    return [Slot(memory, number) for number in range(count)]
