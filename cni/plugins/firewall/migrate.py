"""From our nftables sets to rules that the reference's firewall cleans up.

The reference has iptables and firewalld only. Rules are made there first, and the elements of the
sets go afterwards, so that traffic is accepted all the time. The way back is a reload.
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
    """Have the attachment's rules in iptables, and not in our sets any more. Raises CNIError."""
    if any(element.comment.startswith(call.owner.key) for element in accepted()):
        backend_iptables.setup(want_of(call, previous_result(call)))
    forget(call.owner)


def forget(owner: Owner) -> None:
    """Take an attachment out of the sets, and with a network's last one its policy.

    Raises CNIError, NetlinkError.
    """
    backend_nft.teardown(owner, [], "")
    start = f"{network_key(owner.network)}-"
    if not any(element.comment.startswith(start) for element in accepted()):
        backend_nft.gc(owner.network, [], [], "")
