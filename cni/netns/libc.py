"""The few calls Python's os module lacks: setns (until 3.12), prctl, fstatfs.

The interpreter of the self-contained file has them in a module of its own
(tools/interpreter/src/native.c), since a static program can load no C library.
"""

from __future__ import annotations

import os
import sys

CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9

if "_cni_embedded" in sys.builtin_module_names:
    from _cni_embedded import fstatfs as _fstatfs
    from _cni_embedded import prctl as _prctl
    from _cni_embedded import setns as _setns
else:
    from _ctypes import (
        FUNCFLAG_CDECL,
        FUNCFLAG_USE_ERRNO,
        CFuncPtr,
        _SimpleCData,
        dlopen,
        dlsym,
        get_errno,
    )

    class _Int(_SimpleCData):  # type: ignore[type-arg]
        _type_ = "i"

    class _Function(CFuncPtr):
        """A function of the C library that returns an int; `ctypes` takes 5 ms to import."""

        _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
        _restype_ = _Int

    _libc = dlopen(None, 0)  # type: ignore[arg-type]  # None: what is loaded already
    _libc_setns = _Function(dlsym(_libc, "setns"))
    _libc_prctl = _Function(dlsym(_libc, "prctl"))

    def _setns(fd: int, kind: int) -> None:
        _check(_libc_setns(fd, kind))

    def _prctl(option: int, value: int) -> None:
        _check(_libc_prctl(option, value, 0, 0, 0))

    def _fstatfs(fd: int) -> int:
        import ctypes  # only to say what is wrong with a path

        buffer = (ctypes.c_long * 32)()  # struct statfs: f_type is its first word
        return int(buffer[0]) if ctypes.CDLL(None).fstatfs(fd, ctypes.byref(buffer)) == 0 else 0

    def _check(result: int) -> None:
        if result != 0:
            errno = get_errno()
            raise OSError(errno, os.strerror(errno))


def setns(fd: int) -> None:
    """Move the calling thread into the network namespace behind `fd`. Raises OSError."""
    _setns(fd, CLONE_NEWNET)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent `parent` (a pid) dies."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the prctl


def filesystem_magic(fd: int) -> int:
    """The magic number of the file system that `fd` is on (statfs(2)); 0 if that is not known."""
    try:
        return int(_fstatfs(fd))
    except OSError:
        return 0
