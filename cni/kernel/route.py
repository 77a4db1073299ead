"""Routes (rtnetlink(7), linux/rtnetlink.h).

More than 400 lines: reading and writing a route share the layout of one message, and a second
module would be one more file for each request to load.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, AF_UNSPEC
from collections.abc import Collection, Iterable
from errno import EEXIST, ENODEV, ENOENT, ESRCH
from typing import NamedTuple

from ..protocol.address import Prefix, format_ip
from . import netlink as nl
from . import uapi
from .errors import NetlinkError
from .netlink import Netlink

RTNLGRP_IPV6_ROUTE = uapi.RTNLGRP_IPV6_ROUTE

TABLE_MAIN = uapi.RT_TABLE_MAIN
TABLE_LOCAL = uapi.RT_TABLE_LOCAL
SCOPE_UNIVERSE = uapi.RT_SCOPE_UNIVERSE
SCOPE_LINK = uapi.RT_SCOPE_LINK
SCOPE_HOST = uapi.RT_SCOPE_HOST
PROTO_KERNEL = uapi.RTPROT_KERNEL
PROTO_BOOT = uapi.RTPROT_BOOT
PROTO_RA = uapi.RTPROT_RA
PROTO_DHCP = uapi.RTPROT_DHCP
# types of routes
UNICAST = uapi.RTN_UNICAST
LOCAL = uapi.RTN_LOCAL
UNREACHABLE = uapi.RTN_UNREACHABLE
FLAG_ONLINK = uapi.RTNH_F_ONLINK

# Attributes that a copy of a route takes over as they are.
_KEPT = frozenset(
    {
        uapi.RTA_METRICS,
        uapi.RTA_FLOW,
        uapi.RTA_VIA,
        uapi.RTA_PREF,
        uapi.RTA_ENCAP_TYPE,
        uapi.RTA_ENCAP,
    }
)
# Those of them that a multipath route has once, and not for each hop.
_COMMON = frozenset({uapi.RTA_METRICS, uapi.RTA_PREF})
_BESIDE = nl.NLM_F_CREATE | nl.NLM_F_APPEND
# family, dst len, src len, tos, table, protocol, scope, type, flags
_RTMSG = struct.Struct("=BBBBBBBBI")
_FAMILIES = (AF_INET, AF_INET6)
# The header's table when its number is in an attribute.
_NO_NUMBER = (uapi.RT_TABLE_UNSPEC, uapi.RT_TABLE_COMPAT)
_NEXTHOP = struct.Struct("=HBBi")


class Route(NamedTuple):
    """A route; `gateway` and `source` are packed or empty, `index` the output link's.

    `extra` are further attributes in the kernel's form, for copies of the route. `weight` is that
    of a multipath route's next hop, from 1; 0 if the route has one hop only. `shared`: the route
    is a hop of a multipath route with hops on other links.
    """

    dst: Prefix
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants
    gateway: bytes = b""
    source: bytes = b""
    priority: int = 0
    table: int = TABLE_MAIN
    scope: int = SCOPE_UNIVERSE
    protocol: int = PROTO_BOOT
    tos: int = 0
    flags: int = 0
    extra: bytes = b""
    shared: bool = False
    weight: int = 0

    @property
    def movable(self) -> bool:
        """Can it be moved without hops on other links? Yes for IPv6, whose hops are routes."""
        return not (self.shared and self.dst.is_v4)

    def __str__(self) -> str:
        parts = [str(self.dst)]
        if self.gateway:
            parts.append(f"via {format_ip(self.gateway)}")
        if self.source:
            parts.append(f"src {format_ip(self.source)}")
        return " ".join(parts)


Change = tuple[Route, nl.Message]  # a route, and the message for Netlink.batch that changes it


class RouteError(NetlinkError):
    """The kernel refused `route`."""

    def __init__(self, route: Route, errno: int, explanation: str = "") -> None:
        super().__init__(errno, explanation)
        self.route = route

    def __reduce__(self) -> tuple[type[RouteError], tuple[Route, int, str]]:  # type: ignore[override]
        return RouteError, (self.route, self.errno or 0, self.explanation)


def add(sock: Netlink, route: Route, *, exist_ok: bool = False, kind: int = UNICAST) -> None:
    """Add a route beside others to the same destination. Raises NetlinkError.

    With the flag CREATE, without EXCL and APPEND, as in the reference: the kernel accepts a second
    gateway for a destination, and refuses an identical route (EEXIST).
    """
    try:
        sock.request(uapi.RTM_NEWROUTE, _message(route, kind), nl.NLM_F_CREATE)
    except NetlinkError as error:
        if not (exist_ok and error.errno == EEXIST):
            raise


def add_new(sock: Netlink, hops: list[Route]) -> None:
    """Add one route with these next hops, which differ in gateway, link and weight only.

    Raises NetlinkError: EEXIST if there is a route of this destination, table and priority.
    """
    message = _message(hops[0]) if len(hops) == 1 else _multipath_message(hops)
    sock.request(uapi.RTM_NEWROUTE, message, nl.NLM_F_CREATE | nl.NLM_F_EXCL)


def add_multipath(sock: Netlink, hops: list[Route]) -> None:
    """As add(), one route with these next hops, two or more. Raises NetlinkError."""
    sock.request(uapi.RTM_NEWROUTE, _multipath_message(hops), nl.NLM_F_CREATE)


def metrics(mtu: int, advmss: int) -> bytes:
    """`extra` of a route with this MTU and advertised TCP segment size, in bytes (0: without)."""
    pairs = ((uapi.RTAX_MTU, mtu), (uapi.RTAX_ADVMSS, advmss))
    parts = [nl.u32(kind, value) for kind, value in pairs if value]
    return nl.nest(uapi.RTA_METRICS, *parts) if parts else b""


def additions(routes: Iterable[Route], table: int, there: Iterable[Route] = ()) -> list[Change]:
    """Changes that add a link's routes, with all attributes, to a table beside other links' routes.

    `there` are the link's routes that the table has: those with the same destination are replaced.
    Routes without a gateway come first, since gateways are reached through them. The hops of an
    IPv4 multipath route stay one route; the kernel joins those of IPv6 itself.
    """
    present: dict[tuple[object, ...], list[Route]] = {}
    for old in there:
        if old.movable:
            present.setdefault((old.dst, old.tos, old.priority), []).append(old)
    changes: list[Change] = []
    for entry, *others in _together(sorted(routes, key=lambda r: bool(r.gateway))):
        wanted = [hop._replace(table=table) for hop in (entry, *others)]
        olds = present.pop((entry.dst, entry.tos, entry.priority), [])
        if any(hop not in olds for hop in wanted):
            changes += map(_deletion, olds)
            message = _multipath_message(wanted) if others else _message(wanted[0])
            changes.append((wanted[0], (uapi.RTM_NEWROUTE, message, _BESIDE)))
    return changes


def _together(routes: Iterable[Route]) -> Iterable[list[Route]]:
    """The routes one by one; hops of an IPv4 multipath route together, in the first one's place."""
    groups: dict[object, list[Route]] = {}
    for at, entry in enumerate(routes):
        is_hop = entry.weight and entry.dst.is_v4
        key = (entry.dst, entry.tos, entry.priority, entry.table) if is_hop else at
        groups.setdefault(key, []).append(entry)
    return groups.values()


