"""Masquerading what containers send to the world outside their subnet (docs/spec/common.md §6).

Two backends, with the reference's names and rules, so that either implementation cleans up after
the other. nftables: one transaction to set up, through libnftables only if the table is not there
or not as it should be; removal needs the owner only, not the addresses. iptables: one transaction a
family, over netlink where that is iptables-nft's (netfilter/iptables_netlink.py), else one
iptables-restore. It is optimistic: it creates everything and fails as a whole if the chain is there
already; only then is the table read and the difference applied. What iptables-nft has is removed
over netlink, too, without a fork.

QUIRK: the reference leaves iptables rules behind when a container's addresses are no longer known;
we find them by the chain's name, which is derived from network and container. The name does not
tell apart two interfaces of a container in the same network: without addresses both lose theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ....kernel.errors import IptablesError, KernelError, NetlinkError, NftError, Unusable
from ....netfilter import iptables, nft
from ....netfilter.table import Rule, Table
from ....owner import Owner, network_key
from ....protocol.address import Prefix, format_ip
from ....protocol.errors import CNIError, from_exception, join

if TYPE_CHECKING:
    from ....netfilter.nft import Change

_TABLE, _CHECKS = "cni_plugins_masquerade", "masq_checks"
_POSTROUTING = "POSTROUTING"
_RETRIES = 5

# The postrouting chain is refilled if it is not right, whatever was there before.
_SKELETON = f"""\
add table inet {_TABLE} {{ \
comment "Masquerading for plugins from github.com/containernetworking/plugins"; }}
add chain inet {_TABLE} {_CHECKS} {{ \
comment "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"; }}
add chain inet {_TABLE} postrouting {{ type nat hook postrouting priority 100; }}
flush chain inet {_TABLE} postrouting
add rule inet {_TABLE} postrouting ip daddr == 224.0.0.0/4 return
add rule inet {_TABLE} postrouting ip6 daddr == ff00::/8 return
add rule inet {_TABLE} postrouting goto {_CHECKS}
"""
# What these rules compare with: the family and the beginning of the address.
_POSTROUTING_RULES = [[b"\2", b"\xe0\0\0\0"], [b"\x0a", b"\xff"], []]


class Backend(NamedTuple):
    """The operations of a backend; all act on the current network namespace."""

    setup: Callable[[Owner, list[Prefix]], None]
    teardown: Callable[[Owner, list[Prefix]], None]
    gc: Callable[[str, list[Owner]], None]


def check_backend(backend: str | None) -> None:
    """Raises CNIError ``unknown ipmasq backend "x"``."""
    if backend and backend not in _BACKENDS:
        raise CNIError(
            f'unknown ipmasq backend "{backend}"', 'ipMasqBackend is "iptables" or "nftables"'
        )


def setup(owner: Owner, prefixes: list[Prefix], backend: str | None) -> None:
    """Masquerade the traffic from these addresses to outside their subnets; again is no error.

    Without a backend, iptables, unless that is unusable and nftables is not. Raises CNIError; then
    nothing of it is left.
    """
    check_backend(backend)
    if not prefixes:
        return
    if backend:
        _BACKENDS[backend].setup(owner, prefixes)
    else:
        _auto_setup(owner, prefixes)


def _auto_setup(owner: Owner, prefixes: list[Prefix]) -> None:
    try:
        _iptables_setup(owner, prefixes)
    except IptablesError as error:
        # Asking whether iptables is usable would cost a fork each time; its failure asks for it.
        if iptables.usable(v6=False):
            raise
        try:
            _nft_setup(owner, prefixes)
        except (CNIError, KernelError) as other:
            raise CNIError(
                error.msg, f"and nftables, tried instead: {other}; {error.details}".rstrip("; ")
            ) from None


def teardown(owner: Owner, prefixes: list[Prefix]) -> None:
    """Remove the owner's rules of both backends; `prefixes` may be empty. Raises CNIError.

    Nothing to remove is no error, nor is a backend that cannot be used here.
    """
    _both(lambda backend: backend.teardown(owner, prefixes))


def gc(network: str, keep: list[Owner]) -> None:
    """Remove the rules of the network's attachments that are not in `keep`. Raises CNIError."""
    _both(lambda backend: backend.gc(network, keep))


