"""Sends spans to an OpenTelemetry collector: OTLP over HTTP, with JSON.

The variables of its environment are the standard ones (opentelemetry.io/docs/specs/otel/protocol/
exporter). Spans wait in a queue of bounded length. Spans that do not fit, or that a
collector refuses, are dropped and counted. Only this exporter ever waits for a collector.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from .. import authorities
from ..record.context import Parent
from ..record.tracing import Sampler, attribute

if TYPE_CHECKING:
    import ssl

_RETRIED = frozenset({429, 502, 503, 504})  # as the protocol says; other errors are final
_ATTEMPTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts
_MAX_ANSWER = 1 << 16
_LAST_SECONDS = 2.0  # to send the rest when the server ends
_PORTS = {"http": 80, "https": 443}


class Settings(NamedTuple):
    """Where and how spans are sent. `sampler` is the name of a standard sampler."""

    endpoint: str
    headers: tuple[tuple[str, str], ...]
    timeout: float
    service: str
    resource: tuple[tuple[str, str], ...]
    sampler: str
    ratio: float
    delay: float
    queue: int
    batch: int


def read_settings(env: Mapping[str, str]) -> Settings | None:
    """The settings in the environment; None if no spans are to be sent. Raises ValueError."""
    given = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    base = env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    off = env.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or env.get("OTEL_TRACES_EXPORTER", "otlp") == "none" or not (given or base):
        return None
    endpoint = given or f"{base.rstrip('/')}/v1/traces"
    parts = urlsplit(endpoint)
    if parts.scheme not in _PORTS or not parts.hostname or parts.port == 0:
        raise ValueError(f"{endpoint} is no http:// or https:// address")
    if parts.scheme == "https":
        # at once: without it, every batch would fail later
        _import_ssl()
    headers = _pairs(env, "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
    resource = _pairs(env, "OTEL_RESOURCE_ATTRIBUTES")
    service = env.get("OTEL_SERVICE_NAME") or dict(resource).get("service.name") or "cni"
    timeout = _number(env, "OTEL_EXPORTER_OTLP_TIMEOUT", 10_000)
    queue = int(_number(env, "OTEL_BSP_MAX_QUEUE_SIZE", 2048))
    return Settings(
        endpoint,
        headers,
        _number(env, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", timeout) / 1000,
        service,
        tuple(pair for pair in resource if pair[0] != "service.name"),
        env.get("OTEL_TRACES_SAMPLER", "") or "parentbased_always_on",
        _ratio(env.get("OTEL_TRACES_SAMPLER_ARG", "")),
        _number(env, "OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000,
        queue,
        min(int(_number(env, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)), queue),
    )


def _import_ssl() -> None:
    try:
        __import__("ssl")
    except ImportError as error:
        raise ValueError(
            f"TLS cannot be used ({error}): send to a collector on this node over http, or use "
            "the self-contained file"
        ) from None


def _context() -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authorities.trust(context)
    return context


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    """A positive number; the default for anything else, as the specification wants."""
    text = env.get(name, "")
    return float(text) if text.isascii() and text.isdigit() and int(text) else default


def _ratio(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 1.0


def _pairs(env: Mapping[str, str], *names: str) -> tuple[tuple[str, str], ...]:
    """``k=v,k2=v2``, percent-encoded; later variables win. Drops values that break a header."""
    pairs: dict[str, str] = {}
    for name in names:
        for piece in env.get(name, "").split(","):
            key, equals, value = piece.partition("=")
            key, value = key.strip(), unquote(value.strip())
            if equals and key and key.isascii() and key.isprintable() and value.isprintable():
                pairs[key] = value
    return tuple(pairs.items())


def sampler(settings: Settings) -> Sampler:
    """The Sampler of that name; an unknown name is the default."""
    name = settings.sampler
    by_parent = name.startswith("parentbased_") or name not in (
        "always_on",
        "always_off",
        "traceidratio",
    )
    share = {"always_off": 0.0, "traceidratio": settings.ratio}.get(
        name.removeprefix("parentbased_"), 1.0
    )
    bound = int(share * (1 << 63))

    def sampled(parent: Parent | None, trace_id: str) -> bool:
        if parent is not None and by_parent:
            return parent.is_sampled
        # the bits that OpenTelemetry's SDK for Go compares: both choose the same traces
        return int(trace_id[16:], 16) >> 1 < bound

    return sampled


class Exporter:
    """Collects spans, and sends them in batches. `sent` and `dropped` count them."""

    def __init__(
        self, settings: Settings, version: str, node: str, log: Callable[[str], None]
    ) -> None:
        self.sent = 0
        self.dropped = 0
        self._settings = settings
        self._log = log
        self._waiting: deque[dict[str, Any]] = deque()
        self._wake = asyncio.Event()
        self._problem = ""
        resource = {"service.name": settings.service, "service.version": version}
        resource |= {"host.name": node, **dict(settings.resource)}
        self._resource = {"attributes": [attribute(k, v) for k, v in resource.items()]}
        self._scope = {"name": "cni", "version": version}

    def offer(self, spans: list[dict[str, Any]]) -> None:
        """Queue spans, as far as there is room; the others are dropped and counted."""
        room = max(self._settings.queue - len(self._waiting), 0)
        self._waiting.extend(spans[:room])
        self.dropped += len(spans[room:])
        if len(self._waiting) >= self._settings.batch:
            self._wake.set()

    async def run(self) -> None:
        """Send queued spans, for ever."""
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), self._settings.delay)
            except TimeoutError:
                pass
            self._wake.clear()
            while self._waiting:
                await self._send_batch(_ATTEMPTS)
                # these wait for others, to be sent in one request
                if len(self._waiting) < self._settings.batch:
                    break

    async def flush(self) -> None:
        """Send the rest of the queue in a short time, each batch once."""
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                while self._waiting:
                    await self._send_batch(1)
        except TimeoutError:
            pass

    async def _send_batch(self, attempts: int) -> None:
        batch = [
            self._waiting.popleft() for _ in range(min(len(self._waiting), self._settings.batch))
        ]
        body = msgspec.json.encode(
            {
                "resourceSpans": [
                    {
                        "resource": self._resource,
                        "scopeSpans": [{"scope": self._scope, "spans": batch}],
                    }
                ]
            }
        )
        pause = _FIRST_PAUSE
        for attempt in range(1, attempts + 1):
            wait = await self._try(body, len(batch))
            if wait is None:
                return
            if attempt < attempts:
                await asyncio.sleep(min(max(wait, pause), _LONGEST_PAUSE))
                pause *= 2
        self.dropped += len(batch)

    async def _try(self, body: bytes, count: int) -> float | None:
        """Send a batch once. Returns None if that is final, else the seconds until a retry."""
        try:
            async with asyncio.timeout(self._settings.timeout):
                status, headers, answer = await self._post(body)
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            self._complain(str(error) or type(error).__name__)
            return 0.0
        if 200 <= status < 300:
            rejected = min(_rejected(answer), count)
            self.sent += count - rejected
            self.dropped += rejected
            self._complain("")
            return None
        self._complain(f"status {status}")
        if status in _RETRIED:
            after = headers.get("retry-after", "")
            return float(after) if after.isascii() and after.isdigit() else 0.0
        self.dropped += count
        return None

    def _complain(self, problem: str) -> None:
        """Log a lasting problem once, and its end."""
        if problem != self._problem:
            self._problem = problem
            where = urlsplit(self._settings.endpoint)
            said = problem or "spans are taken again"
            self._log(f"the collector at {where.hostname}:{where.port or ''}: {said}")

    async def _post(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer. Raises OSError, EOFError, ValueError."""
        parts = urlsplit(self._settings.endpoint)
        reader, writer = await asyncio.open_connection(
            parts.hostname,
            parts.port or _PORTS[parts.scheme],
            ssl=_context() if parts.scheme == "https" else None,
            limit=_MAX_ANSWER,
        )
        try:
            path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
            headers = {
                "Host": parts.netloc.rpartition("@")[2],
                "User-Agent": "cni-plugins-python",
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "Connection": "close",
                **dict(self._settings.headers),
            }
            head = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
            writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            await writer.drain()
            status, fields = _parse_head(await reader.readuntil(b"\r\n\r\n"))
            size = fields.get("content-length", "0")
            length = int(size) if size.isascii() and size.isdigit() else 0
            return status, fields, await reader.readexactly(min(length, _MAX_ANSWER))
        finally:
            writer.transport.abort()


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Raises ValueError."""
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    protocol, _, rest = first.partition(" ")
    if not protocol.startswith("HTTP/1."):
        raise ValueError("it does not speak HTTP")
    pairs = (line.partition(":") for line in lines)
    return int(rest[:3]), {key.strip().lower(): value.strip() for key, _, value in pairs}


def _rejected(answer: bytes) -> int:
    """How many spans the collector has rejected in a request that it accepted."""
    try:
        return int(msgspec.json.decode(answer)["partialSuccess"]["rejectedSpans"])
    except (ValueError, TypeError, KeyError, msgspec.MsgspecError):
        return 0