def _deletion(entry: Route) -> Change:
    return entry, (uapi.RTM_DELROUTE, _message(entry), 0)


def copy(sock: Netlink, routes: Iterable[Route], table: int, index: int) -> None:
    """Make `additions` to the link's routes in that table. Raises RouteError, after the last."""
    there = [old for family in _FAMILIES for old in show(sock, family, index, table)]
    _change(sock, additions(routes, table, there))


def delete_all(sock: Netlink, routes: Iterable[Route]) -> None:
    """Delete routes; those that are gone already are success. Raises RouteError, after the last."""
    _change(sock, list(map(_deletion, routes)))


def _change(sock: Netlink, changes: list[Change]) -> None:
    require_made(changes, sock.batch([message for _, message in changes]))


def require_made(changes: list[Change], failures: Iterable[NetlinkError | None]) -> None:
    """Raise RouteError for the first refused change, unless its route is there or gone already."""
    for (entry, (kind, _, _)), error in zip(changes, failures, strict=True):
        if error is not None and error.errno != (ESRCH if kind == uapi.RTM_DELROUTE else EEXIST):
            raise RouteError(entry, error.errno or 0, error.explanation)


def delete(sock: Netlink, route: Route) -> None:
    """Delete a route; one that is gone already is success. Raises RouteError."""
    delete_all(sock, [route])


def show(
    sock: Netlink, family: int, index: int = 0, table: int = TABLE_MAIN, kind: int = UNICAST
) -> list[Route]:
    """The routes of a table (0: of all) and a link (0: of all); a multipath route as its next hops.

    Since Linux 4.20 the kernel filters; before, all routes are read. Raises NetlinkError.
    """
    routes: list[Route] = []
    for data in _dump(sock, family, index, table, kind):
        for entry in _parse(data, family, kind):
            if table in (0, entry.table) and index in (0, entry.index):
                routes.append(entry)
    return routes


