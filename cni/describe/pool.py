"""Keys of a pool, as cluster, whereabouts and host-local have them, and of a store of blocks."""

from __future__ import annotations

from .common import DNS, RANGE_KEYS, ROUTE
from .model import Anything, Flag, Get, Key, Many, Number, Record, Rule, Text, replace

RANGE = Record(RANGE_KEYS)


def single(form: str, absent: str, *, beyond: bool) -> tuple[Key, ...]:
    """The keys of a range that stand directly in `ipam`, which is what `form` says in words."""
    return tuple(
        replace(
            key,
            required=False,
            text=f"of a single range{form}: {key.text}",
            absent=key.absent or absent,
            beyond=beyond,
        )
        # Without `exclude`, which has a meaning of its own directly in `ipam`.
        for key in RANGE_KEYS[:4]
    )


def ranges(absent: str, *examples: str, beyond: bool) -> Key:
    """The key `ranges`; `examples` are subnets, a set each."""
    return Key(
        "ranges",
        Many(Many(RANGE)),
        "range sets, each a list of ranges: an ADD gets one address of every set",
        absent=absent,
        example=[[{"subnet": each}] for each in examples],
        beyond=beyond,
    )


IPS = Key(
    "ips",
    Many(Text("request")),
    "addresses that the container asks for, of the pool's ranges",
    default=[],
    example=["10.64.0.7"],
    beyond=True,
)
ARGS = (
    Key("IP", Text(), "an address that the container asks for", absent="none"),
    Key("K8S_POD_NAMESPACE", Text(), "with `sticky`: whose address it is", absent="none"),
    Key("K8S_POD_NAME", Text(), "with `sticky`: whose address it is", absent="none"),
)

_FILE = "a PEM file"
_OF = {  # which engine reads what, beside `type` and `timeout`
    "directory": (Key("path", Text("path"), "where it is", default="/var/lib/cni/cluster/store"),),
    "etcd": (
        Key(
            "endpoints",
            Many(Text()),
            "URLs of members, with host and port",
            absent="required",
            example=["https://192.0.2.1:2379"],
        ),
        Key("caFile", Text("path"), _FILE, absent="the system's authorities"),
        Key("certFile", Text("path"), f"{_FILE}: this node's certificate", absent="none"),
        Key("keyFile", Text("path"), f"{_FILE}: its key", absent="none"),
        Key(
            "serverName",
            Text(),
            "the name in the members' certificates",
            absent="the endpoint's host",
        ),
        Key("username", Text(), "user name for the login", absent="no login"),
        Key("passwordFile", Text("path"), "file with the password, in one line", absent="none"),
        Key("prefix", Text("path"), "prefix of all keys in the store", default="/cni/v1"),
        Key(
            "stateDir",
            Text("path"),
            "directory in which this node notes the latest revision of the store that it has seen",
            default="/var/lib/cni/cluster",
        ),
    ),
    "kubernetes": (
        Key(
            "kubeconfig",
            Text("path"),
            "file with the address of the API and the credentials",
            absent="the service account",
        ),
        Key("server", Text(), "URL of the API, instead of a kubeconfig", absent="none"),
        Key("caFile", Text("path"), _FILE, absent="the system's authorities"),
        Key("tokenFile", Text("path"), "file with the token, for use with `server`", absent="none"),
        Key("namespace", Text(), "ignored: the objects are not in a namespace", absent="none"),
    ),
}


def _readers(name: str) -> list[str]:
    """The engines that read a key."""
    return [engine for engine, keys in _OF.items() if any(key.name == name for key in keys)]


_BY_NAME = {key.name: key for keys in _OF.values() for key in keys}
STORE = Record(
    (
        Key(
            "type",
            Text(values=tuple(_OF)),
            "type of store, on which the other keys depend",
            required=True,
            example="etcd",
        ),
        Key("timeout", Anything(), "seconds for one request", default=10, example=5),
        *(
            replace(
                key, text=f"of {' and '.join(f'`{each}`' for each in _readers(name))}: {key.text}"
            )
            for name, key in _BY_NAME.items()
        ),
    )
)

# Of plugins with `peersFrom`.
STORE_OF_PEERS = Key(
    "store",
    STORE,
    "the store of `peersFrom`",
    absent="the store of `ipam` if its type is cluster or whereabouts, else "
    "the one in /etc/cni/cluster.json",
    example={"type": "etcd", "endpoints": ["https://192.0.2.1:2379"]},
)


