"""The shared chains and sets of backend_nft's table; loaded only to make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...netfilter import expressions as kernel
from ...netfilter import uapi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...netfilter.nft import Change
    from ...netfilter.table import Table

_TRACKED = uapi.NF_CT_STATE_BIT_ESTABLISHED | uapi.NF_CT_STATE_BIT_RELATED


def skeleton(table: Table, allowed: Mapping[bool, str], comment: str) -> list[Change]:
    """Changes that make table, sets and chains, and fill the forward chain anew.

    `allowed` maps "is IPv6" to the set of addresses; `comment` is that of the table and of the
    forward chain's rules.
    """
    kinds = {
        allowed[False]: "ipv4_addr",
        allowed[True]: "ipv6_addr",
        "bridges": "ifname",
        "within": "ifname . ifname",
    }
    return [
        kernel.new_table(table, comment),
        *(
            kernel.new_set(table, name, number, kind)
            for number, (name, kind) in enumerate(kinds.items(), 1)
        ),
        kernel.new_chain(table, "admin"),
        kernel.new_base_chain(table, "forward", "forward", "filter", 0),
        table.without_rules("forward"),
        *(kernel.new_rule(table, "forward", rule, comment) for rule in _rules(allowed)),
    ]


def _rules(allowed: Mapping[bool, str]) -> list[list[bytes]]:
    """The forward chain's rules. In nft(8)'s words:

    iifname @bridges oifname @bridges iifname . oifname != @within drop
    jump admin
    ct state established,related ip daddr @allowed4 accept      and with ip6 and @allowed6
    ip saddr @allowed4 accept                                   and with ip6 and @allowed6
    """
    from_link, to_link = kernel.meta(uapi.NFT_META_IIFNAME), kernel.meta(uapi.NFT_META_OIFNAME)
    among_bridges = [from_link, kernel.lookup("bridges"), to_link, kernel.lookup("bridges")]
    pair = [from_link, kernel.meta(uapi.NFT_META_OIFNAME, uapi.NFT_REG_2)]
    to_them, from_them = [], []
    for is_v6, name in allowed.items():
        source, size = (8, 16) if is_v6 else (12, 4)
        family, among = kernel.nfproto(not is_v6), kernel.lookup(name)
        header = uapi.NFT_PAYLOAD_NETWORK_HEADER
        to_address = kernel.payload(header, source + size, size)
        to_them.append([kernel.ct_state(_TRACKED), family, to_address, among])
        from_them.append([family, kernel.payload(header, source, size), among])
    accept, drop = kernel.verdict(uapi.NF_ACCEPT), kernel.verdict(uapi.NF_DROP)
    return [
        [*among_bridges, *pair, kernel.lookup("within", inverted=True), drop],
        [kernel.jump("admin")],
        *([*rule, accept] for rule in (*to_them, *from_them)),
    ]


def admin(table: Table, chain: str) -> list[Change]:
    """Changes that make an administrator's chain, and the jump to it."""
    jump = kernel.new_rule(table, "admin", [kernel.jump(chain)])
    return [kernel.new_chain(table, chain), jump]
