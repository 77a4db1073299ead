"""A log file that a configuration names, in DIRECTORY, where others cannot put a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

DIRECTORY = "/var/log/cni"


def opened(path: str, open_in: Callable[[str, int], int]) -> int:
    """A descriptor of the file, which `open_in` opens by its name and its directory's descriptor.

    The directory is made if it is missing. Only root, or our user, may be able to change it.
    Raises OSError.
    """
    directory, _, name = path.rpartition("/")
    if directory != DIRECTORY or name in ("", ".", ".."):
        raise PermissionError(path)
    try:
        fd = _open_directory(directory)
    except FileNotFoundError:
        os.mkdir(directory, 0o750)
        fd = _open_directory(directory)
    try:
        status = os.fstat(fd)
        writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if writable or status.st_uid not in (0, os.geteuid()):
            raise PermissionError(directory)
        return open_in(name, fd)
    finally:
        os.close(fd)


def _open_directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
