"""portmap with iptables: the reference's chains and rules to the letter (docs/spec/portmap.md).

    PREROUTING, OUTPUT   for an address of the node: to CNI-HOSTPORT-DNAT
    CNI-HOSTPORT-DNAT    by protocol and ports (15 a rule): to the container's chain
    CNI-DN-<hash>        marks what has to be masqueraded, DNAT
    POSTROUTING          CNI-HOSTPORT-MASQ masquerades what is marked

One iptables-save and one iptables-restore a family, so that what is there is neither made twice nor
half; or, where the node has iptables-nft and it is clear what there is, one netlink transaction
(_portmap_iptables_nft.py). The rules name network and container, not the interface: of two
attachments of a container to one network, the container's address says which rules are whose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ...kernel.errors import IptablesError, IptablesMissing, NetlinkError
from ...netfilter import iptables
from ...netfilter.table import Table
from ...owner import Owner
from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError, from_exception, join
from .want import Port, Want

_DNAT, _SETMARK, _MASQ = "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"
# An older version of the reference had a chain of its own for masquerading.
_OLD_SNAT = "CNI-HOSTPORT-SNAT"
_LOCAL = "-m addrtype --dst-type LOCAL"
_PORTS_A_RULE = 15  # more does not fit the match `multiport`
_COMMENT_MAX = 255
_RETRIES = 5


class Taken(CNIError):
    """A host port is published by another container."""


class Forward(NamedTuple):
    """A DNAT rule of somebody: what it takes (host IP, protocol, port), and the target address."""

    chain: str
    key: tuple[str, str, str]
    target: str


# --- the rules, in iptables-save's words ----------------------------------------------------------


def shared_rules(want: Want) -> list[str]:
    """The rules that all containers need."""
    mark = f"{want.mark:#x}"
    rules = [f"-A {chain} {_LOCAL} -j {_DNAT}" for chain in ("PREROUTING", "OUTPUT")]
    if want.snat and not want.mark_chain:
        set_mark = iptables.comment("CNI portfwd masquerade mark")
        requiring = iptables.comment("CNI portfwd requiring masquerade")
        rules += [
            f"-A {_SETMARK} {set_mark} -j MARK --set-xmark {mark}/{mark}",
            f"-A {_MASQ} -m mark --mark {mark}/{mark} -j MASQUERADE",
            f"-A POSTROUTING {requiring} -j {_MASQ}",
        ]
    return rules


def entry_rules(want: Want) -> list[str]:
    """What leads to the container's chain; without conditions, for those have no fixed form."""
    chain = want.owner.chain("DN-")
    opening = _comment(want.owner)
    rules = []
    for protocol in sorted({port.protocol for port in want.ports}):
        ports = [str(port.host_port) for port in want.ports if port.protocol == protocol]
        for start in range(0, len(ports), _PORTS_A_RULE):
            group = ",".join(ports[start : start + _PORTS_A_RULE])
            rules.append(
                f"-A {_DNAT} -p {protocol} {opening} -m multiport --dports {group} -j {chain}"
            )
    return rules


def _comment(owner: Owner) -> str:
    text = f"dnat {owner.iptables_comment}"
    if len(text) > _COMMENT_MAX:
        text = f"{text[:253]}..."[:_COMMENT_MAX]
    return iptables.comment(text)


def container_rules(want: Want, address: Prefix) -> list[str]:
    """The container's chain."""
    chain, mark = want.owner.chain("DN-"), want.mark_chain or _SETMARK
    ip = format_ip(address.ip)
    target = ip if address.is_v4 else f"[{ip}]"
    sources = [] if not want.snat else [""] if want.masq_all else _sources(address)
    rules = []
    for port in want.ports_of(address):
        where = f"-d {Prefix(port.host_ip, address.bits)} " if port.host_ip else ""
        what = f"{where}-p {port.protocol} -m {port.protocol} --dport {port.host_port}"
        rules += [f"-A {chain} {source}{what} -j {mark}" for source in sources]
        rules.append(f"-A {chain} {what} -j DNAT --to-destination {target}:{port.container_port}")
    return rules


