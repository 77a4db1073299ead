"""Clients from accept(2) to their go: no client keeps a worker from serving others.

A client should send its request at once, and its go soon after the hello. A slower client is put
aside: the worker waits for all such clients together with the listening socket, and serves the
first one that is complete. A client that takes too long is dismissed. When a worker begins a
request, it declines the clients that it has greeted, so that they need not wait for its end.
"""

from __future__ import annotations

import select
import struct
from _socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    SO_RCVTIMEO,
    SOCK_STREAM,
    SOL_SOCKET,
)
from _socket import socket as Socket
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

from . import wire
from .peer import Gate

T = TypeVar("T")

_CHUNK = 16384  # most requests are smaller
_LIFETIME = 10.0  # seconds that a client may take
_MAX_WAITING = 256  # clients that are put aside
_MAX_BUFFERED = 64 << 20  # bytes of their requests
# How long a worker waits for one client alone, in seconds: as long as a busy machine needs to let
# the client run. Shorter while other clients are put aside, and 0 while more than a few are: the
# delay by silent connections must not grow with their number.
_REQUEST_WAIT, _GO_WAIT, _SHORT_WAIT = 0.02, 0.25, 0.002
_FEW = 4  # clients
_TIMEVAL = struct.Struct("@ll")  # seconds, microseconds


class Client(Generic[T]):
    """A connection and the data received so far.

    `prepared` is the value of `prepare` for its request, `descriptors` are those of its go.
    `deadline` is 0 until the client is put aside.
    """

    request: wire.Request
    prepared: T
    descriptors: wire.Descriptors

    def __init__(self, conn: Socket, pid: int) -> None:
        self.conn = conn
        self.pid = pid
        self.data: bytes | bytearray = b""  # of the request
        self.greeted = False
        self.deadline = 0.0

    def decline(self) -> None:
        """Tell the client to run the plugin itself, and close the connection. Raises nothing."""
        try:
            if self.greeted:
                self.conn.send(wire.DECLINED, MSG_DONTWAIT)
        except OSError:
            pass  # it is gone
        self.conn.close()


