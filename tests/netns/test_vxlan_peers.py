"""vxlan whose peers come from a store: three nodes, each a network namespace with its own state.

container ─ bridge ─ VXLAN ─ node ─┐
container ─ bridge ─ VXLAN ─ node ─┼─ switch      a store that all of them reach
container ─ bridge ─ VXLAN ─ node ─┘
"""

from __future__ import annotations

import json
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from cni.server.tending import Following
from cni.store.config import open_store
from tests.harness import Netns, Runtime, addresses, link, links, ping
from tests.harness.etcd import EtcdCluster
from tests.harness.requires import requires_kernel
from tests.harness.server import children, command, serving
from tests.harness.wait import wait_until
from tests.netns.test_vxlan import Node, connect_to, nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cni.store.interface import Store

Json = dict[str, Any]
pytestmark = [requires_kernel("vxlan")]


class Cluster:
    """Three nodes whose networks name a store in a directory."""

    def __init__(self, netns: Callable[..., Netns], bin_dir: Path, directory: Path) -> None:
        self.netns, self.bin_dir, self.directory = netns, bin_dir, directory
        self.switch = netns("switch")
        self.switch.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self.switch.ip("link", "set", "br0", "up")
        self.options: Json = {"type": "directory", "path": str(directory / "store")}
        self.store: Store = open_store(self.options)
        self.nodes: list[Peer] = []

    def node(self, number: int, address: int = 0) -> Peer:
        """Node `number`, at 192.0.2.<address>; what it has on its disk is there again."""
        host = self.netns(f"node {number} at {address or number}")
        connect_to(self.switch, host, number)
        if address:
            host.ip("address", "del", f"192.0.2.{number}/24", "dev", "eth0")
            host.ip("address", "add", f"192.0.2.{address}/24", "dev", "eth0")
        return self.prepared(host, number, address)

    def prepared(self, host: Netns, number: int, address: int = 0) -> Peer:
        """The node that the namespace `host` is."""
        state = self.directory / f"run{number}{address}"
        disk = self.directory / f"disk{number}"
        settings = self.directory / f"cluster{number}.json"
        settings.write_text(
            json.dumps(
                {"store": self.options, "nodeName": f"n{number}", "dataDir": str(disk / "data")}
            )
        )
        env = {"CNI_STATE_DIR": str(state), "CNI_CLUSTER_CONF": str(settings)}
        made = Peer(self.switch, number, host, Runtime(self.bin_dir, host, env=env), [])
        self.nodes.append(made)
        return made

    def endpoints(self) -> dict[str, list[str]]:
        """What nodes have published, by node."""
        found = self.store.list("endpoints/").items
        return {item.key.rpartition("/")[2]: item.value["addresses"] for item in found}

    def close(self) -> None:
        for node in self.nodes:
            for container in node.containers:
                container.close()


class Peer(Node):
    def conf(self, **keys: Any) -> Json:
        conf: Json = {"cniVersion": "1.1.0", "name": "over", "type": "vxlan", "vni": 100}
        return {**conf, "peersFrom": "cluster", "dev": "eth0", **keys}

    @contextmanager
    def serving(self, path: Path) -> Iterator[None]:
        """A server on the node that follows the store."""
        own = ("CNI_STATE_DIR", "CNI_CLUSTER_CONF")
        prefix = ["env", *(f"{name}={self.runtime.env[name]}" for name in own)]
        with serving(self.runtime, path, "--workers", "1", prefix=prefix) as server:
            wait_until(
                lambda: Following.name in map(command, children(server.pid)),
                "the store is followed",
            )
            yield

    def copies_to(self, *numbers: int) -> None:
        """Wait until exactly these nodes get copies."""
        wanted = {f"192.0.2.{number}" for number in numbers}
        wait_until(lambda: self.sends_to() == wanted, f"node {self.number} sends to {wanted}")


