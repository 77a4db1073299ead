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
from ...netns import Namespace
from ...protocol.address import Prefix, parse_ip
from ...protocol.errors import CNIError
from ...protocol.result import Interface, IPConfig, Result


def fail(problems: list[str]) -> None:
    """Raise the first problem as the message and all of them as the details."""
    if problems:
        details = "" if len(problems) == 1 else "all differences: " + "; ".join(problems)
        raise CNIError(problems[0], details)


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

    `problems` are the differences that the plugin knows already, named first; `rules` those of the
    packet filter, named last.
    """
    sock = netns.netlink()
    problems = problems + addresses(sock, call.ifname, previous) + routes(sock, previous)
    fail(problems + (rules or []))


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
    """Does the address belong to `ifname`? One that names no interface of the prevResult does."""
    links, index = previous.interfaces, ip.interface
    return index is None or not 0 <= index < len(links) or links[index].name == ifname


def addresses(sock: Netlink, ifname: str, previous: Result) -> list[str]:
    """Compare the prevResult's addresses with those of `ifname`.

    The subnet of each address must be routed, in whichever table.
    """
    device = link.find(sock, ifname)
    if device is None:
        return [f"Cannot find container link {ifname}"]
    have = {entry.prefix for entry in address.show(sock, device.index)}
    problems = []
    for ip in previous.ips:
        prefix = ip.prefix
        if prefix not in have:
            problems.append(f"Failed to match addr {ip.address} on interface {ifname}")
            continue
        routes = route.show(sock, prefix.family, table=0)
        if prefix.length < prefix.bits and not any(r.dst == prefix.network for r in routes):
            problems.append(f"Failed to find Gateway {ip.gateway} for interface {ifname}")
    return problems


def routes(sock: Netlink, previous: Result) -> list[str]:
    """Compare the prevResult's routes with the kernel's.

    A default route may have any gateway. A route without `table` may be in any table, since sbr or
    vrf may have moved it there.
    """
    problems = []
    for wanted in previous.routes:
        dst = Prefix.parse(wanted.dst).network
        have = route.show(sock, dst.family, table=wanted.table or 0)
        gateway = parse_ip(wanted.gw) if wanted.gw and dst.length else b""
        if not any(gateway):
            gateway = b""  # 0.0.0.0 stands for a route on the link
        if not any(r.dst == dst and gateway in (b"", r.gateway) for r in have):
            text = f"{wanted.dst} via {wanted.gw}" if wanted.gw else wanted.dst
            problems.append(f"Expected Route {text} not found in routing table")
    return problems
