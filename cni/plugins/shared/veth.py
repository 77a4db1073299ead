"""Pairs of links between host and container: what bridge and ptp share (docs/spec/common.md §3)."""

from __future__ import annotations

from errno import EOPNOTSUPP
from typing import Any

from ...call import Call
from ...kernel import link, sysctl
from ...kernel.address import show
from ...kernel.errors import NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...owner import Owner, network_group, network_key
from ...protocol.address import Prefix, is_global_unicast
from ...protocol.errors import CNIError
from . import unlink

# How often another name is tried when the derived one is taken.
ATTEMPTS = 10
MTU_MIN, MTU_MAX = 68, 65535  # of a veth and of a bridge

# What a pair may be: netkit runs its BPF programs in the peer's device and saves a queue.
KINDS = ("veth", "netkit")


def parse_mac(mac: str) -> bytes:
    """The container's MAC; empty for the kernel's choice. Raises CNIError before any change."""
    try:
        raw = link.parse_mac(mac) if mac else b""
    except ValueError as error:
        raise CNIError(
            f"failed to make veth pair: {error}", "a MAC looks like 02:00:00:12:34:56"
        ) from None
    if raw and (raw[0] & 1 or not any(raw)):
        raise CNIError(
            f"failed to make veth pair: address {mac}: not a unicast MAC address",
            "the first octet of an interface's MAC is even, for example 02:00:00:12:34:56",
        )
    return raw


def check_mtu(mtu: int) -> None:
    """Refuse what the kernel would, before any change. Raises CNIError."""
    if mtu and not MTU_MIN <= mtu <= MTU_MAX:
        raise CNIError(
            f"invalid mtu {mtu}", f"mtu is 0 for the kernel's default, or {MTU_MIN} to {MTU_MAX}"
        )


def require_free(call: Call[Any], netns: Namespace) -> None:
    """CNI_IFNAME must not exist yet. Raises CNIError.

    Looked at before anything is changed: undoing must not touch what an earlier ADD has made, such
    as the lease of the same attachment.
    """
    if link.find(netns.netlink(), call.ifname) is not None:
        raise _taken(call, call.owner.veth())


def _taken(call: Call[Any], name: str) -> CNIError:
    return CNIError(
        f'container veth name ("{call.ifname}") peer provided ("{name}") already exists',
        f"{call.netns} has an interface {call.ifname}; a DEL removes what an earlier ADD left",
    )


def create(
    call: Call[Any],
    host: Netlink,
    netns: Namespace,
    mtu: int,
    mac: bytes,
    master: int = 0,
    kind: str = "veth",
) -> tuple[Link, Link]:
    """Make the pair, its host end marked with the owner, without IPv6 router discovery, and up.

    One end is made here and the other at once in the container, so that a kill leaves no third
    state; until the alias is set, the link group says whose network it is. The host end's name is
    derived from the owner. Returns (host end, container end); the pair is deleted again if the ADD
    fails. A kernel without netkit gets a veth pair, and says so. Raises CNIError.
    """
    name = _create(call, host, netns, mtu, mac, master, kind)
    outer = link.get(host, name)
    call.undo.callback(_undo, outer.index)
    prepare_host_end(name)
    link.change(host, outer.index, up=True, alias=call.owner.alias, group=0)
    return outer, link.get(netns.netlink(), call.ifname)


def prepare_host_end(name: str) -> None:
    """The IPv6 settings of a link of ours on the host, written before it comes up.

    Without router discovery: a rogue advertisement must find it off (CVE-2020-10749). Without
    duplicate address detection: until the link-local address is usable, one to two seconds, the
    node cannot ask for the neighbours to whom it forwards packets.
    """
    conf = f"net/ipv6/conf/{name}"
    sysctl.write_each([(f"{conf}/accept_ra", "0"), (f"{conf}/accept_dad", "0")])


def _undo(index: int) -> None:
    with Netlink() as host:  # the verb's own is closed by now
        link.delete(host, index)


def _create(
    call: Call[Any],
    host: Netlink,
    netns: Namespace,
    mtu: int,
    mac: bytes,
    master: int,
    kind: str,
) -> str:
    for attempt in range(ATTEMPTS):
        name = call.owner.veth(attempt)
        try:
            if kind == "netkit":
                kind = _netkit_or_veth(call, host, netns, name, mtu)
            if kind == "veth":
                link.create_veth(
                    host,
                    name,
                    call.ifname,
                    mtu=mtu,
                    peer_mac=mac,
                    peer_netns=netns.fd,
                    master=master,
                    group=network_group(call.network),
                )
            return name
        except NetlinkError as error:
            if not link.is_name_taken(error):
                raise CNIError(f"failed to make veth pair: {error}") from None
            if link.find(netns.netlink(), call.ifname) is not None:
                raise _taken(call, name) from None
    raise CNIError(
        "failed to make veth pair: no free name for the host's end",
        f"{call.owner.veth(0)} and {ATTEMPTS - 1} more are taken: see `ip link show type veth`",
    )


def _netkit_or_veth(call: Call[Any], host: Netlink, netns: Namespace, name: str, mtu: int) -> str:
    """Make a netkit pair: "netkit", or "veth" when the kernel has none. Raises NetlinkError."""
    try:
        link.create_netkit(
            host,
            name,
            call.ifname,
            mtu=mtu,
            peer_netns=netns.fd,
            group=network_group(call.network),
        )
        return "netkit"
    except NetlinkError as error:
        if error.errno != EOPNOTSUPP:
            raise
        call.log("this kernel has no netkit (Linux 6.7, CONFIG_NETKIT): using veth")
        return "veth"


def delete_in_container(netns: Namespace, ifname: str) -> list[Prefix]:
    """Delete a link in the container; the global addresses it had. A missing link is success."""
    sock = netns.netlink()
    found = link.find(sock, ifname)
    if found is None:
        return []
    prefixes = [a.prefix for a in show(sock, found.index) if is_global_unicast(a.prefix.ip)]
    unlink.delete(netns, found.index)
    return prefixes


def delete_on_host(host: Netlink, owner: Owner) -> None:
    """Delete what is left of the owner's pair when its namespace cannot be entered any more.

    The name is derived from the owner; the alias confirms it (empty: killed before it was set).
    """
    for attempt in range(ATTEMPTS):
        found = link.find(host, owner.veth(attempt))
        if found is None:
            return
        if found.kind in KINDS and found.alias in ("", owner.alias):
            unlink.delete_here(found.index)


def collect(host: Netlink, network: str, keep: frozenset[str]) -> None:
    """Delete the network's host ends whose alias key is not in `keep` (GC).

    One without an alias, but in the network's group, is of an ADD that was killed.
    """
    prefix, group = f"cni:{network_key(network)}-", network_group(network)
    for found in link.list_all(host):
        ours = found.alias.startswith(prefix) or (not found.alias and found.group == group)
        if found.kind in KINDS and ours and found.alias.split(" ", 1)[0] not in keep:
            link.delete(host, found.index)