@pytest.fixture
def cluster(netns: Callable[..., Netns], bin_dir: Path, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(netns, bin_dir, tmp_path)
    try:
        yield made
    finally:
        made.close()


def sent(host: Netns) -> int:
    """UDP packets to the port of VXLAN that left a node by eth0, as nftables counts them."""
    shown = host.exec(["nft", "-j", "list", "chain", "inet", "count", "out"]).stdout
    (rule,) = [each["rule"] for each in json.loads(shown)["nftables"] if "rule" in each]
    return int(next(each["counter"]["packets"] for each in rule["expr"] if "counter" in each))


def count_packets(host: Netns, address: str) -> None:
    host.exec(
        ["nft", "-f", "-"],
        stdin="add table inet count\n"
        "add chain inet count out { type filter hook output priority 0; }\n"
        f"add rule inet count out ip daddr {address} udp dport 4789 counter\n",
    )


def test_adds_alone_publish_and_learn(cluster: Cluster) -> None:
    """Without a server: each ADD knows all that were there before it."""
    nodes = [cluster.node(number) for number in (1, 2, 3)]
    for node in nodes:
        node.add()
    assert cluster.endpoints() == {
        f"n{number}": [f"192.0.2.{number}", f"fd00:2::{number}"] for number in (1, 2, 3)
    }
    assert [node.sends_to() for node in nodes] == [
        set(),
        {"192.0.2.1"},
        {"192.0.2.1", "192.0.2.2"},
    ]
    for node in nodes[:2]:
        node.add(3)
    for node in nodes:
        node.copies_to(*{1, 2, 3} - {node.number})
    ping(nodes[0].containers[0], "10.30.3.2")
    ping(nodes[2].containers[0], "10.30.2.2")


def test_a_node_dies_and_comes_back_with_another_address(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Servers follow the store. Entries of the dead node stay until it says where it is now."""
    directory = tmp_path_factory.mktemp("s")
    nodes = [cluster.node(number) for number in (1, 2, 3)]
    first, second, third = nodes
    with ExitStack() as servers:
        for node in nodes:
            node.add()
        for node in nodes[:2]:
            servers.enter_context(node.serving(directory / str(node.number)))
        for node in nodes:
            if node is not third:
                node.copies_to(*{1, 2, 3} - {node.number})
        ping(first.containers[0], "10.30.3.2")
        ping(second.containers[0], "10.30.3.2")

        third.containers[0].close()
        third.host.close()
        wait_until(lambda: "port3" not in links(cluster.switch), "the node's link goes")
        ping(first.containers[0], "10.30.3.2", expect=False)
        first.copies_to(2, 3)
        ping(first.containers[0], "10.30.2.2")

        count_packets(first.host, "192.0.2.3")
        again = cluster.node(3, address=33)
        again.add(4)
        assert cluster.endpoints()["n3"] == ["192.0.2.33", "fd00:2::3"]
        first.copies_to(2, 33)
        second.copies_to(1, 33)
        before = sent(first.host)
        ping(first.containers[0], "10.30.3.4")
        ping(again.containers[0], "10.30.2.2")
        ping(first.containers[0], "10.30.2.2")
        assert sent(first.host) == before, "nothing goes to the address that the node had"


def test_what_was_learned_of_an_old_address_is_forgotten(
    cluster: Cluster, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A container with the MAC that was known elsewhere is reached before it sends anything."""
    first, second = cluster.node(1), cluster.node(2)
    mac: Json = {"runtimeConfig": {"mac": "02:00:00:00:00:77"}}
    first.add()
    second.add(**mac)
    name = first.vxlan()["ifname"]

    def known() -> str:
        return first.host.exec(["bridge", "fdb", "show", "dev", name]).stdout

    with first.serving(tmp_path_factory.mktemp("s") / "s"):
        first.copies_to(2)
        ping(first.containers[0], "10.30.2.2")
        second.host.ip("link", "set", "eth0", "down")  # it dies, and nothing is learned any more
        assert "02:00:00:00:00:77 dst 192.0.2.2" in known()
        by_hand = ["02:00:00:00:00:09", "dev", name, "dst", "192.0.2.2"]
        first.host.exec(["bridge", "fdb", "append", *by_hand])
        item = cluster.store.read("endpoints/over/n2")
        assert item is not None
        cluster.store.update(item, {**item.value, "addresses": ["192.0.2.22"]})
        wait_until(lambda: first.sends_to() == {"192.0.2.22"}, "the address is followed")
        wait_until(lambda: "02:00:00:00:00:77 dst" not in known(), "what was learned goes")
        assert "02:00:00:00:00:09 dst 192.0.2.2" in known(), "what a person entered stays"


def test_a_store_that_is_away(cluster: Cluster, tmp_path: Path) -> None:
    """ADD goes on with the peers that are known, and STATUS says it."""
    first, second = cluster.node(1), cluster.node(2)
    second.add()
    first.add()
    place = tmp_path / "store"
    place.rename(tmp_path / "elsewhere")
    place.write_text("no directory")
    container = Netns("container")
    first.containers.append(container)
    conf = first.conf(ipam=first.ipam(3))
    reply = first.runtime.add("vxlan", conf, container, container_id="c3").succeeded()
    assert "going on with the 1 peers that are known" in reply.stderr
    assert first.sends_to() == {"192.0.2.2"}
    ping(container, "10.30.2.2")
    first.runtime.status("vxlan", conf).failed(51, "vxlan: directory", "the 1 nodes that are known")
    first.runtime.check(
        "vxlan", conf, container, container_id="c3", prev_result=reply.result
    ).succeeded()
    for number in (2, 3):
        first.delete(first.containers[number - 2], number)
    nothing_left(first)
    place.unlink()
    (tmp_path / "elsewhere").rename(place)
    first.runtime.status("vxlan", conf).succeeded()


def test_a_new_node_without_a_store(cluster: Cluster, tmp_path: Path) -> None:
    """Its containers reach each other; what they lack is told."""
    node = cluster.node(1)
    (tmp_path / "store").write_text("no directory")
    node.add()
    node.runtime.status("vxlan", node.conf()).failed(50, "vxlan: directory")
    assert node.sends_to() == set()


def test_another_node_of_the_name(cluster: Cluster) -> None:
    """It is refused, and the other's endpoint stays; once it was forgotten the name is free."""
    node = cluster.node(1)
    value: Json = {"node": "n1", "uid": "ff", "vni": 100, "port": 4789, "addresses": ["192.0.2.9"]}
    cluster.store.create("endpoints/over/n1", value)
    container = Netns("container")
    node.containers.append(container)
    reply = node.runtime.add("vxlan", node.conf(), container)
    reply.failed(999, "another node is called n1", "cni ipam forget --force n1")
    nothing_left(node)
    assert cluster.endpoints() == {"n1": ["192.0.2.9"]}
    cluster.store.create("lost/ff", {"node": "n1", "since": 1})
    node.add()
    assert cluster.endpoints() == {"n1": ["192.0.2.1", "fd00:2::1"]}


def test_what_others_write_is_not_believed(cluster: Cluster) -> None:
    """Only addresses that a node can have, and those of this network."""
    for number, (vni, texts) in enumerate(
        [
            (
                100,
                ["192.0.2.8", "239.1.1.1", "127.0.0.1", "0.0.0.0", "nonsense", "255.255.255.255"],
            ),
            (101, ["192.0.2.7"]),
            (100, "192.0.2.6"),
            (100, [7, None]),
        ]
    ):
        node = f"x{number}"
        value: Json = {"node": node, "uid": "x", "vni": vni, "port": 4789, "addresses": texts}
        cluster.store.create(f"endpoints/over/{node}", value)
    value = {"node": "x", "uid": "x", "vni": 100, "port": 4789, "addresses": ["192.0.2.5"]}
    cluster.store.create("endpoints/other/x", value)
    cluster.store.create("endpoints/over/y", {**value, "node": "z"})
    first = cluster.node(1)
    first.add()
    assert first.sends_to() == {"192.0.2.8"}


def test_the_address_follows_the_node(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A running node gets another address: its server publishes that."""
    first, second = cluster.node(1), cluster.node(2)
    first.add()
    second.add()
    directory = tmp_path_factory.mktemp("s")
    with first.serving(directory / "1"), second.serving(directory / "2"):
        first.copies_to(2)
        second.host.ip("address", "del", "192.0.2.2/24", "dev", "eth0")
        second.host.ip("address", "add", "192.0.2.22/24", "dev", "eth0")
        first.copies_to(22)
        assert cluster.endpoints()["n2"][0] == "192.0.2.22"


def test_over_ipv6(cluster: Cluster) -> None:
    keys: Json = {"local": "", "dev": "eth0"}
    first, second = cluster.node(1), cluster.node(2)
    for node in (first, second, first):
        node.add(len(node.containers) + 2, **{**keys, "local": node.address6})
    assert cluster.endpoints() == {"n1": ["fd00:2::1"], "n2": ["fd00:2::2"]}
    assert first.sends_to() == {"fd00:2::2"}
    assert link(first.containers[0], "eth0")["mtu"] == 1430
    ping(first.containers[0], "10.30.2.2", size=1430 - 28)


def test_etcd(
    netns: Callable[..., Netns],
    bin_dir: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A watch of etcd: nodes come while one is served, and also after etcd was away."""
    with closing(EtcdCluster(netns, tmp_path)) as etcd, ExitStack() as stack:
        cluster = Cluster(netns, bin_dir, tmp_path)
        stack.callback(cluster.close)
        cluster.options = etcd.options(timeout=2, stateDir="")
        found = [(etcd.another_node(), number) for number in (1, 2, 3)]
        first, second, third = (cluster.prepared(host, number) for host, number in found)
        places = {
            node.number: next(
                each for each in addresses(node.host, "eth0") if "10.99." in each
            ).partition("/")[0]
            for node in (first, second, third)
        }
        first.add()
        stack.enter_context(first.serving(tmp_path_factory.mktemp("s") / "s"))
        second.add()
        wait_until(lambda: first.sends_to() == {places[2]}, "the second node is seen")
        ping(first.containers[0], "10.30.2.2")

        etcd.members[0].kill()
        second.add(3)
        first.add(3)
        assert first.sends_to() == {places[2]}
        conf = first.conf(ipam=first.ipam(4))
        wait_until(lambda: first.runtime.status("vxlan", conf).rc, "STATUS says it")
        first.runtime.status("vxlan", conf).failed(51, "vxlan: etcd")
        etcd.members[0].start()
        wait_until(
            lambda: not first.runtime.status("vxlan", conf).rc, "the store is followed again"
        )
        third.add()
        both = {places[2], places[3]}
        wait_until(lambda: first.sends_to() == both, "the third node is seen")
        ping(third.containers[0], "10.30.1.2")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"peersFrom": "dns"}, "invalid peersFrom 'dns'"),
        ({"peers": ["192.0.2.1"]}, "exclude each other"),
        ({"group": "239.1.1.1"}, "exclude each other"),
        ({"store": {"type": "nonsense"}}, "store.type: 'nonsense' is unknown"),
        ({"peersFrom": "", "peers": ["192.0.2.1"], "store": {}}, "store needs peersFrom"),
        ({"dev": ""}, "this node has no address to publish"),
        ({"dev": "eth7"}, "no address to publish"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_refusals(cluster: Cluster, keys: Json, text: str) -> None:
    node = cluster.node(1)
    container = Netns("container")
    node.containers.append(container)
    node.runtime.add("vxlan", node.conf(**keys), container).failed(999, text)
    nothing_left(node)
    assert cluster.endpoints() == {}
