"""An exchange with a server: send, wait, repeat; and the code that both DHCP versions share."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import msgspec

from ...protocol.address import Prefix

T = TypeVar("T")

FIRST_PAUSE = 1.0  # seconds until a message is sent again; doubles
_LONGEST_PAUSE = 30.0
_BURST = 32  # packets read in one go: a flood on one link must not starve the others
_PACKET = 65536
_FOREVER = float("inf")


class NoAnswer(Exception):
    """No server answered in time; the text says which packets were received."""


class Refused(Exception):
    """A server says that the address is not leased to us (NAK, NoBinding)."""


class Settings(NamedTuple):
    """The daemon's flags: times in seconds, and whether servers shall answer by broadcast."""

    timeout: float = 10.0
    resend_max: float = 62.0
    resend_timeout: float = 208.0
    broadcast: bool = False

    @property
    def patience(self) -> float:
        """The seconds for which a message is repeated: as in the reference, 1 + 2 + 4 timeouts."""
        return 7 * self.timeout


class Times(NamedTuple):
    """When to renew, to rebind, and when the lease ends, by `now()`."""

    t1: float
    t2: float
    expires: float


class Lease(msgspec.Struct):
    """What a server granted: `address` (packed) with the prefix `length`, until `expires`.

    Times are those of `now()`; None in a lease without an end. `options` are DHCP's, by code.
    """

    address: bytes
    length: int
    server: bytes
    t1: float | None
    t2: float | None
    expires: float | None
    options: dict[int, bytes]

    @property
    def prefix(self) -> Prefix:
        return Prefix(self.address, self.length)

    @property
    def prefixes(self) -> list[Prefix]:
        """The interface's addresses."""
        return [self.prefix]

    @property
    def leased(self) -> list[Prefix]:
        """What the server has granted."""
        return [self.prefix]

    @property
    def discarded(self) -> Prefix | None:
        """The delegated prefix, of which the container discards what no other route takes."""
        return None

    @property
    def times(self) -> Times:
        return Times(*(_FOREVER if t is None else t for t in (self.t1, self.t2, self.expires)))

    def end(self) -> None:
        """Make the lease expired."""
        self.t1 = self.t2 = self.expires = 0.0


def describe(lease: Lease | None) -> str:
    """What is leased, for the log: ``fd55::50/64, fd77::/56``."""
    return "nothing" if lease is None else ", ".join(map(str, lease.leased))


def now() -> float:
    """Seconds since boot, including those in which the machine slept.

    Neither setting the clock nor restarting the daemon changes it.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def jitter(value: float, spread: float) -> float:
    """`value` plus or minus up to `spread`, so that many clients do not send at the same time."""
    return value + random.uniform(-spread, spread)  # noqa: S311


class Closer:
    """Closes sockets in threads: closing a packet socket takes up to 40 ms."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(4, "close")

    def close(self, sock: socket.socket) -> None:
        self._pool.submit(sock.close)

    def finish(self) -> None:
        self._pool.shutdown()


async def ask(
    sock: socket.socket,
    send: Callable[[], object],
    accept: Callable[[bytes, Any], T | None],
    until: float,
    pause: float = FIRST_PAUSE,
    lesser: Callable[[], T | None] = lambda: None,
) -> T:
    """Send, and return the first value of `accept(data, source)` for a packet that is not None.

    If there is none when a pause ends, `lesser()` is returned, unless it is None, too.
    `send` is called again after `pause` seconds, then after twice that, and so on. Raises NoAnswer
    at `until`, a time of `now()`.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    problem = ""

    def readable() -> None:
        for _ in range(_BURST):
            try:
                accepted = accept(*sock.recvfrom(_PACKET))
            except OSError:  # no (more) packets; or the link is down for a moment
                return
            if accepted is not None and not answer.done():
                answer.set_result(accepted)

    loop.add_reader(sock, readable)
    try:
        while True:
            try:
                send()
            except OSError as error:  # the link is down, or the queue full: a lost packet
                problem = f": {error.strerror}"
            wait = min(jitter(pause, pause / 10), until - now())
            if wait <= 0:
                raise NoAnswer("no server answered" + problem)
            await asyncio.wait((answer,), timeout=wait)
            if answer.done():
                return answer.result()
            if (accepted := lesser()) is not None:
                return accepted
            pause = min(pause * 2, _LONGEST_PAUSE)
    finally:
        loop.remove_reader(sock)
