"""System calls for which Python has no function, and which few requests make, or only the server
and the dhcp daemon.

Through ctypes; the interpreter of the self-contained file, which cannot load a C library, has a
module of its own for them (tools/interpreter/src/native.c). Each raises OSError.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from errno import ENOSYS

if "_cni_embedded" in sys.builtin_module_names:
    from _cni_embedded import attach_filter, capget, madvise, open_by_handle, statx, unshare
else:
    import ctypes

    _LINUX_CAPABILITY_VERSION_3 = 0x20080522
    _AT_EMPTY_PATH = 0x1000
    _SO_ATTACH_FILTER = 26

    _libc = ctypes.CDLL(None, use_errno=True)
    _capget, _statx = _libc.capget, getattr(_libc, "statx", None)
    _libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # The kernel writes to these. Callers read them through a Struct, which takes less time.
    _capability_header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    _capability_data = bytearray(24)
    _capability_buffer = (ctypes.c_char * 24).from_buffer(_capability_data)
    _statx_data = bytearray(256)
    _statx_buffer = (ctypes.c_char * 256).from_buffer(_statx_data)

    def capget(pid: int) -> bytes | bytearray:
        """A process's effective, permitted and inheritable capabilities, twice: six words.

        Valid until the next call.
        """
        _capability_header[1] = pid
        _check(_capget(_capability_header, _capability_buffer))
        return _capability_data

    def statx(fd: int, mask: int) -> bytes | bytearray:
        """struct statx of the open file `fd`; `mask` says which fields are wanted.

        Valid until the next call.
        """
        if _statx is None:
            raise OSError(ENOSYS, os.strerror(ENOSYS))  # a C library of before 2018
        _check(_statx(fd, b"", _AT_EMPTY_PATH, mask, _statx_buffer))
        return _statx_data

    def madvise(start: int, size: int, advice: int) -> None:
        """Advise the kernel how a range of memory is used."""
        _check(_libc.madvise(start, size, advice))

    def attach_filter(fd: int, program: bytes) -> None:
        """Attach a classic BPF program, an array of struct sock_filter, to a socket."""
        code = ctypes.create_string_buffer(program)
        described = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
        with socket.socket(fileno=os.dup(fd)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)

    def open_by_handle(mount: int, handle: bytes, flags: int) -> int:
        """A new descriptor of what a struct file_handle names on the file system of `mount`."""
        fd = int(_libc.open_by_handle_at(mount, handle, flags))
        _check(min(0, fd))
        return fd

    def unshare(kind: int) -> None:
        """Give the calling thread a new namespace of its own; `kind` is CLONE_NEWNET or another."""
        _check(_libc.unshare(kind))

    def _check(result: int) -> None:
        if result != 0:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno))


__all__ = ["attach_filter", "capget", "madvise", "open_by_handle", "statx", "unshare"]
