"""Masquerading with iptables: a chain for each container, as in the reference
(docs/spec/common.md §6.1).

    CNI-<hash>    of network and container: accept what stays in the subnet, masquerade the rest
                  (or give it the source that `outboundAddr` says)
    POSTROUTING   a jump to that chain from each of the container's addresses

ADD is one transaction for each family: over netlink if the node's tool is iptables-nft
(netfilter/iptables_netlink.py), else one iptables-restore. It creates everything, and fails as a
whole if the chain exists already; only then the table is read and the difference applied. Rules of
iptables-nft are also removed over netlink, without a child process.

QUIRK: the reference leaves rules behind if a container's addresses are no longer known, or have
changed since its ADD; here they are removed with the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ....kernel.errors import IptablesError, IptablesUnknown, NetlinkError
from ....netfilter import iptables
from ....netfilter.table import Table
from ....owner import Owner
from ....protocol.address import InvalidAddress, Prefix, by_family, format_ip
from ....protocol.errors import CNIError, join
from . import ANY

if TYPE_CHECKING:
    from . import Outbound

_POSTROUTING = "POSTROUTING"
_RETRIES = 5

Others = Callable[[], list[Prefix]]
# The source that a jump compares: the address, or the bytes of a subnet's prefix.
_Source = bytes
# Sources of all jumps to a chain → for each: has this jump to be deleted?
_Select = Callable[[list[_Source]], list[bool]]


def setup(
    owner: Owner, prefixes: list[Prefix], *, first: bool = False, outbound: Outbound = ANY
) -> list[int]:
    """Make the missing rules of these addresses. Raises IptablesError.

    Returns the handles of the jumps, of both families, as far as they are known.
    """
    _ = first  # the rules are in a chain of the owner's own
    done: list[Prefix] = []
    handles: list[int] = []
    for v6, family in by_family(prefixes):
        try:
            handles += _add(owner, v6, family, outbound)
        except IptablesError:
            if done:
                _take_back(owner, done)
            raise
        done += family
    return handles


def _take_back(owner: Owner, done: list[Prefix]) -> None:
    def select(sources: list[_Source]) -> list[bool]:
        return [_is_from(source, done) for source in sources]

    v6 = not done[0].is_v4
    _each_family([(v6, _remove, (owner.chain(), v6, select))])


def _add(owner: Owner, v6: bool, prefixes: list[Prefix], outbound: Outbound) -> list[int]:
    """Make the rules of a family; the handles of the jumps, as far as they are known."""
    from ....netfilter import iptables_netlink

    rules = [rules_of(owner, prefix, outbound) for prefix in prefixes]
    accept = list(dict.fromkeys(rule.accept for rule in rules))  # two addresses, one subnet
    jumps = [rule.jump for rule in rules]
    masquerade = rules[0].masquerade
    # -N fails if the chain exists, and without its chain the owner has no rules.
    everything = [f"-N {owner.chain()}", *accept, masquerade, *jumps]
    made: dict[str, list[int]] = {_POSTROUTING: []}
    if iptables_netlink.change(v6, "nat", lambda _: everything, made):
        return made[_POSTROUTING]
    try:
        iptables.restore(v6, "nat", everything)
    except IptablesError as error:
        saved = _saved_if_any(owner, v6)
        if not saved:
            raise IptablesError(
                f"failed to set up masquerading with iptables: {error.msg}", error.details
            ) from None
        # Another interface of the container, or a repeated ADD. Accept rules go to the front:
        # traffic within the subnet must not reach the rule that masquerades the rest.
        lines = [f"-I{rule[2:]}" for rule in accept if rule not in saved]
        lines += [rule for rule in (masquerade, *jumps) if rule not in saved]
        lines += [_delete(rule) for rule in saved if _is_stale(owner, rule, masquerade)]
        if lines:
            iptables.restore(v6, "nat", lines)
    return []


def _is_stale(owner: Owner, rule: str, masquerade: str) -> bool:
    """Does a saved rule of the owner's chain translate to another source than `masquerade`?"""
    target = rule.rpartition(" -j ")[2].partition(" ")[0]
    return (
        rule.startswith(f"-A {owner.chain()} ")
        and target in ("MASQUERADE", "SNAT")
        and rule != masquerade
    )


