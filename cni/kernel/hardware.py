"""The hardware behind a link: facts that no namespace can change (linux/if_link.h)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from . import netlink as nl
from . import uapi
from .link import format_mac
from .netlink import Netlink

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change


class Hardware(NamedTuple):
    """The MAC that the device was made with, and ``<bus>/<device>`` as below /sys/bus.

    Both are empty for a software link. The MAC is known since Linux 5.6, the device since 5.14.
    """

    permanent_mac: str
    parent: str


def describe(sock: Netlink, index: int) -> Hardware:
    """The hardware behind a link. Raises NetlinkError (ENODEV when there is no such link)."""
    payload = sock.get(uapi.RTM_GETLINK, _IFINFO.pack(0, 0, index, 0, 0))
    attributes = nl.attr_map(payload, _IFINFO.size)
    bus = nl.get_text(attributes.get(uapi.IFLA_PARENT_DEV_BUS_NAME))
    name = nl.get_text(attributes.get(uapi.IFLA_PARENT_DEV_NAME))
    return Hardware(
        format_mac(attributes.get(uapi.IFLA_PERM_ADDRESS, b"")),
        f"{bus}/{name}" if bus and name else "",
    )
