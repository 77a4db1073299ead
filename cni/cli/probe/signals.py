"""Signals while something is tried out: what was made is removed, whatever comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..signals import Interrupts


class Signals(Interrupts):
    """As its base; `ignored` while what was made is removed."""

    def __init__(self) -> None:
        super().__init__()
        self.ignored = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.ignored:
            super()._note(number, frame)

    def ignore(self) -> bool:
        """From now on nothing interrupts. Had anything?"""
        was, self.pending, self.ignored = self.pending, False, True
        return was

    @contextmanager
    def ignoring(self) -> Iterator[None]:
        """In this block nothing interrupts; what came before counts afterwards."""
        before, self.pending, self.ignored = self.pending, False, True
        try:
            yield
        finally:
            self.pending, self.ignored = before, False
