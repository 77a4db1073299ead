"""The few calls Python's os module lacks: setns (until 3.12), prctl, fstatfs."""

from __future__ import annotations

import os
import signal
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    _SimpleCData,
    dlopen,
    dlsym,
    get_errno,
)

CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1


class _Int(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Function(CFuncPtr):
    """A function of the C library that returns an int; `ctypes` itself takes 5 ms to import."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_libc = dlopen(None, 0)  # type: ignore[arg-type]  # None: what is loaded already
_setns = _Function(dlsym(_libc, "setns"))
_prctl = _Function(dlsym(_libc, "prctl"))


def setns(fd: int) -> None:
    """Move the calling thread into the network namespace behind `fd`. Raises OSError."""
    _check(_setns(fd, CLONE_NEWNET))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent `parent` (a pid) dies."""
    _check(_prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(1)  # it died before we asked


def filesystem_magic(fd: int) -> int:
    """The magic number of the file system that `fd` is on (statfs(2)); 0 when it cannot be told."""
    import ctypes  # only to say what is wrong with a path

    buffer = (ctypes.c_long * 32)()  # struct statfs: f_type is its first word
    return int(buffer[0]) if ctypes.CDLL(None).fstatfs(fd, ctypes.byref(buffer)) == 0 else 0


def _check(result: int) -> None:
    if result != 0:
        errno = get_errno()
        raise OSError(errno, os.strerror(errno))
