"""The owners of elements that are in the way of an ADD, and what to do with them (backend_nft)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...netfilter import elements as nft_elements
from ...netfilter.elements import Element
from ...netfilter.table import Table
from ...owner import Owner, named_in, network_key
from ...protocol.address import Prefix
from .nft_chains import KEY, MAPS, TABLE, elements, family_of, port_of
from .want import ALIVE, DEAD, SAME, Holder, Holders, Taken, Want


class Verdict(NamedTuple):
    """`dead` are the keys of owners to replace; `aside` are the (family, key) of elements that
    another attachment of the same container has.
    """

    dead: set[str]
    aside: set[tuple[str, bytes]]


def judge(want: Want, holders: Holders) -> Verdict:
    """The verdict on other owners of wanted elements. Raises Taken if such a container lives."""
    verdict = Verdict(set(), set())
    for address, element, there in _in_the_way(want):
        key = there.comment[:KEY]
        holder = judge_one(there, holders)
        if holder.fate == DEAD:
            verdict.dead.add(key)
        elif holder.fate == SAME:
            holders.stand_by(key)
            verdict.aside.add((family_of(address), element.key))
        else:
            raise _taken(element, there, holder, address)
    return verdict


def still_aside(want: Want, holders: Holders) -> set[tuple[str, bytes]]:
    """The (family, key) of wanted elements that another attachment of this container has now."""
    return {
        (family_of(address), element.key)
        for address, element, there in _in_the_way(want)
        if judge_one(there, holders).fate == SAME
    }


def judge_one(there: Element, holders: Holders) -> Holder:
    """The holder of an element."""
    return holders.by_key(there.comment[:KEY], named_in(there.comment))


def former_holders(
    owner: Owner, address: Prefix, have: Mapping[str, list[Element]], holders: Holders
) -> set[str]:
    """The keys of the network's owners that had this address before, and may be replaced."""
    network = network_key(owner.network)
    former = {
        element.comment[:KEY]: element
        for _, targets in MAPS.values()
        for element in have.get(targets, ())
        if element.value.startswith(address.ip) and element.comment.startswith(f"{network}-")
    }
    return {
        key
        for key, element in former.items()
        if key != owner.key and may_be_replaced(element, holders)
    }


def may_be_replaced(former: Element, holders: Holders) -> bool:
    """May the ADD that has an address now remove the ports that its former holder published?

    Yes also for a holder without a note, since IPAM gives an address only once.
    """
    return judge_one(former, holders).fate not in (ALIVE, SAME)


def _in_the_way(want: Want) -> Iterator[tuple[Prefix, Element, Element]]:
    """Wanted keys that others have: the address, the wanted element, and the other's element."""
    for address in want.addresses:
        table = Table(family_of(address), TABLE)
        for name, wanted in elements(want, address).items():
            for element in wanted:
                # asked for one by one: a list of the map has the ports of every container
                there = nft_elements.find(table, name, element.key)
                if there is not None and there.comment[:KEY] != want.owner.key:
                    yield address, element, there


def _taken(element: Element, there: Element, holder: Holder, address: Prefix) -> Taken:
    owner = holder.owner
    port = port_of(element.key)
    if owner is not None:
        who = f"container {owner.container_id} ({owner.ifname} in network {owner.network})"
        hint = (
            f"stop that container; if its namespace is gone, `cni gc {owner.network}` removes what "
            "it left"
        )
    else:
        who = f"somebody else ({there.comment or 'unknown'})"
        hint = "stop it"
    place = f"nft list map {family_of(address)} {TABLE}"
    return Taken(
        f"host port {port} is already published by {who}",
        f"publish another port, or {hint}; see `{place} {MAPS[bool(element.key[:-8])][1]}`",
    )
