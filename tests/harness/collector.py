"""A small OpenTelemetry collector, strict about OTLP's JSON form.

opentelemetry.io/docs/specs/otlp: protobuf's JSON mapping, but ids are hexadecimal and enums are
numbers. Names are those of opentelemetry/proto/trace/v1/trace.proto, in lowerCamelCase.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .netns import Netns

PORT = 4318
ENDPOINT = f"http://127.0.0.1:{PORT}"
Json = dict[str, Any]
Answer = Callable[[int], tuple[int, str, bytes]]  # of the n-th request: status, headers, body


class Collector:
    """Collects spans by HTTP. `answer` may be changed; `wrong` has what breaks the protocol."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.spans: list[Json] = []
        self.resources: list[dict[str, str]] = []
        self.heads: list[str] = []
        self.wrong: list[str] = []
        self.answer: Answer = lambda _: (200, "", b"{}")
        self.delay = 0.0
        self.requests = 0

    def serve(self) -> None:
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            with conn:
                conn.settimeout(60)
                try:
                    self._handle(conn)
                except OSError:
                    pass
                except Exception as error:
                    self.wrong.append(repr(error))

    def _handle(self, conn: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = conn.recv(65536)
            if not more:
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        while len(body) < int(length[1]):
            body += conn.recv(65536)
        number, self.requests = self.requests, self.requests + 1
        time.sleep(self.delay)
        status, headers, answer = self.answer(number)
        self.heads.append(head.decode())
        if status == 200:
            self._take(head, json.loads(body))
        text = f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(answer)}\r\n\r\n"
        conn.sendall(text.encode() + answer)

    def _take(self, head: bytes, document: Json) -> None:
        if not head.startswith(b"POST /v1/traces HTTP/1.1\r\n"):
            self.wrong.append(f"request line {head[:40]!r}")
        if b"\r\nContent-Type: application/json\r\n" not in head:
            self.wrong.append("no Content-Type")
        self._only(document, {"resourceSpans": list})
        for one in document["resourceSpans"]:
            self._only(one, {"resource": dict, "scopeSpans": list})
            self.resources.append(self._attributes(one["resource"]["attributes"]))
            for scope in one["scopeSpans"]:
                self._only(scope, {"scope": dict, "spans": list})
                self._only(scope["scope"], {"name": str, "version": str})
                for span in scope["spans"]:
                    self._check(span)
                    self.spans.append(span)

    def _check(self, span: Json) -> None:
        required = {
            "traceId": str,
            "spanId": str,
            "name": str,
            "kind": int,
            "startTimeUnixNano": str,
            "endTimeUnixNano": str,
        }
        optional = {
            "parentSpanId": str,
            "traceState": str,
            "flags": int,
            "attributes": list,
            "status": dict,
        }
        self._only(span, required, optional)
        for key, digits in (("traceId", 32), ("spanId", 16), ("parentSpanId", 16)):
            # An id of zeros only is invalid (trace.proto).
            value = span.get(key, "1" * digits)
            if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value) or not value.strip("0"):
                self.wrong.append(f"{key} {value!r}")
        start, end = span["startTimeUnixNano"], span["endTimeUnixNano"]
        if not (start.isdigit() and end.isdigit() and int(start) <= int(end)):
            self.wrong.append(f"times {start!r} {end!r}")
        # 0 is SPAN_KIND_UNSPECIFIED.
        if span["kind"] not in range(1, 6) or not span["name"]:
            self.wrong.append(f"kind {span['kind']}, name {span['name']!r}")
        status = span.get("status", {"code": 2})
        self._only(status, {"code": int}, {"message": str})
        self._attributes(span.get("attributes", []))

    def _attributes(self, entries: list[Json]) -> dict[str, str]:
        found = {}
        for entry in entries:
            self._only(entry, {"key": str, "value": dict})
            ((kind, value),) = entry["value"].items()
            # protobuf's JSON mapping writes numbers of 64 bits as strings.
            types = {"stringValue": str, "boolValue": bool, "intValue": str, "doubleValue": float}
            if not isinstance(value, types[kind]) or entry["key"] in found:
                self.wrong.append(f"attribute {entry}")
            if kind == "intValue" and not re.fullmatch(r"-?\d+", value):
                self.wrong.append(f"attribute {entry}")
            found[entry["key"]] = str(value)
        return found

    def _only(
        self, value: Json, required: dict[str, type], optional: dict[str, type] | None = None
    ) -> None:
        """Note keys that are missing, unknown or of the wrong type."""
        known = {**required, **(optional or {})}
        for key in required.keys() - value.keys():
            self.wrong.append(f"{key} is missing")
        for key, item in value.items():
            if not isinstance(item, known.get(key, ())):
                self.wrong.append(f"{key}: {item!r}")

    def named(self, name: str) -> list[Json]:
        """The spans of that name, those that came first before others."""
        return [span for span in self.spans if span["name"] == name]

    def attributes(self, span: Json) -> dict[str, str]:
        return self._attributes(span.get("attributes", []))


@contextmanager
def collecting(host: Netns) -> Iterator[Collector]:
    """A collector on the node, at ENDPOINT."""
    listener = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", PORT))
    listener.listen(64)
    collector = Collector(listener)
    thread = threading.Thread(target=collector.serve, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)
    assert collector.wrong == []
