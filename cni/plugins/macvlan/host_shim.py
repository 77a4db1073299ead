"""The macvlan on the host through which the host reaches its own macvlan containers (`hostShim`).

A macvlan never hands packets to its master, so without it the host cannot reach the containers on
that master. The shim is another macvlan on the same master, with a route to each container. The
metric of a route is a hash of its owner, by which DEL and GC recognise it. ADD notes to which
addresses it makes routes; only if that is not known, DEL lists the routes of all containers. GC
also deletes the shim when no route is left.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from collections.abc import Callable
from typing import Any

from ...call import Call
from ...kernel import link, route, sysctl
from ...kernel.errors import NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...owner import digest, network_key
from ...protocol.address import InvalidAddress, Prefix
from ...protocol.errors import CNIError
from ...protocol.request import Attachment
from ...protocol.result import Result
from ..shared import device_notes


def check_config(mode: str, in_container: bool, ipam: str) -> None:
    """Refuse a configuration in which no packet could pass the shim. Raises CNIError."""
    if mode not in ("", "bridge"):
        raise CNIError("hostShim needs the mode bridge", f"in mode {mode} no packet gets across")
    if in_container or not ipam:
        raise CNIError(
            "hostShim needs ipam and a master on the host", "remove hostShim or linkInContainer"
        )


def noted_routes(call: Call[Any]) -> list[str] | None:
    """Before ADD makes its own note: the addresses to which there may be routes of its owner.

    They are those of an earlier ADD that had no DEL; None if that ADD has not noted any.
    """
    note = device_notes.load(call)
    return [] if note is None else note.routes


def connect(call: Call[Any], master: Link, result: Result, earlier: list[str] | None) -> None:
    """On the host, route the result's addresses through the shim. Raises CNIError.

    `earlier` is what `noted_routes` returned.
    """
    with Netlink() as host:
        try:
            call.undo.callback(disconnect, call)
            _note(call, result, earlier)
            shim = _ensure(call, host, master)
            for ip in result.ips:
                route.add(host, _route(call, shim, ip.prefix), exist_ok=True)
        except NetlinkError as error:
            raise CNIError(f"failed to connect the host to {call.ifname}: {error}") from None


def _note(call: Call[Any], result: Result, earlier: list[str] | None) -> None:
    note = device_notes.load(call)
    if note is not None and earlier is not None:
        note.routes = sorted({*earlier, *(str(ip.prefix.host) for ip in result.ips)})
        device_notes.write(call, note)


def _route(call: Call[Any], shim: Link, address: Prefix) -> route.Route:
    """The route of this attachment to a container's address."""
    # IPv6 routes have no scope
    scope = route.SCOPE_LINK if address.is_v4 else route.SCOPE_UNIVERSE
    return route.Route(address.host, shim.index, priority=call.owner.number, scope=scope)


def _ensure(call: Call[Any], host: Netlink, master: Link) -> Link:
    name = shim_name(call.network)
    try:
        link.create_macvlan(host, name, master.index, mode=link.MACVLAN_MODES["bridge"])
    except NetlinkError as error:
        # another container's ADD has made it
        if not link.is_name_taken(error):
            raise
    shim = link.get(host, name)
    sysctl.write_each(_settings(name))
    # another prefix than an owner's (`cni:`), so that no DEL or GC takes it for a container's link
    link.change(host, shim.index, up=True, alias=f"cni-shim:{network_key(call.network)}")
    return shim


def _settings(name: str) -> list[tuple[str, str]]:
    """The sysctls that keep the node's neighbours from taking the shim for the node.

    With arp_filter the shim answers ARP only to addresses that are routed through it. Neighbour
    discovery has no such filter, so for IPv6 the shim uses its link-local address only.
    """
    return [
        (f"net/ipv4/conf/{name}/arp_filter", "1"),
        (f"net/ipv6/conf/{name}/accept_ra", "0"),
        (f"net/ipv6/conf/{name}/accept_dad", "0"),
        (f"net/ipv6/conf/{name}/use_oif_addrs_only", "1"),
    ]


def disconnect(call: Call[Any]) -> None:
    """Remove the owner's routes; the shim stays for the next container.

    Raises NetlinkError, CNIError.
    """
    with Netlink() as host:
        shim = link.find(host, shim_name(call.network))
        if shim is None:
            return
        note = device_notes.load(call)
        addresses = None if note is None else _parsed(note.routes)
        if addresses is None:
            _remove(host, shim, lambda metric: metric == call.owner.number)
        else:
            route.delete_all(host, [_route(call, shim, address) for address in addresses])


def _parsed(noted: list[str] | None) -> list[Prefix] | None:
    """The noted addresses; None if they are not known."""
    try:
        return None if noted is None else [Prefix.parse(text) for text in noted]
    except InvalidAddress:
        return None


def collect(call: Call[Any], keep: frozenset[Attachment]) -> None:
    """Remove the routes of attachments not in `keep`, and the shim if no route is left."""
    kept = {owner.number for owner in call.owners(keep)}
    with Netlink() as host:
        shim = link.find(host, shim_name(call.network))
        if shim is not None and _remove(host, shim, lambda metric: metric not in kept) == 0:
            link.delete(host, shim.index)


def _remove(host: Netlink, shim: Link, unwanted: Callable[[int], bool]) -> int:
    """Delete the unwanted routes through the shim; returns the number of those that stay."""
    kept = 0
    for family in (AF_INET, AF_INET6):
        for entry in route.show(host, family, shim.index):
            if entry.dst.length < entry.dst.bits:
                continue  # not a host: routes of the kernel for link-local and multicast
            if unwanted(entry.priority):
                route.delete(host, entry)
            else:
                kept += 1
    return kept


def shim_name(network: str) -> str:
    """The name of the network's shim."""
    return f"cnishim{digest(network)[:8]}"
