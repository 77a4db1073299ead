"""What the daemon itself puts into a container: regained addresses, and the delegated prefix.

Of a delegated prefix a container has a route that discards. Without it, a container that forwards
packets would return those for unassigned addresses of the prefix to the router, which sends them
back (RFC 7084, WPD-5). It also tells programs in the container which prefix they may use:
``ip -6 route show type unreachable proto dhcp``.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ...kernel import route
from ...netns import Namespace
from ...protocol.address import Prefix
from ...protocol.errors import CNIError
from ...protocol.result import Result
from ...stderr import line as log
from .exchange import Lease
from .interface import Gone, Interface

# The last choice, also beside a route to the whole prefix that a program in the container adds.
# The kernel's default is 1024; OpenWrt uses this one for the same purpose.
_METRIC = 0x7FFFFFFF


def put(interface: Interface, lease: Lease, result: Result) -> None:
    """Add a regained lease's addresses, routes and prefix; log what fails. Raises Gone."""
    gateway = result.ips[0].gateway if result.ips else None
    with _logging(interface):
        with interface.visit() as inside:
            for problem in inside.give(lease.prefixes, gateway, result.routes):
                _log(interface, problem)
        _add_route(interface, lease)


def put_prefix(interface: Interface, lease: Lease | None) -> None:
    """Discard what no other route takes of a lease's delegated prefix. Raises CNIError, Gone."""
    try:
        _add_route(interface, lease)
    except OSError as error:
        raise CNIError(
            f"failed to add the unreachable route for the delegated prefix: {error}",
            f"in the main IPv6 routing table of {interface.path}",
        ) from None


def leave(interface: Interface, old: Lease, new: Lease) -> None:
    """Remove what a renewal has replaced; log what fails. Raises Gone."""
    if old.discarded != new.discarded:
        take_prefix(interface, old)
    _take_addresses(interface, [each for each in old.prefixes if each not in new.prefixes])


def follow(interface: Interface, old: Lease, new: Lease) -> None:
    """Add what a renewal has brought; log what fails. Raises Gone."""
    fresh = [each for each in new.prefixes if each not in old.prefixes]
    with _logging(interface):
        if fresh:
            with interface.visit() as inside:
                for prefix in fresh:
                    inside.add_address(prefix)
        # also if it is the same: a program in the container can have deleted the route
        _add_route(interface, new)


def take(interface: Interface, lease: Lease, *, set_down: bool) -> None:
    """Remove a lost lease's addresses and prefix, set the link down. Raises Gone; logs the rest."""
    take_prefix(interface, lease)
    _take_addresses(interface, lease.prefixes)
    if set_down:
        set_link_down(interface)


def set_link_down(interface: Interface) -> None:
    """Set the link down; log a failure. Raises Gone."""
    with _logging(interface), interface.visit() as inside:
        inside.set_down()


def take_prefix(interface: Interface, lease: Lease | None) -> None:
    """Delete the route for a lease's delegated prefix; log a failure.

    The interface may be gone, since the route belongs to the namespace.
    """
    if lease is None or lease.discarded is None:
        return
    with suppress(Gone), _logging(interface), interface.visit_namespace() as namespace:
        # the kernel would also delete a route of another type
        if _has_route(namespace, lease.discarded):
            route.delete(namespace.netlink(), _route(lease.discarded))


def missing(interface: Interface, lease: Lease | None) -> list[str]:
    """What the container lacks of a lease's delegated prefix, for CHECK."""
    if lease is None or lease.discarded is None:
        return []
    try:
        with interface.visit_namespace() as namespace:
            if _has_route(namespace, lease.discarded):
                return []
    except (Gone, OSError) as error:
        return [str(error)]
    return [f"there is no unreachable route for the delegated prefix {lease.discarded}"]


def own_address(prefix: Prefix) -> Prefix:
    """The prefix's first address after the routers' anycast address, as a /128.

    It has no shorter length because the client must not assign the prefix to the link on which it
    was delegated (RFC 8415 §6.3): the prefix's other addresses are not reached on that link.
    """
    if prefix.length == prefix.bits:
        return prefix
    return Prefix(prefix.nth(1), prefix.bits)


def _take_addresses(interface: Interface, prefixes: list[Prefix]) -> None:
    if not prefixes:
        return
    with _logging(interface), interface.visit() as inside:
        for prefix in prefixes:
            inside.take_away(prefix)


def _add_route(interface: Interface, lease: Lease | None) -> None:
    if lease is None or lease.discarded is None:
        return
    with interface.visit() as inside:
        route.add(inside.sock, _route(lease.discarded), exist_ok=True, kind=route.UNREACHABLE)


def _has_route(namespace: Namespace, prefix: Prefix) -> bool:
    routes = route.show(namespace.netlink(), socket.AF_INET6, kind=route.UNREACHABLE)
    wanted = (prefix, _METRIC, route.PROTO_DHCP)
    return any((each.dst, each.priority, each.protocol) == wanted for each in routes)


def _route(prefix: Prefix) -> route.Route:
    return route.Route(prefix, 0, priority=_METRIC, protocol=route.PROTO_DHCP)


@contextmanager
def _logging(interface: Interface) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _log(interface, str(error))


def _log(interface: Interface, problem: str) -> None:
    log(f"{interface.path}: {interface.ifname}: {problem}")
