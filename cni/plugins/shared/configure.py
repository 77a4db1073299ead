"""Putting IPAM's addresses and routes on a container's interface (docs/spec/common.md §4).

The neighbours are told that an address has moved here, by gratuitous ARP and unsolicited NA. A
reused address otherwise loses packets until the neighbours' caches expire (RFC 5227 §3, RFC 4861
§7.2.6). With `arp_notify` and `ndisc_notify` the kernel sends both when the link comes up, and when
its MAC is set, even to the same value. Frames of our own would need a packet socket, and closing
one waits for an RCU grace period: 7 to 40 ms, more than the rest of an ADD.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_INET, AF_INET6
from errno import EEXIST
from typing import Any

from ...call import Call
from ...kernel import address, link, route, sysctl
from ...kernel.errors import DuplicateAddress, NetlinkError
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol import config
from ...protocol.address import Prefix, parse_ip
from ...protocol.config import DNS
from ...protocol.errors import CNIError
from ...protocol.result import IPConfig, Result

# Seconds: the limit for duplicate address detection that does not go on, and for a link to come up.
DAD_TIMEOUT, _DAD_STEP = 60, 5


def interface(
    call: Call[Any],
    netns: Namespace,
    index: int,
    result: Result,
    settings: list[tuple[str, str]],
    *,
    nodad: bool = False,
) -> None:
    """Set sysctls, addresses, the link up, and routes, in that order, on CNI_IFNAME.

    `settings` are pairs (name below /proc/sys, value), which may fail silently. An entry of
    `result.ips` names its interface by index into `result.interfaces`; entries of other interfaces,
    or of none, are skipped. `nodad` leaves out duplicate address detection: then nothing is waited
    for, not even the link-local address. Raises CNIError.
    """
    name = call.ifname
    if not result.interfaces:
        raise CNIError("no interfaces to configure")
    if getattr(call.conf, "no_default_route", False):  # some main plugins have this key
        result.routes = [each for each in result.routes if Prefix.parse(each.dst).length]
    sock = netns.netlink()
    mine = [ip for ip in result.ips if _is_for(ip, name, result)]
    has_v6 = any(not ip.prefix.is_v4 for ip in mine)
    _prepare(call, netns, settings, ipv6=has_v6)
    routes = result.routes
    if learns(call.conf.ipam.type):
        mine, routes = [], []  # the kernel has made both, and maintains their lifetimes
    for ip in mine:
        try:
            address.add(sock, index, ip.prefix, nodad=nodad)
        except NetlinkError as error:
            raise CNIError(f'failed to add IP addr {ip.address} to "{name}": {error}') from None
    link.change(sock, index, up=True)
    gateways = _gateways(mine)
    if AF_INET6 in gateways and not nodad:
        _settle(netns, index, name)
    for several in _by_destination(routes):
        add_route(sock, index, name, several, gateways)


def learns(ipam: str) -> bool:
    """Does this IPAM plugin report addresses that the kernel itself has made (slaac)?"""
    return config.means(ipam, "slaac")


def _prepare(
    call: Call[Any], netns: Namespace, settings: list[tuple[str, str]], *, ipv6: bool
) -> None:
    """Write the interface's sysctls, and enable IPv6 where it is wanted. Raises CNIError."""
    settings = settings + router_settings(call.conf, call.ifname)
    steps = [(sysctl.WRITE, key, value) for key, value in settings]
    enabling = sysctl.ipv6_steps(call.ifname) if ipv6 else []
    if not steps and not enabling:
        return
    # one list, so whoever enters the namespace for it has to be woken only once
    outcomes = netns.sysctls(steps + enabling)[len(steps) :]
    try:
        warning = sysctl.ipv6_warning(enabling, outcomes)
    except OSError as error:
        raise CNIError(error.strerror or str(error)) from None
    if warning:
        call.log(warning)


def set_up(call: Call[Any], netns: Namespace, index: int) -> None:
    """Set CNI_IFNAME up without addresses. Raises NetlinkError."""
    settings = router_settings(call.conf, call.ifname)
    if settings:
        netns.sysctls([(sysctl.WRITE, key, value) for key, value in settings])
    link.change(netns.netlink(), index, up=True)


def router_settings(conf: Any, ifname: str) -> list[tuple[str, str]]:
    """The sysctls of `acceptRA` and `autoconf`, of the main plugins that have these keys."""
    return [
        (f"net/ipv6/conf/{ifname}/{name}", "1" if wanted else "0")
        for name in ("accept_ra", "autoconf")  # of the sysctl and of the Conf's field
        if (wanted := getattr(conf, name, None)) is not None
    ]


def _is_for(ip: IPConfig, name: str, result: Result) -> bool:
    if ip.interface is None:
        return False
    links = result.interfaces
    if not 0 <= ip.interface < len(links) or links[ip.interface].name != name:
        raise CNIError(f'failed to add IP addr {ip.address} to "{name}": invalid interface index')
    return True


def _gateways(ips: list[IPConfig]) -> dict[int, bytes]:
    """The first gateway of each address family, packed."""
    gateways: dict[int, bytes] = {}
    for ip in ips:
        if ip.gateway:
            gateways.setdefault(ip.prefix.family, parse_ip(ip.gateway))
    return gateways