def show_to(sock: Netlink, destinations: Collection[Prefix]) -> list[Route]:
    """The unicast routes to exactly these networks, in any table. Raises NetlinkError.

    One dump for each family, however many destinations; only the routes to them are parsed.
    """
    routes: list[Route] = []
    for family in {destination.family for destination in destinations}:
        wanted = {d for d in destinations if d.family == family}
        lengths = {d.length for d in wanted}
        marks = [nl.attr(uapi.RTA_DST, d.ip) for d in wanted if d.length]
        for data in _dump(sock, family, 0, 0, UNICAST):
            length = data[1]
            if length in lengths and (not length or any(mark in data for mark in marks)):
                routes += [entry for entry in _parse(data, family) if entry.dst in wanted]
    return routes


def _dump(sock: Netlink, family: int, index: int, table: int, kind: int) -> list[bytes]:
    """The messages about a family's routes; filtered if the kernel can (since 4.20)."""
    request = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, kind, 0)
    request += nl.u32(uapi.RTA_TABLE, table) if table else b""
    request += nl.u32(uapi.RTA_OIF, index) if index else b""
    try:
        return sock.dump(uapi.RTM_GETROUTE, request)
    except NetlinkError as error:
        if error.errno not in (ENOENT, ENODEV):
            raise
        return []  # no such table or link


