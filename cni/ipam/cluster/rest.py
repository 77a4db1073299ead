"""When addresses were released last: so that the one that is free the longest is handed out first.

    <dataDir>/.cni/<space>.freed    a record for each release, the oldest first

The newest ones are kept, and those that may still have to rest: what is in no record has been free
for longer. A record is written before the address is released, under the lock of the space, and
ignored as long as the address is taken. Times are of the boot's clock; at a boot all begins anew.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from ... import files
from ..host_local import reservation
from .pool import LONGEST_COOLDOWN

_RECORD = struct.Struct("<16sd8s")  # the address, in IPv4 mapped; the time; the boot
_KEPT = 64  # records, besides those that are younger than the longest cooldown
_MOST = 128  # records from one shortening to the next
_LARGEST = 1 << 22
_MAPPED = b"\0" * 10 + b"\xff\xff"


def note(path: str, packed: bytes, now: float) -> None:
    """Note that an address is about to be released. A hint: raises nothing."""
    wide = _MAPPED + packed if len(packed) == 4 else packed
    with suppress(OSError):
        fd, status = files.open_and_stat(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            if status.st_size % _RECORD.size:  # a part of a record: the disk was full
                os.ftruncate(fd, status.st_size - status.st_size % _RECORD.size)
            files.write_all(fd, _RECORD.pack(wide, now, _boot()))
        finally:
            os.close(fd)
        count = status.st_size // _RECORD.size
        if count and count % _MOST == 0:
            _shorten(path, now)


def recent(path: str) -> dict[bytes, float]:
    """When each address was released, of those that are noted: packed, the oldest first."""
    try:
        data = files.read(path, _LARGEST)
    except OSError:
        return {}
    found: dict[bytes, float] = {}
    boot = _boot()
    for wide, when, of in _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]):
        if of == boot:
            packed = wide[12:] if wide.startswith(_MAPPED) else wide
            found.pop(packed, None)  # the last record counts, and its place
            found[packed] = when
    return found


def _shorten(path: str, now: float) -> None:
    known = list(recent(path).items())
    first = max(len(known) - _KEPT, 0)
    kept = [each for each in known[:first] if now - each[1] < LONGEST_COOLDOWN] + known[first:]
    boot = _boot()
    records = [
        _RECORD.pack(_MAPPED + packed if len(packed) == 4 else packed, when, boot)
        for packed, when in kept
    ]
    files.replace(path, b"".join(records))


def _boot() -> bytes:
    return reservation.this_boot()[:8].ljust(8, b"\0")
