"""The firewall plugin's iptables rules, identical to those of the reference
(docs/spec/firewall.md).

    FORWARD                 -> CNI-ISOLATION-STAGE-1 (with an ingress policy), then CNI-FORWARD
    CNI-FORWARD             -> the administrator's chain; then two rules an address, without comment
    CNI-ISOLATION-STAGE-1   from an isolated bridge to elsewhere -> CNI-ISOLATION-STAGE-2
    CNI-ISOLATION-STAGE-2   to any isolated bridge: drop

ADD is one transaction for each family: it checks that the shared rules exist, and appends the
container's. Only if a shared rule is missing, the table is read and completed. If the node's
iptables is iptables-nft, ADD and DEL use netlink, without a child process
(netfilter/iptables_netlink.py); else ADD runs one iptables-restore (-C, -A), and DEL reads the
table.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOENT
from typing import NamedTuple

from ...kernel.errors import IptablesError, IptablesMissing, IptablesUnknown, NetlinkError
from ...netfilter import iptables
from ...netfilter.table import Rule, Table
from ...owner import Owner
from ...protocol.address import Prefix, by_family
from ...protocol.errors import CNIError, join
from .want import Ingress, Want, gone

_FORWARD, _STAGE1, _STAGE2 = "CNI-FORWARD", "CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"
_TRIES = 5
_JUMP = f'-A FORWARD -m comment --comment "CNI firewall plugin rules" -j {_FORWARD}'
_ANY_POLICY = (
    '-m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)"'
)
_ISOLATION = f"-A FORWARD {_ANY_POLICY} -j {_STAGE1}"
# The offsets of source and destination in the IP header; the key says whether it is IPv6.
_SOURCE, _DESTINATION = {False: 12, True: 8}, {False: 16, True: 24}


class Shared(NamedTuple):
    """A rule that all containers share, in iptables-save's words; `first`: at its chain's front."""

    rule: str
    first: bool


def setup(want: Want, *, accept: bool = True) -> None:
    """Make the missing rules. Without `accept`, only those of the ingress policy.

    Raises IptablesError; then the rules of that family are unchanged.
    """
    for v6, addresses in want.families:
        shared = _shared(want, accept)
        try:
            _add_family(v6, shared, addresses if accept else [], want.ingress)
        except IptablesMissing as error:
            text = f"could not initialize iptables protocol {int(v6)}: {error.msg}"
            raise IptablesMissing(text, error.details) from None
        except IptablesError as error:
            text = f"failed to set up firewall rules with iptables: {error.msg}"
            raise IptablesError(text, error.details) from None


def _shared(want: Want, accept: bool) -> list[Shared]:
    """The shared rules in the order of creation; isolation's jump goes to FORWARD's front last."""
    rules = []
    if accept:
        overrides = '-m comment --comment "CNI firewall plugin admin overrides"'
        rules = [
            Shared(_JUMP, first=True),
            Shared(f"-A {_FORWARD} {overrides} -j {want.admin_chain}", first=True),
        ]
    if want.ingress is not None:
        rules += _isolation(want.ingress)
    return rules


def _isolation(ingress: Ingress) -> list[Shared]:
    bridge, policy = ingress.bridge, _policy(ingress.policy)
    rules = [
        Shared(_ISOLATION, first=True),
        Shared(f"-A {_STAGE1} -i {bridge} ! -o {bridge} {policy} -j {_STAGE2}", first=True),
    ]
    if ingress.isolated:
        rules.append(Shared(_same_bridge_drop(bridge), first=True))
    return [
        *rules,
        Shared(f"-A {_STAGE1} {_ANY_POLICY} -j RETURN", first=False),
        Shared(f"-A {_STAGE2} -o {bridge} {_ANY_POLICY} -j DROP", first=True),
        Shared(f"-A {_STAGE2} {_ANY_POLICY} -j RETURN", first=False),
    ]


def _policy(name: str) -> str:
    return f'-m comment --comment "CNI firewall plugin rules (ingressPolicy: {name})"'


def _same_bridge_drop(bridge: str) -> str:
    return f"-A {_STAGE1} -i {bridge} -o {bridge} {_policy('isolated')} -j DROP"


def _outdated(ingress: Ingress) -> list[str]:
    """The bridge's rules of the other policy, which an earlier configuration may have made."""
    bridge = ingress.bridge
    other = _policy("same-bridge" if ingress.isolated else "isolated")
    rules = [f"-A {_STAGE1} -i {bridge} ! -o {bridge} {other} -j {_STAGE2}"]
    return rules if ingress.isolated else [*rules, _same_bridge_drop(bridge)]


def _own_rules(addresses: list[Prefix]) -> list[str]:
    """The two rules of each address."""
    return [
        rule
        for address in addresses
        for rule in (
            f"-A {_FORWARD} -d {address} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            f"-A {_FORWARD} -s {address} -j ACCEPT",
        )
    ]


