"""The problems of a network's reservations, for `cni ipam check`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cni.ipam.host_local import reservation
from cni.ipam.host_local.directory import scan
from cni.ipam.host_local.reservation import is_address
from cni.protocol.address import parse_ip

if TYPE_CHECKING:
    from .ipam_leases import Lease, Reservations


def of_files(held: Reservations) -> list[str]:
    """The problems of single files, a line each. Raises CNIError."""
    problems = []
    for name, content in sorted(scan(held.path)):
        if not is_address(name):
            problems.append(f"{name}: not a reservation; remove it")
        elif content == reservation.UNREADABLE:
            problems.append(f"{name}: no small regular file; it keeps the address from being used")
        elif not content:
            problems.append(f"{name}: empty, left by a process that was killed; it counts as free")
    return problems


def _remedy(held: Reservations, lease: Lease) -> str:
    """The advice for a dead container's address.

    A published port leads to the address as long as its rule exists. So the whole container has to
    be removed, if `cni gc` looks in this directory.
    """
    if held.configured:
        return f"`cni gc {held.network}` deletes all that is left of it"
    return f"release it with `cni ipam release {held.network} {lease.address}`"


def of_leases(held: Reservations, leases: Iterable[Lease]) -> list[str]:
    """The problems of the reservations, a line each."""
    problems: list[str] = []
    first_address: dict[tuple[str, int], str] = {}
    spelled: dict[bytes, str] = {}
    for each in leases:
        packed = parse_ip(each.address)
        if each.container_id == reservation.CONFLICT:
            problems.append(f"{each.address}: set aside: {each.ifname} on the link has it")
            continue
        # host-local's files have the address as their name, in whichever spelling it was written.
        same = spelled.setdefault(packed, each.address)
        if same != each.address:
            problems.append(f"{each.address}: the same address as {same}, reserved twice")
        if each.earlier_boot or each.alive is False:
            gone = f"{each.netns or 'a namespace'}, which is gone"
            why = "an earlier boot" if each.earlier_boot else gone
            problems.append(f"{each.address}: {each.holder} was of {why}; {_remedy(held, each)}")
        index = next((i for i, r in enumerate(held.ranges or ()) if r.contains(packed)), None)
        if index is None:
            if held.ranges is not None:
                problems.append(f"{each.address}: outside of the configured ranges")
            continue
        # host-local gives one address of each range set.
        other = first_address.setdefault((each.holder, index), each.address)
        if other != each.address:
            problems.append(f"{each.address}: {each.holder} holds {other} of this range set, too")
    return problems
