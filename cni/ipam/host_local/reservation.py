"""Files that are whole from their first moment, and know of which boot they are.

A reader sees all of one or none. Everything is relative to the descriptor of a directory in which
nobody else makes any at the same time; so one fixed name is enough for files in the making, and
none pile up.

The kernel gives every boot an id. It is noted in an extended attribute of a reservation, which the
reference does not look at; a file without one (the reference's) gets it when we first see it. So a
reservation with another id is of an earlier boot, whose network namespaces are gone. No clock is
asked: on a machine that learns the time from the network, files of this boot may look old.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
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

from ... import files
from ...protocol.address import InvalidAddress, parse_ip

LOCK = "lock"
LAST_RESERVED = "last_reserved_ip."
BOOT = "user.cni.boot"

# No address, so that the reference does not take it for a reservation.
IN_MAKING = ".new"

if sys.platform == "win32":
    READ = os.O_RDONLY | os.O_BINARY | os.O_NOINHERIT
else:
    READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MODE = 0o600
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


def is_ours(name: str) -> bool:
    """May it be a reservation, or is it a file of the directory's own?"""
    return name != LOCK and not name.startswith((".", LAST_RESERVED))


def content(directory: int | None, name: str) -> bytes | None:
    """A small file without surrounding white space; None if there is none, or UNREADABLE.

    Without a directory's descriptor, which Windows has not, `name` is a path.
    """
    try:
        fd = os.open(name, READ, dir_fd=directory)
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


def create(
    directory: int, name: str, data: bytes, boot_id: bytes = b"", spare: str | None = None
) -> None:
    """Make a file, marked with the boot's id if one is given; of the `spare` one if there is one.

    Raises FileExistsError, OSError.
    """
    if spare is not None and _create_of(spare, directory, name, data, boot_id):
        return
    if not _create_unnamed(directory, name, data, boot_id):
        if content(directory, name) is not None:
            raise FileExistsError(name)
        replace(directory, name, data, boot_id)


def remove(directory: int, name: str, spare: str) -> None:
    """Remove a file, and keep it as the `spare` one (a path) unless there is one.

    To make a file takes ext4 up to a millisecond where files come and go: what was deleted within
    the last minutes is not used again, and passed over one by one. Raises OSError.
    """
    with suppress(OSError):
        os.link(name, spare, src_dir_fd=directory, follow_symlinks=False)
    os.unlink(name, dir_fd=directory)


def _create_of(spare: str, directory: int, name: str, data: bytes, boot_id: bytes) -> bool:
    """By filling the spare file and naming it; False where that does not work."""
    try:
        fd = os.open(spare, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        # one with two names may still be a reservation: somebody was killed
        fit = status.st_mode == stat.S_IFREG | _MODE and status.st_nlink == 1
        if fit:
            _fill(fd, data, boot_id if boot_id != boot_of(fd) else b"")
            if status.st_size > len(data):
                os.ftruncate(fd, len(data))
            os.link(spare, name, dst_dir_fd=directory, follow_symlinks=False)
        os.unlink(spare)
        return fit
    except FileExistsError:
        raise
    except OSError:
        return False
    finally:
        os.close(fd)


def _create_unnamed(directory: int, name: str, data: bytes, boot_id: bytes) -> bool:
    """By a file that gets its name last; False where that does not work."""
    try:
        flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
        fd = os.open(".", flags, _MODE, dir_fd=directory)
    except OSError as error:
        if error.errno in _NO_UNNAMED:
            return False
        raise
    try:
        _fill(fd, data, boot_id)
        # With a dst_dir_fd Python calls linkat with AT_SYMLINK_FOLLOW, without it link, which
        # does not follow.
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    finally:
        os.close(fd)
    return True


def replace(directory: int, name: str, data: bytes, boot_id: bytes = b"") -> None:
    """By a file that is renamed to its name. Raises OSError."""
    attributes = {BOOT: boot_id} if boot_id else None
    files.replace(name, data, _MODE, temporary=IN_MAKING, dir_fd=directory, attributes=attributes)


def overwrite(directory: int, name: str, data: bytes) -> None:
    """For a file that is only a hint: in place, so for a moment it has the old one's end.

    A file that takes another's name, or was emptied first, is written to the disk at once by ext4
    and others (auto_da_alloc), which takes longer than all the rest of an ADD. Raises OSError.
    """
    try:
        fd = os.open(
            name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE, dir_fd=directory
        )
    except OSError as error:
        if error.errno != ELOOP:
            raise
        return replace(directory, name, data)
    try:
        _fill(fd, data, b"")
        if os.fstat(fd).st_size > len(data):
            os.ftruncate(fd, len(data))
    finally:
        os.close(fd)
    return None


def _fill(fd: int, data: bytes, boot_id: bytes) -> None:
    if boot_id:
        note_boot(fd, boot_id)
    files.write_all(fd, data)


# --- which boot ---


_this_boot: list[bytes] = []  # no process outlives it


def this_boot() -> bytes:
    """This boot's id; b"" if /proc does not tell."""
    if not _this_boot:
        _this_boot.append(_boot_id())
    return _this_boot[0]


def _boot_id() -> bytes:
    if sys.platform == "win32":
        return b""
    try:
        fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return bytes.fromhex(os.read(fd, 64).decode().strip().replace("-", ""))
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return b""


def note_boot(fd: int, boot_id: bytes) -> None:
    """Note it in an open file, where the file system can."""
    with suppress(OSError):
        os.setxattr(fd, BOOT, boot_id)


def boot_of(file: int | str) -> bytes | None:
    """The boot that is noted in a file; None if there is none, or no such file."""
    try:
        return os.getxattr(file, BOOT)
    except OSError:
        return None
