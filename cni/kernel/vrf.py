"""VRF devices: interfaces enslaved to one use its routing table (linux/Documentation/vrf.rst)."""

from __future__ import annotations

from errno import EOPNOTSUPP

from . import link, uapi
from . import netlink as nl
from .errors import NetlinkError
from .link import Link
from .netlink import Netlink

KIND = "vrf"


def table(device: Link) -> int:
    """The routing table of a VRF device."""
    return nl.get_u32(device.data.get(uapi.IFLA_VRF_TABLE))


def show(sock: Netlink) -> list[Link]:
    """The VRFs of the namespace."""
    return [device for device in link.list_all(sock) if device.kind == KIND]


def create(sock: Netlink, name: str, number: int) -> None:
    """Make a VRF device for the table `number`; it must not exist. Raises NetlinkError."""
    link.create(sock, KIND, name, data=nl.u32(uapi.IFLA_VRF_TABLE, number))


def supported(sock: Netlink) -> bool:
    """Does the kernel have VRFs? The request has no table, so the kernel never makes one."""
    try:
        link.create(sock, KIND, "")
    except NetlinkError as error:
        return error.errno != EOPNOTSUPP
    return True
