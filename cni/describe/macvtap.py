"""Keys of macvtap."""

from __future__ import annotations

from .common import ARG_MAC, IPAM, NO_DEFAULT_ROUTE, RESULT_DNS, ROUTER_KEYS, RUNTIME_MAC, runtime
from .model import Flag, Key, Number, Plugin, Text

_U32 = 4294967295

PLUGIN = Plugin(
    name="macvtap",
    place="main",
    about="makes a macvlan whose packets a virtual machine reads and writes, by a device",
    keys=(
        Key(
            "master",
            Text("interface"),
            "the link that carries the interface",
            absent="the only interface of the prevResult, else the default route's link",
            example="eth0",
        ),
        Key(
            "mode",
            Text(values=("bridge", "private", "vepa", "passthru")),
            "which interfaces of one master reach each other (ip-link(8))",
            default="bridge",
            example="passthru",
        ),
        Key(
            "mtu",
            Number(word="auto"),
            "MTU, at most the master's; 0 or `auto`: the master's",
            default=0,
            example=1400,
        ),
        Key(
            "mac",
            Text("ownmac"),
            "MAC address; `runtimeConfig.mac` wins over `MAC` in CNI_ARGS, which wins over this "
            "key",
            absent="random",
            example="02:00:00:00:00:05",
        ),
        Key(
            "owner",
            Number(0, _U32),
            "id of the user who may open the device",
            absent="root",
            example=1000,
        ),
        Key(
            "group",
            Number(0, _U32),
            "id of the group that may open the device",
            absent="root's, which may not",
            example=1000,
        ),
        Key(
            "linkInContainer",
            Flag(),
            "the master is in the container's namespace",
            default=False,
            example=True,
        ),
        IPAM,
        NO_DEFAULT_ROUTE,
        *ROUTER_KEYS,
        RESULT_DNS,
        runtime(RUNTIME_MAC),
    ),
    args=(ARG_MAC,),
    example={"type": "macvtap", "master": "eth0", "owner": 1000, "group": 1000},
    link_kind="macvtap",
)
