"""ptp: a veth pair with routes instead of a bridge (docs/spec/ptp.md).

    container netns                          host
    eth0 10.22.0.6/24 ──── veth ──────────── veth1a2b3c4d 10.22.0.1/32
    everything via the gateway 10.22.0.1     10.22.0.6 dev veth1a2b3c4d

Packets to other addresses of the subnet also go through the host, which routes them.
"""

from __future__ import annotations

from typing import Any

from ..call import Call, Steps
from ..kernel import address, link, route
from ..kernel.errors import NetlinkError
from ..kernel.link import Link
from ..kernel.netlink import Netlink
from ..netns import Namespace
from ..protocol import config
from ..protocol.address import Prefix, parse_ip
from ..protocol.errors import CNIError
from ..protocol.request import Attachment
from ..protocol.result import Interface, IPConfig, Result
from .shared import checks, configure, masquerade, veth
from .shared.unlink import needs_link

LINK_TIMEOUT = 1.0  # seconds to wait for the link; if it is not up by then, ADD goes on


class Conf(veth.PairConf):
    link_type: str = "veth"


def add(call: Call[Conf]) -> Result:
    """Attach the container; the result's interfaces are the host veth and the container veth."""
    conf = call.conf
    backend = masquerade.configured_backend(conf)
    if conf.link_type not in veth.KINDS:
        raise CNIError(f'unknown linkType "{conf.link_type}"', 'linkType is "veth" or "netkit"')
    mtu = veth.mtu(conf.mtu)
    veth.check_host_name(conf.host_interface_name)
    mac = veth.parse_mac(conf.runtime_config.mac or conf.args.cni.mac)
    if configure.learns(conf.ipam.type):
        raise CNIError(
            "cannot use slaac with ptp",
            "the other end of the link is this node, not a router that advertises itself",
        )
    netns = call.open_netns()
    with Netlink() as host, Netlink(groups=(link.RTNLGRP_LINK,)) as events:
        veth.require_free(call, host, netns)
        ends = None
        if needs_link(conf.ipam.type):  # DHCP uses the link
            ends = veth.create(call, host, netns, mtu, mac, kind=conf.link_type)
        ipam = allocate(call)
        outer, inner = ends or veth.create(call, host, netns, mtu, mac, kind=conf.link_type)
        result = connect(call, host, events, netns, ipam, (outer, inner))
    if conf.ip_masq:
        masquerade.add(call, result, backend)
        call.remember()
    return result


def allocate(call: Call[Any]) -> Result:
    """IPAM's result, whose addresses all have a gateway; the node forwards. Raises CNIError."""
    ipam = call.ipam_add(call.conf.ipam.type)
    for ip in ipam.ips:
        ip.interface = 1
        _require_gateway(ip, call.plugin)
    configure.enable_forwarding([ip.prefix for ip in ipam.ips])
    return ipam


def connect(
    call: Call[Any],
    host: Netlink,
    events: Netlink,
    netns: Namespace,
    ipam: Result,
    ends: tuple[Link, Link],
) -> Result:
    """Put addresses and routes on both ends of the pair, and wait for the link; the result of ADD.

    `events` hears of links, `ends` are the node's and the container's. Raises CNIError.
    """
    outer, inner = ends
    result = Result(
        interfaces=[
            Interface(name=outer.name, mac=outer.mac),
            Interface(name=call.ifname, mac=inner.mac, sandbox=call.netns),
        ],
        ips=ipam.ips,
        routes=ipam.routes,
        dns=configure.dns(call.conf.dns, ipam.dns),
    )
    # No other host is on this link, so duplicate address detection is not needed.
    settings = [(f"net/ipv6/conf/{call.ifname}/accept_dad", "0")]
    settings += configure.announce_settings(call.ifname)
    configure.interface(call, netns, inner.index, result, settings, nodad=True)
    # after IPAM's routes, whose gateways are reached by the subnet's own route until it is replaced
    for ip in result.ips:
        _route_through_gateway(netns.netlink(), inner, ip)
    _connect_host(host, outer, result.ips)
    # Until the link is up the kernel drops packets, and retries ARP only a second later.
    link.wait_operational(host, events, outer.index, LINK_TIMEOUT)
    return result


def _require_gateway(ip: IPConfig, plugin: str) -> None:
    if not ip.gateway:
        raise CNIError(
            f"failed to add IP addr ({ip.address}) to veth: no gateway",
            f"{plugin} puts the gateway's address on the host's end: give one in ipam",
        )


