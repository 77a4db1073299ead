"""Forwarding entries of VXLAN links: which node has a MAC (bridge(8), linux/neighbour.h).

Frames to a MAC without an entry, and broadcasts, go to each destination of the entry for
00:00:00:00:00:00. Entries that the link learns by itself are not among them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from errno import EEXIST, ENOENT

from . import netlink as nl
from . import uapi
from .errors import NetlinkError
from .netlink import Netlink

_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_ALL = nl.attr(uapi.NDA_LLADDR, bytes(6))


def flooded(sock: Netlink, index: int) -> set[bytes]:
    """The addresses (packed) that get a copy of each frame whose destination the VXLAN link `index`
    does not know. The kernel lists all entries of the link. Raises NetlinkError.
    """
    found = set()
    for data in sock.dump(uapi.RTM_GETNEIGH, _NDMSG.pack(uapi.AF_BRIDGE, index, 0, 0, 0)):
        if _ALL not in data or nl.unpack(_NDMSG, data)[1] != index:
            continue
        attributes = nl.attr_map(data, _NDMSG.size)
        if attributes.get(uapi.NDA_LLADDR) == bytes(6) and uapi.NDA_DST in attributes:
            found.add(attributes[uapi.NDA_DST])
    return found


def forget(sock: Netlink, index: int, addresses: set[bytes]) -> None:
    """Remove what the VXLAN link has learned to be at these addresses (packed).

    What was entered by hand, permanent or static, stays. Raises NetlinkError.
    """
    requests: list[nl.Message] = []
    for data in sock.dump(uapi.RTM_GETNEIGH, _NDMSG.pack(uapi.AF_BRIDGE, index, 0, 0, 0)):
        _, its, state, _, _ = nl.unpack(_NDMSG, data)
        attributes = nl.attr_map(data, _NDMSG.size)
        if its != index or attributes.get(uapi.NDA_DST) not in addresses:
            continue
        if state & (uapi.NUD_PERMANENT | uapi.NUD_NOARP):
            continue
        header = _NDMSG.pack(uapi.AF_BRIDGE, index, state, uapi.NTF_SELF, 0)
        kept = (uapi.NDA_LLADDR, uapi.NDA_DST)
        parts = [nl.attr(kind, attributes[kind]) for kind in kept if kind in attributes]
        requests.append((uapi.RTM_DELNEIGH, header + b"".join(parts), 0))
    if not requests:
        return
    for error in sock.batch(requests):
        if error is not None and error.errno != ENOENT:  # it may have aged in the meantime
            raise NetlinkError(error.errno or 0, error.explanation)


def change(sock: Netlink, index: int, add: Iterable[bytes], remove: Iterable[bytes]) -> None:
    """Add and remove addresses of `flooded`. To add one that exists, or remove one that is gone, is
    success. Raises NetlinkError, after all have been tried.
    """
    requests = [
        (uapi.RTM_NEWNEIGH, _entry(index, each), nl.NLM_F_CREATE | nl.NLM_F_APPEND) for each in add
    ]
    requests += [(uapi.RTM_DELNEIGH, _entry(index, each), 0) for each in remove]
    if not requests:
        return
    for error in sock.batch(requests):
        if error is not None and error.errno not in (EEXIST, ENOENT):
            raise NetlinkError(error.errno or 0, error.explanation)


def _entry(index: int, address: bytes) -> bytes:
    state = uapi.NUD_NOARP | uapi.NUD_PERMANENT
    header = _NDMSG.pack(uapi.AF_BRIDGE, index, state, uapi.NTF_SELF, 0)
    return header + nl.attr(uapi.NDA_DST, address) + _ALL