def _settle(netns: Namespace, index: int, name: str) -> None:
    """Wait until duplicate address detection has ended, or the link is not up. Raises CNIError.

    Detection takes two seconds, more with a higher `dad_transmits`, or where the processors are
    busy. So this waits as long as the kernel goes on with it.
    """
    sock = netns.netlink()
    waited = idle = 0
    before = (0, 0)
    try:
        while not address.settle(
            sock, lambda: netns.subscribe(address.RTNLGRP_IPV6_IFADDR), index, _DAD_STEP
        ):
            waited += _DAD_STEP
            if link.get(sock, index).operstate != link.IF_OPER_UP:
                return
            now = address.detection(sock, index)
            idle = idle + _DAD_STEP if now == before else 0
            before = now
            if idle >= DAD_TIMEOUT:
                raise CNIError(
                    f"link {name} still has tentative addresses after {waited} seconds",
                    f"for {idle} seconds the kernel has sent no probe of duplicate address"
                    " detection (normally one a second): are the processors overloaded?",
                )
    except DuplicateAddress as error:
        raise CNIError(
            f"link {name} has address {error.prefix} in DADFAILED state",
            "another node on this link uses the address",
        ) from None


def _by_destination(routes: list[config.Route]) -> list[list[config.Route]]:
    """The routes, grouped: routes that differ only in their gateway are one multipath route.

    A repeated route with the same gateway stays alone, and the kernel refuses it.
    """
    groups: list[list[config.Route]] = []
    known: dict[object, list[config.Route]] = {}
    for wanted in routes:
        key = (wanted.dst, wanted.table or route.TABLE_MAIN, wanted.priority, wanted.scope or 0)
        group = known.get(key)
        hops = [each.gw for each in group or ()]
        if group is not None and wanted.gw and None not in hops and wanted.gw not in hops:
            group.append(wanted)
        else:
            known[key] = [wanted]
            groups.append(known[key])
    return groups


def add_route(
    sock: Netlink, index: int, name: str, wanted: list[config.Route], gateways: dict[int, bytes]
) -> None:
    """Add a route of a result; several `wanted` are the next hops of one route.

    A route without `gw` gets its family's entry in `gateways`, if any. Raises CNIError.
    """
    hops = [_entry(index, each, gateways) for each in wanted]
    entry = hops[0]
    try:
        if len(hops) == 1:
            route.add(sock, entry)
        else:
            route.add_multipath(sock, hops)
    except (NetlinkError, struct.error) as error:
        text = (
            f"{', '.join(map(str, hops))} dev {name} metric {entry.priority} "
            f"(Scope: {entry.scope}, Table: {entry.table})"
        )
        details = ""
        if isinstance(error, NetlinkError) and error.errno == EEXIST:
            details = "the routes of ipam, and isDefaultGateway if it is set, ask for it twice"
        raise CNIError(f"failed to add route '{text}': {error}", details) from None


def _entry(index: int, wanted: config.Route, gateways: dict[int, bytes]) -> route.Route:
    dst = Prefix.parse(wanted.dst)
    gateway = parse_ip(wanted.gw) if wanted.gw else gateways.get(dst.family, b"")
    if gateway == bytes(4) or gateway == bytes(16):
        gateway = b""  # as in the reference, 0.0.0.0 means no gateway
    return route.Route(
        dst,
        index,
        gateway,
        priority=wanted.priority,
        table=wanted.table or route.TABLE_MAIN,
        scope=wanted.scope or route.SCOPE_UNIVERSE,
    )


def default_route(family: int) -> Prefix:
    """0.0.0.0/0 or ::/0."""
    return Prefix(bytes(4 if family == AF_INET else 16), 0)


def dns(conf: DNS, ipam: DNS) -> DNS:
    """The configuration's DNS if it has any key, else IPAM's."""
    return conf if conf.given() else ipam


def enable_forwarding(prefixes: list[Prefix]) -> None:
    """Switch on IP forwarding on the host for the families in use. Raises CNIError."""
    for v6 in sorted({not p.is_v4 for p in prefixes}):
        try:
            name = sysctl.enable_forwarding(v6)
        except OSError as error:
            raise CNIError(
                f"Could not enable IP forwarding: {(error.strerror or '').lower()}",
                "is /proc/sys writable here?",
            ) from None
        # only if this ADD has changed the parameter: what the node
        # itself has set is in its own files
        if name and any(map(os.path.isdir, _PLACES)):
            _keep(name)


# A node without systemd, or a container, has neither.
_PLACES = ("/run/sysctl.d", "/run/systemd/system")


def _keep(name: str) -> None:
    """Have `sysctl --system` leave a parameter that was set to 1; a failure is logged."""
    from ... import sysctl_file

    try:
        sysctl_file.keep(name, "1")
    except (OSError, CNIError) as error:
        from ... import stderr

        stderr.line(f"cni: `sysctl --system` may undo {sysctl.shown(name)} = 1: {error}")


def announce_settings(ifname: str, *, ipv6: bool = True) -> list[tuple[str, str]]:
    """The sysctls that make the kernel announce a link's addresses; `ipv6`: also those of IPv6.

    The IPv6 one also announces the link-local address, which no other host had before.
    """
    settings = [(f"net/ipv4/conf/{ifname}/arp_notify", "1")]
    if ipv6:
        settings.append((f"net/ipv6/conf/{ifname}/ndisc_notify", "1"))
    return settings


def announce_again(sock: Netlink, index: int, mac: str) -> None:
    """Announce again: the bridge port may not have forwarded yet when the link came up."""
    try:
        link.change(sock, index, mac=link.parse_mac(mac))
    except NetlinkError:
        pass  # no reason to fail: the link works, only neighbours learn its address later
