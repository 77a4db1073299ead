"""HTTP/1.1 over one connection, with a deadline for everything: requests, answers, streams.

Not by http.client: its time-outs are of single reads, so a server that sends a byte a second holds
it as long as it likes; and it loads the email package, which the self-contained file does without.

    WireError
    ├── NotConnected   nothing was sent
    └── Broken         the request was sent, at least in part: what became of it is not known

(RFC 9112. Of answers: Content-Length, chunked, or until the connection's end; no compression, no
trailers kept, no redirections.)
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping

CUT_OFF = "the connection was closed before the answer's end"
NO_ANSWER = "the connection was closed without an answer"
NO_HANDSHAKE = "it closed the connection instead of speaking TLS"

_CHUNK = 1 << 16
_LARGEST_HEAD = 1 << 16
_LAST_WORD = 0.5  # seconds to wait for a reason, when the server has closed
_LONGEST_IDLE = 30.0  # seconds; whatever stands between may forget the connection later
_TLS_ALERT = b"\x15\x03"  # how a TLS server begins its answer to what is no TLS


class WireError(Exception):
    """`reason` is an OSError, or a text about the answer."""

    def __init__(self, reason: OSError | str) -> None:
        super().__init__(str(reason))
        self.reason = reason


class NotConnected(WireError):
    """Nothing was sent: the request has not happened."""


class Broken(WireError):
    """The request may have happened."""


class Address(NamedTuple):
    """The host and port of an endpoint. `url` is its name in messages."""

    url: str
    host: str
    port: int
    is_tls: bool


class Head(NamedTuple):
    """Status and header fields of an answer; their names are in lower case."""

    status: int
    headers: dict[str, str]


class Connection:
    """An open connection. `close` it; one that raised an error is closed."""

    def __init__(self, address: Address, sock: socket.socket) -> None:
        self.address = address
        self._sock = sock
        self._buffer = bytearray()
        self._process = os.getpid()
        self._used = time.monotonic()
        self._framing: tuple[str, int] = ("length", 0)
        self._keeps_open = False
        self._received = False

    @classmethod
    def open(
        cls, address: Address, context: ssl.SSLContext | None, server_name: str, deadline: float
    ) -> Connection:
        """Connect. Raises NotConnected.

        Name servers take the time that the node's resolver allows them, whatever the deadline is.
        """
        try:
            sock = _connect(address, deadline)
            try:
                # else the end of a request waits until the server has acknowledged its beginning
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if context is not None:
                    sock.settimeout(_left(deadline))
                    sock = _wrapped(context, sock, server_name)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            raise NotConnected(error) from error
        return cls(address, sock)

    def close(self) -> None:
        """Close; again is no error."""
        try:
            self._sock.close()
        except OSError:
            pass

    def is_usable(self) -> bool:
        """Whether another request can be sent: nobody has closed it, it is of this process."""
        if self._process != os.getpid() or not self._keeps_open or self._buffer:
            return False
        if time.monotonic() - self._used > _LONGEST_IDLE:
            return False
        try:
            self._sock.settimeout(0)
            self._sock.recv(1)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as error:
            # how TLS says that nothing has come; by the name, since `ssl` may not be loaded
            return type(error).__name__ == "SSLWantReadError"
        return False  # its end, or bytes that nobody asked for

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> None:
        """Send a request. Raises Broken."""
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{self.address.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        # of a method with a body, servers want to know that it is empty (RFC 9110 §8.6)
        if body or method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        data = memoryview("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        try:
            self._received = False
            while data:
                self._sock.settimeout(_left(deadline))
                data = data[self._sock.send(data[:_CHUNK]) :]
        except OSError as error:
            error = self._last_word(error)
            self.close()
            raise Broken(error) from error

    def _last_word(self, error: OSError) -> OSError:
        """Why a server has closed the connection while we send: perhaps it has said so."""
        try:
            self._sock.settimeout(_LAST_WORD)
            self._sock.recv(1)
        except OSError as said:
            if "ALERT" in str(said).upper():
                return said
        return error

    def head(self, deadline: float) -> Head:
        """Wait for an answer's beginning; then read its body. Raises Broken."""
        while True:
            head = self._read_head(deadline)
            # others are interim answers, and the real one follows (RFC 9110 §15.2)
            if head.status >= 200:
                break
        self._framing = _framing(head)
        connection = head.headers.get("connection", "").lower()
        self._keeps_open = "close" not in connection and self._framing[0] != "end"
        return head

    def body(self, limit: int, deadline: float) -> bytes:
        """The answer's whole body. Raises Broken, also if it has more than `limit` bytes."""
        chunks: list[bytes] = []
        size = 0
        for chunk in self.chunks(deadline):
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                self.close()
                raise Broken(f"the answer has more than {limit} bytes")
        self._used = time.monotonic()
        return b"".join(chunks)

    def chunks(self, deadline: float) -> Iterator[bytes]:
        """The answer's body, as it arrives. Raises Broken."""
        how, length = self._framing
        if how == "length":
            yield from self._exactly(length, deadline)
        elif how == "end":
            while data := self._some(deadline):
                yield data
        else:
            while size := self._chunk_size(deadline):
                yield from self._exactly(size, deadline)
                self._line(deadline)
            while self._line(deadline):  # trailers
                pass

    # --- reading ---

    def _read_head(self, deadline: float) -> Head:
        status_line = self._line(deadline)
        parts = status_line.split(b" ", 2)
        if not parts[0].startswith(b"HTTP/1.") or len(parts) < 2 or not _is_status(parts[1]):
            raise self._garbage(status_line)
        headers: dict[str, str] = {}
        size = 0
        while line := self._line(deadline):
            name, colon, value = line.decode("latin-1").partition(":")
            size += len(line)
            if not colon or size > _LARGEST_HEAD:
                raise self._garbage(line)
            headers[name.strip().lower()] = value.strip()
        return Head(int(parts[1]), headers)

    def _garbage(self, line: bytes) -> Broken:
        self.close()
        if line.startswith(_TLS_ALERT):
            return Broken("it speaks TLS, not plain HTTP")
        return Broken(f"the answer is not HTTP: {line[:40]!r}")

    def _chunk_size(self, deadline: float) -> int:
        line = self._line(deadline)
        try:
            size = int(line.partition(b";")[0].strip(), 16)
        except ValueError:
            raise self._garbage(line) from None
        if size < 0:
            raise self._garbage(line)
        return size

    def _line(self, deadline: float) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > _LARGEST_HEAD or self._buffer.startswith(_TLS_ALERT):
                raise self._garbage(bytes(self._buffer))
            self._fill(deadline)
        line = bytes(self._buffer[:end]).rstrip(b"\r")
        del self._buffer[: end + 1]
        return line

    def _exactly(self, length: int, deadline: float) -> Iterator[bytes]:
        while length:
            if not self._buffer:
                self._fill(deadline)
            part = bytes(self._buffer[:length])
            del self._buffer[: len(part)]
            length -= len(part)
            yield part

    def _some(self, deadline: float) -> bytes:
        """The bytes that have come, at least one; none at the connection's end."""
        if not self._buffer:
            self._receive(deadline)
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def _fill(self, deadline: float) -> None:
        if not self._receive(deadline):
            self.close()
            raise Broken(CUT_OFF if self._received else NO_ANSWER)

    def _receive(self, deadline: float) -> int:
        try:
            self._sock.settimeout(_left(deadline))
            data = self._sock.recv(_CHUNK)
        except OSError as error:
            self.close()
            raise Broken(error) from error
        self._buffer += data
        self._received = self._received or bool(data)
        return len(data)