def _sources(address: Prefix) -> list[str]:
    subnet = f"-s {address.network} " if address.length else ""
    return [subnet, "-s 127.0.0.1/32 "] if address.is_v4 else [subnet]


# --- ADD ------------------------------------------------------------------------------------------


def install(want: Want) -> None:
    """Publish the ports; what is there already is not made again. Raises IptablesError, Taken."""
    from .iptables_netlink import publish

    for address in want.addresses:
        if publish(want, address, shared_rules(want), additions):
            continue
        for attempt in range(1, _RETRIES + 1):
            try:
                lines = additions(want, address, iptables.save(not address.is_v4, "nat"))
                if lines:
                    iptables.restore(not address.is_v4, "nat", lines)
                break
            except IptablesError as error:
                # somebody else may have made or removed the same after we looked
                if attempt == _RETRIES or isinstance(error, IptablesMissing):
                    raise IptablesError(
                        f"unable to setup DNAT: {error.msg}", error.details
                    ) from None


def additions(want: Want, address: Prefix, saved: list[str]) -> list[str]:
    """iptables-restore's lines that add what the saved table lacks. Raises Taken."""
    chain = want.owner.chain("DN-")
    lines = _free_ports(want, address, saved)
    shared, entries = shared_rules(want), entry_rules(want)
    rules = container_rules(want, address)
    needed = dict.fromkeys([chain, _DNAT, *(r.split()[1] for r in shared)])
    present = {line[1:].split()[0] for line in saved if line.startswith(":")}
    builtin = ("PREROUTING", "OUTPUT", "POSTROUTING")
    lines += [f"-N {name}" for name in needed if name not in present and name not in builtin]
    for rule in shared:
        if rule not in saved:
            first = rule.startswith("-A POSTROUTING ")
            lines.append(f"-I POSTROUTING 1 {rule.split(' ', 2)[2]}" if first else rule)
    conditions = want.conditions_of(address)
    if conditions or any(rule not in saved for rule in entries):
        lines += [_delete(line) for line in _entries(saved, chain) if _same_ports(line, entries)]
        lines += [_with_conditions(rule, conditions) for rule in entries]
    if any(rule not in saved for rule in rules):
        # in their order: what is after the DNAT rule of its port has no effect
        lines += [_delete(rule) for rule in rules if rule in saved]
        lines += rules
    return lines


def _with_conditions(rule: str, conditions: list[str]) -> str:
    if not conditions:
        return rule
    head, jump, chain = rule.rpartition(" -j ")
    return f"{head} {' '.join(_quoted(word) for word in conditions)}{jump}{chain}"


def _quoted(word: str) -> str:
    plain = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain}"' if plain != word or " " in word or not word else word


def _delete(rule: str) -> str:
    return f"-D{rule[2:]}"


def _entries(saved: list[str], chain: str) -> list[str]:
    """The rules that lead to a container's chain."""
    return [i for i in saved if i.startswith(f"-A {_DNAT} ") and i.endswith(f" -j {chain}")]


def _same_ports(entry: str, wanted: Iterable[str]) -> bool:
    return _ports(entry) in {_ports(rule) for rule in wanted}


def _ports(entry: str) -> tuple[str, str]:
    return _word(entry, "-p"), _word(entry, "--dports")


def _word(rule: str, option: str) -> str:
    """What follows an option in a rule; empty without it. Comments come with blanks: not found."""
    words = rule.split()
    return words[words.index(option) + 1] if option in words[:-1] else ""


# --- whose port it is -----------------------------------------------------------------------------


def forwards(saved: list[str]) -> list[Forward]:
    """All DNAT rules of containers, of this plugin and of the reference."""
    return [
        Forward(
            line.split()[1],
            (_word(line, "-d").partition("/")[0], _word(line, "-p"), _word(line, "--dport")),
            _word(line, "--to-destination").rpartition(":")[0].strip("[]"),
        )
        for line in saved
        if line.startswith("-A CNI-DN-") and " -j DNAT " in line
    ]


