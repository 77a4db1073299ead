"""How published ports look in nftables: the chains and maps that _portmap_nft keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..kernel.nft_elements import Element
from ..kernel.owner import Owner, digest
from ..protocol.address import Prefix, format_ip
from ._portmap import PROTOCOLS, Port, Want

TABLE = "cni_hostport"
# After iptables-nft, kube-proxy and the reference (-100), before firewalld (-90).
PRIORITY = -99
KEY = 33  # of a comment, what identifies the owner (kernel/owner.py)
# By whether the host IP is part of the key: which chain decides, and where that chain sends it.
MAPS = {False: ("published", "targets"), True: ("published_at", "targets_at")}
NAMES = ("published", "targets", "published_at", "targets_at")
_NUMBERS = {number: name for name, number in PROTOCOLS.items()}


# --- chains ---------------------------------------------------------------------------------------


class Chain(NamedTuple):
    """A chain as it has to be; `hook` is empty for one that is jumped to."""

    family: str
    name: str
    hook: str
    rules: list[str]


def chains(want: Want, address: Prefix) -> list[Chain]:
    """The chains that publishing an address's ports takes."""
    family = family_of(address)
    at = {bool(port.host_ip) for port in want.ports_of(address)}
    found = [_network_chain(want, address, host_ip) for host_ip in sorted(at)]
    lookup = [
        f"{family} daddr . meta l4proto . th dport vmap @published_at",
        "meta l4proto . th dport vmap @published",
    ]
    found.append(Chain(family, "published_lookup", "", lookup))
    local = ["fib daddr type local jump published_lookup"]
    for hook in ("prerouting", "output"):
        kind = f"type nat hook {hook} priority {PRIORITY};"
        found.append(Chain(family, f"published_{hook}", kind, local))
    if want.snat:
        mark = f"{want.mark:#x}"
        rule = f"ct status dnat meta mark & {mark} == {mark} masquerade"
        kind = "type nat hook postrouting priority 100;"
        found.append(Chain(family, f"masquerade_{mark}", kind, [rule]))
        if address.is_v4:
            # route_localnet, without which localhost could not be published, would let neighbours
            # in to what listens only there
            drop = 'iif != "lo" ip daddr 127.0.0.0/8 drop'
            kind = "type filter hook prerouting priority -300;"
            found.append(Chain(family, "published_guard", kind, [drop]))
    return found


def _network_chain(want: Want, address: Prefix, host_ip: bool) -> Chain:
    family = family_of(address)
    sources: list[str] = []
    if want.snat and want.masq_all:
        sources = [""]
    elif want.snat:
        loopback = "127.0.0.0/8" if address.is_v4 else "::1"
        sources = [f"{family} saddr {address.network}", f"{family} saddr {loopback}"]
    mark = f"meta mark set meta mark or {want.mark:#x}"
    key = f"{family} daddr . " if host_ip else ""
    target = f"{key}meta l4proto . th dport map @{MAPS[host_ip][1]}"
    rules = [f"{source} {mark}" for source in sources]
    # the protocols are named once more for libnftables, which wants to know that there are ports
    rules.append(f"meta l4proto {{ 6, 17, 132 }} dnat to {target}")
    conditions = " ".join(want.conditions_of(address))
    rules = [f"{conditions} {rule}".strip() for rule in rules]
    name = f"net-{digest(' | '.join(rules))[:16]}" + ("-at" if host_ip else "")
    return Chain(family, name, "", rules)


def script(wanted: Sequence[Chain]) -> str:
    """What makes these chains, in nft(8)'s language; all chains first, for they refer to others."""
    lines = []
    for family in dict.fromkeys(chain.family for chain in wanted):
        address = "ipv4_addr" if family == "ip" else "ipv6_addr"
        keys = {False: "inet_proto . inet_service", True: f"{address} . inet_proto . inet_service"}
        table = f"{family} {TABLE}"
        lines.append(f'add table {table} {{ comment "CNI portmap plugin"; }}')
        for host_ip, (decides, targets) in MAPS.items():
            lines.append(f"add map {table} {decides} {{ type {keys[host_ip]} : verdict; }}")
            value = f"{address} . inet_service"
            lines.append(f"add map {table} {targets} {{ type {keys[host_ip]} : {value}; }}")
    for chain in wanted:
        place = f"{chain.family} {TABLE} {chain.name}"
        lines.append(
            f"add chain {place} {{ {chain.hook} }}" if chain.hook else f"add chain {place}"
        )
        lines.append(f"flush chain {place}")
    for chain in wanted:
        lines += [f"add rule {chain.family} {TABLE} {chain.name} {rule}" for rule in chain.rules]
    return "\n".join((*lines, ""))


# --- elements -------------------------------------------------------------------------------------


def family_of(address: Prefix) -> str:
    return "ip" if address.is_v4 else "ip6"


def elements(want: Want, address: Prefix) -> dict[str, list[Element]]:
    """The elements that publish an address's ports, by map."""
    found: dict[str, list[Element]] = {name: [] for name in NAMES}
    names = {at: _network_chain(want, address, at).name for at in MAPS}
    for port in want.ports_of(address):
        at = bool(port.host_ip)
        key = port.host_ip + bytes((PROTOCOLS[port.protocol], 0, 0, 0)) + _padded(port.host_port)
        value = address.ip + _padded(port.container_port)
        decides, targets = MAPS[at]
        found[decides].append(Element(key, b"", names[at], want.owner.comment))
        found[targets].append(Element(key, value, "", want.owner.comment))
    return found


def _padded(port: int) -> bytes:
    return port.to_bytes(2, "big") + b"\0\0"


def port_of(key: bytes) -> Port | None:
    """The port that an element's key stands for."""
    host_ip, number = key[:-8], key[-8]
    protocol = _NUMBERS.get(number)
    return Port(host_ip, protocol, int.from_bytes(key[-4:-2], "big"), 0) if protocol else None


def owner_of(comment: str) -> Owner | None:
    """The owner that a comment names, if that is all of his name (it may have been cut)."""
    _, net, rest = comment.partition(", net: ")
    network, _, rest = rest.partition(", if: ")
    ifname, _, container_id = rest.partition(", id: ")
    owner = Owner(network, container_id, ifname)
    return owner if net and owner.key == comment[:KEY] else None


def shown(element: Element) -> str:
    value = element.value
    if not value:
        return f"{port_of(element.key)} -> {element.chain}"
    address, port = format_ip(value[:-4]), int.from_bytes(value[-4:-2], "big")
    return f"{port_of(element.key)} -> {address} port {port}"
