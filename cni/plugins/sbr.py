"""sbr: packets from an interface's addresses leave by that interface (docs/spec/sbr.md).

    rule: from 192.0.2.9 lookup 100        table 100: default via 192.0.2.1 dev net1
                                                      192.0.2.0/24 dev net1
    main: nothing of net1 (or, with addSourceHints, 192.0.2.0/24 dev net1 src 192.0.2.9)

A rule carries its owner (kernel/rule.py) and is made before its table is filled. So DEL finds both
without prevResult or address, also after an ADD that was killed. A rule of the reference has no
owner; DEL finds it by its address.
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import EOPNOTSUPP
from typing import NamedTuple

from ..call import Call, Steps
from ..kernel import address, link, route, rule
from ..kernel.errors import NetlinkError
from ..kernel.link import Link
from ..kernel.netlink import Netlink
from ..kernel.route import Route, RouteError
from ..kernel.rule import Rule
from ..netns import Namespace
from ..protocol import config
from ..protocol.address import DEFAULT_V4, DEFAULT_V6, Prefix, family, format_ip, parse_ip
from ..protocol.errors import CNIError, NotAvailable
from ..protocol.result import Result
from .shared import checks
from .shared import tables as _tables

# the reference's
FIRST_TABLE = 100
_LINK_LOCAL = Prefix.parse("fe80::/64")
# What the kernel gives a route without a metric (IP6_RT_PRIO_USER
# for IPv6), by the length of an address.
_DEFAULT_METRIC = {4: 0, 16: 1024}


class Conf(config.NetConf):
    table: int | None = None
    gateways: list[str] = []
    add_source_hints: bool = False


class Source(NamedTuple):
    """An address of the interface with its subnet, and its table's gateway, packed, or b"".

    A `configured` gateway replaces a default route that the interface already has.
    """

    prefix: Prefix
    gateway: bytes
    configured: bool


# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Add the rules and move the routes; the prevResult is passed on."""
    conf = call.conf
    _tables.check_number(conf.table, "failed to parse network configuration: ")
    previous = call.prev_result()
    if previous is None:
        raise CNIError(
            "This plugin must be called as chained plugin",
            "list it in `plugins` after the one that makes the interface",
        )
    if not previous.ips:
        raise CNIError(f"No IP addresses supplied on interface: {call.ifname}")
    sources = _sources(conf, call.ifname, previous)
    netns = call.open_netns()
    _tables.lock(netns)
    sock = netns.netlink()
    rules = rule.show(sock)
    _require_new(call, rules, sources)
    if conf.table is None:
        _add_tables(call, netns, sources, _tables.survey(sock, rules, call.ifname))
    else:
        call.undo.callback(_revert, call, netns, [], [])
        for source in sources:
            _make(call, sock, source, conf.table, [])
    return previous


def _sources(conf: Conf, ifname: str, previous: Result) -> list[Source]:
    """The prevResult's addresses, except those of other interfaces. Raises CNIError."""
    static = {} if conf.table is not None else _static_gateways(conf.gateways)
    sources = []
    for ip in previous.ips:
        if not checks.is_of(ip, ifname, previous):
            continue
        prefix, gateway = ip.prefix, parse_ip(ip.gateway) if ip.gateway else b""
        chosen = static.get(prefix.family)
        sources.append(Source(prefix, chosen or gateway, chosen is not None))
    return sources


def _static_gateways(texts: list[str]) -> dict[int, bytes]:
    """The configured gateway of each address family, packed. Raises CNIError."""
    if len(texts) > 2:
        raise CNIError("gateways list cannot contain more than 2 entries (one IPv4, one IPv6)")
    gateways: dict[int, bytes] = {}
    for text in texts:
        try:
            packed = parse_ip(text)
        except CNIError:
            raise CNIError(f"invalid static gateway IP address: {text}") from None
        first = gateways.setdefault(family(packed), packed)
        if first is not packed:
            name = "IPv4" if len(packed) == 4 else "IPv6"
            raise CNIError(
                f"gateways list contains multiple {name} addresses: "
                f"{format_ip(first)} and {format_ip(packed)}"
            )
    return gateways


def _require_new(call: Call[Conf], rules: list[Rule], sources: list[Source]) -> None:
    """Refuse an ADD whose rule exists already. Raises CNIError."""
    number, table = call.owner.number, call.conf.table
    hosts = [source.prefix.host for source in sources]
    for present in rules:
        same = present.source in hosts
        if present.owner == number or (same and present.plain and present.table == table):
            what = "Failed" if table is None else "failed"
            raise CNIError(
                f"{what} to add rule: file exists",
                f'there is a rule "{present}" for {call.ifname} in {call.netns}: '
                "this is its second ADD, or another network has the same address",
            )


