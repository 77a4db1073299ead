"""Keys of sriov."""

from __future__ import annotations

from cni.plugins.sriov.settings import LINK_STATES, VLAN_PROTOCOLS

from .common import ARG_MAC, IPAM, RESULT_DNS, RUNTIME_MAC, runtime
from .model import Get, Key, Number, Plugin, Rule, Text

_SWITCH = ("on", "off")
_UNCHANGED = "unchanged"


def _tags_without_vlan(get: Get) -> bool:
    return not get("vlan") and bool(get("vlanQoS") or get("vlanProto"))


def _rates_cross(get: Get) -> bool:
    least, most = get("min_tx_rate"), get("max_tx_rate")
    return isinstance(least, int) and isinstance(most, int) and 0 < most < least


PLUGIN = Plugin(
    name="sriov",
    place="main",
    about="moves a virtual function of a network card into the container, with its settings",
    keys=(
        Key(
            "deviceID",
            Text("pci"),
            "PCI address of the virtual function",
            absent="the function that the runtime passes",
            example="0000:3b:02.1",
        ),
        Key(
            "vlan",
            Number(0, 4094),
            "VLAN in whose frames the card puts all that the function sends; 0: none",
            absent=_UNCHANGED,
            example=100,
        ),
        Key(
            "vlanQoS",
            Number(0, 7),
            "priority (PCP) in the tags of these frames; needs `vlan`",
            default=0,
            example=3,
        ),
        Key(
            "vlanProto",
            Text(values=tuple(VLAN_PROTOCOLS)),
            "protocol of the tags; needs `vlan`",
            default="802.1q",
            example="802.1ad",
        ),
        Key(
            "mac",
            Text("ownmac"),
            "MAC address, which the card then enforces; `runtimeConfig.mac` wins over `MAC` in "
            "CNI_ARGS, which wins over this key",
            absent="the function's own",
            example="0a:58:0a:01:02:03",
        ),
        Key(
            "min_tx_rate",
            Number(0, (1 << 31) - 1),
            "Mbit/s that the function can always send; 0: no guarantee",
            absent=_UNCHANGED,
            example=100,
        ),
        Key(
            "max_tx_rate",
            Number(0, (1 << 31) - 1),
            "Mbit/s that the function may send at most; 0: no limit",
            absent=_UNCHANGED,
            example=1000,
        ),
        Key(
            "spoofchk",
            Text(values=_SWITCH),
            "`on`: the card drops frames with another source MAC than the function's",
            absent=_UNCHANGED,
            example="on",
        ),
        Key(
            "trust",
            Text(values=_SWITCH),
            "`on`: the container may change the function's MAC, and may receive all frames",
            absent=_UNCHANGED,
            example="off",
        ),
        Key(
            "link_state",
            Text(values=tuple(LINK_STATES)),
            "the carrier that the function has: the card's (`auto`), always, or never",
            absent=_UNCHANGED,
            example="auto",
        ),
        IPAM,
        RESULT_DNS,
        runtime(
            Key(
                "deviceID",
                Text("pci"),
                "PCI address of the virtual function; replaces `deviceID`",
                absent="none",
                example="0000:3b:02.1",
                capability="deviceID",
            ),
            RUNTIME_MAC,
        ),
    ),
    args=(ARG_MAC,),
    rules=(
        Rule(
            ("deviceID",),
            lambda get: (
                not any(map(get, ("deviceID", "runtimeConfig.deviceID", "capabilities.deviceID")))
            ),
            "deviceID is required",
            "declare the capability deviceID, so that the runtime says which function",
        ),
        Rule(
            ("vlanQoS", "vlanProto"),
            _tags_without_vlan,
            "vlanQoS and vlanProto need a vlan",
            "without a VLAN frames have no tag",
        ),
        Rule(
            ("min_tx_rate", "max_tx_rate"),
            _rates_cross,
            "min_tx_rate is larger than max_tx_rate",
            "0 is no limit",
        ),
    ),
    example={
        "type": "sriov",
        "capabilities": {"deviceID": True},
        "vlan": 100,
        "spoofchk": "on",
        "ipam": {"type": "host-local", "subnet": "10.56.0.0/24"},
    },
)
