"""The subnets in use on this node, and choosing a free one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from cni.kernel import link
from cni.kernel.address import show as addresses_of
from cni.kernel.netlink import Netlink
from cni.kernel.route import show as routes_of
from cni.protocol.address import InvalidAddress, Prefix

from . import conflist, errors

# Pools for a free IPv4 subnet; each /24 is tried in order. They are private addresses (RFC 1918)
# that no container engine uses by default.
_POOLS = ("10.201.0.0/16", "10.202.0.0/15", "192.168.128.0/17")
_LENGTH = 24
_ULA = 0xFD  # the first byte of a unique local IPv6 prefix (RFC 4193)
_FAMILIES = (2, 10)  # AF_INET, AF_INET6
# Keys of configurations whose values are subnets or addresses with a prefix length.
_KEYS = ("subnet", "range", "address")


class Used(NamedTuple):
    """A subnet, and what uses it: ``route through eth0``, ``network web``."""

    subnet: Prefix
    by: str


def used(net_d: str, *, except_link: str = "") -> list[Used]:
    """Subnets of routes, of addresses of this node, and of networks.

    Ignores those of the link `except_link`, on whose subnet the new network is made.
    """
    found = list(_of_networks(net_d))
    with Netlink() as host:
        names = {each.index: each.name for each in link.list_all(host)}
        for family in _FAMILIES:
            # Table 0: routes of all tables, also those of other programs' policy routing.
            for each in routes_of(host, family, table=0):
                name = names.get(each.index, "another link")
                if each.dst.length and name not in ("lo", except_link):
                    found.append(Used(each.dst.network, f"route through {name}"))
        for address in addresses_of(host):
            name = names.get(address.index, "another link")
            if name not in ("lo", except_link):
                found.append(Used(address.prefix.network, f"address of {name}"))
    return [each for each in found if not _is_everywhere(each.subnet)]


def _is_everywhere(subnet: Prefix) -> bool:
    """Link-local, multicast and loopback: every node has them."""
    first = subnet.ip[:2]
    return first[:1] == b"\xff" or first == b"\xfe\x80" or first[:1] == b"\x7f"


def _of_networks(net_d: str) -> Iterator[Used]:
    for network in conflist.all_of(net_d):
        for plugin in network.plugins:
            for subnet in _subnets_in(plugin.raw):
                yield Used(subnet, f"network {network.name}")


def _subnets_in(value: Any, key: str = "") -> Iterator[Prefix]:
    """The subnets in a configuration, also in those of other projects' plugins."""
    if isinstance(value, dict):
        for name, item in value.items():
            # Go's plugins read keys in any case.
            yield from _subnets_in(item, name.lower())
    elif isinstance(value, list):
        for item in value:
            yield from _subnets_in(item, key)
    elif isinstance(value, str) and key in _KEYS:
        try:
            yield Prefix.parse(value).network
        except InvalidAddress:
            return


def require_free(subnet: Prefix, in_use: list[Used]) -> None:
    """Raises Refused if something uses a part of the subnet."""
    for each in in_use:
        if each.subnet.is_v4 == subnet.is_v4 and each.subnet.overlaps(subnet):
            raise errors.Refused(
                f"{subnet} overlaps with {each.subnet} ({each.by})",
                "choose another --subnet, or leave it out to have a free one chosen",
            )


def free_v4(in_use: list[Used]) -> Prefix:
    """The first free /24 of the pools. Raises CommandError."""
    taken = [each.subnet for each in in_use if each.subnet.is_v4]
    for pool in map(Prefix.parse, _POOLS):
        step = 1 << (32 - _LENGTH)
        for offset in range(0, 1 << (32 - pool.length), step):
            candidate = Prefix(pool.nth(offset), _LENGTH)
            if not any(each.overlaps(candidate) for each in taken):
                return candidate
    raise errors.CommandError(
        "no IPv4 subnet is free", f"looked in {', '.join(_POOLS)}: use --subnet"
    )


def free_v6(in_use: list[Used]) -> Prefix:
    """A random /64 of unique local addresses (RFC 4193) that nothing uses."""
    taken = [each.subnet for each in in_use if not each.subnet.is_v4]
    while True:
        # RFC 4193 demands a random global id, so that sites that are joined later do not collide.
        site = bytes([_ULA]) + os.urandom(5)
        candidate = Prefix(site + bytes(10), 64)
        if not any(each.overlaps(candidate) for each in taken):
            return candidate


def directory() -> str:
    """NETCONFPATH."""
    return os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY
