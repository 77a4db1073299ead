"""May a client be served? Only if it has itself all powers that it would borrow from the server.

A worker runs plugins, and programs that a configuration names, with its own user, capabilities and
namespaces. So a client is served only if the kernel says that it has all of these itself:

    user                SO_PEERCRED
    network namespace   that of the connection, which is the connecting process's
    capabilities        those of the connecting process (capget(2)); and since a process id may be
                        used again, credentials that name the server's process, which sendmsg(2)
                        allows to CAP_SYS_ADMIN only (unix(7), "SCM_CREDENTIALS")
    mounts              a descriptor of the client's root directory: no two mount namespaces have a
                        mount in common, and a changed root is another directory

Any other client runs the plugin itself, as if there were no server.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_UNIX, SO_PASSCRED, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET
from _socket import socket as Socket
from fcntl import ioctl
from typing import NamedTuple

from ..kernel import syscalls
from ..netns import namespace

_UCRED = struct.Struct("=iII")  # pid, user, group
_SO_NETNS_COOKIE = 71  # Linux 5.14
_SIOCGSKNS = 0x894C
_STATX_INO, _STATX_MNT_ID = 0x100, 0x1000
_CAPABILITIES = struct.Struct("=4xI8xI4x")  # effective, permitted, inheritable; twice
_STATX = struct.Struct("=I28xQ104xQ")  # stx_mask, stx_ino, stx_mnt_id (linux/stat.h)


class Root(NamedTuple):
    """A root directory: its mount, which is in one mount namespace only, and its inode."""

    mount: int
    inode: int


class Gate:
    """Compares clients with this process, which must not change its namespaces.

    `server_pids` are the processes that a client may name as the server: those that called
    listen(2) on the socket. Raises OSError.
    """

    def __init__(self, server_pids: frozenset[int], *, any_mounts: bool) -> None:
        # 0 is what a client without credentials names, and what an invisible process is for us
        self._server_pids = server_pids - {0}
        self._user = os.geteuid()
        self._capabilities = _permitted(0)
        self._root = None if any_mounts else root_of_descriptor(None)
        own = Socket(AF_UNIX, SOCK_STREAM)
        self._cookie = _cookie(own)
        own.close()
        self._netns = namespace.own_identity()

    def connected(self, conn: Socket) -> int | None:
        """The process id of a client of this user; None for another user's. Raises OSError.

        0 means a process outside of our PID namespace.

        After this call the kernel adds the client's credentials to its messages.
        """
        # Set on the listening socket, it would miss clients that have connected before.
        conn.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        pid, user, _ = _UCRED.unpack(conn.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED.size))
        return int(pid) if user == self._user else None

    def admits(self, conn: Socket, pid: int, named_pid: int, root: int) -> bool:
        """Has a client that has sent its go all powers that it would borrow from this process?

        `pid` is the value of `connected`, `named_pid` the process in its credentials, `root` a
        descriptor of its root directory. A process outside of our PID namespace (`pid` is 0) cannot
        be looked up. If it names the server's process, it is in a namespace above, and has
        CAP_SYS_ADMIN there.
        """
        try:
            return (
                named_pid in self._server_pids
                and self._has_our_netns(conn)
                and not (pid and self._capabilities & ~_permitted(pid))
                and (self._root is None or root_of_descriptor(root) == self._root)
            )
        except OSError:
            return False  # the client is gone, or cannot be looked up

    def _has_our_netns(self, conn: Socket) -> bool:
        if self._cookie:
            return _cookie(conn) == self._cookie
        fd = ioctl(conn, _SIOCGSKNS)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return (status.st_dev, status.st_ino) == self._netns


def listener_pid(listener: Socket) -> int:
    """The process that last called listen(2) on the socket; 0 if it is not visible here."""
    pid: int = _UCRED.unpack(listener.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED.size))[0]
    return pid


def root_of_descriptor(fd: int | None) -> Root:
    """The root directory behind `fd`, or with None this process's. Raises OSError."""
    opened = os.open("/", os.O_PATH | os.O_CLOEXEC) if fd is None else fd
    try:
        return _statx_root(opened) or _fdinfo_root(opened)
    finally:
        if fd is None:
            os.close(opened)


def _statx_root(fd: int) -> Root | None:
    """By statx(2); None before Linux 5.8, which does not tell the mount. Raises OSError."""
    try:
        status = syscalls.statx(fd, _STATX_INO | _STATX_MNT_ID)
    except OSError:
        return None
    mask, inode, mount = _STATX.unpack_from(status)
    return Root(mount, inode) if mask & _STATX_MNT_ID else None


def _fdinfo_root(fd: int) -> Root:
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        mount = next((int(line[7:]) for line in lines if line.startswith("mnt_id:")), 0)
    return Root(mount, os.fstat(fd).st_ino)


def _cookie(sock: Socket) -> bytes:
    """The cookie of a socket's network namespace; b"" before Linux 5.14."""
    try:
        return sock.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return b""


def _permitted(pid: int) -> int:
    """The permitted capabilities of a process, a bit each; 0 is this process. Raises OSError."""
    low, high = _CAPABILITIES.unpack_from(syscalls.capget(pid))
    return int(low | high << 32)