def _add_tables(
    call: Call[Conf], netns: Namespace, sources: list[Source], present: _tables.Survey
) -> None:
    """Make a rule and a table for each address, and clear the interface's routes from main."""
    sock, device = netns.netlink(), present.link
    if device is None:
        raise CNIError(f"Cannot find network interface {call.ifname}: Link not found")
    main = [entry for entry in present.main if entry.index == device.index and entry.movable]
    hints = hints_for(device, sources) if call.conf.add_source_hints else []
    call.undo.callback(_revert, call, netns, main, hints)
    table = FIRST_TABLE - 1
    for source in sources:
        table = _tables.first_free(present.used, table + 1)
        _make(call, sock, source, table, plan(source, sources, device, main))
    if call.conf.add_source_hints:
        _leave_hints(call, sock, device, main, hints)
        return
    _delete_routes(sock, [entry for entry in main if entry.dst != _LINK_LOCAL])


def plan(source: Source, sources: list[Source], device: Link, main: Iterable[Route]) -> list[Route]:
    """The routes for the table of `source`: a default route, and those of `main` that concern it.

    A route concerns an address if the address's subnet contains the route's source or gateway.
    Routes that concern no address go into every table: they would be lost otherwise. A default
    route of `main` is copied unchanged, unless a gateway is configured.
    """
    subnet = source.prefix
    wanted = [
        entry
        for entry in main
        if _concerns(entry, subnet)
        or not (entry.source or entry.gateway)
        or (
            entry.dst.is_v4 == subnet.is_v4
            and not any(_concerns(entry, other.prefix) for other in sources)
        )
    ]
    if not source.gateway:
        return wanted
    ours = DEFAULT_V4 if subnet.is_v4 else DEFAULT_V6
    same = [e for e in wanted if e.dst == ours and e.priority == _DEFAULT_METRIC[len(subnet.ip)]]
    if source.configured:
        wanted = [entry for entry in wanted if entry not in same]
    elif same:
        return wanted
    return [*wanted, Route(ours, device.index, source.gateway)]


def _concerns(entry: Route, subnet: Prefix) -> bool:
    return any(ip and subnet.contains(ip) for ip in (entry.source, entry.gateway))


def _make(call: Call[Conf], sock: Netlink, source: Source, table: int, routes: list[Route]) -> None:
    """Add the rule of an address, then the routes of its empty table. Raises CNIError."""
    additions = route.additions(routes, table)
    wanted = rule.addition(source.prefix, table, call.owner.number)
    refused, *failures = sock.batch([wanted, *(message for _, message in additions)])
    if refused is not None:
        what = "Failed" if call.conf.table is None else "failed"
        raise CNIError(
            f"{what} to add rule: {refused}",
            f'the rule is "from {source.prefix.host} lookup {table}"',
        )
    try:
        route.require_made(additions, failures)
    except RouteError as error:
        entry = error.route
        text = "Failed to readd route"
        if entry.protocol == route.PROTO_BOOT and entry.dst.length == 0 and entry.gateway:
            text = f"Failed to add default route to {format_ip(entry.gateway)}"
        raise CNIError(f"{text}: {error}", f'the route is "{entry}" in table {table}') from None


def _delete_routes(sock: Netlink, routes: list[Route]) -> None:
    try:
        route.delete_all(sock, routes)
    except RouteError as error:
        text = f"Failed to delete route: {error}"
        raise CNIError(text, f'the route is "{error.route}"') from None


def hints_for(device: Link, sources: list[Source]) -> list[Route]:
    """Routes to the subnets on the link, which make the kernel choose the right source address."""
    return [
        Route(
            source.prefix.network,
            device.index,
            source=source.prefix.ip,
            scope=route.SCOPE_LINK,
        )
        for source in sources
    ]


def _leave_hints(
    call: Call[Conf], sock: Netlink, device: Link, main: list[Route], hints: list[Route]
) -> None:
    """Replace the interface's routes in main by the hints; failures are logged, not raised."""
    for hint in hints:
        try:
            route.copy(sock, [hint], route.TABLE_MAIN, device.index)
        except NetlinkError as error:
            call.log(f"sbr: cannot add route {hint} dev {call.ifname}: {error}")
    for entry in main:
        if entry.scope != route.SCOPE_LINK and entry.dst != _LINK_LOCAL:
            try:
                route.delete(sock, entry)
            except NetlinkError as error:
                call.log(f"sbr: cannot delete route {entry} dev {call.ifname}: {error}")


def _revert(call: Call[Conf], netns: Namespace, main: list[Route], hints: list[Route]) -> None:
    """Undo an ADD: remove rules and tables, and restore the main table. Raises CNIError."""
    sock = netns.netlink()
    steps = Steps()
    device = link.find(sock, call.ifname)
    _remove(call, steps, sock, device, rule.show(sock))
    for hint in hints:
        steps.run(route.delete, sock, hint)
    if device is not None:
        steps.run(route.copy, sock, main, route.TABLE_MAIN, device.index)
    steps.finish()


