"""Keys of portmap."""

from __future__ import annotations

from .common import PORT_MAPPINGS, runtime
from .model import Flag, Get, Key, Many, Number, Plugin, Rule, Text


def _backend_of_conditions(get: Get) -> set[str]:
    """The backends whose syntax the conditions have."""
    backends = set()
    for key in ("conditionsV4", "conditionsV6"):
        words = get(key)
        if isinstance(words, list) and words and isinstance(words[0], str):
            # The plugin tells them apart in the same way.
            backends.add("iptables" if words[0][:1] in ("-", "!") else "nftables")
    return backends


def _options_of(get: Get) -> set[str]:
    """The backends that have an option in the configuration."""
    own = {"iptables"} if get("externalSetMarkChain") is not None else set()
    return own | _backend_of_conditions(get)


PLUGIN = Plugin(
    name="portmap",
    place="chained",
    about="publishes ports of the container on the node",
    keys=(
        Key(
            "backend",
            Text(values=("nftables", "iptables")),
            "how to publish",
            absent="nftables, or iptables if an option has its syntax or nftables cannot be used",
            example="iptables",
        ),
        Key(
            "snat",
            Flag(),
            "masquerade packets from the container's own subnet and from 127.0.0.1, so that a "
            "container reaches itself and its neighbours by the node's address, and the node by "
            "localhost",
            default=True,
            example=False,
        ),
        Key(
            "masqAll",
            Flag(),
            "masquerade every source; the container does not see clients' addresses then",
            default=False,
            example=True,
        ),
        Key(
            "checkHostListeners",
            Flag(),
            "refuse a port on which a process of the node listens, and name the process; not with "
            "podman, which itself listens on the ports of its containers",
            default=False,
            example=True,
            beyond=True,
        ),
        Key(
            "markMasqBit",
            Number(0, 31),
            "bit of the packet mark that marks packets to masquerade",
            default=13,
            example=14,
        ),
        Key(
            "externalSetMarkChain",
            Text("chain"),
            "iptables: an existing chain that sets such a mark, instead of the plugin's own",
            absent="the plugin's own",
            example="KUBE-MARK-MASQ",
        ),
        Key(
            "conditionsV4",
            Many(Text("condition")),
            "further matches for IPv4, in the language of the backend; one that begins with `-` or "
            "`!` is of iptables, any other is of nftables and needs the program nft on the node",
            default=[],
            example=["ip", "daddr", "192.0.2.0/24"],
        ),
        Key(
            "conditionsV6",
            Many(Text("condition")),
            "as `conditionsV4`, for IPv6",
            default=[],
            example=["ip6", "daddr", "2001:db8::/64"],
        ),
        runtime(PORT_MAPPINGS),
    ),
    rules=(
        Rule(
            ("externalSetMarkChain",),
            lambda get: get("externalSetMarkChain") is not None and get("markMasqBit") is not None,
            "externalSetMarkChain and markMasqBit cannot be used together",
            "remove one of them",
        ),
        Rule(
            ("backend", "externalSetMarkChain", "conditionsV4", "conditionsV6"),
            lambda get: len(_options_of(get) | {get("backend")} - {None, ""}) > 1,
            "options of iptables and of nftables are mixed",
            "externalSetMarkChain, and a condition that begins with - or !, are of iptables",
        ),
        Rule(
            ("type",),
            lambda get: (
                not get("capabilities.portMappings") and not get("runtimeConfig.portMappings")
            ),
            "no port will be published: the capability portMappings is not declared",
            'add "capabilities": {"portMappings": true}',
            is_warning=True,
        ),
    ),
    example={"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
)
