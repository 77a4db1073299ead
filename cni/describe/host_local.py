"""Keys of host-local."""

from __future__ import annotations

from . import pool
from .common import args, runtime
from .model import Flag, Key, Many, Plugin, Record, Rule, Text, replace

_IPS = Key(
    "ips",
    Many(Text("request")),
    "addresses that the container requests, from the configured ranges",
    default=[],
    example=["10.22.0.7"],
)

PLUGIN = Plugin(
    name="host-local",
    place="ipam",
    about="allocates addresses from ranges, and records them in files on the node",
    keys=(
        Key(
            "ipam",
            Record(
                (
                    pool.ranges("the single range", "10.22.0.0/16", "fd00:22::/64", beyond=False),
                    *pool.single(", in the old form", "the ranges of `ranges`", beyond=False),
                    replace(pool.keys("exclude")[0], example=["10.22.0.2-10.22.0.9"]),
                    replace(pool.keys("routes")[0], beyond=False),
                    Key(
                        "dataDir",
                        Text("path"),
                        "reservations are in `<dataDir>/<network>`",
                        default="/var/lib/cni/networks",
                        example="/var/lib/cni/networks",
                    ),
                    Key(
                        "resolvConf",
                        Text("path"),
                        "a resolv.conf, which becomes the DNS settings of the result",
                        absent="none",
                        example="/etc/resolv.conf",
                    ),
                    Key(
                        "reclaimOnBoot",
                        Flag(),
                        "reservations of an earlier boot are released",
                        default=True,
                        example=False,
                        beyond=True,
                    ),
                    Key(
                        "sticky",
                        Flag(),
                        "a pod gets the address that the last pod of its name had, if it is free",
                        default=False,
                        example=True,
                        beyond=True,
                    ),
                    *pool.keys("conflictCheck"),
                )
            ),
            "",
            required=True,
        ),
        args(_IPS),
        runtime(
            replace(_IPS, capability="ips"),
            Key(
                "ipRanges",
                Many(Many(pool.RANGE)),
                "range sets, as in `ipam.ranges`, that come before the configured ones",
                default=[],
                example=[[{"subnet": "10.22.1.0/24"}]],
                capability="ipRanges",
            ),
        ),
    ),
    args=pool.ARGS,
    rules=(
        Rule(
            ("ipam.type", "ipam"),
            lambda get: (
                get("ipam") is not None
                and not get("ipam.ranges")
                and get("ipam.subnet") is None
                and not get("runtimeConfig.ipRanges")
                and not get("capabilities.ipRanges")
            ),
            "no IP ranges specified",
            "give ipam.ranges or ipam.subnet, or declare the capability ipRanges",
        ),
        Rule(
            ("ipam.rangeStart", "ipam.rangeEnd", "ipam.gateway"),
            lambda get: (
                get("ipam") is not None
                and get("ipam.subnet") is None
                and any(get(f"ipam.{key}") for key in ("rangeStart", "rangeEnd", "gateway"))
            ),
            "this key belongs to a single range, which needs ipam.subnet",
            "put it into the range that it is meant for, in ipam.ranges",
            is_warning=True,
        ),
    ),
    example={
        "type": "host-local",
        "ranges": [
            [{"subnet": "10.22.0.0/16", "exclude": ["10.22.0.2-10.22.0.9"]}],
            [{"subnet": "fd00:22::/64"}],
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "sticky": True,
    },
)
