"""The executor: a forked child that enters network namespaces, so that the parent never does
(docs/design.md, "Namespaces").

    parent                               child
    ── frame {job} + the netns' fd ──▶   setns(fd), job, setns(home), is this the first namespace?
    ◀── frame {outcome} (+ an fd) ────   wait for the next job, or exit if anything is in doubt

A frame is a length, a tag, and a marshalled (fast) or pickled value. The child is used for further
jobs, in other namespaces too, as long as it proves after every job that it is back in its first
namespace, and has no thread and no child. It dies with the parent (PR_SET_PDEATHSIG, end of file).

This module, longer than most, has both ends: the forked child must not import anything while the
parent waits, and neither end can be understood without the other.
"""

from __future__ import annotations

import gc
import marshal
import os
import signal
import struct
import sys
from _socket import (
    AF_NETLINK,
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_PEEK,
    SCM_RIGHTS,
    SOCK_STREAM,
    SOL_SOCKET,
    socketpair,
)
from _socket import socket as Socket
from collections.abc import Callable
from typing import Any, TypeVar

from ..kernel.errors import ExecutorDied, KernelError, RemoteTraceback
from ..kernel.netlink import OPTIONS, set_options
from . import libc

_HEAD = struct.Struct("=Ic")  # length of the payload, tag
_FD_NUMBER = struct.Struct("i")
_MOST_KEPT = 4  # executors between requests, including those that still finish a job (`begin`)
_MOST_FREE = 2  # of those, the ones without a job
_MAX_FRAME = 256 << 20
_HOME = "/proc/self/ns/net"
_ONE_SUBDIRECTORY = 3  # st_nlink: a directory has 2 links, and one more for each subdirectory

# Tags of a frame; those of the second line are the child's. SPENT: the outcome is valid, but the
# child must not get another job.
_MARSHAL, _PICKLE = b"m", b"p"
_RAISED, _FD, _SPENT = b"x", b"f", b"!"

T = TypeVar("T")


