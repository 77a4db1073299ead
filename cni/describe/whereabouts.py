"""Keys of whereabouts: those of the plugin of that name, and of cluster what fits beside them."""

from __future__ import annotations

from . import pool
from .common import args, runtime
from .model import Anything, Flag, Key, Many, Plugin, Record, Text, replace

_MEANINGLESS = (
    ("leader_lease_duration", "there is no leader"),
    ("leader_renew_deadline", "there is no leader"),
    ("leader_retry_period", "there is no leader"),
    ("reconciler_cron_expression", "`cni ipam reconcile` and GC do that work"),
    ("sleep_for_race", "there is no race to test"),
    ("log_file", "see docs/observability.md"),
    ("log_level", "see docs/observability.md"),
    ("datastore", "`store` says where blocks are claimed"),
    *(
        (f"etcd_{name}", "`store` says where blocks are claimed")
        for name in ("host", "username", "password", "key_file", "cert_file", "ca_cert_file")
    ),
    ("overlapping_ranges", "addresses of one space are unique, whatever the ranges"),
)
_OF_RANGE = (
    Key(
        "range",
        Text(),
        "the subnet, or the first and the last address in it: `10.1.0.10-10.1.0.20/24`",
        absent="`ipRanges`",
        example="10.1.0.0/24",
    ),
    Key("range_start", Text("address"), "first address to allocate", absent="the subnet's first"),
    Key("range_end", Text("address"), "last address to allocate", absent="the subnet's last"),
    Key(
        "exclude",
        Many(Text("span")),
        "addresses of `range` that are never allocated",
        default=[],
        example=["10.1.0.0/28"],
    ),
)
_ADDRESS = Record(
    (
        Key("address", Text("prefix"), "address with prefix", required=True, example="10.9.0.5/24"),
        Key("gateway", Text("address"), "its gateway", absent="none", example="10.9.0.1"),
    )
)
_OTHER_DEFAULTS = {
    "blockSize": "32: single addresses",
    "blockSizeV6": "128: single addresses",
    "reserve": "0",
}


def _default(key: Key) -> object:
    if key.name == "noGateway":
        return True
    return None if key.name in _OTHER_DEFAULTS else key.default


PLUGIN = Plugin(
    name="whereabouts",
    place="ipam",
    about="is cluster, and takes the keys of the plugin of that name",
    keys=(
        Key(
            "ipam",
            Record(
                (
                    *_OF_RANGE,
                    Key(
                        "ipRanges",
                        Many(Record(_OF_RANGE)),
                        "more ranges: a container gets an address of each",
                        default=[],
                        example=[{"range": "fd00:1::/64"}],
                    ),
                    Key(
                        "gateway",
                        Text("address"),
                        "copied into the result, with the addresses of its range; never allocated",
                        absent="the result has no gateway",
                        example="10.1.0.1",
                    ),
                    *(replace(key, beyond=False) for key in pool.keys("routes", "dns")),
                    Key(
                        "addresses",
                        Many(_ADDRESS),
                        "added to the result, and recorded nowhere",
                        default=[],
                        example=[{"address": "10.9.0.5/24"}],
                    ),
                    Key(
                        "network_name",
                        Text(),
                        "address space; each address is used at most once in each space",
                        absent="`default`",
                        example="blue",
                    ),
                    Key(
                        "enable_overlapping_ranges",
                        Flag(),
                        "always enabled: ranges of one address space may overlap",
                        default=True,
                    ),
                    Key(
                        "node_slice_size",
                        Text(),
                        "prefix length of the blocks that nodes claim",
                        absent="single addresses",
                        example="/26",
                    ),
                    Key(
                        "kubernetes",
                        Record(
                            (
                                Key(
                                    "kubeconfig",
                                    Text("path"),
                                    "the store, if there is no other",
                                    absent="the service account",
                                ),
                                Key("k8s_api_root", Text(), "is not used", absent="none"),
                            )
                        ),
                        "the store is the Kubernetes API",
                        absent="`store`",
                        example={"kubeconfig": "/etc/cni/kubeconfig"},
                    ),
                    Key(
                        "configuration_path",
                        Text("path"),
                        "the flat file, which has keys for all networks of the node",
                        absent="whereabouts.d/whereabouts.conf below /etc/kubernetes/cni/net.d, "
                        "/etc/cni/net.d or /host/etc/cni/net.d",
                    ),
                    *(
                        Key(name, Anything(), f"is ignored: {why}", absent="no difference")
                        for name, why in _MEANINGLESS
                    ),
                    *(
                        replace(
                            key,
                            default=_default(key),
                            absent=_OTHER_DEFAULTS.get(key.name, key.absent),
                        )
                        for key in pool.keys(
                            "blockSize",
                            "blockSizeV6",
                            "reserve",
                            "cooldown",
                            "noGateway",
                            "sticky",
                            "conflictCheck",
                            "store",
                            "nodeName",
                            "nodeTimeout",
                            "dataDir",
                        )
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
    rules=pool.STORE_RULES,
    example={
        "type": "whereabouts",
        "range": "10.1.0.0/24",
        "exclude": ["10.1.0.0/28"],
        "gateway": "10.1.0.1",
        "kubernetes": {"kubeconfig": "/etc/cni/net.d/whereabouts.d/whereabouts.kubeconfig"},
    },
)
