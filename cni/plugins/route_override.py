"""route-override: changes the routes that the plugins before it made for the interface
(docs/spec/route-override.md).

    prevResult ── flushroutes, or delroutes ── flushgateway ── addroutes ──▶ routes of the result

The routes in the container and those of the result are changed alike, so that the result, and CHECK
of the plugins before, match the kernel. All routes end with the interface.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from ..call import Call
from ..kernel import link, route
from ..kernel.errors import NetlinkError
from ..kernel.netlink import Netlink
from ..kernel.route import Route
from ..netns import Namespace
from ..protocol import config
from ..protocol.address import Prefix, format_ip, parse_ip
from ..protocol.errors import CNIError
from ..protocol.result import Result
from .shared import checks

_FAMILIES = (AF_INET, AF_INET6)
_LINK_LOCAL = Prefix.parse("fe80::/10")
_METRIC_V6 = 1024  # the kernel's IP6_RT_PRIO_USER, of an IPv6 route without `priority`


class Ecmp(config.Folded):
    """A destination with several gateways."""

    dst: str = ""
    gws: list[str] = []


class Requested(config.Folded):
    """`args.cni`: each key in it replaces that of the configuration."""

    flushroutes: bool | None = None
    flushgateway: bool | None = None
    delroutes: list[config.Route] | None = None
    addroutes: list[config.Route] | None = None
    delecmproutes: list[Ecmp] | None = None
    addecmproutes: list[Ecmp] | None = None
    skipcheck: bool | None = None


class Args(config.Folded):
    cni: Requested = msgspec.field(default_factory=Requested)


class Conf(config.NetConf):
    flushroutes: bool = False
    flushgateway: bool = False
    delroutes: list[config.Route] = []
    addroutes: list[config.Route] = []
    delecmproutes: list[Ecmp] = []
    addecmproutes: list[Ecmp] = []
    skipcheck: bool = False
    args: Args = msgspec.field(default_factory=Args)


class Wanted(NamedTuple):
    """The validated wishes of configuration and arguments."""

    flush: bool
    flush_gateway: bool
    remove: list[config.Route]
    add: list[config.Route]
    skip_check: bool


class Change(NamedTuple):
    """The changes of an ADD. `removed` and `added` are routes in the container; `added` has a list
    of next hops for each route. `rest` are hops of `removed` routes that stay; `routes` are those
    of the result.
    """

    removed: list[Route]
    rest: list[Route]
    added: list[list[Route]]
    routes: list[config.Route]


# --- the wanted routes ----------------------------------------------------------------------------


def _wanted(conf: Conf) -> Wanted:
    """Raises CNIError."""
    asked = conf.args.cni
    remove = conf.delroutes if asked.delroutes is None else asked.delroutes
    add_ = conf.addroutes if asked.addroutes is None else asked.addroutes
    remove_ecmp = conf.delecmproutes if asked.delecmproutes is None else asked.delecmproutes
    add_ecmp = conf.addecmproutes if asked.addecmproutes is None else asked.addecmproutes
    wanted = Wanted(
        conf.flushroutes if asked.flushroutes is None else asked.flushroutes,
        conf.flushgateway if asked.flushgateway is None else asked.flushgateway,
        [*remove, *(config.Route(dst=entry.dst) for entry in remove_ecmp)],
        [*add_, *(config.Route(dst=each.dst, gw=gw) for each in add_ecmp for gw in each.gws)],
        conf.skipcheck if asked.skipcheck is None else asked.skipcheck,
    )
    for each in add_ecmp:
        if not each.gws:
            raise CNIError(
                "addecmproutes: gws must not be empty", f"list the gateways of {each.dst}"
            )
    for entry in (*wanted.remove, *wanted.add):
        _validate(entry)
    return wanted


def _validate(entry: config.Route) -> None:
    dst = Prefix.parse(entry.dst)
    if entry.gw and len(parse_ip(entry.gw)) != len(dst.ip):
        raise CNIError(
            f"failed to override routes: route {entry.dst} has a gateway of another family",
            f"`gw` is {entry.gw}",
        )
    for key, value in (("priority", entry.priority), ("table", entry.table or 0)):
        if not 0 <= value < 1 << 32:
            raise CNIError(
                f"failed to override routes: route {entry.dst} has the {key} {value}",
                "it is a number from 0 to 4294967295",
            )


def _previous(call: Call[Conf]) -> Result:
    previous = call.prev_result()
    if previous is None:
        raise CNIError(
            "Required prevResult missing",
            "list route-override in `plugins` after the one that makes the interface",
        )
    return previous


def _indexes(call: Call[Conf], sock: Netlink, previous: Result) -> list[int]:
    """The prevResult's links in the container, CNI_IFNAME first. Raises CNIError."""
    names = [each.name for each in previous.interfaces if each.sandbox]
    if call.ifname in names or not names:
        names = [call.ifname, *(name for name in names if name != call.ifname)]
    devices = [link.find(sock, name) for name in names]
    if devices[0] is None:
        raise CNIError(
            f"failed to override routes: no link {names[0]} in the container",
            "the plugins before this one should have made it",
        )
    return [device.index for device in devices if device is not None]


