"""VXLAN links: Ethernet frames in UDP between nodes (RFC 7348, ip-link(8), linux/if_link.h)."""

from __future__ import annotations

from . import netlink as nl
from . import uapi
from .link import Link

KIND = "vxlan"
PORT = 4789  # assigned by IANA
# Bytes added to a frame: inner Ethernet header 14, VXLAN 8, UDP 8, and IP 20 or 40.
OVERHEAD_V4, OVERHEAD_V6 = 50, 70

_ANY_V6 = bytes(16)


def data(
    vni: int, *, port: int, v6: bool, parent: int = 0, group: bytes = b"", local: bytes = b""
) -> bytes:
    """The attributes of a new VXLAN link, for link.create.

    `parent` is the index of the link by which packets leave; 0: the routes decide. `group` is the
    multicast group that gets frames to unknown MACs, `local` the source address, both packed.
    """
    parts = [nl.u32(uapi.IFLA_VXLAN_ID, vni)]
    if parent:
        parts.append(nl.u32(uapi.IFLA_VXLAN_LINK, parent))
    if v6 and not local:
        local = _ANY_V6  # without any address the kernel makes an IPv4 link
    for packed, of_v4, of_v6 in (
        (group, uapi.IFLA_VXLAN_GROUP, uapi.IFLA_VXLAN_GROUP6),
        (local, uapi.IFLA_VXLAN_LOCAL, uapi.IFLA_VXLAN_LOCAL6),
    ):
        if packed:
            parts.append(nl.attr(of_v6 if v6 else of_v4, packed))
    parts.append(nl.attr(uapi.IFLA_VXLAN_PORT, port.to_bytes(2, "big")))
    return b"".join(parts)


def vni(device: Link) -> int:
    """The network identifier of a VXLAN link."""
    return nl.get_u32(device.data.get(uapi.IFLA_VXLAN_ID))


def port(device: Link) -> int:
    """The UDP port to which it sends, and on which it listens."""
    return int.from_bytes(device.data.get(uapi.IFLA_VXLAN_PORT, b""), "big")


def parent(device: Link) -> int:
    """The index of the link by which its packets leave; 0: the routes decide."""
    return nl.get_u32(device.data.get(uapi.IFLA_VXLAN_LINK))


def group(device: Link) -> bytes:
    """The multicast group, packed; empty if it has none."""
    return _address(device, uapi.IFLA_VXLAN_GROUP, uapi.IFLA_VXLAN_GROUP6)


def local(device: Link) -> bytes:
    """The source address, packed; empty if the routes decide."""
    return _address(device, uapi.IFLA_VXLAN_LOCAL, uapi.IFLA_VXLAN_LOCAL6)


def _address(device: Link, of_v4: int, of_v6: int) -> bytes:
    packed = device.data.get(of_v4) or device.data.get(of_v6) or b""
    return packed if any(packed) else b""