class Rules(NamedTuple):
    """The rules for one address, in iptables-save's words."""

    accept: str
    masquerade: str
    jump: str


def rules_of(owner: Owner, prefix: Prefix, outbound: Outbound = ANY) -> Rules:
    """The rules that masquerade an address (with its subnet's prefix length)."""
    chain, comment = owner.chain(), iptables.comment(owner.iptables_comment)
    subnet = f"-d {prefix.network} " if prefix.length else ""
    multicast = "224.0.0.0/4" if prefix.is_v4 else "ff00::/8"
    fixed = outbound.get(prefix.is_v4)
    target = f"SNAT --to-source {format_ip(fixed)}" if fixed else "MASQUERADE"
    return Rules(
        f"-A {chain} {subnet}{comment} -j ACCEPT",
        f"-A {chain} ! -d {multicast} {comment} -j {target}",
        f"-A {_POSTROUTING} -s {prefix.host} {comment} -j {chain}",
    )


def check(
    owner: Owner,
    prefixes: list[Prefix],
    handles: Sequence[int] = (),
    outbound: Outbound = ANY,
) -> dict[Prefix, list[str]]:
    """The addresses that lack one of their three rules, each with those that it has."""
    problems = {}
    for v6, family in by_family(prefixes):
        rules = (rule for one in family for rule in rules_of(owner, one, outbound))
        wanted = list(dict.fromkeys(rules))
        saved = _present(owner, v6, wanted, handles)
        for prefix in family:
            want = rules_of(owner, prefix, outbound)
            if not saved.issuperset(want):
                problems[prefix] = [rule for rule in want if rule in saved]
    return problems


def _present(owner: Owner, v6: bool, wanted: list[str], handles: Sequence[int]) -> set[str]:
    """The wanted rules that exist; POSTROUTING, which may be long, is read only if needed."""
    from ....netfilter import iptables_netlink

    for noted in ({_POSTROUTING: handles}, None) if handles else (None,):
        saved = set(iptables_netlink.present(v6, "nat", wanted, noted))
        if saved.issuperset(wanted):
            return saved
    return set(_saved_if_any(owner, v6))


def _saved(chain: str, v6: bool) -> list[str]:
    """All lines of the nat table that name the chain. Raises IptablesError."""
    return [line for line in iptables.save(v6, "nat") if chain in line]


def _saved_if_any(owner: Owner, v6: bool) -> list[str]:
    try:
        return _saved(owner.chain(), v6)
    except IptablesError:
        return []


def teardown(owner: Owner, mine: list[Prefix], others: Others, handles: Sequence[int] = ()) -> None:
    """Remove the owner's jumps, and the chain unless others jump to it. Raises CNIError."""

    def select(sources: list[_Source]) -> list[bool]:
        if all(_is_from(source, mine) for source in sources):
            return [True] * len(sources)
        kept = others()
        return [not _is_from(source, kept) for source in sources]

    _each_family([(v6, _remove, (owner.chain(), v6, select, handles)) for v6 in (False, True)])


def _remove(chain: str, v6: bool, select: _Select, handles: Sequence[int] = ()) -> None:
    """Remove the selected jumps to a chain, and the chain itself if no jump is left."""
    if iptables.has_nft_chain(v6, "nat", chain):
        _retrying(lambda: _remove_nft_variant(chain, v6, select, handles))
    elif iptables.has_legacy_table(v6, "nat"):
        _retrying(lambda: _remove_legacy_variant(chain, v6, select))


