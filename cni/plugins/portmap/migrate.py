"""Replacing our nftables maps by rules that the reference's portmap can remove, and back.

According to its configuration the reference removes a container's iptables chain, or the nftables
rules with the container's id as comment; it does not know maps. So the reference's rules are made
first, and the elements of the maps are removed afterwards: ports are published all the time, and
after a kill another run, or a DEL by this plugin, removes the rest.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ...kernel.errors import KernelError, NetlinkError, Unusable
from ...netfilter import elements as nft_elements
from ...netfilter import iptables, nft
from ...netfilter.table import Table
from ...owner import Owner, named_in
from ...protocol.errors import CNIError
from . import backend_iptables, backend_nft, localhost, nft_reference, plugin, settings
from .nft_chains import (
    FAMILIES,
    INDEX,
    KEY,
    MAPS,
    NAMES,
    OWN_CHAINS,
    REFERENCE_CHAIN,
    TABLE,
    port_of,
    sets,
    target_of,
)
from .settings import IPTABLES, NFTABLES, Conf
from .want import Want

if TYPE_CHECKING:
    from ...call import Call
    from ...netfilter.nft import Change
    from .want import Port


class Published(NamedTuple):
    """An attachment's elements in the maps: `key` is its Owner.key, `owner` the one in the comment.

    `owner` is None if the comment was cut. `ports` are (port, its target's address and port).
    """

    key: str
    owner: Owner | None
    ports: list[tuple[Port, str]]


def published() -> list[Published]:
    """The contents of the maps, by attachment. Raises NetlinkError."""
    by_key: dict[str, Published] = {}
    for family in FAMILIES:
        for _, targets in MAPS.values():
            for element in _elements(family, targets):
                port = port_of(element.key)
                if port is None:
                    continue
                key = element.comment[:KEY]
                entry = by_key.setdefault(key, Published(key, named_in(element.comment), []))
                entry.ports.append((port, target_of(element.value)))
    return [by_key[key] for key in sorted(by_key)]


def _elements(family: str, name: str) -> list[nft_elements.Element]:
    try:
        return nft_elements.elements(Table(family, TABLE), name)
    except Unusable:
        return []  # without nf_tables there are no maps


def to_reference(call: Call[Conf]) -> None:
    """Move the attachment's ports from the maps to the reference's rules.

    `call` is that of a reload. A port on localhost keeps its guards: the reference sets
    `route_localnet` without any, and never puts it back. Raises CNIError, KernelError.
    """
    asked = settings.read(call)
    want = settings.want_of(call.owner, asked, settings.known_ports(asked))
    if want.addresses and want.ports:
        form = _form(asked.backend)
        if form == IPTABLES:
            backend_iptables.setup(want, plugin.judge_of(call, call.owner), None)
        else:
            nft_reference.publish(want)
        for address in want.addresses:
            if want.snat and address.is_v4:
                localhost.enable(call, want.owner, address, filtered=False)
    backend_nft.unpublish(want, noted=True)
    for family in FAMILIES:
        if _is_reference_there(family):
            nft.settle(partial(_leavings, family))


def _is_reference_there(family: str) -> bool:
    """Does the reference use the table? If not, the table was deleted with the last element."""
    try:
        return Table(family, TABLE).has_chain(REFERENCE_CHAIN)
    except NetlinkError as error:
        if isinstance(nft.judged(error), Unusable):
            return False
        raise


def _leavings(family: str) -> list[Change]:
    """Changes that remove our empty chains and maps from a table of the reference."""
    table = Table(family, TABLE)
    chains = [chain for chain in table.rule_counts() if chain.startswith(OWN_CHAINS)]
    if not chains or any(_elements(family, name) for name in NAMES):
        return []
    names = (*NAMES, *INDEX)
    return [
        *(table.without_rules(chain) for chain in chains),
        *(table.without_chain(chain) for chain in chains),
        *sets(family, names),  # tables of earlier builds lack some
        *(table.without_set(name) for name in names),
    ]


def _form(asked: str) -> str:
    """The backend that the reference uses (docs/spec/portmap.md, `backend`)."""
    if asked:
        return asked
    return IPTABLES if iptables.usable(v6=False) else NFTABLES


def to_own(call: Call[Conf]) -> None:
    """Publish the attachment's ports in this plugin's form; remove the reference's if it differs.

    Raises CNIError, KernelError.
    """
    asked = settings.read(call)
    plugin.reload(call)
    want = settings.want_of(call.owner, asked, settings.known_ports(asked))
    if asked.backend != IPTABLES and not _lacks(want):
        backend_iptables.teardown(want, noted=True)
        nft_reference.remove(call.container_id, want.addresses)


def _lacks(want: Want) -> bool:
    """Do the maps lack any of the ports? They do if ADD fell back to iptables."""
    there = {port.key for one in published() if one.key == want.owner.key for port, _ in one.ports}
    return any(
        port.key not in there for address in want.addresses for port in want.ports_of(address)
    )


def forget(owner: Owner) -> None:
    """Remove an attachment whose namespace is gone from the maps. Raises CNIError."""
    want = settings.want_of(owner, settings.Settings(Conf(), "", None, []), [])
    try:
        backend_nft.unpublish(want, noted=True)
    except (NetlinkError, KernelError) as error:
        raise CNIError(f"cannot remove what {owner.container_id} had published: {error}") from None
