"""Keys of bridge."""

from __future__ import annotations

from .common import (
    ARG_MAC,
    BACKEND,
    HOST_INTERFACE_NAME,
    IP_MASQ,
    IPAM,
    MASQ_FAMILIES,
    MASQ_RULES,
    MASQ_SET,
    NO_DEFAULT_ROUTE,
    OUTBOUND_ADDR,
    OVERRIDING_DNS,
    ROUTER_KEYS,
    RUNTIME_MAC,
    args,
    runtime,
)
from .model import Flag, Key, Many, Number, Plugin, Record, Rule, Text

_TRUNK = Record(
    (
        Key("minID", Number(1, 4094), "first VLAN of a range", absent="no range", example=10),
        Key("maxID", Number(1, 4094), "last VLAN of the range", absent="no range", example=20),
        Key("id", Number(1, 4094), "a single VLAN", absent="none", example=42),
    )
)

PLUGIN = Plugin(
    name="bridge",
    place="main",
    about="connects the container to a Linux bridge by a veth pair",
    keys=(
        Key(
            "bridge",
            Text("interface"),
            "name of the bridge, which is created if it is missing",
            default="cni0",
            example="br0",
        ),
        IPAM,
        Key(
            "isGateway",
            Flag(),
            "the bridge gets the gateway's address; packets are forwarded",
            default=False,
            example=True,
        ),
        Key(
            "isDefaultGateway",
            Flag(),
            "implies `isGateway`; the container's default route leads to the "
            "bridge; a default route of IPAM through another gateway is an "
            "error",
            default=False,
            example=True,
        ),
        Key(
            "forceAddress",
            Flag(),
            "replace a conflicting address of the bridge",
            default=False,
            example=True,
        ),
        IP_MASQ,
        BACKEND,
        MASQ_SET,
        MASQ_FAMILIES,
        OUTBOUND_ADDR,
        Key(
            "mtu",
            Number(68, 65535, or_zero=True, word="auto"),
            "MTU of the pair, and of a bridge that is created; 0: the kernel's "
            "default; `auto`: the MTU of the default route's link, the smallest "
            "of several",
            default=0,
            example=1400,
        ),
        Key(
            "hairpinMode",
            Flag(),
            "the bridge may send a frame back through the port that it came from",
            default=False,
            example=True,
        ),
        Key(
            "promiscMode",
            Flag(),
            "the bridge is promiscuous; not together with `hairpinMode`",
            default=False,
            example=True,
        ),
        Key(
            "vlan",
            Number(0, 4094),
            "access VLAN of the port; 0: none",
            default=0,
            example=100,
        ),
        Key(
            "vlanTrunk",
            Many(_TRUNK),
            "tagged VLANs of the port",
            absent="none",
            example=[{"minID": 10, "maxID": 20}, {"id": 42}],
        ),
        Key(
            "preserveDefaultVlan",
            Flag(),
            "keep VLAN 1 on the port in addition to these VLANs",
            default=False,
            example=True,
        ),
        Key(
            "macspoofchk",
            Flag(),
            "drop frames whose source is not the container's MAC (nftables)",
            default=False,
            example=True,
        ),
        Key(
            "enabledad",
            Flag(),
            "the container detects duplicate IPv6 addresses",
            default=False,
            example=True,
        ),
        Key(
            "portIsolation",
            Flag(),
            "the port exchanges frames only with ports that are not isolated",
            default=False,
            example=True,
        ),
        Key(
            "disableContainerInterface",
            Flag(),
            "leave the container's end down; not together with `ipam`",
            default=False,
            example=True,
        ),
        Key(
            "removeEmptyBridge",
            Flag(),
            "a bridge that was created for a network with this key is removed "
            "with its last port; the interface of a VLAN's gateway is removed "
            "with the last port in that VLAN",
            default=False,
            example=True,
            beyond=True,
        ),
        Key(
            "uplinkInterface",
            Text("interface"),
            "link of the node, without addresses, that becomes a port of the "
            "bridge; it carries the VLANs of the containers, each until the "
            "last port in that VLAN is removed",
            absent="the plugin adds no uplink",
            example="eth1",
            beyond=True,
        ),
        NO_DEFAULT_ROUTE,
        *ROUTER_KEYS,
        HOST_INTERFACE_NAME,
        OVERRIDING_DNS,
        args(
            Key(
                "mac",
                Text("ownmac"),
                "MAC address of the container's interface; `runtimeConfig.mac` wins",
                absent="none",
                example="02:00:00:00:00:05",
            )
        ),
        runtime(RUNTIME_MAC),
    ),
    args=(ARG_MAC,),
    rules=(
        Rule(
            ("noDefaultRoute", "isDefaultGateway"),
            lambda get: get("noDefaultRoute") and get("isDefaultGateway"),
            "noDefaultRoute and isDefaultGateway contradict each other",
            "leave one of them out",
        ),
        Rule(
            ("promiscMode", "hairpinMode"),
            lambda get: get("hairpinMode") and get("promiscMode"),
            "hairpinMode and promiscMode cannot be used together",
            "remove one of them",
        ),
        Rule(
            ("disableContainerInterface", "ipam"),
            lambda get: get("disableContainerInterface") and get("ipam.type"),
            "disableContainerInterface cannot be used with ipam",
            "remove one of them",
        ),
        Rule(
            ("uplinkInterface", "bridge"),
            # As the plugin itself falls back to cni0.
            lambda get: get("uplinkInterface") == (get("bridge") or "cni0"),
            "uplinkInterface is the bridge itself",
            "it names the link that leads to the network outside",
        ),
        Rule(
            ("preserveDefaultVlan",),
            lambda get: get("preserveDefaultVlan") and not get("vlan") and get("vlanTrunk") is None,
            "preserveDefaultVlan has no effect without vlan or vlanTrunk",
            is_warning=True,
        ),
        *MASQ_RULES,
        Rule(
            ("ipMasq",),
            lambda get: get("ipMasq") and not get("ipam.type"),
            "ipMasq has no effect without ipam",
            is_warning=True,
        ),
        Rule(
            ("ipMasq",),
            lambda get: (
                get("ipMasq")
                and get("ipam.type")
                and not get("isGateway")
                and not get("isDefaultGateway")
            ),
            "ipMasq masquerades nothing unless the node forwards the container's packets",
            "set isGateway to true, if the node is to be the gateway",
            is_warning=True,
        ),
        Rule(
            ("isDefaultGateway", "isGateway"),
            lambda get: (get("isGateway") or get("isDefaultGateway")) and not get("ipam.type"),
            "a gateway without ipam has no address",
            is_warning=True,
        ),
    ),
    example={
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": True,
        "ipMasq": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.22.0.0/24"}]]},
    },
    link_kind="bridge",
)