def _remove_nft_variant(chain: str, v6: bool, select: _Select, handles: Sequence[int]) -> None:
    """Remove the jumps, and the chain, over netlink; the tool would take 15 ms."""
    family = "ip6" if v6 else "ip"
    jumps = Table(family, "nat").jumps(_POSTROUTING, chain, handles)
    chosen = select([rule.compared[0] if rule.compared else b"" for rule in jumps])
    stale = [rule for rule, goes in zip(jumps, chosen, strict=True) if goes]
    unused = [chain] if len(stale) == len(jumps) else []
    try:
        Table(family, "nat").delete([(_POSTROUTING, rule.handle) for rule in stale], unused)
    except NetlinkError as error:
        if unused and not Table(family, "nat").has_chain(chain):
            return  # another process has removed it
        raise IptablesError(f"deleting chain {chain} in table nat: {error}") from None


def _remove_legacy_variant(chain: str, v6: bool, select: _Select) -> None:
    saved = _saved(chain, v6)
    if not saved:
        return
    jumps = [line for line in saved if line.endswith(f" -j {chain}")]
    chosen = select([_source(line) for line in jumps])
    lines = [_delete(line) for line, goes in zip(jumps, chosen, strict=True) if goes]
    if len(lines) == len(jumps):
        lines += [f"-F {chain}", f"-X {chain}"]
    if lines:
        iptables.restore(v6, "nat", lines)


def _source(line: str) -> _Source:
    """The source address of a saved rule, cut to the bytes that its prefix covers."""
    try:
        prefix = Prefix.parse(line.partition(" -s ")[2].partition(" ")[0])
    except InvalidAddress:
        return b""
    return prefix.ip if prefix.length % 8 else prefix.ip[: prefix.length // 8]


def _is_from(source: _Source, addresses: list[Prefix]) -> bool:
    """Is the source one of these addresses?

    Older versions of the reference wrote the address with its subnet's prefix length; then the
    kernel compares as many bytes of it, or all under a mask.
    """
    return any(source and (a.ip.startswith(source) or a.network.ip == source) for a in addresses)


def gc(network: str, keep: list[Owner]) -> None:
    """Remove the chains of the network's containers that are not in `keep`. Raises CNIError."""
    kept = {owner.chain() for owner in keep}
    _each_family([(v6, _collect, (network, v6, kept)) for v6 in (False, True)])


def _collect(network: str, v6: bool, kept: set[str]) -> None:
    nat = (v6, "nat")
    if not iptables.may_be_used(*nat, _POSTROUTING):
        return
    chains = {chain for line in iptables.save(*nat) if (chain := _chain_of(network, line))}
    for chain in sorted(chains - kept):
        _remove(chain, v6, lambda sources: [True] * len(sources))


def _chain_of(network: str, line: str) -> str | None:
    """The masquerading chain that a saved rule belongs to, if its comment names the network."""
    opening = iptables.comment(f'name: "{network}" id: "')[:-1]
    _, named, rest = line.partition(opening)
    if not line.startswith("-A ") or not named:
        return None
    chain = Owner(network, rest.partition('\\"')[0], "").chain()
    # Other plugins use the same comment for chains of other names.
    return chain if chain in (line.split()[1], line.rpartition(" -j ")[2]) else None


def _delete(rule: str) -> str:
    return f"-D{rule[2:]}"


def _retrying(operation: Callable[[], None]) -> None:
    """Try again when it fails: another process may have removed the same rules meanwhile."""
    for attempt in range(1, _RETRIES + 1):
        try:
            return operation()
        except IptablesError:
            if attempt == _RETRIES:
                raise
    return None


def _each_family(jobs: list[tuple[bool, Callable[..., None], tuple[object, ...]]]) -> None:
    """Run every job; raise the errors of those families whose iptables is usable."""
    errors: list[CNIError] = []
    for v6, function, args in jobs:
        try:
            function(*args)
        except IptablesError as error:
            # a failed request says nothing about iptables, and the tool nothing about the request
            if isinstance(error, IptablesUnknown) or iptables.usable(v6):
                text = f"failed to remove masquerading with iptables: {error.msg}"
                errors.append(CNIError(text, error.details))
    if errors:
        raise join(errors)
