"""A worker: accepts connections, and serves one request at a time as the plugin's process would.

During a request the worker adopts the client's environment, working directory, umask and stderr. A
signal to the client arrives here as a byte on the connection; if the client dies, the worker ends
at once, as the plugin's own process would. A worker serves another request only if this one left
nothing behind (docs/design.md, "The warm path").
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import struct
import sys
from _socket import MSG_DONTWAIT, SO_RCVTIMEO, SOL_SOCKET
from _socket import socket as Socket
from collections.abc import Callable, Mapping
from time import monotonic
from typing import NamedTuple

from .. import dispatch, interrupts
from ..files import open_null
from ..kernel import sysctl
from ..netns import namespace
from ..netns.executor import Executor
from ..protocol.errors import IOFailure
from . import slots, trace, wire
from .counts import Counts
from .peer import Gate
from .reception import Client, Reception
from .recording import Recorder, Spans
from .slots import Mark, Slot

DRAIN = signal.SIGUSR1
# As numbers: the signal module, which makes enums of its arguments, takes ten times as long.
INTERRUPTS = tuple(map(int, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
_CHECK_INTERVAL = 32  # requests between checks of memory and descriptors
_REPORT_TIMEOUT = 10.0  # seconds for a client to take a result, and to write it
_OWN_LINKS = 2  # of a directory without subdirectories
_SPARE_FDS = 8  # descriptors that a library may keep open

# A function that runs the decoded request; None if there is no such plugin here.
Run = Callable[[], dispatch.Answer] | None


class Limits(NamedTuple):
    """When a worker ends (requests served, resident memory in bytes), and whom it serves.

    For a client with other mounts a path may name another file: `any_mounts` serves such clients,
    too.
    """

    requests: int = 2000
    memory: int = 256 << 20
    any_mounts: bool = False


class Server(NamedTuple):
    """A worker's view of its server: build id, supervisor's pid, slots of all workers.

    `pids` are the processes that clients may name as the server (`peer.Gate`), `env` is the
    server's environment, `node_file` the mark of the node's settings for the request log.
    `counts` and `spans` are where this worker counts requests and sends their spans; None if that
    is switched off.
    """

    build: str
    pid: int
    slots: list[Slot]
    pids: frozenset[int]
    env: Mapping[str, str]
    node_file: Mark
    counts: Counts | None = None
    spans: Spans | None = None


class _Drained(BaseException):
    """The supervisor wants this worker to end, and it is idle."""


class Worker:
    """The life of one worker process; `run` returns when it should end."""

    def __init__(self, listener: Socket, server: Server, number: int, limits: Limits) -> None:
        self.server = server
        self.slot = server.slots[number]
        self.limits = limits
        self.home = namespace.stay()
        self.process = _OwnProcess()
        sysctl.keep_open()
        self.reception: Reception[Run] = Reception(
            listener,
            Gate(server.pids, any_mounts=limits.any_mounts),
            wire.hello(server.build),
            self._prepare,
            lambda: slots.encode(server.build, server.pid, server.slots),
            self.slot.count_declined,
        )
        self.null = open_null()
        self.pid = os.getpid()
        self.environment = _Environment()
        self.conn: Socket | None = None  # the client's connection, until the reply is sent
        self.watched: Socket | None = None  # the same connection, while it may announce a signal
        self.draining = False
        self.idle = False
        self.served = 0
        self.fds = 0
        self.trace = trace.make()
        self.recorder = Recorder(server.node_file, server.env, server.counts, server.spans)

    def run(self) -> None:
        """Serve until the supervisor drains this worker, or it reaches a limit, or is not clean."""
        signal.signal(DRAIN, self._on_drain)
        signal.signal(signal.SIGIO, self._on_io)
        interrupts.install()
        try:
            while not self.draining and self._serve_next():
                pass
        except _Drained:
            pass
        finally:
            self.reception.close()

    def _on_drain(self, _number: int, _frame: object) -> None:
        self.draining = True
        if self.idle:
            raise _Drained

    def _serve_next(self) -> bool:
        """Wait, and serve a client if one is ready; False if this worker should end."""
        self.idle = True
        try:
            ready = self.reception.wait()
        finally:
            self.idle = False
        self.trace.mark("accepted")
        for fd in ready:
            client = self.reception.receive(fd)
            if client is None:
                continue
            self.trace.mark("received")
            if not self._serve(client) or not self._is_reusable():
                return False
            Executor.provide()
            return True
        if len(self.reception):
            self.reception.expire()
        return True

    # --- one request ---

    def _prepare(self, request: wire.Request) -> Run:
        """Decode the request, which changes nothing but this process's environment."""
        self.environment.become(request)
        name = dispatch.find(request.called_as.rpartition("/")[2])
        if name is None:
            return None
        run = dispatch.begin(
            name, request.env, lambda: request.stdin, deliver=self._deliver, convert=True
        )
        self.trace.mark("decoded")
        return run

    def _serve(self, client: Client[Run]) -> bool:
        """Serve a client; False if this process should not serve another."""
        self.slot.begin_request()
        descriptors = client.descriptors
        try:
            if client.prepared is None:
                client.decline()
                return True
            return self._answer(client, client.prepared)
        except OSError:
            return False
        finally:
            descriptors.close()
            client.conn.close()
            self.slot.end_request()

    def _answer(self, client: Client[Run], run: Callable[[], dispatch.Answer]) -> bool:
        """Run the verb as the plugin's process would; did it leave nothing behind?"""
        request, descriptors = client.request, client.descriptors
        began = monotonic()
        interrupts.install()  # again, to forget signals that an idle worker has got
        self.conn = client.conn
        self._watch(client.conn)
        try:
            try:
                if not self._adopt(request, descriptors):
                    self.watched = None  # the client may close the connection at once
                    client.decline()
                    return True
                self.trace.mark("ready")
                self.recorder.begin(request)
                code, output, clean = run()
                ended = monotonic()
                self.trace.mark("encoded")
            finally:
                if self.watched is not None:
                    _silence(self.watched)
                    self.watched = None
                self._leave_mounts(descriptors)
            if self.conn is not None:
                client.conn.sendall(wire.reply(code, output))  # before cleaning up
            self.trace.mark("replied")
        finally:
            self.conn = None
            self._release(descriptors)
        self.recorder.record(request, ended - began, code, output)
        self.trace.end(f"{request.env.get('CNI_COMMAND')} {request.called_as}")
        return clean

    def _deliver(self, output: bytes) -> None:
        """Let the client write an ADD's result to its stdout. Raises IOFailure if it cannot.

        The result stands as soon as the client has it, unless the client reports that it could not
        write it. If the result could not be sent as a whole, the connection ends.
        """
        conn, self.conn, self.watched = self.conn, None, None  # signals do not count any more
        assert conn is not None
        try:
            _silence(conn)
            conn.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _timeval(_REPORT_TIMEOUT))
            _send(conn, wire.result(output))
        except OSError as failure:
            text = (failure.strerror or str(failure)).lower()
            raise IOFailure(f"cannot send the result to the client: {text}") from None
        error = _reported(conn)
        if error:
            self.conn = conn  # the client waits for the reply
            raise IOFailure(f"cannot write to stdout: {os.strerror(error).lower()}")

    def _adopt(self, request: wire.Request, descriptors: wire.Descriptors) -> bool:
        """Adopt the client's process state; False if a descriptor is of the wrong kind."""
        netns = request.env.get("CNI_NETNS", "")
        try:
            os.fchdir(descriptors.cwd)
            os.umask(request.umask)
            os.dup2(descriptors.stderr, 2)
            namespace.hand_over(netns, descriptors.netns, *descriptors.take())
        except OSError:
            return False
        sys.argv[:] = [request.called_as]
        self.environment.become(request)  # meanwhile it may have become another greeted client's
        return True

    def _leave_mounts(self, descriptors: wire.Descriptors) -> None:
        """Close what keeps a mount busy: after the reply the runtime may unmount it."""
        namespace.leave_mounts()
        os.chdir("/")
        descriptors.close_mounts()

    def _release(self, descriptors: wire.Descriptors) -> None:
        """Give up the rest of the client's process state."""
        namespace.hand_over("", None)
        # the runtime waits until nobody has the client's stderr open
        os.dup2(self.null, 2)
        os.umask(0o022)
        descriptors.close()

    def _watch(self, conn: Socket) -> None:
        """Request SIGIO for the client's death, and for signals that it forwards."""
        self.watched = conn
        fd = conn.fileno()
        fcntl.fcntl(fd, fcntl.F_SETOWN, self.pid)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR | os.O_ASYNC)
        self._on_io()  # for what arrived before

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
            os._exit(1)  # the runtime has killed the plugin: do nothing more
        if data[-1] in INTERRUPTS:
            signal.raise_signal(data[-1])

    # --- between requests ---

    def _is_reusable(self) -> bool:
        """Is this process as clean as before the request, and below its limits?"""
        self.served += 1
        if self.served >= self.limits.requests or self.process.netns() != self.home:
            return False
        if self.process.threads() != 1:
            return False
        if self.served % _CHECK_INTERVAL:
            return True
        # otherwise collection is off: no request has to wait for it
        gc.collect(1)
        open_fds = len(os.listdir("/proc/self/fd")) - len(self.reception)
        self.fds = self.fds or open_fds
        return open_fds <= self.fds + _SPARE_FDS and _resident() <= self.limits.memory


