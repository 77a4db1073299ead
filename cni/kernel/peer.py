"""The other end of a link, in another namespace (rtnetlink(7), IFLA_TARGET_NETNSID).

In each namespace the kernel numbers the other namespaces that its links lead to. Requests about
links there use that number, so nobody has to open the other namespace.
"""

from __future__ import annotations

import struct
from errno import EINVAL, ENODEV, ENOENT

from . import netlink as nl
from . import uapi
from .errors import NetlinkError
from .link import Link, list_all, parse
from .netlink import Netlink

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change


def find(sock: Netlink, index: int, nsid: int | None) -> Link | None:
    """The link with that index in the namespace `nsid`, a number of the socket's namespace.

    With `peer` and `peer_nsid` of a link it returns the link's other end. `nsid` None is the
    socket's own namespace. Returns None if there is no such link, or its namespace is being
    deleted. Raises NetlinkError.
    """
    if not index:
        return None
    payload = _IFINFO.pack(0, 0, index, 0, 0) + nl.u32(
        uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_SKIP_STATS
    )
    if nsid is not None:
        if nsid < 0:
            return None  # the kernel has taken the number back
        payload += nl.u32(uapi.IFLA_TARGET_NETNSID, nsid)
    try:
        return parse(sock.get(uapi.RTM_GETLINK, payload))
    except NetlinkError as error:
        if error.errno in (ENODEV, ENOENT, EINVAL):  # EINVAL: the number means no namespace
            return None
        raise


def of_ports(sock: Netlink, master: int) -> list[tuple[Link, Link | None]]:
    """The ports of the bridge `master` with the link at their other end. Raises NetlinkError."""
    ports = [device for device in list_all(sock) if device.master == master]
    return [(port, find(sock, port.peer, port.peer_nsid)) for port in ports]
