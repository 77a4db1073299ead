"""Memory that the supervisor and its workers share, with one slot a worker."""

from __future__ import annotations

import mmap
import struct
import time
from typing import NamedTuple

# Native alignment: each field is then read and written by one instruction, so that no reader sees a
# half-written number.
_LAYOUT = struct.Struct("@dddQQ")


class SlotState(NamedTuple):
    """What a slot says of its worker. Times are time.monotonic() seconds."""

    last_active: float
    busy_since: float  # 0 if the worker is idle
    started: float
    served: int  # requests, also those of earlier workers in this slot
    declined: int  # clients that left before the request began


class Slot:
    """The shared memory of one worker, which writes it; the others read."""

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        self._memory = memory
        self._offset = number * _LAYOUT.size

    def start_worker(self, served: int | None = None) -> None:
        """Note that a new worker has the slot. `served` is the count so far, if not the slot's."""
        now = time.monotonic()
        self._write(now, 0.0, now, self.read().served if served is None else served, 0)

    def begin_request(self) -> None:
        """Note that the worker has begun a request."""
        state = self.read()
        self._write(
            state.last_active, time.monotonic(), state.started, state.served + 1, state.declined
        )

    def end_request(self) -> None:
        """Note that the worker is idle again."""
        state = self.read()
        self._write(time.monotonic(), 0.0, state.started, state.served, state.declined)

    def count_declined(self) -> None:
        """Note that a client left after the hello, perhaps because it is of another build."""
        state = self.read()
        self._write(
            state.last_active, state.busy_since, state.started, state.served, state.declined + 1
        )

    def read(self) -> SlotState:
        """What the slot says now."""
        return SlotState(*_LAYOUT.unpack_from(self._memory, self._offset))

    def _write(self, *values: float) -> None:
        _LAYOUT.pack_into(self._memory, self._offset, *values)


def allocate(count: int) -> list[Slot]:
    """`count` slots in memory that children forked from now on share."""
    memory = mmap.mmap(-1, max(count * _LAYOUT.size, mmap.PAGESIZE))
    return [Slot(memory, number) for number in range(count)]
