"""Keys of slaac."""

from __future__ import annotations

from .model import Key, Number, Plugin, Record, Rule

_ROUTERS = "addresses and routes are made of what routers advertise"

PLUGIN = Plugin(
    name="slaac",
    place="ipam",
    about="waits for a router's advertisement, and reports the kernel's addresses",
    keys=(
        Key(
            "ipam",
            Record(
                (
                    Key(
                        "timeout",
                        Number(1, 600),
                        "seconds that ADD waits for a usable address",
                        default=10,
                        example=30,
                    ),
                )
            ),
            "",
            required=True,
        ),
    ),
    rules=(
        Rule(
            ("acceptRA",),
            lambda get: get("acceptRA") is False,
            "slaac needs acceptRA",
            f"leave acceptRA out: {_ROUTERS}",
        ),
        Rule(
            ("autoconf",),
            lambda get: get("autoconf") is False,
            "slaac needs autoconf",
            f"leave autoconf out: {_ROUTERS}",
        ),
        Rule(
            ("isGateway", "isDefaultGateway"),
            lambda get: bool(get("isGateway") or get("isDefaultGateway")),
            "the gateway is a router on the link, not this node's bridge",
            "leave isGateway and isDefaultGateway out with slaac",
        ),
    ),
    example={"type": "slaac", "timeout": 30},
)
