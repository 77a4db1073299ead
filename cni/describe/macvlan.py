"""Keys of macvlan."""

from __future__ import annotations

from .common import (
    ARG_MAC,
    DEVICE_MASTER,
    IPAM,
    NO_DEFAULT_ROUTE,
    RESULT_DNS,
    ROUTER_KEYS,
    RUNTIME_MAC,
    runtime,
)
from .model import Flag, Key, Number, Plugin, Rule, Text

# of macvtap, too
MASTER = Key(
    "master",
    Text("interface"),
    "the link that carries the interface",
    absent="the device that the runtime passes, else the only interface of the "
    "prevResult, else the default route's link",
    example="eth0",
)
MTU = Key(
    "mtu",
    Number(word="auto"),
    "MTU, at most the master's; 0 or `auto`: the master's",
    default=0,
    example=1400,
)
MAC = Key(
    "mac",
    Text("ownmac"),
    "MAC address; `runtimeConfig.mac` wins over `MAC` in CNI_ARGS, which wins over this key",
    absent="random",
    example="02:00:00:00:00:05",
)
LINK_IN_CONTAINER = Key(
    "linkInContainer",
    Flag(),
    "the master is in the container's namespace",
    default=False,
    example=True,
)

PLUGIN = Plugin(
    name="macvlan",
    place="main",
    about="makes an interface with a MAC of its own on a link of the node",
    keys=(
        MASTER,
        Key(
            "mode",
            Text(values=("bridge", "private", "vepa", "passthru")),
            "which interfaces of one master reach each other (ip-link(8))",
            default="bridge",
            example="private",
        ),
        MTU,
        MAC,
        Key(
            "bcqueuelen",
            Number(0, 4294967295),
            "length of the queue for broadcasts; 0: the kernel's",
            default=0,
            example=1000,
        ),
        LINK_IN_CONTAINER,
        Key(
            "hostShim",
            Flag(),
            "let the node reach the containers, by a macvlan of its own",
            default=False,
            example=True,
            beyond=True,
        ),
        IPAM,
        NO_DEFAULT_ROUTE,
        *ROUTER_KEYS,
        RESULT_DNS,
        runtime(RUNTIME_MAC, DEVICE_MASTER),
    ),
    args=(ARG_MAC,),
    rules=(
        Rule(
            ("hostShim",),
            lambda get: get("hostShim") and get("mode") not in (None, "", "bridge"),
            "hostShim needs the mode bridge",
            "no packet passes a shim in another mode",
        ),
        Rule(
            ("hostShim",),
            lambda get: get("hostShim") and (get("linkInContainer") or not get("ipam.type")),
            "hostShim needs ipam, and a master on the node",
            "remove hostShim or linkInContainer, or add ipam",
        ),
    ),
    example={
        "type": "macvlan",
        "master": "eth0",
        "hostShim": True,
        "ipam": {"type": "dhcp"},
    },
    link_kind="macvlan",
)
