"""The supervisor's side of the observer (cni.server.observer): its sockets and its process.

Requests do not depend on the observer. If an address cannot be used, that is logged, and tried
again; an observer that ends is started again after a pause.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from .. import systemd
from .child import PAUSE, Child
from .counts import Counts
from .recording import Spans
from .slots import Slot

if TYPE_CHECKING:
    from ..record.exposition import Family
    from .otlp import Settings

_BACKLOG = 16


class Address(NamedTuple):
    """The address for scrapes: a path, or an IP address and a port."""

    text: str
    path: str = ""
    host: str = ""
    port: int = 0


class Wanted(NamedTuple):
    """The observer's tasks. `collect` reads the node's state, `otlp` is where spans are sent."""

    address: Address | None = None
    file: str = ""
    collect: Callable[[], list[Family]] = list
    otlp: Settings | None = None

    @property
    def is_anything(self) -> bool:
        """Has the observer any task?"""
        return bool(self.address or self.file or self.otlp)


def parse_address(text: str) -> Address:
    """``127.0.0.1:9464``, ``[::1]:9464``, ``9464`` and ``:9464`` (of loopback), ``unix:/path``.

    Raises ValueError.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError("a socket's path begins with /")
        return Address(text, path=path)
    from ipaddress import ip_address

    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError("write ADDRESS:PORT, or unix:/path")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bare = "127.0.0.1" if bare in ("", "localhost") else bare
    if ":" in bare and bare == host:
        raise ValueError("an IPv6 address is in brackets: [::1]:9464")
    return Address(text, host=str(ip_address(bare)), port=int(port))


class Observing(Child):
    """Keeps the observer running."""

    name = "cni-observer"
    what = "the process for metrics"

    def __init__(
        self,
        wanted: Wanted,
        server: str,
        build: str,
        counts: Sequence[Counts],
        slots: Sequence[Slot],
        log: Callable[[str], None],
        prepare: Callable[[], None],
    ) -> None:
        super().__init__(log, prepare)
        self._wanted = wanted
        self._build = build
        self._counts = counts
        self._slots = slots
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None  # device and inode of the listener's file
        self._problem = ""
        self._inbox: socket.socket | None = None  # the socket for spans
        self.spans: Spans | None = None
        if wanted.otlp is not None:
            from .otlp import sampler

            self.spans = Spans(f"{server}.spans", sampler(wanted.otlp))

    def keep(self) -> None:
        """Open sockets and start the process, if they are missing and due. Raises nothing."""
        wanted = self._wanted
        if time.monotonic() < self._due or not wanted.is_anything:
            return
        if self.spans is not None and self._inbox is None:
            self._open_inbox(self.spans.path)
        if wanted.address is not None and self._listener is None:
            if self._listen(wanted.address):
                self.end()  # the process that runs does not have the new listener
            self._due = time.monotonic() + PAUSE
        if not self._pid and (self._listener or self._inbox or wanted.file):
            self._start(self._complain)

    def _listen(self, address: Address) -> bool:
        """Listen on the address; False if that failed."""
        try:
            if address.path:
                self._listener = systemd.listen_unix(address.path, _BACKLOG)
                self._identity = systemd.identity(address.path)
            else:
                family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
                self._listener = socket.create_server(
                    (address.host, address.port), family=family, backlog=_BACKLOG
                )
        except OSError as error:
            said = (error.strerror or str(error)).lower()
            self._complain(
                f"no metrics on {address.text}: {said}; requests are served all the same, and it "
                f"is tried again every {PAUSE:.0f} s"
            )
        else:
            self._problem = ""
            self._log(f"metrics on {address.text}")
        return self._listener is not None

    def _open_inbox(self, path: str) -> None:
        """Make the socket for spans, to which only this user may send."""
        self._inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        umask = os.umask(0o177)
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)  # an earlier server's: two servers do not share a socket
            self._inbox.bind(path)
        except OSError as error:
            self._complain(f"no spans on {path}: {error.strerror or error}")
        finally:
            os.umask(umask)

    def _complain(self, problem: str) -> None:
        """Log a lasting problem once."""
        if problem != self._problem:
            self._problem = problem
            self._log(problem)

    def run(self) -> None:
        """Serve metrics, write their file and send spans, until SIGTERM."""
        from .. import __version__
        from .observer import Plan, run  # asyncio: only this process needs it

        run(
            Plan(
                self._build,
                __version__,
                self._counts,
                self._slots,
                self._listener,
                self._wanted.file,
                self._wanted.collect,
                self._inbox,
                self._wanted.otlp,
                self._log,
            )
        )

    def close(self) -> None:
        """End the observer, and stop listening."""
        self.end()
        if self._inbox is not None and self.spans is not None:
            self._inbox.close()
            self._inbox = None
            with suppress(OSError):
                os.unlink(self.spans.path)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        address = self._wanted.address
        there = systemd.identity(address.path) if address is not None and address.path else None
        if address is not None and there is not None and there == self._identity:
            with suppress(OSError):
                os.unlink(address.path)
