"""bridge: what its CHECK compares. Each function returns the differences it finds."""

from __future__ import annotations

from ...kernel import link
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.result import Interface, Result


def bridge(host: Netlink, previous: Result, name: str, promiscuous: bool) -> list[str]:
    """The bridge as prevResult and configuration say."""
    entry = next((i for i in previous.interfaces if i.name == name), None)
    if entry is None:
        return ["Interface name missing "]
    found = link.find(host, entry.name)
    if found is None:
        return [f"Interface name {entry.name} not found"]
    problems = []
    if entry.sandbox:
        problems.append(f"Interface {entry.name} should not be in sandbox")
    if found.kind != "bridge":
        problems.append(f"Interface {entry.name} not of type bridge")
    if entry.mac and entry.mac != found.mac:
        problems.append(
            f"Bridge interface {entry.name} Mac {entry.mac} doesn't match current Mac: {found.mac}"
        )
    promisc = bool(found.flags & link.IFF_PROMISC)  # as set; a capture counts as promiscuity only
    if promisc != promiscuous:
        problems.append(
            f"Bridge interface {entry.name} configured Promisc Mode "
            f"{_go_bool(promiscuous)} doesn't match current state: {_go_bool(promisc)} "
        )
    return problems


def pair(
    host: Netlink, netns: Namespace, entry: Interface, previous: Result, bridge_name: str
) -> list[str]:
    """The container's end, and a listed veth on the host that is its peer and the bridge's port."""
    inner = link.find(netns.netlink(), entry.name)
    if inner is None:
        return [f"Interface name {entry.name} not found"]
    problems = []
    if inner.kind != "veth":
        problems.append(f"Container interface {entry.name} not of type veth")
    if entry.mac and entry.mac != inner.mac:
        problems.append(
            f"Interface {entry.name} Mac {entry.mac} doesn't match container Mac: {inner.mac}"
        )
    return problems + _port(host, inner, previous, bridge_name)


def _port(host: Netlink, inner: Link, previous: Result, bridge_name: str) -> list[str]:
    master = link.find(host, bridge_name)
    for entry in previous.interfaces:
        if entry.name in (bridge_name, inner.name):
            continue
        found = link.find(host, entry.name)
        if found is None:
            return [f"Interface name {entry.name} not found"]
        if entry.sandbox:
            return [f"Interface {entry.name} should not be in sandbox"]
        is_pair = found.kind == "veth" and found.index == inner.peer
        is_port = master is not None and found.master == master.index
        if is_pair and is_port and entry.mac in ("", found.mac):
            return []
    return [f"CNI veth created for bridge {bridge_name} was not found"]


def _go_bool(value: bool) -> str:
    return "true" if value else "false"
