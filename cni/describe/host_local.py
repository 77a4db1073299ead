"""Keys of host-local."""

from __future__ import annotations

from dataclasses import replace

from .common import RANGE_KEYS, ROUTE, args, runtime
from .model import Flag, Key, Many, Plugin, Record, Rule, Text

_RANGE = Record(RANGE_KEYS)
_SINGLE = tuple(
    replace(
        key,
        required=False,
        text=f"of a single range, in the old form: {key.text}",
        absent=key.absent or "the ranges of `ranges`",
    )
    for key in RANGE_KEYS[:4]
)
_IPS = Key(
    "ips",
    Many(Text("request")),
    "addresses that the container asks for, of the configured ranges",
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
                    Key(
                        "ranges",
                        Many(Many(_RANGE)),
                        "range sets, each a list of ranges: an ADD gets one address of every set",
                        absent="the single range",
                        example=[[{"subnet": "10.22.0.0/16"}], [{"subnet": "fd00:22::/64"}]],
                    ),
                    *_SINGLE,
                    Key(
                        "exclude",
                        Many(Text("span")),
                        "addresses that are never allocated, in any range: `10.0.0.5`, "
                        "`10.0.0.8/29`, `10.0.0.8-10.0.0.11`",
                        default=[],
                        example=["10.22.0.2-10.22.0.9"],
                        beyond=True,
                    ),
                    Key(
                        "routes",
                        Many(ROUTE),
                        "go into the result",
                        default=[],
                        example=[{"dst": "0.0.0.0/0"}],
                    ),
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
                Many(Many(_RANGE)),
                "range sets, as in `ipam.ranges`, that come before the configured ones",
                default=[],
                example=[[{"subnet": "10.22.1.0/24"}]],
                capability="ipRanges",
            ),
        ),
    ),
    args=(
        Key("IP", Text(), "an address that the container asks for", absent="none"),
        Key("K8S_POD_NAMESPACE", Text(), "with `sticky`: whose address it is", absent="none"),
        Key("K8S_POD_NAME", Text(), "with `sticky`: whose address it is", absent="none"),
    ),
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
