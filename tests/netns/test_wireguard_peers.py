"""wireguard whose peers come from a store: each node is a network namespace with its own state.

container ─ routes ─ WireGuard ─ node ─┐
container ─ routes ─ WireGuard ─ node ─┼─ switch      a store that all of them reach
container ─ routes ─ WireGuard ─ node ─┘
"""

from __future__ import annotations

import base64
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from cni.ipam.cluster import rounds
from tests.harness import Netns, links, ping, routes
from tests.harness.requires import requires_kernel
from tests.harness.wait import wait_until
from tests.netns import test_vxlan_peers, test_wireguard
from tests.netns.test_wireguard import PORT, nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Json = dict[str, Any]
pytestmark = [requires_kernel("wireguard")]


class Peer(test_wireguard.Node):
    """A node; its private key is in `key_file`, whose public one the store gets."""

    def conf(self, peers: list[Json], number: int, **keys: Any) -> Json:
        conf = super().conf(peers, number)
        del conf["peers"]
        conf |= {"peersFrom": "cluster", "dev": "eth0", "subnets": self.peer()["subnets"]}
        return {**conf, "allowedSubnets": ["10.40.0.0/16", "fd40::/64"], **keys}

    @property
    def public(self) -> str:
        path = self.key_file.with_name(f"{self.key_file.name}.pub")
        return path.read_text().strip() if path.exists() else ""

    def knows(self, *nodes: Peer, port: int = PORT, address: str = "") -> None:
        """Wait until exactly these nodes are peers, with their keys, endpoints and subnets."""
        wanted = {
            other.public: (
                f"{address or f'192.0.2.{other.number}'}:{port}",
                set(other.peer()["subnets"]),
            )
            for other in nodes
        }
        wait_until(lambda: self.shown() == wanted, f"node {self.number} has the peers {wanted}")


class Cluster(test_vxlan_peers.Cluster):
    """Nodes whose networks name a store in a directory."""

    def prepared(self, host: Netns, number: int, address: int = 0) -> Any:
        vxlan = super().prepared(host, number, address)
        key_file = self.directory / f"disk{number}" / "key"
        self.nodes[-1] = made = Peer(number, host, vxlan.runtime, key_file, {})  # type: ignore[call-overload]
        return made

    def published(self) -> dict[str, Json]:
        """What nodes say of themselves, by node."""
        found = self.store.list("endpoints/over/").items
        return {item.key.rpartition("/")[2]: item.value for item in found}

    def close(self) -> None:
        every: Any = self.nodes
        for node in every:
            for container in node.containers.values():
                container.close()


