"""Generic netlink: families that are found by name (linux/genetlink.h)."""

from __future__ import annotations

import struct
import sys

from . import netlink as nl
from . import uapi
from .netlink import Netlink

HEADER = struct.Struct("=BBH")  # command, version, reserved


def family(sock: Netlink, name: str) -> int:
    """The number that the kernel has given the family: the type of its messages.

    Loads the family's module. Raises NetlinkError (ENOENT if the kernel has no such family).
    """
    request = HEADER.pack(uapi.CTRL_CMD_GETFAMILY, 1, 0)
    reply = sock.get(uapi.GENL_ID_CTRL, request + nl.text(uapi.CTRL_ATTR_FAMILY_NAME, name))
    raw = nl.attr_map(reply, HEADER.size).get(uapi.CTRL_ATTR_FAMILY_ID, b"")
    return int.from_bytes(raw, sys.byteorder)
