"""Ending the tracking of flows (ctnetlink, linux/netfilter/nfnetlink_conntrack.h).

The kernel translates all packets of a flow as it did the first one, for as long as packets come. A
TCP flow ends with its connection. The packets of a UDP or SCTP sender that never stops would still
go to a container that is gone, or never reach a new one (docs/spec/common.md §12).
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from collections.abc import Collection, Iterable, Iterator
from errno import EINVAL, ENOENT, EOPNOTSUPP
from typing import NamedTuple

from ..kernel import netlink as nl
from ..kernel.errors import NetlinkError
from ..kernel.netlink import Netlink
from . import nft, uapi

_PORTS_ASKED = 16  # up to so many ports: one dump for each; beyond: one dump of all ports


class Flow(NamedTuple):
    """A tracked flow; addresses are packed.

    `dst` and `dst_port` are the destination of its first packet, `answered_by` is the source
    address of the replies, `raw` the kernel's message.
    """

    protocol: int
    dst: bytes
    dst_port: int
    answered_by: bytes
    raw: bytes


def flows(sock: Netlink, v6: bool, protocol: int, ports: Collection[int]) -> Iterator[Flow]:
    """The flows of a family and protocol whose first packet went to one of these ports.

    Since Linux 5.8 the kernel filters by protocol and, for few ports, by port; an older one lists
    all flows, which are filtered here. Raises NetlinkError.
    """
    family = AF_INET6 if v6 else AF_INET
    few = 0 < len(ports) <= _PORTS_ASKED
    for asked in [(port,) for port in ports] if few else [()]:
        for data in sock.dump(uapi.IPCTNL_MSG_CT_GET, _filter(family, protocol, *asked)):
            flow = parse(data)
            if (
                data[0] == family
                and flow.protocol == protocol
                and flow.dst_port in (asked or ports)
            ):
                yield flow


def _filter(family: int, protocol: int, port: int | None = None) -> bytes:
    """The request for a dump of a protocol's flows (to one port, if it is given)."""
    wanted, parts = uapi.CTA_FILTER_F_CTA_PROTO_NUM, nl.u8(uapi.CTA_PROTO_NUM, protocol)
    if port is not None:
        wanted |= uapi.CTA_FILTER_F_CTA_PROTO_DST_PORT
        parts += nl.attr(uapi.CTA_PROTO_DST_PORT, port.to_bytes(2, "big"))
    flags = nl.u32(uapi.CTA_FILTER_ORIG_FLAGS, wanted) + nl.u32(uapi.CTA_FILTER_REPLY_FLAGS, 0)
    tuple_orig = nl.nest(uapi.CTA_TUPLE_ORIG, nl.nest(uapi.CTA_TUPLE_PROTO, parts))
    return bytes((family, 0, 0, 0)) + tuple_orig + nl.nest(uapi.CTA_FILTER, flags)


def forget_all(sock: Netlink, protocol: int, port: int, dst: bytes, answered_by: bytes) -> bool:
    """End the tracking of all flows to a port that this address answers, in one request.

    `dst` is the destination of the first packets; b"" for any. Returns False, and does nothing, if
    the kernel cannot delete by filter: before 6.8 it takes the filter for an incomplete tuple. Nor
    does IPv6 work: Linux 6.18 matches every address but the given one
    (ctnetlink_filter_match_tuple). Raises NetlinkError.
    """
    if len(answered_by) != 4:
        return False
    wanted = uapi.CTA_FILTER_F_CTA_PROTO_NUM | uapi.CTA_FILTER_F_CTA_PROTO_DST_PORT
    number = nl.u8(uapi.CTA_PROTO_NUM, protocol)
    to_port = nl.attr(uapi.CTA_PROTO_DST_PORT, port.to_bytes(2, "big"))
    orig = nl.nest(uapi.CTA_TUPLE_PROTO, number + to_port)
    if dst:
        wanted |= uapi.CTA_FILTER_F_CTA_IP_DST
        orig = nl.nest(uapi.CTA_TUPLE_IP, nl.attr(uapi.CTA_IP_V4_DST, dst)) + orig
    reply = nl.nest(uapi.CTA_TUPLE_IP, nl.attr(uapi.CTA_IP_V4_SRC, answered_by))
    flags = nl.u32(uapi.CTA_FILTER_ORIG_FLAGS, wanted)
    flags += nl.u32(uapi.CTA_FILTER_REPLY_FLAGS, uapi.CTA_FILTER_F_CTA_IP_SRC)
    # without a tuple, a kernel that ignores the filter would end all flows of the node
    message = bytes((AF_INET, 0, 0, 0)) + nl.nest(uapi.CTA_TUPLE_ORIG, orig)
    message += nl.nest(uapi.CTA_TUPLE_REPLY, reply) + nl.nest(uapi.CTA_FILTER, flags)
    try:
        sock.request(uapi.IPCTNL_MSG_CT_DELETE, message)
    except NetlinkError as error:
        if error.errno in (EINVAL, EOPNOTSUPP):
            return False
        if error.errno != ENOENT:
            raise
    return True


def parse(data: bytes) -> Flow:
    """The flow in a dump's message."""
    orig = reply = b""
    for kind, value in nl.attrs(data, nft.GENMSG_SIZE):
        if kind == uapi.CTA_TUPLE_ORIG:
            orig = value
        elif kind == uapi.CTA_TUPLE_REPLY:
            reply = value
            break  # the kernel writes the tuples first; the rest is not needed
    sides = nl.attr_map(orig)
    proto = nl.attr_map(sides.get(uapi.CTA_TUPLE_PROTO, b""))
    addresses = nl.attr_map(sides.get(uapi.CTA_TUPLE_IP, b""))
    answering = nl.attr_map(nl.attr_map(reply).get(uapi.CTA_TUPLE_IP, b""))
    return Flow(
        nl.get_byte(proto.get(uapi.CTA_PROTO_NUM)),
        addresses.get(uapi.CTA_IP_V4_DST) or addresses.get(uapi.CTA_IP_V6_DST) or b"",
        int.from_bytes(proto.get(uapi.CTA_PROTO_DST_PORT, b""), "big"),
        answering.get(uapi.CTA_IP_V4_SRC) or answering.get(uapi.CTA_IP_V6_SRC) or b"",
        data,
    )


def forget(sock: Netlink, stale: Iterable[Flow]) -> None:
    """End the tracking of flows, many in one datagram; those that are gone already are success.

    Raises NetlinkError of the first that was refused, after the last was tried.
    """
    failures = sock.batch([(uapi.IPCTNL_MSG_CT_DELETE, _itself(flow), 0) for flow in stale])
    for error in failures:
        if error is not None and error.errno != ENOENT:
            raise error


def _itself(flow: Flow) -> bytes:
    """The attributes that identify this flow: tuple, zone, and an id that no later flow has."""
    kept = (uapi.CTA_TUPLE_ORIG, uapi.CTA_ZONE, uapi.CTA_ID)
    parts = [
        nl.attr(kind | nl.NLA_F_NESTED if kind == uapi.CTA_TUPLE_ORIG else kind, value)
        for kind, value in nl.attrs(flow.raw, nft.GENMSG_SIZE)
        if kind in kept
    ]
    return flow.raw[: nft.GENMSG_SIZE] + b"".join(parts)
