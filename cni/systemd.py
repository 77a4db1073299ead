"""The common code of daemons: listening sockets, from systemd or their own, and notices of state.

Follows sd_listen_fds(3) and sd_notify(3). Without systemd there are no inherited sockets, and
notices do nothing.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EADDRINUSE, ENAMETOOLONG
from typing import NamedTuple

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_MAX_PATH = 107  # the most bytes of a socket's path (unix(7))
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Inherited(NamedTuple):
    """A descriptor that the service manager handed over, and its FileDescriptorName=, or ""."""

    fd: int
    name: str


class AddressInUse(OSError):
    """Another process listens on the socket; also in `strerror` and `errno`."""

    def __init__(self, path: str) -> None:
        super().__init__(EADDRINUSE, os.strerror(EADDRINUSE), path)


def listen_fds() -> list[Inherited]:
    """The descriptors that systemd has passed to this process, in order; not inheritable.

    Removes the environment variables, so that no child takes the descriptors for its own. Does not
    check whether a descriptor is open.
    """
    pid, count, names = (os.environ.pop(key, "") for key in _VARIABLES)
    # the variables may be those of a parent process, which did not remove them
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    for fd in fds:
        with suppress(OSError):
            os.set_inheritable(fd, False)
    labels = names.split(":") if names else []
    labels += [""] * (len(fds) - len(labels))
    return [Inherited(fd, label) for fd, label in zip(fds, labels, strict=False)]


@contextmanager
def hand_on(fd: int, name: str = "") -> Iterator[dict[str, str]]:
    """Pass `fd` to a program that is executed within this context, for its `listen_fds`.

    Yields the environment variables that the program needs. If it cannot be executed, the
    descriptors are restored at the end of the context.
    """
    copy = os.dup(fd)
    try:
        before = os.dup(_FIRST_FD)
    except OSError:  # the number is free
        before = -1
    os.dup2(copy, _FIRST_FD)
    os.set_inheritable(_FIRST_FD, True)
    try:
        yield dict(zip(_VARIABLES, (str(os.getpid()), "1", name), strict=True))
    finally:
        if before < 0:
            os.close(_FIRST_FD)
        else:
            os.dup2(before, _FIRST_FD, inheritable=False)
            os.close(before)
        os.close(copy)


def is_listening(sock: socket.socket) -> bool:
    """Is it a Unix socket that accepts connections?"""
    return sock.family == socket.AF_UNIX and bool(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    )


def listen_unix(path: str, backlog: int, *, directory_mode: int = 0o755) -> socket.socket:
    """A stream socket listening at `path`, which only its owner may connect to (mode 0600).

    Replaces the socket file of a dead process, and makes a missing directory. The file appears only
    when the socket listens already. If several processes call this at the same time, one gets the
    socket. Raises AddressInUse if another process listens there, else OSError.
    """
    if len(os.fsencode(path)) > _MAX_PATH:
        raise OSError(ENAMETOOLONG, f"longer than {_MAX_PATH} bytes", path)
    directory = os.path.dirname(path) or "."
    _make_directory(directory, directory_mode)
    temporary = f"{path}.{os.getpid()}"  # ss(8) shows this path
    if len(os.fsencode(temporary)) > _MAX_PATH:
        temporary = f"{directory}/.{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _unlink(temporary)  # left by an earlier process with our pid
        # bind(2) makes the file: to change its mode afterwards would let others connect in between
        umask = os.umask(0o177)
        try:
            sock.bind(temporary)
        finally:
            os.umask(umask)
        try:
            sock.listen(backlog)
            _give_name(temporary, path)
        finally:
            _unlink(temporary)
    except BaseException:
        sock.close()
        raise
    return sock


def _give_name(temporary: str, path: str) -> None:
    """Link `temporary` to `path`, and remove a dead process's socket there."""
    try:
        # link(2) fails if the name is taken; rename(2) would replace the socket of a living process
        os.link(temporary, path)
        return
    except FileExistsError:
        pass
    stale = identity(path)
    if not _is_stale(path):
        raise AddressInUse(path)
    # Between check and change another process may have put its own socket there. So the file is
    # moved away and checked again, instead of being overwritten.
    aside = f"{temporary}.stale"
    os.rename(path, aside)
    try:
        if identity(aside) != stale:
            os.link(aside, path)
            raise AddressInUse(path)
    finally:
        _unlink(aside)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise AddressInUse(path) from None


def _is_stale(path: str) -> bool:
    """Is it a socket without a listener? Files of other kinds must not be replaced."""
    if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # with a full queue connect(2) would wait
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of the file `path`; None if it cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def notify(state: str) -> None:
    """Tell the service manager, for example ``READY=1``. Raises nothing."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.sendall(state.encode())
        except OSError:
            pass  # the service does not depend on it


def _make_directory(path: str, mode: int) -> None:
    if os.path.isdir(path):
        return
    umask = os.umask(0o777 & ~mode)
    try:
        os.makedirs(path, mode, exist_ok=True)
    finally:
        os.umask(umask)


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
