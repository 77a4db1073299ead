"""Keys of cluster."""

from __future__ import annotations

from . import pool
from .common import args, runtime
from .model import Key, Plugin, Record, Rule, Text, replace

PLUGIN = Plugin(
    name="cluster",
    place="ipam",
    about="allocates addresses that are unique in a cluster, from blocks that nodes claim",
    keys=(
        Key(
            "ipam",
            Record(
                (
                    Key(
                        "pool",
                        Text(),
                        "name of a pool that is defined in the store; instead of ranges here",
                        absent="the pool is defined here",
                        example="storage",
                        beyond=True,
                    ),
                    pool.ranges(
                        "the single range, or the pool's",
                        "10.64.0.0/16",
                        "fd00:64::/64",
                        beyond=True,
                    ),
                    *pool.single("", "the ranges of `ranges`, or of the pool", beyond=True),
                    *pool.keys(
                        "exclude",
                        "routes",
                        "dns",
                        "blockSize",
                        "blockSizeV6",
                        "noGateway",
                        "space",
                        "reserve",
                        "cooldown",
                        "sticky",
                        "conflictCheck",
                        "store",
                        "nodeName",
                        "nodeTimeout",
                        "dataDir",
                    ),
                )
            ),
            "",
            required=True,
        ),
        args(pool.IPS),
        runtime(replace(pool.IPS, capability="ips")),
    ),
    args=pool.ARGS,
    rules=(
        Rule(
            ("ipam.type", "ipam"),
            lambda get: (
                get("ipam") is not None
                and not get("ipam.pool")
                and not get("ipam.ranges")
                and get("ipam.subnet") is None
            ),
            "no IP ranges specified",
            "give ipam.pool, ipam.ranges or ipam.subnet",
        ),
        Rule(
            ("ipam.pool", "ipam.ranges", "ipam.subnet"),
            lambda get: get("ipam.pool") and (get("ipam.ranges") or get("ipam.subnet") is not None),
            "ipam.pool and ranges exclude each other",
            "the pool's definition in the store has the ranges",
        ),
        *pool.STORE_RULES,
    ),
    example={
        "type": "cluster",
        "ranges": [[{"subnet": "10.64.0.0/16"}], [{"subnet": "fd00:64::/64"}]],
        "blockSize": 26,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "store": {"type": "etcd", "endpoints": ["https://192.0.2.1:2379"]},
    },
)