def check(owner: Owner, prefixes: list[Prefix]) -> list[str]:
    """What is missing of the owner's rules, a line each; either backend's will do."""
    sources = {value for rule in _nft_rules(owner) for value in rule.compared}
    missing = []
    for v6, family in _families(prefixes):
        rest = [prefix for prefix in family if prefix.ip not in sources]
        saved = set(_saved_if_any(owner, v6) if rest else ())
        for prefix in rest:
            want = _iptables_rules(owner, prefix)
            if not saved.issuperset(want):
                missing.append(_difference(prefix, [rule for rule in want if rule in saved]))
    return missing


def _difference(prefix: Prefix, found: list[str]) -> str:
    have = f"only {'; '.join(found)}" if found else "none"
    return (
        f"masquerading of {prefix}: want its rule in inet {_TABLE} {_CHECKS}, or the chain and the "
        f"POSTROUTING rule in iptables' nat table; have {have}"
    )


def _both(operation: Callable[[Backend], None]) -> None:
    errors = []
    for backend in _BACKENDS.values():
        try:
            operation(backend)
        except (CNIError, KernelError) as error:
            errors.append(from_exception(error))
    if errors:
        raise join(errors)


def _families(prefixes: list[Prefix]) -> list[tuple[bool, list[Prefix]]]:
    """The prefixes by family, (is IPv6, those), families without any left out."""
    both = ((False, [p for p in prefixes if p.is_v4]), (True, [p for p in prefixes if not p.is_v4]))
    return [(v6, family) for v6, family in both if family]


# --- nftables -------------------------------------------------------------------------------------


def _nft_setup(owner: Owner, prefixes: list[Prefix]) -> None:
    if not _nft_add(owner, prefixes):
        _nft_render(owner, prefixes)


def _nft_add(owner: Owner, prefixes: list[Prefix]) -> bool:
    """Add the rules where the rest is as it should be; False if it is not, or cannot be seen."""
    from ....netfilter import expressions

    new = [
        expressions.new_rule(
            Table("inet", _TABLE), _CHECKS, _nft_expressions(prefix), owner.comment
        )
        for prefix in prefixes
    ]

    def plan() -> list[Change] | None:
        if not _nft_is_complete():
            return None
        stale = [
            Table("inet", _TABLE).without_rule(_CHECKS, rule.handle) for rule in _nft_rules(owner)
        ]
        return [*stale, *new]

    return nft.attempt(plan)  # else libnftables will say what is wrong


def _nft_is_complete() -> bool:
    rules = Table("inet", _TABLE).find_rules_with("postrouting", b"")
    return (
        [rule.compared for rule in rules] == _POSTROUTING_RULES
        and f"{_CHECKS}\0".encode() in rules[-1].raw  # so this chain exists, too
    )


def _nft_expressions(prefix: Prefix) -> list[bytes]:
    """What `_nft_rule` says, in the kernel's terms."""
    from ....netfilter import expressions as nft_rules

    return [
        nft_rules.nfproto(prefix.is_v4),
        nft_rules.source(prefix.host),
        nft_rules.destination(prefix.network, nft_rules.NEQ),
        nft_rules.masquerade(),
    ]


def _nft_render(owner: Owner, prefixes: list[Prefix]) -> None:
    rules = "".join(_nft_rule(owner, prefix) for prefix in prefixes)
    context = nft.shared()
    for attempt in range(1, _RETRIES + 1):
        # An earlier attachment under this name that was never removed.
        stale = "".join(
            f"delete rule inet {_TABLE} {_CHECKS} handle {rule.handle}\n"
            for rule in _nft_rules(owner)
        )
        try:
            return context.run_text(_SKELETON + stale + rules)
        except NftError as error:
            # Somebody else deleted such a rule in between: look again.
            if not (stale and error.missing) or attempt == _RETRIES:
                raise CNIError(
                    f"failed to set up masquerading with nftables: {error.msg}"
                ) from None
    return None


