"""portmap with iptables: chains and rules identical to the reference's (iptables_rules.py).

ADD takes one iptables-save and one iptables-restore for each family, so that existing rules are not
made twice, and none is made halfway. On a node with iptables-nft it takes one netlink transaction,
if the existing rules are known exactly. The rules name network and container, not the interface: if
a container is attached to a network twice, its addresses tell the rules of both apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...kernel.errors import IptablesError, IptablesMissing, IptablesUnknown, NetlinkError
from ...netfilter import iptables
from ...netfilter.table import Table
from ...owner import Owner
from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError, from_exception, join
from . import iptables_rules as texts
from .want import DEAD, SAME, UNKNOWN, LoadHolders, Port, Taken, Want

# An older version of the reference had a chain of its own for masquerading.
_OLD_SNAT = "CNI-HOSTPORT-SNAT"
_RETRIES = 5


# --- ADD ------------------------------------------------------------------------------------------


def setup(want: Want, holders: LoadHolders, earlier: Want | None) -> list[int]:
    """Publish the ports; rules that exist are not made again. Raises IptablesError, Taken.

    Returns the handles of the jumps to the container's chains, as far as they are known.
    """
    made: dict[str, list[int]] = {texts.DNAT: []}
    for address in want.addresses:
        if _setup_over_netlink(want, address, holders, made):
            continue
        for attempt in range(1, _RETRIES + 1):
            try:
                lines = _changes(
                    want, address, iptables.save(not address.is_v4, "nat"), holders, earlier
                )
                if lines:
                    iptables.restore(not address.is_v4, "nat", lines)
                break
            except IptablesError as error:
                # another process may have made or removed the same rules meanwhile
                if attempt == _RETRIES or isinstance(error, IptablesMissing):
                    raise IptablesError(
                        f"unable to setup DNAT: {error.msg}", error.details
                    ) from None
    return made[texts.DNAT]


def _setup_over_netlink(
    want: Want, address: Prefix, holders: LoadHolders, made: dict[str, list[int]]
) -> bool:
    """Make the rules over netlink in the usual case; False if nothing was done.

    In the usual case the shared rules all exist, in this version's form, or are all missing; the
    container's chain does not exist; no other container has the ports. Otherwise `setup` reads
    iptables-save.
    """
    from ...netfilter import iptables_netlink

    if want.conditions_of(address):
        return False  # conditions are in the tool's words, which this plugin does not parse

    def missing(rules: iptables_netlink.Rules) -> list[str] | None:
        if any(_leads_to(address.ip, rule) for rule in rules.of()):
            return None
        if not _are_of_others(want, rules.of(texts.DNAT)):
            return None
        saved = rules.saved(texts.shared_rules(want))
        return None if saved is None else _additions(want, address, saved, holders)

    return iptables_netlink.change(not address.is_v4, "nat", missing, made)


def _leads_to(ip: bytes, rule: bytes) -> bool:
    """May the rule belong to a container that had this address? True if in doubt."""
    # the address first: it is in hardly any of the table's rules, the rest is in a third of them
    return ip in rule and b"DNAT\0" in rule and b"CNI-DN-" in rule


def _are_of_others(want: Want, entries: list[bytes]) -> bool:
    """Is each entry certainly for other ports than these, whatever the protocol?"""
    from ...netfilter.iptables_rules import ports_of

    wanted = {port.host_port for port in want.ports}
    return all(
        (ports := ports_of(entry)) is not None and wanted.isdisjoint(ports) for entry in entries
    )


def _changes(
    want: Want, address: Prefix, saved: list[str], holders: LoadHolders, earlier: Want | None
) -> list[str]:
    """The lines that remove what the owner published before, then those of `_additions`."""
    rules = texts.container_rules(want, address)
    former = [a for a in earlier.addresses if a.is_v4 == address.is_v4] if earlier else []
    stale = [
        rule
        for each in former
        for rule in texts.container_rules(earlier or want, each)
        if rule in saved and rule not in rules and " -j DNAT " in rule
    ]
    left = [line for line in saved if line not in stale]
    return [texts.delete(rule) for rule in stale] + _additions(want, address, left, holders)


def _additions(want: Want, address: Prefix, saved: list[str], holders: LoadHolders) -> list[str]:
    """iptables-restore's lines that add what the saved table lacks. Raises Taken."""
    chain = want.owner.chain("DN-")
    lines = _free_ports(want, address, saved, holders)
    shared, entries = texts.shared_rules(want), texts.entry_rules(want)
    rules = texts.container_rules(want, address)
    needed = dict.fromkeys([chain, texts.DNAT, *(r.split()[1] for r in shared)])
    present = {line[1:].split()[0] for line in saved if line.startswith(":")}
    builtin = ("PREROUTING", "OUTPUT", "POSTROUTING")
    lines += [f"-N {name}" for name in needed if name not in present and name not in builtin]
    for rule in shared:
        if rule not in saved:
            # in front, as in the reference: a rule of others before it could end the chain
            first = rule.startswith("-A POSTROUTING ")
            lines.append(f"-I POSTROUTING 1 {rule.split(' ', 2)[2]}" if first else rule)
    conditions = want.conditions_of(address)
    if conditions or any(rule not in saved for rule in entries):
        lines += [
            texts.delete(line)
            for line in texts.entries(saved, chain)
            if texts.same_ports(line, entries)
        ]
        lines += [texts.with_conditions(rule, conditions) for rule in entries]
    return lines + _container_additions(rules, saved)


