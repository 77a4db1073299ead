"""How published ports look in nftables: the chains and maps that backend_nft keeps.

Each rule is written twice: in nft(8)'s language, and as the kernel's expressions. The first form is
for the program nft, if a network has conditions, which are in that language. A test compares both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ...netfilter import expressions as kernel
from ...netfilter import uapi
from ...netfilter.elements import Element
from ...netfilter.nft import Change
from ...netfilter.table import Table
from ...owner import digest
from ...protocol.address import Prefix, format_ip
from .want import PROTOCOLS, Port, Want

TABLE = "cni_hostport"
FAMILIES = {"ip": 4, "ip6": 16}  # family → size of an address in bytes
REFERENCE_CHAIN = "hostports"  # in every table that the reference has used
_COMMENT = "CNI portmap plugin"
# After iptables-nft, kube-proxy and the reference (-100), before firewalld (-90).
PRIORITY = -99
KEY = 33  # characters at a comment's beginning that identify the owner (owner.py)
# "Is the host IP part of the key" → the map of verdicts, and the map of targets.
MAPS = {False: ("published", "targets"), True: ("published_at", "targets_at")}
NAMES = ("published", "targets", "published_at", "targets_at")
BY_OWNER, BY_ADDRESS = INDEX = ("by_owner", "by_address")  # see nft_index.py
NETWORK_CHAIN = "net-"
OWN_CHAINS = (NETWORK_CHAIN, "published_", "masquerade_")  # prefixes of the names
_NUMBERS = {number: name for name, number in PROTOCOLS.items()}
_LOOPBACK = {
    True: ("127.0.0.0/8", Prefix.parse("127.0.0.0/8")),
    False: ("::1", Prefix.parse("::1/128")),
}
_LO = 1  # the index of `lo` in every namespace


# --- chains ---------------------------------------------------------------------------------------


class Hook(NamedTuple):
    """Where the kernel enters a chain."""

    kind: str
    name: str
    priority: int

    def __str__(self) -> str:
        return f"type {self.kind} hook {self.name} priority {self.priority};"


class Rule(NamedTuple):
    """A rule in both languages; one that only nft can compile has no expressions.

    The expressions are a function, since they are rarely needed: mostly the chain exists.
    """

    text: str
    expressions: Callable[[], list[bytes]] | None


class Chain(NamedTuple):
    """A chain as it has to be; without `hook`, other chains jump to it.

    `protocols` is the number of the anonymous set in the last rule, if it has one.
    """

    family: str
    name: str
    hook: Hook | None
    rules: list[Rule]
    protocols: int = 0


def chains(want: Want, address: Prefix) -> list[Chain]:
    """The chains that are needed to publish an address's ports."""
    family = family_of(address)
    at = {bool(port.host_ip) for port in want.ports_of(address)}
    needed = [network_chain(want, address, host_ip) for host_ip in sorted(at)]
    lookup = [_lookup_rule(address, host_ip) for host_ip in (True, False)]
    needed.append(Chain(family, "published_lookup", None, lookup))
    local = Rule("fib daddr type local jump published_lookup", _look_up_what_is_local)
    for hook in ("prerouting", "output"):
        needed.append(Chain(family, f"published_{hook}", Hook("nat", hook, PRIORITY), [local]))
    if want.snat:
        needed.append(_masquerade_chain(family, want.mark))
        if address.is_v4:
            needed.append(_guard_chain(family))
    return needed


def _lookup_rule(address: Prefix, host_ip: bool) -> Rule:
    decides = MAPS[host_ip][0]
    return Rule(
        f"{_key_text(family_of(address), host_ip)} vmap @{decides}",
        lambda: [*_load_key(address, host_ip), kernel.lookup(decides, into=0)],
    )


def _look_up_what_is_local() -> list[bytes]:
    return [
        kernel.fib(uapi.NFTA_FIB_F_DADDR, uapi.NFT_FIB_RESULT_ADDRTYPE),
        kernel.compare(kernel.native(uapi.RTN_LOCAL)),
        kernel.jump("published_lookup"),
    ]


def _masquerade_chain(family: str, number: int) -> Chain:
    mark = kernel.native(number)
    rule = Rule(
        f"ct status dnat meta mark & {number:#x} == {number:#x} masquerade",
        lambda: [
            kernel.ct(uapi.NFT_CT_STATUS),
            kernel.bitwise(kernel.native(uapi.IPS_DST_NAT), bytes(4)),
            kernel.compare(bytes(4), kernel.NEQ),
            kernel.meta(uapi.NFT_META_MARK),
            kernel.bitwise(mark, bytes(4)),
            kernel.compare(mark),
            kernel.masquerade(),
        ],
    )
    return Chain(family, f"masquerade_{number:#x}", Hook("nat", "postrouting", 100), [rule])


