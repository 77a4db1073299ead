"""Turning clients away that wait for a worker: they run by exec at once, instead of later."""

from __future__ import annotations

import os
import select
from _socket import MSG_DONTWAIT
from _socket import socket as Socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

from . import wire
from .slots import Slot, encode

_MOST = 256  # clients at a time: each needs a descriptor
_PATIENCE = 0.05  # seconds that the clients may take to say what they want, all together
_SILENCE = 60.0  # seconds between lines in the log


class Farewell:
    """Turns clients away, on behalf of the supervisor (this process) of these workers."""

    def __init__(self, build: str, workers: Sequence[Slot], log: Callable[[str], None]) -> None:
        self._build = build
        self._workers = workers
        self._log = log
        self._quiet_until = 0.0

    def turn_away(self, listener: Socket, now: float) -> None:
        """Turn away all clients that wait to be accepted; answer STATUS. Raises nothing."""
        deadline = monotonic() + _PATIENCE
        for conn in _accept(listener):
            with suppress(OSError):  # it is gone
                conn.send(self._answer(conn, deadline), MSG_DONTWAIT)
            conn.close()
        if now >= self._quiet_until:
            self._quiet_until = now + _SILENCE
            self._log("no worker is free for long: requests run by exec meanwhile")

    def _answer(self, conn: Socket, deadline: float) -> bytes:
        """Raises OSError."""
        if not _asks_for_status(conn, deadline):
            return wire.BUSY
        return wire.hello(self._build) + encode(self._build, os.getpid(), self._workers)


def _accept(listener: Socket) -> list[Socket]:
    clients: list[Socket] = []
    with suppress(OSError):  # there are no more clients, or no more descriptors
        while len(clients) < _MOST:
            fd, _ = listener._accept()  # type: ignore[attr-defined]  # with SOCK_CLOEXEC
            clients.append(Socket(fileno=fd))
    return clients


def _asks_for_status(conn: Socket, deadline: float) -> bool:
    """Does the client ask for the server's state? False if it says nothing. Raises OSError."""
    waiting = select.poll()
    waiting.register(conn.fileno(), select.POLLIN)
    waiting.poll(max(deadline - monotonic(), 0) * 1000)
    try:
        return conn.recv(len(wire.STATUS), MSG_DONTWAIT) == wire.STATUS
    except BlockingIOError:
        return False
