"""slaac: addresses that the kernel makes of a router's advertisement (docs/spec/slaac.md).

The interface exists before the addresses, and the kernel keeps them: ADD switches autoconfiguration
on, sets the interface up, waits, and reports what is there. Nothing is reserved, so DEL and GC have
nothing to release.
"""

from __future__ import annotations

import os
from _socket import AF_INET6, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, SOCK_RAW
from time import monotonic

import msgspec

from .. import interrupts
from ..call import Call
from ..kernel import address, link, route, router, sysctl
from ..kernel.address import Address
from ..kernel.errors import LinkNotFound
from ..kernel.link import Link
from ..kernel.netlink import Netlink
from ..netns import Namespace
from ..protocol import config
from ..protocol.address import Prefix, format_ip
from ..protocol.config import DNS, Folded, PluginConf
from ..protocol.errors import CNIError, NotAvailable, TryAgainLater
from ..protocol.result import IPConfig, Result

_LOOK = 0.25  # seconds after which the wait looks for a signal
_MOST = 600
_ICMPV6, _ALL_ROUTERS = 58, "ff02::2"


class IpamConf(Folded):
    type: str = ""
    timeout: int = 10


class Conf(PluginConf):
    ipam: IpamConf = msgspec.field(default_factory=IpamConf)


def add(call: Call[Conf]) -> Result:
    """The addresses, routes and DNS servers that routers advertise within `timeout` seconds.

    Raises CNIError; TryAgainLater if no usable address came.
    """
    timeout = _timeout(call)
    netns = call.open_netns()
    device = _interface(call, netns)
    names = router.Names()
    with netns.subscribe(address.RTNLGRP_IPV6_IFADDR, router.RTNLGRP_ND_USEROPT) as events:
        _begin(call, netns, device)
        addresses = _await(call, netns, events, device.index, timeout, names)
        while news := events.events(0):  # the rest of the advertisement
            _note(news, names, device.index)
    return _result(netns.netlink(), device.index, addresses, names)


def _timeout(call: Call[Conf]) -> int:
    timeout = call.conf.ipam.timeout
    if not 1 <= timeout <= _MOST:
        raise CNIError(f"invalid timeout {timeout}", f"`timeout` is 1 to {_MOST} seconds")
    for key in ("acceptRA", "autoconf"):
        if config.lookup(call.raw, key) is False:
            raise CNIError(f"slaac needs {key}", f"leave {key} out of the configuration")
    return timeout


def _interface(call: Call[Conf], netns: Namespace) -> Link:
    try:
        return link.get(netns.netlink(), call.ifname)
    except LinkNotFound as error:
        raise CNIError(
            f'slaac: no interface "{call.ifname}": {error}',
            "slaac needs the interface before the address: bridge, macvlan, ipvlan, vlan, bond and "
            "host-device make it first",
        ) from None


def _begin(call: Call[Conf], netns: Namespace, device: Link) -> None:
    """Switch autoconfiguration on, and the interface up, which makes the kernel ask for routers."""
    conf = f"net/ipv6/conf/{call.ifname}"
    wanted = [
        ("net/ipv6/conf/lo/disable_ipv6", "0"),
        (f"{conf}/accept_ra", "2"),  # also when the container forwards
        (f"{conf}/autoconf", "1"),
        (f"{conf}/accept_ra_pinfo", "1"),
        (f"{conf}/accept_ra_defrtr", "0" if config.lookup(call.raw, "noDefaultRoute") else "1"),
        # at random up to this many seconds, for when a thousand machines are switched on at once
        (f"{conf}/router_solicitation_delay", "0"),
        (f"{conf}/disable_ipv6", "0"),
    ]
    outcomes = netns.sysctls([(sysctl.ENSURE, name, value) for name, value in wanted])
    for (name, value), (_, errno) in zip(wanted, outcomes, strict=True):
        if errno and not name.endswith(("_delay", "lo/disable_ipv6")):
            key = sysctl.shown(name)
            raise CNIError(
                f"slaac: cannot set {key} to {value}: {os.strerror(errno).lower()}",
                "is there IPv6 in this kernel, and may /proc/sys be written?",
            )
    if device.up:  # routers have been asked already, perhaps by a link that did not listen
        _solicit(netns, device.index)
    link.change(netns.netlink(), device.index, up=True)


def _solicit(netns: Namespace, index: int) -> None:
    """Ask for routers once more. Without a usable link-local address the kernel is about to ask."""
    try:
        sock = netns.socket(AF_INET6, SOCK_RAW, _ICMPV6)
    except OSError:
        return  # routers advertise themselves by and by
    try:
        # routers ignore a solicitation with any other hop limit (RFC 4861 §6.1.1)
        sock.setsockopt(IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 255)
        sock.sendto(router.SOLICITATION, (_ALL_ROUTERS, 0, 0, index))
    except OSError:
        pass
    finally:
        sock.close()


