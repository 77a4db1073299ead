"""The directory in which host-local keeps its reservations
(docs/spec/host-local.md, "On-disk state").

    <dataDir>/<network>/
      10.1.2.2             <container id> CR LF <ifname>; of old versions, the id alone
      last_reserved_ip.0   the address that range set 0 handed out last
      lock                 flock around every look and every change
    <dataDir>/.cni/
      <network>.index      what the directory says, for fast lookups (index.py)
      <network>.spare      a file of the last reservation released, for the next one
      <network>.sticky     which address a pod had (sticky.py)

The reference can use the same directory at the same time. A reservation appears completely or not
at all (reservation.py). An empty file (the reference was killed, or the disk was full) is a free
address.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from ... import files, lockfile
from ...protocol.errors import CNIError, advice_for
from . import reservation
from .reservation import LOCK
from .store import INDEX_SUFFIX, Store

SIDECARS = ".cni"  # a network's name cannot begin with a dot


class Location(NamedTuple):
    """The place of a network's reservations: its directory and its index.

    With `reclaim`, reservations of an earlier boot count as free, and are released.
    """

    path: str
    index_path: str
    reclaim: bool = False

    @classmethod
    def of(cls, data_dir: str, network: str, reclaim: bool = False) -> Location:
        """The location of a network below `data_dir`. Raises CNIError if it cannot be a path."""
        if not network or "/" in network or "\0" in network or network in (".", ".."):
            raise CNIError("invalid network name", f"{network!r} is not the name of a directory")
        if "\0" in data_dir:
            raise CNIError("invalid dataDir", f"{data_dir!r} is not a path")
        below = os.path.join(data_dir, "")
        index_path = f"{below}{SIDECARS}{os.sep}{network}{INDEX_SUFFIX}"
        return cls(f"{below}{network}", index_path, reclaim)

    def open(self, timeout: float | None = None) -> AbstractContextManager[Store]:
        """The store, with the directory made if missing, locked for the length of the block.

        `timeout` (seconds; None: lockfile.TIMEOUT) is for the lock. Raises TryAgainLater (code 11),
        or CNIError in Go's words (``mkdir <path>: permission denied``), also for an OSError of the
        block.
        """
        return _opened(self, timeout)


def scan(
    path: str, unreadable: Callable[[CNIError], None] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Name and content of files that may be reservations; takes no lock, changes nothing.

    `path` is the network's directory; contents are as of Store.leases. A file that cannot be read
    is left out and its error given to `unreadable`; without that, it is raised. Raises CNIError.
    """
    fd = None
    try:
        if sys.platform != "win32":
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        names = os.listdir(path if fd is None else fd)
    except OSError as error:
        _close([] if fd is None else [fd])
        raise explain("open", path, error) from None
    try:
        for name in filter(reservation.may_be_reservation, names):
            try:
                content = reservation.content(fd, os.path.join(path, name) if fd is None else name)
            except OSError as error:
                failure = explain("read", os.path.join(path, name), error)
                if unreadable is None:
                    raise failure from None
                unreadable(failure)
                continue
            if content is not None:
                yield reservation.name_of_file(name), content
    finally:
        _close([] if fd is None else [fd])


def open_store(
    data_dir: str, network: str, timeout: float | None = None, reclaim: bool = False
) -> AbstractContextManager[Store]:
    """Location.open of a network below `data_dir`."""
    return Location.of(data_dir, network, reclaim).open(timeout)


@contextmanager
def _opened(location: Location, timeout: float | None) -> Iterator[Store]:
    path = location.path
    deadline = time.monotonic() + (lockfile.TIMEOUT if timeout is None else timeout)
    store: Store
    if sys.platform == "win32":
        from .store_windows import WindowsStore

        fds = [_lock_on_windows(path, deadline)]
        store = WindowsStore(path)
    else:
        fds = _open_locked(path, deadline)
        store = Store(path, fds[0], location.index_path, location.reclaim)
    try:
        yield store
    except OSError as error:
        raise explain_in("write", path, error) from None
    finally:
        store.close()
        lockfile.release(fds.pop())
        _close(fds)


def _lock_on_windows(path: str, deadline: float) -> int:
    """A descriptor of the locked lock file; on Windows a directory has no descriptor."""
    make_directories(path)
    what = os.path.join(path, LOCK)
    try:
        lock = files.open_regular(what, os.O_RDWR | os.O_CREAT, 0o640)
    except OSError as error:
        raise explain("open", what, error) from None
    try:
        lockfile.acquire(lock, what, deadline)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _open_locked(path: str, deadline: float) -> list[int]:
    """Descriptors of the directory and of its locked lock file."""
    while True:
        fds: list[int] = []
        what = path
        try:
            fds.append(_open_directory(path))
            what = os.path.join(path, LOCK)
            # flags and mode are the reference's (docs/spec/host-local.md)
            flags = os.O_RDONLY | os.O_CREAT
            # relative to the open directory: the lock is that of the
            # files which are read and changed
            lock, status = files.open_and_stat(LOCK, flags, 0o750, dir_fd=fds[0])
            fds.append(lock)
            lockfile.acquire(lock, what, deadline)
            # The directory may have been removed and recreated while we waited.
            if _is_at(status, what):
                return fds
            _close(fds)
        except OSError as error:
            _close(fds)
            raise explain("open", what, error) from None
        except BaseException:
            _close(fds)
            raise


def _open_directory(path: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        make_directories(path)
        return os.open(path, flags)


def _is_at(file: os.stat_result, path: str) -> bool:
    """Is the file still the one at the path?"""
    try:
        return os.path.samestat(file, os.stat(path))
    except FileNotFoundError:
        return False


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def make_directories(path: str) -> None:
    """mkdir -p, mode 0755. Raises CNIError."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent and parent != path:
        make_directories(parent)
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        if not os.path.isdir(path):
            raise CNIError(f"mkdir {path}: not a directory", _ADVICE) from None
    except OSError as error:
        raise explain("mkdir", path, error) from None


_ADVICE = (
    "reservations are kept there: let it be a directory that can be written to, or name another "
    "one as ipam.dataDir"
)


def explain(operation: str, path: str, error: OSError) -> CNIError:
    """The error ``open <path>: permission denied``, in the reference's form."""
    reason = error.strerror or str(error)
    return CNIError(f"{operation} {path}: {reason.lower()}", advice_for(error) or _ADVICE)


def explain_in(operation: str, directory: str, error: OSError) -> CNIError:
    """As `explain`, for the file in `directory` that the error names, or else the directory."""
    name = error.filename2 or error.filename
    known = isinstance(name, str) and name not in ("", ".")
    return explain(operation, os.path.join(directory, name) if known else directory, error)