def _free_ports(want: Want, address: Prefix, saved: list[str]) -> list[str]:
    """What removes those in our network who had this address before us. Raises Taken.

    IPAM gives an address only once: they are gone, and what they published would come to us.
    Conditions may divide a port between several containers: then nobody is in the way.
    """
    ip = format_ip(address.ip)
    mine = want.owner.chain("DN-")
    wanted = {
        (format_ip(p.host_ip) if p.host_ip else "", p.protocol, str(p.host_port)): p
        for p in want.ports_of(address)
    }
    lines: dict[str, None] = {}
    for forward in forwards(saved):
        entries = [] if forward.chain == mine else _entries(saved, forward.chain)
        if not entries:
            continue
        owner = _owner(entries[0])
        if forward.target == ip and owner is not None and owner.network == want.owner.network:
            lines.update(dict.fromkeys(_removal(saved, forward.chain)))
        elif forward.key in wanted and not want.conditions_of(address):
            ports = forward.key[2].split()
            if any(_is_plain(i) and ports[0] in _word(i, "--dports").split(",") for i in entries):
                raise _taken(wanted[forward.key], owner, forward)
    return list(lines)


def _is_plain(entry: str) -> bool:
    """Has an entry rule no conditions?"""
    head, _, rest = entry.partition(" -m comment --comment ")
    tail = rest.rpartition('" ')[2]
    return len(head.split()) == 4 and tail.startswith("-m multiport ") and len(tail.split()) == 6


def _owner(entry: str) -> Owner | None:
    """The network and container that an entry rule's comment names."""
    _, found, rest = entry.partition('"dnat name: \\"')
    network, _, rest = rest.partition('\\" id: \\"')
    container_id, end, _ = rest.partition('\\"')
    return Owner(network, container_id, "") if found and end else None


def _taken(port: Port, owner: Owner | None, forward: Forward) -> Taken:
    who = f"container {owner.container_id} (network {owner.network})" if owner else "somebody else"
    return Taken(
        f"host port {port} is already published by {who}",
        f"publish another port, or stop that container; see `iptables -t nat -S {forward.chain}`",
    )


# --- DEL and GC -----------------------------------------------------------------------------------


def remove(owner: Owner, want: Want | None) -> None:
    """Remove the owner's rules, also those of the reference. Raises CNIError.

    `want`, if the addresses and ports are known, leaves those of another attachment alone.
    """
    errors: list[CNIError] = []
    for v6 in (False, True):
        try:
            _remove_chain(v6, owner.chain("DN-"), _DNAT, want)
            _remove_chain(v6, owner.chain("SN-"), _OLD_SNAT, None)
        except IptablesError as error:
            if iptables.usable(v6):
                text = f"could not teardown ipv{6 if v6 else 4} dnat: {error.msg}"
                errors.append(CNIError(text, error.details))
    if errors:
        raise join(errors)


def _remove_chain(v6: bool, chain: str, parent: str, want: Want | None) -> None:
    if iptables.has_nft_chain(v6, "nat", chain):
        if want is not None and _is_shared(v6, chain, want):
            _apply(v6, lambda saved: _own_removal(saved, want))
        else:
            _remove_nft_variant(v6, chain, parent)
    elif iptables.has_legacy_table(v6, "nat"):
        if want is not None:
            _apply(v6, lambda saved: _own_removal(saved, want))
        else:
            _apply(v6, lambda saved: _removal(saved, chain, parent))


def _is_shared(v6: bool, chain: str, want: Want) -> bool:
    """Does the chain also lead to addresses that are not ours?"""
    ours = [a.ip for a in want.addresses if a.is_v4 != v6]
    rules = Table("ip6" if v6 else "ip", "nat").find_rules_with(chain, b"DNAT\0")
    return any(not any(ip in rule.raw for ip in ours) for rule in rules)


