"""Keys of win-bridge."""

from __future__ import annotations

from .common import IPAM, RESULT_DNS
from .model import Key, Plugin, Text, replace
from .windows import RUNTIME, SHARED

PLUGIN = Plugin(
    name="win-bridge",
    place="main",
    about="connects Windows containers to an L2Bridge or L2Tunnel network",
    keys=(
        *SHARED,
        Key(
            "ipMasqNetwork",
            Text("prefix"),
            "packets to this subnet are not translated on their way out",
            absent="none",
            example="10.244.0.0/16",
        ),
        replace(RESULT_DNS, text="of the endpoint; `runtimeConfig.dns` wins"),
        replace(IPAM, absent="HNS chooses address and gateway"),
        RUNTIME,
    ),
    example={
        "type": "win-bridge",
        "apiVersion": 2,
        "ipMasqNetwork": "10.244.0.0/16",
        "capabilities": {"portMappings": True, "dns": True},
        "ipam": {"type": "host-local", "subnet": "10.244.1.0/24"},
    },
    system="windows",
)