def _await(
    call: Call[Conf],
    netns: Namespace,
    events: Netlink,
    index: int,
    timeout: float,
    names: router.Names,
) -> list[Address]:
    """The addresses, once none is in duplicate address detection. Raises TryAgainLater."""
    sock = netns.netlink()
    deadline = monotonic() + timeout
    while True:
        every = address.show(sock, index, AF_INET6)
        autoconf = [each for each in every if each.is_autoconf]
        _require_unique(call, every)
        if autoconf and all(each.usable for each in autoconf):
            return autoconf
        left = deadline - monotonic()
        if left <= 0:
            raise TryAgainLater(
                f"slaac: {call.ifname} has no address after {timeout} s",
                _missing(sock, call.ifname, index, every),
            )
        interrupts.check()
        _note(events.events(min(left, _LOOK)), names, index)


def _note(news: list[tuple[int, bytes]], names: router.Names, index: int) -> None:
    for kind, payload in news:
        names.note(kind, payload, index)


def _require_unique(call: Call[Conf], every: list[Address]) -> None:
    """Raise if another node has one of the addresses; the kernel then goes no further."""
    for each in every:
        if each.flags & address.IFA_F_DADFAILED:
            raise CNIError(
                f"slaac: another node uses {each.prefix} of {call.ifname}",
                "addresses are made from the MAC: does another node on this link have the same?",
            )


def _missing(sock: Netlink, ifname: str, index: int, addresses: list[Address]) -> str:
    """Which step of autoconfiguration was not reached."""
    device = link.get(sock, index)
    if not device.carrier:
        return f"{ifname} has no carrier: nothing is connected to it"
    tentative = [str(each.prefix) for each in addresses if not each.usable]
    if tentative:
        return (
            f"duplicate address detection of {', '.join(tentative)} has not ended: it takes a "
            "second each; is `timeout` long enough, or are the processors overloaded?"
        )
    if not addresses:
        return f"{ifname} has no link-local address (sysctl addr_gen_mode), so it cannot ask"
    state = router.state(sock, index)
    if not state & router.ADVERTISED:
        asked = "a router was asked for" if state & router.SOLICITED else "no router was asked for"
        return (
            f"no router advertisement arrived: {asked}; does a router advertise itself on this "
            "link, and does nothing between filter multicast or ICMPv6?"
        )
    if state & router.MANAGED:
        return (
            "a router advertised itself, and refers to DHCPv6 for addresses: use "
            '"ipam": {"type": "dhcp", "ipv4": false, "ipv6": true}'
        )
    return (
        "a router advertised itself, but no prefix for autoconfiguration: it has to be a /64 with "
        "the flag A and a lifetime (and an address of it that another node has is not kept)"
    )


def _result(sock: Netlink, index: int, addresses: list[Address], names: router.Names) -> Result:
    """The addresses, and the routes via routers; the first default router is the gateway."""
    learned = [
        entry
        for entry in route.show(sock, AF_INET6, index)
        if entry.protocol == route.PROTO_RA and entry.gateway
    ]
    defaults = [format_ip(entry.gateway) for entry in learned if not entry.dst.length]
    gateway = defaults[0] if defaults else None
    return Result(
        ips=[IPConfig(address=str(each.prefix), gateway=gateway) for each in addresses],
        routes=[config.Route(dst=str(entry.dst), gw=format_ip(entry.gateway)) for entry in learned],
        dns=DNS(nameservers=names.servers or None, search=names.search or None),
    )


def delete(call: Call[Conf]) -> None:
    """There is nothing to release: the addresses go with the interface."""


def check(call: Call[Conf]) -> None:
    """The interface must have the prevResult's IPv6 addresses, usable. Raises CNIError."""
    netns = call.open_netns()
    device = _interface(call, netns)
    previous = call.prev_result()
    if previous is None:
        raise CNIError(
            "Required prevResult missing", "the runtime gives CHECK the result of the last ADD"
        )
    have = [each for each in address.show(netns.netlink(), device.index) if each.is_autoconf]
    usable = {each.prefix for each in have if each.usable}
    wanted = [ip.prefix for ip in previous.ips if not ip.prefix.is_v4]
    lost = [prefix for prefix in wanted if prefix not in usable]
    if lost:
        raise CNIError(
            f"slaac: {call.ifname} has lost {', '.join(map(str, lost))}", _instead(lost, have)
        )


def _instead(lost: list[Prefix], have: list[Address]) -> str:
    """What the interface has in place of the lost addresses, and what to do."""
    others = ", ".join(str(each.prefix) for each in have if each.prefix not in lost)
    if others:
        return f"routers advertise another prefix by now ({others}): recreate the container"
    return "does the router still advertise the prefix? then recreate the container"


def status(call: Call[Conf]) -> None:
    """Ready if the kernel has IPv6. Raises NotAvailable (code 50)."""
    _timeout(call)
    if not os.path.exists("/proc/sys/net/ipv6"):
        raise NotAvailable("slaac: this kernel has no IPv6", "it was started with ipv6.disable=1?")
