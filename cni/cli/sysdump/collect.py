"""Runs each part in a child process of its own, which is killed when it takes too long.

A tool that hangs, a file system that does not answer, or an endless ruleset costs only its own
part; the output until then is kept. The child also masks its output, so that the time limit
includes it, and nothing unmasked ever leaves the child.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from cni import files

from .mask import Mask

_LENGTH = struct.Struct("=Q")
_CHUNK = 1 << 18
PART_BYTES = 24 << 20  # the most bytes of one part in the archive
_GRACE = 2.0  # seconds for a killed child to be gone


ABSENT = "not there"  # the error for an object that a node need not have


class File(NamedTuple):
    """A file of the dump: its name, its source, and the error ("" if none)."""

    name: str
    how: str
    data: bytes = b""
    error: str = ""
    seconds: float = 0


class Part(NamedTuple):
    """Files that are collected together. `gather` is called in a child."""

    name: str
    gather: Callable[[Mask], Iterator[File]]


def collect(part: Part, mask: Mask, seconds: float) -> Iterator[File]:
    """The files of a part, masked; after a failure the last one has the error."""
    # Close-on-exec: a tool that outlives its part must not keep the pipe open.
    receiving, sending = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError as error:
        os.close(receiving)
        os.close(sending)
        yield File(part.name, "", error=f"no process for it: {error.strerror}")
        return
    if pid == 0:
        _serve(part, mask, sending)
    os.close(sending)
    problem, code = "", 0
    try:
        frames = _Frames(receiving, time.monotonic() + seconds)
        yield from (File(*each) for each in frames)
        problem = frames.problem
        code = 0 if problem else _code(pid)
    finally:
        os.close(receiving)
        # Also if the caller takes no more files.
        _end(pid)
    if code:
        problem = f"its process ended with code {code}"
    if problem:
        yield File(part.name, "", error=problem)


class _Frames:
    """What the child sends, until it ends, the time is up or it is too much."""

    def __init__(self, fd: int, deadline: float) -> None:
        self._fd, self._deadline = fd, deadline
        self.problem = ""

    def __iter__(self) -> Iterator[tuple[str, str, bytes, str, float]]:
        buffer, total = b"", 0
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                self.problem = "given up: it took too long"
                return
            chunk = os.read(self._fd, _CHUNK)
            if not chunk:
                self.problem = "its process ended in the middle" if buffer else ""
                return
            total += len(chunk)
            if total > PART_BYTES:
                self.problem = f"given up: it is larger than {PART_BYTES >> 20} MiB"
                return
            buffer += chunk
            while len(buffer) >= _LENGTH.size:
                end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
                if len(buffer) < end:
                    break
                # From this process's own child, so it can be trusted.
                yield marshal.loads(buffer[_LENGTH.size : end])
                buffer = buffer[end:]


def _serve(part: Part, mask: Mask, fd: int) -> None:
    """The child: never returns."""
    code = 1
    try:
        os.setsid()  # tools that it starts are killed with it; Ctrl-C is for the parent
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # What commands and tools print would otherwise appear between the lines of the command.
        null = files.open_null()
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        started = time.monotonic()
        try:
            for each in part.gather(mask):
                now = time.monotonic()
                _send(fd, mask, each._replace(seconds=round(now - started, 3)))
                started = time.monotonic()
        except Exception as error:  # noqa: BLE001 the others are still to be collected
            _send(fd, mask, File(part.name, "", error=f"{type(error).__name__}: {error}"))
        code = 0
    finally:
        os._exit(code)


def _send(fd: int, mask: Mask, file: File) -> None:
    shown = file._replace(
        name=mask.text(file.name),
        how=mask.text(file.how),
        data=mask.content(file.data),
        error=mask.text(file.error),
    )
    raw = marshal.dumps(tuple(shown))
    files.write_all(fd, _LENGTH.pack(len(raw)) + raw)


def _code(pid: int) -> int:
    """How the child ended, which has closed its end of the pipe; it stays to be waited for."""
    # WNOWAIT keeps the process id, by which _end kills the group, from being used again.
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return found.si_status if found is not None else 0


def _end(pid: int) -> None:
    """Kill the child and what it started, and wait, unless the kernel holds it."""
    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)  # it may not have its own session yet
    deadline = time.monotonic() + _GRACE
    with suppress(ChildProcessError):
        # A process in an uninterruptible system call, as on a dead NFS server, cannot be killed.
        while not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < deadline:
            time.sleep(0.01)
