"""Keys of win-overlay."""

from __future__ import annotations

from .common import IPAM, RESULT_DNS
from .model import Flag, Key, Plugin, Text, replace
from .windows import RUNTIME, SHARED

PLUGIN = Plugin(
    name="win-overlay",
    place="main",
    about="connects Windows containers to an overlay network",
    keys=(
        *SHARED,
        Key(
            "ipMasq",
            Flag(),
            "packets to the network itself are not translated on their way out",
            default=False,
            example=True,
        ),
        Key(
            "endpointMacPrefix",
            Text("macprefix"),
            "first two bytes of the MAC address; the other four are the IPv4 address",
            default="0E-2A",
            example="0E-2A",
        ),
        replace(RESULT_DNS, text="of the endpoint; `runtimeConfig.dns` wins"),
        replace(
            IPAM,
            text="must give an IPv4 address first",
            absent="with `apiVersion` 2, HCN chooses the address; with 1, an error",
        ),
        RUNTIME,
    ),
    example={
        "type": "win-overlay",
        "apiVersion": 2,
        "ipMasq": True,
        "endpointMacPrefix": "0E-2A",
        "ipam": {"type": "host-local", "subnet": "10.244.1.0/24"},
    },
    system="windows",
)
