"""Keys that several plugins have, and those of a network configuration list.

Longer than 400 lines: a catalogue, whose entries are looked up one by one and have no other order.
"""

from __future__ import annotations

from cni.protocol.config import VERSIONS

from .model import Anything, Flag, IpamRecord, Key, Many, Number, Record, Rule, Table, Text


def _families(addresses: list[str] | None) -> set[str]:
    """Of which families these addresses are, as `ipMasqFamilies` says it."""
    return {"ipv6" if ":" in each else "ipv4" for each in addresses or ()}


# In two keys, which must not drift apart.
_MAC_MEANING = "MAC address of the container's interface"

DNS = Record(
    (
        Key(
            "nameservers",
            Many(Text("address")),
            "addresses of name servers",
            absent="none",
            example=["192.0.2.53"],
        ),
        Key("domain", Text(), "the local domain", absent="none", example="example.org"),
        Key(
            "search",
            Many(Text()),
            "domains to look up short names in",
            absent="none",
            example=["example.org"],
        ),
        Key(
            "options",
            Many(Text()),
            "options of the resolver, as in resolv.conf(5)",
            absent="none",
            example=["ndots:2"],
        ),
    )
)

ROUTE = Record(
    (
        Key(
            "dst",
            Text("prefix"),
            "destination of the route",
            required=True,
            example="10.1.0.0/16",
        ),
        Key(
            "gw",
            Text("address"),
            "next hop; routes that differ only in their next hop become one multipath route",
            absent="the gateway of the address, of the same family",
            example="10.1.2.1",
        ),
        Key("mtu", Number(), "MTU of the route", default=0, example=1400),
        Key("advmss", Number(), "TCP segment size to advertise", default=0, example=1360),
        Key("priority", Number(), "metric; 0: the kernel's default", default=0, example=100),
        Key(
            "metric",
            Number(),
            "another name for `priority`, which takes precedence",
            default=0,
            example=100,
            beyond=True,
        ),
        Key("table", Number(), "routing table", absent="the main table", example=100),
        Key(
            "scope",
            Number(0, 255),
            "scope of the route",
            absent="the kernel's default",
            example=253,
        ),
    )
)

IPAM = Key(
    "ipam",
    IpamRecord(),
    "the IPAM plugin (`type`) and its keys",
    absent="the interface gets no address",
    example={"type": "host-local", "subnet": "10.22.0.0/24"},
)

RESULT_DNS = Key(
    "dns",
    DNS,
    "copied into the result",
    absent="none",
    example={"nameservers": ["192.0.2.53"]},
)
OVERRIDING_DNS = Key(
    "dns",
    DNS,
    "replaces the DNS settings of IPAM in the result",
    absent="those of IPAM",
    example={"nameservers": ["192.0.2.53"]},
)

IP_MASQ = Key(
    "ipMasq",
    Flag(),
    "masquerade packets that leave the subnet",
    default=False,
    example=True,
)
BACKEND = Key(
    "ipMasqBackend",
    Text(values=("iptables", "nftables")),
    "how to masquerade",
    absent="iptables, or nftables where iptables cannot be used",
    example="nftables",
)

