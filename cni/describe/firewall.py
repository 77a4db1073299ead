"""Keys of firewall."""

from __future__ import annotations

from .model import Key, Plugin, Rule, Text

PLUGIN = Plugin(
    name="firewall",
    place="chained",
    about="lets the container's traffic through the node's firewall",
    keys=(
        Key(
            "backend",
            Text(values=("firewalld", "iptables", "nftables"), ignores_others=True),
            "packet filter in which the container's traffic is accepted; any "
            "other value has the same effect as none",
            absent="detected",
            example="iptables",
        ),
        Key(
            "iptablesAdminChainName",
            Text("chain"),
            "chain for the administrator's own rules, which come first (iptables, nftables)",
            default="CNI-ADMIN",
            example="MY-RULES",
        ),
        Key(
            "firewalldZone",
            Text(),
            "zone to which the containers' addresses are added",
            default="trusted",
            example="internal",
        ),
        Key(
            "ingressPolicy",
            Text(values=("open", "same-bridge", "isolated")),
            "`same-bridge`: blocks traffic from other bridges that have a "
            "policy; `isolated`: also blocks traffic between containers on the "
            "bridge, which is the first interface in the prevResult",
            default="open",
            example="same-bridge",
        ),
    ),
    rules=(
        Rule(
            ("firewalldZone",),
            lambda get: get("firewalldZone") and get("backend") in ("iptables", "nftables"),
            "firewalldZone has no effect with this backend",
            is_warning=True,
        ),
    ),
    example={"type": "firewall", "ingressPolicy": "same-bridge"},
)
