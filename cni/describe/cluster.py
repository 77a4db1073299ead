"""Keys of cluster."""

from __future__ import annotations

from dataclasses import replace

from .common import DNS, RANGE_KEYS, ROUTE, args, runtime
from .model import Flag, Key, Many, Number, Plugin, Record, Rule, Text

_RANGE = Record(RANGE_KEYS)
_SINGLE = tuple(
    replace(
        key,
        required=False,
        text=f"of a single range: {key.text}",
        absent=key.absent or "the ranges of `ranges`, or of the pool",
        beyond=True,
    )
    for key in RANGE_KEYS[:4]
)
_IPS = Key(
    "ips",
    Many(Text("request")),
    "addresses that the container asks for, of the pool's ranges",
    default=[],
    example=["10.64.0.7"],
    beyond=True,
)
_STORE = Record(
    (
        Key(
            "type",
            Text(values=("directory", "etcd", "kubernetes")),
            "the kind of store; the other keys depend on it",
            required=True,
            example="etcd",
        ),
        Key("path", Text("path"), "of `directory`: where it is", absent="none"),
        Key("endpoints", Many(Text()), "of `etcd`: URLs of its members", absent="none"),
        Key("kubeconfig", Text("path"), "of `kubernetes`", absent="the service account"),
    ),
    is_open=True,
)

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
                    Key(
                        "ranges",
                        Many(Many(_RANGE)),
                        "range sets, each a list of ranges: an ADD gets one address of every set",
                        absent="the single range, or the pool's",
                        example=[[{"subnet": "10.64.0.0/16"}], [{"subnet": "fd00:64::/64"}]],
                        beyond=True,
                    ),
                    *_SINGLE,
                    Key(
                        "exclude",
                        Many(Text("span")),
                        "addresses that are never allocated, in any range: `10.0.0.5`, "
                        "`10.0.0.8/29`, `10.0.0.8-10.0.0.11`",
                        default=[],
                        example=["10.64.0.2-10.64.0.9"],
                        beyond=True,
                    ),
                    Key(
                        "routes",
                        Many(ROUTE),
                        "go into the result",
                        default=[],
                        example=[{"dst": "0.0.0.0/0"}],
                        beyond=True,
                    ),
                    Key("dns", DNS, "goes into the result", absent="none", beyond=True),
                    Key(
                        "blockSize",
                        Number(1, 32, or_zero=True),
                        "prefix length of the blocks of IPv4 subnets; 32: single addresses",
                        default=0,
                        absent="26, and of small subnets four more than the subnet's",
                        example=26,
                        beyond=True,
                    ),
                    Key(
                        "blockSizeV6",
                        Number(1, 128, or_zero=True),
                        "prefix length of the blocks of IPv6 subnets",
                        default=0,
                        absent="122, and of small subnets four more than the subnet's",
                        example=122,
                        beyond=True,
                    ),
                    Key(
                        "space",
                        Text(),
                        "name of the address space: the same addresses may be used once in each",
                        absent="`default`",
                        example="tenant-a",
                        beyond=True,
                    ),
                    Key(
                        "reserve",
                        Number(),
                        "addresses that each node keeps free, by claiming blocks ahead",
                        default=8,
                        example=16,
                        beyond=True,
                    ),
                    Key(
                        "cooldown",
                        Number(0, 1200, unit="s"),
                        "how long an address rests before another container gets it",
                        default=0,
                        example=60,
                        beyond=True,
                    ),
                    Key(
                        "sticky",
                        Flag(),
                        "a pod gets the address that the last pod of its name had on this node, if "
                        "it is free",
                        default=False,
                        example=True,
                        beyond=True,
                    ),
                    Key(
                        "store",
                        _STORE,
                        "where blocks are claimed",
                        absent="that of /etc/cni/cluster.json",
                        example={"type": "etcd", "endpoints": ["https://192.0.2.1:2379"]},
                        beyond=True,
                    ),
                    Key(
                        "nodeName",
                        Text(),
                        "this node's name in the store",
                        absent="that of /etc/cni/cluster.json, NODENAME in the environment, or the "
                        "host name",
                        example="node-1",
                        beyond=True,
                    ),
                    Key(
                        "nodeTimeout",
                        Number(unit="s"),
                        "a node that could not reach the store for so long stops allocating; 0: it "
                        "goes on, and its blocks are never taken by time",
                        absent="that of /etc/cni/cluster.json, or 0",
                        default=0,
                        example=3600,
                        beyond=True,
                    ),
                    Key(
                        "dataDir",
                        Text("path"),
                        "where the node keeps its blocks and reservations",
                        absent="that of /etc/cni/cluster.json, or `/var/lib/cni/cluster`",
                        example="/var/lib/cni/cluster",
                        beyond=True,
                    ),
                )
            ),
            "",
            required=True,
        ),
        args(_IPS),
        runtime(replace(_IPS, capability="ips")),
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
    ),
    example={
        "type": "cluster",
        "ranges": [[{"subnet": "10.64.0.0/16"}], [{"subnet": "fd00:64::/64"}]],
        "blockSize": 26,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "store": {"type": "etcd", "endpoints": ["https://192.0.2.1:2379"]},
    },
)
