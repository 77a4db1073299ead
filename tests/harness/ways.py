"""Starting a file in unusual ways: by its descriptor, with other streams, below limits."""

from __future__ import annotations

import ctypes
import os
import pty
import resource
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_AT_EMPTY_PATH = 0x1000
_EXECVEAT = {"x86_64": 322, "aarch64": 281}
_DEADLINE = 100  # seconds
# Numbers that nothing of ours has: a process has the streams that it was given, no more.
_PARKED, _LAST = 200, 400


class Ended(NamedTuple):
    """How a process ended; -N for signal N. What is None was not a pipe."""

    code: int
    stdout: str
    stderr: str


def by_descriptor(
    path: Path, argv: Sequence[str] | None, env: Mapping[str, str], *, way: str
) -> Ended:
    """Execute a file by a descriptor.

    `way`: ``fexecve``, with a descriptor that is closed on exec; ``memfd``, the same of a copy in
    memory; ``path``, as /proc/self/fd/N. `argv` None stands for a null pointer.
    """

    def start() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if way == "memfd":
            copy = os.memfd_create("copy", os.MFD_CLOEXEC)
            while data := os.read(fd, 1 << 20):
                os.write(copy, data)
            fd = os.open(f"/proc/self/fd/{copy}", os.O_RDONLY | os.O_CLOEXEC)
            os.close(copy)  # what is open for writing cannot be executed
        words = None if argv is None else _strings(argv)
        variables = _strings([f"{key}={value}" for key, value in env.items()])
        libc = ctypes.CDLL(None, use_errno=True)
        if way == "path":
            os.set_inheritable(fd, True)
            libc.execve(f"/proc/self/fd/{fd}".encode(), words, variables)
        number = _EXECVEAT[os.uname().machine]
        libc.syscall(number, fd, b"", words, variables, _AT_EMPTY_PATH)
        raise OSError(ctypes.get_errno(), "exec")

    return run(start)


def _strings(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(texts) + 1))(*[text.encode() for text in texts], None)


def stream(kind: str, data: bytes = b"") -> int | None:
    """A descriptor of this kind, with `data` to read where it can be; None for a closed one."""
    return None if kind == "closed" else _STREAMS[kind](data)


def _socket_pair(data: bytes) -> int:
    ours, theirs = socket.socketpair()
    ours.sendall(data)
    ours.close()
    return theirs.detach()


def _broken_pipe(_data: bytes) -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def _terminal(data: bytes) -> int:
    leader, terminal = pty.openpty()  # the leader stays open: else the terminal hangs up
    os.write(leader, data + b"\n\x04")
    return terminal


def _file(data: bytes) -> int:
    """Of any size."""
    fd = os.memfd_create("stdin")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _pipe(data: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def _late(data: bytes) -> int:
    """A pipe that read(2) does not wait for, and that has the data after a moment."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    threading.Timer(0.3, _write_late, (writing, data)).start()
    return reading


_STREAMS: dict[str, Callable[[bytes], int]] = {
    "directory": lambda _: os.open("/", os.O_RDONLY),
    "path": lambda _: os.open("/etc/passwd", os.O_PATH),
    "write-only": lambda _: os.open("/dev/null", os.O_WRONLY),
    "read-only": lambda _: os.open("/dev/null", os.O_RDONLY),
    "full": lambda _: os.open("/dev/full", os.O_RDWR),
    "unconnected socket": lambda _: socket.socket(socket.AF_INET).detach(),
    "socket": _socket_pair,
    "broken pipe": _broken_pipe,
    "terminal": _terminal,
    "file": _file,
    "pipe": _pipe,
    "late": _late,
}


def _write_late(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except BrokenPipeError:
        pass  # whoever was started has ended without it
    finally:
        os.close(fd)


def run(
    start: Callable[[], None],
    stdin: int | None = -1,
    stdout: int | None = -1,
    stderr: int | None = -1,
    limits: Mapping[int, int] | None = None,
) -> Ended:
    """Run `start`, which executes something, in a child with these streams and no other descriptor.

    -1 stands for an empty stdin and for pipes that are read here, None for a closed one. The
    descriptors are closed here.
    """
    outputs: dict[int, int] = {}
    streams = [stream("pipe") if stdin == -1 else stdin, stdout, stderr]
    for number in (1, 2):
        if streams[number] == -1:
            outputs[number], streams[number] = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _become(streams, limits or {})
            start()
        finally:
            os._exit(99)
    for fd in streams:
        if fd is not None:
            os.close(fd)
    texts = _read(outputs, child)
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), texts[1], texts[2])


def _become(streams: Sequence[int | None], limits: Mapping[int, int]) -> None:
    for number, fd in enumerate(streams):
        if fd is not None:
            os.dup2(fd, _PARKED + number)
    for number, fd in enumerate(streams):
        if fd is None:
            try:
                os.close(number)
            except OSError:
                pass  # pytest may have closed it
        else:
            os.dup2(_PARKED + number, number)
    os.closerange(3, _LAST)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def _read(outputs: Mapping[int, int], child: int) -> dict[int, str]:
    texts = {1: b"", 2: b""}
    left = dict(outputs)
    while left:
        ready, _, _ = select.select(list(left.values()), [], [], _DEADLINE)
        if not ready:
            os.kill(child, signal.SIGKILL)
            raise TimeoutError("the program hangs")
        for number, fd in list(left.items()):
            if fd in ready:
                data = os.read(fd, 1 << 16)
                texts[number] += data
                if not data:
                    os.close(left.pop(number))
    return {number: text.decode(errors="replace") for number, text in texts.items()}
