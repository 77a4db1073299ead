"""Signals while plugins run: nothing is left half-done, and the exit code says which one it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from cni.protocol.errors import CNIError

from .errors import Failed

# What each does if nothing is said about it. One that the caller has had ignored (nohup, a shell's
# background job) stays ignored.
_DEFAULTS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP while plugins run: the one that runs may finish, none after it
    starts.

    An interrupted plugin undoes what it did, which has to be waited for. A second signal does not
    wait. All end in KeyboardInterrupt; `exit_code` says which it was.
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
            # The plugin was interrupted as well: its error says no more than the signal does.
            raise KeyboardInterrupt from error

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.pending:
            self.number = number
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
        """Raises KeyboardInterrupt if there was one."""
        if self.pending:
            raise KeyboardInterrupt
