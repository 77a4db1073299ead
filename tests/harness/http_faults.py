"""A real HTTP server that misbehaves, in a network namespace: each connection as it is told."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

from .wait import wait_until

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from .netns import Netns


class FaultyServer:
    """Serves each connection by the next of `behaviours`, the last one again and again.

    `requests` are those that arrived; `connections` and `closed` count connections.
    """

    def __init__(
        self,
        ns: Netns,
        *behaviours: Callable[[FaultyServer, socket.socket], None],
        port: int = 0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = 0
        self.over = threading.Event()
        self._behaviours = list(behaviours)
        self._context = context
        self._open: list[socket.socket] = []
        self._listener = ns.run(socket.create_server, ("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http{'s' if self._context else ''}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.over.set()
        for sock in (self._listener, *self._open):
            try:
                # close() alone does not wake a thread that sleeps in accept() or recv().
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()
        self._thread.join(30)

    def _serve(self) -> None:
        while not self.over.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        try:
            if self._context is not None:
                # This detaches the old socket: only the new one can be shut down.
                sock = self._context.wrap_socket(sock, server_side=True)
                self._open.append(sock)
            behave = self._behaviours[min(self.connections, len(self._behaviours)) - 1]
            behave(self, sock)
        except OSError:
            pass
        finally:
            try:
                sock.close()
            except OSError:
                pass
            self.closed += 1

    def await_closed(self) -> None:
        """Wait until all connections are closed: no request is sent into one that just closes."""
        wait_until(lambda: self.closed == self.connections, "the connections are closed")

    def receive(self, sock: socket.socket) -> bytes:
        """A whole request; empty at the connection's end."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        while len(body) < length:
            body += sock.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def saying(data: bytes, *, then_close: bool = False) -> Any:
    """Answer every request with these bytes."""

    def behave(server: FaultyServer, sock: socket.socket) -> None:
        while server.receive(sock):
            sock.sendall(data)
            if then_close:
                return

    return behave


def hanging(server: FaultyServer, sock: socket.socket) -> None:
    """Read the request, and never answer."""
    server.receive(sock)
    server.over.wait(120)


def mute(server: FaultyServer, sock: socket.socket) -> None:
    """Do not even read."""
    server.over.wait(120)


def resetting(after: bytes = b"") -> Any:
    """Read the request, send a part of an answer, and reset the connection."""

    def behave(server: FaultyServer, sock: socket.socket) -> None:
        server.receive(sock)
        if after:
            sock.sendall(after)
        # Linger for 0 seconds: the close sends RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return behave


def dripping(data: bytes) -> Any:
    """Send a byte every half second."""

    def behave(server: FaultyServer, sock: socket.socket) -> None:
        server.receive(sock)
        for byte in data:
            sock.sendall(bytes([byte]))
            if server.over.wait(0.5):
                return

    return behave
