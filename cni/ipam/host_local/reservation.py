"""One reservation: the name, content and extended attributes of its file.

A reader sees a whole file or none. All paths are relative to the descriptor of a directory whose
lock the caller holds, so no other process makes files there; one fixed name suffices for a file
that is being made, and such files do not pile up.

There are two extended attributes, which the reference ignores:

    user.cni.boot   the id that the kernel gave this boot. A file without one (the reference's) gets
                    it when we first see it. One with another id is of an earlier boot, whose
                    network namespaces are gone. Where /proc does not tell the kernel's own
                    id, nothing is noted, and nothing is of an earlier boot. No clock
                    decides: on a machine that learns the time from the network, files of this
                    boot may look old.
    user.cni.ns     which network namespace the address is for (netns.namespace.Identity), so that
                    an ADD can tell whether that still exists. Both fit into an inode of ext4.
"""

from __future__ import annotations

import os
import stat
import struct
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
from typing import TYPE_CHECKING

from ... import files
from ...netns import identify
from ...protocol.address import InvalidAddress, parse_ip

if TYPE_CHECKING:
    from ...netns.namespace import Identity

CONFLICT = "conflict"  # container of a reservation for an address that another host on the link has
LOCK = "lock"
LAST_RESERVED = "last_reserved_ip."
BOOT, NAMESPACE = "user.cni.boot", "user.cni.ns"
_NAMESPACE = struct.Struct("<IIQQ")  # the fields of netns.namespace.Identity

# Not an address, so that the reference does not take the file for a reservation.
IN_MAKING = ".new"

_MODE = 0o600
# Bytes of a content. A container id comes from an environment variable, which has at most 32 pages
# of up to 64 KB.
_USUAL_CONTENT, _MAX_CONTENT = 4096, 2 << 20
# Stands for the content of anything but a small regular file (a directory, a FIFO): the address
# counts as taken, but no attachment has it.
UNREADABLE = b"\0"
# Errors of a kernel or file system without O_TMPFILE, hard links or /proc.
_NO_UNNAMED = frozenset({EOPNOTSUPP, EISDIR, EINVAL, ENOENT})
_NO_LINK = frozenset({ENOENT, EPERM, EACCES, EOPNOTSUPP, EXDEV, ENOSYS, EMLINK, ELOOP})


def content_of(container_id: str, ifname: str | None = None) -> bytes:
    """The content of an attachment's reservation; without ifname, the form of old versions."""
    text = container_id.strip() if ifname is None else f"{container_id.strip()}\r\n{ifname}"
    return text.encode("utf-8", "surrogateescape")


def is_address(name: str) -> bool:
    """Is it the text of an IP address, as the name of a reservation is?"""
    try:
        parse_ip(name)
    except InvalidAddress:
        return False
    return True


def may_be_reservation(name: str) -> bool:
    """Can a file of that name be a reservation? Not the lock, the hints, and hidden files."""
    return name != LOCK and not name.startswith((".", LAST_RESERVED))


def name_of_file(file: str) -> str:
    """The name of the reservation in a file: on Windows files have ``_`` for ``:``."""
    address = file.replace("_", ":") if sys.platform == "win32" else file
    return address if is_address(address) else file


def content(directory: int | None, name: str) -> bytes | None:
    """The content of a file, without surrounding white space; None if there is no file.

    UNREADABLE if it is no regular file, or a large one. Raises OSError if it cannot be read now.
    Without a directory's descriptor, which Windows has not, `name` is a path.
    """
    try:
        fd = files.open_regular(name, dir_fd=directory)
    except FileNotFoundError:
        return None
    except files.Unusable:
        return UNREADABLE
    try:
        return content_of_open(fd, name)
    finally:
        os.close(fd)


def content_of_open(fd: int, name: str) -> bytes:
    """As `content`, for an open file; `name` is for the error. Raises OSError."""
    try:
        data = os.read(fd, _USUAL_CONTENT)
        if len(data) == _USUAL_CONTENT:  # a larger buffer would cost more than the rest
            data += os.read(fd, _MAX_CONTENT + 1 - len(data))
    except OSError as error:
        error.filename = name
        raise
    return data.strip() if len(data) <= _MAX_CONTENT else UNREADABLE


Attributes = dict[str, bytes]


def create(
    directory: int, name: str, data: bytes, attributes: Attributes, spare: str | None = None
) -> None:
    """Make a file with this content and these extended attributes.

    The `spare` file (a path) is used for it, if there is one. Raises FileExistsError, OSError.
    """
    if spare is not None and _create_of(spare, directory, name, data, attributes):
        return
    if not _create_unnamed(directory, name, data, attributes):
        if content(directory, name) is not None:
            raise FileExistsError(name)
        replace(directory, name, data, attributes)


def remove(directory: int, name: str, spare: str) -> None:
    """Remove a file; keep it as the `spare` file (a path) unless that exists.

    Where files come and go, making a file takes ext4 up to a millisecond: it does not reuse the
    inodes of files that were deleted within the last minutes, and skips them one by one. Raises
    OSError.
    """
    with suppress(OSError):
        os.link(name, spare, src_dir_fd=directory, follow_symlinks=False)
    os.unlink(name, dir_fd=directory)


