"""What a request costs does not grow with the node: plugins that test_flat.py does not list.

Also not with the number of networks on the node. As there, calls and bytes are counted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import requires_kernel
from tests.harness.contract import MASTER, PEER, plug, without_dad
from tests.harness.dhcp import radvd
from tests.harness.server import serving
from tests.netns.test_flat import (
    Chain,
    growth,
    host_local,
    least,
    nets_of,
    plugins_of,
    result_with,
    with_iptables,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness import Netns, Runtime

    Json = dict[str, Any]

pytestmark = [pytest.mark.own_server, pytest.mark.slow, pytest.mark.timeout(900)]

FEW, MANY = 10, 60
VISITS = 5  # more of them if one has cost more than with few


class Lists(Chain):
    """Attachments whose containers do nothing by themselves, so that counts are always the same."""

    def __init__(
        self, runtime: Runtime, make: Callable[..., Netns], plugins: list[Json], networks: int = 1
    ) -> None:
        def quiet(name: str) -> Netns:
            container = make(name)
            without_dad(container)
            container.set_sysctl("net/ipv6/conf/default/addr_gen_mode", 1)
            if plugins[0].get("ipam", {}).get("type") == "slaac":
                container.set_sysctl("net/ipv6/conf/default/addr_gen_mode", 0)
            if plugins[0]["type"] == "bond":
                container.ip_batch(
                    "link add lan0 type veth peer name lan1",
                    "link add lan2 type veth peer name lan3",
                )
            return container

        super().__init__(runtime, quiet, plugins)
        self.networks = networks

    def conf(self, plugin: Json, number: int, result: Json | None) -> Json:
        network = number % self.networks
        own: Json = {"name": f"flat{network}"}
        if plugin["type"] == "bridge":
            own["bridge"] = f"brflat{network}"
        if self.networks > 1 and "ipam" in plugin:
            ranges = [[{"subnet": f"10.{network}.0.0/16"}], [{"subnet": f"fd99:{network}::/64"}]]
            own["ipam"] = {**plugin["ipam"], "ranges": ranges}
        return super().conf({**plugin, **own}, number, result)


def cluster(tmp_path: Path) -> Json:
    store = {"type": "directory", "path": str(tmp_path / "store")}
    own = {"type": "cluster", "blockSize": 25, "nodeName": "n1", "store": store}
    return {**own, "dataDir": str(tmp_path / "blocks"), "ranges": [[{"subnet": "10.96.0.0/16"}]]}


def flannel(tmp_path: Path) -> Json:
    """flannel with what flanneld has written."""
    subnets = [
        "FLANNEL_NETWORK=10.96.0.0/12",
        "FLANNEL_SUBNET=10.99.0.1/16",
        "FLANNEL_IPV6_NETWORK=fd99::/48",
        "FLANNEL_IPV6_SUBNET=fd99::1/64",
        *("FLANNEL_MTU=1430", "FLANNEL_IPMASQ=true"),
    ]
    file = tmp_path / "subnet.env"
    file.write_text("\n".join(subnets) + "\n")
    own = {"type": "flannel", "subnetFile": str(file), "dataDir": str(tmp_path / "flannel")}
    return {**own, "ipam": {"dataDir": str(tmp_path / "leases")}}


def advertise(outside: Netns, tmp_path: Path) -> None:
    """A router on the network outside, which answers solicitations."""
    outside.ip("address", "add", "fe80::1/64", "dev", PEER, "nodad")
    radvd(outside, tmp_path / "ra", PEER, "prefix fd55::/64 { AdvAutonomous on; };")


def lists(name: str, tmp_path: Path) -> list[Json]:
    """The list of plugins in which the one of that name has something to do."""
    ipam = host_local(tmp_path)
    ptp: Json = {"type": "ptp", "ipam": ipam}
    master: Json = {"master": MASTER, "ipam": ipam}
    added = [{"dst": "10.89.0.0/16", "gw": "10.99.0.1"}, {"dst": "fd89::/64"}]
    bond = {"type": "bond", "mode": "active-backup", "miimon": "100", "linksInContainer": True}
    bonded = [{"name": "lan0"}, {"name": "lan2"}]
    snat = {"type": "portmap", "backend": "nftables", "snat": True, "masqAll": True}
    found: dict[str, list[Json]] = {
        "route-override": [ptp, {"type": "route-override", "addroutes": added}],
        "tc-redirect-tap": [ptp, {"type": "tc-redirect-tap"}],
        "vrf": [ptp, {"type": "vrf", "vrfname": "blue"}],
        "loopback": [{"type": "loopback"}],
        "bond": [{**bond, "links": bonded, "ipam": ipam}],
        "macvtap": [{"type": "macvtap", **master}],
        "vlan of a bridge": [{"type": "bridge", "vlan": 7, "ipam": ipam}],
        "bridge with macspoofchk": [{"type": "bridge", "macspoofchk": True, "ipam": ipam}],
        "macvlan with hostShim": [{"type": "macvlan", "hostShim": True, **master}],
        "portmap with snat": [ptp, snat],
        "ptp with masquerading": [{**ptp, "ipMasq": True, "ipMasqBackend": "nftables"}],
        "cluster": [{"type": "ptp", "ipam": cluster(tmp_path)}],
        "flannel": [flannel(tmp_path)],
        "slaac": [{"type": "macvlan", "master": MASTER, "ipam": {"type": "slaac"}}],
    }
    return found[name]


OF_LAB = {
    "vrf": "vrf",
    "bond": "bond",
    "macvtap": "macvtap",
    "vlan of a bridge": "vlan_filtering",
}
# A DEL that is repeated has no intent that says that the rules are gone, so it lists them.
LISTING = (
    *("bridge DEL again: netlink", "ptp DEL again: netlink", "firewall DEL again: netlink"),
    # nor a note that says that the routes through hostShim are gone
    "macvlan DEL again: netlink bytes answered",
    # STATUS looks for chains that drop, and the kernel lists all
    "firewall STATUS: netlink bytes answered",
)
# A DEL of what host-local's index does not know reads all files, if they are 128 at most.
SMALL_DIRECTORY = re.compile(r"\w+ DEL again: (files|entries of )")


def measured(chain: Lists, log: Path, first: int = FEW, last: int = MANY) -> list[str]:
    """What the verbs cost more of with the last number of attachments than with the first."""
    chain.grow(first)
    chain.visit(log)  # what the first one makes of its own
    few = least(chain.visit(log), chain.visit(log))
    chain.grow(last)
    many = least(chain.visit(log), chain.visit(log))
    assert sum(map(len, many.values()))
    grown = unlisted(growth(few, many, last - first))
    # A request that waits for the kernel (an address, a link) asks more often on a busy machine.
    for _ in range(VISITS):
        if not grown:
            break
        many = least(many, chain.visit(log))
        grown = unlisted(growth(few, many, last - first))
    return grown


def unlisted(grown: list[str]) -> list[str]:
    """Without what is known to grow."""
    return [
        line for line in grown if not SMALL_DIRECTORY.match(line) and not line.startswith(LISTING)
    ]


@pytest.fixture
def server(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with serving(runtime, tmp_path_factory.mktemp("s") / "s", "--workers", "2"):
        yield


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "name",
    [
        "route-override",
        "tc-redirect-tap",
        "loopback",
        "portmap with snat",
        "ptp with masquerading",
        "cluster",
        "bridge with macspoofchk",
        "macvlan with hostShim",
        "flannel",
        "slaac",
        *(pytest.param(name, marks=requires_kernel(need)) for name, need in OF_LAB.items()),
    ],
)
def test_a_list_costs_no_more_with_many_containers(
    runtime: Runtime, netns: Callable[..., Netns], outside: Netns, tmp_path: Path, name: str
) -> None:
    plug(runtime.host, outside)
    if name == "slaac":
        advertise(outside, tmp_path)
    grown = measured(Lists(runtime, netns, lists(name, tmp_path)), tmp_path / "trace")
    assert grown == [], "\n".join(grown)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_verb_costs_no_more_with_many_networks(
    runtime: Runtime, netns: Callable[..., Netns], tmp_path: Path, backend: str
) -> None:
    """Each attachment is in a network of its own, with a bridge of its own."""
    plugins = plugins_of("rules", tmp_path) if backend == "nftables" else with_iptables(tmp_path)
    chain = Lists(runtime, netns, plugins, networks=100)
    # few dozens of portmap's chains are listed, so that fewer requests are needed
    grown = measured(chain, tmp_path / "trace", 40, 90)
    if backend == "iptables":  # which has no index, so chains are read, in larger parts
        grown = [line for line in grown if "answered" not in line]
    assert grown == [], "\n".join(grown)


def test_many_networks_with_ports_leave_nothing(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """So many chains are not listed; ADD makes what is missing all the same."""
    portmap: Json = {"type": "portmap", "backend": "nftables", "snat": True}
    chain = Chain(runtime, lambda *_: container, [portmap])

    def conf(number: int) -> Json:
        previous = result_with(f"10.{number}.0.2/24")
        return chain.conf(portmap, number, previous) | {"name": f"n{number}"}

    def add(number: int) -> None:
        runtime.add("portmap", conf(number), container, container_id=f"pod{number}").succeeded()

    for number in range(40):
        add(number)
    complete = nets_of(runtime.host)
    assert len(complete) == 40
    before = rules_of(runtime.host)
    for name in ("published_lookup", "published_output", "masquerade_0x2000"):
        runtime.host.exec(["nft", "flush", "chain", "ip", "cni_hostport", name])
    assert rules_of(runtime.host) != before
    assert runtime.call("CHECK", "portmap", conf(7), container, container_id="pod7").rc == 1
    add(7)
    assert rules_of(runtime.host) == before
    runtime.call("CHECK", "portmap", conf(7), container, container_id="pod7").succeeded()
    for number in range(40):
        assert len(nets_of(runtime.host)) == 40 - number
        runtime.delete("portmap", conf(number), container, container_id=f"pod{number}").succeeded()
    assert "cni_hostport" not in runtime.host.exec(["nft", "list", "tables"]).stdout


def rules_of(host: Netns) -> str:
    """The rules of portmap's table, without the elements and their order."""
    text = host.exec(["nft", "-s", "list", "table", "ip", "cni_hostport"]).stdout
    return text[text.index("chain ") :]
