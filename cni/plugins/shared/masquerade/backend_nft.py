"""Masquerading with nftables: a rule for each address in the reference's table
(docs/spec/common.md §6.2).

    table inet cni_plugins_masquerade
      chain postrouting   hook: not for multicast; to masq_checks
      chain masq_checks   from one address to outside its subnet: masquerade, or the source that
                          `outboundAddr` says; the owner as comment

One transaction makes an attachment's rules; if the shared part is incomplete, the transaction makes
that anew, too. DEL finds rules by the owner's key in their comment. It reads the rules with the
handles that the ADD has noted; if one of them is missing or another's (after `cni reload`, or for a
container that the reference started), it reads the whole chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....kernel.errors import NetlinkError, Unusable
from ....netfilter import nft, uapi
from ....netfilter.table import Rule, Table, parse_rule
from ....owner import Owner, network_key
from ....protocol.address import Prefix
from ....protocol.errors import CNIError
from . import ANY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ....netfilter.nft import Change
    from . import Outbound

TABLE, CHECKS = "cni_plugins_masquerade", "masq_checks"
_HOOK = "postrouting"
_COMMENT = "Masquerading for plugins from github.com/containernetworking/plugins"
_CHECKS_COMMENT = (
    "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"
)
_MULTICAST = Prefix.parse("224.0.0.0/4"), Prefix.parse("ff00::/8")
# Values that the postrouting chain's rules compare: the family, and an address's first bytes.
_POSTROUTING_RULES = [[b"\2", b"\xe0\0\0\0"], [b"\x0a", b"\xff"], []]


def setup(
    owner: Owner, prefixes: list[Prefix], *, first: bool = False, outbound: Outbound = ANY
) -> list[int]:
    """Make the rules of these addresses in place of the owner's old ones; return their handles.

    Raises CNIError.

    To find the old ones the kernel lists the rules of all containers, so `first` skips that. If an
    earlier ADD was killed before it wrote its note, its rule then exists twice; DEL removes both.
    """
    from ....netfilter import expressions

    table = Table("inet", TABLE)
    rules = [_expressions(prefix, outbound.get(prefix.is_v4)) for prefix in prefixes]
    new = [nft.echoed(expressions.new_rule(table, CHECKS, rule, owner.comment)) for rule in rules]

    def plan() -> list[Change]:
        shared = [] if _is_complete() else _skeleton()
        # rules of an earlier attachment of this name that had no DEL
        old = [] if first else _rules(owner)
        stale = [table.without_rule(CHECKS, rule.handle) for rule in old]
        return [*shared, *stale, *new]

    try:
        told = nft.settle(plan)
    except NetlinkError as error:
        text = f"failed to set up masquerading with nftables: {error}"
        raise CNIError(text, error.details or nft.UNUSABLE) from None
    made = [parse_rule(each, TABLE, CHECKS) for each in told]
    handles = [rule.handle for rule in made if rule is not None and rule.comment == owner.comment]
    return handles if len(handles) == len(new) else []  # all or none: DEL must not miss one


def _is_complete() -> bool:
    rules = Table("inet", TABLE).find_rules_with(_HOOK, b"")
    return (
        [rule.compared for rule in rules] == _POSTROUTING_RULES
        and rules[-1].leads_to == CHECKS  # so that chain exists, too
    )


def _skeleton() -> list[Change]:
    """The table and its chains; the postrouting chain is filled anew."""
    from ....netfilter import expressions as kernel

    table = Table("inet", TABLE)
    ignored = [
        [kernel.nfproto(prefix.is_v4), kernel.destination(prefix), kernel.verdict(uapi.NFT_RETURN)]
        for prefix in _MULTICAST
    ]
    return [
        kernel.new_table(table, _COMMENT),
        kernel.new_chain(table, CHECKS, _CHECKS_COMMENT),
        kernel.new_base_chain(table, _HOOK, _HOOK, "nat", 100),
        table.without_rules(_HOOK),
        *(kernel.new_rule(table, _HOOK, rule) for rule in (*ignored, [kernel.goto(CHECKS)])),
    ]


def _expressions(prefix: Prefix, fixed: bytes | None) -> list[bytes]:
    """From the address to outside its subnet: masquerade, or leave under the `fixed` address."""
    from ....netfilter import expressions as kernel

    return [
        kernel.nfproto(prefix.is_v4),
        kernel.source(prefix.host),
        kernel.destination(prefix.network, kernel.NEQ),
        *([kernel.load(fixed), kernel.snat(prefix.is_v4)] if fixed else [kernel.masquerade()]),
    ]


def _rules(owner: Owner) -> list[Rule]:
    return Table("inet", TABLE).find_rules(CHECKS, owner.key)


def teardown(
    owner: Owner,
    mine: list[Prefix],
    others: Callable[[], list[Prefix]],
    handles: Sequence[int] = (),
) -> None:
    """Remove the owner's rules: the key in their comments tells interfaces apart."""
    _ = mine, others
    if not _delete_noted(owner, handles):
        _delete(owner.key, set())


def _delete_noted(owner: Owner, handles: Sequence[int]) -> bool:
    """Delete the rules with these handles if all exist and are the owner's; else False."""
    try:
        if not handles or len(_noted(owner, handles)) != len(handles):
            return False
        Table("inet", TABLE).delete([(CHECKS, handle) for handle in handles])
    except NetlinkError:
        return False  # the caller lists the chain
    return True


def _noted(owner: Owner, handles: Sequence[int]) -> list[Rule]:
    """The rules with these handles that are the owner's."""
    rules = (Table("inet", TABLE).rule(CHECKS, handle) for handle in handles)
    return [rule for rule in rules if rule is not None and rule.comment.startswith(owner.key)]


def gc(network: str, keep: list[Owner]) -> None:
    """Remove the rules of the network's attachments that are not in `keep`. Raises CNIError."""
    _delete(f"{network_key(network)}-", {owner.key for owner in keep})


def _delete(prefix: str, keep: set[str]) -> None:
    try:
        Table("inet", TABLE).delete_matching(CHECKS, prefix, keep)
    except Unusable:
        return
    except NetlinkError as error:
        raise CNIError(f"failed to remove masquerading with nftables: {error}") from None


def check(
    owner: Owner,
    prefixes: list[Prefix],
    handles: Sequence[int] = (),
    outbound: Outbound = ANY,
) -> dict[Prefix, list[str]]:
    """The addresses without their rule, each with []: an address has one rule or none."""
    try:
        missing = _without_rule(prefixes, _noted(owner, handles), outbound)
        if missing:
            missing = _without_rule(prefixes, _rules(owner), outbound)
    except NetlinkError:
        missing = prefixes  # the kernel has no nftables, or cannot be asked now
    return {prefix: [] for prefix in missing}


def _without_rule(prefixes: list[Prefix], rules: list[Rule], outbound: Outbound) -> list[Prefix]:
    have = {(value, rule.loaded) for rule in rules for value in rule.compared}
    wanted = {prefix: (prefix.ip, outbound.get(prefix.is_v4, b"")) for prefix in prefixes}
    return [prefix for prefix in prefixes if wanted[prefix] not in have]
