"""Choosing a routing table in a container, which sbr and vrf do one request at a time."""

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
    """Wait until no other request works on the tables of this namespace; till the request's end.

    A lock on the namespace itself, as the reference's sbr takes it. Raises TryAgainLater.
    """
    lockfile.acquire(netns.fd, netns.path, monotonic() + lockfile.TIMEOUT)


class Survey(NamedTuple):
    """What routes a namespace's packets: each asked for once.

    `main` are the unicast routes of the main table; `used` the tables that a rule, a route or a VRF
    refers to, and the kernel's own. `link` is the one that was asked for, if it is there. VRFs are
    looked for only where a rule asks their tables: no packet gets there without.
    """

    link: Link | None
    main: list[Route]
    used: set[int]


def survey(sock: Netlink, rules: list[Rule], name: str) -> Survey:
    """Look at everything but the rules, which `rules` found. Raises NetlinkError."""
    found = link.find(sock, name)
    main, tables = route.survey(sock)
    tables |= RESERVED
    for each in rules:
        tables.add(each.table)
        if each.of_vrfs and each.source.is_v4:
            tables.update(map(vrf.table, vrf.show(sock)))
    return Survey(found, main, tables)


def first_free(used: set[int], start: int) -> int:
    """The smallest number from `start` on that is not in `used`."""
    while start in used:
        start += 1
    return start


def check_number(value: int | None, prefix: str) -> None:
    """Refuse what is no table number, in the words of a decoder. Raises CNIError."""
    if value is not None and not 0 <= value < 1 << 32:
        raise CNIError(
            f"{prefix}json: cannot unmarshal number {value} into field table of type uint32",
            "a routing table is a number from 1 to 4294967295",
        )
