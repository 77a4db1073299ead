"""CHECK's comparison of the container's interface, addresses and routes with the prevResult
(docs/spec/common.md §8).

Each function returns a list of differences, a sentence each, so that one CHECK can report them all.
"""

from __future__ import annotations

from typing import Any

from ...call import Call
from ...kernel import address, link, route
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...kernel.route import Route
from ...netns import Namespace
from ...protocol.address import Prefix, parse_ip
from ...protocol.errors import CNIError
from ...protocol.result import Interface, IPConfig, Result


def fail(problems: list[str]) -> None:
    """Raise the first problem as the message and the others as the details."""
    if problems:
        raise CNIError(problems[0], others(problems))


def others(problems: list[str]) -> str:
    """All problems but the first, for the details of an error; "" if there is only one."""
    return f"also: {'; '.join(problems[1:])}" if len(problems) > 1 else ""


def previous_result(call: Call[Any], prefix: str = "") -> Result:
    """The prevResult. Raises CNIError, whose message begins with `prefix`, when there is none."""
    previous = call.prev_result()
    if previous is None:
        raise CNIError(f"{prefix}Required prevResult missing")
    return previous


def compare(
    call: Call[Any],
    netns: Namespace,
    previous: Result,
    problems: list[str],
    rules: list[str] | None = None,
) -> None:
    """Compare CNI_IFNAME's addresses and the routes, then raise all differences. Raises CNIError.

    `problems` are the plugin's own differences, which come first; `rules` are those of the packet
    filter, which come last.
    """
    sock = netns.netlink()
    have = routed(sock, previous)
    problems = problems + addresses(sock, call.ifname, previous.ips, have) + routes(previous, have)
    fail(problems + (rules or []))


def forwarding(previous: Result, through: str = "") -> list[str]:
    """Differences if the node does not forward packets of the families of prevResult's addresses.

    `through` is the node's link on which the container's packets arrive.
    """
    from ...kernel import sysctl  # not every CHECK needs it

    problems = []
    for v6 in sorted({not ip.prefix.is_v4 for ip in previous.ips}):
        family = "IPv6" if v6 else "IPv4"
        for name, who in sysctl.forwarding(v6, through):
            try:
                value = sysctl.read(name)
            except OSError:  # this process cannot see it, so it is not known
                continue
            if value == "0":
                key = sysctl.shown(name)
                problems.append(
                    f"{who} does not forward {family} packets: {key} is 0 (`sysctl -w {key}=1`)"
                )
                break
    return problems


def gateways(host: Netlink, name: str, wanted: list[Prefix]) -> list[str]:
    """Differences if the node's link lacks addresses that are the container's gateways."""
    device = link.find(host, name) if wanted else None
    if device is None:
        return [f"the gateway's interface {name} not found"] if wanted else []
    present = {each.prefix for each in address.show(host, device.index)}
    return [
        f"{name} lacks the gateway's address {each} (`ip address add {each} dev {name}`)"
        for each in wanted
        if each not in present
    ]


def host_end(outer: Link) -> list[str]:
    """A difference if the node's end of the pair is down."""
    if outer.up:
        return []
    return [
        f"{outer.name}, the container's link on the node, is down (`ip link set {outer.name} up`)"
    ]


def container_interface(call: Call[Any], previous: Result) -> Interface:
    """prevResult's entry for CNI_IFNAME in CNI_NETNS. Raises CNIError."""
    sandbox = ""
    for entry in previous.interfaces:
        if entry.name == call.ifname:
            if entry.sandbox == call.netns:
                return entry
            sandbox = entry.sandbox
    raise CNIError(
        f"Sandbox in prevResult {sandbox} doesn't match configured netns: {call.netns}",
        f"no interface {call.ifname} in that namespace is part of the prevResult",
    )


def mac_differs(entry: Interface, device: Link, prefix: str = "Interface") -> list[str]:
    """Compare the MAC of a prevResult's entry, if it has one, with the link's."""
    if entry.mac in ("", device.mac):
        return []
    return [f"{prefix} {entry.name} Mac {entry.mac} doesn't match container Mac: {device.mac}"]


def is_of(ip: IPConfig, ifname: str, previous: Result) -> bool:
    """Does the address belong to `ifname`? Also True if it names no interface of the prevResult."""
    links, index = previous.interfaces, ip.interface
    return index is None or not 0 <= index < len(links) or links[index].name == ifname


def routed(sock: Netlink, previous: Result) -> list[Route]:
    """The kernel's routes to destinations of the prevResult, for `addresses` and `routes`.

    Reads the container's routes once, since it can have very many.
    """
    destinations = {ip.prefix.network for ip in previous.ips}
    destinations |= {Prefix.parse(wanted.dst).network for wanted in previous.routes}
    return route.show_to(sock, destinations)


def addresses(sock: Netlink, ifname: str, ips: list[IPConfig], have: list[Route]) -> list[str]:
    """Compare addresses of the prevResult with those of `ifname`.

    The subnet of each address must have a route, in any table.
    """
    device = link.find(sock, ifname)
    if device is None:
        return [f"Cannot find container link {ifname}"]
    present = {entry.prefix for entry in address.show(sock, device.index)}
    problems = []
    for ip in ips:
        prefix = ip.prefix
        if prefix not in present:
            problems.append(f"Failed to match addr {ip.address} on interface {ifname}")
            continue
        # an address alone (/32, /128) has no subnet, and so no route to one
        if prefix.length < prefix.bits and not any(r.dst == prefix.network for r in have):
            problems.append(f"Failed to find Gateway {ip.gateway} for interface {ifname}")
            if not device.up:
                problems.append(f"{ifname} is down, so it has no routes")
    return problems


def routes(previous: Result, have: list[Route]) -> list[str]:
    """Compare the prevResult's routes with the kernel's.

    A default route may have any gateway, unless the result has several. A route without `table`
    may be in any table, since sbr or vrf may have moved it there.
    """
    problems = []
    defaults = [wanted.dst for wanted in previous.routes if wanted.dst.endswith("/0")]
    for wanted in previous.routes:
        dst = Prefix.parse(wanted.dst).network
        exact = dst.length or defaults.count(wanted.dst) > 1
        gateway = parse_ip(wanted.gw) if wanted.gw and exact else b""
        if not any(gateway):
            gateway = b""  # 0.0.0.0 means no gateway
        in_table = (r for r in have if wanted.table in (None, 0, r.table))
        if not any(r.dst == dst and gateway in (b"", r.gateway) for r in in_table):
            text = f"{wanted.dst} via {wanted.gw}" if wanted.gw else wanted.dst
            problems.append(f"Expected Route {text} not found in routing table")
    return problems