def _nft_rule(owner: Owner, prefix: Prefix) -> str:
    protocol = "ip" if prefix.is_v4 else "ip6"
    return (
        f"add rule inet {_TABLE} {_CHECKS} {protocol} saddr == {format_ip(prefix.ip)} "
        f'{protocol} daddr != {prefix.network} masquerade comment "{owner.comment}"\n'
    )


def _nft_rules(owner: Owner) -> list[Rule]:
    try:
        return Table("inet", _TABLE).find_rules(_CHECKS, owner.key)
    except NetlinkError:
        return []  # a kernel without nftables has no rules


def _nft_teardown(owner: Owner, _prefixes: list[Prefix]) -> None:
    _nft_delete(owner.key, set())


def _nft_gc(network: str, keep: list[Owner]) -> None:
    _nft_delete(f"{network_key(network)}-", {owner.comment for owner in keep})


def _nft_delete(prefix: str, keep: set[str]) -> None:
    try:
        Table("inet", _TABLE).delete_matching(_CHECKS, prefix, keep)
    except Unusable:
        return
    except NetlinkError as error:
        raise CNIError(f"failed to remove masquerading with nftables: {error}") from None


# --- iptables -------------------------------------------------------------------------------------


def _iptables_setup(owner: Owner, prefixes: list[Prefix]) -> None:
    done: list[Prefix] = []
    for v6, family in _families(prefixes):
        try:
            _iptables_add(owner, v6, family)
        except IptablesError:
            if done:
                _iptables_teardown(owner, done)
            raise
        done += family


def _iptables_add(owner: Owner, v6: bool, prefixes: list[Prefix]) -> None:
    from ....netfilter import iptables_netlink

    rules = [_iptables_rules(owner, prefix) for prefix in prefixes]
    accept = list(dict.fromkeys(rule.accept for rule in rules))  # two addresses, one subnet
    jumps = [rule.jump for rule in rules]
    masquerade = rules[0].masquerade
    # -N fails when the chain is there, and nothing else of the owner can be there without it.
    everything = [f"-N {owner.chain()}", *accept, masquerade, *jumps]
    if iptables_netlink.change(v6, "nat", lambda _: everything):
        return
    try:
        iptables.restore(v6, "nat", everything)
    except IptablesError as error:
        saved = _saved_if_any(owner, v6)
        if not saved:
            raise IptablesError(
                f"failed to set up masquerading with iptables: {error.msg}", error.details
            ) from None
        # Another interface of the container, or a repeated ADD. What stays in the subnet has to be
        # accepted before the rule that masquerades the rest: these go to the front.
        lines = [f"-I{rule[2:]}" for rule in accept if rule not in saved]
        lines += [rule for rule in (masquerade, *jumps) if rule not in saved]
        if lines:
            iptables.restore(v6, "nat", lines)


class IptablesRules(NamedTuple):
    """The rules for one address, in iptables-save's words."""

    accept: str
    masquerade: str
    jump: str


def _iptables_rules(owner: Owner, prefix: Prefix) -> IptablesRules:
    chain, comment = owner.chain(), iptables.comment(owner.iptables_comment)
    subnet = f"-d {prefix.network} " if prefix.length else ""
    multicast = "224.0.0.0/4" if prefix.is_v4 else "ff00::/8"
    return IptablesRules(
        f"-A {chain} {subnet}{comment} -j ACCEPT",
        f"-A {chain} ! -d {multicast} {comment} -j MASQUERADE",
        f"-A {_POSTROUTING} -s {prefix.host} {comment} -j {chain}",
    )


def _saved(chain: str, v6: bool) -> list[str]:
    """All lines of the nat table that name the chain. Raises IptablesError."""
    return [line for line in iptables.save(v6, "nat") if chain in line]


def _saved_if_any(owner: Owner, v6: bool) -> list[str]:
    try:
        return _saved(owner.chain(), v6)
    except IptablesError:
        return []


def _iptables_teardown(owner: Owner, prefixes: list[Prefix]) -> None:
    families = _families(prefixes) or [(False, []), (True, [])]
    _each_family([(v6, _iptables_remove, (owner.chain(), v6, family)) for v6, family in families])


