"""Keys of ipvlan."""

from __future__ import annotations

from .common import DEVICE_MASTER, IPAM, NO_DEFAULT_ROUTE, RESULT_DNS, ROUTER_KEYS, runtime
from .model import Flag, Key, Number, Plugin, Text, replace

PLUGIN = Plugin(
    name="ipvlan",
    place="main",
    about="makes an interface that shares the MAC of a link of the node",
    keys=(
        Key(
            "master",
            Text("interface"),
            "the link that carries the interface",
            absent="the device that the runtime passes, else the only interface of the "
            "prevResult, else the default route's link",
            example="eth0",
        ),
        Key(
            "mode",
            Text(values=("l2", "l3", "l3s")),
            "with `l3s`, packets pass the node's connection tracking, too",
            default="l2",
            example="l3s",
        ),
        Key(
            "mtu",
            Number(0, 4294967295, word="auto"),
            "MTU; 0 or `auto`: the master's",
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
        replace(
            IPAM,
            text="the IPAM plugin; may be left out after a plugin that returns addresses",
            absent="the addresses of the prevResult",
        ),
        NO_DEFAULT_ROUTE,
        *ROUTER_KEYS,
        RESULT_DNS,
        runtime(DEVICE_MASTER),
    ),
    example={
        "type": "ipvlan",
        "master": "eth0",
        "mode": "l3s",
        "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"},
    },
    link_kind="ipvlan",
)