@pytest.fixture
def cluster(netns: Callable[..., Netns], bin_dir: Path, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(netns, bin_dir, tmp_path)
    try:
        yield made
    finally:
        made.close()


def serving(node: Any, path: Path) -> Any:
    """A server on the node that follows the store."""
    return test_vxlan_peers.Peer.serving(node, path)


def all_text(cluster: Cluster) -> str:
    """All that the store has, and what nodes have noted of it."""
    paths = [path for path in cluster.directory.rglob("*") if path.is_file()]
    return "\n".join(
        path.read_text(errors="replace")
        for path in paths
        if not path.name.startswith("key") or path.suffix == ".pub"
    )


def test_nodes_come_die_and_come_back_as_others(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Servers follow the store. One node dies, and is back with another key and endpoint."""
    directory = tmp_path_factory.mktemp("s")
    nodes: list[Any] = [cluster.node(number) for number in (1, 2, 3)]
    first, second, third = nodes
    with ExitStack() as servers:
        first.add([])
        servers.enter_context(serving(first, directory / "1"))
        second.add([])
        first.knows(second)
        third.add([])
        first.knows(second, third)
        third.knows(first, second)
        assert third.shown() == {
            other.public: (f"192.0.2.{other.number}:{PORT}", set(other.peer()["subnets"]))
            for other in (first, second)
        }, "an ADD alone learns of all that were there before it"
        second.add([], 3)
        second.knows(first, third)
        test_wireguard.all_reach(nodes)
        for node in nodes:
            private = node.key_file.read_text().strip()
            assert private not in all_text(cluster), "a private key stays on its node"
            assert base64.b64decode(private).hex() not in all_text(cluster)

        was = third.public
        third.containers[2].close()
        third.host.close()
        wait_until(lambda: "port3" not in links(cluster.switch), "the node's link goes")
        first.knows(second, third)
        assert test_wireguard.is_cut_off(first.containers[2], "10.40.3.2")
        third.key_file.unlink()
        again: Any = cluster.node(3, address=33)
        again.add([], 4, listenPort=51999)
        assert again.public != was
        place = {again.public: "192.0.2.33:51999", second.public: f"192.0.2.2:{PORT}"}
        wait_until(
            lambda: {key: each[0] for key, each in first.shown().items()} == place,
            "the others know its new key and endpoint, and no longer the former one",
        )
        ping(first.containers[2], "10.40.3.4", timeout=60)
        ping(again.containers[4], "10.40.1.2", timeout=60)
        ping(first.containers[2], "10.40.2.2", timeout=60)

        item = cluster.store.read("endpoints/over/n3")
        assert item is not None
        cluster.store.delete(item)  # as `cni ipam forget` does
        first.knows(second)
        gone = again.peer()["subnets"]
        assert not [each for each in routes(first.host) if each["dst"] in gone]
        assert test_wireguard.is_cut_off(again.containers[4], "10.40.1.2")


def test_what_others_write_is_not_believed(cluster: Cluster) -> None:
    """A record takes no packets from this node, from another one, or from the default route."""
    node, honest = cluster.node(1), cluster.node(2)
    honest.add([])
    node.add([])
    honest.add([], 3)
    ping(node.containers[2], "10.40.2.2", timeout=60)

    def says(number: int, *subnets: str, **more: Any) -> None:
        name = f"x{number}"
        key = base64.b64encode(bytes((number,)) * 32).decode()
        value: Json = {"node": name, "uid": name, "port": PORT, "addresses": ["192.0.2.66"]}
        value |= {"publicKey": key, "subnets": list(subnets), **more}
        cluster.store.create(f"endpoints/over/{name}", value)

    says(1, "10.40.1.0/24")
    says(2, "10.40.2.128/25", "10.40.66.0/24")
    says(3, "0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "192.0.2.0/24")
    says(4, "10.40.67.0/24", publicKey=honest.public)
    says(5, "10.40.68.0/24", addresses=["10.40.2.2"])
    before = node.host.ip("route")
    container = node.containers.setdefault(9, Netns("container 9"))
    conf = node.conf([], 9)
    done = node.runtime.add("wireguard", conf, container, container_id="c9").succeeded()
    for text in (
        "x1 is refused: 10.40.1.0/24 overlaps a subnet of this node",
        "x2 is refused: 10.40.2.128/25 overlaps a subnet of n2",
        "x3 is refused: 0.0.0.0/0 is not in the subnets of this network",
        "x4 is refused: another node has its publicKey",
        "x5 is refused: its address 10.40.2.2 is in the subnets",
    ):
        assert f"endpoints/over/{text}" in done.stderr
    allowed = {frozenset(subnets) for _, subnets in node.shown().values()}
    assert allowed == {
        frozenset(honest.peer()["subnets"]),
        frozenset({"10.40.66.0/24"}),
        frozenset({"(none)"}),
    }
    new = set(node.host.ip("route").splitlines()) - set(before.splitlines())
    assert {line.split()[0] for line in new} == {"10.40.66.0/24", "10.40.1.9"}
    ping(node.containers[2], "10.40.2.2", timeout=60)
    again = node.runtime.check(
        "wireguard", conf, container, container_id="c9", prev_result=done.result
    )
    again.succeeded()


def test_without_a_store(cluster: Cluster, tmp_path: Path) -> None:
    """ADD goes on with the peers that are known, and STATUS says it; DEL asks no store."""
    first, second = cluster.node(1), cluster.node(2)
    second.add([])
    first.add([])
    second.add([], 4)
    place = tmp_path / "store"
    place.rename(tmp_path / "elsewhere")
    place.write_text("no directory")
    conf = first.conf([], 3)
    container = first.containers.setdefault(3, Netns("container 3"))
    done = first.runtime.add("wireguard", conf, container, container_id="c3").succeeded()
    assert "going on with the 1 peers that are known" in done.stderr
    ping(container, "10.40.2.2", timeout=60)
    first.runtime.status("wireguard", conf).failed(51, "wireguard: directory")
    first.delete([], 2)
    first.delete([], 3)
    nothing_left(first)
    cluster.node(3).runtime.status("wireguard", conf).failed(50, "wireguard: directory")


def test_blocks_are_followed(cluster: Cluster) -> None:
    """With IPAM of the type cluster a node publishes its blocks: what it claims, and gives back."""
    first, second = cluster.node(1), cluster.node(2)
    own = {"type": "cluster", "blockSize": 30, "reserve": 0, "store": cluster.options}
    ipam = {**own, "ranges": [[{"subnet": "10.40.0.0/16", "gateway": "10.40.0.1"}]]}

    def conf(node: Any) -> Json:
        made = node.conf([], 2, ipam=ipam)
        return {key: made[key] for key in made if key not in ("subnets", "allowedSubnets")}

    def add(node: Any, number: int) -> str:
        container = node.containers.setdefault(number, Netns(f"container {number}"))
        done = node.runtime.add("wireguard", conf(node), container, container_id=f"c{number}")
        return str(done.result["ips"][0]["address"]).partition("/")[0]

    def blocks(node: str) -> set[str]:
        found = cluster.store.list("blocks/default/").items
        return {
            item.key.rpartition("/")[2].replace("-", "/")
            for item in found
            if item.value["node"] == node
        }

    add(second, 2)
    add(first, 2)
    assert set(cluster.published()["n2"]["subnets"]) == blocks("n2")
    assert len(blocks("n2")) == 1
    for number in range(3, 7):
        address = add(second, number)
    assert len(blocks("n2")) == 2
    assert set(cluster.published()["n2"]["subnets"]) == blocks("n2")
    add(first, 3)
    ((_, allowed),) = first.shown().values()
    assert allowed == blocks("n2")
    ping(first.containers[2], address, timeout=60)
    for number in range(2, 7):
        second.runtime.delete(
            "wireguard", conf(second), second.containers[number], container_id=f"c{number}"
        ).succeeded()
    env = {"CNI_CLUSTER_CONF": second.runtime.env["CNI_CLUSTER_CONF"]}
    _, problems = second.host.run(rounds.once, env, print, give_back=True)
    assert not problems
    assert not blocks("n2")


REFUSED: list[tuple[Json, str]] = [
    ({"peersFrom": "dns"}, "invalid peersFrom 'dns'"),
    ({"peers": []}, "exclude each other"),
    ({"peersFrom": ""}, "needs peers or peersFrom"),
    ({"peersFrom": "", "peers": []}, "subnets needs peersFrom"),
    ({"subnets": []}, "needs subnets"),
    ({"allowedSubnets": []}, "needs allowedSubnets"),
    ({"allowedSubnets": ["10.41.0.0/16"]}, "10.40.1.0/24 of `subnets` is not in 10.41.0.0/16"),
    ({"allowedSubnets": ["0.0.0.0/0"]}, "is no subnet of containers"),
    ({"allowedSubnets": ["10.40.0.0/16", "fd40::/64", "192.0.2.0/24"]}, "address 192.0.2.1 is"),
    ({"subnets": ["10.40.1.0/29", "fd40::1:0/112"]}, "10.40.1.9 is not in this node's subnets"),
    ({"endpoint": "192.0.2.1"}, "invalid endpoint"),
    ({"persistentKeepalive": -1}, "invalid persistentKeepalive"),
    ({"dev": "eth7"}, "no address to publish"),
    ({"store": {"type": "nonsense"}}, "store.type: 'nonsense' is unknown"),
]


def test_refusals(cluster: Cluster) -> None:
    """On one node, because a node takes long to make where this runs (in an emulated guest)."""
    node = cluster.node(1)
    container = node.containers.setdefault(9, Netns("container"))
    for keys, text in REFUSED:
        conf = {**node.conf([], 9), **keys}
        conf = {key: value for key, value in conf.items() if value not in ("", None)}
        node.runtime.add("wireguard", conf, container, container_id="c9").failed(999, text)
        nothing_left(node)
