"""`mtu: "auto"`: the MTU of the links by which packets leave the node.

Loaded only for a configuration with that value. The overhead of a tunnel between the containers'
link and the uplink is not subtracted: the tunnel needs a route with a smaller MTU.
"""

from __future__ import annotations

from ...kernel import link, route
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.errors import CNIError

_LARGEST = 65535  # the limit of a veth or bridge; the loopback interface has more


def mtu() -> int:
    """The smallest MTU of the links of the node's default routes, IPv4 and IPv6.

    Raises CNIError if there is no default route, NetlinkError.
    """
    with Netlink() as host:
        least = _smallest(host)
    if least is None:
        raise CNIError(
            'cannot choose the MTU: mtu is "auto", and this node has no default route',
            "give the MTU as a number, or repeat the ADD once the node has a default route "
            "(`ip route show default`)",
        )
    return min(least.mtu, _LARGEST)


def too_large(netns: Namespace, ifname: str) -> list[str]:
    """For CHECK: a sentence if the container's MTU is larger than the uplink's by now."""
    device = link.find(netns.netlink(), ifname)
    with Netlink() as host:
        least = _smallest(host)
    if device is None or least is None or device.mtu <= least.mtu:
        return []
    return [
        f"{ifname} has the MTU {device.mtu}, and the uplink {least.name} only {least.mtu}: large "
        f"packets may be lost (`ip link set {ifname} mtu {least.mtu}` in the container, or attach "
        "it again)"
    ]


def _smallest(host: Netlink) -> Link | None:
    links = [each for index in route.default_links(host) if (each := link.find(host, index))]
    return min(links, key=lambda each: each.mtu, default=None)
