"""The process that publishes the server's metrics and spans: scrapes, a file of metrics, OTLP.

It is a child of the supervisor, so that a slow scraper delays neither a request nor the supervisor.
It reads the memory in which workers count, and never talks to workers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from .. import files
from ..record.exposition import CONTENT_TYPE, Family, Sample, labels, text
from . import counts
from .otlp import Exporter, Settings
from .slots import Slot

_MAX_SCRAPES = 8  # at the same time; others are closed
_SCRAPE_SECONDS = 15.0  # the limit for a scrape, from its first byte to its last
_MAX_DATAGRAMS = 64  # that are read in one go, before other work
_MAX_DATAGRAM = 1 << 20
_MAX_HEAD = 8192  # bytes of a request
_FILE_SECONDS = 15.0  # between two writings of the file
_STATE_SECONDS = 10.0  # how long a reading of the node's state is used
_STATE_PATIENCE = 5.0  # seconds; a disk may hang

Collect = Callable[[], list[Family]]


class Plan(NamedTuple):
    """The tasks of the process. `collect` reads the node's state; `file` is "" for none."""

    build: str
    version: str
    counts: Sequence[counts.Counts]
    slots: Sequence[Slot]
    listener: socket.socket | None
    file: str
    collect: Collect
    inbox: socket.socket | None
    otlp: Settings | None
    log: Callable[[str], None]


def run(plan: Plan) -> None:
    """Do what the plan says, until SIGTERM."""
    asyncio.run(_run(plan))


async def _run(plan: Plan) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    exporter = None
    tasks = []
    if plan.otlp is not None and plan.inbox is not None:
        exporter = Exporter(plan.otlp, plan.version, socket.gethostname(), plan.log)
        Inbox(plan.inbox, exporter)
        tasks.append(asyncio.create_task(exporter.run()))
    page = Page(plan, exporter)
    if plan.listener is not None:
        scrapes = Scrapes(page)
        server = await asyncio.start_server(scrapes.answer, sock=plan.listener, limit=_MAX_HEAD)
        tasks.append(asyncio.create_task(server.serve_forever()))
    if plan.file:
        tasks.append(asyncio.create_task(_keep_file(plan, page)))
    await ended.wait()
    for task in tasks:
        task.cancel()
    if exporter is not None:
        await exporter.flush()
    if plan.file:
        try:
            os.unlink(plan.file)  # its metrics would be those of a server that has ended
        except OSError:
            pass


async def _keep_file(plan: Plan, page: Page) -> None:
    """Write the file at intervals. A lasting problem is logged once."""
    problem = ""
    while True:
        try:
            files.replace(plan.file, await page.render(), mode=0o644)
            problem = ""
        except OSError as error:
            failure = f"cannot write {plan.file}: {error.strerror or error}"
            if failure != problem:
                plan.log(failure)
            problem = failure
        await asyncio.sleep(_FILE_SECONDS)


class Page:
    """All metrics as text."""

    def __init__(self, plan: Plan, exporter: Exporter | None) -> None:
        self._plan = plan
        self._exporter = exporter
        self._state: list[Family] = []
        self._read_at = -_STATE_SECONDS
        self._reading: asyncio.Future[list[Family]] | None = None

    async def render(self) -> bytes:
        """The text of a scrape."""
        plan = self._plan
        every = [*counts.families(plan.counts), *self._server(), *await self._of_node()]
        return text(every).encode()

    def _server(self) -> list[Family]:
        plan = self._plan
        there = [state for slot in plan.slots if (state := slot.read()).started]
        busy = sum(state.busy_since > 0 for state in there)
        states = {"busy": busy, "idle": len(there) - busy}
        workers = [Sample(count, labels({"state": name})) for name, count in states.items()]
        metrics = [
            Family("cni_server_workers", "gauge", "Workers of the server.", workers),
            build_info(plan.build, plan.version),
        ]
        if self._exporter is not None:
            of = {"sent": self._exporter.sent, "dropped": self._exporter.dropped}
            spans = [Sample(count, labels({"result": name})) for name, count in of.items()]
            about = "Spans that the collector has taken, and those that were dropped."
            metrics.append(Family("cni_spans_total", "counter", about, spans))
        return metrics

    async def _of_node(self) -> list[Family]:
        """The metrics of the node's state; the last known ones while it cannot be read."""
        now = time.monotonic()
        if self._reading is None and now - self._read_at >= _STATE_SECONDS:
            loop = asyncio.get_running_loop()
            # in a thread: this process goes on while a disk hangs
            self._reading = loop.run_in_executor(None, self._plan.collect)
        if self._reading is not None:
            done, _ = await asyncio.wait([self._reading], timeout=_STATE_PATIENCE)
            if done and self._reading is not None:
                self._state = self._reading.result()
                self._reading, self._read_at = None, time.monotonic()
        return self._state


def build_info(build: str, version: str) -> Family:
    """A metric whose labels name this build."""
    of = labels({"version": version, "build": build})
    return Family("cni_build_info", "gauge", "The build that runs; always 1.", [Sample(1, of)])


class Scrapes:
    """Answers GET /metrics, one request for each connection, which then ends."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._open = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection. Raises nothing."""
        self._open += 1
        try:
            if self._open <= _MAX_SCRAPES:
                async with asyncio.timeout(_SCRAPE_SECONDS):
                    writer.write(await self._response(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the client is gone, too slow, or sends no such request
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _response(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _http("405 Method Not Allowed", b"only GET\n")
        if path != b"/metrics":
            return _http("404 Not Found", b"metrics are at /metrics\n")
        body = await self._page.render()
        whole = _http("200 OK", body)
        return whole if method == b"GET" else whole[: len(whole) - len(body)]


def _http(status: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class Inbox:
    """Takes the spans that workers and plugins by exec send, one datagram a request."""

    def __init__(self, inbox: socket.socket, exporter: Exporter) -> None:
        inbox.setblocking(False)
        self._inbox = inbox
        self._exporter = exporter
        asyncio.get_running_loop().add_reader(inbox.fileno(), self._receive)

    def _receive(self) -> None:
        for _ in range(_MAX_DATAGRAMS):
            try:
                data = self._inbox.recv(_MAX_DATAGRAM)
            except OSError:
                return  # no more datagrams
            try:
                spans = msgspec.json.decode(data, type=list[dict[str, Any]])
            except (ValueError, msgspec.MsgspecError):
                continue  # not from one of our processes
            self._exporter.offer(spans)
