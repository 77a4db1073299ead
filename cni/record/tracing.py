"""The spans of a request: one for the plugin, one for each of its steps.

    bridge ADD
    ├── netlink GETLINK …                requests to the kernel
    ├── host-local ADD                   a delegate that runs in this process
    ├── executor cni.kernel.link.…       work in the container's namespace
    ├── nftables                         a transaction
    ├── run /usr/sbin/iptables-restore   another program
    └── call /opt/cni/bin/other          a delegate that is another program, which gets our context

cni.stopwatch has the table of the steps, and reports them while a request is traced; the next
request that is not traced ends that. Spans are objects of OTLP's JSON form from the beginning
(opentelemetry.io/docs/specs/otlp, "JSON Protobuf Encoding").
"""

from __future__ import annotations

import os
import time
from _socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_DGRAM
from _socket import socket as Socket
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .. import stopwatch
from ..protocol.request import Request
from ..stopwatch import DELEGATE, VERB, Label, Step, Watcher
from . import Entry, decoded, fields_of
from .context import Parent, parse, traceparent

_MAX_SPANS = 128  # of a request; more are counted
_LONGEST = 1024  # characters of a text
INTERNAL, SERVER, CLIENT = 1, 2, 3  # SpanKind
_ERROR = 2  # StatusCode
_SAMPLED_FLAG = 1

_VERBS = frozenset({"ADD", "CHECK", "DEL", "GC", "STATUS", "VALIDATE", "VERSION"})
_ATTRIBUTES = {
    "plugin": "cni.plugin",
    "verb": "cni.verb",
    "network": "cni.network",
    "containerID": "cni.container_id",
    "ifname": "cni.ifname",
    "netns": "cni.netns",
    "code": "cni.code",
    "details": "cni.details",
    "via": "cni.via",
    "build": "cni.build",
}

Sampler = Callable[[Parent | None, str], bool]


class Trace:
    """The spans of one request. The first belongs to the caller's trace, or begins a new one."""

    def __init__(self, parent: Parent | None, trace_id: str, state: str) -> None:
        self.trace_id = trace_id
        self.spans: list[dict[str, Any]] = []
        self.left_out = 0
        self._parent = parent.span_id if parent is not None else ""
        self._state = state if parent is not None else ""
        # Only the first id is random; a system call for each would be slower than the step itself.
        self._next = int.from_bytes(os.urandom(8), "big")
        self._open: list[str] = []
        self._is_within = False
        self._began = time.time_ns()
        self.root = self._new_id()
        self._open.append(self.root)

    def is_within(self) -> bool:
        """Has the plugin's own verb begun? The first call notes that, and returns False."""
        began, self._is_within = self._is_within, True
        return began

    @property
    def context(self) -> dict[str, str]:
        """TRACEPARENT and TRACESTATE for a program that this step calls."""
        span = self._open[-1]
        return {
            "TRACEPARENT": traceparent(self.trace_id, span, is_sampled=True),
            "TRACESTATE": self._state,
        }

    def step(
        self, name: str, kind: int, function: Callable[..., Any], *args: Any, **kw: Any
    ) -> Any:
        """Call the function as a child of the current step; raises what the function raises."""
        if len(self.spans) >= _MAX_SPANS:
            self.left_out += 1
            return function(*args, **kw)
        began, span = time.time_ns(), self._new_id()
        parent, problem = self._open[-1], ""
        self._open.append(span)
        try:
            return function(*args, **kw)
        except BaseException as error:
            problem = str(error) or type(error).__name__
            raise
        finally:
            self._open.pop()
            self._add(span, parent, name, kind, began, {}, problem)

    def finish(self, entry: Entry) -> list[dict[str, Any]]:
        """End the trace: all spans of the answered request."""
        fields = fields_of(entry, decoded(entry.stdin))
        verb = fields.get("verb")
        name = f"{entry.plugin} {verb if verb in _VERBS else 'other'}"
        of = {_ATTRIBUTES[key]: value for key, value in fields.items() if key in _ATTRIBUTES}
        if self.left_out:
            of["cni.spans_left_out"] = self.left_out
        problem = str(fields.get("msg", "failed")) if entry.code else ""
        self._add(self.root, self._parent, name, SERVER, self._began, of, problem)
        return self.spans

    def _add(
        self,
        span: str,
        parent: str,
        name: str,
        kind: int,
        began: int,
        attributes: Mapping[str, object],
        problem: str,
    ) -> None:
        made: dict[str, Any] = {
            "traceId": self.trace_id,
            "spanId": span,
            "flags": _SAMPLED_FLAG,
            "name": text(name),
            "kind": kind,
            "startTimeUnixNano": str(began),
            "endTimeUnixNano": str(time.time_ns()),
        }
        if parent:
            made["parentSpanId"] = parent
        if self._state:
            made["traceState"] = text(self._state)
        if attributes:
            made["attributes"] = [attribute(key, value) for key, value in attributes.items()]
        if problem:
            made["status"] = {"code": _ERROR, "message": text(problem)}
        self.spans.append(made)

    def _new_id(self) -> str:
        self._next = (self._next + 1) % (1 << 64) or 1  # zero is no id
        return f"{self._next:016x}"


