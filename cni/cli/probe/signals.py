"""Signals while something is tried out: what was made is removed, whatever comes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ..runtime import Interrupts


class Signals(Interrupts):
    """As its base, for SIGTERM and SIGHUP too; `ignored` while what was made is removed."""

    def __init__(self) -> None:
        super().__init__()
        self.ignored = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        super().__enter__()
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        super().__exit__(kind, error, traceback)

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