# --- DEL ------------------------------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Remove the rules and their tables, also when the interface is gone; every step runs."""
    steps = Steps()
    previous: Result | None = steps.run(call.prev_result)
    netns = steps.run(call.find_netns)
    if netns is not None:
        steps.run(_remove_all, call, steps, netns, previous)
    steps.finish()


def _remove_all(call: Call[Conf], steps: Steps, netns: Namespace, previous: Result | None) -> None:
    """Remove our rules and tables, and the rules of the reference. Raises CNIError, KernelError."""
    table = call.conf.table
    _tables.lock(netns)
    sock = netns.netlink()
    device = link.find(sock, call.ifname)
    rules = rule.show(sock)
    _remove(call, steps, sock, device, rules)
    known = _known_addresses(sock, device, call.ifname, previous)
    for entry in _unowned(rules, known):
        if table in (None, entry.table):
            steps.run(_delete_rule, sock, entry)


def _unowned(rules: list[Rule], addresses: set[bytes]) -> list[Rule]:
    """The rules of these addresses without an owner, in the reference's form."""
    plain = (each for each in rules if each.plain and not each.owner)
    hosts = (each for each in plain if each.source.length == each.source.bits)
    return [each for each in hosts if each.source.ip in addresses]


def _known_addresses(
    sock: Netlink, device: Link | None, ifname: str, previous: Result | None
) -> set[bytes]:
    """The interface's present addresses, and those of the prevResult."""
    known = set()
    if device is not None:
        known |= {entry.prefix.ip for entry in address.show(sock, device.index)}
    if previous is not None:
        known |= {source.prefix.ip for source in _sources(Conf(), ifname, previous)}
    return known


def _remove(
    call: Call[Conf], steps: Steps, sock: Netlink, device: Link | None, rules: list[Rule]
) -> None:
    """Delete our rules, and before them the interface's routes in our tables, as steps."""
    number = call.owner.number
    own = [entry for entry in rules if entry.owner == number]
    tables = {entry.table for entry in own if entry.table >= FIRST_TABLE}
    tables -= {*_tables.RESERVED, call.conf.table}
    # before the rules, which tell the tables that are ours: a kill in between loses nothing
    if device is not None and tables:
        stale: list[Route] = []
        for each in _tables.FAMILIES:
            for old in route.show(sock, each, device.index, table=0):
                if old.table in tables:
                    stale.append(old)
        steps.run(_delete_routes, sock, stale)
    for entry in own:
        steps.run(_delete_rule, sock, entry)


def _delete_rule(sock: Netlink, entry: Rule) -> None:
    try:
        rule.delete(sock, entry)
    except NetlinkError as error:
        raise CNIError(f"Failed to delete rule {error}", f'the rule is "{entry}"') from None


# --- the other verbs ------------------------------------------------------------------------------


def check(call: Call[Conf]) -> None:
    """Require a rule for each address of the prevResult, and a default route in its table."""
    conf = call.conf
    previous = call.prev_result()
    netns = call.open_netns()
    if previous is None:
        return  # there is nothing to compare with; the reference has no CHECK at all
    sock = netns.netlink()
    device = link.find(sock, call.ifname)
    if device is None:
        raise CNIError(f"Cannot find network interface {call.ifname}: Link not found")
    rules = rule.show(sock)
    number = call.owner.number
    sources = _sources(conf, call.ifname, previous)
    problems = []
    for source in sources:
        tables = [
            r.table
            for r in rules
            if r.source == source.prefix.host
            and r.plain
            and r.owner in (0, number)
            and conf.table in (None, r.table)
        ]
        if not tables:
            wanted = "a table of its own" if conf.table is None else conf.table
            problems.append(f"no rule: want from {source.prefix.host} lookup {wanted}")
        elif conf.table is None and source.gateway:
            problems += _missing_default(sock, device, source, tables)
    if conf.table is None and conf.add_source_hints:
        for hint in hints_for(device, sources):
            have = route.show(sock, hint.dst.family, device.index)
            if not any(r.dst == hint.dst and r.source for r in have):
                problems.append(f"no source hint: want {hint} dev {call.ifname} in table main")
    checks.fail(problems)


def _missing_default(sock: Netlink, device: Link, source: Source, tables: list[int]) -> list[str]:
    have = [
        entry
        for entry in route.show(sock, source.prefix.family, device.index, table=0)
        if entry.table in tables and entry.dst.length == 0
    ]
    if have:
        return []
    gateway = format_ip(source.gateway)
    return [
        f"no default route for {format_ip(source.prefix.ip)}: want default via {gateway} "
        f"dev {device.name} in table {tables[0]}"
    ]


def status(call: Call[Conf]) -> None:
    """Ready if the kernel has policy routing."""
    _tables.check_number(call.conf.table, "failed to parse network configuration: ")
    with Netlink() as host:
        try:
            rule.show(host)
        except NetlinkError as error:
            if error.errno != EOPNOTSUPP:
                raise
            raise NotAvailable(
                "the kernel has no policy routing", "it needs CONFIG_IP_MULTIPLE_TABLES"
            ) from None
