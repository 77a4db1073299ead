"""vrf: puts the interface into a VRF of the container, made on demand (docs/spec/vrf.md).

    net1 ── master blue (vrf, table 1001)     main: nothing of net1
                                              1001: all of it

The kernel takes an interface down and up when its master changes. That removes its routes and maybe
its IPv6 addresses, so ADD reads them before and restores them after. All interfaces of a container
that name a VRF share it, so it has no owner; the DEL of the last one removes it.
"""

from __future__ import annotations

from _socket import AF_INET6
from time import monotonic
from typing import NamedTuple

from ..call import Call, Steps
from ..kernel import address, link, route, rule, vrf
from ..kernel.address import Address
from ..kernel.errors import LinkNotFound, NetlinkError
from ..kernel.link import Link
from ..kernel.netlink import Netlink
from ..kernel.route import Route, RouteError
from ..netns import Namespace
from ..protocol import config
from ..protocol.errors import BadEnvironment, CNIError, NotAvailable, from_exception
from ..protocol.request import check_ifname
from ..protocol.result import Result
from .shared import checks, tables

LOCAL_TIMEOUT = 2.5  # seconds until the kernel must have routes to its own addresses

_PREFIX = "cmdAdd failed: "


class Conf(config.NetConf):
    vrfname: str = ""
    table: int = 0


class Kept(NamedTuple):
    """The addresses and routes that an interface loses when its master changes."""

    addresses: list[Address]
    routes: list[Route]


def _conf(call: Call[Conf]) -> Conf:
    """The configuration, validated. Raises CNIError."""
    conf = call.conf
    tables.check_number(conf.table, "failed to load netconf: ")
    if not conf.vrfname:
        raise CNIError(
            "configuration is expected to have a valid vrf name",
            "`vrfname` is the name of the VRF device in the container",
        )
    return conf


def _previous(call: Call[Conf]) -> Result:
    previous = call.prev_result()
    if previous is None:
        raise CNIError(
            "missing prevResult from earlier plugin",
            "list vrf in `plugins` after the one that makes the interface",
        )
    return previous


def _find(sock: Netlink, name: str) -> Link | None:
    """The VRF `name`, or None. Raises CNIError when a link of another kind has that name."""
    device = link.find(sock, name)
    if device is not None and device.kind != vrf.KIND:
        raise CNIError(
            f"Netlink {name} is not a VRF",
            f'the container has another link of that name, of kind "{device.kind}"',
        )
    return device


# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Make the VRF the master of CNI_IFNAME; the prevResult is passed on unchanged."""
    conf = _conf(call)
    previous = _previous(call)
    try:
        check_ifname(conf.vrfname)
    except BadEnvironment as error:
        raise CNIError(
            f"{_PREFIX}could not add VRF {conf.vrfname}: {error.msg}", "choose another `vrfname`"
        ) from None
    netns = call.open_netns()
    tables.lock(netns)
    try:
        _enslave(call, netns, conf)
    except (CNIError, LinkNotFound) as error:
        raise from_exception(error).wrapped(_PREFIX) from None
    return previous


def _enslave(call: Call[Conf], netns: Namespace, conf: Conf) -> None:
    sock = netns.netlink()
    device = _find(sock, conf.vrfname)
    if device is not None and conf.table not in (0, vrf.table(device)):
        raise CNIError(
            f"VRF {conf.vrfname} already exist with different routing table {vrf.table(device)}",
            f"an earlier interface of the container made it; this one wants table {conf.table}",
        )
    inner = _free_interface(sock, call.ifname)
    call.undo.callback(_release, netns, conf.vrfname, inner.name, device is None)
    if device is None:
        device = _create(sock, conf)
    kept = _remember(sock, inner)
    # undone in reverse: out of the VRF, then what that removes is restored
    call.undo.callback(_restore, netns, inner, kept, route.TABLE_MAIN, route.TABLE_LOCAL)
    call.undo.callback(_set_master, sock, inner, 0)
    try:
        _set_master(sock, inner, device.index)
    except NetlinkError as error:
        raise CNIError(
            f"could not set vrf {device.name} as master of {inner.name}: {error}"
        ) from None
    table = vrf.table(device)
    for entry in kept.routes:
        if entry.shared:  # the kernel keeps this hop of a route with hops on other links
            route.delete(sock, entry)
    _restore(netns, inner, kept, table, table)


def _free_interface(sock: Netlink, name: str) -> Link:
    """The interface `name`. Raises CNIError when it is missing or has a master."""
    inner = link.find(sock, name)
    if inner is None:
        raise CNIError(f"could not get link by name {name}")
    if inner.master:
        master = link.find(sock, inner.master)
        raise CNIError(
            f"interface {name} has already a master set: {master.name if master else '?'}",
            "an interface has one master: was this ADD run before, without a DEL?",
        )
    return inner


def _create(sock: Netlink, conf: Conf) -> Link:
    name = conf.vrfname
    table = conf.table or tables.first_free(tables.survey(sock, rule.show(sock), name).used, 1)
    try:
        vrf.create(sock, name, table)
    except NetlinkError as error:
        from ..kernel import link_advice

        advice = link_advice.of(error, vrf.KIND, name)
        raise CNIError(f"could not add VRF {name}: {error}", advice) from None
    made = link.get(sock, name)
    try:
        link.change(sock, made.index, up=True)
    except NetlinkError as error:
        raise CNIError(f"could not set link up for VRF {name}: {error}") from None
    return made


