"""Choosing a free routing table in a container, for sbr and vrf.

A lock keeps two simultaneous requests from choosing the same table.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from time import monotonic
from typing import NamedTuple

from ... import lockfile
from ...kernel import link, route, vrf
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...kernel.route import Route
from ...kernel.rule import Rule
from ...netns import Namespace
from ...protocol.errors import CNIError

FAMILIES = (AF_INET, AF_INET6)
RESERVED = frozenset({253, 254, 255})  # default, main, local


def lock(netns: Namespace) -> None:
    """Lock the routing tables of this namespace until the request ends.

    It locks the namespace's file, as the reference's sbr does. Raises TryAgainLater if another
    request holds the lock too long.
    """
    lockfile.acquire(netns.fd, netns.path, monotonic() + lockfile.TIMEOUT)


class Survey(NamedTuple):
    """A namespace's routing, each table dumped once.

    `main` are the unicast routes of the main table; `used` are the tables that a rule, a route or a
    VRF refers to, and the kernel's own. `link` is the link of the given name, or None. VRFs are
    listed only if the rule exists that leads packets to their tables.
    """

    link: Link | None
    main: list[Route]
    used: set[int]


def survey(sock: Netlink, rules: list[Rule], name: str) -> Survey:
    """Read the namespace's routing, given its `rules`; `name` is a link's. Raises NetlinkError."""
    device = link.find(sock, name)
    main, tables = route.survey(sock)
    tables |= RESERVED
    for each in rules:
        tables.add(each.table)
        # the kernel adds this rule for both families, but one list of the VRFs is enough
        if each.of_vrfs and each.source.is_v4:
            tables.update(map(vrf.table, vrf.show(sock)))
    return Survey(device, main, tables)


def first_free(used: set[int], start: int) -> int:
    """The smallest number not in `used`, from `start` on."""
    while start in used:
        start += 1
    return start


def check_number(value: int | None, prefix: str) -> None:
    """Refuse a number that is no routing table. Raises CNIError, begun with `prefix`."""
    if value is not None and not 0 <= value < 1 << 32:
        raise CNIError(
            f"{prefix}json: cannot unmarshal number {value} into field table of type uint32",
            "a routing table is a number from 1 to 4294967295",
        )
