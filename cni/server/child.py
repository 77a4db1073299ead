"""A child of the supervisor that does other work than requests, and is kept running.

A child that ends is started again after a pause; requests do not depend on it.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

PAUSE = 10.0  # seconds until a failed attempt is repeated
_END_SECONDS = 3.0  # the time that the child has to end


class Child:
    """Such a process. A subclass has `keep`, which decides when the process has to run.

    `name` is the process's name for ps(1), `what` what the log calls it, such as "the process for
    metrics". `prepare` is called in the child, before anything else.
    """

    name: str
    what: str

    def __init__(self, log: Callable[[str], None], prepare: Callable[[], None]) -> None:
        self._log = log
        self._prepare = prepare
        self._pid = 0
        self._due = 0.0

    def run(self) -> None:
        """What the child does; it ends when this returns or raises."""
        raise NotImplementedError

    def _start(self, complain: Callable[[str], None]) -> None:
        """Start the child. Raises nothing."""
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._due = time.monotonic() + PAUSE
            complain(f"cannot start {self.what}: {error.strerror}")
            return
        if pid == 0:
            self._become(parent)
        self._pid = pid

    def _become(self, parent: int) -> NoReturn:
        code = 1
        try:
            from ..netns import libc

            libc.die_with_parent(parent)
            self._prepare()
            _name_process(self.name)
            # the supervisor has switched it off for its workers
            gc.enable()
            self.run()
            code = 0
        except BaseException as error:  # noqa: BLE001 it is told, and started again
            self._log(f"{self.what} failed: {error!r}")
        finally:
            os._exit(code)

    def reaped(self, pid: int) -> bool:
        """Was the process that has ended this child? If so, another is started later."""
        if not pid or pid != self._pid:
            return False
        self._pid = 0
        self._due = time.monotonic() + PAUSE
        return True

    def end(self) -> None:
        """End the process, within a few seconds."""
        if not self._pid:
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                self._pid = 0
                return
            time.sleep(0.02)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pid = 0


def _name_process(name: str) -> None:
    with suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(name)