def _set_master(sock: Netlink, inner: Link, master: int) -> None:
    link.change(sock, inner.index, master=master)


def _remember(sock: Netlink, inner: Link) -> Kept:
    """The interface's IPv6 addresses and the routes that the kernel does not make by itself."""
    addresses = [
        entry
        for entry in address.show(sock, inner.index, AF_INET6)
        if entry.scope == address.SCOPE_UNIVERSE
    ]
    routes = [
        entry
        for family in tables.FAMILIES
        for entry in route.show(sock, family, inner.index)
        if entry.protocol != route.PROTO_KERNEL and entry.movable
    ]
    return Kept(addresses, routes)


def _restore(netns: Namespace, inner: Link, kept: Kept, table: int, local: int) -> None:
    """Restore the addresses and routes of the interface, the routes in `table`. Raises CNIError.

    `local` is the table in which the kernel keeps the routes to its own addresses.
    """
    sock = netns.netlink()
    have = {e.prefix: e for e in address.show(sock, inner.index, AF_INET6)}
    for entry in kept.addresses:
        present = have.get(entry.prefix)
        try:
            # an address that the kernel has kept (keep_addr_on_down) is tentative again
            if present is None or (entry.usable and not present.usable):
                address.delete(sock, inner.index, entry.prefix)
                address.put_back(sock, entry)
        except NetlinkError as error:
            raise CNIError(f"could not restore address {entry.prefix}: {error}") from None
    _await_local(netns, inner, local, kept.addresses)
    try:
        route.copy(sock, kept.routes, table, inner.index)
    except RouteError as error:
        raise CNIError(
            f"could not add route '{error.route} dev {inner.name}': {error}",
            f"the route was in the main table, and belongs into table {table}",
        ) from None


def _await_local(netns: Namespace, inner: Link, table: int, addresses: list[Address]) -> None:
    """Wait until the kernel has local routes to the addresses, and so accepts their packets."""
    sock = netns.netlink()
    missing = _not_local(sock, inner, table, addresses)
    if not missing:
        return
    deadline = monotonic() + LOCAL_TIMEOUT
    with netns.subscribe(route.RTNLGRP_IPV6_ROUTE) as events:
        while missing := _not_local(sock, inner, table, addresses):
            left = deadline - monotonic()
            if left <= 0:
                raise CNIError(
                    f"failed getting local/host addresses for {inner.name} in table {table} "
                    f"with dst {missing[0].prefix.host}"
                )
            events.events(min(left, 0.25))


def _not_local(sock: Netlink, inner: Link, table: int, addresses: list[Address]) -> list[Address]:
    if not addresses or not inner.up:
        return []
    local = route.show(sock, AF_INET6, inner.index, table, route.LOCAL)
    have = {entry.dst for entry in local}
    return [entry for entry in addresses if entry.usable and entry.prefix.host not in have]


# --- DEL ------------------------------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Take the interface out of the VRF, and delete the VRF if it has no other interface."""
    steps = Steps()
    netns = steps.run(call.find_netns)
    if netns is not None:
        steps.run(_release_locked, call, netns)
    steps.finish()


def _release_locked(call: Call[Conf], netns: Namespace) -> None:
    """As _release(). Without a `vrfname` the VRF is the interface's master."""
    tables.lock(netns)
    name = call.conf.vrfname
    if not name:
        sock = netns.netlink()
        inner = link.find(sock, call.ifname)
        master = link.find(sock, inner.master) if inner is not None and inner.master else None
        if master is None or master.kind != vrf.KIND:
            return
        name = master.name
    _release(netns, name, call.ifname, with_vrf=True)


def _release(netns: Namespace, name: str, ifname: str, with_vrf: bool) -> None:
    """Take the interface out of the VRF; `with_vrf` also deletes the VRF if it is empty then."""
    sock = netns.netlink()
    device = _find(sock, name)
    if device is None:
        return
    inner = link.find(sock, ifname)
    if inner is not None and inner.master == device.index:
        _set_master(sock, inner, 0)
    if with_vrf and not any(port.master == device.index for port in link.list_all(sock)):
        link.delete(sock, device.index)


# --- the other verbs ------------------------------------------------------------------------------


def check(call: Call[Conf]) -> None:
    """Compare the VRF, its table, its interface, and the addresses and routes of the prevResult."""
    conf = _conf(call)
    previous = _previous(call)
    sock = call.open_netns().netlink()
    device = _find(sock, conf.vrfname)
    if device is None:
        raise CNIError(f"VRF {conf.vrfname} not found: Link not found")
    inner = link.find(sock, call.ifname)
    problems = []
    if inner is None or inner.master != device.index:
        problems.append(f"failed to find {call.ifname} associated to vrf {conf.vrfname}")
    table = vrf.table(device)
    if conf.table not in (0, table):
        problems.append(f"VRF {conf.vrfname} has table {table}, want {conf.table}")
    if not device.up:
        problems.append(f"VRF {conf.vrfname} is down")
    mine = [ip for ip in previous.ips if checks.is_of(ip, call.ifname, previous)]
    have = checks.routed(sock, previous)
    problems += checks.addresses(sock, call.ifname, mine, have)
    problems += checks.routes(previous, have)
    checks.fail(problems)


def status(call: Call[Conf]) -> None:
    """Ready if the kernel has VRFs."""
    _conf(call)
    with Netlink() as host:
        if not vrf.supported(host):
            raise NotAvailable("the kernel has no VRFs", "it needs CONFIG_NET_VRF")
