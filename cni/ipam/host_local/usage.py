"""How full the ranges are: what a full one says of itself, and STATUS before that."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

from ...protocol.address import parse_ip
from ...protocol.errors import NotAvailable
from . import reservation
from .directory import Location
from .index import BROKEN, Index
from .ranges import RangeSet
from .reservation import is_address

_EMPTY = "it has no address to hand out: the gateway and `exclude` take all of them"


def check_free(location: Location, sets: list[RangeSet]) -> None:
    """Each set must have a free address. Raises NotAvailable (code 50).

    With `location.reclaim` those of an earlier boot are free. Takes no lock: while others allocate,
    the answer is as good as any.
    """
    try:
        full = _full_sets(location, sets)
    except OSError as error:
        raise NotAvailable(
            f"host-local: cannot read {location.path}: {error.strerror}", "it has the reservations"
        ) from None
    for each in full:
        raise NotAvailable(
            f"host-local: no IP addresses available in range set: {each}",
            f"all {each.size} addresses are in use: {_advice(location.path)}"
            if each.size
            else _EMPTY,
        )


def _full_sets(location: Location, sets: list[RangeSet]) -> list[RangeSet]:
    """By the index if it can be believed, else by the files. Raises OSError."""
    path = location.path
    if sys.platform == "win32":
        return [each for each in sets if len(held(path, each)) >= each.size]
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        index = Index.open(location.index_path, fd, reservation.told_boot(), writable=False)
        if index is not None:
            try:
                full = [each for each in sets if not _has_free(index, each)]
                # without the lock the directory may have changed while the index was read
                if index.is_current(fd):
                    return full
            except BROKEN:
                pass  # the next one that locks the directory notices
            finally:
                index.close()
        names = os.listdir(fd)
    finally:
        os.close(fd)
    live = reservation.this_boot() if location.reclaim else b""

    def is_full(each: RangeSet) -> bool:
        # every address that is taken has a file: no need to look into them
        if each.size > len(names):
            return False
        inside = {name: _address_in(name, each) for name in names}
        taken = {
            packed
            for name, packed in inside.items()
            if packed is not None and _is_taken(os.path.join(path, name), live)
        }
        return len(taken) >= each.size

    return [each for each in sets if is_full(each)]


def _has_free(index: Index, each: RangeSet) -> bool:
    return any(
        index.first_free(its_range.width, low, high) is not None
        for its_range, low, high in each.spans()
    )


def _is_taken(file: str, this_boot: bytes) -> bool:
    """Has the file a content (the empty ones are free), and is it not of an earlier boot?"""
    try:
        if os.stat(file).st_size == 0:
            return False
    except FileNotFoundError:
        return False
    return not this_boot or reservation.boot_of(file) in (None, this_boot)


def _address_in(name: str, each: RangeSet) -> bytes | None:
    """The packed address of that name, if the set hands it out."""
    if not is_address(name):
        return None
    packed = parse_ip(name)
    return packed if each.contains(packed) and not each.is_excluded(packed) else None


def held(path: str, each: RangeSet) -> list[tuple[float, str]]:
    """Since when each address of the set is taken (seconds since 1970), and its file's name.

    The longest held first; empty files do not count, an address of two spellings counts once.
    Raises OSError.
    """
    if sys.platform == "win32":
        from . import store_windows

        times = store_windows.held(path)
    else:
        times = _times(path)
    by_address = {_address_in(name, each): (since, name) for since, name in times}
    # files of other sets, and others that are no reservations
    by_address.pop(None, None)
    return sorted(by_address.values())


def _times(path: str) -> Iterator[tuple[float, str]]:
    for name in os.listdir(path):
        if is_address(name):
            with suppress(FileNotFoundError):
                status = os.stat(os.path.join(path, name))
                if status.st_size:
                    yield status.st_mtime, name


def describe(path: str, each: RangeSet, held: list[tuple[float, str]]) -> str:
    """Size, use, and who has held an address the longest."""
    if not each.size:
        return _EMPTY
    contents = _contents(path, [name for _, name in held[:3]])
    holders = ", ".join(
        f"{name} by {holder(contents[name])} since {when(since)}" for since, name in held[:3]
    )
    return (
        f"{len(held)} of {each.size} addresses are in use, held the longest: "
        f"{holders or 'none'}: {_advice(path)}; reservations are in {path}"
    )


def _advice(path: str) -> str:
    """What to do about a full range, of which nothing harms a container that runs."""
    network = os.path.basename(path)
    return (
        f"remove containers or add a range; `cni ipam list {network}` shows who holds what, and "
        f"`cni gc {network}` releases what dead containers hold"
    )


def _contents(path: str, names: list[str]) -> dict[str, bytes]:
    """What these files contain; b"" of those that are gone."""
    if sys.platform == "win32":
        from . import store_windows

        return {name: store_windows.content(path, name) or b"" for name in names}
    return {name: _content(os.path.join(path, name)) for name in names}


def _content(path: str) -> bytes:
    try:
        return reservation.content(None, path) or b""
    except OSError:
        return b""


def when(since: float) -> str:
    """A file's time as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))


def holder(content: bytes) -> str:
    """``container abc (eth0)``."""
    container_id, _, ifname = content.decode(errors="replace").partition("\r\n")
    ifname = ifname.replace("\r\n", " of ")  # of a pool: the network follows
    return f"container {container_id or 'unknown'}" + (f" ({ifname})" if ifname else "")
