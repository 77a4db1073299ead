"""Replacing our nftables sets by rules that the reference's firewall can remove.

The reference has iptables and firewalld only. Rules are made there first, and the elements of the
sets are removed afterwards, so that traffic is accepted all the time. `reload` is the way back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...netfilter import elements
from ...netfilter.table import Table
from ...owner import network_key
from . import backend_iptables, backend_nft
from .want import previous_result, want_of

if TYPE_CHECKING:
    from ...call import Call
    from ...netfilter.elements import Element
    from ...owner import Owner
    from .want import Conf


def accepted() -> list[Element]:
    """The elements of the sets of containers' addresses. Raises NetlinkError."""
    table = Table("inet", backend_nft.TABLE)
    return [element for name in backend_nft.SETS for element in elements.elements(table, name)]


def to_reference(call: Call[Conf]) -> None:
    """Move the attachment's rules from our sets to iptables. Raises CNIError."""
    if any(element.comment.startswith(call.owner.key) for element in accepted()):
        backend_iptables.setup(want_of(call, previous_result(call)))
    forget(call.owner)


def forget(owner: Owner) -> None:
    """Remove an attachment from the sets; with a network's last one, also the network's policy.

    Raises CNIError, NetlinkError.
    """
    backend_nft.teardown(owner, [], "")
    start = f"{network_key(owner.network)}-"
    if not any(element.comment.startswith(start) for element in accepted()):
        backend_nft.gc(owner.network, [], [], "")
