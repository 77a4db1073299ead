"""A worker's heap in large pages (cni/server/warmup.py)."""

from __future__ import annotations

import ctypes
import os

from cni.server import warmup

SIZE = 9 << 20


def test_the_heap_is_found() -> None:
    """What was allocated is in it, what is mapped from a file is not."""
    block = bytearray(SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    function = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value or 0
    ranges = warmup._heap()
    assert any(start <= address and address + SIZE <= end for start, end in ranges)
    assert not any(start <= function < end for start, end in ranges)
    assert all(start < end and start % 4096 == end % 4096 == 0 for start, end in ranges)


def test_nothing_in_it_changes() -> None:
    """In a child, as a worker is one: the pages are shared until then."""
    content = os.urandom(SIZE)
    block = bytearray(content)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            warmup.use_large_pages()
            warmup.use_large_pages()  # harmless when repeated
            block[:10] = bytes(10)
            code = int(block[10:] != content[10:])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert block == content
