"""Keys of vrf."""

from __future__ import annotations

from .model import Key, Number, Plugin, Text

PLUGIN = Plugin(
    name="vrf",
    place="chained",
    about="puts the interface into a VRF of the container",
    keys=(
        Key(
            "vrfname",
            Text("interface"),
            "name of the VRF device in the container, at most 15 characters; "
            "interfaces with one VRF name share the device",
            required=True,
            example="blue",
        ),
        Key(
            "table",
            Number(0, 4294967295),
            "routing table of the VRF; 0: the table of an existing VRF, or for "
            "a new VRF the smallest unused number from 1 on",
            default=0,
            example=1001,
        ),
    ),
    example={"type": "vrf", "vrfname": "blue", "table": 1001},
    link_kind="vrf",
)
