"""Keys of wireguard."""

from __future__ import annotations

from cni.kernel.wireguard import PORT

from . import ptp
from .model import Get, Key, Many, Number, Plugin, Record, Rule, Text, replace
from .pool import STORE_OF_PEERS, store_rules

_OF_PTP = {key.name: replace(key, beyond=False) for key in ptp.PLUGIN.keys}
_EXAMPLE_PEERS = [
    {
        "publicKey": "vIwzZjxbT6LDdNgFsV1uxBBZHP2QAvmrBfiDWeKIjS0=",
        "endpoint": "192.0.2.11:51820",
        "subnets": ["10.40.11.0/24"],
    },
    {
        "publicKey": "Jz9U31PCtYzTJUupkvFFXGILjA57HPualcnJNlT4vyc=",
        "endpoint": "192.0.2.12:51820",
        "subnets": ["10.40.12.0/24"],
    },
]
_PEER = Record(
    (
        Key(
            "publicKey",
            Text("wgkey"),
            "the node's public key",
            required=True,
            example="vIwzZjxbT6LDdNgFsV1uxBBZHP2QAvmrBfiDWeKIjS0=",
        ),
        Key(
            "endpoint",
            Text("endpoint"),
            "the node's address and UDP port; IPv6 addresses in brackets",
            absent="this node waits until the other one sends",
            example="192.0.2.12:51820",
        ),
        Key(
            "subnets",
            Many(Text("prefix"), most=1000),
            "addresses of the containers on that node: they are routed to it, and accepted from it",
            required=True,
            example=["10.40.12.0/24"],
        ),
        Key(
            "presharedKeyFile",
            Text("path"),
            "file with a key that both nodes have, as `wg genpsk` writes it",
            absent="none",
            example="/etc/cni/wireguard/psk",
        ),
        Key(
            "persistentKeepalive",
            Number(0, 65535),
            "seconds between packets that keep the way through a NAT open; 0: none",
            default=0,
            example=25,
        ),
    )
)
_OWN = (
    Key(
        "peers",
        Many(_PEER),
        "the nodes; this one may be among them, so that all nodes can have one file; not together "
        "with `peersFrom`",
        absent="`peersFrom` finds them",
        example=_EXAMPLE_PEERS,
    ),
    Key(
        "peersFrom",
        Text(values=("cluster",)),
        "`cluster`: each node publishes its public key, its endpoint and its subnets in the "
        "cluster's store, and takes those of the others from there",
        absent="`peers` lists them",
        example="cluster",
    ),
    STORE_OF_PEERS,
    Key(
        "subnets",
        Many(Text("prefix"), most=1000),
        "with `peersFrom`: addresses of this node's containers, which it publishes",
        absent="the node's blocks, with IPAM of the type cluster; required with other types",
        example=["10.40.11.0/24"],
    ),
    Key(
        "allowedSubnets",
        Many(Text("prefix")),
        "with `peersFrom`: in these must the subnets of other nodes lie; others are refused",
        absent="the subnets of `ipam`",
        example=["10.40.0.0/16"],
    ),
    Key(
        "endpoint",
        Text("endpoint"),
        "with `peersFrom`: address and UDP port by which others reach this node; IPv6 addresses "
        "in brackets",
        absent="an address of `dev`, and `listenPort`",
        example="192.0.2.11:51820",
    ),
    Key(
        "dev",
        Text("interface"),
        "with `peersFrom`: link of the node whose address is published",
        absent="that of the default route",
        example="eth0",
    ),
    Key(
        "persistentKeepalive",
        Number(0, 65535),
        "with `peersFrom`: seconds between packets to each peer that keep the way through a NAT "
        "open; 0: none",
        default=0,
        example=25,
    ),
    Key(
        "privateKeyFile",
        Text("path"),
        "file of this node's private key, which is made if it is missing",
        absent="`/var/lib/cni/wireguard/<network>.key`",
        example="/etc/cni/wireguard/private",
    ),
    Key(
        "listenPort",
        Number(1, 65535),
        "UDP port of this node; each network of a node needs its own",
        default=PORT,
        example=51821,
    ),
    Key(
        "mtu",
        Number(68, 65535, or_zero=True, word="auto"),
        "MTU of pair and WireGuard link; 0 or `auto`: the smallest of the links that lead to the "
        "endpoints, less 60 (80 if an endpoint is an IPv6 address)",
        default=0,
        example=1400,
    ),
)
_REST = (
    *("ipMasq", "ipMasqBackend", "ipMasqSet", "ipMasqFamilies", "outboundAddr"),
    *("noDefaultRoute", "acceptRA", "autoconf", "hostInterfaceName", "dns", "args"),
    "runtimeConfig",
)


_OF_STORE = ("store", "subnets", "allowedSubnets", "endpoint", "dev", "persistentKeepalive")


def _only_of_store(key: str) -> Rule:
    """The rule that a key needs `peersFrom`."""
    return Rule(
        (key, "peersFrom"),
        lambda get: get(key) not in (None, "", [], 0) and not get("peersFrom"),
        f"{key} needs peersFrom",
        f'write `"peersFrom": "cluster"`, or remove `{key}`',
    )


def _learns(get: Get) -> bool:
    return get("ipam.type") in ("dhcp", "slaac")


PLUGIN = Plugin(
    name="wireguard",
    place="main",
    about="routes between the containers of several nodes, encrypted by WireGuard",
    keys=(*_OWN[:8], _OF_PTP["ipam"], *_OWN[8:], *(_OF_PTP[name] for name in _REST)),
    rules=(
        *ptp.PLUGIN.rules,
        Rule(
            ("peersFrom", "peers"),
            lambda get: get("peersFrom") and get("peers") is not None,
            "wireguard: peers and peersFrom exclude each other",
            "leave one of them out",
        ),
        Rule(
            ("peers", "peersFrom"),
            lambda get: not get("peersFrom") and get("peers") is None,
            "wireguard: needs peers or peersFrom",
            "list the nodes in `peers`; an empty list is for a node that has only its key so far",
        ),
        *map(_only_of_store, _OF_STORE),
        *store_rules("store"),
        Rule(
            ("subnets", "ipam"),
            lambda get: get("peersFrom") and not get("subnets") and get("ipam.type") != "cluster",
            "wireguard: needs subnets",
            "only with IPAM of the type cluster the subnets of this node are known",
        ),
        Rule(
            ("ipam",),
            _learns,
            "wireguard cannot use an IPAM plugin that asks on the link",
            "the other end of the link is this node: use cluster, host-local or static",
        ),
    ),
    example={
        "type": "wireguard",
        "peers": _EXAMPLE_PEERS,
        "ipam": {
            "type": "host-local",
            "ranges": [
                [{"subnet": "10.40.0.0/16", "rangeStart": "10.40.11.2", "rangeEnd": "10.40.11.254"}]
            ],
        },
    },
    link_kind="wireguard",
)