def _guard_chain(family: str) -> Chain:
    """The chain that drops packets to 127.0.0.0/8 from any link but `lo`.

    With `route_localnet`, which ports on localhost need, the kernel would deliver them.
    """
    drop = Rule(
        'iif != "lo" ip daddr 127.0.0.0/8 drop',
        lambda: [
            kernel.meta(uapi.NFT_META_IIF),
            kernel.compare(kernel.native(_LO), kernel.NEQ),
            kernel.destination(_LOOPBACK[True][1]),
            kernel.verdict(uapi.NF_DROP),
        ],
    )
    # -300 (NF_IP_PRI_RAW) is before connection tracking and every translation
    return Chain(family, "published_guard", Hook("filter", "prerouting", -300), [drop])


def guard(table: Table) -> list[Change]:
    """For `nft.transact`: another table with the guard's chain."""
    chain = _guard_chain(table.family)
    return [
        kernel.new_table(table, _COMMENT),
        _new(table, chain),
        table.without_rules(chain.name),
        *(
            kernel.new_rule(table, chain.name, rule.expressions())
            for rule in chain.rules
            if rule.expressions
        ),
    ]


def network_chain(want: Want, address: Prefix, host_ip: bool) -> Chain:
    """The chain of a network's options; its name is a hash of its rules."""
    family, targets = family_of(address), MAPS[host_ip][1]
    rules: list[Rule] = []
    mark = f"meta mark set meta mark or {want.mark:#x}"
    if want.snat and want.masq_all:
        rules.append(Rule(f" {mark}", lambda: _set_mark(want.mark)))
    elif want.snat:
        own = str(address.network), address.network
        for text, source in (own, _LOOPBACK[address.is_v4]):
            rules.append(_marking_rule(f"{family} saddr {text} {mark}", source, want.mark))
    number = _set_number(family, len(NAMES + INDEX) + host_ip)
    # The key has the protocol already, but nft allows `th dport` only behind a match for it.
    text = f"meta l4proto {{ 6, 17, 132 }} dnat to {_key_text(family, host_ip)} map @{targets}"
    port = uapi.NFT_REG32_01 if address.is_v4 else uapi.NFT_REG_2
    translate = Rule(
        text,
        lambda: [
            kernel.protocols(number),
            *_load_key(address, host_ip),
            kernel.lookup(targets, into=uapi.NFT_REG_1),
            kernel.dnat(family, uapi.NFT_REG_1, port),
        ],
    )
    rules.append(translate)
    conditions = " ".join(want.conditions_of(address))
    if conditions:
        rules = [Rule(f"{conditions} {rule.text}", None) for rule in rules]
    rules = [rule._replace(text=rule.text.strip()) for rule in rules]
    # Containers that were started with other options of the network keep their chain.
    hashed = digest(" | ".join(rule.text for rule in rules))[:16]
    name = f"{NETWORK_CHAIN}{hashed}" + ("-at" if host_ip else "")
    return Chain(family, name, None, rules, number)


def _marking_rule(text: str, source: Prefix, mark: int) -> Rule:
    return Rule(text, lambda: [kernel.source(source), *_set_mark(mark)])


def _set_mark(mark: int) -> list[bytes]:
    return [
        kernel.meta(uapi.NFT_META_MARK),
        kernel.bitwise(kernel.native(~mark & 0xFFFFFFFF), kernel.native(mark)),
        kernel.set_meta(uapi.NFT_META_MARK),
    ]


def _key_text(family: str, host_ip: bool) -> str:
    return (f"{family} daddr . " if host_ip else "") + "meta l4proto . th dport"


def _load_key(address: Prefix, host_ip: bool) -> list[bytes]:
    """`_key_text` as expressions: each part is loaded into the next free words of the registers."""
    registers = [uapi.NFT_REG_1, uapi.NFT_REG32_01]
    loads = []
    if host_ip and address.is_v4:
        loads.append(kernel.payload(uapi.NFT_PAYLOAD_NETWORK_HEADER, 16, 4))
        registers = [uapi.NFT_REG32_01, uapi.NFT_REG32_02]
    elif host_ip:
        loads.append(kernel.payload(uapi.NFT_PAYLOAD_NETWORK_HEADER, 24, 16))
        registers = [uapi.NFT_REG_2, uapi.NFT_REG32_05]
    loads.append(kernel.meta(uapi.NFT_META_L4PROTO, registers[0]))
    loads.append(kernel.payload(uapi.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, registers[1]))
    return loads


# --- making them ----------------------------------------------------------------------------------


def _sets(family: str) -> dict[str, tuple[str, str | None]]:
    """The maps and sets of a family: types of key and value."""
    address = "ipv4_addr" if family == "ip" else "ipv6_addr"
    port = "inet_proto . inet_service"
    port_at, target = f"{address} . {port}", f"{address} . inet_service"
    return {
        "published": (port, "verdict"),
        "targets": (port, target),
        "published_at": (port_at, "verdict"),
        "targets_at": (port_at, target),
        BY_OWNER: ("mark . mark . mark . mark . mark", port_at),
        BY_ADDRESS: (f"mark . mark . {address}", None),
    }


def _set_number(family: str, number: int) -> int:
    """A number that no other set of a transaction has."""
    return 1 + number + (0 if family == "ip" else 10)


