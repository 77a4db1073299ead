"""The veth or netkit pair between host and container, for bridge and ptp (docs/spec/common.md §3).

The name of the host's end is derived from the owner, and its alias names the owner.
"""

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

# How many names are tried for the host's end when the first one is taken.
ATTEMPTS = 10
MTU_MIN, MTU_MAX = 68, 65535  # the kernel's limits for veth and bridge

# The kinds of pairs. A netkit runs BPF programs in the peer's device, which saves a queue.
KINDS = ("veth", "netkit")


def parse_mac(mac: str) -> bytes:
    """The container's MAC as six bytes; b"" lets the kernel choose. Raises CNIError."""
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
    """Refuse an MTU that the kernel would refuse later. Raises CNIError."""
    if mtu and not MTU_MIN <= mtu <= MTU_MAX:
        raise CNIError(
            f"invalid mtu {mtu}", f"mtu is 0 for the kernel's default, or {MTU_MIN} to {MTU_MAX}"
        )


def require_free(call: Call[Any], netns: Namespace) -> None:
    """Refuse a CNI_IFNAME that exists in the container. Raises CNIError.

    ADD calls this before its first change: undoing a second ADD would otherwise release the lease
    that the first one allocated.
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
    """Make the pair, with the host's end up and marked with the owner: (host end, container end).

    One request makes both ends, each in its namespace, so that a kill leaves both or none. Until
    the alias is set, the link group names the network. A kernel without netkit gets a veth pair and
    a line on stderr. The pair is deleted if the ADD fails later. Raises CNIError.
    """
    name = _create(call, host, netns, mtu, mac, master, kind)
    outer = link.get(host, name)
    call.undo.callback(_undo, outer.index)
    prepare_host_end(name)
    link.change(host, outer.index, up=True, alias=call.owner.alias, group=0)
    return outer, link.get(netns.netlink(), call.ifname)


def prepare_host_end(name: str) -> None:
    """Write the IPv6 sysctls of a link of ours on the host, before the link comes up.

    Router discovery is off, because a container could send rogue advertisements (CVE-2020-10749).
    Duplicate address detection is off, because it would delay the link-local address by one to two
    seconds, and without that the node cannot discover the neighbours to whom it forwards.
    """
    conf = f"net/ipv6/conf/{name}"
    sysctl.write_each([(f"{conf}/accept_ra", "0"), (f"{conf}/accept_dad", "0")])


def _undo(index: int) -> None:
    with Netlink() as host:  # the verb's own socket is closed by now
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
    """Make a netkit pair and return "netkit"; return "veth" if the kernel has no netkit.

    Raises NetlinkError.
    """
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
    inner = link.find(sock, ifname)
    if inner is None:
        return []
    prefixes = [a.prefix for a in show(sock, inner.index) if is_global_unicast(a.prefix.ip)]
    unlink.delete(netns, inner.index)
    return prefixes


def delete_on_host(host: Netlink, owner: Owner) -> None:
    """Delete what is left of the owner's pair when its namespace cannot be entered any more.

    The name is derived from the owner; the alias confirms it (empty: killed before it was set).
    """
    for attempt in range(ATTEMPTS):
        outer = link.find(host, owner.veth(attempt))
        if outer is None:
            return
        if outer.kind in KINDS and outer.alias in ("", owner.alias):
            unlink.delete_here(outer.index)


def collect(host: Netlink, network: str, keep: frozenset[str]) -> None:
    """Delete the network's host ends whose alias key is not in `keep` (GC).

    One without an alias, but in the network's group, is of an ADD that was killed.
    """
    prefix, group = f"cni:{network_key(network)}-", network_group(network)
    for device in link.list_all(host):
        ours = device.alias.startswith(prefix) or (not device.alias and device.group == group)
        if device.kind in KINDS and ours and device.alias.split(" ", 1)[0] not in keep:
            link.delete(host, device.index)