def _container_additions(rules: list[str], saved: list[str]) -> list[str]:
    """The container's missing rules. Marks go to the front, because DNAT ends the chain."""
    new = [rule for rule in rules if rule not in saved]
    if len(new) == len(rules):
        return new
    marks = [rule for rule in new if " -j DNAT " not in rule]
    return [f"-I{rule[2:]}" for rule in reversed(marks)] + [r for r in new if r not in marks]


# --- the holder of a port -------------------------------------------------------------------------


def _free_ports(want: Want, address: Prefix, saved: list[str], holders: LoadHolders) -> list[str]:
    """The lines that remove the rules of dead containers which are in the way. Raises Taken.

    Two kinds of containers are in the way: those that have one of the ports, and those of the
    network that had this address, since the ports that they published would lead here. A holder of
    the second kind without a note is taken for dead, because IPAM gives an address only once. With
    conditions no container is in the way: a port may be divided between containers. Another
    attachment of the same container never is: the first rule applies, and later the next one.
    """
    ip = format_ip(address.ip)
    mine = want.owner.chain("DN-")
    wanted = {
        (format_ip(p.host_ip) if p.host_ip else "", p.protocol, str(p.host_port)): p
        for p in want.ports_of(address)
    }
    lines: dict[str, None] = {}
    for forward in texts.forwards(saved):
        entries = [] if forward.chain == mine else texts.entries(saved, forward.chain)
        if not entries:
            continue
        named = texts.owner_of(entries[0])
        at_address = forward.target == ip and named is not None
        at_address = at_address and named is not None and named.network == want.owner.network
        has_port = (
            forward.key in wanted
            and not want.conditions_of(address)
            and any(texts.is_plain(e) and texts.names_port(e, forward.key[2]) for e in entries)
        )
        if not (at_address or has_port):
            continue
        holder = holders().by_chain(forward.chain, named)
        if holder.fate == DEAD or (at_address and holder.fate == UNKNOWN):
            lines.update(dict.fromkeys(texts.removal(saved, forward.chain)))
        elif has_port and holder.fate != SAME:
            raise _taken(wanted[forward.key], holder.owner, forward)
    return list(lines)


def _taken(port: Port, owner: Owner | None, forward: texts.Forward) -> Taken:
    who = f"container {owner.container_id} (network {owner.network})" if owner else "somebody else"
    return Taken(
        f"host port {port} is already published by {who}",
        f"publish another port, or stop that container; see `iptables -t nat -S {forward.chain}`",
    )


# --- DEL and GC -----------------------------------------------------------------------------------


def teardown(want: Want, *, noted: bool, handles: Sequence[int] = ()) -> list[Port]:
    """Remove the owner's rules, also those of the reference. Raises CNIError.

    If addresses and ports are known, the rules of another attachment of the container stay.
    """
    _ = noted
    known = want if want.addresses and want.ports else None
    errors: list[CNIError] = []
    for v6 in (False, True):
        try:
            _remove_chain(v6, want.owner.chain("DN-"), texts.DNAT, known, handles)
            _remove_chain(v6, want.owner.chain("SN-"), _OLD_SNAT, None)
        except IptablesError as error:
            if isinstance(error, IptablesUnknown) or iptables.usable(v6):
                text = f"could not teardown ipv{6 if v6 else 4} dnat: {error.msg}"
                errors.append(CNIError(text, error.details))
    if errors:
        raise join(errors)
    return want.ports


def _remove_chain(
    v6: bool, chain: str, parent: str, want: Want | None, handles: Sequence[int] = ()
) -> None:
    if iptables.has_nft_chain(v6, "nat", chain):
        if want is not None and _is_shared(v6, chain, want):
            _apply(v6, lambda saved: _own_removal(saved, want))
        else:
            _remove_nft_variant(v6, chain, parent, handles)
    elif iptables.has_legacy_table(v6, "nat"):
        if want is not None:
            _apply(v6, lambda saved: _own_removal(saved, want))
        else:
            _apply(v6, lambda saved: texts.removal(saved, chain, parent))