class Reception(Generic[T]):
    """Accepts connections on `listener`, which must be non-blocking, and returns complete requests.

    `prepare` is called with each request while its client wakes up; `status` returns the answer to
    STATUS; `on_leave` is called when a client leaves after the hello.
    """

    def __init__(
        self,
        listener: Socket,
        gate: Gate,
        hello: bytes,
        prepare: Callable[[wire.Request], T],
        status: Callable[[], bytes],
        on_leave: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._gate = gate
        self._hello = hello
        self._prepare = prepare
        self._status = status
        self._on_leave = on_leave
        self._waiting: dict[int, Client[T]] = {}  # by descriptor
        self._parser = wire.Parser()
        # accept(2) would wake the workers in turn, each with cold caches and pages still to be
        # copied. With EPOLLEXCLUSIVE the kernel wakes the first waiting one, in the order in which
        # they registered (epoll_ctl(2)).
        self._poll = select.epoll()
        self._poll.register(listener.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def __len__(self) -> int:
        """The number of clients that are put aside."""
        return len(self._waiting)

    def wait(self) -> list[int]:
        """Wait, idle, for the listener or clients; return the descriptors for `receive`."""
        if not self._waiting:
            return [fd for fd, _ in self._poll.poll()]
        deadline = min(client.deadline for client in self._waiting.values())
        return [fd for fd, _ in self._poll.poll(max(deadline - monotonic(), 0))]

    def receive(self, fd: int) -> Client[T] | None:
        """Continue with the client on `fd`, or accept one; return the client if it is ready."""
        client = self._waiting.pop(fd, None)
        if client is None:
            client = self._accept()
            if client is None:
                return None
        else:
            self._poll.unregister(fd)
        if not self._advance(client):
            return None
        if self._waiting:
            for other in [each for each in self._waiting.values() if each.greeted]:
                self._forget(other)
        return client

    def expire(self) -> None:
        """Dismiss the clients that have taken too long."""
        now = monotonic()
        for client in [each for each in self._waiting.values() if each.deadline <= now]:
            self._forget(client)

    def close(self) -> None:
        """Dismiss all clients."""
        for client in list(self._waiting.values()):
            self._forget(client)
        self._poll.close()

    def _accept(self) -> Client[T] | None:
        try:
            # accept4 with SOCK_CLOEXEC; a _socket object is made around the descriptor
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, ConnectionAbortedError):
            return None  # another worker was quicker, or the client is gone
        conn = Socket(AF_UNIX, SOCK_STREAM, 0, fd)
        pid = self._gate.connected(conn)
        if pid is not None:
            return Client(conn, pid)
        conn.close()
        return None

    def _advance(self, client: Client[T]) -> bool:
        """Read the available data; True if the client is ready, else it waits or is gone."""
        try:
            seconds = 0.0
            if not client.greeted:
                if not self._read_request(client):
                    self._put_aside(client)
                    return False
                self._greet(client)
                waiting = self._waiting and sum(each.greeted for each in self._waiting.values())
                seconds = _patience(_GO_WAIT, waiting or 0)
            named_pid = self._read_go(client, seconds)
        except wire.StatusRequested:
            self._answer_status(client)
            return False
        except (wire.BadRequest, OSError):
            client.conn.close()
            return False
        if named_pid is None:
            self._put_aside(client)
            return False
        if self._gate.admits(client.conn, client.pid, named_pid, client.descriptors.root):
            return True
        client.descriptors.close()
        client.decline()
        return False

    def _read_request(self, client: Client[T]) -> bool:
        """Read; is the request complete? Raises wire.BadRequest, StatusRequested, OSError."""
        data = client.data
        missing = 1
        end = 0.0
        while missing:
            try:
                piece = client.conn.recv(max(missing, _CHUNK), MSG_DONTWAIT)
            except BlockingIOError:
                now = monotonic()
                if not client.deadline and not end:
                    end = now + _patience(_REQUEST_WAIT, len(self._waiting))
                if now >= end or not _is_readable(client.conn, end - now):
                    client.data = data
                    return False
                continue
            if not piece:
                raise wire.BadRequest("the client is gone")
            if not data:
                data = piece  # in most cases the whole request
            elif isinstance(data, bytearray):
                data += piece
            else:
                data = bytearray(data + piece)
            missing = wire.missing(data)
        client.data = data
        return True

    def _greet(self, client: Client[T]) -> None:
        """Send the hello, then prepare the request meanwhile. Raises BadRequest, OSError."""
        client.request = self._parser.parse(client.data)
        client.data = b""
        client.conn.send(self._hello)
        client.greeted = True
        client.prepared = self._prepare(client.request)

    def _read_go(self, client: Client[T], seconds: float) -> int | None:
        """The process that the go names, 0 for none; None if no go comes within `seconds`.

        Raises wire.BadRequest, OSError.
        """
        conn, flags = client.conn, MSG_CMSG_CLOEXEC
        try:
            # in most cases it has come while the request was prepared
            message = conn.recvmsg(2, wire.ANCILLARY_SIZE, flags | MSG_DONTWAIT)
        except BlockingIOError:
            if not seconds:
                return None
            conn.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _TIMEVAL.pack(0, int(seconds * 1e6)))
            try:
                message = conn.recvmsg(2, wire.ANCILLARY_SIZE, flags)
            except BlockingIOError:
                return None
        if not message[0]:
            self._on_leave()
        client.descriptors, named_pid = wire.parse_go(message[0], message[1])
        return named_pid

    def _answer_status(self, client: Client[T]) -> None:
        try:
            client.conn.send(self._hello + self._status(), MSG_DONTWAIT)
        except OSError:
            pass  # it is gone
        client.conn.close()

    def _put_aside(self, client: Client[T]) -> None:
        fd = client.conn.fileno()
        client.deadline = client.deadline or monotonic() + _LIFETIME
        self._poll.register(fd, select.EPOLLIN)
        self._waiting[fd] = client
        buffered = sum(len(each.data) for each in self._waiting.values())
        while len(self._waiting) > _MAX_WAITING or buffered > _MAX_BUFFERED:
            oldest = min(self._waiting.values(), key=lambda each: each.deadline)
            buffered -= len(oldest.data)
            self._forget(oldest)

    def _forget(self, client: Client[T]) -> None:
        fd = client.conn.fileno()
        self._poll.unregister(fd)
        del self._waiting[fd]
        client.decline()


def _patience(alone: float, others: int) -> float:
    """Seconds to wait for one client while `others` are put aside; `alone` if there are none."""
    if not others:
        return alone
    return _SHORT_WAIT if others <= _FEW else 0.0


def _is_readable(conn: Socket, seconds: float) -> bool:
    """Is there data, or the end of the connection, within `seconds`? Raises OSError."""
    waiting = select.poll()
    waiting.register(conn.fileno(), select.POLLIN)
    return bool(waiting.poll(seconds * 1000))
