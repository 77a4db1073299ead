"""Requests to a store with several endpoints: which is asked, how long, and what went wrong.

A `Client` keeps one connection open, to the endpoint that answered last. When that is away, the
next one is asked, as long as nothing was sent, or the request may be repeated. A change whose
answer was lost is never sent again: it is Unavailable, and the caller reads what became of it. An
endpoint that failed is asked last until its pause is over, which doubles with each failure.

Nothing of the environment counts: no proxy, no netrc. Redirections are not followed.
"""

from __future__ import annotations

import os
import random
import time
from errno import EHOSTUNREACH, ENETUNREACH
from typing import TYPE_CHECKING, NamedTuple

from .interface import Refused, StoreError, Unavailable
from .tls import CLOSED_EARLY, Context, Trust, Why, explain
from .wire import NO_ANSWER, Address, Broken, Connection, Head, WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_PORTS = {"http": 80, "https": 443}
_CONNECTING = 3.0  # seconds for one endpoint, if there are others
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds for which a failed endpoint is asked last
LARGEST_BODY = 64 << 20  # bytes; a page of a listing is the largest that is wanted
_NO_HEADERS: dict[str, str] = {}


class Response(NamedTuple):
    """An answer, whatever its status. `endpoint` is the URL that gave it."""

    status: int
    headers: dict[str, str]
    body: bytes
    endpoint: str

    @property
    def retry_after(self) -> float | None:
        """Seconds, if the server asks for a pause."""
        return seconds_of(self.headers.get("retry-after", ""))


class Failure(NamedTuple):
    """What went wrong at one endpoint. `was_sent`: the request may have happened."""

    endpoint: str
    why: Why
    was_sent: bool


