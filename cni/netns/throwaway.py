"""A new network namespace that dies with this process: for commands that try something out.

A child process is in the namespace and only waits; the namespace's path is /proc/PID/ns/net.
However this process ends, the child dies with it, and the kernel removes the namespace with its
links. Nothing is mounted, so a SIGKILL leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
from types import TracebackType
from typing import NoReturn

from ..files import open_null
from ..kernel.errors import NetnsError
from . import libc
from .namespace import Namespace


class ThrowAway:
    """A namespace that exists until `close`: its `path`, and `namespace`, which has it open.

    Raises NetnsError if the kernel refuses to make one.
    """

    def __init__(self) -> None:
        receiving, sending = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _hold(parent, sending)
        # else the pipe would not end when the child dies without an answer
        os.close(sending)
        try:
            answer = os.read(receiving, 16)
        finally:
            os.close(receiving)
        self.path = f"/proc/{self._pid}/ns/net"
        try:
            if answer != b"0":
                reason = os.strerror(int(answer or b"0")).lower() if answer else "it was killed"
                raise NetnsError(f"cannot make a network namespace: {reason}")
            self.namespace = Namespace.open(self.path)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> ThrowAway:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the namespace; may be repeated."""
        self.namespace.close()
        self._end()

    def _end(self) -> None:
        pid, self._pid = self._pid, 0
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _hold(parent: int, sending: int) -> NoReturn:
    """The child: make the namespace, send the errno (0: success), and wait for its end."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the parent answers signals, and ends this child
        # before the namespace is made: it must not outlast a parent that is killed now
        libc.die_with_parent(parent)
        errno = _unshare()
        os.write(sending, str(errno).encode())
        if errno == 0:
            _close_all()  # inherited descriptors would keep pipes and namespaces open
            while True:
                signal.pause()
    finally:
        os._exit(1)


def _unshare() -> int:
    from ..kernel import syscalls

    try:
        syscalls.unshare(libc.CLONE_NEWNET)
    except OSError as error:
        return error.errno or 1
    return 0


def _close_all() -> None:
    """Close all descriptors; the standard ones become /dev/null."""
    null = open_null()
    for number in (0, 1, 2):
        os.dup2(null, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor by which the directory was listed
