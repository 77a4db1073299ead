"""vxlan: three nodes, each a network namespace with its own state, on one Ethernet.

container ─ bridge ─ VXLAN ─ node ─┐
container ─ bridge ─ VXLAN ─ node ─┼─ switch
container ─ bridge ─ VXLAN ─ node ─┘
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from cni.kernel import link as kernel_link
from tests.harness import (
    Netns,
    Runtime,
    addresses,
    has_route,
    kind,
    link,
    links,
    ping,
    ports,
    unchanged,
)
from tests.harness.contract import await_carrier
from tests.harness.requires import requires_kernel
from tests.harness.server import serving
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Json = dict[str, Any]
pytestmark = [requires_kernel("vxlan")]

MTU = 1500


class Node(NamedTuple):
    """A node, its number, and the plugins that it runs."""

    switch: Netns
    number: int
    host: Netns
    runtime: Runtime
    containers: list[Netns]

    @property
    def address(self) -> str:
        return f"192.0.2.{self.number}"

    @property
    def address6(self) -> str:
        return f"fd00:2::{self.number}"

    def conf(self, **keys: Any) -> Json:
        """The network on this node, whose containers have 10.30.<number>.0/24 of one subnet."""
        conf: Json = {"cniVersion": "1.1.0", "name": "over", "type": "vxlan", "vni": 100, **keys}
        if "group" not in keys:
            conf.setdefault("peers", [f"192.0.2.{number}" for number in (1, 2, 3)])
        return conf

    def ipam(self, number: int, **more: Any) -> Json:
        """Addresses of container `number` here."""
        return {
            "type": "static",
            "addresses": [
                {"address": f"10.30.{self.number}.{number}/16", **more},
                {"address": f"fd30::{self.number}:{number}/64"},
            ],
        }

    def add(self, number: int = 2, **keys: Any) -> Netns:
        """Attach a container; it is number `number` of the node."""
        container = Netns(f"container {self.number}.{number}")
        self.containers.append(container)
        conf = self.conf(**{"ipam": self.ipam(number), **keys})
        self.runtime.add("vxlan", conf, container, container_id=f"c{number}").succeeded()
        return container

    def delete(self, container: Netns, number: int = 2, **keys: Any) -> None:
        conf = self.conf(**{"ipam": self.ipam(number), **keys})
        self.runtime.delete("vxlan", conf, container, container_id=f"c{number}").succeeded()

    def vxlan(self) -> Json:
        """The one VXLAN link of the node."""
        (found,) = [each for each in links(self.host).values() if kind(each) == "vxlan"]
        return found

    def sends_to(self) -> set[str]:
        """Which nodes get copies, as bridge(8) shows it."""
        name = self.vxlan()["ifname"]
        shown = self.host.exec(["bridge", "-j", "fdb", "show", "dev", name]).stdout
        return {each["dst"] for each in json.loads(shown) if each["mac"] == "00:00:00:00:00:00"}


@pytest.fixture
def nodes(netns: Callable[..., Netns], bin_dir: Path, tmp_path: Path) -> Iterator[list[Node]]:
    switch = netns("switch")
    switch.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    switch.ip("link", "set", "br0", "up")
    made = []
    for number in (1, 2, 3):
        host = netns(f"node {number}")
        connect_to(switch, host, number)
        state = {"CNI_STATE_DIR": str(tmp_path / f"state{number}")}
        made.append(Node(switch, number, host, Runtime(bin_dir, host, env=state), []))
    try:
        yield made
    finally:
        for node in made:
            for container in node.containers:
                container.close()


def connect_to(switch: Netns, host: Netns, number: int) -> None:
    peer = ["peer", "name", f"port{number}", "netns", switch.name]
    host.ip("link", "add", "eth0", "type", "veth", *peer)
    switch.ip("link", "set", f"port{number}", "master", "br0", "up")
    host.ip("link", "set", "lo", "up")
    host.ip("link", "set", "eth0", "mtu", str(MTU), "up")
    host.ip("address", "add", f"192.0.2.{number}/24", "dev", "eth0")
    host.ip("address", "add", f"fd00:2::{number}/64", "dev", "eth0", "nodad")


def nothing_left(node: Node) -> None:
    assert set(links(node.host)) == {"lo", "eth0"}


def in_other_nodes(nodes: list[Node], node: Node) -> list[int]:
    return [each.number for each in nodes if each is not node]


def all_reach(nodes: list[Node], number: int = 2) -> None:
    """The first container of each node reaches those of the others, with packets of full size."""
    for node in nodes:
        inside = node.containers[-1]
        room = link(inside, "eth0")["mtu"]
        for other in in_other_nodes(nodes, node):
            ping(inside, f"10.30.{other}.{number}", size=room - 28)
            ping(inside, f"fd30::{other}:{number}", size=room - 48)


def test_containers_of_three_nodes_reach_each_other(nodes: list[Node]) -> None:
    containers = [node.add() for node in nodes]
    all_reach(nodes)
    for node in nodes:
        others = {f"192.0.2.{number}" for number in in_other_nodes(nodes, node)}
        assert node.sends_to() == others, "this node's own address is no peer"
        found = node.vxlan()
        assert found["linkinfo"]["info_data"]["id"] == 100
        assert found["linkinfo"]["info_data"]["port"] == 4789
        assert found["ifname"] in ports(node.host, "cni-vx100")
        assert found["mtu"] == link(node.containers[0], "eth0")["mtu"] == MTU - 50
    for node, container in zip(nodes, containers, strict=True):
        for _ in range(2):
            node.delete(container)
            nothing_left(node)


def test_over_ipv6(nodes: list[Node]) -> None:
    keys: Json = {"peers": [node.address6 for node in nodes], "port": 8472}
    for node in nodes:
        node.add(**keys)
        assert node.vxlan()["mtu"] == MTU - 70
    all_reach(nodes)
    for node in nodes:
        node.delete(node.containers[0], **keys)
        nothing_left(node)


@pytest.mark.parametrize("group", ["239.1.1.1", "ff05::1:1"])
def test_multicast(nodes: list[Node], group: str) -> None:
    keys: Json = {"group": group, "dev": "eth0"}
    for node in nodes:
        node.add(**keys)
        assert node.sends_to() == {group}
    all_reach(nodes)
    for node in nodes:
        node.delete(node.containers[0], **keys)
        nothing_left(node)


def test_a_node_dies_and_comes_back(
    nodes: list[Node], netns: Callable[..., Netns], tmp_path: Path
) -> None:
    """It has lost all that is in memory; its container has another MAC then."""
    for node in nodes:
        node.add()
    all_reach(nodes)
    first, second, third = nodes
    third.containers[0].close()
    third.host.close()
    switch = nodes[0].switch
    wait_until(lambda: "port3" not in links(switch), "the node's link goes")
    ping(first.containers[0], "10.30.2.2")
    ping(first.containers[0], "10.30.3.2", expect=False)

    host = netns("node 3, again")
    connect_to(switch, host, 3)
    state = {"CNI_STATE_DIR": str(tmp_path / "state3, again")}
    again = Node(switch, 3, host, Runtime(first.runtime.bin_dir, host, env=state), third.containers)
    again.add()
    all_reach([first, second, again])


def test_links_go_with_the_last_container(nodes: list[Node]) -> None:
    node = nodes[0]
    one, two = node.add(2), node.add(3)
    node.delete(one, 2)
    assert node.vxlan()["ifname"] in ports(node.host, "cni-vx100")
    ping(two, "10.30.1.2", expect=False)
    node.delete(two, 3)
    nothing_left(node)

    keys: Json = {"removeEmptyBridge": False, "bridge": "br-own"}
    node.delete(node.add(**keys), **keys)
    assert set(links(node.host)) == {"lo", "eth0", "br-own"}

    keys = {"bridge": "br-own"}  # of somebody else, by now
    node.delete(node.add(**keys), **keys)
    assert set(links(node.host)) == {"lo", "eth0", "br-own"}


def test_gc(nodes: list[Node]) -> None:
    node = nodes[0]
    node.add(2)
    node.add(3)
    node.runtime.gc("vxlan", node.conf(), [("c3", "eth0")]).succeeded()
    assert len(ports(node.host, "cni-vx100")) == 2
    node.runtime.gc("vxlan", node.conf(), []).succeeded()
    nothing_left(node)


def test_del_without_configuration_or_namespace(nodes: list[Node]) -> None:
    """What belongs to the network is known by its name alone."""
    node = nodes[0]
    node.add()
    conf = {"cniVersion": "1.1.0", "name": "over", "vni": "nonsense"}
    node.runtime.delete("vxlan", conf, container_id="c2")
    nothing_left(node)


def test_a_failed_add_leaves_nothing(nodes: list[Node]) -> None:
    node = nodes[0]
    container = Netns("container")
    node.containers.append(container)
    conf = node.conf(ipam=node.ipam(2), hostInterfaceName="eth0")
    with unchanged(node.host, container):
        node.runtime.add("vxlan", conf, container).failed(999, "failed to name the host's end")


def test_a_failed_add_puts_the_former_peers_back(nodes: list[Node]) -> None:
    """Destinations and MTU are those of the containers that are there, also for the next ADD."""
    node = nodes[0]
    node.add(peers=["192.0.2.1", "192.0.2.2"])
    assert node.sends_to() == {"192.0.2.2"}
    container = Netns("container")
    node.containers.append(container)
    keys: Json = {"peers": ["192.0.2.1", "192.0.2.3"], "mtu": 1300}
    # the last step that can fail: the name of the node's end is taken
    conf = node.conf(ipam=node.ipam(3), **keys, hostInterfaceName="eth0")
    with unchanged(node.host, container):
        reply = node.runtime.add("vxlan", conf, container, container_id="c3")
        reply.failed(999, "has an interface of that name")
    assert node.sends_to() == {"192.0.2.2"}
    node.add(4, **keys)
    assert node.sends_to() == {"192.0.2.3"}


def test_peers_follow_the_configuration(nodes: list[Node]) -> None:
    """… with the next ADD. What a person has entered for a MAC stays."""
    node = nodes[0]
    node.add(2, peers=["192.0.2.1", "192.0.2.2"])
    name = node.vxlan()["ifname"]
    entry = ["02:00:00:00:00:09", "dev", name, "dst", "192.0.2.9"]
    node.host.exec(["bridge", "fdb", "append", *entry])
    node.add(3, peers=["192.0.2.1", "192.0.2.3"])
    assert node.sends_to() == {"192.0.2.3"}
    assert "02:00:00:00:00:09" in node.host.exec(["bridge", "fdb", "show", "dev", name]).stdout


def test_own_address_that_comes_later(nodes: list[Node]) -> None:
    """A node that has no address yet, at its start, does not send to itself later."""
    node = nodes[0]
    node.host.ip("address", "del", "192.0.2.1/24", "dev", "eth0")
    node.add(2)
    assert node.sends_to() == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
    node.host.ip("address", "add", "192.0.2.1/24", "dev", "eth0")
    node.add(3)
    assert node.sends_to() == {"192.0.2.2", "192.0.2.3"}


def test_check(nodes: list[Node]) -> None:
    node = nodes[0]
    container = Netns("container")
    node.containers.append(container)
    conf = node.conf(ipam=node.ipam(2), isGateway=True)
    result = node.runtime.add("vxlan", conf, container).result
    name = node.vxlan()["ifname"]

    def check(**keys: Any) -> Any:
        return node.runtime.check("vxlan", {**conf, **keys}, container, prev_result=result)

    check().succeeded()
    zeros = ["00:00:00:00:00:00", "dev", name, "dst", "192.0.2.2"]
    node.host.exec(["bridge", "fdb", "del", *zeros])
    check().failed(999, "does not send to the peer 192.0.2.2", "bridge fdb append")
    node.host.exec(["bridge", "fdb", "append", *zeros])
    check(vni=101).failed(999, "vni 100, want 101")
    check(port=4790).failed(999, "port 4789, want 4790")
    node.host.ip("link", "set", name, "down")
    check().failed(999, f"{name} is down")
    node.host.ip("link", "set", name, "up")
    node.host.ip("link", "set", name, "nomaster")
    check().failed(999, "is no port of the bridge cni-vx100")
    node.host.ip("link", "set", name, "master", "cni-vx100")
    node.host.ip("link", "set", "eth0", "mtu", "1400")
    check().failed(999, "large packets may be lost")
    node.host.ip("link", "set", "eth0", "mtu", str(MTU))
    check().succeeded()
    node.host.ip("link", "del", name)
    check().failed(999, f"{name} not found")


def test_what_was_broken_is_mended_by_an_add(nodes: list[Node]) -> None:
    for node in nodes:
        node.add(2)
    node = nodes[0]
    node.host.ip("link", "del", node.vxlan()["ifname"])
    node.add(3)
    ping(node.containers[0], "10.30.2.2")
    node.host.ip("link", "set", node.vxlan()["ifname"], "nomaster")
    node.add(4)
    ping(node.containers[0], "10.30.2.2")


def test_others_are_not_touched(nodes: list[Node]) -> None:
    """A VNI, a bridge and a name that are taken are errors, and stay."""
    node = nodes[0]
    container = Netns("container")
    node.containers.append(container)
    host, add = node.host, node.runtime.add
    conf = node.conf(ipam=node.ipam(2))

    host.ip("link", "add", "flannel.100", "type", "vxlan", "id", "100", "dstport", "4789")
    with unchanged(host, container):
        add("vxlan", conf, container).failed(999, "VNI 100 on port 4789 is in use", "flannel.100")
    host.ip("link", "add", "br-x", "up", "type", "bridge")
    host.ip("link", "set", "flannel.100", "master", "br-x", "up")
    await_carrier(host, "br-x")
    other = {**conf, "vni": 101, "bridge": "br-x"}
    with unchanged(host, container):
        add("vxlan", other, container).failed(999, "br-x is of another VXLAN network")
    host.ip("link", "del", "flannel.100")
    wait_until(lambda: link(host, "br-x")["operstate"] == "DOWN", "the bridge is empty")

    add("vxlan", conf, container).succeeded()
    name = node.vxlan()["ifname"]
    with unchanged(host):
        add("vxlan", {**conf, "vni": 7}, container, ifname="eth1").failed(
            999, "made for another configuration", "vni 100, want 7"
        )
        add("vxlan", {**conf, "bridge": "br-x"}, container, ifname="eth1").failed(
            999, "port of another bridge"
        )
    node.runtime.delete("vxlan", conf, container).succeeded()
    host.ip("link", "add", name, "type", "bridge")
    with unchanged(host, container):
        add("vxlan", conf, container).failed(999, f'"{name}" exists and is not of this network')
        node.runtime.delete("vxlan", conf, container).succeeded()


def test_status(nodes: list[Node]) -> None:
    node = nodes[0]
    conf = {"group": "239.1.1.1", "dev": "eth7"}
    node.runtime.status("vxlan", node.conf()).succeeded()
    node.runtime.status("vxlan", node.conf(**conf)).failed(50, "failed to lookup dev 'eth7'")
    node.host.ip("link", "add", "eth7", "type", "bridge")
    node.runtime.status("vxlan", node.conf(**conf)).failed(50, "dev eth7 is down")
    node.host.ip("link", "set", "eth7", "up")
    node.runtime.status("vxlan", node.conf(**conf)).succeeded()


def test_a_gateway_on_every_node(nodes: list[Node]) -> None:
    """With one address on all nodes the gateways have one MAC: each container uses its own node."""
    for node in nodes:
        ipam = node.ipam(2, gateway="10.30.0.1")
        node.add(ipam=ipam, isDefaultGateway=True)
    macs = {link(node.host, "cni-vx100")["address"] for node in nodes}
    assert len(macs) == 1
    for node in nodes:
        assert "10.30.0.1/16" in addresses(node.host, "cni-vx100")
        assert has_route(node.containers[0], "default", via="10.30.0.1")
        ping(node.containers[0], "10.30.0.1")
        ping(node.containers[0], node.address)
    all_reach(nodes)


def test_gateways_of_their_own(nodes: list[Node]) -> None:
    for node in nodes:
        node.add(ipam=node.ipam(2, gateway=f"10.30.{node.number}.1"), isGateway=True)
    assert len({link(node.host, "cni-vx100")["address"] for node in nodes}) == 3
    for node in nodes:
        for other in (1, 2, 3):
            ping(node.containers[0], f"10.30.{other}.1")
            ping(node.host, f"10.30.{other}.2")


def test_many_at_once(nodes: list[Node]) -> None:
    """From nothing to nothing: all of them find one bridge and one VXLAN link, and the last one
    removes both.
    """
    node, other = nodes[:2]
    other.add()
    numbers = range(2, 14)
    with ThreadPoolExecutor(4) as pool:
        containers = list(pool.map(node.add, numbers))
        assert len(ports(node.host, "cni-vx100")) == len(numbers) + 1
        assert node.sends_to() == {"192.0.2.2", "192.0.2.3"}
        for container in (containers[0], containers[-1]):
            ping(container, "10.30.2.2")
        list(pool.map(node.delete, containers, numbers))
    nothing_left(node)


def test_coming_and_going_at_once(nodes: list[Node]) -> None:
    """A link that goes with the last container never goes from under the next one."""
    node, other = nodes[:2]
    other.add()

    def come_and_go(number: int) -> None:
        for _ in range(4):
            container = node.add(number)
            ping(container, "10.30.2.2")
            node.delete(container, number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(come_and_go, (2, 3, 4)))
    nothing_left(node)


def test_through_a_server(nodes: list[Node], tmp_path_factory: pytest.TempPathFactory) -> None:
    """A worker keeps nothing of one network that counts for another one."""
    path = tmp_path_factory.mktemp("s") / "s"
    one, other = nodes[:2]
    other.add()
    second: Json = {"name": "more", "vni": 200, "ipam": {}}
    with serving(one.runtime, path, "--workers", "1"):
        one.add(2)
        one.add(3, **second)
        found = [each for each in links(one.host).values() if kind(each) == "vxlan"]
        assert {each["linkinfo"]["info_data"]["id"] for each in found} == {100, 200}
        ping(one.containers[0], "10.30.2.2")
        one.delete(one.containers[0], 2)
        one.delete(one.containers[1], 3, **second)
    nothing_left(one)


def test_a_port_is_found_without_reading_all(host: Netns) -> None:
    host.ip_batch(
        "link add br0 type bridge",
        "link add br1 type bridge",
        *(f"link add p{number} type veth peer name q{number}" for number in range(60)),
        *(f"link set p{number} master br{number % 2}" for number in range(60)),
    )
    index = {name: each["ifindex"] for name, each in links(host).items()}

    def look() -> tuple[bool, bool, bool]:
        seen: list[str] = []

        def is_first(data: bytes) -> bool:
            seen.append(kernel_link.parse(data).name)
            return True

        found = kernel_link.has_port(index["br0"], is_first)
        assert len(seen) == 1
        every: list[str] = []
        kernel_link.has_port(index["br1"], lambda data: bool(every.append(_name(data))))
        assert sorted(every) == sorted(f"p{number}" for number in range(1, 60, 2))
        last = kernel_link.has_port(index["br1"], lambda data: _name(data) == every[-1])
        return found, last, kernel_link.has_port(index["p0"], is_first)

    assert host.run(look) == (True, True, False)


def _name(data: bytes) -> str:
    return kernel_link.parse(data).name


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"vni": 0}, "invalid vni 0"),
        ({"vni": 1 << 24}, "invalid vni 16777216"),
        ({"port": 0}, "invalid port 0"),
        ({"peers": []}, "vxlan: needs peers, group or peersFrom"),
        ({"group": "239.1.1.1", "peers": ["192.0.2.1"], "dev": "eth0"}, "exclude each other"),
        ({"group": "239.1.1.1"}, "group needs dev"),
        ({"group": "192.0.2.9", "dev": "eth0"}, "no multicast address"),
        ({"peers": ["239.1.1.1"]}, "no address of a node"),
        ({"peers": ["0.0.0.0"]}, "no address of a node"),
        ({"peers": ["192.0.2.1", "fd00:2::2"]}, "of both families"),
        ({"peers": ["192.0.2.1"], "local": "fd00:2::1"}, "of both families"),
        ({"peers": ["fe80::1"]}, "link-local address fe80::1 needs dev"),
        ({"peers": ["node1"]}, "invalid IP address"),
        ({"peers": ["192.0.2.2"], "dev": "eth7"}, "failed to lookup dev"),
        ({"peers": ["192.0.2.2"], "dev": "eth0", "mtu": 1451}, "at most 1450 fits"),
        ({"bridge": "a/b"}, "invalid bridge"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_refusals(nodes: list[Node], keys: Json, text: str) -> None:
    node = nodes[0]
    container = Netns("container")
    node.containers.append(container)
    with unchanged(node.host, container):
        node.runtime.add("vxlan", node.conf(**keys), container).failed(999, text)