MASQ_SET = Key(
    "ipMasqSet",
    Flag(),
    "masquerade with nftables, by sets of addresses instead of a rule for each address: a new "
    "connection costs the same however many containers there are",
    default=False,
    example=True,
    beyond=True,
)
MASQ_FAMILIES = Key(
    "ipMasqFamilies",
    Many(Text(values=("ipv4", "ipv6"))),
    "masquerade only addresses of these families, because the network outside routes the others",
    absent="both",
    example=["ipv4"],
    beyond=True,
)
OUTBOUND_ADDR = Key(
    "outboundAddr",
    Many(Text("address"), most=2),
    "source addresses of masqueraded packets, at most one for each "
    "family; they must be addresses of the node",
    absent="the address of the outgoing link",
    example=["192.0.2.7"],
    beyond=True,
)
MASQ_RULES = (
    Rule(
        ("outboundAddr",),
        lambda get: get("outboundAddr") and not get("ipMasq"),
        "outboundAddr has no effect without ipMasq",
        "set ipMasq to true",
        is_warning=True,
    ),
    Rule(
        ("outboundAddr",),
        lambda get: len(_families(get("outboundAddr"))) < len(get("outboundAddr") or ()),
        "outboundAddr has two addresses of one family",
        "give one IPv4 and one IPv6 address at most",
    ),
    Rule(
        ("outboundAddr", "ipMasqFamilies"),
        lambda get: (
            get("ipMasqFamilies") and _families(get("outboundAddr")) - set(get("ipMasqFamilies"))
        ),
        "outboundAddr has an address of a family that ipMasqFamilies leaves out",
        "leave out the address, or add the family to ipMasqFamilies",
        is_warning=True,
    ),
    Rule(
        ("ipMasqFamilies",),
        lambda get: get("ipMasqFamilies") and not get("ipMasq"),
        "ipMasqFamilies has no effect without ipMasq",
        "set ipMasq to true",
        is_warning=True,
    ),
    Rule(
        ("ipMasqBackend",),
        lambda get: get("ipMasqBackend") and not get("ipMasq"),
        "ipMasqBackend has no effect without ipMasq",
        "set ipMasq to true",
        is_warning=True,
    ),
    Rule(
        ("ipMasqSet",),
        lambda get: get("ipMasqSet") and not get("ipMasq"),
        "ipMasqSet has no effect without ipMasq",
        "set ipMasq to true",
        is_warning=True,
    ),
    Rule(
        ("ipMasqSet", "ipMasqBackend"),
        lambda get: get("ipMasqSet") and get("ipMasq") and get("ipMasqBackend") == "iptables",
        "ipMasqSet cannot be used with ipMasqBackend iptables",
        'set ipMasqBackend to "nftables", or leave it out',
    ),
)

VETH_MTU = Key(
    "mtu",
    Number(68, 65535, or_zero=True, word="auto"),
    "MTU of both ends; 0: the kernel's default; `auto`: the MTU of the "
    "default route's link, the smallest of several",
    default=0,
    example=1400,
)

ARG_MAC = Key("MAC", Text("ownmac"), _MAC_MEANING, absent="none", example="02:00:00:00:00:05")


NO_DEFAULT_ROUTE = Key(
    "noDefaultRoute",
    Flag(),
    "leave out the default routes from IPAM, because the container has them on another interface",
    default=False,
    example=True,
    beyond=True,
)
ROUTER_KEYS = (
    Key(
        "acceptRA",
        Flag(),
        "whether the container's interface processes router advertisements "
        "(IPv6); set before the interface is up",
        absent="the setting of the container's namespace",
        example=False,
        beyond=True,
    ),
    Key(
        "autoconf",
        Flag(),
        "whether the container's interface takes addresses from router "
        "advertisements; set before the interface is up",
        absent="the setting of the container's namespace",
        example=False,
        beyond=True,
    ),
)
HOST_INTERFACE_NAME = Key(
    "hostInterfaceName",
    Text("interface"),
    "name of the node's end of the pair; for a network with one container on a node",
    absent="`veth` and eight digits that are derived from the attachment",
    example="web0",
    beyond=True,
)


def runtime(*keys: Key) -> Key:
    """`runtimeConfig` with these keys; others belong to other plugins of the list."""
    return Key(
        "runtimeConfig",
        Record(keys, is_open=True),
        "values that the runtime passes for the declared `capabilities`",
        absent="empty",
    )


DEVICE_MASTER = Key(
    "deviceID",
    Text(),
    "PCI address of a device, or name of an auxiliary device; its link "
    "is the master if `master` is not set",
    absent="none",
    example="0000:3b:00.1",
    beyond=True,
    capability="deviceID",
)


def args(*keys: Key) -> Key:
    """`args.cni` with these keys; beside `cni` stand objects of runtimes."""
    cni = Key(
        "cni",
        Record(keys, is_open=True),
        "arguments in the form of the specification",
        absent="none",
    )
    return Key("args", Record((cni,), is_open=True), "arguments for this network", absent="none")