class Client:
    """Speaks to one of the endpoints. Not for several threads at a time; each has its own.

    `endpoints` are URLs without a path. `name` is the store's, for messages; `timeout` the seconds
    for a request with all its attempts. Nodes ask endpoints in different orders, unless `shuffle`
    is False. Raises Refused for a URL that is none.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        name: str,
        trust: Trust | None = None,
        timeout: float = 10.0,
        shuffle: bool = True,
        field: str = "endpoints",
    ) -> None:
        if not endpoints:
            raise Refused(f"{field} is empty", f"set {field} to the URLs of {name}")
        self.name = name
        self.timeout = timeout
        self._trust = trust or Trust()
        self._context = Context(self._trust)
        self._addresses = [parse_endpoint(url, field) for url in endpoints]
        if shuffle:
            random.shuffle(self._addresses)
        self._pauses: dict[str, tuple[float, float]] = {}  # url -> until when, how long
        self._kept: Connection | None = None

    def close(self) -> None:
        """Close the connection; the next request opens one."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] = _NO_HEADERS,
        *,
        repeatable: bool,
        accept: Callable[[Response], bool] = lambda _: True,
        limit: int = LARGEST_BODY,
        timeout: float | None = None,
    ) -> Response:
        """The answer of the first endpoint that gives one, whatever its status.

        `repeatable`: the request may be sent twice, since it changes nothing. Such a request goes
        to the next endpoint also when `accept` says no to an answer; if none is accepted, the last
        answer is returned. Raises Unavailable; Refused, if trying again is no use.
        """
        _check_headers(headers)
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        failures: list[Failure] = []
        answer: Response | None = None
        addresses = self._order()
        for number, address in enumerate(addresses):
            rest = len(addresses) - number
            # a change that was sent is not tried elsewhere: it may take all the time
            until = _share(deadline, rest) if repeatable else deadline
            connection = None
            try:
                connection = self._connection(address, _connecting(deadline, until, rest))
                connection.send(method, path, headers, body, until)
                head = connection.head(until)
                answer = Response(
                    head.status, head.headers, connection.body(limit, until), address.url
                )
            except WireError as error:
                _close(connection)
                failures.append(self._failed(address, error))
                # it may have been done: sent again, it would be done twice
                if failures[-1].was_sent and not repeatable:
                    break
                continue
            self._keep(connection)
            self._check_speech(answer)
            if not repeatable or accept(answer):
                self._pauses.pop(address.url, None)
                return answer
            self.avoid(address.url)
        if answer is not None:
            return answer
        raise self.error(failures)

    def stream(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> Stream:
        """Begin an answer without an end, over a connection of its own; close it.

        Raises Unavailable; Refused.
        """
        _check_headers(headers)
        deadline = time.monotonic() + self.timeout
        failures: list[Failure] = []
        addresses = self._order()
        for number, address in enumerate(addresses):
            until = _share(deadline, len(addresses) - number)
            connection = None
            try:
                connection = self._open(address, until)
                connection.send(method, path, headers, body, until)
                return Stream(self, connection, connection.head(until))
            except WireError as error:
                _close(connection)
                failures.append(self._failed(address, error))
        raise self.error(failures)

    def avoid(self, url: str) -> None:
        """Ask this endpoint last for a while: it does not work, whatever it answers."""
        _, pause = self._pauses.get(url, (0.0, _FIRST_PAUSE / 2))
        pause = min(pause * 2, _LONGEST_PAUSE)
        self._pauses[url] = (time.monotonic() + pause, pause)
        if self._kept is not None and self._kept.address.url == url:
            self.close()

    def error(self, failures: Sequence[Failure]) -> StoreError:
        """The error for the caller, if no endpoint gave an answer."""
        where = "; ".join(f"{failure.endpoint}: {failure.why.text}" for failure in failures)
        remedies = list(dict.fromkeys(failure.why.remedy for failure in failures))
        remedy = "; or ".join(remedies[:2])
        if failures and failures[-1].was_sent:
            text = f"{self.name} gave no answer: {where}"
            return Unavailable(text, remedy)
        text = f"{self.name} cannot be reached: {where}"
        if failures and all(failure.why.is_final for failure in failures):
            return Refused(text, remedy)
        return Unavailable(text, remedy)

    # --- connections ---

    def _order(self) -> list[Address]:
        """The endpoints: that of the open connection first, those that failed lately last."""
        now = time.monotonic()
        kept = self._kept.address.url if self._kept is not None else ""

        def rank(address: Address) -> tuple[bool, float]:
            until, _ = self._pauses.get(address.url, (0.0, 0.0))
            return address.url != kept, until if until > now else 0.0

        return sorted(self._addresses, key=rank)

    def _connection(self, address: Address, deadline: float) -> Connection:
        kept, self._kept = self._kept, None
        if kept is not None:
            if kept.address == address and kept.is_usable():
                return kept
            kept.close()
        return self._open(address, deadline)

    def _open(self, address: Address, deadline: float) -> Connection:
        context = self._context.get() if address.is_tls else None
        server_name = self._trust.server_name or address.host
        return Connection.open(address, context, server_name, deadline)

    def _keep(self, connection: Connection) -> None:
        self.close()
        self._kept = connection

    def _failed(self, address: Address, error: WireError) -> Failure:
        self.avoid(address.url)
        why = self._why(address, error.reason)
        # A server that declines our certificate says so after a request was sent, and reads none.
        return Failure(address.url, why, isinstance(error, Broken) and not why.is_final)

    def _why(self, address: Address, reason: OSError | str) -> Why:
        if isinstance(reason, str):
            if reason == CLOSED_EARLY.text:
                return CLOSED_EARLY
            if "speaks TLS" in reason:
                return Why(reason, "use https:// in the endpoint")
            if reason == NO_ANSWER and not address.is_tls:
                remedy = "if it speaks TLS, use https:// in the endpoint; look into its log"
                return Why(reason, remedy, is_final=False)
            return Why(reason, "look whether it is the store that listens there", is_final=False)
        return explain(reason, self._trust, address.host) or _why_not_connected(reason)

    def _check_speech(self, answer: Response) -> None:
        """Go's servers answer 400 in plain HTTP to what is no TLS."""
        if answer.status == 400 and b"HTTP request to an HTTPS server" in answer.body:
            text = f"{self.name} cannot be reached: {answer.endpoint}: it speaks TLS"
            raise Refused(text, "use https:// in the endpoint")


class Stream:
    """An answer that goes on: JSON values, one a line. `status` is known; close it."""

    def __init__(self, client: Client, connection: Connection, head: Head) -> None:
        self.status = head.status
        self.headers = head.headers
        self.endpoint = connection.address.url
        self._client = client
        self._connection = connection
        self._process = os.getpid()

    def response(self) -> Response:
        """The whole of an answer that is no stream, such as an error. Raises Unavailable."""
        try:
            body = self._connection.body(1 << 20, time.monotonic() + self._client.timeout)
        except WireError as error:
            raise self._lost(error) from error
        return Response(self.status, self.headers, body, self.endpoint)

    def lines(self, seconds: float, limit: int = LARGEST_BODY) -> Iterator[bytes]:
        """Each line, for so many seconds or until the server ends it. Raises Unavailable."""
        deadline = time.monotonic() + seconds
        buffer = bytearray()
        try:
            for chunk in self._connection.chunks(deadline):
                # the bytes before have no line's end
                searched = len(buffer)
                buffer += chunk
                while (end := buffer.find(b"\n", searched)) >= 0:
                    line = bytes(buffer[:end])
                    del buffer[: end + 1]
                    searched = 0
                    if line.strip():
                        yield line
                if len(buffer) > limit:
                    raise Broken(f"a line of the answer has more than {limit} bytes")
            if buffer.strip():
                yield bytes(buffer)
        except WireError as error:
            # no failure: the caller has listened as long as it wanted to
            if isinstance(error.reason, TimeoutError) and time.monotonic() >= deadline:
                return
            raise self._lost(error) from error

    def close(self) -> None:
        self._connection.close()

    def _lost(self, error: WireError) -> StoreError:
        return self._client.error([self._client._failed(self._connection.address, error)])


def parse_endpoint(url: str, field: str = "endpoints") -> Address:
    """An endpoint's URL. Raises Refused, which names the field."""
    from urllib.parse import urlsplit

    example = "an endpoint is https://HOST:PORT or http://HOST:PORT"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Refused(f"{field}: {url!r}: {error}", example) from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise Refused(f"{field}: {url!r} is no http:// or https:// address", example)
    if parts.username is not None or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise Refused(f"{field}: {url!r} has more than a host and a port", example)
    if port == 0 or not is_host(parts.hostname):
        raise Refused(f"{field}: {url!r} is no address to connect to", example)
    text, number = url.rstrip("/"), port or _PORTS[parts.scheme]
    if port is None:
        # errors name the endpoint by this: nobody who forgot the port thinks of 443
        text = f"{text.rstrip(':')}:{number}"
    return Address(text, parts.hostname, number, parts.scheme == "https")


def seconds_of(retry_after: str) -> float | None:
    """A Retry-After field (RFC 9110 §10.2.3) in seconds, at most an hour; None without one."""
    if retry_after.isdecimal():
        return min(float(retry_after), 3600.0)
    then = http_date(retry_after)
    return None if then is None else min(max(then - time.time(), 0.0), 3600.0)


def http_date(text: str) -> float | None:
    """``Sun, 06 Nov 1994 08:49:37 GMT`` as seconds since 1970; None if it is not of this form."""
    words = text.replace(":", " ").split()
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    if len(words) != 8 or words[7] != "GMT" or words[2] not in months:
        return None
    numbers = [words[index] for index in (1, 3, 4, 5, 6)]
    if not all(number.isdecimal() for number in numbers):
        return None
    day, year, hour, minute, second = map(int, numbers)
    import datetime as dt

    # 60 is a leap second, which datetime does not have
    month, second = months.index(words[2]) + 1, min(second, 59)
    try:
        then = dt.datetime(year, month, day, hour, minute, second, tzinfo=dt.UTC)
    except ValueError:
        return None
    return then.timestamp()


def _check_headers(headers: Mapping[str, str]) -> None:
    """Raises Refused, without telling the value: it may be a token."""
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise Refused(f"header {name} has characters that no header has", "look at its source")


def is_host(name: str) -> bool:
    """Whether this can be looked up: an address, or labels of a length that DNS has."""
    if not name.isascii() or not name.isprintable() or " " in name:
        return False
    return ":" in name or all(0 < len(label) < 64 for label in name.removesuffix(".").split("."))


def _close(connection: Connection | None) -> None:
    if connection is not None:
        connection.close()


def _share(deadline: float, rest: int) -> float:
    """The deadline for the next of `rest` endpoints: an equal share of the time that is left."""
    now = time.monotonic()
    return now + max(deadline - now, 0.0) / rest


def _connecting(deadline: float, until: float, rest: int) -> float:
    """The deadline for connecting to the next of `rest` endpoints."""
    if rest == 1:
        return until
    return min(until, time.monotonic() + _CONNECTING, _share(deadline, rest))


def _why_not_connected(error: OSError) -> Why:
    if isinstance(error, TimeoutError):
        return Why(
            "timed out",
            "look whether the store runs there, and what filters packets on the way",
            is_final=False,
        )
    if type(error).__name__ == "gaierror":
        text = f"the host's name has no address ({(error.strerror or '').lower()})"
        return Why(text, "correct the name, or this node's DNS", is_final=False)
    reason = (error.strerror or str(error)).lower()
    if isinstance(error, ConnectionRefusedError):
        remedy = "start the store there, or correct the endpoint"
    elif isinstance(error, ConnectionError):
        remedy = "look into the store's log, and what stands between"
    elif error.errno in (EHOSTUNREACH, ENETUNREACH):
        remedy = "look at this node's routes and interfaces"
    else:
        remedy = "look at this node's network"
    return Why(reason, remedy, is_final=False)
