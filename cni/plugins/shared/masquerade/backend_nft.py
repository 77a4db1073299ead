"""Masquerading with nftables: the reference's table, a rule an address (docs/spec/common.md §6.2).

    table inet cni_plugins_masquerade
      chain postrouting   hook: not for multicast; to masq_checks
      chain masq_checks   from one address to outside its subnet: masquerade; the owner as comment

Rules are made in one transaction: over netlink where table and chains are as they should be, else
by libnftables, which makes these, too. What is removed is found by the owner's key in the comment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....kernel.errors import NetlinkError, NftError, Unusable
from ....netfilter import nft
from ....netfilter.table import Rule, Table
from ....owner import Owner, network_key
from ....protocol.address import Prefix, format_ip
from ....protocol.errors import CNIError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ....netfilter.nft import Change

TABLE, CHECKS = "cni_plugins_masquerade", "masq_checks"
_RETRIES = 5

# The postrouting chain is refilled if it is not right, whatever was there before.
_SKELETON = f"""\
add table inet {TABLE} {{ \
comment "Masquerading for plugins from github.com/containernetworking/plugins"; }}
add chain inet {TABLE} {CHECKS} {{ \
comment "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"; }}
add chain inet {TABLE} postrouting {{ type nat hook postrouting priority 100; }}
flush chain inet {TABLE} postrouting
add rule inet {TABLE} postrouting ip daddr == 224.0.0.0/4 return
add rule inet {TABLE} postrouting ip6 daddr == ff00::/8 return
add rule inet {TABLE} postrouting goto {CHECKS}
"""
# What these rules compare with: the family and the beginning of the address.
_POSTROUTING_RULES = [[b"\2", b"\xe0\0\0\0"], [b"\x0a", b"\xff"], []]


def setup(owner: Owner, prefixes: list[Prefix]) -> None:
    """Make the rules of these addresses, instead of all that the owner had. Raises CNIError."""
    if not _add(owner, prefixes):
        _render(owner, prefixes)


def _add(owner: Owner, prefixes: list[Prefix]) -> bool:
    """Add the rules where the rest is as it should be; False if it is not, or cannot be seen."""
    from ....netfilter import expressions

    new = [
        expressions.new_rule(Table("inet", TABLE), CHECKS, _expressions(prefix), owner.comment)
        for prefix in prefixes
    ]

    def plan() -> list[Change] | None:
        if not _is_complete():
            return None
        stale = [Table("inet", TABLE).without_rule(CHECKS, rule.handle) for rule in _rules(owner)]
        return [*stale, *new]

    return nft.attempt(plan)  # else libnftables will say what is wrong


def _is_complete() -> bool:
    rules = Table("inet", TABLE).find_rules_with("postrouting", b"")
    return (
        [rule.compared for rule in rules] == _POSTROUTING_RULES
        and f"{CHECKS}\0".encode() in rules[-1].raw  # so this chain exists, too
    )


def _expressions(prefix: Prefix) -> list[bytes]:
    """What `_rule` says, in the kernel's terms."""
    from ....netfilter import expressions as kernel

    return [
        kernel.nfproto(prefix.is_v4),
        kernel.source(prefix.host),
        kernel.destination(prefix.network, kernel.NEQ),
        kernel.masquerade(),
    ]


def _render(owner: Owner, prefixes: list[Prefix]) -> None:
    rules = "".join(_rule(owner, prefix) for prefix in prefixes)
    context = nft.shared()
    for attempt in range(1, _RETRIES + 1):
        # An earlier attachment under this name that was never removed.
        stale = "".join(
            f"delete rule inet {TABLE} {CHECKS} handle {rule.handle}\n" for rule in _rules(owner)
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


def _rule(owner: Owner, prefix: Prefix) -> str:
    protocol = "ip" if prefix.is_v4 else "ip6"
    return (
        f"add rule inet {TABLE} {CHECKS} {protocol} saddr == {format_ip(prefix.ip)} "
        f'{protocol} daddr != {prefix.network} masquerade comment "{owner.comment}"\n'
    )


def _rules(owner: Owner) -> list[Rule]:
    try:
        return Table("inet", TABLE).find_rules(CHECKS, owner.key)
    except NetlinkError:
        return []  # a kernel without nftables has no rules


def teardown(owner: Owner, mine: list[Prefix], others: Callable[[], list[Prefix]]) -> None:
    """Remove the owner's rules: the key in their comments tells interfaces apart."""
    _ = mine, others
    _delete(owner.key, set())


def gc(network: str, keep: list[Owner]) -> None:
    """Remove the rules of the network's attachments that are not in `keep`. Raises CNIError."""
    _delete(f"{network_key(network)}-", {owner.comment for owner in keep})


def _delete(prefix: str, keep: set[str]) -> None:
    try:
        Table("inet", TABLE).delete_matching(CHECKS, prefix, keep)
    except Unusable:
        return
    except NetlinkError as error:
        raise CNIError(f"failed to remove masquerading with nftables: {error}") from None


def check(owner: Owner, prefixes: list[Prefix]) -> dict[Prefix, list[str]]:
    """The addresses without a rule, each with nothing: an address has one rule or none."""
    sources = {value for rule in _rules(owner) for value in rule.compared}
    return {prefix: [] for prefix in prefixes if prefix.ip not in sources}
