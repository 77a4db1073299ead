"""portmap's rules in iptables-nft's tables without a fork, in the case that is not special.

That is: all that containers share is there, the container's chain is not, and no other container
is in the way. Everything else is told apart in iptables-save's words, by _portmap_iptables.py.
"""

from __future__ import annotations

from ..kernel import iptables_nft
from ..kernel.iptables_expressions import ports_of
from ..protocol.address import Prefix
from ._portmap import Want

_DNAT = "CNI-HOSTPORT-DNAT"


def publish(want: Want, address: Prefix, shared: list[str], rules: list[str]) -> bool:
    """Make the container's chain and rules; False if nothing was done."""

    def missing(there: iptables_nft.Rules) -> list[str] | None:
        had_address = any(_leads_to(address.ip, rule) for rule in there.of())
        if had_address or not all(there.have(rule) for rule in shared):
            return None
        if not all(_is_of_others(want, entry) for entry in there.of(_DNAT)):
            return None
        return [f"-N {want.owner.chain('DN-')}", *rules]

    return iptables_nft.change(not address.is_v4, "nat", missing)


def _leads_to(ip: bytes, rule: bytes) -> bool:
    """Is the rule a container's that may have had this address? If in doubt."""
    return b"DNAT\0" in rule and b"CNI-DN-" in rule and ip in rule


def _is_of_others(want: Want, entry: bytes) -> bool:
    """Is an entry certainly for none of these ports, whatever their protocol?"""
    ports = ports_of(entry)
    return ports is not None and all(port.host_port not in ports for port in want.ports)