RUNTIME_MAC = Key(
    "mac",
    Text("ownmac"),
    f"{_MAC_MEANING}; wins over the other sources",
    absent="none",
    example="02:00:00:00:00:05",
    capability="mac",
)
RANGE_KEYS = (
    Key(
        "subnet",
        Text("prefix"),
        "the subnet; /30 or larger (IPv6: /126)",
        required=True,
        example="10.22.0.0/24",
    ),
    Key(
        "rangeStart",
        Text("address"),
        "first address to allocate",
        absent="the first of the subnet",
        example="10.22.0.10",
    ),
    Key(
        "rangeEnd",
        Text("address"),
        "last address to allocate",
        absent="the last of the subnet, except the broadcast address",
        example="10.22.0.99",
    ),
    Key(
        "gateway",
        Text("address"),
        "copied into the result, and never allocated",
        absent="the first address of the subnet",
        example="10.22.0.1",
    ),
    Key(
        "exclude",
        Many(Text("span")),
        "addresses that are never allocated: `10.0.0.5`, `10.0.0.8/29`, `10.0.0.8-10.0.0.11`",
        default=[],
        example=["10.22.0.20-10.22.0.29"],
        beyond=True,
    ),
)

PORT_MAPPINGS = Key(
    "portMappings",
    Many(
        Record(
            (
                Key("hostPort", Number(1, 65535), "port of the node", required=True, example=8080),
                Key(
                    "containerPort",
                    Number(1, 65535),
                    "port of the container",
                    required=True,
                    example=80,
                ),
                Key(
                    "protocol",
                    Text("protocol"),
                    "`tcp`, `udp` or `sctp`",
                    default="tcp",
                    example="udp",
                ),
                Key(
                    "hostIP",
                    Text("address"),
                    "publish on this address of the node only",
                    absent="all addresses",
                    example="192.0.2.7",
                ),
            )
        )
    ),
    "the ports to publish",
    default=[],
    example=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
    capability="portMappings",
)

# The keys of every plugin's object; those of the second group do not count as settings.
COMMON = (
    Key("type", Text(), "name of the plugin", required=True, example="bridge"),
    Key(
        "cniVersion",
        Text(values=VERSIONS),
        "version of the specification; in a list, the list's version is used",
        default=VERSIONS[0],
        example="1.0.0",
    ),
    Key(
        "name",
        Text("network"),
        "name of the network; in a list, the list's name is used",
        required=True,
        example="mynet",
    ),
    Key(
        "capabilities",
        Table(Flag(), "capability"),
        "which values this plugin, or its IPAM plugin, accepts from the runtime in `runtimeConfig`",
        absent="nothing",
        example={"portMappings": True},
    ),
    Key("prevResult", Anything(), "result of the earlier plugins of the list; the runtime sets it"),
    Key(
        "args",
        Record((), is_open=True),
        "arguments for this network: `cni` as in the specification, other "
        "keys as runtimes define them",
        absent="none",
    ),
    runtime(),
    Key(
        "logLevel",
        Text(values=("off", "errors", "all"), ignores_others=True),
        "which requests are logged (docs/observability.md)",
        absent="the node's setting, else `errors`",
        example="all",
        beyond=True,
    ),
    Key(
        "logFile",
        Text("logfile"),
        "where requests are logged: `journal`, or a file in /var/log/cni",
        absent="the node's setting, else `journal`",
        example="/var/log/cni/requests.log",
        beyond=True,
    ),
)

LIST = (
    Key(
        "cniVersion",
        Text(values=VERSIONS),
        "version of the specification that the plugins are called with",
        default=VERSIONS[0],
        example="1.0.0",
    ),
    Key(
        "cniVersions",
        Many(Text()),
        "versions to choose from: the highest one that the runtime supports is used",
        absent="only `cniVersion`",
        example=["0.3.1", "1.0.0", "1.1.0"],
    ),
    Key("name", Text("network"), "name of the network", required=True, example="mynet"),
    Key(
        "disableCheck",
        Flag(or_text=True),
        "the runtime does not call CHECK",
        default=False,
        example=True,
    ),
    Key(
        "disableGC", Flag(or_text=True), "the runtime does not call GC", default=False, example=True
    ),
    Key(
        "loadOnlyInlinedPlugins",
        Flag(or_text=True),
        "do not append the plugins in `<name>/*.conf` beside the file",
        default=False,
        example=True,
    ),
    Key(
        "plugins",
        Many(Record(COMMON, is_open=True)),
        "the plugins, in the order of ADD",
        required=True,
    ),
)