def _remove_nft_variant(v6: bool, chain: str, parent: str) -> None:
    """Over netlink: iptables-nft would take 15 ms for the same."""
    family = "ip6" if v6 else "ip"
    for attempt in range(1, _RETRIES + 1):
        rules = Table(family, "nat").find_rules_with(parent, f"{chain}\0".encode())
        try:
            return Table(family, "nat").delete([(parent, rule.handle) for rule in rules], [chain])
        except NetlinkError as error:
            if not Table(family, "nat").has_chain(chain):
                return None  # somebody else did it
            if attempt == _RETRIES:
                raise IptablesError(f"deleting chain {chain} in table nat: {error}") from None
    return None


def _apply(v6: bool, changes: Callable[[list[str]], list[str]]) -> None:
    for attempt in range(1, _RETRIES + 1):
        try:
            lines = changes(iptables.save(v6, "nat"))
            return iptables.restore(v6, "nat", lines) if lines else None
        except IptablesError:
            if attempt == _RETRIES:
                raise
    return None


def _removal(saved: list[str], chain: str, parent: str = _DNAT) -> list[str]:
    """What removes a chain and the rules that lead to it; nothing without the chain."""
    if not any(line.startswith(f":{chain} ") for line in saved):
        return []
    jumps = [i for i in saved if i.startswith(f"-A {parent} ") and i.endswith(f" -j {chain}")]
    return [*(_delete(line) for line in jumps), f"-F {chain}", f"-X {chain}"]


def _own_removal(saved: list[str], want: Want) -> list[str]:
    """What removes only our rules from a chain, and all if nothing else is in it."""
    chain = want.owner.chain("DN-")
    there = [line for line in saved if line.startswith(f"-A {chain} ")]
    ours = {rule for address in want.addresses for rule in container_rules(want, address)}
    others = [line for line in there if line not in ours]
    if not any(" -j DNAT " in line for line in others):
        return _removal(saved, chain)
    kept = {(_word(line, "-p"), _word(line, "--dport")) for line in others}
    entries = [
        line
        for line in _entries(saved, chain)
        if _same_ports(line, entry_rules(want))
        and not any((_ports(line)[0], port) in kept for port in _ports(line)[1].split(","))
    ]
    return [_delete(line) for line in (*entries, *(line for line in there if line in ours))]


def collect(network: str, keep: Iterable[Owner]) -> None:
    """Remove the chains of the network's containers that are not in `keep`. Raises CNIError."""
    kept = {owner.container_id for owner in keep}
    errors: list[CNIError] = []
    for v6 in (False, True):
        there = iptables.has_nft_chain(v6, "nat", _DNAT) or iptables.has_legacy_table(v6, "nat")
        try:
            saved = iptables.save(v6, "nat") if there else []
            entries = [line for line in saved if line.startswith(f"-A {_DNAT} ")]
            owners = {owner for line in entries if (owner := _owner(line))}
            for owner in sorted(owners):
                if owner.network == network and owner.container_id not in kept:
                    _remove_chain(v6, owner.chain("DN-"), _DNAT, None)
        except IptablesError as error:
            if iptables.usable(v6):
                errors.append(from_exception(error))
    if errors:
        raise join(errors)


# --- CHECK ----------------------------------------------------------------------------------------


def check(want: Want) -> list[str]:
    """What is missing, a line each. Raises IptablesError."""
    problems = []
    for address in want.addresses:
        saved = iptables.save(not address.is_v4, "nat")
        missing = _missing(want, address, saved)
        start = f"could not check ipv{4 if address.is_v4 else 6} dnat"
        problems += [f"{start}: {text}. Rules are gone: run `cni reload`" for text in missing]
    return problems


def _missing(want: Want, address: Prefix, saved: list[str]) -> list[str]:
    chain = want.owner.chain("DN-")
    if not any(line.startswith(f":{chain} ") for line in saved):
        return [f"chain {chain} not found in iptables table nat"]
    rules = [*shared_rules(want), *container_rules(want, address)]
    missing = [rule for rule in rules if rule not in saved]
    there = {_ports(line) for line in _entries(saved, chain)}
    missing += [rule for rule in entry_rules(want) if _ports(rule) not in there]
    return [
        f"rule {rule[3:]} in chain {rule.split()[1]} not found in table nat" for rule in missing
    ]
