"""Directories of state: their listings, and the contents of their files.

Every step is relative to the descriptor of a directory, and links are not followed: the owner of a
directory of state might want root to read other files for him. FIFOs, devices and sockets are
listed, but not opened. Large files are cut, binary ones only listed.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from cni import files

_MOST_FILES = 3000  # of one directory tree
_MOST_LISTED = 20_000
_MOST_BYTES = 8 << 20
_FILE = 256 << 10
_DEPTH = 4
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry(NamedTuple):
    """Something in a directory tree: the path below its root, and lstat(2) of it."""

    path: str
    status: os.stat_result
    target: str = ""  # of a symbolic link


class Content(NamedTuple):
    """The content of a file, which may have been cut; or why there is none."""

    path: str
    data: bytes
    problem: str = ""


def read(root: str, wanted: tuple[str, ...] = ()) -> Iterator[Content]:
    """The listing of a directory tree (its path is ""), then its files, or those whose names end
    with one of `wanted`. Reservations of host-local come as one text. Raises OSError.
    """
    listed: list[str] = []
    contents: list[Content] = []
    reservations: list[str] = []
    left = _MOST_BYTES
    fd = os.open(root, _FLAGS & ~os.O_NOFOLLOW)  # the root itself was named by an administrator
    try:
        for entry, directory in _walk(fd, "", os.fstat(fd).st_dev, 0):
            if len(listed) >= _MOST_LISTED:
                listed.append(f"… more than {_MOST_LISTED} are not listed")
                break
            listed.append(_line(entry))
            if not stat.S_ISREG(entry.status.st_mode) or not entry.path.endswith(wanted or ("",)):
                continue
            name = os.path.basename(entry.path)
            if _is_reservation(name):
                # One text for all: a large network has thousands of files of a few bytes.
                reservations.append(f"{entry.path}\t{_reservation(directory, name)}")
                continue
            if len(contents) >= _MOST_FILES or left <= 0:
                continue
            content = _content(directory, entry)
            left -= len(content.data)
            contents.append(content)
    finally:
        os.close(fd)
    yield Content("", "".join(f"{line}\n" for line in listed).encode("utf-8", "surrogateescape"))
    if reservations:
        text = "".join(f"{line}\n" for line in reservations)
        yield Content("reservations", text.encode("utf-8", "surrogateescape"))
    if len(contents) >= _MOST_FILES or left <= 0:
        yield Content("more", b"", "there are more files, or more bytes, than a dump takes")
    yield from contents


def _walk(directory: int, path: str, device: int, depth: int) -> Iterator[tuple[Entry, int]]:
    """Entries below an open directory, each with the descriptor of the one that it is in."""
    try:
        names = sorted(os.listdir(directory), key=os.fsencode)
    except OSError:
        return
    for name in names:
        below = f"{path}/{name}" if path else name
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else ""
        except OSError:
            continue  # just removed
        yield Entry(below, status, target), directory
        # Not into other file systems: below a directory of state anything may be mounted.
        if stat.S_ISDIR(status.st_mode) and status.st_dev == device and depth < _DEPTH:
            try:
                fd = os.open(name, _FLAGS, dir_fd=directory)
            except OSError:
                continue
            try:
                yield from _walk(fd, below, device, depth + 1)
            finally:
                os.close(fd)


def _line(entry: Entry) -> str:
    status = entry.status
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime))
    kind = stat.filemode(status.st_mode)
    shown = f"{kind} {status.st_uid}:{status.st_gid} {status.st_size:>9} {when} {entry.path!a}"
    return f"{shown} -> {entry.target!a}" if entry.target else shown


def _content(directory: int, entry: Entry) -> Content:
    name = os.path.basename(entry.path)
    try:
        fd, status = files.open_and_stat(name, dir_fd=directory)
    except OSError as error:
        return Content(entry.path, b"", (error.strerror or str(error)).lower())
    try:
        data = os.read(fd, _FILE)
    except OSError as error:
        return Content(entry.path, b"", (error.strerror or str(error)).lower())
    finally:
        os.close(fd)
    if b"\0" in data[:1024]:
        return Content(entry.path, b"", "binary: only listed")
    cut = f"cut: has {status.st_size} bytes" if status.st_size > len(data) else ""
    return Content(entry.path, data, cut)


def _is_reservation(name: str) -> bool:
    from cni.ipam.host_local.reservation import is_address

    return is_address(name)


def _reservation(directory: int, name: str) -> str:
    from cni.ipam.host_local import reservation

    try:
        content = reservation.content(directory, name)
    except OSError as error:
        return f"(cannot be read: {error.strerror})"
    if content == reservation.UNREADABLE:
        return "(no small regular file)"
    return ascii((content or b"").decode("utf-8", "surrogateescape"))[1:-1][:400]
