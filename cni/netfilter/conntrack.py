"""Forgetting connections (ctnetlink, linux/netfilter/nfnetlink_conntrack.h).

A flow keeps the translation it got with its first packet for as long as packets come. For TCP that
ends with the connection; a UDP or SCTP sender that never stops goes on to a container that is gone,
or never reaches the one that came (docs/spec/common.md §12).
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from collections.abc import Collection, Iterator
from errno import ENOENT
from typing import NamedTuple

from ..kernel import netlink as nl
from ..kernel.errors import NetlinkError
from ..kernel.netlink import Netlink
from . import nft

_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_V4_SRC, _IP_V4_DST, _IP_V6_SRC, _IP_V6_DST = 1, 2, 3, 4
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_BY_PROTO_NUM, _BY_DST_PORT = 1 << 3, 1 << 5


class Flow(NamedTuple):
    """A tracked flow: where its first packet went, and who answers; addresses are packed."""

    protocol: int
    dst: bytes
    dst_port: int
    answered_by: bytes
    raw: bytes


def flows(sock: Netlink, v6: bool, protocol: int, ports: Collection[int]) -> Iterator[Flow]:
    """The flows of a family and protocol whose first packet went to one of these ports.

    The kernel (since 5.8) leaves out what is of another protocol and, if it is only one, of another
    port; an older one lists everything. Raises NetlinkError.
    """
    family = AF_INET6 if v6 else AF_INET
    wanted, parts = _BY_PROTO_NUM, nl.u8(_PROTO_NUM, protocol)
    if len(ports) == 1:
        wanted |= _BY_DST_PORT
        parts += nl.attr(_PROTO_DST_PORT, next(iter(ports)).to_bytes(2, "big"))
    flags = nl.u32(_FILTER_ORIG_FLAGS, wanted) + nl.u32(_FILTER_REPLY_FLAGS, 0)
    tuple_orig = nl.nest(_TUPLE_ORIG, nl.nest(_TUPLE_PROTO, parts))
    head = bytes((family, 0, 0, 0))
    for data in sock.dump(_GET, head + tuple_orig + nl.nest(_FILTER, flags)):
        flow = parse(data)
        if data[0] == family and flow.protocol == protocol and flow.dst_port in ports:
            yield flow


def parse(data: bytes) -> Flow:
    """The flow in a dump's message."""
    found = nl.attr_map(data, nft.GENMSG_SIZE)
    orig = nl.attr_map(found.get(_TUPLE_ORIG, b""))
    reply = nl.attr_map(found.get(_TUPLE_REPLY, b""))
    proto = nl.attr_map(orig.get(_TUPLE_PROTO, b""))
    addresses = nl.attr_map(orig.get(_TUPLE_IP, b""))
    answering = nl.attr_map(reply.get(_TUPLE_IP, b""))
    return Flow(
        nl.get_byte(proto.get(_PROTO_NUM)),
        addresses.get(_IP_V4_DST) or addresses.get(_IP_V6_DST) or b"",
        int.from_bytes(proto.get(_PROTO_DST_PORT, b""), "big"),
        answering.get(_IP_V4_SRC) or answering.get(_IP_V6_SRC) or b"",
        data,
    )


def forget(sock: Netlink, flow: Flow) -> None:
    """End the tracking of a flow; one that is gone is success. Raises NetlinkError."""
    found = nl.attr_map(flow.raw, nft.GENMSG_SIZE)
    parts = [nl.attr(_TUPLE_ORIG | nl.NLA_F_NESTED, found[_TUPLE_ORIG])]
    parts += [nl.attr(kind, found[kind]) for kind in (_ZONE, _ID) if kind in found]
    try:
        sock.request(_DELETE, flow.raw[: nft.GENMSG_SIZE] + b"".join(parts))
    except NetlinkError as error:
        if error.errno != ENOENT:
            raise
