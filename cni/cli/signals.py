"""Signals while plugins run: nothing is left half-done, and the exit code names the signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from cni.protocol.errors import CNIError

from .errors import Failed

# The default handlers. A signal that the caller ignores (nohup, a shell's background job) stays
# ignored.
_DEFAULTS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP while plugins run: the one that runs may finish, none after it
    starts.

    An interrupted plugin undoes its changes, and the command waits for that; after a second signal
    it does not. All end in KeyboardInterrupt; `exit_code` tells the signal.
    """

    def __init__(self) -> None:
        self.pending = False
        self.number: int = signal.SIGINT
        self._at_once = False
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as of a program that it has ended."""
        return 128 + self.number

    def __enter__(self) -> Interrupts:
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULTS.items():
                if signal.getsignal(number) is default:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.pending and isinstance(error, CNIError | Failed):
            # The plugin was interrupted, too: its error only repeats the signal.
            raise KeyboardInterrupt from error

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.pending:
            self.number = number
        # A second signal, or no plugin runs that could be left half-done.
        if self.pending or self._at_once:
            raise KeyboardInterrupt
        self.pending = True

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """No plugin runs in this block: a signal ends it."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has arrived."""
        if self.pending:
            raise KeyboardInterrupt
