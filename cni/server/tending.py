"""The process that looks after this node's blocks of a cluster (cni.ipam.cluster.rounds).

It runs only on a node that has such blocks, and is a child of the supervisor, so that no request
waits for a store. If it ends it is started again, not too often; requests are served all the same.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from .observing import call_oneself

NAME = "cni-cluster"  # of the process, for ps(1)
_PAUSE = 10.0  # seconds until what failed is tried again, and between looks for blocks
_END_SECONDS = 3.0


class Tending:
    """Keeps the process running. `prepare` is called in it, before anything else."""

    def __init__(self, log: Callable[[str], None], prepare: Callable[[], None]) -> None:
        self._log = log
        self._prepare = prepare
        self._pid = 0
        self._due = 0.0

    def keep(self) -> None:
        """Start it, if there are blocks. Raises nothing."""
        if self._pid or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _PAUSE
        if not _has_blocks():
            return
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._log(f"cannot start the process for blocks of addresses: {error.strerror}")
            return
        if pid == 0:
            self._become(parent)
        self._pid = pid

    def _become(self, parent: int) -> NoReturn:
        try:
            from ..netns import libc

            libc.die_with_parent(parent)
            self._prepare()
            call_oneself(NAME)
            gc.enable()
            from ..ipam.cluster import rounds

            rounds.forever(os.environ, self._log)
        except BaseException as error:  # noqa: BLE001 it is told, and started again
            self._log(f"the process for blocks of addresses failed: {error!r}")
        finally:
            os._exit(1)

    def reaped(self, pid: int) -> bool:
        """Whether the process that has ended was this one; then another is started later."""
        if not pid or pid != self._pid:
            return False
        self._pid = 0
        self._due = time.monotonic() + _PAUSE
        return True

    def end(self) -> None:
        """End it. It may be ended at any moment: the ledger says what was under way."""
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


def _has_blocks() -> bool:
    """Does this node have blocks in the directory that its settings name?"""
    from ..ipam.cluster import settings
    from ..protocol.errors import CNIError

    try:
        directory = os.path.join(settings.data_dir({}, os.environ), ".cni")
        return any(name.endswith(".blocks") for name in os.listdir(directory))
    except (CNIError, OSError):
        return False
