"""Short visits of another network namespace, in the self-contained file without a server.

A child made as by vfork(2) shares this process's memory. It makes a socket in the other namespace,
or reads and writes kernel parameters there, and ends; meanwhile this process stands still, in its
own namespace. Nothing is copied, where the executor's fork(2) copies the interpreter's page tables.
The child runs no Python (tools/interpreter/src/native.c). If it cannot do the work, the result is
None: then the executor does it, whose errors say why.

Another child of this kind sends a request whose sender has to sleep for long, while this process
goes on.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_NETLINK
from collections.abc import Callable, Sequence
from select import POLLIN, poll
from signal import SIGKILL

from _cni_embedded import send_apart, visit_socket, visit_steps

from ..kernel.netlink import OPTIONS, Netlink
from ..kernel.sysctl import Outcome, Step
from . import jobs

_OPTION = struct.Struct("=iii")
_NETLINK_OPTIONS = b"".join(_OPTION.pack(*option) for option in OPTIONS)


def open_socket(netns: int, family: int, kind: int, protocol: int) -> int | None:
    """The descriptor of a socket in the namespace `netns`; as Executor.open_socket."""
    options = _NETLINK_OPTIONS if family == AF_NETLINK else b""
    fd: int | None = visit_socket(netns, family, kind, protocol, options)
    return fd


def sysctls(netns: int, steps: Sequence[Step], stop: bool) -> list[Outcome] | None:
    """As kernel.sysctl.perform, in the namespace `netns`. Raises ValueError."""
    job = jobs.packed(steps, stop)
    answer = None if job is None else visit_steps(netns, job)
    return None if answer is None else jobs.outcomes(answer, len(steps), stop)


# Children that send, or have sent: (our process id, theirs). A fork of this process has none.
_senders: list[tuple[int, int]] = []


def send_until(sock: Netlink, seen: Callable[[int, bytes], bool], message: bytes) -> bool:
    """Have a child send `message` on `sock`, and wait until the kernel announces its result there.

    `seen` (type, payload) recognises that. False if the child could not be started, or ended
    without the announcement: whether the request was done is unknown then. Raises OSError.
    """
    settle()
    ended, held = os.pipe()  # the child has a copy of `held`, which it loses when it ends
    try:
        try:
            pid = send_apart(sock.sock.fileno(), message)
        finally:
            os.close(held)
        if pid is None:
            return False
        _senders.append((os.getpid(), pid))
        return _is_announced(sock, seen, ended)
    finally:
        os.close(ended)


def _is_announced(sock: Netlink, seen: Callable[[int, bytes], bool], ended: int) -> bool:
    watch = poll()
    watch.register(sock.sock, POLLIN)
    watch.register(ended, POLLIN)
    while True:
        ready = {fd for fd, _ in watch.poll()}
        if sock.sock.fileno() in ready and any(seen(*event) for event in sock.events(0)):
            return True
        if ended in ready and sock.sock.fileno() not in ready:
            return False


def settle() -> None:
    """Wait for the end of the children that send."""
    while _senders:
        owner, pid = _senders.pop()
        if owner != os.getpid():
            continue
        try:
            os.kill(pid, SIGKILL)  # what it has sent is done all the same
            os.waitpid(pid, 0)
        except OSError:
            pass  # SIGCHLD is ignored, so the kernel has reaped it