def _add_family(
    v6: bool, shared: list[Shared], addresses: list[Prefix], ingress: Ingress | None
) -> None:
    if not shared:
        return None
    own = _own_rules(addresses)
    if _write(v6, shared, addresses, ingress):
        return None
    chain = _FORWARD if own else _STAGE1
    if not iptables.has_legacy_table(v6, "filter") and iptables.has_nft_chain(v6, "filter", chain):
        present = _present(v6, addresses)
        lines = [_edit("-C", item.rule) for item in shared]
        try:
            return iptables.restore(
                v6, "filter", [*lines, *(rule for rule in own if rule not in present)]
            )
        except IptablesMissing:
            raise
        except IptablesError:
            pass  # a shared rule is missing: read the table
    return _complete(v6, shared, own, ingress)


def _write(
    v6: bool, shared: list[Shared], addresses: list[Prefix], ingress: Ingress | None
) -> bool:
    """Make the rules over netlink; False if that cannot be done (netfilter/iptables_netlink.py)."""
    from ...netfilter import iptables_netlink

    def missing(rules: iptables_netlink.Rules) -> list[str] | None:
        saved = rules.saved([item.rule for item in shared])
        if saved is None:
            return None
        for address in addresses:
            there = [Rule(0, "", raw) for raw in rules.of(_FORWARD) if address.ip in raw]
            kinds = {_kind(rule, v6, address.ip) for rule in there}
            saved += [rule for rule in _own_rules([address]) if _option(rule) in kinds]
        return _missing(saved, shared, _own_rules(addresses), ingress)

    return iptables_netlink.change(v6, "filter", missing)


def _option(own_rule: str) -> str:
    """The option of a rule of `_own_rules`: -d (destination) or -s (source)."""
    return own_rule.split()[2]


def _present(v6: bool, addresses: list[Prefix]) -> set[str]:
    """Those of the addresses' rules that iptables-nft has."""
    there = {(ip, kind) for ip, kind, _ in _nft_rules(v6, addresses)}
    return {
        rule
        for address in addresses
        for rule in _own_rules([address])
        if (address.ip, _option(rule)) in there
    }


def _complete(v6: bool, shared: list[Shared], own: list[str], ingress: Ingress | None) -> None:
    """Read the table and add the missing rules; repeat if others changed it meanwhile."""
    for attempt in range(1, _TRIES + 1):
        lines = _missing(iptables.save(v6, "filter"), shared, own, ingress)
        if not lines:
            return None
        try:
            return iptables.restore(v6, "filter", lines)
        except IptablesError:
            if attempt == _TRIES:
                raise
    return None


def _missing(
    saved: list[str], shared: list[Shared], own: list[str], ingress: Ingress | None
) -> list[str]:
    """The lines for iptables-restore that complete the table."""
    chains = {line[1:].partition(" ")[0] for line in saved if line.startswith(":")}
    rules = [item.rule for item in shared]
    wanted = dict.fromkeys(name for rule in rules for name in _chains(rule))
    lines = [f"-N {name}" for name in wanted if name not in chains]
    if ingress is not None:
        lines += [_edit("-D", rule) for rule in _outdated(ingress) if rule in saved]
    for item in shared:
        if item.rule not in saved:
            lines.append(_edit("-I" if item.first else "-A", item.rule))
    if _isolation_is_late(saved, rules):
        # to the front, in one transaction: isolation is in force all the time
        lines += [_edit("-D", _ISOLATION), _edit("-I", _ISOLATION)]
    return lines + [rule for rule in own if rule not in saved]


def _chains(rule: str) -> list[str]:
    """The chains that a rule needs, its own and its target, without the built-in ones."""
    words = rule.split()
    builtin = ("FORWARD", "RETURN", "DROP", "ACCEPT")
    return [name for name in (words[1], words[-1]) if name not in builtin]


def _isolation_is_late(saved: list[str], rules: list[str]) -> bool:
    """Does the jump to CNI-FORWARD, which accepts, come before isolation's jump?"""
    if _ISOLATION not in saved or _JUMP not in rules:
        return False  # nothing to compare, or both are made now, in the right order
    # a jump that is missing will be made in front
    return _JUMP not in saved or saved.index(_JUMP) < saved.index(_ISOLATION)


def _edit(command: str, rule: str) -> str:
    return f"{command}{rule[2:]}"


def check(want: Want, *, accept: bool = True) -> list[str]:
    """What is missing, a line each.

    Comments are not compared: isolation's rules had others in older versions of the reference.
    """
    problems = []
    for v6, addresses in want.families:
        tool = "ip6tables" if v6 else "iptables"
        rules = [item.rule for item in _shared(want, accept)]
        rules += _own_rules(addresses) if accept else []
        try:
            saved = _saved(v6, rules)
        except IptablesError as error:
            problems.append(f"{tool} cannot be read: {error}")
            continue
        have = {_without_comment(line) for line in saved}
        problems += [
            _difference(rule, tool) for rule in rules if _without_comment(rule) not in have
        ]
        if _isolation_is_late(saved, rules):
            problems.append(f"the jump to {_STAGE1} comes after that to {_FORWARD} in {tool}")
    return problems