def survey(sock: Netlink) -> tuple[list[Route], set[int]]:
    """The unicast routes of the main table, and the numbers of all tables that have a route."""
    routes: list[Route] = []
    tables = set()
    for data in sock.dump(uapi.RTM_GETROUTE, _RTMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
        family, _, _, _, table, _, _, kind, _ = nl.unpack(_RTMSG, data)
        if family not in _FAMILIES:  # the kernel also lists those of multicast routing and MPLS
            continue
        if table in _NO_NUMBER:
            table = nl.get_u32(nl.attr_map(data, _RTMSG.size).get(uapi.RTA_TABLE), table)
        tables.add(table)
        if table == TABLE_MAIN and kind == UNICAST:
            routes += _parse(data, family)
    return routes, tables


class Way(NamedTuple):
    """Where a packet would go. `kind` is LOCAL if that is this node.

    `link` is the index of the output link, `is_direct` says that no gateway is between.
    """

    kind: int
    link: int
    is_direct: bool


def lookup(sock: Netlink, ip: bytes) -> Way:
    """Where a packet to `ip` would go. Raises NetlinkError (ENETUNREACH …) if there is no route."""
    family = AF_INET6 if len(ip) == 16 else AF_INET
    request = _RTMSG.pack(family, len(ip) * 8, 0, 0, 0, 0, 0, 0, 0) + nl.attr(uapi.RTA_DST, ip)
    answer = sock.get(uapi.RTM_GETROUTE, request)
    attributes = nl.attr_map(answer, _RTMSG.size)
    is_direct = uapi.RTA_GATEWAY not in attributes and uapi.RTA_VIA not in attributes
    return Way(nl.unpack(_RTMSG, answer)[7], nl.get_u32(attributes.get(uapi.RTA_OIF)), is_direct)


def default_links(sock: Netlink) -> list[int]:
    """The indexes of the default routes' links, of both families; one for each next hop.

    The kernel is asked for its route to an address that nobody has, which costs the same however
    many routes there are. Only if that is no default route the whole main table is read. Raises
    NetlinkError.
    """
    indexes: list[int] = []
    for family, nobody in _NOBODY.items():
        hops = _matched(sock, family, nobody)
        if any(hop.dst.length for hop in hops):  # a VPN's route, or a network's
            hops = [hop for hop in show(sock, family) if not hop.dst.length]
            best = min((hop.priority for hop in hops), default=0)
            hops = [hop for hop in hops if hop.priority == best]
        indexes += [hop.index for hop in hops if hop.index]
    return list(dict.fromkeys(indexes))


# Addresses that nobody has: one of 240.0.0.0/4, which is reserved, and one of a part of 2000::/3
# that no registry has.
_NOBODY = {AF_INET: b"\xf0\0\0\1", AF_INET6: b"\x3f\xfe" + bytes(13) + b"\1"}


def _matched(sock: Netlink, family: int, ip: bytes) -> list[Route]:
    """The next hops of the unicast route to an address; none if there is no such route."""
    flags = uapi.RTM_F_FIB_MATCH
    request = _RTMSG.pack(family, len(ip) * 8, 0, 0, 0, 0, 0, 0, flags)
    try:
        answer = sock.get(uapi.RTM_GETROUTE, request + nl.attr(uapi.RTA_DST, ip))
    except NetlinkError:
        return []
    return _parse(answer, family)


def is_local(sock: Netlink, ip: bytes) -> bool:
    """Is it an address of this node, as a packet filter's `fib daddr type local` sees it?"""
    try:
        return lookup(sock, ip).kind == LOCAL
    except NetlinkError:
        return False


def _parse(data: bytes, family: int, wanted: int = UNICAST) -> list[Route]:
    entry_family, dst_len, _, tos, table, proto, scope, kind, flags = nl.unpack(_RTMSG, data)
    if entry_family != family or kind != wanted:
        return []
    a = nl.attr_map(data, _RTMSG.size)
    empty = bytes(16 if family == AF_INET6 else 4)
    base = Route(
        dst=Prefix(a.get(uapi.RTA_DST, empty), dst_len),
        index=nl.get_u32(a.get(uapi.RTA_OIF)),
        gateway=a.get(uapi.RTA_GATEWAY, b""),
        source=a.get(uapi.RTA_PREFSRC, b""),
        priority=nl.get_u32(a.get(uapi.RTA_PRIORITY)),
        table=nl.get_u32(a.get(uapi.RTA_TABLE), table),
        scope=scope,
        protocol=proto,
        tos=tos,
        flags=flags & FLAG_ONLINK,
        extra=_kept(a),
    )
    hops = a.get(uapi.RTA_MULTIPATH)
    if hops is None:
        return [base]
    return list(_next_hops(base, hops))


def _kept(attributes: dict[int, bytes]) -> bytes:
    return b"".join(nl.attr(key, value) for key, value in attributes.items() if key in _KEPT)


def _next_hops(base: Route, data: bytes) -> list[Route]:
    """A multipath route, one a next hop: struct rtnexthop, each with its attributes."""
    hops: list[Route] = []
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, flags, weight, index = _NEXTHOP.unpack_from(data, offset)
        if length < _NEXTHOP.size:
            break
        a = nl.attr_map(data[offset : offset + length], _NEXTHOP.size)
        hop = base._replace(index=index, gateway=a.get(uapi.RTA_GATEWAY, b""))
        extra = base.extra + _kept(a)
        hops.append(hop._replace(flags=flags & FLAG_ONLINK, extra=extra, weight=weight + 1))
        offset += length + 3 & ~3
    if len(hops) == 1:
        return [hops[0]._replace(weight=0)]
    shared = len({hop.index for hop in hops}) > 1
    return [hop._replace(shared=shared) for hop in hops]


def _message(route: Route, kind: int = UNICAST) -> bytes:
    dst = route.dst
    header = _RTMSG.pack(
        dst.family,
        dst.length,
        0,
        route.tos,
        # the header has one byte for the table; RTA_TABLE has the whole number
        route.table if route.table < 256 else 0,
        route.protocol,
        route.scope,
        kind,
        route.flags,
    )
    parts = [
        header,
        nl.u32(uapi.RTA_TABLE, route.table),
        nl.u32(uapi.RTA_OIF, route.index) if route.index else b"",
        route.extra,
    ]
    if dst.length:
        parts.append(nl.attr(uapi.RTA_DST, dst.network.ip))
    if route.gateway:
        parts.append(nl.attr(uapi.RTA_GATEWAY, route.gateway))
    if route.source:
        parts.append(nl.attr(uapi.RTA_PREFSRC, route.source))
    if route.priority:
        parts.append(nl.u32(uapi.RTA_PRIORITY, route.priority))
    return b"".join(parts)


def _multipath_message(hops: list[Route]) -> bytes:
    """One route with these next hops (struct rtnexthop, each with its attributes)."""
    first = hops[0]
    common, _ = _divided(first.extra)
    whole = first._replace(index=0, gateway=b"", extra=common, flags=0)
    nexthops = []
    for hop in hops:
        own = nl.attr(uapi.RTA_GATEWAY, hop.gateway) if hop.gateway else b""
        own += _divided(hop.extra)[1]
        size = _NEXTHOP.size + len(own)
        nexthops.append(_NEXTHOP.pack(size, hop.flags, max(hop.weight, 1) - 1, hop.index) + own)
    return _message(whole) + nl.attr(uapi.RTA_MULTIPATH, b"".join(nexthops))


def _divided(extra: bytes) -> tuple[bytes, bytes]:
    """A route's `extra` in two parts: attributes of the whole multipath route, and of the hop."""
    common, own = b"", b""
    for kind, value in nl.attrs(extra):
        if kind in _COMMON:
            common += nl.attr(kind, value)
        else:
            own += nl.attr(kind, value)
    return common, own
