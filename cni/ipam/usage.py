"""How full the ranges are: what a full one says of itself, and STATUS before that."""

from __future__ import annotations

import os
import time

from ..protocol.address import parse_ip
from ..protocol.errors import NotAvailable
from .ranges import RangeSet
from .store import Store, is_address


def check_free(path: str, sets: list[RangeSet]) -> None:
    """Each set must have a free address. Raises NotAvailable (code 50).

    Takes no lock: while others allocate, the answer is as good as any.
    """
    try:
        names = os.listdir(path)
    except OSError as error:
        raise NotAvailable(
            f"host-local: cannot read {path}: {error.strerror}", "it holds the reservations"
        ) from None
    for each in sets:
        if each.size > len(names):
            continue
        if _in_use([name for name in names if _is_whole(path, name)], each) >= each.size:
            raise NotAvailable(
                f"host-local: no IP addresses available in range set: {each}",
                f"all {each.size} addresses are in use: remove containers, run GC, or add a range",
            )


def _is_whole(path: str, name: str) -> bool:
    """Does the file have a content? The empty ones are free."""
    try:
        return os.stat(os.path.join(path, name)).st_size > 0
    except OSError:
        return False


def _in_use(names: list[str], each: RangeSet) -> int:
    gateways = each.gateways
    packed = (parse_ip(name) for name in names if is_address(name))
    return sum(each.contains(ip) and ip not in gateways for ip in packed)


def describe(store: Store, each: RangeSet) -> str:
    """Size, use, and who has held an address the longest."""
    names = [
        name
        for name, content in store.leases().items()
        if content and is_address(name) and each.contains(parse_ip(name))
    ]
    oldest = sorted((store.held_since(name), name) for name in names)[:3]
    holders = ", ".join(
        f"{name} by {holder(store.leases()[name])} since "
        + time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
        for since, name in oldest
    )
    return (
        f"{_in_use(names, each)} of {each.size} addresses are in use, held the longest: "
        f"{holders or 'none'}. Remove containers, run GC to release what dead ones hold, or add a "
        f"range; reservations are in {store.path}"
    )


def holder(content: bytes) -> str:
    """``container abc (eth0)``."""
    container_id, _, ifname = content.decode(errors="replace").partition("\r\n")
    return f"container {container_id or 'unknown'}" + (f" ({ifname})" if ifname else "")