def _create_of(spare: str, directory: int, name: str, data: bytes, attributes: Attributes) -> bool:
    """Fill the spare file, and give it the name; False if that does not work."""
    try:
        fd, status = files.open_and_stat(spare, os.O_RDWR)
    except OSError:
        return False
    try:
        # with two names it may still be a reservation: a process was killed
        fit = status.st_mode == stat.S_IFREG | _MODE and status.st_nlink == 1
        if fit:
            for key in (BOOT, NAMESPACE):
                _change(fd, key, attributes.get(key))
            files.write_all(fd, data)
            if status.st_size > len(data):
                os.ftruncate(fd, len(data))
            os.link(spare, name, dst_dir_fd=directory, follow_symlinks=False)
        # The address is reserved now, whether this works or not: a spare file with two names is
        # not used.
        with suppress(OSError):
            os.unlink(spare)
        return fit
    except FileExistsError:
        raise
    except OSError:
        return False
    finally:
        os.close(fd)


def _change(fd: int, key: str, value: bytes | None) -> None:
    """Give an attribute this value, or none. Raises OSError if the old one would stay."""
    before = _attribute(fd, key)
    if value == before:
        return
    if value is not None:
        with suppress(OSError):
            os.setxattr(fd, key, value)
            return
    if before is not None:
        os.removexattr(fd, key)


def _create_unnamed(directory: int, name: str, data: bytes, attributes: Attributes) -> bool:
    """Make a file that gets its name last (O_TMPFILE); False if that does not work."""
    try:
        flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
        fd = os.open(".", flags, _MODE, dir_fd=directory)
    except OSError as error:
        if error.errno in _NO_UNNAMED:
            return False
        raise
    try:
        for key, value in attributes.items():
            with suppress(OSError):
                os.setxattr(fd, key, value)
        files.write_all(fd, data)
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


def replace(directory: int, name: str, data: bytes, attributes: Attributes) -> None:
    """Write a file and rename it to its name. Raises OSError."""
    files.replace(name, data, _MODE, temporary=IN_MAKING, dir_fd=directory, attributes=attributes)


def overwrite(directory: int, name: str, data: bytes) -> None:
    """Write a file in place. Only for hints: a reader may see a part of the old content.

    ext4 and others write a file that replaces another, or was truncated, to the disk at once
    (auto_da_alloc), which takes longer than the rest of an ADD. Raises OSError.
    """
    try:
        flags = os.O_WRONLY | os.O_CREAT
        fd, status = files.open_and_stat(name, flags, _MODE, dir_fd=directory)
    except files.Unusable:
        return replace(directory, name, data, {})
    try:
        files.write_all(fd, data)
        if status.st_size > len(data):
            os.ftruncate(fd, len(data))
    finally:
        os.close(fd)
    return None


# --- notes of the boot and of the namespace ---


_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_told: list[tuple[bytes, bool]] = []  # no process outlives a boot


def told_boot() -> bytes:
    """The id of the boot in /proc, 16 bytes; b"" if there is none."""
    return _boot()[0]


def this_boot() -> bytes:
    """The id that the kernel gave this boot, 16 bytes; b"" where that is not known.

    Container managers (systemd-nspawn, LXC) mount a file with an id of the container over the
    kernel's file. If host and container shared a data directory, each would take the other's
    reservations for those of an earlier boot.
    """
    told, is_kernels = _boot()
    return told if is_kernels else b""


def _boot() -> tuple[bytes, bool]:
    if not _told:
        _told.append(_read_boot() if sys.platform != "win32" else (b"", False))
    return _told[0]


def _read_boot() -> tuple[bytes, bool]:
    try:
        fd, status = files.open_and_stat(_BOOT_ID)
        try:
            data = files.read_open(fd, 64, _BOOT_ID)
        finally:
            os.close(fd)
        # stat(2) does not tell the size of files in /proc
        return bytes.fromhex(data.decode().strip().replace("-", "")), status.st_size == 0
    except (OSError, ValueError):
        return b"", False


def note_boot(fd: int, boot_id: bytes) -> None:
    """Note the boot in an open file, if the file system has extended attributes."""
    with suppress(OSError):
        os.setxattr(fd, BOOT, boot_id)


def boot_of(file: int | str) -> bytes | None:
    """The boot that is noted in a file; None without a note, or without the file."""
    return _attribute(file, BOOT)


def namespace_note(path: str) -> bytes:
    """The note for the network namespace at `path` (CNI_NETNS); b"" if there is none."""
    identity = identify(path) if path else None
    try:
        return _NAMESPACE.pack(*identity) if identity is not None else b""
    except struct.error:  # a device or inode that does not fit
        return b""


def namespace_of(directory: int | None, name: str) -> Identity | None:
    """The noted namespace of a reservation; None without a note, or without the file.

    Without a directory's descriptor `name` is a path.
    """
    try:
        fd = files.open_regular(name, dir_fd=directory)
    except OSError:
        return None
    try:
        noted = _attribute(fd, NAMESPACE)
    finally:
        os.close(fd)
    if noted is None or len(noted) != _NAMESPACE.size:
        return None
    from ...netns.namespace import Identity

    return Identity(*_NAMESPACE.unpack(noted))


def _attribute(file: int | str, key: str) -> bytes | None:
    try:
        return os.getxattr(file, key)
    except OSError:
        return None
