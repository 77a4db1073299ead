"""The directory in which host-local keeps its reservations (spec/host-local.md, "On-disk state").

    <dataDir>/<network>/
      10.1.2.2             <container id> CR LF <ifname>; of old versions, the id alone
      last_reserved_ip.0   the address that range set 0 handed out last
      lock                 flock around every look and every change

The reference can share it with us. A reservation appears whole or not at all; an empty file (the
reference was killed, or the disk was full) is a free address. With `lock` held nothing else
changes the directory, so one fixed name is enough for files in the making, and none pile up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import (
    EACCES,
    EINVAL,
    EISDIR,
    ELOOP,
    EMLINK,
    ENOENT,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    EXDEV,
)

from ..protocol.address import InvalidAddress, parse_ip
from ..protocol.errors import CNIError
from . import lockfile

LOCK = "lock"
LAST_RESERVED = "last_reserved_ip."
# No address, so that the reference does not take it for a reservation.
_IN_MAKING = ".new"

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
UNREADABLE = b"\0"  # the content of a file that we cannot read: somebody's, nobody knows whose
# What a kernel or a file system without O_TMPFILE, hard links or /proc says.
_NO_UNNAMED = frozenset({EOPNOTSUPP, EISDIR, EINVAL, ENOENT})
_NO_LINK = frozenset({ENOENT, EPERM, EACCES, EOPNOTSUPP, EXDEV, ENOSYS, EMLINK, ELOOP})


def content_of(container_id: str, ifname: str) -> bytes:
    """What the file of a reservation contains."""
    return f"{container_id.strip()}\r\n{ifname}".encode("utf-8", "surrogateescape")


def is_address(name: str) -> bool:
    """Is it the name of a reservation?"""
    try:
        parse_ip(name)
    except InvalidAddress:
        return False
    return True


class Store:
    """An open, locked directory. Methods raise OSError; `open_store` makes CNIErrors of them."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._leases: dict[str, bytes] | None = None

    def leases(self) -> dict[str, bytes]:
        """Name -> content without surrounding white space, of all reservations; b"" if torn.

        Read once per lock.
        """
        if self._leases is None:
            self._leases = {}
            for name in os.listdir(self._fd):
                if name == _IN_MAKING:
                    os.unlink(name, dir_fd=self._fd)
                elif name != LOCK and not name.startswith((".", LAST_RESERVED)):
                    content = self.content(name)
                    if content is not None:
                        self._leases[name] = content
        return self._leases

    def owned_by(self, container_id: str, ifname: str) -> list[str]:
        """Names of the attachment's files, with those of old versions (ID only) after them."""
        return self._holding(content_of(container_id, ifname)) + self._holding(
            content_of(container_id, "").strip()
        )

    def releasable(self, container_id: str, ifname: str) -> list[str]:
        """What a DEL releases: files with an ID only count if there are no others."""
        return self._holding(content_of(container_id, ifname)) or self._holding(
            content_of(container_id, "").strip()
        )

    def _holding(self, content: bytes) -> list[str]:
        return [name for name, found in self.leases().items() if found == content]

    def reserve(self, name: str, content: bytes) -> bool:
        """Reserve an address; False if it is somebody's."""
        try:
            self._create(name, content)
        except FileExistsError:
            if self.content(name) != b"":
                return False
            os.unlink(name, dir_fd=self._fd)
            self._create(name, content)
        if self._leases is not None:
            self._leases[name] = content
        return True

    def release(self, name: str) -> None:
        """Remove a reservation; none is no error."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            pass
        if self._leases is not None:
            self._leases.pop(name, None)

    def content(self, name: str) -> bytes | None:
        """What `leases` says of one name, without reading the others; None if there is no file."""
        try:
            fd = os.open(name, _READ, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError:
            return UNREADABLE
        try:
            return os.read(fd, 4096).strip()
        except OSError:
            return UNREADABLE
        finally:
            os.close(fd)

    def held_since(self, name: str) -> float:
        """When an address was reserved, in seconds since 1970; 0 if it is not."""
        try:
            return os.stat(name, dir_fd=self._fd).st_mtime
        except OSError:
            return 0.0

    def last_reserved(self, range_id: int) -> bytes | None:
        """What the range set handed out last; None if that is unknown."""
        fd = -1
        try:
            fd = os.open(f"{LAST_RESERVED}{range_id}", _READ, dir_fd=self._fd)
            return parse_ip(os.read(fd, 128).decode("ascii", "replace"))
        except (FileNotFoundError, InvalidAddress):
            return None
        finally:
            if fd >= 0:
                os.close(fd)

    def set_last_reserved(self, range_id: int, name: str) -> None:
        self._replace(f"{LAST_RESERVED}{range_id}", name.encode())

    def _create(self, name: str, content: bytes) -> None:
        """Make a file that is whole from its first moment. Raises FileExistsError."""
        if not self._create_unnamed(name, content):
            if self.content(name) is not None:
                raise FileExistsError(name)
            self._replace(name, content)

    def _create_unnamed(self, name: str, content: bytes) -> bool:
        """By a file that gets its name last; False where that does not work."""
        try:
            flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
            fd = os.open(".", flags, 0o600, dir_fd=self._fd)
        except OSError as error:
            if error.errno in _NO_UNNAMED:
                return False
            raise
        try:
            _write(fd, content)
            # With a dst_dir_fd Python calls linkat with AT_SYMLINK_FOLLOW, without it link, which
            # does not follow.
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=self._fd, follow_symlinks=True)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise
        finally:
            os.close(fd)
        return True

    def _replace(self, name: str, content: bytes) -> None:
        """By a file that is renamed to its name."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(_IN_MAKING, flags, 0o600, dir_fd=self._fd)
        try:
            try:
                _write(fd, content)
            finally:
                os.close(fd)
            os.rename(_IN_MAKING, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            os.unlink(_IN_MAKING, dir_fd=self._fd)
            raise


def _write(fd: int, content: bytes) -> None:
    if os.write(fd, content) != len(content):
        raise OSError(28, os.strerror(28))  # ENOSPC: the only reason for a short write this small


# --- opening ---


def directory_of(data_dir: str, network: str) -> str:
    """The network's directory, which is below `data_dir`. Raises CNIError."""
    if not network or "/" in network or "\0" in network or network in (".", ".."):
        raise CNIError("invalid network name", f"{network!r} is not the name of a directory")
    if "\0" in data_dir:
        raise CNIError("invalid dataDir", f"{data_dir!r} is not a path")
    return os.path.join(data_dir, network)


@contextmanager
def open_store(data_dir: str, network: str, timeout: float | None = None) -> Iterator[Store]:
    """The network's directory, made if missing, and locked for the length of the block.

    Raises CNIError in Go's words (``mkdir <path>: permission denied``), or TryAgainLater (code 11).
    """
    path = directory_of(data_dir, network)
    deadline = time.monotonic() + (lockfile.TIMEOUT if timeout is None else timeout)
    fd, lock = _open_locked(path, deadline)
    try:
        yield Store(path, fd)
    except OSError as error:
        raise explain_in("write", path, error) from None
    finally:
        lockfile.release(lock)
        os.close(fd)


def _open_locked(path: str, deadline: float) -> tuple[int, int]:
    """Descriptors of the directory and of its locked lock file."""
    while True:
        _make_directories(path)
        fds: list[int] = []
        what = path
        try:
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            what = os.path.join(path, LOCK)
            flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC
            fds.append(os.open(LOCK, flags, 0o750, dir_fd=fds[0]))
            lockfile.acquire(fds[1], what, deadline)
            # Somebody may have removed and remade the directory while we waited.
            if _is_file(fds[1], what):
                return fds[0], fds[1]
            _close(fds)
        except OSError as error:
            _close(fds)
            raise explain("open", what, error) from None
        except BaseException:
            _close(fds)
            raise


def _is_file(fd: int, path: str) -> bool:
    """Is the open file still the one at the path?"""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _make_directories(path: str) -> None:
    """mkdir -p, mode 0755. Raises CNIError."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent and parent != path:
        _make_directories(parent)
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        if not os.path.isdir(path):
            raise CNIError(f"mkdir {path}: not a directory", _ADVICE) from None
    except OSError as error:
        raise explain("mkdir", path, error) from None


_ADVICE = (
    "host-local keeps its reservations there: it needs a directory that it can write to "
    "(ipam.dataDir, by default /var/lib/cni/networks)"
)


def explain(operation: str, path: str, error: OSError) -> CNIError:
    """``open <path>: permission denied``, as the reference would say."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return CNIError(f"{operation} {path}: {reason.lower()}", _ADVICE)


def explain_in(operation: str, directory: str, error: OSError) -> CNIError:
    """The same of a file in an open directory, which the error tells."""
    name = error.filename2 or error.filename
    known = isinstance(name, str) and name not in ("", ".")
    return explain(operation, os.path.join(directory, name) if known else directory, error)
