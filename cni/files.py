"""Writing files completely or not at all, and reading those of others without waiting.

Writing: `replace` writes beside the file and renames, so a reader sees the old content or the new.
Reading: at our paths other programs, users or containers may have put a FIFO, a device, a symbolic
link, or a file without end. `open_regular` and `read` refuse those with `Unusable`, without
waiting.

Both also work relative to a directory's descriptor, as openat(2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from errno import EINVAL, EISDIR, ELOOP, ENOSPC, ENXIO

# Windows has none of these but O_BINARY and O_NOINHERIT, which only it has.
_COMMON = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_BINARY", "O_NOINHERIT"))
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
# O_NOCTTY: a terminal at the path must not become this process's controlling one
_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
# O_EXCL also refuses a symbolic link: nobody can divert what is written to another file.
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
    """A file that must not be read: it is no regular file, or too large; `strerror` says which."""


def open_null() -> int:
    """A descriptor of /dev/null; of an empty file in memory if the root directory has no devices.

    Raises OSError.
    """
    try:
        return os.open(os.devnull, os.O_RDWR | _COMMON)
    except OSError:
        if not hasattr(os, "memfd_create"):
            raise
        return os.memfd_create("null")


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, in several calls if needed. Raises OSError, also if one writes nothing.

    When a disk becomes full, one write(2) writes a part, and only the next one fails.
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

    After a failure, or an exception of a signal, the file is unchanged. The data is first written
    to the file `temporary` (default: ``<path>~``), which must be on the same file system and have
    one writer at a time. Only a SIGKILL leaves that file; the next `replace` overwrites it.

    With `sync` the data is on the disk before it gets the name, so that the file has the old or the
    new content even after a power failure. Without it, a file system may then have neither.

    `attributes` are extended attributes, left out if the file system has none.
    """
    temporary = temporary or f"{path}~"
    try:
        fd = _create(temporary, mode, dir_fd)
        try:
            # without bits of group and others no usual umask changes the mode, so the call is saved
            if mode & 0o077:
                os.fchmod(fd, mode)  # independent of the umask
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
    except FileExistsError:  # left by a process that was killed
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

    Never waits. Refuses a symbolic link at the end of the path, unless `follow`. Raises Unusable if
    it is no regular file, and OSError as os.open.
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
        # ELOOP: O_NOFOLLOW and a link. EISDIR: writing to a directory. ENXIO: a socket, a FIFO
        # without reader, or a device that does not exist.
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
    """Raise Unusable unless it is a regular file."""
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
    """The rest of an open regular file, at most `limit` bytes.

    `expected` is the size by fstat(2), which is 0 for files of the kernel. Raises Unusable (`path`
    is for its message) if there is more than `limit`, OSError.
    """
    chunks: list[bytes] = []
    size = 0
    # one byte more than the limit tells a file that is too large
    # from one that has exactly the limit
    while chunk := os.read(fd, min(_CHUNK, limit + 1 - size)):
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise Unusable(EINVAL, f"is larger than {limit} bytes", path)
        if size == expected:
            break  # another read would only return the end
    return b"".join(chunks)


# --- programs -------------------------------------------------------------------------------------

# A runtime's PATH may be missing or minimal; administrators' tools are in one of these.
_SYSTEM_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")


def find_program(name: str) -> str | None:
    """The program `name` on PATH, else in the system's directories; None when there is none."""
    # relative entries would depend on the working directory, which the runtime has chosen
    directories = [d for d in os.environ.get("PATH", "").split(":") if d.startswith("/")]
    for directory in (*directories, *_SYSTEM_PATH):
        candidate = f"{directory}/{name}"
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None
