"""Opening a namespace by its noted number: open_by_handle_at(2), Linux 6.18.

The kernel finds the namespace, whether a process, a mount of any mount namespace, or only a
descriptor holds it. So its refusal means that the namespace is gone, if the caller may open every
namespace. To other callers it gives the same error for namespaces that they may not open
(do_handle_to_path in fs/fhandle.c, may_see_all_namespaces in kernel/nscommon.c).
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
# Inodes of the first namespaces (linux/nsfs.h).
_FIRST = {"user": 0xEFFFFFFD, "pid": 0xEFFFFFFC}


class Unknown(Exception):
    """This kernel cannot tell, or it does not tell this process."""


def reopen(noted: Identity) -> int | None:
    """A descriptor of the noted namespace; None if that has ceased to exist.

    Raises Unknown; OSError if this process lacks descriptors or memory.
    """
    if not noted.number:
        raise Unknown
    handle = _HANDLE.pack(_SIZE, _FILEID_NSFS, noted.number, _CLONE_NEWNET, noted.inode)
    from ..kernel import syscalls  # few requests look for a namespace that is not at its path

    try:
        return int(syscalls.open_by_handle(_FD_NSFS_ROOT, handle, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == ESTALE and may_open_all():
            return None
        if error.errno in TRANSIENT:
            raise
        raise Unknown from None


def may_open_all() -> bool:
    """Has this process CAP_SYS_ADMIN over every namespace, and is it in the first PID namespace?

    In another PID namespace Linux 6.19 and later open only the caller's own namespaces.
    """
    from ..kernel import capability

    try:
        if any(os.stat(f"/proc/self/ns/{kind}").st_ino != its for kind, its in _FIRST.items()):
            return False
    except OSError:
        return False
    return capability.is_effective("CAP_SYS_ADMIN")
