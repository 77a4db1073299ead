"""The board: a page of memory that the supervisor and its workers share, one slot a worker."""

from __future__ import annotations

import mmap
import struct
import time

# When last busy, when it began (0: idle), its start; requests served, clients that declined.
_SLOT = struct.Struct("=dddQQ")


class Slot:
    """One worker's line. Times are time.monotonic() seconds."""

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        self._memory = memory
        self._at = number * _SLOT.size

    def reset(self) -> None:
        """A new worker takes the slot; the requests of its predecessors still count."""
        now = time.monotonic()
        self._write(now, 0.0, now, self.read()[3], 0)

    def begin(self) -> None:
        """It has taken a request."""
        last, _, start, served, declined = self.read()
        self._write(last, time.monotonic(), start, served + 1, declined)

    def end(self) -> None:
        """It is idle again."""
        _, _, start, served, declined = self.read()
        self._write(time.monotonic(), 0.0, start, served, declined)

    def refused(self) -> None:
        """A client did not want its services, perhaps because of the build."""
        last, began, start, served, declined = self.read()
        self._write(last, began, start, served, declined + 1)

    def read(self) -> tuple[float, float, float, int, int]:
        """When it was last busy, since when it is (0: idle), its start, requests, refusals."""
        values: tuple[float, float, float, int, int] = _SLOT.unpack_from(self._memory, self._at)
        return values

    def _write(self, *values: float) -> None:
        _SLOT.pack_into(self._memory, self._at, *values)


def make(slots: int) -> list[Slot]:
    """A board of that many slots."""
    memory = mmap.mmap(-1, max(slots * _SLOT.size, mmap.PAGESIZE))
    return [Slot(memory, number) for number in range(slots)]
