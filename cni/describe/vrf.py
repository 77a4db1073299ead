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
            "name of the VRF device in the container, at most 15 characters; interfaces that name "
            "the same one share it",
            required=True,
            example="blue",
        ),
        Key(
            "table",
            Number(0, 4294967295),
            "its routing table; 0: that of an existing VRF, or for a new VRF the smallest number "
            "from 1 on that is unused",
            default=0,
            example=1001,
        ),
    ),
    example={"type": "vrf", "vrfname": "blue", "table": 1001},
    link_kind="vrf",
)
