"""wireguard: which records of the store are accepted, and which parts of them.

    endpoints/<network>/<node>   {…, "port", "addresses", "publicKey", "subnets": ["10.40.1.0/24"]}

A node may say of itself anything. What it says is not allowed to take packets from others: a
subnet is accepted only within the network's own, and if no other node has any of it; a public key
only if no other node has it. Who had a subnet or a key before keeps it. If two nodes begin to say
the same, neither is believed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...protocol.address import Prefix, parse_ip
from ...protocol.errors import CNIError
from ...store import endpoints
from . import keys
from .settings import MOST_SUBNETS

_MOST_REASONS = 3  # of one record that are told
_MOST_SHOWN = 60  # characters of a text that a record has
Said = Mapping[str, dict[str, Any]]  # values of the store, by node
Peers = dict[str, dict[str, Any]]  # accepted: publicKey, addresses (one), port, subnets; by node


class Own(NamedTuple):
    """This node: its public key as text, its subnets, those in which others' must lie, and whether
    nodes reach each other by IPv6.
    """

    key: str
    subnets: list[Prefix]
    allowed: list[Prefix]
    v6: bool


def accept(network: str, own: Own, said: Said, before: Peers) -> tuple[Peers, list[str]]:
    """What is accepted, and a sentence for each node of whose record a part is refused.

    `before` is what was accepted last.
    """
    refused: dict[str, list[str]] = {}

    def refuse(node: str, why: str) -> None:
        refused.setdefault(node, []).append(why)

    known: dict[str, _Record] = {}
    for node in sorted(said):
        try:
            known[node] = _read(node, said[node], own)
        except (CNIError, ValueError) as error:
            refuse(node, str(error))
    for node in _same_key(own, known, before):
        refuse(node, f"another node has its publicKey {known.pop(node).key}")
    fitting = _fitting(own, known, before, refuse)
    accepted = {node: record.value(fitting[node]) for node, record in known.items()}
    return accepted, [
        f"{endpoints.key_of(network, node)} is refused: {_shown(refused[node])}"
        for node in sorted(refused)
    ]


def _fitting(
    own: Own, known: Mapping[str, _Record], before: Peers, refuse: Callable[[str, str], None]
) -> dict[str, list[Prefix]]:
    """The accepted subnets, by node."""
    taken = _Taken()
    for subnet in sorted(own.subnets, key=_order):
        taken.add(subnet, "")
    fitting: dict[str, list[Prefix]] = {node: [] for node in known}
    new: list[tuple[Prefix, str]] = []
    for node, record in known.items():
        had = frozenset(before.get(node, {}).get("subnets", ()))
        for subnet in _subnets(node, record, own, refuse):
            if str(subnet) in had and not taken.owners(subnet):
                taken.add(subnet, node)
                fitting[node].append(subnet)
            else:
                new.append((subnet, node))
    disputed = _disputed(new)
    for subnet, node in new:
        others = (taken.owners(subnet) | disputed.get(subnet, set())) - {node}
        if others:
            whose = ", ".join(sorted(each or "this node" for each in others))
            refuse(node, f"{subnet} overlaps a subnet of {whose}")
        elif not taken.covers(subnet):
            taken.add(subnet, node)
            fitting[node].append(subnet)
    return fitting


def _subnets(
    node: str, record: _Record, own: Own, refuse: Callable[[str, str], None]
) -> list[Prefix]:
    """Those of a record that are of this network, each before those that are in it."""
    found: set[Prefix] = set()
    for text in record.subnets:
        prefix = None
        if isinstance(text, str):
            try:
                prefix = Prefix.parse(text)
            except CNIError:
                pass
        if prefix is None or str(prefix.network) != text:
            refuse(node, f"{str(text)[:_MOST_SHOWN]!r} is no subnet")
        elif not any(_is_in(prefix, each) for each in own.allowed):
            refuse(node, f"{prefix} is not in the subnets of this network")
        else:
            found.add(prefix)
    return sorted(found, key=_order)


def _order(subnet: Prefix) -> tuple[int, bytes, int]:
    return (subnet.family, subnet.ip, subnet.length)


def _shown(reasons: list[str]) -> str:
    more = len(reasons) - _MOST_REASONS
    return "; ".join(reasons[:_MOST_REASONS]) + (f"; and {more} more" if more > 0 else "")


class _Record(NamedTuple):
    key: str
    address: str
    port: int
    subnets: list[Any]

    def value(self, subnets: list[Prefix]) -> dict[str, Any]:
        return {
            "publicKey": self.key,
            "addresses": [self.address],
            "port": self.port,
            "subnets": [str(each) for each in sorted(subnets)],
        }


def _read(node: str, value: dict[str, Any], own: Own) -> _Record:
    """What a record says. Raises CNIError, ValueError."""
    if value.get("node") != node:
        raise ValueError("it names another node")
    text = value.get("publicKey")
    key = keys.parse(text, "publicKey") if isinstance(text, str) else b""
    if not any(key):
        raise ValueError("it has no publicKey")
    port = value.get("port")
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise ValueError("its port is none")
    family = "IPv6" if own.v6 else "IPv4"
    address = next((a for a in endpoints.addresses_of(value) if (":" in a) == own.v6), "")
    if not address:
        raise ValueError(f"it has no {family} address, by which this node reaches others")
    if any(each.contains(parse_ip(address)) for each in own.allowed):
        # encrypted packets to it would have to be encrypted again
        raise ValueError(f"its address {address} is in the subnets of this network")
    texts = value.get("subnets")
    if not isinstance(texts, list) or len(texts) > MOST_SUBNETS:
        raise ValueError(f"its subnets are no list, or more than {MOST_SUBNETS}")
    return _Record(keys.text_of(key), address, port, texts)


def _is_in(subnet: Prefix, other: Prefix) -> bool:
    return other.length <= subnet.length and other.contains(subnet.ip)


def _same_key(own: Own, known: Mapping[str, _Record], before: Peers) -> list[str]:
    """The nodes whose public key is another's; not the one that had it before."""
    by_key: dict[str, list[str]] = {}
    for node, record in known.items():
        by_key.setdefault(record.key, []).append(node)
    wrong: list[str] = []
    for key, nodes in by_key.items():
        had = [node for node in nodes if before.get(node, {}).get("publicKey") == key]
        if key == own.key:
            wrong += nodes
        elif len(nodes) > 1:
            wrong += [node for node in nodes if [node] != had]
    return wrong


