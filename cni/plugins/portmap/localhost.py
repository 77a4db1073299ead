"""What published ports need, beyond rules, so that the node reaches them at 127.0.0.1 and ::1.

The rules send such packets to the container and masquerade them. The kernel lets packets from
127.0.0.1 leave if the link has `route_localnet`. From ::1 they may leave, but for the answer, whose
destination the kernel translates back to ::1, it wants a route on the very link that it came in by.
That route is of no use to anybody else: what arrives with ::1 in it is dropped before any rule.
(With br_netfilter also the answers through a bridge, where they are translated too early.)

Both are the link's and stay with it, as `route_localnet` does with the reference.
"""

from __future__ import annotations

from _socket import AF_INET6
from collections.abc import Callable

from ...kernel import link, route, sysctl
from ...kernel.errors import KernelError, NetlinkError
from ...kernel.netlink import Netlink
from ...protocol.address import Prefix
from ...protocol.errors import CNIError

_LOOPBACK6 = Prefix.parse("::1/128")
_METRIC = 4096  # lo's own route to ::1 has 0 and is preferred by everybody else


def enable(address: Prefix, log: Callable[[str], None]) -> None:
    """For a container with this address. Raises CNIError for IPv4, as the reference does."""
    with Netlink() as host:
        found = _way(host, address)
        if found is None:
            return None  # no way to it, no packets
        index, name = found
        if not address.is_v4:
            return _add_route(host, index, name, log)
    try:
        sysctl.ensure(_route_localnet(name), "1")
    except OSError as error:
        raise CNIError(
            f"unable to enable route_localnet: {(error.strerror or str(error)).lower()}",
            f"net.ipv4.conf.{name}.route_localnet; without localhost: snat=false",
        ) from None


def missing(address: Prefix) -> list[str]:
    """The problems that CHECK reports."""
    with Netlink() as host:
        try:
            found = _way(host, address)
            if found is None:
                return []
            index, name = found
            if not address.is_v4:
                routes = route.show(host, AF_INET6, index, route.TABLE_LOCAL, route.LOCAL)
                there = any(entry.dst == _LOOPBACK6 for entry in routes)
                return [] if there else [f"no local route to ::1 on {name}: run `cni reload`"]
            key = _route_localnet(name)
            value = sysctl.read(key)
        except (OSError, KernelError):
            return []
    return [] if value == "1" else [f"{key}: want 1, have {value}: run `cni reload`"]


def _way(host: Netlink, address: Prefix) -> tuple[int, str] | None:
    """The index and name of the link that leads to the container."""
    try:
        index = route.lookup(host, address.ip)[1]
        return index, link.get(host, index).name
    except KernelError:
        return None


def _add_route(host: Netlink, index: int, name: str, log: Callable[[str], None]) -> None:
    there = route.Route(
        _LOOPBACK6, index, priority=_METRIC, table=route.TABLE_LOCAL, scope=route.SCOPE_HOST
    )
    try:
        route.add(host, there, kind=route.LOCAL, exist_ok=True)
    except NetlinkError as error:
        log(
            f"cni: portmap: ports are not published on ::1: no local route to it on {name}: {error}"
        )


def _route_localnet(name: str) -> str:
    return f"net/ipv4/conf/{name}/route_localnet"
