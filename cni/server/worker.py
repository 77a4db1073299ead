"""A worker: accepts connections, and serves one request at a time as the plugin's process would.

For the length of a request the worker takes on what the client's process has: environment, working
directory, umask, stderr. A signal to the client arrives here as a byte on the connection;
if the client dies, so does the worker, at once, like the plugin's process that it stands for. A
worker is used again after a request only if that left nothing behind (docs/design.md,
"The warm path").
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import signal
import struct
import sys
from _socket import AF_UNIX, MSG_DONTWAIT, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET
from _socket import socket as Socket
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from .. import dispatch, interrupts
from ..netns import namespace
from ..netns.executor import Executor, is_single_threaded
from . import trace
from .slots import Slot
from .wire import (
    UNKNOWN,
    BadRequest,
    Belongings,
    Place,
    Refused,
    Request,
    StatusAsked,
    answer,
    hello,
    receive,
    receive_go,
)

DRAIN = signal.SIGUSR1
# As numbers: the signal module, which makes enums of what it is given, takes ten times as long.
INTERRUPTS = tuple(map(int, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
_LOOK_EVERY = 32  # requests between looks at memory and descriptors
_PEER = struct.Struct("=iII")  # pid, user, group
_SPARE_FDS = 8  # what a library may keep open


class Limits(NamedTuple):
    """When a worker has done enough (requests served, resident memory in bytes), and for whom.

    What a client with other mounts names may be another file here: `any_mounts` serves it too.
    """

    requests: int = 2000
    memory: int = 256 << 20
    any_mounts: bool = False


class _Drained(BaseException):
    """The supervisor wants this worker to end, and it is idle."""


def _readiness(listener: Socket) -> select.epoll:
    """Readable when somebody connects, for one of the idle workers: always the same one.

    Blocked in accept(2) they would take turns, and each find its caches cold and its pages still to
    be copied. With EPOLLEXCLUSIVE the kernel wakes the first that waits, in the order in which they
    registered (epoll_ctl(2)). Who is overtaken waits in accept(2).
    """
    found = select.epoll()
    found.register(listener.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
    return found


class Worker:
    """The life of one worker process; `run` returns when it should end."""

    def __init__(
        self, listener: Socket, slots: list[Slot], number: int, build: str, limits: Limits
    ) -> None:
        self.listener = listener
        self.slots = slots
        self.slot = slots[number]
        self.build = build
        self.limits = limits
        self.ready = _readiness(listener)
        self.home = namespace.stay()
        self.hello = hello(build, Place.here(any_mounts=limits.any_mounts))
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.pid = os.getpid()
        self.supervisor = os.getppid()
        self.user = os.geteuid()
        self.environment = _Environment()
        self.watched: Socket | None = None  # the client's connection, during a verb
        self.draining = False
        self.idle = False
        self.served = 0
        self.fds = 0
        self.trace = trace.make()

    def run(self) -> None:
        """Serve until told to drain, worn out, or in doubt of itself."""
        signal.signal(DRAIN, self._on_drain)
        signal.signal(signal.SIGIO, self._on_io)
        interrupts.install()
        try:
            while not self.draining:
                conn = self._accept()
                try:
                    clean = self._serve(conn)
                finally:
                    conn.close()
                if not clean or not self._is_sound():
                    return
                Executor.provide()
        except _Drained:
            return

    def _on_drain(self, _number: int, _frame: object) -> None:
        self.draining = True
        if self.idle:
            raise _Drained

    def _accept(self) -> Socket:
        self.idle = True
        try:
            self.ready.poll()
            # accept4 with SOCK_CLOEXEC; a _socket object is made around the descriptor
            fd, _ = self.listener._accept()  # type: ignore[attr-defined]
        finally:
            self.idle = False
        self.trace.mark("accepted")
        return Socket(AF_UNIX, SOCK_STREAM, 0, fd)

    # --- one request ---

    def _serve(self, conn: Socket) -> bool:
        """Serve a connection; False if this process should not serve another."""
        if _PEER.unpack(conn.getsockopt(SOL_SOCKET, SO_PEERCRED, _PEER.size))[1] != self.user:
            return True
        try:
            request = receive(conn)
            conn.send(self.hello)
            # while the client wakes up
            self.environment.become(request.env)
            run = _begun(request)
            self.trace.mark("decoded")
            belongings = receive_go(conn)
            self.trace.mark("received")
        except StatusAsked:
            conn.sendall(self.hello + self._status())
        except Refused:
            self.slot.count_declined()
        except (BadRequest, OSError):
            pass
        else:
            return self._work(conn, request, belongings, run)
        return True

    def _work(
        self,
        conn: Socket,
        request: Request,
        belongings: Belongings,
        run: Callable[[], dispatch.Answer] | None,
    ) -> bool:
        self.slot.begin_request()
        try:
            if run is not None:
                return self._answer(conn, request, belongings, run)
            conn.send(UNKNOWN)
            return True
        except OSError:
            return False
        finally:
            belongings.close()
            self.slot.end_request()

    def _status(self) -> bytes:
        states = [slot.read() for slot in self.slots]
        return msgspec.json.encode(
            {
                "build": self.build,
                "pid": self.supervisor,
                "workers": len(states),
                "busy": sum(state.busy_since > 0 for state in states),
                "served": sum(state.served for state in states),
            }
        )

    def _answer(
        self,
        conn: Socket,
        request: Request,
        belongings: Belongings,
        run: Callable[[], dispatch.Answer],
    ) -> bool:
        """Be the plugin's process for a while."""
        interrupts.install()  # what came to an idle worker is nobody's
        self._watch(conn)
        self._take_on(request, belongings)
        self.trace.mark("ready")
        try:
            try:
                code, output, clean = run()
                self.trace.mark("encoded")
            finally:
                self.watched = None
            conn.sendall(answer(code, output))  # the client need not wait for the rest
            self.trace.mark("replied")
        finally:
            self._put_off()
        self.trace.end(f"{request.env.get('CNI_COMMAND')} {request.called_as}")
        return clean

    def _take_on(self, request: Request, belongings: Belongings) -> None:
        sys.argv[:] = [request.called_as]
        os.fchdir(belongings.cwd)
        os.umask(request.umask)
        os.dup2(belongings.stderr, 2)
        netns = request.env.get("CNI_NETNS", "")
        namespace.hand_over(netns, belongings.netns, *belongings.take())

    def _put_off(self) -> None:
        interrupts.install()
        namespace.hand_over("", None)
        os.dup2(self.null, 2)
        os.umask(0o022)
        os.chdir("/")

    def _watch(self, conn: Socket) -> None:
        """Have SIGIO tell when the client dies, or is sent a signal."""
        self.watched = conn
        fd = conn.fileno()
        fcntl.fcntl(fd, fcntl.F_SETOWN, self.pid)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR | os.O_ASYNC)
        self._on_io()  # what came before

    def _on_io(self, *_: object) -> None:
        if self.watched is None:
            return
        try:
            data = self.watched.recv(16, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            os._exit(1)  # the runtime killed the plugin: it does nothing more
        if data[-1] in INTERRUPTS:
            signal.raise_signal(data[-1])

    # --- between requests ---

    def _is_sound(self) -> bool:
        """Is this process as it was before the request, and not worn out?"""
        self.served += 1
        if self.served >= self.limits.requests or namespace.own_identity() != self.home:
            return False
        if not is_single_threaded():
            return False
        if self.served % _LOOK_EVERY:
            return True
        gc.collect(1)
        open_fds = len(os.listdir("/proc/self/fd"))
        self.fds = self.fds or open_fds
        return open_fds <= self.fds + _SPARE_FDS and _resident() <= self.limits.memory


def _begun(request: Request) -> Callable[[], dispatch.Answer] | None:
    """What runs the request, decoded; None if there is no such plugin here."""
    name = request.called_as.rpartition("/")[2]
    if name not in dispatch.TABLE:
        return None
    return dispatch.begin(name, request.env, lambda: request.stdin, convert=True)


class _Environment:
    """What os.environ has, which takes long to ask: it decodes every variable.

    Most of it is what the client before had, too. What differs are the variables of the protocol:
    those are the request's, and nobody looks for them here. Programs that are run get theirs.
    """

    def __init__(self) -> None:
        self._have = os.environ.copy()

    def become(self, env: dict[str, str]) -> None:
        wanted = {key: value for key, value in env.items() if not key.startswith("CNI_")}
        if wanted == self._have:
            return
        for key in self._have.keys() - wanted.keys():
            del os.environ[key]
        for key, value in wanted.items():
            if self._have.get(key) != value:
                os.environ[key] = value
        self._have = wanted


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * 4096