# --- the changes ----------------------------------------------------------------------------------


def plan(wanted: Wanted, previous: Result, present: list[Route], index: int) -> Change:
    """The changes, given the interface's `present` routes; new routes use the link `index`.

    Raises CNIError when a route cannot be added beside one that stays.
    """
    named = {Prefix.parse(entry.dst).network for entry in previous.routes}
    goes = [entry for entry in present if _goes(entry, wanted, named)]
    kept = [entry for entry in previous.routes if not _leaves(entry, wanted)]
    # an IPv4 route with several hops is deleted as a whole
    whole = {_identity(entry) for entry in goes if entry.weight and entry.dst.is_v4}
    removed = [r for r in present if r in goes or (r.weight and _identity(r) in whole)]
    stays = [entry for entry in present if entry not in goes]
    added = _additions(wanted.add, stays, index)
    routes = kept + [entry for entry in wanted.add if entry not in kept]
    return Change(removed, [entry for entry in removed if entry in stays], added, routes)


def _identity(entry: Route) -> tuple[Prefix, int, int, int]:
    """The key that the kernel keeps unique among routes: destination, table, priority, TOS."""
    return entry.dst, entry.table, entry.tos, entry.priority


def _goes(entry: Route, wanted: Wanted, named: set[Prefix]) -> bool:
    """Has the route to be removed from the container? Never one that the kernel made itself."""
    if not entry.movable:
        return False
    is_default = entry.dst.length == 0
    if wanted.flush_gateway and is_default:
        return True
    if wanted.flush:
        is_kernels = entry.protocol == route.PROTO_KERNEL or _LINK_LOCAL.contains(entry.dst.ip)
        return not is_kernels and (is_default or bool(entry.gateway) or entry.dst in named)
    if entry.protocol == route.PROTO_KERNEL and entry.dst not in named:
        return False
    return any(
        Prefix.parse(one.dst).network == entry.dst
        and (not one.gw or parse_ip(one.gw) == entry.gateway)
        and (one.table or route.TABLE_MAIN) == entry.table
        for one in wanted.remove
    )


def _leaves(entry: config.Route, wanted: Wanted) -> bool:
    """Has the route to be removed from the result?"""
    dst = Prefix.parse(entry.dst).network
    if wanted.flush or (wanted.flush_gateway and dst.length == 0):
        return True
    table = entry.table or route.TABLE_MAIN
    return any(
        Prefix.parse(one.dst).network == dst
        and (not one.gw or not entry.gw or one.gw == entry.gw)
        and (one.table or route.TABLE_MAIN) == table
        for one in wanted.remove
    )


def _additions(add_: list[config.Route], stays: list[Route], index: int) -> list[list[Route]]:
    """The routes to add, each as a list of its next hops. Raises CNIError."""
    groups: dict[tuple[Prefix, int, int, int], list[Route]] = {}
    for each in add_:
        entry = _kernel_route(each, index)
        hops = groups.setdefault(_identity(entry), [])
        if entry.gateway not in [hop.gateway for hop in hops]:
            hops.append(entry)
    added = []
    for identity, hops in groups.items():
        there = [entry for entry in stays if _identity(entry) == identity]
        if not there:
            added.append(hops)
        elif {hop.gateway for hop in hops} != {hop.gateway for hop in there}:
            raise CNIError(
                f"failed to add route {hops[0]}: file exists",
                f'there is a route "{there[0]}": list its destination in `delroutes`, or give one '
                "of them another `priority`",
            )
    # routes without a gateway come first: through them gateways are reached
    return sorted(added, key=lambda hops: bool(hops[0].gateway))


def _kernel_route(wanted: config.Route, index: int) -> Route:
    dst = Prefix.parse(wanted.dst).network
    gateway = parse_ip(wanted.gw) if wanted.gw else b""
    if not any(gateway):
        gateway = b""  # 0.0.0.0 means no gateway
    scope = route.SCOPE_UNIVERSE if gateway or not dst.is_v4 else route.SCOPE_LINK
    return Route(
        dst,
        index,
        gateway,
        priority=wanted.priority or (0 if dst.is_v4 else _METRIC_V6),
        table=wanted.table or route.TABLE_MAIN,
        scope=scope if wanted.scope is None else wanted.scope,
        extra=route.metrics(wanted.mtu, wanted.advmss),
    )


