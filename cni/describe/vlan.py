"""Keys of vlan."""

from __future__ import annotations

from .common import DEVICE_MASTER, IPAM, NO_DEFAULT_ROUTE, RESULT_DNS, ROUTER_KEYS, runtime
from .model import Flag, Key, Number, Plugin, Text, replace

PLUGIN = Plugin(
    name="vlan",
    place="main",
    about="makes an 802.1Q interface of a link of the node",
    keys=(
        Key(
            "master",
            Text("interface"),
            "link that carries the VLAN",
            absent="the device that the runtime passes, else the only interface of the "
            "prevResult; required if there is neither",
            example="eth0",
        ),
        Key(
            "vlanId",
            Number(0, 4094),
            "a VLAN of a master can have one interface only",
            default=0,
            example=5,
        ),
        Key(
            "protocol",
            Text(values=("802.1Q", "802.1ad")),
            "type of the VLAN tag; with `802.1ad` (QinQ) the containers can use "
            "VLANs of their own inside of it",
            default="802.1Q",
            example="802.1ad",
            beyond=True,
        ),
        Key(
            "mtu",
            Number(word="auto"),
            "MTU, at most the master's; 0 or `auto`: the master's",
            default=0,
            example=1400,
        ),
        Key(
            "linkInContainer",
            Flag(),
            "the master is in the container's namespace",
            default=False,
            example=True,
        ),
        replace(IPAM, required=True, absent=""),
        NO_DEFAULT_ROUTE,
        *ROUTER_KEYS,
        RESULT_DNS,
        runtime(DEVICE_MASTER),
    ),
    example={
        "type": "vlan",
        "master": "eth0",
        "vlanId": 5,
        "ipam": {"type": "host-local", "subnet": "10.1.5.0/24"},
    },
    link_kind="vlan",
)
