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
            "how to let it through; any other value counts as none",
            absent="detected",
            example="iptables",
        ),
        Key(
            "iptablesAdminChainName",
            Text("chain"),
            "the chain for your own rules, which come first (iptables, nftables)",
            default="CNI-ADMIN",
            example="MY-RULES",
        ),
        Key(
            "firewalldZone",
            Text(),
            "the zone that gets the containers' addresses",
            default="trusted",
            example="internal",
        ),
        Key(
            "ingressPolicy",
            Text(values=("open", "same-bridge", "isolated")),
            "`same-bridge`: no traffic from other bridges that have a policy; `isolated`: also none"
            " between containers of the bridge, which is the first interface in the prevResult",
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