def _left(deadline: float) -> float:
    """Seconds until then. Raises TimeoutError, if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _wrapped(context: ssl.SSLContext, sock: socket.socket, server_name: str) -> ssl.SSLSocket:
    """Speak TLS over a connection. Raises NotConnected, OSError.

    A server without TLS closes the connection; if it has not read all, the kernel resets it.
    """
    try:
        return context.wrap_socket(sock, server_hostname=server_name)
    except ConnectionError as error:
        raise NotConnected(NO_HANDSHAKE) from error


def _connect(address: Address, deadline: float) -> socket.socket:
    """Connect to the first of the host's addresses that answers. Raises the last one's OSError."""
    host = address.host.encode("ascii")  # as bytes: for a text Python loads tables of Unicode
    candidates = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, where) in enumerate(candidates):
        left = _left(deadline)
        sock = socket.socket(family, kind, protocol)
        try:
            # an address that is silent must leave time for the others
            sock.settimeout(left / (len(candidates) - number))
            sock.connect(where)
        except OSError:
            sock.close()
            if number == len(candidates) - 1:
                raise
        else:
            return sock
    raise OSError(f"{address.host} has no address")


def _is_status(text: bytes) -> bool:
    return len(text) == 3 and text.isdigit()


def _framing(head: Head) -> tuple[str, int]:
    """How to find the body's end, and the length if the fields tell it. Raises Broken."""
    # these have no body, whatever the fields say (RFC 9112 §6.3)
    if head.status in (204, 304):
        return "length", 0
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        return "chunked", 0
    length = head.headers.get("content-length")
    if length is None:
        return "end", 0
    if not length.isdecimal():
        raise Broken(f"the answer's Content-Length is {length[:40]!r}")
    return "length", int(length)
