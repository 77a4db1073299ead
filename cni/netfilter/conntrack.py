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
from . import nft, uapi


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
    wanted, parts = uapi.CTA_FILTER_F_CTA_PROTO_NUM, nl.u8(uapi.CTA_PROTO_NUM, protocol)
    if len(ports) == 1:
        wanted |= uapi.CTA_FILTER_F_CTA_PROTO_DST_PORT
        parts += nl.attr(uapi.CTA_PROTO_DST_PORT, next(iter(ports)).to_bytes(2, "big"))
    flags = nl.u32(uapi.CTA_FILTER_ORIG_FLAGS, wanted) + nl.u32(uapi.CTA_FILTER_REPLY_FLAGS, 0)
    tuple_orig = nl.nest(uapi.CTA_TUPLE_ORIG, nl.nest(uapi.CTA_TUPLE_PROTO, parts))
    head = bytes((family, 0, 0, 0))
    for data in sock.dump(
        uapi.IPCTNL_MSG_CT_GET, head + tuple_orig + nl.nest(uapi.CTA_FILTER, flags)
    ):
        flow = parse(data)
        if data[0] == family and flow.protocol == protocol and flow.dst_port in ports:
            yield flow


def parse(data: bytes) -> Flow:
    """The flow in a dump's message."""
    found = nl.attr_map(data, nft.GENMSG_SIZE)
    orig = nl.attr_map(found.get(uapi.CTA_TUPLE_ORIG, b""))
    reply = nl.attr_map(found.get(uapi.CTA_TUPLE_REPLY, b""))
    proto = nl.attr_map(orig.get(uapi.CTA_TUPLE_PROTO, b""))
    addresses = nl.attr_map(orig.get(uapi.CTA_TUPLE_IP, b""))
    answering = nl.attr_map(reply.get(uapi.CTA_TUPLE_IP, b""))
    return Flow(
        nl.get_byte(proto.get(uapi.CTA_PROTO_NUM)),
        addresses.get(uapi.CTA_IP_V4_DST) or addresses.get(uapi.CTA_IP_V6_DST) or b"",
        int.from_bytes(proto.get(uapi.CTA_PROTO_DST_PORT, b""), "big"),
        answering.get(uapi.CTA_IP_V4_SRC) or answering.get(uapi.CTA_IP_V6_SRC) or b"",
        data,
    )


def forget(sock: Netlink, flow: Flow) -> None:
    """End the tracking of a flow; one that is gone is success. Raises NetlinkError."""
    found = nl.attr_map(flow.raw, nft.GENMSG_SIZE)
    parts = [nl.attr(uapi.CTA_TUPLE_ORIG | nl.NLA_F_NESTED, found[uapi.CTA_TUPLE_ORIG])]
    parts += [nl.attr(kind, found[kind]) for kind in (uapi.CTA_ZONE, uapi.CTA_ID) if kind in found]
    try:
        sock.request(uapi.IPCTNL_MSG_CT_DELETE, flow.raw[: nft.GENMSG_SIZE] + b"".join(parts))
    except NetlinkError as error:
        if error.errno != ENOENT:
            raise
