"""Keys of static."""

from __future__ import annotations

from .common import DNS, ROUTE, args, runtime
from .model import Key, Many, Plugin, Record, Rule, Text, replace

_IPS = Key(
    "ips",
    Many(Text("prefix")),
    "addresses with their prefix lengths, which replace all others",
    default=[],
    example=["192.0.2.9/24"],
)

PLUGIN = Plugin(
    name="static",
    place="ipam",
    about="returns the configured addresses",
    keys=(
        Key(
            "ipam",
            Record(
                (
                    Key(
                        "addresses",
                        Many(
                            Record(
                                (
                                    Key(
                                        "address",
                                        Text("prefix"),
                                        "the address with its prefix length",
                                        required=True,
                                        example="192.0.2.9/24",
                                    ),
                                    Key(
                                        "gateway",
                                        Text("address"),
                                        "copied into the result",
                                        absent="none",
                                        example="192.0.2.1",
                                    ),
                                )
                            )
                        ),
                        "the container's addresses",
                        default=[],
                        example=[{"address": "192.0.2.9/24", "gateway": "192.0.2.1"}],
                    ),
                    Key(
                        "routes",
                        Many(ROUTE),
                        "copied into the result; several routes to one destination are kept",
                        default=[],
                        example=[{"dst": "0.0.0.0/0"}],
                    ),
                    Key(
                        "dns",
                        DNS,
                        "copied into the result; note that this key is in `ipam`",
                        absent="none",
                        example={"nameservers": ["192.0.2.53"]},
                    ),
                )
            ),
            "",
            required=True,
        ),
        args(_IPS),
        runtime(replace(_IPS, text=f"{_IPS.text}, also those of `args.cni`", capability="ips")),
    ),
    args=(
        Key(
            "IP",
            Text(),
            "addresses with prefix lengths, separated by commas, in addition to `ipam.addresses`",
            absent="none",
            example="192.0.2.9/24",
        ),
        Key(
            "GATEWAY",
            Text(),
            "gateways, separated by commas, each for those addresses of `IP` "
            "whose subnet contains it",
            absent="none",
            example="192.0.2.1",
        ),
    ),
    rules=(
        Rule(
            ("ipam.type", "ipam"),
            lambda get: (
                get("ipam") is not None
                and not get("ipam.addresses")
                and not get("args.cni.ips")
                and not get("runtimeConfig.ips")
                and not get("capabilities.ips")
            ),
            "no source gives an address",
            "give ipam.addresses, or declare the capability ips; IP in CNI_ARGS is enough, too",
            is_warning=True,
        ),
    ),
    example={
        "type": "static",
        "addresses": [
            {"address": "192.0.2.9/24", "gateway": "192.0.2.1"},
            {"address": "2001:db8::9/64", "gateway": "2001:db8::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    },
)
