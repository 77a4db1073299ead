"""A worker: accepts connections, and serves one request at a time as the plugin's process would.

For the length of a request the worker takes on what the client's process has: environment, working
directory, umask, stdout, stderr. A signal to the client arrives here as a byte on the connection;
if the client dies, so does the worker, at once, like the plugin's process that it stands for. A
worker is used again after a request only if that left nothing behind (design.md §5).
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import struct
import sys
from _socket import MSG_DONTWAIT, SO_PEERCRED, SO_RCVTIMEO, SOL_SOCKET
from _socket import socket as Socket
from typing import NamedTuple

import msgspec

from .. import dispatch
from ..netns import namespace
from . import trace
from .board import Slot
from .wire import EXIT, UNKNOWN, WRITING, BadRequest, Refused, Request, StatusAsked, hello, receive

DRAIN = signal.SIGUSR1
INTERRUPTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_EVERY = 32  # requests between looks at memory and descriptors
_RECEIVE_TIMEOUT = struct.pack("ll", 10, 0)
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
        self.home = namespace.own_identity()
        mounts = 0 if limits.any_mounts else os.stat("/proc/self/ns/mnt").st_ino
        self.hello = hello(build, self.home, mounts)
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.draining = False
        self.idle = False
        self.served = 0
        self.fds = 0
        self.trace = trace.make()

    def run(self) -> None:
        """Serve until told to drain, worn out, or in doubt of itself."""
        signal.signal(DRAIN, self._on_drain)
        try:
            while not self.draining:
                conn = self._accept()
                try:
                    clean = self._serve(conn)
                finally:
                    conn.close()
                if not clean or not self._is_sound():
                    return
        except _Drained:
            return

    def _on_drain(self, _number: int, _frame: object) -> None:
        self.draining = True
        if self.idle:
            raise _Drained

    def _accept(self) -> Socket:
        self.idle = True
        try:
            # accept4 with SOCK_CLOEXEC; a _socket object is made around the descriptor
            fd, _ = self.listener._accept()  # type: ignore[attr-defined]
        finally:
            self.idle = False
        self.trace.mark("accepted")
        return Socket(fileno=fd)

    # --- one request ---

    def _serve(self, conn: Socket) -> bool:
        """Serve a connection; False if this process should not serve another."""
        conn.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _RECEIVE_TIMEOUT)
        if not _is_same_user(conn):
            return True
        try:
            conn.send(self.hello)
            request = receive(conn)
            self.trace.mark("received")
        except StatusAsked:
            conn.sendall(self._status())
        except Refused:
            self.slot.refused()
        except (BadRequest, OSError):
            pass
        else:
            return self._work(conn, request)
        return True

    def _work(self, conn: Socket, request: Request) -> bool:
        self.slot.begin()
        try:
            if os.path.basename(request.called_as) in dispatch.TABLE:
                return self._answer(conn, request)
            conn.send(UNKNOWN)
            return True
        except OSError:
            return False
        finally:
            request.close()
            self.slot.end()

    def _status(self) -> bytes:
        lines = [slot.read() for slot in self.slots]
        return msgspec.json.encode(
            {
                "build": self.build,
                "workers": len(lines),
                "busy": sum(line[1] > 0 for line in lines),
                "served": sum(line[3] for line in lines),
            }
        )

    def _answer(self, conn: Socket, request: Request) -> bool:
        """Be the plugin's process for a while."""
        self._watch(conn)
        self._take_on(request)
        self.trace.mark("ready")
        name = os.path.basename(request.called_as)
        try:
            try:
                code, output, clean = dispatch.serve(name, request.env, lambda: request.stdin)
                self.trace.mark("encoded")
                conn.send(WRITING)
                code = _write(output) or code
            finally:
                _unwatch(conn)
            conn.send(EXIT + bytes((code,)))  # the client need not wait for the rest
            self.trace.mark("replied")
        finally:
            self._put_off()
        self.trace.end(f"{request.env.get('CNI_COMMAND')} {name}")
        return clean

    def _take_on(self, request: Request) -> None:
        _set_environment(request.env)
        sys.argv[:] = [request.called_as]
        os.fchdir(request.cwd)
        os.umask(request.umask)
        os.dup2(request.stdout, 1)
        os.dup2(request.stderr, 2)
        namespace.hand_over(request.env.get("CNI_NETNS", ""), request.container_netns)
        for number in INTERRUPTS:
            signal.signal(number, dispatch.terminate)

    def _put_off(self) -> None:
        for number in INTERRUPTS:
            signal.signal(number, signal.SIG_IGN)
        namespace.hand_over("", None)
        os.dup2(self.null, 1)
        os.dup2(self.null, 2)
        os.umask(0o022)
        os.chdir("/")

    def _watch(self, conn: Socket) -> None:
        """Have SIGIO tell when the client dies, or is sent a signal."""

        def on_io(_number: int, _frame: object) -> None:
            try:
                data = conn.recv(16, MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                os._exit(1)  # the runtime killed the plugin: it does nothing more
            if data[-1] in INTERRUPTS:
                signal.raise_signal(data[-1])

        signal.signal(signal.SIGIO, on_io)
        fcntl.fcntl(conn.fileno(), fcntl.F_SETOWN, os.getpid())
        _set_async(conn, True)
        on_io(0, None)  # what came before

    # --- between requests ---

    def _is_sound(self) -> bool:
        """Is this process as it was before the request, and not worn out?"""
        self.served += 1
        if self.served >= self.limits.requests or namespace.own_identity() != self.home:
            return False
        if len(os.listdir("/proc/self/task")) != 1:
            return False
        if self.served % _LOOK_EVERY:
            return True
        gc.collect(1)
        open_fds = len(os.listdir("/proc/self/fd"))
        self.fds = self.fds or open_fds
        return open_fds <= self.fds + _SPARE_FDS and _resident() <= self.limits.memory


def _set_environment(wanted: dict[str, str]) -> None:
    """Have this environment; most of it is what the client before had, too."""
    have = os.environ.copy()
    for key in have.keys() - wanted.keys():
        del os.environ[key]
    for key, value in wanted.items():
        if have.get(key) != value:
            os.environ[key] = value


def _unwatch(conn: Socket) -> None:
    _set_async(conn, False)
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def _set_async(conn: Socket, wanted: bool) -> None:
    flags = fcntl.fcntl(conn.fileno(), fcntl.F_GETFL)
    flags = flags | os.O_ASYNC if wanted else flags & ~os.O_ASYNC
    fcntl.fcntl(conn.fileno(), fcntl.F_SETFL, flags)


def _is_same_user(conn: Socket) -> bool:
    _, uid, _ = struct.unpack("iII", conn.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
    return bool(uid == os.geteuid())


def _write(output: bytes) -> int:
    """Output to the client's stdout; the exit code if that fails."""
    view = memoryview(output)
    try:
        while view:
            view = view[os.write(1, view) :]
    except OSError as error:
        os.write(2, f"cni: cannot write to stdout: {error.strerror}\n".encode())
        return 1
    return 0


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * 4096
