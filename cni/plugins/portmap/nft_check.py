"""CHECK of the ports that backend_nft publishes: differences of wanted and existing elements."""

from __future__ import annotations

from collections.abc import Sequence

from ...netfilter import elements as nft_elements
from ...netfilter.elements import Element
from ...netfilter.table import Table
from . import nft_holders
from . import nft_index as index
from .nft_chains import (
    BY_OWNER,
    NAMES,
    TABLE,
    chains,
    elements,
    family_of,
    incomplete,
    rule_counts,
    shown,
    without,
)
from .want import Holders, Want

_GONE = "the nftables rules are not there; something flushed them. Rules are gone: run `cni reload`"


def differences(want: Want, holders: Holders) -> list[str]:
    """The differences, a line each. Raises NetlinkError.

    Ports that another attachment of the same container publishes are no difference.
    """
    problems = []
    aside = nft_holders.still_aside(want, holders)
    for address in want.addresses:
        family = family_of(address)
        wanted = without(elements(want, address), family, aside)
        needed = chains(want, address)
        for chain in incomplete(needed, rule_counts(needed)):
            place = f"{family} {TABLE}"
            text = f'missing hostport rules in "{chain.name}" chain of {place}: {_GONE}'
            problems.append(text)
        listed = index.ports_of(family, want.owner.key)
        by_owner = index.of(family, wanted)[BY_OWNER]
        have = _have(family, want.owner.key, listed, by_owner)
        for name in NAMES:
            problems += _differences(f"map {name} of {family} {TABLE}", wanted[name], have[name])
        if listed is not None and listed != by_owner:
            text = f"map {BY_OWNER} of {family} {TABLE} does not list what is published"
            problems.append(f"{text}: run `cni reload`")
    return problems


def _have(
    family: str, owner: str, listed: list[Element] | None, wanted: list[Element]
) -> index.Elements:
    """The owner's elements in the maps; without a complete index (`listed`) all are read."""
    if listed is not None:
        return index.held(family, owner, listed, [element.value for element in wanted])
    mark = owner.encode()
    return {
        name: nft_elements.matching(nft_elements.dump(Table(family, TABLE), name), [mark])
        for name in NAMES
    }


def _differences(where: str, wanted: Sequence[Element], have: Sequence[Element]) -> list[str]:
    lines = [
        f"missing hostport rules: {where}: want {shown(e)}; {_GONE}"
        for e in wanted
        if e not in have
    ]
    extra = [e for e in have if e not in wanted]
    return lines + [f"hostport rules: {where}: have {shown(e)}, which nobody wants" for e in extra]
