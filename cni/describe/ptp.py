"""Keys of ptp."""

from __future__ import annotations

from .common import (
    BACKEND,
    HOST_INTERFACE_NAME,
    IP_MASQ,
    IPAM,
    MASQ_FAMILIES,
    MASQ_RULES,
    MASQ_SET,
    NO_DEFAULT_ROUTE,
    OUTBOUND_ADDR,
    OVERRIDING_DNS,
    ROUTER_KEYS,
    RUNTIME_MAC,
    VETH_MTU,
    args,
    runtime,
)
from .model import Key, Plugin, Text, replace

PLUGIN = Plugin(
    name="ptp",
    place="main",
    about="connects the container to the node by a veth pair with routes",
    keys=(
        replace(
            IPAM,
            text="each address needs a gateway, which goes to the node's end",
            required=True,
            absent="",
        ),
        IP_MASQ,
        BACKEND,
        MASQ_SET,
        MASQ_FAMILIES,
        OUTBOUND_ADDR,
        VETH_MTU,
        Key(
            "linkType",
            Text(values=("veth", "netkit")),
            "netkit needs Linux 6.7; on older kernels veth is used, and a line "
            "on stderr reports this",
            default="veth",
            example="netkit",
            beyond=True,
        ),
        NO_DEFAULT_ROUTE,
        *ROUTER_KEYS,
        HOST_INTERFACE_NAME,
        OVERRIDING_DNS,
        args(
            Key(
                "mac",
                Text("ownmac"),
                "MAC address of the container's interface; `runtimeConfig.mac` wins",
                absent="none",
                example="02:00:00:00:00:05",
            )
        ),
        runtime(RUNTIME_MAC),
    ),
    rules=(*MASQ_RULES,),
    example={
        "type": "ptp",
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.22.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    },
)
