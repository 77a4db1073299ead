"""Routes (rtnetlink(7), linux/rtnetlink.h)."""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6
from errno import EEXIST, ESRCH
from typing import NamedTuple

from ..protocol.address import Prefix, format_ip
from . import netlink as nl
from .netlink import Netlink, NetlinkError

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

TABLE_MAIN, TABLE_LOCAL = 254, 255
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST = 0, 253, 254
PROTO_KERNEL, PROTO_BOOT = 2, 3
_UNICAST, LOCAL = 1, 2

_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _MULTIPATH, _TABLE = 1, 4, 5, 6, 7, 9, 15
# family, dst len, src len, tos, table, protocol, scope, type, flags
_RTMSG = struct.Struct("=BBBBBBBBI")
_NEXTHOP = struct.Struct("=HBBi")


class Route(NamedTuple):
    """A route; `gateway` and `source` are packed or empty, `index` the output link's."""

    dst: Prefix
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants
    gateway: bytes = b""
    source: bytes = b""
    priority: int = 0
    table: int = TABLE_MAIN
    scope: int = SCOPE_UNIVERSE
    protocol: int = PROTO_BOOT

    def __str__(self) -> str:
        parts = [str(self.dst)]
        if self.gateway:
            parts.append(f"via {format_ip(self.gateway)}")
        if self.source:
            parts.append(f"src {format_ip(self.source)}")
        return " ".join(parts)


def add(sock: Netlink, route: Route, *, exist_ok: bool = False) -> None:
    """Add a route beside others to the same destination. Raises NetlinkError.

    CREATE without EXCL and APPEND, as the reference: a second gateway for one destination is
    accepted, an identical IPv4 route is EEXIST.
    """
    try:
        sock.request(RTM_NEWROUTE, _message(route), nl.NLM_F_CREATE)
    except NetlinkError as error:
        if not (exist_ok and error.errno == EEXIST):
            raise


def delete(sock: Netlink, route: Route) -> None:
    """Delete a route; one that is gone already is success."""
    try:
        sock.request(RTM_DELROUTE, _message(route))
    except NetlinkError as error:
        if error.errno != ESRCH:
            raise


def show(sock: Netlink, family: int, index: int = 0, table: int = TABLE_MAIN) -> list[Route]:
    """The unicast routes of a table, of a link (0: of all); multipath routes one per next hop."""
    found: list[Route] = []
    for data in sock.dump(RTM_GETROUTE, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
        found.extend(r for r in _parse(data, family) if r.table == table and index in (0, r.index))
    return found


def lookup(sock: Netlink, ip: bytes) -> tuple[int, int]:
    """Where a packet to `ip` would go: (type, output link's index); the type of this node's own
    addresses is LOCAL. Raises NetlinkError when there is no way.
    """
    family = AF_INET6 if len(ip) == 16 else AF_INET
    request = _RTMSG.pack(family, len(ip) * 8, 0, 0, 0, 0, 0, 0, 0) + nl.attr(_DST, ip)
    answer = sock.get(RTM_GETROUTE, request)
    kind = nl.unpack(_RTMSG, answer)[7]
    return kind, nl.get_u32(nl.attr_map(answer, _RTMSG.size).get(_OIF))


def is_local(sock: Netlink, ip: bytes) -> bool:
    """Is it an address of this node, as a packet filter's `fib daddr type local` sees it?"""
    try:
        return lookup(sock, ip)[0] == LOCAL
    except NetlinkError:
        return False


def _parse(data: bytes, family: int) -> list[Route]:
    entry_family, dst_len, _, _, table, proto, scope, kind, _ = nl.unpack(_RTMSG, data)
    if entry_family != family or kind != _UNICAST:
        return []
    a = nl.attr_map(data, _RTMSG.size)
    empty = bytes(16 if family == AF_INET6 else 4)
    base = Route(
        dst=Prefix(a.get(_DST, empty), dst_len),
        index=nl.get_u32(a.get(_OIF)),
        gateway=a.get(_GATEWAY, b""),
        source=a.get(_PREFSRC, b""),
        priority=nl.get_u32(a.get(_PRIORITY)),
        table=nl.get_u32(a.get(_TABLE), table),
        scope=scope,
        protocol=proto,
    )
    hops = a.get(_MULTIPATH)
    if hops is None:
        return [base]
    return [base._replace(index=index, gateway=gateway) for index, gateway in _next_hops(hops)]


def _next_hops(data: bytes) -> list[tuple[int, bytes]]:
    """A multipath route's (link index, gateway): struct rtnexthop, each with its attributes."""
    found: list[tuple[int, bytes]] = []
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, _, _, index = _NEXTHOP.unpack_from(data, offset)
        if length < _NEXTHOP.size:
            break
        a = nl.attr_map(data[offset : offset + length], _NEXTHOP.size)
        found.append((index, a.get(_GATEWAY, b"")))
        offset += length + 3 & ~3
    return found


def _message(route: Route) -> bytes:
    dst = route.dst
    header = _RTMSG.pack(
        dst.family,
        dst.length,
        0,
        0,
        route.table if route.table < 256 else 0,
        route.protocol,
        route.scope,
        _UNICAST,
        0,
    )
    parts = [header, nl.u32(_TABLE, route.table), nl.u32(_OIF, route.index)]
    if dst.length:
        parts.append(nl.attr(_DST, dst.network.ip))
    if route.gateway:
        parts.append(nl.attr(_GATEWAY, route.gateway))
    if route.source:
        parts.append(nl.attr(_PREFSRC, route.source))
    if route.priority:
        parts.append(nl.u32(_PRIORITY, route.priority))
    return b"".join(parts)