def _iptables_remove(chain: str, v6: bool, prefixes: list[Prefix]) -> None:
    """Remove the jumps from these addresses (from all, if none is given), and the unused chain."""
    if iptables.has_nft_chain(v6, "nat", chain):
        _retrying(lambda: _remove_nft_variant(chain, v6, prefixes))
    elif iptables.has_legacy_table(v6, "nat"):
        _retrying(lambda: _remove_legacy_variant(chain, v6, prefixes))


def _remove_nft_variant(chain: str, v6: bool, prefixes: list[Prefix]) -> None:
    """Over netlink: iptables-nft would take 15 ms for the same."""
    family = "ip6" if v6 else "ip"
    jumps = Table(family, "nat").find_rules_with(_POSTROUTING, f"{chain}\0".encode())
    stale = [rule for rule in jumps if not prefixes or _is_from(rule, prefixes)]
    unused = [chain] if len(stale) == len(jumps) else []
    try:
        Table(family, "nat").delete([(_POSTROUTING, rule.handle) for rule in stale], unused)
    except NetlinkError as error:
        if unused and not Table(family, "nat").has_chain(chain):
            return  # somebody else did it
        raise IptablesError(f"deleting chain {chain} in table nat: {error}") from None


def _is_from(rule: Rule, prefixes: list[Prefix]) -> bool:
    """Is the source address one of these?

    Older versions of the reference wrote the address with its subnet's prefix length; then the
    kernel compares as many bytes of it, or all under a mask.
    """
    source = rule.compared[0] if rule.compared else b""
    return any(source and (p.ip.startswith(source) or p.network.ip == source) for p in prefixes)


def _remove_legacy_variant(chain: str, v6: bool, prefixes: list[Prefix]) -> None:
    saved = _saved(chain, v6)
    if not saved:
        return
    jumps = [line for line in saved if line.endswith(f" -j {chain}")]
    sources = {f" -s {form} " for p in prefixes for form in (p.host, p.network)}
    stale = [line for line in jumps if not prefixes or any(s in line for s in sources)]
    lines = [_delete(line) for line in stale]
    if len(stale) == len(jumps):
        lines += [f"-F {chain}", f"-X {chain}"]
    if lines:
        iptables.restore(v6, "nat", lines)


def _iptables_gc(network: str, keep: list[Owner]) -> None:
    kept = {owner.chain() for owner in keep}
    _each_family([(v6, _iptables_collect, (network, v6, kept)) for v6 in (False, True)])


def _iptables_collect(network: str, v6: bool, kept: set[str]) -> None:
    nat = (v6, "nat")
    if not (iptables.has_nft_chain(*nat, _POSTROUTING) or iptables.has_legacy_table(*nat)):
        return
    chains = {chain for line in iptables.save(*nat) if (chain := _chain_of(network, line))}
    for chain in sorted(chains - kept):
        _iptables_remove(chain, v6, [])


def _chain_of(network: str, line: str) -> str | None:
    """The masquerading chain that a saved rule belongs to, if its comment names the network."""
    opening = iptables.comment(f'name: "{network}" id: "')[:-1]
    _, found, rest = line.partition(opening)
    if not line.startswith("-A ") or not found:
        return None
    chain = Owner(network, rest.partition('\\"')[0], "").chain()
    # Other plugins use the same comment for chains of other names.
    return chain if chain in (line.split()[1], line.rpartition(" -j ")[2]) else None


def _delete(rule: str) -> str:
    return f"-D{rule[2:]}"


def _retrying(operation: Callable[[], None]) -> None:
    """Again when it fails: somebody else may have removed the same between look and change."""
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
            if iptables.usable(v6):
                text = f"failed to remove masquerading with iptables: {error.msg}"
                errors.append(CNIError(text, error.details))
    if errors:
        raise join(errors)


_BACKENDS = {
    "iptables": Backend(_iptables_setup, _iptables_teardown, _iptables_gc),
    "nftables": Backend(_nft_setup, _nft_teardown, _nft_gc),
}