def _present(sock: Netlink, indexes: list[int], wanted: Wanted) -> list[Route]:
    """The unicast routes through these links, in the main table and in the tables of `wanted`."""
    tables = {each.table or route.TABLE_MAIN for each in (*wanted.remove, *wanted.add)}
    return [
        entry
        for table in sorted({route.TABLE_MAIN, *tables})
        for index in indexes
        for family in _FAMILIES
        for entry in route.show(sock, family, index, table)
    ]


def add(call: Call[Conf]) -> Result:
    """Change the routes of the container and of the result."""
    wanted = _wanted(call.conf)
    result = _previous(call)
    netns = call.open_netns()
    sock = netns.netlink()
    indexes = _indexes(call, sock, result)
    present = _present(sock, indexes, wanted)
    change = plan(wanted, result, present, indexes[0])
    _tell_unmatched(call, wanted, result, present)
    call.undo.callback(_revert, netns, change)
    try:
        route.delete_all(sock, change.removed)
        # an IPv4 route goes with all of its hops, also those that are to stay
        _put_back(sock, change.rest)
    except NetlinkError as error:
        raise CNIError(f"failed to delete routes of {call.ifname}: {error}") from None
    for hops in change.added:
        _add(sock, call.ifname, hops)
    result.routes = change.routes
    if wanted.flush_gateway:
        for ip in result.ips:
            ip.gateway = None
    return result


def _tell_unmatched(
    call: Call[Conf], wanted: Wanted, result: Result, present: Iterable[Route]
) -> None:
    """Say on stderr which routes of `delroutes` are not there."""
    there = {entry.dst for entry in present}
    there |= {Prefix.parse(entry.dst).network for entry in result.routes}
    for entry in wanted.remove:
        if not wanted.flush and Prefix.parse(entry.dst).network not in there:
            call.log(f"cni: route-override: {call.ifname} has no route to {entry.dst} to delete")


def _add(sock: Netlink, ifname: str, hops: list[Route]) -> None:
    try:
        route.add_new(sock, hops)
    except NetlinkError as error:
        gateways = ", ".join(format_ip(hop.gateway) for hop in hops if hop.gateway)
        via = f" via {gateways}" if gateways else ""
        raise CNIError(
            f"failed to add route {hops[0].dst}{via} dev {ifname}: {error}", _advice(error)
        ) from None


def _advice(error: NetlinkError) -> str:
    from errno import EEXIST, EHOSTUNREACH, ENETUNREACH

    if error.errno == EEXIST:
        return "another interface of the container has a route to it: give this one a `priority`"
    if error.errno in (EHOSTUNREACH, ENETUNREACH):
        return "the gateway must be in a subnet of the interface, or be reached by a route on it"
    return ""


def _revert(netns: Namespace, change: Change) -> None:
    """Undo the changes of an ADD that fails. Raises RouteError."""
    sock = netns.netlink()
    for hops in (*change.added, change.rest):
        route.delete_all(sock, hops)
    _put_back(sock, change.removed)


def _put_back(sock: Netlink, routes: list[Route]) -> None:
    """Restore deleted routes; one that exists already is success. Raises RouteError."""
    for table in {entry.table for entry in routes}:
        changes = route.additions([entry for entry in routes if entry.table == table], table)
        route.require_made(changes, sock.batch([message for _, message in changes]))


# --- the other verbs ------------------------------------------------------------------------------


def delete(_call: Call[Conf]) -> None:
    """Succeed: the routes end with the interface, which the DEL of the plugin before removes."""


def check(call: Call[Conf]) -> None:
    """Compare the container's routes with the configuration and the result."""
    wanted = _wanted(call.conf)
    if wanted.skip_check:
        return
    previous = _previous(call)
    sock = call.open_netns().netlink()
    indexes = _indexes(call, sock, previous)
    given = [*previous.routes, *wanted.add]
    expected = Result(ips=previous.ips, routes=given)
    problems = [
        f"route-override: route is not removed: {entry}"
        for entry in _present(sock, indexes, wanted)
        if _goes(entry, wanted, set()) and not _is_given(entry, given)
    ]
    problems += checks.routes(expected, checks.routed(sock, expected))
    checks.fail(problems)


def _is_given(entry: Route, given: list[config.Route]) -> bool:
    """Is the route in the result? A later plugin may have added it there."""
    return any(
        Prefix.parse(one.dst).network == entry.dst
        and (not one.gw or not entry.gateway or parse_ip(one.gw) == entry.gateway)
        for one in given
    )


def status(call: Call[Conf]) -> None:
    """Ready if the configuration is in order."""
    _wanted(call.conf)