class _Taken:
    """Subnets and whose they are; those of different nodes do not overlap."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, bytes]] = []  # (family, last address), sorted
        self._entries: dict[tuple[int, bytes], tuple[Prefix, str]] = {}

    def add(self, subnet: Prefix, owner: str) -> None:
        """Add a subnet; those of the owner that are in it are replaced."""
        if self.covers(subnet):
            return
        for end in self._overlapping(subnet):
            self._ends.remove(end)
            del self._entries[end]
        end = (subnet.family, subnet.broadcast)
        insort(self._ends, end)
        self._entries[end] = (subnet, owner)

    def owners(self, subnet: Prefix) -> set[str]:
        """Whose are parts of it? The empty text: this node's."""
        return {self._entries[end][1] for end in self._overlapping(subnet)}

    def covers(self, subnet: Prefix) -> bool:
        """Is all of it in one of the subnets?"""
        return any(_is_in(subnet, self._entries[end][0]) for end in self._overlapping(subnet))

    def _overlapping(self, subnet: Prefix) -> list[tuple[int, bytes]]:
        found = []
        for at in range(
            bisect_left(self._ends, (subnet.family, subnet.network.ip)), len(self._ends)
        ):
            other = self._entries[self._ends[at]][0]
            if other.family != subnet.family or not other.overlaps(subnet):
                break
            found.append(self._ends[at])
        return found


def _disputed(new: list[tuple[Prefix, str]]) -> dict[Prefix, set[str]]:
    """Subnets that overlap one of another node, with the nodes that say so."""
    found: dict[Prefix, set[str]] = {}
    around: list[tuple[Prefix, str]] = []  # those that contain the present one
    for subnet, node in sorted(new, key=lambda each: _order(each[0])):
        while around and not _is_in(subnet, around[-1][0]):
            around.pop()
        for other, its_node in around:
            if its_node != node:
                found.setdefault(subnet, set()).update((node, its_node))
                found.setdefault(other, set()).update((node, its_node))
        around.append((subnet, node))
    return found