def _saved(v6: bool, rules: list[str]) -> list[str]:
    """These rules, if all of them exist; else the whole table. Raises IptablesError."""
    from ...netfilter import iptables_netlink

    present = iptables_netlink.present(v6, "filter", rules)
    return present if len(present) == len(set(rules)) else iptables.save(v6, "filter")


def _without_comment(rule: str) -> str:
    before, _, rest = rule.partition(' -m comment --comment "')
    return before + rest.partition('"')[2] if rest else rule


def _difference(rule: str, tool: str) -> str:
    chain = rule.split()[1]
    what = "rule"
    if chain == "FORWARD" or "admin overrides" in rule:
        what = f"{chain} rule"
    return gone(f"expected {what} [{rule.partition(f'{chain} ')[2]}] not found in {tool}")


def teardown(owner: Owner, addresses: list[Prefix], zone: str) -> None:
    """Remove the addresses' rules from both variants of iptables; chains stay. Raises CNIError."""
    _ = owner, zone  # as in the reference, no rule names its owner
    errors: list[CNIError] = []
    for v6, family in by_family(addresses):
        try:
            if iptables.has_nft_chain(v6, "filter", _FORWARD):
                _retrying(_remove_nft, v6, family)
            if iptables.has_legacy_table(v6, "filter"):
                _retrying(_remove_legacy, v6, family)
        except IptablesError as error:
            if isinstance(error, IptablesUnknown) or iptables.usable(v6):
                text = f"failed to remove firewall rules with iptables: {error.msg}"
                errors.append(CNIError(text, error.details))
    if errors:
        raise join(errors)


def may_have(addresses: list[Prefix]) -> bool:
    """May there be rules for one of these addresses? True if unknown; runs no program."""
    return any(
        iptables.has_legacy_table(v6, "filter") or bool(_nft_rules(v6, family))
        for v6, family in by_family(addresses)
    )


def gc(network: str, keep: list[Owner], addresses: list[Prefix], zone: str) -> None:
    """As `teardown`."""
    _ = keep
    teardown(Owner(network, "", ""), addresses, zone)


def status() -> None:
    """Raise CNIError if the tool is missing or fails."""
    if not iptables.usable(v6=False):
        raise CNIError(
            "iptables is unusable: `iptables --wait -t filter -S INPUT` fails",
            'without that key, or with "backend": "nftables", it is not needed',
        )


def _retrying(operation: Callable[[bool, list[Prefix]], None], *args: object) -> None:
    """Try again when it fails: another process may have removed the same rules meanwhile."""
    for attempt in range(1, _TRIES + 1):
        try:
            return operation(*args)  # type: ignore[arg-type]
        except IptablesError:
            if attempt == _TRIES:
                raise
    return None


def _remove_nft(v6: bool, addresses: list[Prefix]) -> None:
    stale = [rule.handle for _, _, rule in _nft_rules(v6, addresses)]
    try:
        Table("ip6" if v6 else "ip", "filter").delete([(_FORWARD, handle) for handle in stale])
    except NetlinkError as error:
        if error.errno == ENOENT:
            raise IptablesError("another process removes the same rules") from None
        raise IptablesError(f"deleting rules of {_FORWARD}: {error}") from None


def _nft_rules(v6: bool, addresses: list[Prefix]) -> list[tuple[bytes, str, Rule]]:
    """The addresses' rules in iptables-nft's chain: (address, "-d" or "-s", rule).

    The chain is listed once, however many addresses there are. For a single address, only rules
    whose message contains it are parsed.
    """
    if not addresses:
        return []
    wanted = {address.ip for address in addresses}
    mark = addresses[0].ip if len(addresses) == 1 else b""
    try:
        rules = Table("ip6" if v6 else "ip", "filter").find_rules_with(_FORWARD, mark)
    except NetlinkError:
        return []  # no rules without nftables in the kernel
    theirs = []
    for rule in rules:
        address = next(iter(rule.compared), b"")
        kind = _kind(rule, v6, address) if address in wanted else ""
        if kind:
            theirs.append((address, kind, rule))
    return theirs


def _kind(rule: Rule, v6: bool, address: bytes) -> str:
    """Which of the address's two rules this is ("-d", "-s"); "" for an administrator's rule."""
    names = [name for name, _ in rule.expressions if name != "counter"]
    if names[:2] != ["payload", "cmp"] or rule.compared[0] != address or not rule.accepts:
        return ""
    if names == ["payload", "cmp", "immediate"] and rule.offsets == [_SOURCE[v6]]:
        return "-s"
    # the state is compared by xtables' conntrack, or by expressions of newer versions of iptables
    state = names[2:] in (["match", "immediate"], ["ct", "bitwise", "cmp", "immediate"])
    if state and rule.offsets == [_DESTINATION[v6]] and _is_state(rule, names[2]):
        return "-d"
    return ""


def _is_state(rule: Rule, name: str) -> bool:
    return name == "ct" or b"conntrack\0" in rule.raw


def _remove_legacy(v6: bool, addresses: list[Prefix]) -> None:
    saved = iptables.save(v6, "filter")
    own = set(_own_rules(addresses))
    lines = [_edit("-D", line) for line in saved if line in own]
    if lines:
        iptables.restore(v6, "filter", lines)
