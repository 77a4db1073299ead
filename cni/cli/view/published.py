"""The node's ports that lead to containers: those with rules, and those that ADDs wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from cni.protocol.address import InvalidAddress, canonical_ip

from .attached import Attached
from .ruleset import Entry, has_nft

PUBLISHED, MISSING, UNKNOWN = "published", "no rule", "unknown"
_ANY = frozenset({"", "0.0.0.0", "::"})
# tcp . 8080 comment "…" : 10.0.0.2 . 80, in a map of addresses with the address before it.
_ELEMENT = re.compile(
    r"(?:([0-9a-f.:]+) \. )?(tcp|udp|sctp) \. (\d+)(?: comment \"[^\"]*\")?"
    r" : ([0-9a-f.:]+) \. (\d+)"
)
_DNAT = re.compile(r"-j DNAT --to-destination \[?([0-9a-f.:]+?)\]?:(\d+)$")
_OPTION = {
    "address": re.compile(r" -d ([0-9a-f.:]+)"),
    "protocol": re.compile(r" -p (\w+)"),
    "port": re.compile(r" --dport (\d+)"),
}
_KEY = re.compile(r"^[0-9a-f]{16}-[0-9a-f]{16}")


class Port(NamedTuple):
    """A port of the node. `host` is "" for all of its addresses; `by` is the source.

    `owner` is the attachment, or None if it is not known.
    """

    host: str
    port: int
    protocol: str
    address: str
    target: int
    by: str
    state: str
    owner: Attached | None

    @property
    def name(self) -> str:
        """``8080/tcp``, with the address of the node before it if it is one of them only."""
        at = f"[{self.host}]:" if ":" in self.host else f"{self.host}:" if self.host else ""
        return f"{at}{self.port}/{self.protocol}"

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        owner = self.owner
        return {
            "hostIP": self.host,
            "hostPort": self.port,
            "protocol": self.protocol,
            "containerIP": self.address,
            "containerPort": self.target,
            "network": owner.network if owner else "",
            "containerID": owner.container_id if owner else "",
            "ifname": owner.ifname if owner else "",
            "pod": owner.pod if owner else "",
            **({"backend": self.by, "state": self.state} if self.state else {}),
        }


def wanted(what: Attached) -> Iterator[Port]:
    """The ports that an ADD was asked to publish, for each address of the container.

    Whether there are rules was not looked at: their `state` is "".
    """
    mappings = (what.capability_args or {}).get("portMappings")
    for each in mappings if isinstance(mappings, list) else ():
        if not isinstance(each, dict):
            continue
        given = {key.lower(): value for key, value in each.items()}
        port, target = given.get("hostport"), given.get("containerport")
        if not (isinstance(port, int) and isinstance(target, int)) or port == 0:
            continue
        host = _host(str(given.get("hostip") or ""))
        protocol = str(given.get("protocol") or "tcp").lower()
        for address in what.addresses:
            ip = address.partition("/")[0]
            # A host address publishes the port for its own family only.
            if not host or (":" in host) == (":" in ip):
                yield Port(host, port, protocol, ip, target, "", "", what)


def find(entries: Iterable[Entry], known: Iterable[Attached]) -> list[Port]:
    """All ports, sorted by number: those in the packet filter, and those that ADDs wanted."""
    known = list(known)
    by_key = {each.owner.key: each for each in known}
    # Rules of iptables name no owner; their chain's name is a hash of it.
    by_chain = {each.owner.chain("DN-"): each for each in known}
    there = [*_from_maps(entries, by_key), *_from_chains(entries, by_chain)]
    seen = {_identity(port) for port in there}
    asked = [port for each in known for port in wanted(each)]
    # Without nft nobody can tell whether there are elements in portmap's maps.
    state = MISSING if has_nft() else UNKNOWN
    missing = [port._replace(state=state) for port in asked if _identity(port) not in seen]
    return sorted([*there, *missing], key=lambda port: (port.port, port.protocol, port.host))


def _identity(port: Port) -> tuple[str, int, str, str, int]:
    return port.host, port.port, port.protocol, port.address, port.target


def _from_maps(entries: Iterable[Entry], by_key: dict[str, Attached]) -> Iterator[Port]:
    for entry in entries:
        if entry.tool != "nft" or not entry.table.endswith(" cni_hostport"):
            continue
        found = _ELEMENT.fullmatch(entry.text) if entry.chain.startswith("targets") else None
        if found is not None:
            host, protocol, port, address, target = found.groups()
            key = _KEY.match(entry.comment)
            owner = by_key.get(key[0]) if key else None
            yield Port(
                host or "", int(port), protocol, address, int(target), "nftables", PUBLISHED, owner
            )


def _from_chains(entries: Iterable[Entry], by_chain: dict[str, Attached]) -> Iterator[Port]:
    for entry in entries:
        found = _DNAT.search(entry.text) if entry.chain.startswith("CNI-DN-") else None
        if entry.tool == "nft" or found is None:
            continue
        given = {name: option.search(entry.text) for name, option in _OPTION.items()}
        port, protocol, host = given["port"], given["protocol"], given["address"]
        if port is None or protocol is None:
            continue
        yield Port(
            _host(host[1]) if host else "",
            int(port[1]),
            protocol[1],
            found[1],
            int(found[2]),
            "iptables",
            PUBLISHED,
            by_chain.get(entry.chain),
        )


def _host(text: str) -> str:
    """An address of the node in its usual form; "" for what stands for all of them."""
    try:
        ip = canonical_ip(text) if text else ""
    except InvalidAddress:
        return text
    return "" if str(ip) in _ANY else str(ip)
