"""What a worker writes down of a request, once the client has the reply (cni.record)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from time import time

from .. import dispatch
from ..record import settings
from ..record.log import Entry, Log
from . import wire
from .slots import Mark, Slot


def mark_of_node_file(env: Mapping[str, str]) -> int:
    """A number that says which node's own file there is (settings.NODE_FILE); 0 if there is none.

    The supervisor looks, so that workers need not.
    """
    try:
        status = os.stat(settings.node_file(env))
    except OSError:
        return 0
    return hash((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)) & (1 << 64) - 1


class Recorder:
    """Writes down the requests of one worker. `node_file` is the supervisor's mark of that file."""

    def __init__(self, slot: Slot, node_file: Mark, env: Mapping[str, str]) -> None:
        self._slot = slot
        self._node_file = node_file
        self._env = env
        self._seen = 0
        self._node: dict[str, str] = {}
        self._log = Log(keep_open=True)

    def record(self, request: wire.Request, seconds: float, code: int, output: bytes) -> None:
        """Write a request down, as far as that is wanted. Raises nothing."""
        if self._is_recorded(request, code):
            name = dispatch.find(request.called_as.rpartition("/")[2]) or ""
            began = time() - seconds
            self._log.write(
                Entry(name, request.env, request.stdin, began, seconds, code, output, "served"),
                self._node,
            )
            if self._log.dropped:
                self._log.dropped = 0
                self._slot.count_unlogged()

    def _is_recorded(self, request: wire.Request, code: int) -> bool:
        mark = self._node_file.get()
        if mark != self._seen:
            self._seen = mark
            self._node = settings.of_node(self._env) if mark else {}
        return bool(mark) or dispatch.is_recorded(code, request.env, request.stdin)