def _is_shared(v6: bool, chain: str, want: Want) -> bool:
    """Does the chain also lead to addresses of other attachments?"""
    ours = [a.ip for a in want.addresses if a.is_v4 != v6]
    rules = Table("ip6" if v6 else "ip", "nat").find_rules_with(chain, b"DNAT\0")
    return any(not any(ip in rule.raw for ip in ours) for rule in rules)


def _remove_nft_variant(v6: bool, chain: str, parent: str, handles: Sequence[int]) -> None:
    """Remove the chain and its jumps over netlink; the tool would take 15 ms."""
    family = "ip6" if v6 else "ip"
    for attempt in range(1, _RETRIES + 1):
        rules = Table(family, "nat").jumps(parent, chain, handles)
        try:
            return Table(family, "nat").delete([(parent, rule.handle) for rule in rules], [chain])
        except NetlinkError as error:
            if not Table(family, "nat").has_chain(chain):
                return None  # another process has removed it
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


def _own_removal(saved: list[str], want: Want) -> list[str]:
    """The lines that remove the attachment's rules, and the chain if it is empty then."""
    chain = want.owner.chain("DN-")
    there = [line for line in saved if line.startswith(f"-A {chain} ")]
    ours = {rule for address in want.addresses for rule in texts.container_rules(want, address)}
    others = [line for line in there if line not in ours and " -j DNAT " in line]
    if not others:
        return texts.removal(saved, chain)
    kept = {(texts.word_after(line, "-p"), texts.word_after(line, "--dport")) for line in others}

    def is_shared(line: str) -> bool:
        """Is it a mark that another attachment's DNAT of that port also needs?"""
        port = texts.word_after(line, "-p"), texts.word_after(line, "--dport")
        return " -j DNAT " not in line and port in kept

    entries = [
        line
        for line in texts.entries(saved, chain)
        if texts.same_ports(line, texts.entry_rules(want))
        and not any(
            (texts.ports_of(line)[0], p) in kept for p in texts.ports_of(line)[1].split(",")
        )
    ]
    own = [line for line in there if line in ours and not is_shared(line)]
    return [texts.delete(line) for line in (*entries, *own)]


def gc(network: str, keep: list[Owner]) -> list[Port]:
    """Remove the chains of the network's containers that are not in `keep`. Raises CNIError.

    Returns no ports, since these rules do not tell which flows to end.
    """
    kept = {owner.container_id for owner in keep}
    errors: list[CNIError] = []
    for v6 in (False, True):
        there = iptables.may_be_used(v6, "nat", texts.DNAT)
        try:
            saved = iptables.save(v6, "nat") if there else []
            entries = [line for line in saved if line.startswith(f"-A {texts.DNAT} ")]
            owners = {owner for line in entries if (owner := texts.owner_of(line))}
            for owner in sorted(owners):
                if owner.network == network and owner.container_id not in kept:
                    _remove_chain(v6, owner.chain("DN-"), texts.DNAT, None)
        except IptablesError as error:
            if isinstance(error, IptablesUnknown) or iptables.usable(v6):
                errors.append(from_exception(error))
    if errors:
        raise join(errors)
    return []


# --- CHECK ----------------------------------------------------------------------------------------


def check(want: Want, holders: LoadHolders) -> list[str]:
    """What is missing, a line each. Raises IptablesError."""
    from ...netfilter import iptables_netlink

    _ = holders  # with iptables every attachment of a container has rules
    problems = []
    for address in want.addresses:
        rules = [*texts.shared_rules(want), *texts.container_rules(want, address)]
        rules += texts.entry_rules(want)
        present = iptables_netlink.present(not address.is_v4, "nat", rules)
        if set(present).issuperset(rules):
            continue
        saved = iptables.save(not address.is_v4, "nat")
        missing = _missing(want, address, saved)
        start = f"could not check ipv{4 if address.is_v4 else 6} dnat"
        problems += [f"{start}: {text}. Rules are gone: run `cni reload`" for text in missing]
    return problems


def _missing(want: Want, address: Prefix, saved: list[str]) -> list[str]:
    chain = want.owner.chain("DN-")
    if not any(line.startswith(f":{chain} ") for line in saved):
        return [f"chain {chain} not found in iptables table nat"]
    rules = [*texts.shared_rules(want), *texts.container_rules(want, address)]
    missing = [rule for rule in rules if rule not in saved]
    there = {texts.ports_of(line) for line in texts.entries(saved, chain)}
    missing += [rule for rule in texts.entry_rules(want) if texts.ports_of(rule) not in there]
    return [
        f"rule {rule[3:]} in chain {rule.split()[1]} not found in table nat" for rule in missing
    ]


def status(*, conditions: bool) -> None:
    """Raise CNIError if the tool is missing or fails."""
    _ = conditions
    if not iptables.usable(v6=False):
        raise CNIError("iptables is not usable", "install the package iptables; are we root?")
