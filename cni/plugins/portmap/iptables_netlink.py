"""portmap's rules in iptables-nft's tables without a fork, in the case that is not special.

That is: it is clear what there is of that which containers share, the container's chain is not
there, and no other container is in the way. Everything else is told apart in iptables-save's words,
by _portmap_iptables.py.
"""

from __future__ import annotations

from collections.abc import Callable

from ...netfilter import iptables_netlink
from ...netfilter.iptables_rules import ports_of
from ...protocol.address import Prefix
from .want import Want

_DNAT = "CNI-HOSTPORT-DNAT"


def publish(
    want: Want,
    address: Prefix,
    shared: list[str],
    additions: Callable[[Want, Prefix, list[str]], list[str]],
) -> bool:
    """Make what `additions` finds missing of the shared and the container's rules.

    It is given the shared ones that are there. False if nothing was done.
    """
    if want.conditions_of(address):
        return False  # these can be anything

    def missing(rules: iptables_netlink.Rules) -> list[str] | None:
        if any(_leads_to(address.ip, rule) for rule in rules.of()):
            return None
        if not all(_is_of_others(want, entry) for entry in rules.of(_DNAT)):
            return None
        saved = rules.saved(shared)
        return None if saved is None else additions(want, address, saved)

    return iptables_netlink.change(not address.is_v4, "nat", missing)


def _leads_to(ip: bytes, rule: bytes) -> bool:
    """Is the rule a container's that may have had this address? If in doubt."""
    return b"DNAT\0" in rule and b"CNI-DN-" in rule and ip in rule


def _is_of_others(want: Want, entry: bytes) -> bool:
    """Is an entry certainly for none of these ports, whatever their protocol?"""
    ports = ports_of(entry)
    return ports is not None and all(port.host_port not in ports for port in want.ports)
