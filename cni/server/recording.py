"""A worker's record of a request, written after the client has the reply (cni.record)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from time import time
from typing import TYPE_CHECKING, NamedTuple

from .. import call, dispatch, record
from ..record import Entry
from . import wire
from .counts import Counts
from .slots import Mark

if TYPE_CHECKING:
    from ..record.tracing import Sampler, Sender, Trace


def mark_of_node_file(env: Mapping[str, str]) -> int:
    """A number that changes with the node's own file (record.NODE_FILE); 0 without a file.

    The supervisor computes it, so that workers need not look.
    """
    try:
        status = os.stat(record.node_file(env))
    except OSError:
        return 0
    # Mark has room for an unsigned number of 64 bits
    return hash((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)) & (1 << 64) - 1


class Spans(NamedTuple):
    """Where spans are sent, and of which requests."""

    path: str
    sampler: Sampler


class Recorder:
    """Records and counts the requests of one worker.

    `node_file` is the supervisor's mark of the node's file. `counts` is None without metrics,
    `spans` is None without traces.
    """

    def __init__(
        self,
        node_file: Mark,
        env: Mapping[str, str],
        counts: Counts | None,
        spans: Spans | None = None,
    ) -> None:
        self._counts = counts
        self._spans = spans
        self._sender: Sender | None = None
        self._trace: Trace | None = None
        if counts is not None:
            call.on_removed = counts.removed
        self._node_file = node_file
        self._env = env
        self._seen = 0
        self._node: dict[str, str] = {}
        self._log = record.Log(keep_open=True)

    def begin(self, request: wire.Request) -> None:
        """Begin the record of a request. Raises nothing."""
        if self._spans is not None:
            from ..record import tracing

            self._trace = tracing.begin(request.env, self._spans.sampler)

    def record(self, request: wire.Request, seconds: float, code: int, output: bytes) -> None:
        """Record and count a request, as far as the settings say so. Raises nothing."""
        counts, is_recorded = self._counts, self._is_recorded(request, code)
        trace, self._trace = self._trace, None
        if counts is None and trace is None and not is_recorded:
            return
        name = dispatch.find(request.called_as.rpartition("/")[2]) or ""
        if counts is not None:
            verb = request.env.get("CNI_COMMAND", "")
            counts.request(name, verb, error_code(output) if code else 0, seconds)
        began = time() - seconds
        entry = Entry(name, request.env, request.stdin, began, seconds, code, output, "served")
        if trace is not None:
            self._send(trace, entry)
        if is_recorded:
            self._log.write(entry, self._node)
            if self._log.dropped and counts is not None:
                counts.lost("log line")
            self._log.dropped = 0

    def _send(self, trace: Trace, entry: Entry) -> None:
        from ..record import tracing

        tracing.end()
        assert self._spans is not None
        try:
            self._sender = self._sender or tracing.Sender(self._spans.path)
            self._sender.send(trace.finish(entry))
        except OSError:
            if self._counts is not None:
                self._counts.lost("span")

    def _is_recorded(self, request: wire.Request, code: int) -> bool:
        mark = self._node_file.get()
        if mark != self._seen:
            self._seen = mark
            self._node = record.of_node(self._env) if mark else {}
        return bool(mark) or dispatch.is_recorded(code, request.env, request.stdin)


_CODE_AT = b'"code": '  # as encode_error begins


def error_code(output: bytes) -> int:
    """The code of an error object; 999 if there is none."""
    start = output.find(_CODE_AT) + len(_CODE_AT)
    try:
        return int(output[start : output.index(b",", start)])
    except ValueError:
        return 999