class Executor:
    """A child process that runs one job at a time in a namespace given by its descriptor."""

    # released executors, to be borrowed again: a server's worker keeps them between requests
    _idle: list[Executor] = []

    def __init__(self) -> None:
        # a stream: a frame may be longer than any datagram
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _become_child(theirs, ours, parent)
        theirs.close()
        self._owner = parent
        self._sock = ours
        self._healthy = True
        self._unanswered = False

    @classmethod
    def borrow(cls) -> Executor:
        """A released executor, or a new one; one without an unfinished job is preferred."""
        while cls._idle:
            free = [each for each in cls._idle if not each._is_busy()]
            if not free and len(cls._idle) < _MOST_KEPT:
                break
            executor = (free or cls._idle)[0]
            cls._idle.remove(executor)
            executor.settle()
            if executor.healthy and executor._is_running():
                return executor
        return cls()

    @property
    def healthy(self) -> bool:
        """May it take another job?"""
        return self._healthy and self._owner == os.getpid()

    def _has_begun(self) -> bool:
        return self._unanswered and self._owner == os.getpid()

    def _is_busy(self) -> bool:
        """Is the job that was begun still unfinished?"""
        if not self._has_begun():
            return False
        try:
            self._sock.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass  # then sending the next job fails
        return False

    def _is_running(self) -> bool:
        try:
            if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                return True
        except ChildProcessError:  # SIGCHLD is ignored, so the kernel has reaped it
            pass
        self.pid = 0
        self.discard()
        return False

    def release(self) -> None:
        """Keep the child for the next `borrow` if it is healthy, else end it.

        The last one to be released is borrowed first: its memory is still in the caches.
        """
        idle = Executor._idle
        wanted = self._is_busy() or sum(not each._is_busy() for each in idle) < _MOST_FREE
        if self.healthy and wanted and len(idle) < _MOST_KEPT:
            idle.insert(0, self)
        else:
            self.discard()

    @classmethod
    def provide(cls) -> None:
        """Fork a child ahead if none is free, so that the next `borrow` need not wait."""
        if len(cls._idle) < _MOST_KEPT and all(each._is_busy() for each in cls._idle):
            cls().release()

    @classmethod
    def discard_idle(cls) -> None:
        """End the idle children."""
        while cls._idle:
            cls._idle.pop().discard()

    def discard(self) -> None:
        """End the child and reap it; harmless when repeated."""
        busy = self._unanswered
        self._healthy = self._unanswered = False
        self._sock.close()
        if self.pid and self._owner == os.getpid():
            pid, self.pid = self.pid, 0
            try:
                # nothing has to be cleaned up in it: the kernel closes what it has open
                os.kill(pid, signal.SIGKILL)
                busy = False
            except OSError:
                pass  # refused (seccomp): the child ends after its job, since the socket is closed
            try:
                os.waitpid(pid, os.WNOHANG if busy else 0)
            except ChildProcessError:
                pass

    def run(self, netns: int, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)` in the namespace `netns`; see Namespace.run."""
        result: T = self._call(netns, function.__module__, function.__qualname__, args)
        return result

    def open_socket(self, netns: int, family: int, kind: int, protocol: int) -> int:
        """The descriptor of a socket made in the namespace `netns`. Raises OSError."""
        options = OPTIONS if family == AF_NETLINK else ()
        fd: int = self._call(netns, __name__, "_make_socket", (family, kind, protocol, options))
        return fd

    def begin(self, netns: int, function: Callable[..., Any], *args: Any) -> None:
        """Start `function(*args)`; call `finish` or `settle` before the next job."""
        self._start(netns, function.__module__, function.__qualname__, args)

    def finish(self) -> Any:
        """Wait for the job that was begun: its value, or its exception. Raises ExecutorDied."""
        return self._answer()

    def settle(self) -> None:
        """Wait for the end of the job that was begun, if there is one; ignore its outcome."""
        if self._has_begun():
            try:
                self._reply()
            except ExecutorDied:
                pass  # then `healthy` is false

    def fileno(self) -> int:
        """Readable when `finish` need not wait."""
        return self._sock.fileno()

    def _call(self, netns: int, module: str, name: str, args: tuple[Any, ...]) -> Any:
        self._start(netns, module, name, args)
        return self._answer()

    def _start(self, netns: int, module: str, name: str, args: tuple[Any, ...]) -> None:
        if not self._healthy or self._unanswered:
            raise ExecutorDied("this executor has been discarded")
        request = _pack((module, name, args))
        sent = False
        try:
            _send(self._sock, *request, fd=netns)
            sent = self._unanswered = True
        except OSError as error:
            raise _lost(error) from None
        finally:
            if not sent:
                self.discard()

    def _answer(self) -> Any:
        tag, payload, fd = self._reply()
        if tag == _RAISED:
            _reraise(payload)
        return fd if tag == _FD else _unpack(tag, payload)

    def _reply(self) -> tuple[bytes, bytes, int | None]:
        finished = False
        try:
            tag, payload, fd = _receive(self._sock)
            spent = tag == _SPENT
            if spent:
                tag, payload = payload[:1], payload[1:]
            finished = not spent
            self._unanswered = False
        except (OSError, EOFError) as error:
            raise _lost(error) from None
        finally:
            # also after an interrupt: the rest of the answer would be taken for the next job's
            if not finished:
                self.discard()
        return tag, payload, fd


def _lost(error: Exception) -> ExecutorDied:
    reason = (getattr(error, "strerror", None) or str(error) or "killed").lower()
    advice = "" if os.path.isdir("/proc/self") else "mount /proc: it is not there"
    return ExecutorDied(f"the process working in the network namespace was lost: {reason}", advice)


# --- frames ---------------------------------------------------------------------------------------


def _pack(value: Any) -> tuple[bytes, bytes]:
    try:
        return _MARSHAL, marshal.dumps(value)
    except ValueError:  # an object of a class cannot be marshalled
        import pickle

        return _PICKLE, pickle.dumps(value)


def _unpack(tag: bytes, payload: bytes) -> Any:
    if tag == _MARSHAL:
        return marshal.loads(payload)
    import pickle

    return pickle.loads(payload)


def _send(sock: Socket, tag: bytes, payload: bytes, fd: int | None = None) -> None:
    data = _HEAD.pack(len(payload), tag) + payload
    ancillary = [(SOL_SOCKET, SCM_RIGHTS, _FD_NUMBER.pack(fd))] if fd is not None else []
    sent = sock.sendmsg((data,), ancillary)
    # the descriptor went with the first part
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])


def _receive(sock: Socket) -> tuple[bytes, bytes, int | None]:
    """A whole frame: tag, payload, descriptor. Raises EOFError when the other side is gone."""
    data, ancillary, _, _ = sock.recvmsg(65536, CMSG_SPACE(_FD_NUMBER.size), MSG_CMSG_CLOEXEC)
    fd = None
    for level, kind, content in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            fd = _FD_NUMBER.unpack_from(content)[0]
    while len(data) < _HEAD.size:
        data += _more(sock)
    length, tag = _HEAD.unpack_from(data)
    # only a torn frame can say so: its length must not decide how much memory is taken
    if length > _MAX_FRAME:
        raise EOFError("oversized frame")
    chunks, have = [data[_HEAD.size :]], len(data) - _HEAD.size
    while have < length:
        chunks.append(_more(sock))
        have += len(chunks[-1])
    return tag, b"".join(chunks), fd


def _more(sock: Socket) -> bytes:
    data = sock.recv(1 << 20)
    if not data:
        raise EOFError
    return data


# --- the child ------------------------------------------------------------------------------------


def _become_child(sock: Socket, parents: Socket, parent: int) -> None:
    """Serve jobs until the parent is gone. Never returns."""
    code = 1
    try:
        try:
            libc.die_with_parent(parent)
        except OSError:
            pass  # refused (seccomp): the end of the socket also tells that the parent died
        # else the child would hold the parent's end, and never see the end of the socket
        parents.close()
        _close_others(sock.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the parent answers signals; a job is completed
        null = _open_null()
        os.dup2(null, 0)
        os.dup2(null, 1)  # the runtime waits until these pipes close; the child lives longer
        os.dup2(null, 2)
        os.close(null)
        _serve(sock)
        code = 0
    except EOFError:
        code = 0
    finally:
        os._exit(code)


def _open_null() -> int:
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        from ..files import open_null  # the root directory may have no /dev/null

        return open_null()


def _close_others(keep: int) -> None:
    """Close what was inherited: an idle child must keep no namespace, lock or pipe alive."""
    # objects of the parent would close descriptors by number when they are collected, but by then
    # the numbers belong to others
    gc.freeze()
    # os.closerange() would count to the last possible descriptor where close_range(2) is missing
    # (before Linux 5.9) or refused (seccomp)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:  # the descriptor by which the directory was listed
                pass


def _serve(sock: Socket) -> None:
    home = os.open(_HOME, os.O_RDONLY | os.O_CLOEXEC)
    identity = _identity()
    trusted = True
    while trusted:
        tag, payload, netns = _receive(sock)
        assert netns is not None
        outcome, reply, fd = _perform(tag, payload, netns)
        # before the answer: the parent learns with it whether the child may be used again
        trusted = _is_clean(home, identity)
        if trusted:
            _send(sock, outcome, reply, fd)
        else:
            _send(sock, _SPENT, outcome + reply, fd)
        if fd is not None:
            os.close(fd)


def _perform(tag: bytes, payload: bytes, netns: int) -> tuple[bytes, bytes, int | None]:
    """Run one job: (tag, payload, descriptor) of the answer. Closes `netns`."""
    try:
        try:
            module, name, args = _unpack(tag, payload)
            function = _resolve(module, name)
            _enter(netns)
        finally:
            # close before the job, which may outlast the request (Namespace.run_until): the
            # descriptor would keep the runtime from unmounting the namespace
            os.close(netns)
        value = function(*args)
        if function is _make_socket:
            return _FD, b"", value
        return (*_pack(value), None)
    except BaseException as error:  # noqa: BLE001 every exception is the caller's
        return _RAISED, _describe(error), None


def _enter(netns: int) -> None:
    """Enter the namespace behind `netns`. Raises KernelError if that is not permitted, OSError."""
    try:
        libc.setns(netns)
    except PermissionError as error:
        reason = str(error.strerror).lower()
        raise KernelError(f"cannot enter the network namespace: {reason}") from None


def _resolve(module: str, name: str) -> Callable[..., Any]:
    if module not in sys.modules:
        __import__(module)
    value: Any = sys.modules[module]
    for part in name.split("."):
        value = getattr(value, part)
    function: Callable[..., Any] = value
    return function


def _make_socket(
    family: int, kind: int, protocol: int, options: tuple[tuple[int, int, int], ...]
) -> int:
    sock = Socket(family, kind, protocol)
    set_options(sock, options)
    return sock.detach()


def _is_clean(home: int, identity: tuple[int, int]) -> bool:
    """Is this process back in its first namespace, without children or other threads?"""
    try:
        libc.setns(home)
        if _identity() != identity or not is_single_threaded():
            return False
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True  # there is no child, as required
    except OSError:
        return False
    return False


def is_single_threaded() -> bool:
    """Has this process one thread only? (/proc has a directory for each)"""
    return os.stat("/proc/self/task").st_nlink == _ONE_SUBDIRECTORY


def _identity() -> tuple[int, int]:
    status = os.stat(_HOME)
    return status.st_dev, status.st_ino


def _describe(error: BaseException) -> bytes:
    """The exception for the parent, pickled; its text if it cannot be pickled."""
    import pickle
    import traceback

    text = "".join(traceback.format_exception(error))
    try:
        data = pickle.dumps((error, text))
        pickle.loads(data)  # classes with unusual constructors fail only here
        return data
    except Exception:  # noqa: BLE001 pickling runs the exception's own code
        return pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), text))


def _reraise(payload: bytes) -> None:
    import pickle

    error, text = pickle.loads(payload)
    raise error from RemoteTraceback(text)