def script(wanted: Sequence[Chain]) -> str:
    """The script for nft(8) that makes these chains; chains come before rules, which name them."""
    lines = []
    for family in dict.fromkeys(chain.family for chain in wanted):
        table = f"{family} {TABLE}"
        lines.append(f'add table {table} {{ comment "{_COMMENT}"; }}')
        for name, (key, value) in _sets(family).items():
            kind = f"map {table} {name} {{ type {key} : {value}; }}"
            lines.append(f"add {kind}" if value else f"add set {table} {name} {{ type {key}; }}")
    for chain in wanted:
        place = f"{chain.family} {TABLE} {chain.name}"
        lines.append(f"add chain {place}" + (f" {{ {chain.hook} }}" if chain.hook else ""))
        lines.append(f"flush chain {place}")
    for chain in wanted:
        place = f"{chain.family} {TABLE} {chain.name}"
        lines += [f"add rule {place} {rule.text}" for rule in chain.rules]
    return "\n".join((*lines, ""))


def rule_counts(wanted: Sequence[Chain]) -> dict[str, int]:
    """The rules of each of these chains of one family, at least. Raises NetlinkError.

    On a node with many networks the other chains are not read.
    """
    table = Table(wanted[0].family, TABLE)
    if table.is_large():
        return table.rule_counts_of(chain.name for chain in wanted)
    return table.rule_counts()


def incomplete(wanted: Sequence[Chain], counts: Mapping[str, int]) -> list[Chain]:
    """The chains that are missing, or have another number of rules than they should."""
    return [chain for chain in wanted if counts.get(chain.name) != len(chain.rules)]


def is_known(wanted: Iterable[Chain]) -> bool:
    """Can all of these be made without nft?"""
    return all(rule.expressions for chain in wanted for rule in chain.rules)


def skeleton(family: str, wanted: Sequence[Chain], counts: Mapping[str, int]) -> list[Change]:
    """As `script`, for `nft.transact`; `counts` says which chains have rules now."""
    table = Table(family, TABLE)
    changes = [kernel.new_table(table, _COMMENT), *sets(family, (*NAMES, *INDEX))]
    for chain in wanted:
        changes.append(_new(table, chain))
        if counts.get(chain.name):
            changes.append(table.without_rules(chain.name))
    for chain in wanted:
        if chain.protocols:
            numbers = sorted(PROTOCOLS.values())
            changes += kernel.protocol_set(table, chain.protocols, numbers)
        changes += [
            kernel.new_rule(table, chain.name, rule.expressions())
            for rule in chain.rules
            if rule.expressions
        ]
    return changes


def _new(table: Table, chain: Chain) -> Change:
    if chain.hook is None:
        return kernel.new_chain(table, chain.name)
    hook = chain.hook
    return kernel.new_base_chain(table, chain.name, hook.name, hook.kind, hook.priority)


def sets(family: str, names: Sequence[str]) -> list[Change]:
    """Changes that make these maps and sets, or leave them as they are."""
    kinds = _sets(family)
    return [
        kernel.new_set(Table(family, TABLE), name, _set_number(family, number), *kinds[name])
        for number, name in enumerate(kinds)
        if name in names
    ]


# --- elements -------------------------------------------------------------------------------------


def family_of(address: Prefix) -> str:
    return "ip" if address.is_v4 else "ip6"


def elements(want: Want, address: Prefix) -> dict[str, list[Element]]:
    """The elements that publish an address's ports, by map."""
    wanted: dict[str, list[Element]] = {name: [] for name in NAMES}
    chain: dict[bool, str] = {}
    comment = want.owner.comment
    for port in want.ports_of(address):
        at = bool(port.host_ip)
        if at not in chain:
            chain[at] = network_chain(want, address, at).name
        decides, targets = MAPS[at]
        key, value = key_of(port), address.ip + _padded(port.container_port)
        wanted[decides].append(Element(key, b"", chain[at], comment))
        wanted[targets].append(Element(key, value, "", comment))
    return wanted


def without(
    wanted: dict[str, list[Element]], family: str, aside: Collection[tuple[str, bytes]]
) -> dict[str, list[Element]]:
    """The elements without those whose (family, key) is in `aside`."""
    if not aside:
        return wanted
    return {
        name: [element for element in items if (family, element.key) not in aside]
        for name, items in wanted.items()
    }


def key_of(port: Port) -> bytes:
    """The key of a port's elements."""
    protocol = bytes((PROTOCOLS[port.protocol], 0, 0, 0))
    return port.host_ip + protocol + _padded(port.host_port)


def _padded(port: int) -> bytes:
    return port.to_bytes(2, "big") + b"\0\0"


def port_of(key: bytes) -> Port | None:
    """The port that an element's key stands for."""
    host_ip, number = key[:-8], key[-8]
    protocol = _NUMBERS.get(number)
    return Port(host_ip, protocol, int.from_bytes(key[-4:-2], "big"), 0) if protocol else None


def target_of(value: bytes) -> str:
    """The address and port that a value of the map of targets stands for."""
    return f"{format_ip(value[:-4])} port {int.from_bytes(value[-4:-2], 'big')}"


def shown(element: Element) -> str:
    where = target_of(element.value) if element.value else element.chain
    return f"{port_of(element.key)} -> {where}"
