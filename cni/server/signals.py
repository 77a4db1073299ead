"""Signals to the supervisor, and the signals that ended its workers."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Collection


class Signals:
    """Signals to the supervisor, as bytes in a pipe. Python's sigtimedwait(2) would not do: it
    returns uninitialised memory if the process was stopped and continued meanwhile.
    """

    def __init__(self, numbers: Collection[int]) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _ignore)

    def wait(self, seconds: float) -> set[int]:
        """The signals that have arrived; waits for one at most `seconds`."""
        ready = select.poll()
        ready.register(self._read, select.POLLIN)
        ready.poll(seconds * 1000)
        try:
            return set(os.read(self._read, 4096))
        except BlockingIOError:
            return set()

    def close(self) -> None:
        """Close the pipe in a worker, which must not write to the supervisor's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)


def _ignore(_number: int, _frame: object) -> None:
    """A handler, since an ignored signal is not written to the pipe."""


def manner(code: int) -> str:
    """How a process ended, in words for the log; `code` is from os.waitstatus_to_exitcode."""
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"by signal {-code}"
