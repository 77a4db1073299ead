"""Keys of macvtap."""

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
from .macvlan import LINK_IN_CONTAINER, MAC, MASTER, MTU
from .model import Key, Number, Plugin, Text

_U32 = 4294967295

PLUGIN = Plugin(
    name="macvtap",
    place="main",
    about="makes a macvlan whose packets a virtual machine reads and writes, by a device",
    keys=(
        MASTER,
        Key(
            "mode",
            Text(values=("bridge", "private", "vepa", "passthru")),
            "which interfaces of one master reach each other (ip-link(8))",
            default="bridge",
            example="passthru",
        ),
        MTU,
        MAC,
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
        LINK_IN_CONTAINER,
        IPAM,
        NO_DEFAULT_ROUTE,
        *ROUTER_KEYS,
        RESULT_DNS,
        runtime(RUNTIME_MAC, DEVICE_MASTER),
    ),
    args=(ARG_MAC,),
    example={"type": "macvtap", "master": "eth0", "owner": 1000, "group": 1000},
    link_kind="macvtap",
)
