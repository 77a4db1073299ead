"""What is measured: plugins and their configurations."""

from __future__ import annotations

import functools
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from tests.bench.measure import VERSION, Json, Node
from tests.harness import JoinedNetns
from tests.harness.card import Card
from tests.harness.dhcp import radvd


@dataclass(frozen=True)
class Case:
    """One plugin with one configuration; `conf` may depend on the node's data directory."""

    name: str
    conf: Callable[[Node], Json]
    needs: str = ""  # a feature of the kernel, see tests.harness.requires
    program: str = ""  # a program that `around` starts
    # What is there while it runs, and is not measured.
    around: Callable[[Node], AbstractContextManager[Any]] = nullcontext


def host_local(node: Node) -> Json:
    return {
        "type": "host-local",
        "dataDir": str(node.data_dir),
        "ranges": [[{"subnet": "10.66.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }


def simple(plugin: str, **conf: Any) -> Callable[[Node], Json]:
    """A plugin's configuration; with the IPAM plugin host-local unless another is given."""

    def make(node: Node) -> Json:
        document = {"cniVersion": VERSION, "name": "bench", "type": plugin, **conf}
        return document if plugin == "loopback" else {"ipam": host_local(node), **document}

    return make


STATIC = {"type": "static", "addresses": [{"address": "10.66.0.9/16", "gateway": "10.66.0.1"}]}
# A default gateway makes a default route itself; host-local's would be a second one.
NO_ROUTES = {"isGateway": True, "isDefaultGateway": True}


def default_gateway(node: Node) -> Json:
    conf = simple("bridge", bridge="brdef", **NO_ROUTES)(node)
    del conf["ipam"]["routes"]
    return conf


def flannel(node: Node) -> Json:
    """flannel, bridge and host-local; flanneld's file is written by us."""
    subnet_file = node.data_dir / "subnet.env"
    if not subnet_file.exists():
        subnet_file.parent.mkdir(parents=True, exist_ok=True)
        subnet_file.write_text(
            "FLANNEL_NETWORK=10.64.0.0/12\nFLANNEL_SUBNET=10.66.0.1/16\n"
            "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        )
    where = {"subnetFile": str(subnet_file), "dataDir": str(node.data_dir / "flannel")}
    return simple("flannel", delegate={"bridge": "brflannel"}, **where)(node)


def own_backend(**conf: Any) -> Callable[[Node], Json]:
    """Masquerading by nftables with ours; Debian's Go plugins know only iptables."""

    def make(node: Node) -> Json:
        backend = {"ipMasqBackend": "nftables"} if node.name != "go" else {}
        return simple("bridge", **conf, **backend)(node)

    return make


def tuning(node: Node) -> Json:
    """On the container's `lo`, as if another plugin had made it."""
    previous = {"cniVersion": VERSION, "interfaces": [{"name": "lo"}]}
    return {
        "cniVersion": VERSION,
        "name": "bench",
        "type": "tuning",
        "dataDir": str(node.run_dir / "tuning"),
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
        "mtu": 1400,
        "prevResult": previous,
    }


@contextmanager
def veth(node: Node) -> Iterator[None]:
    """A pair as bridge or ptp would have made it: vethbench on the node, eth0 in the container."""
    peer = ["peer", "name", "eth0", "netns", node.container.name]
    node.host.ip("link", "add", "vethbench", "type", "veth", *peer)
    try:
        yield
    finally:
        node.host.ip("link", "delete", "vethbench")


def bandwidth(_: Node) -> Json:
    interfaces = [{"name": "vethbench"}, {"name": "eth0", "sandbox": "/run/netns/pod"}]
    return {
        "cniVersion": VERSION,
        "name": "bench",
        "type": "bandwidth",
        "ingressRate": 100_000_000,
        "ingressBurst": 10_000_000,
        "egressRate": 100_000_000,
        "egressBurst": 10_000_000,
        "prevResult": {"cniVersion": VERSION, "interfaces": interfaces},
    }


@contextmanager
def two_links(node: Node) -> Iterator[None]:
    """Links of the node for a bond, port0 and port1."""
    node.host.ip_batch(
        *(f"link add port{n} type veth peer name far{n}" for n in range(2)),
        *(f"link set far{n} up" for n in range(2)),
    )
    try:
        yield
    finally:
        for number in range(2):
            node.host.ip("link", "delete", f"port{number}")


@contextmanager
def addressed(node: Node) -> Iterator[None]:
    """An interface with an address and a default route in the container, eth0."""
    node.container.ip_batch(
        "link add eth0 type veth peer name eth0p",
        "link set eth0 up",
        "link set eth0p up",
        "address add 10.66.0.9/16 dev eth0",
        "route add default via 10.66.0.1",
    )
    try:
        yield
    finally:
        node.container.ip("link", "delete", "eth0")


def routed(plugin: str, **conf: Any) -> Callable[[Node], Json]:
    """sbr or vrf, on `addressed`."""
    ips = [{"address": "10.66.0.9/16", "gateway": "10.66.0.1", "version": "4"}]
    previous = {"cniVersion": VERSION, "ips": ips}
    document = {"cniVersion": VERSION, "name": "bench", "type": plugin, "prevResult": previous}
    return lambda _: {**document, **conf}


def ports(*numbers: int, address: str = "10.66.0.9/16") -> Json:
    """What a runtime hands to portmap: the result before it, and the ports."""
    mappings = [{"hostPort": n, "containerPort": n, "protocol": "tcp"} for n in numbers]
    previous = {"cniVersion": VERSION, "ips": [{"address": address}]}
    return {"prevResult": previous, "runtimeConfig": {"portMappings": mappings}}


def portmap(node: Node) -> Json:
    """By nftables with ours; Debian's Go plugins know only iptables."""
    conf = simple("portmap", **ports(8080))(node)
    return {key: value for key, value in conf.items() if key != "ipam"}


def portmap_iptables(node: Node) -> Json:
    return {**portmap(node), **({"backend": "iptables"} if node.name != "go" else {})}


def chained(plugin: str, **conf: Any) -> Callable[[Node], Json]:
    """A plugin that comes after another, with that one's result."""

    def make(_node: Node) -> Json:
        previous = {
            "cniVersion": VERSION,
            "interfaces": [{"name": "brchain"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.66.0.9/16", "gateway": "10.66.0.1", "interface": 1}],
        }
        document = {"cniVersion": VERSION, "name": "bench", "type": plugin, **conf}
        return {**document, "prevResult": previous}

    return make


def own_firewall(node: Node) -> Json:
    """By nftables with ours; the Go plugins know only iptables (and firewalld)."""
    backend = "nftables" if node.name != "go" else "iptables"
    return chained("firewall", backend=backend)(node)


def claiming(kind: str, name: str, **keys: Any) -> Callable[[Node], Json]:
    """An IPAM plugin that claims what it allocates from, in the node's store."""

    def make(node: Node) -> Json:
        # the node's uid is there: a node has one
        ipam = {"type": kind, "dataDir": str(node.data_dir / "claims"), **keys}
        return {"cniVersion": VERSION, "name": name, "type": kind, "ipam": ipam}

    return make


def wireguard(node: Node) -> Json:
    key_file = node.run_dir / "key"
    if not key_file.exists():
        key_file.touch(0o600)
        key_file.write_bytes(b64encode(b"k" * 32) + b"\n")
    peer = {
        "publicKey": "XsR1bUUmlqAUQpQNqNKAoMgUg7WgsadKJnNmCa72H2U=",
        "endpoint": "192.0.2.1:51820",
        "subnets": ["10.67.0.0/16"],
    }
    return simple("wireguard", privateKeyFile=str(key_file), peers=[peer])(node)


@contextmanager
def lan_address(node: Node) -> Iterator[None]:
    """An address on lan0, which the node publishes."""
    node.host.ip("address", "add", "192.0.2.9/24", "dev", "lan0")
    try:
        yield
    finally:
        node.host.ip("address", "delete", "192.0.2.9/24", "dev", "lan0")


@contextmanager
def router(node: Node) -> Iterator[None]:
    """A router at the other end of lan0, which answers at once, and no duplicate detection."""
    node.container.set_sysctl("net/ipv6/conf/default/accept_dad", 0)
    prefix = "prefix fd66::/64 { AdvAutonomous on; };"
    server = radvd(node.host, node.scratch / "radvd", "dev0", prefix)
    try:
        yield
    finally:
        server.stop()


def slaac(node: Node) -> Json:
    return simple("macvlan", master="lan0", ipam={"type": "slaac"})(node)


@functools.cache
def card() -> Card:
    """The card of `tools/debian-lab --card`, with one function for all rounds."""
    return Card(JoinedNetns("/proc/1/ns/net"), 1)


def sriov(node: Node) -> Json:
    address = card().functions[0].address
    return simple("sriov", deviceID=address, vlan=66, spoofchk="on", trust="on")(node)


@contextmanager
def on_card(node: Node) -> Iterator[None]:
    """The plugin runs where the card's links are."""
    home, node.host = node.host, card().node
    try:
        yield
    finally:
        node.host = home


CASES = [
    Case("loopback", simple("loopback")),
    Case("host-local", simple("host-local")),
    Case("static", simple("static", ipam=STATIC)),
    # The node keeps a block after the first ADD; single addresses are claimed by each.
    Case("cluster", claiming("cluster", "blocks", ranges=[[{"subnet": "10.66.0.0/16"}]])),
    Case("whereabouts", claiming("whereabouts", "single", range="10.68.0.0/16")),
    Case(
        "whereabouts, node_slice_size",
        claiming("whereabouts", "slices", range="10.69.0.0/16", node_slice_size="/26"),
    ),
    Case("bridge", simple("bridge", bridge="brplain")),
    Case("bridge, default gateway", default_gateway),
    Case(
        "bridge, ipMasq (iptables)",
        simple("bridge", bridge="brmasq", isGateway=True, ipMasq=True),
    ),
    Case("bridge, ipMasq (nftables)", own_backend(bridge="brnft", isGateway=True, ipMasq=True)),
    Case("bridge, macspoofchk", simple("bridge", bridge="brspoof", macspoofchk=True), "nft"),
    Case("firewall (iptables)", chained("firewall", backend="iptables")),
    Case("firewall (nftables)", own_firewall),
    Case("ptp", simple("ptp")),
    Case("macvlan", simple("macvlan", master="lan0"), "macvlan"),
    Case("macvtap", simple("macvtap", master="lan0"), "macvtap"),
    Case("ipvlan", simple("ipvlan", master="lan0"), "ipvlan"),
    Case("vlan", simple("vlan", master="lan0", vlanId=7), "vlan"),
    Case("dummy", simple("dummy"), "dummy"),
    Case("vxlan", simple("vxlan", vni=66, peers=["192.0.2.1", "192.0.2.2"]), "vxlan"),
    Case(
        "vxlan, peersFrom",
        simple("vxlan", name="bench-store", vni=67, peersFrom="cluster", dev="lan0"),
        "vxlan",
        around=lan_address,
    ),
    Case("wireguard", wireguard, "wireguard"),
    Case("sriov", sriov, "card", around=on_card),
    Case("macvlan, slaac", slaac, "macvlan", program="radvd", around=router),
    Case("tap", simple("tap"), "tap"),
    Case("flannel (bridge)", flannel),
    Case(
        "bond",
        simple(
            "bond",
            mode="active-backup",
            miimon="100",
            links=[{"name": "port0"}, {"name": "port1"}],
        ),
        "bond",
        around=two_links,
    ),
    Case("host-device", simple("host-device", device="dev0")),
    Case("tuning", tuning),
    Case("bandwidth", bandwidth, around=veth),
    Case("sbr", routed("sbr"), around=addressed),
    Case(
        "route-override",
        routed(
            "route-override",
            flushgateway=True,
            addroutes=[{"dst": "10.67.0.0/16", "gw": "10.66.0.1"}],
        ),
        around=addressed,
    ),
    Case(
        "tc-redirect-tap",
        routed("tc-redirect-tap"),
        "tc-redirect-tap",
        around=addressed,
    ),
    Case("vrf", routed("vrf", vrfname="blue"), "vrf", around=addressed),
    Case("portmap (nftables)", portmap, "nft"),
    Case("portmap (iptables)", portmap_iptables, "iptables"),
]
