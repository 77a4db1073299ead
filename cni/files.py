"""Writing files completely or not at all, and reading those of others without waiting.

Writing: `replace` writes beside the file and renames, so a reader sees the old content or the new.
Reading: what other programs, users or containers have left where we look may be a FIFO, a device,
a symbolic link or without an end. `open_regular` and `read` refuse those with `Unusable`, at once.

Both work relative to a directory's descriptor, too, as openat(2) does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from errno import EINVAL, EISDIR, ELOOP, ENOSPC, ENXIO

# Windows has none of these but O_BINARY and O_NOINHERIT, which only it has.
_COMMON = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_BINARY", "O_NOINHERIT"))
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _COMMON

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
_KIND = stat.S_IFMT(0xFFFF)  # the bits of st_mode that tell it
_CHUNK = 1 << 16


class Unusable(OSError):
    """A file that is not read: no regular file, or too large. `strerror` says which."""


def open_null() -> int:
    """A descriptor to put where nothing is to be read or written: of /dev/null, where it exists.

    In a root directory without devices it is an empty file in memory. Raises OSError.
    """
    try:
        return os.open(os.devnull, os.O_RDWR | _COMMON)
    except OSError:
        if not hasattr(os, "memfd_create"):
            raise
        return os.memfd_create("null")


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, in as many calls as it takes. Raises OSError, also when none is taken.

    A write(2) that takes a part is how a disk that gets full announces itself: the next one fails.
    """
    view = memoryview(data)
    while view:
        written = os.write(fd, view)
        if not written:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        view = view[written:]


def replace(
    path: str,
    data: bytes,
    mode: int = 0o600,
    sync: bool = False,
    *,
    temporary: str = "",
    dir_fd: int | None = None,
    attributes: Mapping[str, bytes] | None = None,
) -> None:
    """Make the file `path` contain `data`, with these permission bits. Raises OSError.

    When it fails, or a signal's exception ends it, the file is as it was before. The data is first
    in the file `temporary` (default: ``<path>~``), which must be on the same file system and have
    one writer at a time. Only a SIGKILL leaves that behind; the next `replace` takes it over.

    With `sync` the data is on the disk before it gets the name, so that after a power failure, too,
    the file has the old content or the new. Without it, a file system may then have neither.

    `attributes` are extended attributes, left out where the file system has none.
    """
    temporary = temporary or f"{path}~"
    try:
        fd = _create(temporary, mode, dir_fd)
        try:
            if mode & 0o077:
                os.fchmod(fd, mode)  # whatever the umask is
            for name, value in (attributes or {}).items():
                _note(fd, name, value)
            write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        try:
            os.unlink(temporary, dir_fd=dir_fd)
        except OSError:
            pass  # it was not made
        raise


def _note(fd: int, name: str, value: bytes) -> None:
    try:
        os.setxattr(fd, name, value)
    except OSError:
        pass


def _create(path: str, mode: int, dir_fd: int | None) -> int:
    try:
        return os.open(path, _CREATE, mode, dir_fd=dir_fd)
    except FileExistsError:  # a killed process left it
        os.unlink(path, dir_fd=dir_fd)
        return os.open(path, _CREATE, mode, dir_fd=dir_fd)


def open_regular(
    path: str,
    flags: int = os.O_RDONLY,
    mode: int = 0o600,
    *,
    dir_fd: int | None = None,
    follow: bool = False,
) -> int:
    """A descriptor of the regular file `path`; close it. `flags` and `mode` as for os.open.

    Never waits for anybody. A symbolic link at the end of the path is refused, unless `follow`.
    Raises Unusable for what is no regular file, and OSError as os.open does.
    """
    return open_and_stat(path, flags, mode, dir_fd=dir_fd, follow=follow)[0]


def open_and_stat(
    path: str,
    flags: int = os.O_RDONLY,
    mode: int = 0o600,
    *,
    dir_fd: int | None = None,
    follow: bool = False,
) -> tuple[int, os.stat_result]:
    """As `open_regular`: the descriptor, and what fstat(2) says of the file."""
    flags |= _COMMON | _NEVER_WAIT | (0 if follow else _NOFOLLOW)
    try:
        fd = os.open(path, flags, mode, dir_fd=dir_fd)
    except OSError as error:
        # ELOOP: O_NOFOLLOW met a link. EISDIR: a directory, to be written to. ENXIO: a socket, a
        # FIFO that nobody reads, or a device that is not there.
        if error.errno in (ELOOP, EISDIR, ENXIO):
            _check_kind(os.stat(path, dir_fd=dir_fd, follow_symlinks=follow), path)
        raise
    try:
        status = os.fstat(fd)
        if status.st_mode & _KIND != stat.S_IFREG:
            _check_kind(status, path)
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def _check_kind(status: os.stat_result, path: str) -> None:
    """Raises Unusable unless it is a regular file."""
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        if kind == stat.S_IFDIR:
            raise Unusable(EISDIR, os.strerror(EISDIR), path)
        raise Unusable(EINVAL, f"is {_KINDS.get(kind, 'no file')}, not a regular file", path)


def read(path: str, limit: int, *, dir_fd: int | None = None, follow: bool = False) -> bytes:
    """All bytes of the regular file `path`, which has at most `limit` bytes.

    As `open_regular`: never waits, and follows a symbolic link at the end only with `follow`.
    Raises FileNotFoundError if there is none, Unusable, or OSError.
    """
    fd, status = open_and_stat(path, dir_fd=dir_fd, follow=follow)
    try:
        return read_open(fd, limit, path, status.st_size)
    finally:
        os.close(fd)


def read_open(fd: int, limit: int, path: str = "", expected: int = 0) -> bytes:
    """What is left to read of an open regular file, at most `limit` bytes.

    `expected` bytes are there according to fstat(2), which says 0 of files of the kernel. Raises
    Unusable (`path` is for its message) if there is more than `limit`, OSError.
    """
    chunks: list[bytes] = []
    size = 0
    while chunk := os.read(fd, min(_CHUNK, limit + 1 - size)):
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise Unusable(EINVAL, f"is larger than {limit} bytes", path)
        if size == expected:
            break  # another read would only find the end
    return b"".join(chunks)


# --- programs -------------------------------------------------------------------------------------

# A runtime's PATH may be missing or bare; the administrator's tools are in one of these.
_SYSTEM_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")


def find_program(name: str) -> str | None:
    """The program `name` on PATH, else in the system's directories; None when there is none."""
    directories = [d for d in os.environ.get("PATH", "").split(":") if d.startswith("/")]
    for directory in (*directories, *_SYSTEM_PATH):
        candidate = f"{directory}/{name}"
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None
