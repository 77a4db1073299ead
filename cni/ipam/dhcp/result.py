"""Leases as a CNI result (docs/spec/dhcp.md, "Daemon: Allocate")."""

from __future__ import annotations

from ...kernel.route import SCOPE_LINK
from ...protocol.address import DEFAULT_V4, DEFAULT_V6, Prefix, format_ip
from ...protocol.config import DNS, Route
from ...protocol.result import IPConfig, Result
from . import binding4, lease6
from . import message4 as m
from . import message6 as m6
from .conf import (
    CLASSLESS_ROUTES,
    DNS_SERVERS,
    DOMAIN_NAME,
    DOMAIN_SEARCH,
    ROUTER,
    STATIC_ROUTES,
)
from .exchange import Lease, now
from .state import Record


def add4(result: Result, lease: binding4.Lease4, priority: int) -> None:
    """Add a DHCPv4 lease's address, routes and DNS to a result."""
    result.ips.append(IPConfig(address=str(lease.prefix), gateway=gateway4(lease)))
    result.routes += routes4(lease, priority)
    _add_dns(result.dns, lease.options)


def gateway4(lease: binding4.Lease4) -> str | None:
    """The first usable router, also where classless routes replace the default route.

    It has to be in the leased subnet, unless the leased address has no subnet, or a route leads to
    the router. (A bridge makes it an address of the node.)
    """
    on_link = [prefix for prefix, router in _classless(lease) if not any(router)]
    for router in _routers(lease):
        if lease.length == 32 or any(p.contains(router) for p in (lease.prefix, *on_link)):
            return format_ip(router)
    return None


def _routers(lease: binding4.Lease4) -> list[bytes]:
    routers = m.addresses(lease.options.get(ROUTER, b""))
    return [router for router in routers if m.is_router(router, lease.prefix)]


def _classless(lease: binding4.Lease4) -> list[tuple[Prefix, bytes]]:
    """The routes of option 121 whose router is usable, or 0.0.0.0 (on the link)."""
    try:
        routes = m.classless_routes(lease.options.get(CLASSLESS_ROUTES, b""))
    except m.Malformed:
        return []
    return [pair for pair in routes if not any(pair[1]) or m.is_router(pair[1], lease.prefix)]


def routes4(lease: binding4.Lease4, priority: int) -> list[Route]:
    """The routes of option 121; without it those of option 33, and a default route by option 3."""
    classless = _classless(lease)
    pairs = classless
    # with option 121 a client ignores options 33 and 3 (RFC 3442)
    if not classless:
        static = m.static_routes(lease.options.get(STATIC_ROUTES, b""))
        pairs = [pair for pair in static if m.is_router(pair[1], lease.prefix)]
        pairs += [(DEFAULT_V4, router) for router in _routers(lease)[:1]]
    return [
        Route(
            dst=str(prefix),
            gw=format_ip(router),
            priority=priority,
            scope=SCOPE_LINK if classless and not any(router) else None,
        )
        for prefix, router in pairs
    ]


def row(record: Record, family: str, state: str, lease: Lease | None) -> dict[str, object]:
    """A row of `cni dhcp leases`. Times are seconds from now, None for never."""
    cells: dict[str, object] = {
        "containerID": record.container_id,
        "network": record.network,
        "ifname": record.ifname,
        "netns": record.interface.path,
        "mac": record.interface.mac,
        "family": family,
        "state": state,
    }
    if lease is not None:
        if lease.prefixes:
            cells["address"] = str(lease.prefixes[0])
        if lease.discarded is not None:
            cells["prefix"] = str(lease.discarded)
        for name, when in lease.times._asdict().items():
            cells[name] = None if when == float("inf") else round(when - now())
    return cells


def _add_dns(dns: DNS, options: dict[int, bytes]) -> None:
    """Add the DNS settings of the options, which are those that the configuration requested."""
    servers = [format_ip(packed) for packed in m.addresses(options.get(DNS_SERVERS, b""))]
    if servers:
        dns.nameservers = [*(dns.nameservers or ()), *servers]
    try:
        domain = m.text(options.get(DOMAIN_NAME, b""))
        search = m.domains(options.get(DOMAIN_SEARCH, b""))
    except m.Malformed:
        return
    # a lease that came before counts more
    dns.domain = dns.domain or domain
    if search:
        dns.search = [*(dns.search or ()), *search]


def add6(result: Result, lease: lease6.Lease6, priority: int) -> None:
    """Add a DHCPv6 lease's addresses and DNS, and the routers' routes, to a result."""
    defaults = [format_ip(r.address) for r in lease.routers if r.is_default]
    gateway = defaults[0] if defaults else None
    result.ips += [IPConfig(address=str(each), gateway=gateway) for each in lease.prefixes]
    if gateway:
        result.routes.append(Route(dst=str(DEFAULT_V6), gw=gateway, priority=priority))
    for router in lease.routers:
        via = format_ip(router.address)
        for dst in router.routes:
            if dst != str(DEFAULT_V6):
                result.routes.append(Route(dst=dst, gw=via, priority=priority))
    servers = [format_ip(a) for a in m6.addresses(lease.options.get(m6.DNS_SERVERS, b""))]
    if servers:
        result.dns.nameservers = [*(result.dns.nameservers or ()), *servers]
    try:
        search = m6.domains(lease.options.get(m6.DOMAINS, b""))
    except m.Malformed:
        return
    if search:
        result.dns.search = [*(result.dns.search or ()), *search]
