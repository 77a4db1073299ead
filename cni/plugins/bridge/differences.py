"""bridge's CHECK: comparison of the bridge and the veth pair with the prevResult
(docs/spec/bridge.md, CHECK).

Each function returns a list of differences, a sentence each.
"""

from __future__ import annotations

from ...kernel import link
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.address import Prefix, parse_ip
from ...protocol.result import Interface, Result
from ..shared import checks


def bridge(host: Netlink, previous: Result, name: str, promiscuous: bool) -> list[str]:
    """Compare the bridge `name` with the prevResult and with `promiscuous`."""
    # the texts are the reference's, also with their blanks at the end
    entry = next((i for i in previous.interfaces if i.name == name), None)
    if entry is None:
        return ["Interface name missing "]
    device = link.find(host, entry.name)
    if device is None:
        return [f"Interface name {entry.name} not found"]
    problems = []
    if entry.sandbox:
        problems.append(f"Interface {entry.name} should not be in sandbox")
    if device.kind != "bridge":
        problems.append(f"Interface {entry.name} not of type bridge")
    if not device.up:
        problems.append(f"Bridge interface {entry.name} is down (`ip link set {entry.name} up`)")
    if entry.mac and entry.mac != device.mac:
        problems.append(
            f"Bridge interface {entry.name} Mac {entry.mac} doesn't match current Mac: {device.mac}"
        )
    promisc = bool(device.flags & link.IFF_PROMISC)  # a packet capture does not set this flag
    if promisc != promiscuous:
        problems.append(
            f"Bridge interface {entry.name} configured Promisc Mode "
            f"{_go_bool(promiscuous)} doesn't match current state: {_go_bool(promisc)} "
        )
    return problems


def pair(
    host: Netlink, netns: Namespace, entry: Interface, previous: Result, bridge_name: str
) -> list[str]:
    """Compare the container's end with `entry`, and the host's end with the prevResult.

    One of the prevResult's interfaces on the host must be the peer and a port of the bridge.
    """
    inner = link.find(netns.netlink(), entry.name)
    if inner is None:
        return [f"Interface name {entry.name} not found"]
    problems = []
    if inner.kind != "veth":
        problems.append(f"Container interface {entry.name} not of type veth")
    problems += checks.mac_differs(entry, inner)
    return problems + _port(host, inner, previous, bridge_name)


def _port(host: Netlink, inner: Link, previous: Result, bridge_name: str) -> list[str]:
    master = link.find(host, bridge_name)
    for entry in previous.interfaces:
        if entry.name in (bridge_name, inner.name):
            continue
        outer = link.find(host, entry.name)
        if outer is None:
            return [f"Interface name {entry.name} not found"]
        if entry.sandbox:
            return [f"Interface {entry.name} should not be in sandbox"]
        is_pair = outer.kind == "veth" and outer.index == inner.peer
        is_port = master is not None and outer.master == master.index
        if is_pair and is_port and entry.mac in ("", outer.mac):
            return checks.host_end(outer) or _blocked(master, outer)
    return [f"CNI veth created for bridge {bridge_name} was not found"]


def _blocked(master: Link | None, outer: Link) -> list[str]:
    """A difference if the port does not forward; none if the bridge is down, which explains it."""
    if master is None or not master.up or not outer.blocked:
        return []
    return [
        f"the bridge {master.name} forwards nothing through its port {outer.name} "
        f"(`bridge link set dev {outer.name} state 3`)"
    ]


def gateways(host: Netlink, previous: Result, name: str, ifname: str) -> list[str]:
    """Compare the addresses of `name`, the bridge or its VLAN's interface, with the gateways."""
    wanted = [
        Prefix(parse_ip(ip.gateway), ip.prefix.length)
        for ip in previous.ips
        if ip.gateway and checks.is_of(ip, ifname, previous)
    ]
    return checks.gateways(host, name, wanted)


def _go_bool(value: bool) -> str:
    return "true" if value else "false"
