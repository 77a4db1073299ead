"""A throw-away host behind a link of the node, in place of the world outside.

Packets from a container to it are forwarded, filtered and masqueraded by the node like those to
any other host, and nothing leaves the node. The link is a veth pair, whose other end is in a
namespace of its own, so the kernel deletes it with that. Its addresses are those for documentation
(RFC 5737, RFC 3849), which nobody uses; only those are taken to which the node has no other route
than a default one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cni.kernel import address, link, route
from cni.kernel.netlink import Netlink
from cni.kernel.route import show as routes_of
from cni.netns.namespace import Namespace
from cni.netns.throwaway import ThrowAway
from cni.protocol.address import Prefix, format_ip, parse_ip

_V4 = ("192.0.2.0", "198.51.100.0", "203.0.113.0")
_V6 = "2001:db8:{:x}:{:x}::"
_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
LINK_PREFIX = "cnitest"


class Outside:
    """The host: its addresses, and the node's on the link to it ("" where there is none)."""

    def __init__(self, space: ThrowAway, link_name: str, mtu: int) -> None:
        self._space = space
        self.link_name, self.mtu = link_name, mtu
        self.node: dict[int, str] = {}
        self.host: dict[int, str] = {}

    @property
    def namespace(self) -> Namespace:
        return self._space.namespace


class Uplink(NamedTuple):
    """The link of the node's default route, and its addresses by family."""

    name: str
    mtu: int
    addresses: dict[int, str]


def uplink_of(node: Netlink) -> Uplink | None:
    """None if the node has no default route."""
    for family in (4, 6):
        defaults = [
            each for each in routes_of(node, _AF[family]) if each.dst.length == 0 and each.index
        ]
        # The kernel prefers the lowest metric.
        for each in sorted(defaults, key=lambda one: one.priority):
            found = link.find(node, each.index)
            if found is None:
                continue
            addresses: dict[int, str] = {}
            for one in address.show(node, found.index):
                if one.usable and one.scope == address.SCOPE_UNIVERSE:
                    text = format_ip(one.prefix.ip)
                    addresses.setdefault(4 if one.prefix.is_v4 else 6, text)
            return Uplink(found.name, found.mtu, addresses)
    return None


@contextmanager
def made(node: Netlink, mtu: int) -> Iterator[Outside]:
    """The host, until the end of the block. Raises OSError, KernelError."""
    with ThrowAway() as space:
        name = LINK_PREFIX + os.urandom(4).hex()
        outside = Outside(space, name, mtu)
        link.create_veth(node, name, "eth0", mtu=mtu, peer_netns=space.namespace.fd)
        try:
            _configure(node, outside)
            yield outside
        finally:
            # Not left to the end of the namespace, after which the kernel needs some time for it.
            link.delete_name(node, name)


def _configure(node: Netlink, outside: Outside) -> None:
    there = outside.namespace.netlink()
    ours, theirs = link.get(node, outside.link_name), link.get(there, "eth0")
    for sock, index in ((node, ours.index), (there, theirs.index)):
        link.change(sock, index, up=True)
    link.change(there, 1, up=True)
    # Addresses and the way back: what is not masqueraded comes with the container's address.
    for family, (one, other, length) in _free_pairs(node).items():
        try:
            # Duplicate address detection would delay the first packet by a second.
            address.add(node, ours.index, Prefix(one, length), nodad=True)
            address.add(there, theirs.index, Prefix(other, length), nodad=True)
        except OSError:
            continue  # a node without IPv6
        outside.node[family], outside.host[family] = format_ip(one), format_ip(other)
        everything = Prefix(bytes(4), 0) if family == 4 else Prefix(bytes(16), 0)
        route.add(there, route.Route(everything, theirs.index, gateway=one))


def _free_pairs(node: Netlink) -> dict[int, tuple[bytes, bytes, int]]:
    """Two addresses and their length for each family, to which the node has no route of its own."""
    pairs: dict[int, tuple[bytes, bytes, int]] = {}
    networks = [(4, each, 30) for each in _V4]
    # Random, so that two tests at the same time do not choose the same network.
    numbers = int.from_bytes(os.urandom(2), "big"), int.from_bytes(os.urandom(2), "big")
    networks.append((6, _V6.format(*numbers), 64))
    taken = {family: _networks(node, family) for family in (4, 6)}
    for family, text, length in networks:
        base = parse_ip(text)
        if family in pairs or any(_holds(each, base) for each in taken[family]):
            continue
        pairs[family] = (base[:-1] + b"\1", base[:-1] + b"\2", length)
    return pairs


def _networks(node: Netlink, family: int) -> list[Prefix]:
    return [each.dst for each in routes_of(node, _AF[family], table=0) if each.dst.length]


def _holds(network: Prefix, ip: bytes) -> bool:
    bits = 8 * len(ip) - network.length
    one, other = int.from_bytes(network.ip, "big"), int.from_bytes(ip, "big")
    return one >> bits == other >> bits