def _timeval(seconds: float) -> bytes:
    """For SO_RCVTIMEO."""
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))


def _silence(conn: Socket) -> None:
    """Request no SIGIO any more: one would come for the report, and for the client's end."""
    fcntl.fcntl(conn.fileno(), fcntl.F_SETFL, os.O_RDWR)


def _send(conn: Socket, data: bytes) -> None:
    """Send all of the data; at once, if there is room for it. Raises OSError."""
    try:
        sent = conn.send(data, MSG_DONTWAIT)
    except BlockingIOError:
        sent = 0
    if sent < len(data):
        conn.settimeout(_REPORT_TIMEOUT)
        conn.sendall(data[sent:])


def _reported(conn: Socket) -> int:
    """The client's report: 0 or an errno; 0 if none comes in time.

    Ends this process if the client is dead, as Worker._on_io does.
    """
    received, failed = b"", False
    while (error := wire.report(received)) is None:
        try:
            data = conn.recv(16)
        except (BlockingIOError, TimeoutError):
            return 0
        except ConnectionResetError:
            data = b""
        except OSError:
            if failed:
                return 0
            failed = True
            continue
        if not data:
            os._exit(1)
        received += data
    return error


class _OwnProcess:
    """Facts of this process from /proc, whose directories are kept open: to look them up takes
    longer than the rest.
    """

    def __init__(self) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._namespaces = os.open("/proc/self/ns", flags)
        self._tasks = os.open("/proc/self/task", flags)

    def netns(self) -> tuple[int, int]:
        """Device and inode of the network namespace."""
        status = os.stat("net", dir_fd=self._namespaces)
        return status.st_dev, status.st_ino

    def threads(self) -> int:
        """The number of threads: /proc has a directory for each."""
        return os.fstat(self._tasks).st_nlink - _OWN_LINKS


class _Environment:
    """A copy of os.environ's content, because reading os.environ decodes every variable.

    Clients of one runtime differ only in the variables of the protocol. Those are left out: plugins
    read them from the request, and programs that plugins run get them explicitly.
    """

    def __init__(self) -> None:
        self._have: Mapping[str, str] = os.environ.copy()

    def become(self, request: wire.Request) -> None:
        """Make os.environ the request's environment."""
        wanted, have = request.inherited, self._have
        if wanted is have:
            return
        if wanted != have:
            for key in have.keys() - wanted.keys():
                del os.environ[key]
            for key, value in wanted.items():
                if have.get(key) != value:
                    os.environ[key] = value
        self._have = wanted


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
