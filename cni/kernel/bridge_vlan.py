"""VLANs of a bridge port (linux/if_bridge.h, bridge(8))."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from . import netlink as nl
from .link import RTM_DELLINK, RTM_GETLINK, RTM_SETLINK
from .netlink import Netlink

_AF_BRIDGE = 7
_AF_SPEC, _EXT_MASK, _VLAN_INFO = 26, 29, 2
_MASK_BRVLAN = 1 << 1
_PVID, _UNTAGGED = 2, 4
_IFINFO = struct.Struct("=BxHiII")
_INFO = struct.Struct("=HH")


class PortVlan(NamedTuple):
    """A VLAN on a port; `pvid` takes untagged frames in, `untagged` strips the tag going out."""

    vid: int
    pvid: bool
    untagged: bool


def show(sock: Netlink, index: int) -> list[PortVlan]:
    """The VLANs on the port with that link index."""
    request = _IFINFO.pack(_AF_BRIDGE, 0, 0, 0, 0) + nl.u32(_EXT_MASK, _MASK_BRVLAN)
    found = []
    for data in sock.dump(RTM_GETLINK, request):
        if nl.unpack(_IFINFO, data)[2] != index:
            continue
        spec = nl.attr_map(data, _IFINFO.size).get(_AF_SPEC, b"")
        for kind, info in nl.attrs(spec):
            if kind == _VLAN_INFO:
                flags, vid = nl.unpack(_INFO, info)
                found.append(PortVlan(vid, bool(flags & _PVID), bool(flags & _UNTAGGED)))
    return found


def add(sock: Netlink, index: int, vids: Iterable[int], *, access: bool = False) -> None:
    """Put VLANs on a port: tagged, or as the port's access VLAN (PVID and untagged)."""
    flags = _PVID | _UNTAGGED if access else 0
    _change(sock, RTM_SETLINK, index, vids, flags)


def remove(sock: Netlink, index: int, vids: Iterable[int]) -> None:
    """Take VLANs off a port."""
    _change(sock, RTM_DELLINK, index, vids, 0)


def _change(sock: Netlink, kind: int, index: int, vids: Iterable[int], flags: int) -> None:
    infos = [nl.attr(_VLAN_INFO, _INFO.pack(flags, vid)) for vid in vids]
    if infos:
        header = _IFINFO.pack(_AF_BRIDGE, 0, index, 0, 0)
        sock.request(kind, header + nl.nest(_AF_SPEC, *infos))
