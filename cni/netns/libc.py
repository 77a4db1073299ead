"""The few calls Python's os module lacks: setns (until 3.12), prctl, fstatfs."""

from __future__ import annotations

import ctypes
import os
import signal

CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def setns(fd: int) -> None:
    """Move the calling thread into the network namespace behind `fd`. Raises OSError."""
    _check(_libc.setns(fd, CLONE_NEWNET))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent `parent` (a pid) dies."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(1)  # it died before we asked


def filesystem_magic(fd: int) -> int:
    """The magic number of the file system that `fd` is on (statfs(2)); 0 when it cannot be told."""
    buffer = (ctypes.c_long * 32)()  # struct statfs: f_type is its first word
    return int(buffer[0]) if _libc.fstatfs(fd, ctypes.byref(buffer)) == 0 else 0


def _check(result: int) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
