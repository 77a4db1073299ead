"""Keys of ptp."""

from __future__ import annotations

from dataclasses import replace

from .common import BACKEND, IP_MASQ, IPAM, MASQ_RULES, MASQ_SET, OVERRIDING_DNS, VETH_MTU
from .model import Key, Plugin, Text

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
        VETH_MTU,
        Key(
            "linkType",
            Text(values=("veth", "netkit")),
            "netkit needs Linux 6.7; without it veth is used, and stderr says so",
            default="veth",
            example="netkit",
            beyond=True,
        ),
        OVERRIDING_DNS,
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
