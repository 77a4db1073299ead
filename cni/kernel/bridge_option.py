"""Options of a bridge that are bits of one attribute (linux/if_bridge.h, BR_BOOLOPT_*)."""

from __future__ import annotations

import struct

from . import netlink as nl
from . import uapi
from .link import Link
from .netlink import Netlink

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_OPTIONS = struct.Struct("=II")  # struct br_boolopt_multi: values, and which of them are meant


def forget_link_local(sock: Netlink, bridge: Link) -> None:
    """Keep the bridge from learning the sources of frames to 01:80:c2:00:00:00 to …:0f.

    Such frames (LLDP, STP, …) pass no hook of the packet filter. Needs Linux 5.0; does nothing if
    the option is set. Raises NetlinkError.
    """
    bit = 1 << uapi.BR_BOOLOPT_NO_LL_LEARN
    present = bridge.data.get(uapi.IFLA_BR_MULTI_BOOLOPT, b"")
    if len(present) >= _OPTIONS.size and _OPTIONS.unpack_from(present)[0] & bit:
        return
    option = nl.attr(uapi.IFLA_BR_MULTI_BOOLOPT, _OPTIONS.pack(bit, bit))
    info = nl.text(uapi.IFLA_INFO_KIND, "bridge") + nl.nest(uapi.IFLA_INFO_DATA, option)
    payload = _IFINFO.pack(0, 0, bridge.index, 0, 0) + nl.nest(uapi.IFLA_LINKINFO, info)
    sock.request(uapi.RTM_NEWLINK, payload)