def attribute(key: str, value: object) -> dict[str, Any]:
    """A KeyValue; 64-bit integers are strings in protobuf's JSON."""
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"stringValue": text(str(value))}}


def text(value: str) -> str:
    """A text of bounded length; replaces bytes that are no UTF-8."""
    return value[:_LONGEST].encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class Sender:
    """Sends spans to the observer of a server, without waiting (cni.server.observer)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = Socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)

    def send(self, spans: list[dict[str, Any]]) -> None:
        """Send the spans of a request. Raises OSError if nobody takes them."""
        self._socket.sendto(msgspec.json.encode(spans), MSG_DONTWAIT | MSG_NOSIGNAL, self._path)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


# --- the request that is running ------------------------------------------------------------------


class _Spans(Watcher):
    """Makes each step of the traced request a span."""

    trace: Trace | None = None  # a process runs one request at a time

    def call(self, step: Step, function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        trace, label = self.trace, step.span
        if trace is None or label is None:
            return function(*args, **kw)
        if step.name == VERB and not trace.is_within():  # the request itself, not a delegate
            return function(*args, **kw)
        name, kind = _labelled(label, function, args), INTERNAL
        if step.name == DELEGATE:
            kind, function = CLIENT, _in_context(trace, function)
        return trace.step(name, kind, function, *args, **kw)


_spans = _Spans()


def begin(env: Mapping[str, str], sampler: Sampler) -> Trace | None:
    """Begin the trace of a request; None if it is not to be recorded.

    TRACESTATE counts only with a valid TRACEPARENT, as the specification demands.
    """
    parent = parse(env.get("TRACEPARENT", ""))
    trace_id = parent.trace_id if parent is not None else os.urandom(16).hex()
    if not sampler(parent, trace_id):
        # Here and not at the end of a trace: replacing the functions costs more than leaving them.
        stopwatch.functions.unwatch(_spans)
        return None
    stopwatch.functions.watch(_spans)
    _spans.trace = Trace(parent, trace_id, env.get("TRACESTATE", ""))
    return _spans.trace


def end() -> None:
    """End the trace: the request is answered."""
    _spans.trace = None


def parents_choice(parent: Parent | None, _trace_id: str) -> bool:
    """A Sampler that records exactly the requests that the caller records."""
    return parent is not None and parent.is_sampled


def _labelled(label: Label, function: Callable[..., Any], args: Any) -> str:
    """The name of a step; the function's name if the call has unusual arguments."""
    return stopwatch.said(label, args, function.__qualname__)


def _in_context(trace: Trace, execute: Callable[..., bytes]) -> Callable[..., bytes]:
    """`execute` with the current span as the parent, for a delegate that is another program."""

    def in_context(program: str, request: Request, *args: Any, **kw: Any) -> bytes:
        env = {**request.env, **trace.context}
        if not env["TRACESTATE"]:
            del env["TRACESTATE"]
        return execute(program, request._replace(env=env), *args, **kw)

    return in_context
