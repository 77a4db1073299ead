"""Keys of vxlan."""

from __future__ import annotations

from cni.kernel.vxlan import PORT

from . import bridge
from .common import ARG_MAC
from .model import Get, Key, Many, Number, Plugin, Rule, Text, replace
from .pool import STORE_OF_PEERS, store_rules

_OF_BRIDGE = {key.name: replace(key, beyond=False) for key in bridge.PLUGIN.keys}
_GATEWAY = (
    *("ipam", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend"),
    *("ipMasqSet", "ipMasqFamilies", "outboundAddr"),
)
_REST = (
    *("noDefaultRoute", "acceptRA", "autoconf", "hostInterfaceName", "dns", "args"),
    "runtimeConfig",
)
_SHARED = {*_GATEWAY, *_REST}
_OWN = (
    Key(
        "vni",
        Number(1, (1 << 24) - 1),
        "VXLAN network identifier (VNI), equal on all nodes; each network of a node needs its own",
        required=True,
        example=100,
    ),
    Key(
        "peers",
        Many(Text("address")),
        "addresses of the nodes; this node's own may be among them, so that all nodes can have one "
        "file; not together with `group` or `peersFrom`",
        absent="`group` or `peersFrom` finds them",
        example=["192.0.2.11", "192.0.2.12", "192.0.2.13"],
    ),
    Key(
        "group",
        Text("address"),
        "multicast address by which the nodes find each other; needs `dev`",
        absent="`peers` or `peersFrom` names them",
        example="239.1.1.1",
    ),
    Key(
        "peersFrom",
        Text(values=("cluster",)),
        "`cluster`: each node publishes its addresses in the cluster's store, and takes those of "
        "the others from there",
        absent="`peers` lists them, or `group` finds them",
        example="cluster",
    ),
    STORE_OF_PEERS,
    Key(
        "dev",
        Text("interface"),
        "link of the node by which it reaches the others",
        absent="chosen by the routing table",
        example="eth0",
    ),
    Key(
        "local",
        Text("address"),
        "source address of this node's packets",
        absent="chosen by the routing table",
        example="192.0.2.11",
    ),
    Key(
        "port",
        Number(1, 65535),
        "UDP port, equal on all nodes",
        default=PORT,
        example=8472,
    ),
    Key(
        "bridge",
        Text("interface"),
        "name of the bridge, which is created if it is missing; each network needs its own",
        absent="`cni-vx` and the VNI",
        example="br-web",
    ),
    Key(
        "mtu",
        Number(68, 65535, or_zero=True, word="auto"),
        "MTU of pair, VXLAN link, and of a bridge that is made; 0 or `auto`: that of `dev`, or the "
        "smallest of the links that lead to the peers, less 50 (70 over IPv6)",
        default=0,
        example=1400,
    ),
)


def _places(get: Get) -> int:
    """How many keys say where frames go to?"""
    return sum(bool(get(key)) for key in ("peers", "group", "peersFrom"))


PLUGIN = Plugin(
    name="vxlan",
    place="main",
    about="connects the containers of several nodes to one Ethernet, by VXLAN",
    keys=(
        *_OWN,
        *(_OF_BRIDGE[name] for name in _GATEWAY),
        replace(
            _OF_BRIDGE["removeEmptyBridge"],
            text="a bridge that this plugin has created is removed with the "
            "network's last container",
            default=True,
            example=False,
        ),
        *(_OF_BRIDGE[name] for name in _REST),
    ),
    args=(ARG_MAC,),
    rules=(
        Rule(
            ("peersFrom", "group", "peers"),
            lambda get: _places(get) > 1,
            "vxlan: peers, group and peersFrom exclude each other",
            "leave all but one of them out",
        ),
        Rule(
            ("peers", "group", "peersFrom"),
            lambda get: not _places(get),
            "vxlan: needs peers, group or peersFrom",
            "list the nodes' addresses in `peers`",
        ),
        Rule(
            ("store", "peersFrom"),
            lambda get: get("store") is not None and not get("peersFrom"),
            "store needs peersFrom",
            'write `"peersFrom": "cluster"`, or remove `store`',
        ),
        *store_rules("store"),
        Rule(
            ("group", "dev"),
            lambda get: get("group") and not get("dev"),
            "group needs dev",
            "name the link by which the node reaches the group",
        ),
        # A rule of bridge applies if vxlan has all of its keys.
        *(rule for rule in bridge.PLUGIN.rules if set(rule.keys) <= _SHARED),
    ),
    example={
        "type": "vxlan",
        "vni": 100,
        "peers": ["192.0.2.11", "192.0.2.12", "192.0.2.13"],
        "ipam": {
            "type": "host-local",
            "ranges": [
                [{"subnet": "10.30.0.0/16", "rangeStart": "10.30.1.1", "rangeEnd": "10.30.1.254"}]
            ],
        },
    },
    link_kind="vxlan",
)
