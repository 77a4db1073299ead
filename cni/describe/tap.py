"""Keys of tap."""

from __future__ import annotations

from .common import ARG_MAC, IPAM, OVERRIDING_DNS, RUNTIME_MAC, runtime
from .model import Flag, Key, Number, Plugin, Text

_U32 = 4294967295

PLUGIN = Plugin(
    name="tap",
    place="main",
    about="makes a persistent TAP device in the container, for a virtual machine",
    keys=(
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
            absent="root",
            example=1000,
        ),
        Key("multiQueue", Flag(), "the device has several queues", default=False, example=True),
        Key(
            "bridge",
            Text("interface"),
            "bridge in the container that the device becomes a port of",
            absent="none",
            example="br0",
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
            "mtu",
            Number(0, _U32, word="auto"),
            "MTU; 0: 1500; `auto`: the MTU of the default route's link, the smallest of several",
            default=0,
            example=1400,
        ),
        Key(
            "selinuxContext",
            Text(),
            "label of the device; needs SELinux and the tool `ip`",
            absent="none",
            example="system_u:system_r:container_t:s0",
        ),
        IPAM,
        OVERRIDING_DNS,
        runtime(RUNTIME_MAC),
    ),
    args=(ARG_MAC,),
    example={"type": "tap", "owner": 1000, "group": 1000, "multiQueue": True, "bridge": "br0"},
)