def _route_through_gateway(sock: Netlink, inner: Link, ip: IPConfig) -> None:
    """In the container: route the gateway on the link, and the rest of the subnet through it."""
    gateway = parse_ip(ip.gateway or "")
    subnet, here = ip.prefix.network, ip.prefix.ip
    for connected in route.show(sock, subnet.family, inner.index):
        if connected.dst == subnet and not connected.gateway:
            # the kernel's route, made with the address: by it the container would look for the
            # other addresses of the subnet on this link, where only the node is
            _apply("delete", route.delete, sock, connected)
    # before the next route: the kernel accepts a gateway only if it can reach it
    on_link = route.Route(
        Prefix(gateway, ip.prefix.bits), inner.index, source=here, scope=route.SCOPE_LINK
    )
    _apply("add", route.add, sock, on_link)
    if subnet.length < subnet.bits:
        through = route.Route(subnet, inner.index, gateway=gateway, source=here)
        _apply("add", route.add, sock, through)


def _apply(what: str, change: Any, sock: Netlink, entry: route.Route) -> None:
    try:
        change(sock, entry)
    except NetlinkError as error:
        raise CNIError(f"failed to {what} route {entry}: {error}") from None


def _connect_host(host: Netlink, outer: Link, ips: list[IPConfig]) -> None:
    """On the host: put the gateway's address on the veth, and add a route to each address."""
    for ip in ips:
        gateway = Prefix(parse_ip(ip.gateway or ""), ip.prefix.bits)
        try:
            address.add(host, outer.index, gateway, nodad=True)
        except NetlinkError as error:
            raise CNIError(f"failed to add IP addr ({gateway}) to veth: {error}") from None
        # as the reference: of this scope, and without an error if the route is there
        entry = route.Route(ip.prefix.host, outer.index, scope=route.SCOPE_HOST)
        try:
            route.add(host, entry, exist_ok=True)
        except NetlinkError as error:
            raise CNIError(f"failed to add route on host: {error}") from None


def delete(call: Call[Conf]) -> None:
    """Delete the link, release the address, remove the rules; every step runs."""
    steps = Steps()
    veth.delete(call, steps, ipam_required=True)
    steps.finish()


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Remove links, rules and leases of this network whose attachment is not in `keep`."""
    steps = Steps()
    veth.gc(call, keep, steps)
    steps.finish()


def status(call: Call[Conf]) -> None:
    """Ready if the IPAM plugin is ready."""
    call.delegate(call.conf.ipam.type)


def check(call: Call[Conf]) -> None:
    """Compare the container's side with the prevResult, and report every difference."""
    netns = call.open_netns()
    call.delegate(call.conf.ipam.type)
    previous = checks.previous_result(call, "ptp: ")
    entry = checks.container_interface(call, previous)
    problems = differences(call, netns, entry, previous)
    if call.conf.mtu is config.AUTO:
        from .shared import uplink

        problems += uplink.too_large(netns, call.ifname)
    rules = masquerade.check(call, previous) if call.conf.ip_masq else []
    checks.compare(call, netns, previous, problems, rules)


def differences(call: Call[Any], netns: Namespace, entry: Interface, previous: Result) -> list[str]:
    """Compare the pair with the prevResult, where `entry` is the container's end."""
    return _check_interface(netns, entry, call.plugin) + _check_host_end(call, previous)


def reload(call: Call[Any]) -> None:
    """Make the rules of an earlier ADD again; the prevResult is the result of that ADD."""
    result = call.prev_result()
    if result is not None and call.conf.ip_masq:
        masquerade.reload(call, result, masquerade.configured_backend(call.conf))


def _check_host_end(call: Call[Any], previous: Result) -> list[str]:
    """Differences of the pair's end on the node: up, gateways, routes to the container."""
    entry = next((each for each in previous.interfaces if not each.sandbox), None)
    own = [ip for ip in previous.ips if checks.is_of(ip, call.ifname, previous)]
    with Netlink() as host:
        outer = link.find(host, entry.name) if entry is not None else None
        if outer is None:
            return checks.forwarding(previous)
        problems = checks.host_end(outer)
        wanted = [Prefix(parse_ip(ip.gateway), ip.prefix.bits) for ip in own if ip.gateway]
        problems += checks.gateways(host, outer.name, wanted)
        for ip in own if outer.up else ():
            if not _leads_to(host, ip.prefix.ip, outer.index):
                address_only = ip.prefix.host
                problems.append(
                    f"the node does not reach {address_only} through {outer.name} "
                    f"(`ip route add {address_only} dev {outer.name}`)"
                )
    return problems + checks.forwarding(previous, outer.name)


def _leads_to(host: Netlink, ip: bytes, index: int) -> bool:
    try:
        return route.lookup(host, ip).link == index
    except NetlinkError:
        return False


def _check_interface(netns: Namespace, entry: Interface, plugin: str) -> list[str]:
    inner = link.find(netns.netlink(), entry.name)
    if inner is None:
        return [f"{plugin}: Container Interface name in prevResult: {entry.name} not found"]
    problems = []
    if inner.kind not in veth.KINDS:
        problems.append(f"Error: Container interface {entry.name} not of type veth/p2p")
    return problems + checks.mac_differs(entry, inner, f"{plugin}: Interface")
