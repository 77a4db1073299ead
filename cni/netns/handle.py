"""Opening a namespace by the number that was noted of it: open_by_handle_at(2), Linux 6.18.

The kernel finds it whatever holds it: a process, a mount in whatever mount namespace, or a mere
descriptor. So it also says for certain when a namespace is gone, to a caller that may open all: to
others it says the same of those that they may not open (do_handle_to_path in fs/fhandle.c).
linux/nsfs.h has the layout of the handle.
"""

from __future__ import annotations

import os
import struct
from errno import ESTALE

from ..kernel.errors import TRANSIENT
from .namespace import Identity

_HANDLE = struct.Struct("=IiQII")  # struct file_handle, with a struct nsfs_file_handle in it
_SIZE, _FILEID_NSFS = 16, 0xF1
_FD_NSFS_ROOT = -10003
_CLONE_NEWNET = 0x40000000
_FIRST_USER_NAMESPACE = 0xEFFFFFFD  # its inode (linux/nsfs.h)


class Unknown(Exception):
    """This kernel cannot tell, or not this process."""


def reopen(noted: Identity) -> int | None:
    """A descriptor of the noted namespace; None if that has ceased to exist.

    Raises Unknown; OSError where this process is short of something.
    """
    if not noted.number:
        raise Unknown
    handle = _HANDLE.pack(_SIZE, _FILEID_NSFS, noted.number, _CLONE_NEWNET, noted.inode)
    from ..kernel import syscalls  # few requests ask for a namespace that is not at its path

    try:
        return int(syscalls.open_by_handle(_FD_NSFS_ROOT, handle, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == ESTALE and _may_open_all():
            return None
        if error.errno in TRANSIENT:
            raise
        raise Unknown from None


def _may_open_all() -> bool:
    """Has this process CAP_SYS_ADMIN over every user namespace?"""
    from ..kernel import capability

    try:
        is_first = os.stat("/proc/self/ns/user").st_ino == _FIRST_USER_NAMESPACE
    except OSError:
        return False
    return is_first and capability.is_effective("CAP_SYS_ADMIN")
