"""The times of releases, so that the address that has been free for the longest is given out first.

    <dataDir>/.cni/<space>.freed    a record for each release, the oldest first

The newest records are kept, and those within a cooldown: addresses without a record have been free
for longer. A record is written before the address is released, under the lock of the space, and
ignored while the address is taken, and after a reboot. Times are of the boot's clock.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from ... import files
from ..host_local import reservation
from .pool import LONGEST_COOLDOWN

_RECORD = struct.Struct("<16sd8s")  # address (IPv4 is mapped to IPv6), time, boot
_KEPT = 64  # records that are kept, besides those within the longest cooldown
_MOST = 128  # records at which the file is shortened
_LARGEST = 1 << 22
_MAPPED = b"\0" * 10 + b"\xff\xff"


def note(path: str, packed: bytes, now: float) -> None:
    """Note that an address is about to be released. A hint: raises nothing."""
    wide = _MAPPED + packed if len(packed) == 4 else packed
    with suppress(OSError):
        fd, status = files.open_and_stat(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            if status.st_size % _RECORD.size:  # half a record: the disk was full
                os.ftruncate(fd, status.st_size - status.st_size % _RECORD.size)
            files.write_all(fd, _RECORD.pack(wide, now, _boot()))
        finally:
            os.close(fd)
        count = status.st_size // _RECORD.size
        if count and count % _MOST == 0:
            _shorten(path, now)


def recent(path: str) -> dict[bytes, float]:
    """Address (packed) → time of its release, of the noted ones; the oldest first."""
    try:
        data = files.read(path, _LARGEST)
    except OSError:
        return {}
    releases: dict[bytes, float] = {}
    boot = _boot()
    for wide, when, of in _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]):
        if of == boot:
            packed = wide[12:] if wide.startswith(_MAPPED) else wide
            releases.pop(packed, None)  # the last record counts, and its place
            releases[packed] = when
    return releases


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
