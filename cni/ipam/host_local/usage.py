"""How full the ranges are: what a full one says of itself, and STATUS before that."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from ...protocol.address import parse_ip
from ...protocol.errors import NotAvailable
from . import reservation
from .index import BROKEN, Index
from .ranges import RangeSet
from .reservation import is_address


def check_free(path: str, index_path: str, sets: list[RangeSet], reclaim: bool) -> None:
    """Each set must have a free address. Raises NotAvailable (code 50).

    With `reclaim` those of an earlier boot are free. Takes no lock: while others allocate, the
    answer is as good as any.
    """
    try:
        full = _full_sets(path, index_path, sets, reclaim)
    except OSError as error:
        raise NotAvailable(
            f"host-local: cannot read {path}: {error.strerror}", "it holds the reservations"
        ) from None
    for each in full:
        raise NotAvailable(
            f"host-local: no IP addresses available in range set: {each}",
            f"all {each.size} addresses are in use: remove containers, run GC, or add a range",
        )


def _full_sets(path: str, index_path: str, sets: list[RangeSet], reclaim: bool) -> list[RangeSet]:
    """By the index if it can be believed, else by the files. Raises OSError."""
    if sys.platform == "win32":
        return [each for each in sets if len(held(path, each)) >= each.size]
    this_boot = reservation.this_boot()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        index = Index.open(index_path, fd, this_boot, writable=False)
        if index is not None:
            try:
                full = [each for each in sets if not _has_free(index, each)]
                if index.is_current(fd):
                    return full
            except BROKEN:
                pass  # whoever locks it next notices
            finally:
                index.close()
        names = os.listdir(fd)
    finally:
        os.close(fd)
    live = this_boot if reclaim else b""

    def is_full(each: RangeSet) -> bool:
        if each.size > len(names):
            return False
        inside = (os.path.join(path, name) for name in names if _is_in(name, each))
        return sum(_is_taken(file, live) for file in inside) >= each.size

    return [each for each in sets if is_full(each)]


def _has_free(index: Index, each: RangeSet) -> bool:
    return any(
        index.first_free(found.width, low, high) is not None for found, low, high in each.spans()
    )


def _is_taken(file: str, this_boot: bytes) -> bool:
    """Has the file a content (the empty ones are free), and is it not of an earlier boot?"""
    try:
        if os.stat(file).st_size == 0:
            return False
    except OSError:
        return False
    return not this_boot or reservation.boot_of(file) in (None, this_boot)


def _is_in(name: str, each: RangeSet) -> bool:
    """Is it an address that the set hands out?"""
    if not is_address(name):
        return False
    packed = parse_ip(name)
    return each.contains(packed) and not each.is_excluded(packed)


def held(path: str, each: RangeSet) -> list[tuple[float, str]]:
    """Since when who has each address of the set: a time, and a file's name; not the torn ones."""
    found = []
    if sys.platform == "win32":
        from . import store_windows

        return sorted(
            (since, name) for since, name in store_windows.held(path) if _is_in(name, each)
        )
    for name in os.listdir(path):
        if _is_in(name, each):
            with suppress(FileNotFoundError):
                stat = os.stat(os.path.join(path, name))
                if stat.st_size:
                    found.append((stat.st_mtime, name))
    return sorted(found)


def describe(path: str, each: RangeSet, held: list[tuple[float, str]]) -> str:
    """Size, use, and who has held an address the longest."""
    contents = _contents(path, [name for _, name in held[:3]])
    holders = ", ".join(
        f"{name} by {holder(contents[name])} since {when(since)}" for since, name in held[:3]
    )
    return (
        f"{len(held)} of {each.size} addresses are in use, held the longest: "
        f"{holders or 'none'}. Remove containers, run GC to release what dead ones hold, or add a "
        f"range; `cni ipam list` shows who holds what, and reservations are in {path}"
    )


def _contents(path: str, names: list[str]) -> dict[str, bytes]:
    """What these files contain; b"" of those that are gone."""
    if sys.platform == "win32":
        from . import store_windows

        return {name: store_windows.content(path, name) or b"" for name in names}
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return {name: reservation.content(fd, name) or b"" for name in names}
    finally:
        os.close(fd)


def when(since: float) -> str:
    """A file's time as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))


def holder(content: bytes) -> str:
    """``container abc (eth0)``."""
    container_id, _, ifname = content.decode(errors="replace").partition("\r\n")
    return f"container {container_id or 'unknown'}" + (f" ({ifname})" if ifname else "")
