"""Signals during a trial: everything that was made is removed in any case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..signals import Interrupts


class Signals(Interrupts):
    """Interrupts that are ignored during the clean-up."""

    def __init__(self) -> None:
        super().__init__()
        self.ignored = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.ignored:
            super()._note(number, frame)

    def ignore(self) -> bool:
        """Ignore signals from now on; return whether one has arrived before."""
        was, self.pending, self.ignored = self.pending, False, True
        return was

    @contextmanager
    def ignoring(self) -> Iterator[None]:
        """Ignore signals in this block; earlier ones count afterwards."""
        before, self.pending, self.ignored = self.pending, False, True
        try:
            yield
        finally:
            self.pending, self.ignored = before, False