def _of_another(name: str, path: str) -> Rule:
    readers = _readers(name)

    def broken(get: Get) -> bool:
        kind = get(f"{path}.type")
        # Of an unknown type nothing can be said; the type itself is a finding.
        return get(f"{path}.{name}") is not None and kind in _OF and kind not in readers

    return Rule(
        (f"{path}.{name}",),
        broken,
        f"store.{name}: unknown key",
        f"it is a key of stores of type {' or '.join(readers)}: remove it, or correct `type`",
    )


def store_rules(path: str) -> tuple[Rule, ...]:
    """What the keys of the store at `path` have to do with each other."""
    return tuple(_of_another(name, path) for name in _BY_NAME)


STORE_RULES = store_rules("ipam.store")


_ALL = {
    key.name: key
    for key in (
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
            "copied into the result",
            default=[],
            example=[{"dst": "0.0.0.0/0"}],
            beyond=True,
        ),
        Key("dns", DNS, "copied into the result", absent="none", beyond=True),
        Key(
            "blockSize",
            Number(1, 32, or_zero=True),
            "prefix length of the blocks of IPv4 subnets; 32: single addresses",
            default=0,
            absent="26, or for small subnets four more than the subnet's prefix length",
            example=26,
            beyond=True,
        ),
        Key(
            "blockSizeV6",
            Number(1, 128, or_zero=True),
            "prefix length of the blocks of IPv6 subnets",
            default=0,
            absent="122, or for small subnets four more than the subnet's prefix length",
            example=122,
            beyond=True,
        ),
        Key(
            "noGateway",
            Flag(),
            "a subnet without the key `gateway` has no gateway: its first "
            "address can be allocated, and the result contains no gateway",
            default=False,
            example=True,
            beyond=True,
        ),
        Key(
            "space",
            Text(),
            "name of the address space; each address is used at most once in each space",
            absent="`default`",
            example="tenant-a",
            beyond=True,
        ),
        Key(
            "reserve",
            Number(),
            "number of addresses that each node keeps free by claiming blocks in advance",
            default=8,
            example=16,
            beyond=True,
        ),
        Key(
            "cooldown",
            Number(0, 1200, unit="s"),
            "how long a released address stays unused before another container can get it",
            default=0,
            example=60,
            beyond=True,
        ),
        Key(
            "sticky",
            Flag(),
            "a pod gets the address that the last pod of its name had on this node, if it is free",
            default=False,
            example=True,
            beyond=True,
        ),
        Key(
            "conflictCheck",
            Record(
                (
                    Key("probes", Number(1, 10), "number of probes", default=3),
                    Key(
                        "interval",
                        Number(1, 5000, unit="ms"),
                        "time between two probes",
                        default=100,
                    ),
                    Key("gateway", Flag(), "also require that the gateways answer", default=False),
                )
            ),
            "an ADD asks on the link (ARP, neighbour discovery) whether another "
            "host has the address, and if so takes another one; `{}`: three "
            "probes",
            absent="no check",
            example={"probes": 3, "interval": 100, "gateway": True},
            beyond=True,
        ),
        Key(
            "store",
            STORE,
            "store in which blocks are claimed",
            absent="the store in /etc/cni/cluster.json",
            example={"type": "etcd", "endpoints": ["https://192.0.2.1:2379"]},
            beyond=True,
        ),
        Key(
            "nodeName",
            Text(),
            "this node's name in the store",
            absent="the name in /etc/cni/cluster.json, NODENAME in the environment, or "
            "the host name",
            example="node-1",
            beyond=True,
        ),
        Key(
            "nodeTimeout",
            Number(unit="s"),
            "the blocks of a node without containers are freed when its server "
            "has been silent for twice this time; 0: never",
            absent="the value in /etc/cni/cluster.json, or 0",
            default=0,
            example=3600,
            beyond=True,
        ),
        Key(
            "dataDir",
            Text("path"),
            "directory for the node's blocks and reservations",
            absent="the directory in /etc/cni/cluster.json, or `/var/lib/cni/cluster`",
            example="/var/lib/cni/cluster",
            beyond=True,
        ),
    )
}


def keys(*names: str) -> tuple[Key, ...]:
    """The keys of these names, in their order."""
    return tuple(_ALL[name] for name in names)
