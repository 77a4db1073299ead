"""VLANs of a bridge port (linux/if_bridge.h, bridge(8))."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from errno import EINVAL, ENODEV, EOPNOTSUPP
from typing import NamedTuple

from . import netlink as nl
from . import uapi
from .errors import NetlinkError
from .netlink import Netlink

_IFINFO = struct.Struct("=BxHiII")
_INFO = struct.Struct("=HH")
_VLANS = struct.Struct("=BxHI")  # struct br_vlan_msg: family, reserved, index
_REQUEST = _IFINFO.pack(uapi.AF_BRIDGE, 0, 0, 0, 0) + nl.u32(
    uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_BRVLAN
)


class PortVlan(NamedTuple):
    """A VLAN on a port; `pvid` takes untagged frames in, `untagged` strips the tag going out."""

    vid: int
    pvid: bool
    untagged: bool


def show(sock: Netlink, index: int) -> list[PortVlan]:
    """The VLANs on the port with that link index; none if it is no port. Raises NetlinkError."""
    try:
        return list(_of_port(sock, index))
    except NetlinkError as error:
        if error.errno in (EINVAL, ENODEV):  # no port, or no link
            return []
        if error.errno != EOPNOTSUPP:
            raise
    # before Linux 5.6: the kernel lists the ports of all bridges
    return [vlan for port, vlan in _all(sock) if port == index]


def ports_in(sock: Netlink, vid: int) -> set[int]:
    """The indexes of the ports (of any bridge), and of the bridges, that have this VLAN."""
    return {port for port, vlan in _all(sock) if vlan.vid == vid}


def used(bridge: int, vids: set[int], but: set[int]) -> set[int]:
    """Those of `vids` that a port of the bridge has, of all ports but those in `but` (indexes).

    The kernel lists the ports of all bridges, and is not asked for more when all are found.
    """
    found: set[int] = set()

    def finds_the_last(data: bytes) -> bool:
        index = nl.unpack(_IFINFO, data)[2]
        attributes = nl.attr_map(data, _IFINFO.size)
        # the kernel also lists the bridge itself, whose VLANs are those of its own traffic
        if index not in (*but, bridge) and nl.get_u32(attributes.get(uapi.IFLA_MASTER)) == bridge:
            spec = attributes.get(uapi.IFLA_AF_SPEC, b"")
            found.update(vid for vid in _vids(spec) if vid in vids)
        return found == vids

    if vids:
        with Netlink() as sock:
            sock.search(uapi.RTM_GETLINK, _REQUEST, finds_the_last)
    return found


def _vids(spec: bytes) -> Iterator[int]:
    for kind, info in nl.attrs(spec):
        if kind == uapi.IFLA_BRIDGE_VLAN_INFO:
            yield nl.unpack(_INFO, info)[1]


def _of_port(sock: Netlink, index: int) -> Iterator[PortVlan]:
    """The VLANs of a port alone. The kernel joins VLANs with the same flags to ranges."""
    for data in sock.dump(uapi.RTM_GETVLAN, _VLANS.pack(uapi.AF_BRIDGE, 0, index)):
        for kind, entry in nl.attrs(data, _VLANS.size):
            if kind != uapi.BRIDGE_VLANDB_ENTRY:
                continue
            parts = nl.attr_map(entry)
            flags, first = nl.unpack(_INFO, parts.get(uapi.BRIDGE_VLANDB_ENTRY_INFO, b""))
            last = int.from_bytes(parts.get(uapi.BRIDGE_VLANDB_ENTRY_RANGE, b""), sys.byteorder)
            for vid in range(first, (last or first) + 1):
                yield _port_vlan(flags, vid)


def _port_vlan(flags: int, vid: int) -> PortVlan:
    pvid = bool(flags & uapi.BRIDGE_VLAN_INFO_PVID)
    return PortVlan(vid, pvid, bool(flags & uapi.BRIDGE_VLAN_INFO_UNTAGGED))


def _all(sock: Netlink) -> Iterator[tuple[int, PortVlan]]:
    for data in sock.dump(uapi.RTM_GETLINK, _REQUEST):
        index = nl.unpack(_IFINFO, data)[2]
        spec = nl.attr_map(data, _IFINFO.size).get(uapi.IFLA_AF_SPEC, b"")
        for kind, info in nl.attrs(spec):
            if kind == uapi.IFLA_BRIDGE_VLAN_INFO:
                flags, vid = nl.unpack(_INFO, info)
                yield index, _port_vlan(flags, vid)


def add(sock: Netlink, index: int, vids: Iterable[int], *, access: bool = False) -> None:
    """Put VLANs on a port: tagged, or as the port's access VLAN (PVID and untagged)."""
    flags = uapi.BRIDGE_VLAN_INFO_PVID | uapi.BRIDGE_VLAN_INFO_UNTAGGED if access else 0
    _change(sock, uapi.RTM_SETLINK, index, vids, flags)


def remove(sock: Netlink, index: int, vids: Iterable[int]) -> None:
    """Take VLANs off a port."""
    _change(sock, uapi.RTM_DELLINK, index, vids, 0)


def _change(sock: Netlink, kind: int, index: int, vids: Iterable[int], flags: int) -> None:
    infos = [nl.attr(uapi.IFLA_BRIDGE_VLAN_INFO, _INFO.pack(flags, vid)) for vid in vids]
    if infos:
        header = _IFINFO.pack(uapi.AF_BRIDGE, 0, index, 0, 0)
        sock.request(kind, header + nl.nest(uapi.IFLA_AF_SPEC, *infos))
