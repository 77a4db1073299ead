"""Tell the neighbours that an address has moved here: gratuitous ARP and unsolicited NA.

A reused address otherwise loses packets until the neighbours' caches expire (RFC 5227 §3,
RFC 4861 §7.2.6). The kernel sends both itself when `arp_notify` and `ndisc_notify` are set and the
link comes up, or its MAC is set, even to what it was. Frames of our own would need a packet socket,
and closing one waits for an RCU grace period: 7 to 40 ms, more than the rest of an ADD.
"""

from __future__ import annotations

from ...kernel import link
from ...kernel.netlink import Netlink, NetlinkError


def settings(ifname: str) -> list[tuple[str, str]]:
    """The sysctls that make the kernel announce the addresses of a link."""
    return [
        (f"net/ipv4/conf/{ifname}/arp_notify", "1"),
        (f"net/ipv6/conf/{ifname}/ndisc_notify", "1"),
    ]


def again(sock: Netlink, index: int, mac: str) -> None:
    """Announce once more: when the link came up the bridge port may not have forwarded yet."""
    try:
        link.change(sock, index, mac=link.parse_mac(mac))
    except NetlinkError:
        pass  # the link is up and answers; a neighbour just learns later
