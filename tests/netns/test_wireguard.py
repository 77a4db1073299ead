"""wireguard: three nodes, each a network namespace with its own state and key, on one Ethernet.

container ─ routes ─ WireGuard ─ node ─┐
container ─ routes ─ WireGuard ─ node ─┼─ switch
container ─ routes ─ WireGuard ─ node ─┘
"""

from __future__ import annotations

import base64
import socket
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.harness import Netns, Runtime, kind, link, links, ping, unchanged
from tests.harness.packets import capture, reach, tcp_server
from tests.harness.requires import requires_kernel
from tests.harness.wait import wait_until
from tests.netns.test_vxlan import connect_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Json = dict[str, Any]
pytestmark = [requires_kernel("wireguard")]

PORT = 51820
SECRET = b"a text that nobody on the way may read"


def wg(*args: str, stdin: str = "") -> str:
    """What wg(8) answers."""
    done = subprocess.run(["wg", *args], input=stdin, capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Node(NamedTuple):
    """A node, its number, the plugins that it runs, and where its private key is."""

    number: int
    host: Netns
    runtime: Runtime
    key_file: Path
    containers: dict[int, Netns]

    @property
    def public(self) -> str:
        return self.key_file.with_name(f"{self.key_file.name}.pub").read_text().strip()

    def peer(self, **keys: Any) -> Json:
        """This node in the `peers` of a configuration."""
        return {
            "publicKey": self.public,
            "endpoint": f"192.0.2.{self.number}:{PORT}",
            "subnets": [f"10.40.{self.number}.0/24", f"fd40::{self.number}:0/112"],
            **keys,
        }

    def conf(self, peers: list[Json], number: int, **keys: Any) -> Json:
        gateways = {"10.40.0.1": f"10.40.{self.number}.{number}/16"}
        gateways["fd40::1"] = f"fd40::{self.number}:{number}/64"
        addresses = [{"address": each, "gateway": gateway} for gateway, each in gateways.items()]
        return {
            "cniVersion": "1.1.0",
            "name": "over",
            "type": "wireguard",
            "peers": peers,
            "privateKeyFile": str(self.key_file),
            "ipam": {"type": "static", "addresses": addresses},
            **keys,
        }

    def add(self, peers: list[Json], number: int = 2, **keys: Any) -> Netns:
        """Attach container `number` of the node."""
        container = self.containers.setdefault(number, Netns(f"container {self.number}.{number}"))
        conf = self.conf(peers, number, **keys)
        self.runtime.add("wireguard", conf, container, container_id=f"c{number}").succeeded()
        return container

    def delete(self, peers: list[Json], number: int = 2, **keys: Any) -> None:
        conf = self.conf(peers, number, **keys)
        container = self.containers[number]
        self.runtime.delete("wireguard", conf, container, container_id=f"c{number}").succeeded()

    @property
    def link(self) -> str:
        """The name of the node's one WireGuard link."""
        (found,) = [each for each in links(self.host).values() if kind(each) == "wireguard"]
        return str(found["ifname"])

    def shown(self) -> dict[str, tuple[str, set[str]]]:
        """Endpoint and allowed addresses of each peer, as wg(8) shows them."""
        lines = self.host.exec(["wg", "show", self.link, "dump"]).stdout.splitlines()[1:]
        fields = [line.split("\t") for line in lines]
        return {each[0]: (each[2], set(each[3].split(","))) for each in fields}


@pytest.fixture
def switch(netns: Callable[..., Netns]) -> Netns:
    made = netns("switch")
    made.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    made.ip("link", "set", "br0", "up")
    return made


@pytest.fixture
def nodes(
    switch: Netns, netns: Callable[..., Netns], bin_dir: Path, tmp_path: Path
) -> Iterator[list[Node]]:
    """Three nodes, each with a key that its first ADD has made."""
    made: list[Node] = []
    for number in (1, 2, 3):
        host = netns(f"node {number}")
        connect_to(switch, host, number)
        state = {"CNI_STATE_DIR": str(tmp_path / f"state{number}")}
        runtime = Runtime(bin_dir, host, env=state)
        node = Node(number, host, runtime, tmp_path / f"disk{number}" / "key", {})
        made.append(node)
        node.add([], 9)
        node.delete([], 9)
        nothing_left(node)
    try:
        yield made
    finally:
        for node in made:
            for container in node.containers.values():
                container.close()


def nothing_left(node: Node) -> None:
    assert set(links(node.host)) == {"lo", "eth0"}


def all_reach(nodes: list[Node], number: int = 2) -> None:
    """The container of each node reaches those of the others, with packets of full size."""
    for node in nodes:
        inside = node.containers[number]
        room = link(inside, "eth0")["mtu"]
        for other in nodes:
            if other is not node:
                for address, headers in (
                    (f"10.40.{other.number}.{number}", 28),
                    (f"fd40::{other.number}:{number}", 48),
                ):
                    # of a node that was away WireGuard notices after 15 seconds that it does not
                    # know the session, and asks for another one every 5
                    ping(inside, address, size=room - headers, timeout=60)


def is_cut_off(inside: Netns, address: str) -> bool:
    return inside.exec(["ping", "-c1", "-W1", address], check=False).returncode != 0


def test_containers_of_three_nodes_reach_each_other(nodes: list[Node]) -> None:
    peers = [node.peer() for node in nodes]
    for node in nodes:
        node.add(peers)
    all_reach(nodes)
    for node in nodes:
        assert node.shown() == {
            other.public: (f"192.0.2.{other.number}:{PORT}", set(other.peer()["subnets"]))
            for other in nodes
            if other is not node
        }
        assert links(node.host)[node.link]["mtu"] == 1440
        node.add(peers, 3)
    ping(nodes[0].containers[2], "10.40.1.3")
    all_reach(nodes, 3)
    for node in nodes:
        node.delete(peers, 3)
    all_reach(nodes)
    for node in nodes:
        node.delete(peers)
        node.delete(peers)
        nothing_left(node)


def test_nobody_on_the_way_reads(nodes: list[Node]) -> None:
    peers = [node.peer() for node in nodes]
    inside, other = (node.add(peers) for node in nodes[:2])
    with tcp_server(other, "0.0.0.0") as server, capture(nodes[1].host, "eth0") as wire:
        assert reach(inside, "10.40.2.2", server.port, data=SECRET * 200) == "10.40.1.2"
    seen = [frame.payload for frame in wire.frames if frame.ethertype == 0x0800]
    assert sum(map(len, seen)) > len(SECRET) * 200, "the packets were seen"
    assert {payload[9] for payload in seen} == {17}, "all of them were UDP"
    assert not any(SECRET[:8] in payload for payload in seen)


def test_the_private_key_stays_on_its_node(nodes: list[Node]) -> None:
    node = nodes[0]
    key = node.key_file.read_text().strip()
    assert stat.S_IMODE(node.key_file.stat().st_mode) == 0o600
    assert wg("pubkey", stdin=key) == node.public
    container = node.containers[9]
    conf = node.conf([each.peer() for each in nodes], 9)
    debug = {"CNI_DEBUG": "netlink"}
    done = node.runtime.add("wireguard", conf, container, env=debug).succeeded()
    assert "which may be secret" in done.stderr
    told = done.stdout + done.stderr
    assert key not in told
    assert base64.b64decode(key).hex() not in told
    assert node.host.exec(["wg", "show", node.link, "private-key"]).stdout.strip() == key
    node.runtime.delete("wireguard", conf, container).succeeded()
    assert node.key_file.read_text().strip() == key, "it is the node's, and stays"


def test_a_node_that_left_the_list_is_cut_off(nodes: list[Node]) -> None:
    peers = [node.peer() for node in nodes]
    for node in nodes:
        node.add(peers)
    all_reach(nodes)
    for node in nodes[:2]:
        node.add(peers[:2], 3)
    assert is_cut_off(nodes[2].containers[2], "10.40.1.2")
    assert is_cut_off(nodes[0].containers[2], "10.40.3.2")
    all_reach(nodes[:2])
    assert set(nodes[0].shown()) == {nodes[1].public}
    assert "10.40.3.0/24" not in nodes[0].host.ip("route")


def test_a_node_dies_and_comes_back(
    nodes: list[Node], switch: Netns, netns: Callable[..., Netns]
) -> None:
    """It has its key on its disk, so that the others need no change."""
    peers = [node.peer() for node in nodes]
    for node in nodes:
        node.add(peers)
    all_reach(nodes)
    dead = nodes.pop()
    dead.containers.pop(2).close()
    dead.host.close()
    assert is_cut_off(nodes[0].containers[2], "10.40.3.2")
    ping(nodes[0].containers[2], "10.40.2.2")

    wait_until(lambda: "port3" not in links(switch), "the kernel has removed the node")
    host = netns("node 3, again")
    connect_to(switch, host, 3)
    again = Node(3, host, Runtime(dead.runtime.bin_dir, host, env=dead.runtime.env), *dead[3:])
    nodes.append(again)
    again.add(peers)
    all_reach(nodes)


def test_preshared_keys(nodes: list[Node], tmp_path: Path) -> None:
    shared = tmp_path / "psk"
    shared.write_text(wg("genpsk") + "\n")
    shared.chmod(0o600)
    peers = [node.peer(presharedKeyFile=str(shared), persistentKeepalive=25) for node in nodes]
    for node in nodes[:2]:
        node.add(peers)
    nodes[2].add([node.peer() for node in nodes])
    all_reach(nodes[:2])
    assert is_cut_off(nodes[2].containers[2], "10.40.1.2"), "it has not the shared key"
    shown = nodes[0].host.exec(["wg", "show", nodes[0].link, "dump"]).stdout
    line = next(each for each in shown.splitlines() if each.startswith(nodes[1].public))
    assert line.split("\t")[1] == shared.read_text().strip()
    assert line.split("\t")[7] == "25"
    shared.chmod(0o644)
    conf = nodes[0].conf(peers, 9)
    nodes[0].runtime.status("wireguard", conf).failed(50, "can be read by others")


def test_check_and_mending(nodes: list[Node]) -> None:
    node, other, third = nodes
    peers = [each.peer() for each in nodes]
    container, host = node.containers[9], node.host
    conf = node.conf(peers, 9)
    result = node.runtime.add("wireguard", conf, container).result
    name = node.link

    def check(**keys: Any) -> Any:
        return node.runtime.check("wireguard", {**conf, **keys}, container, prev_result=result)

    check().succeeded()
    host.ip("route", "del", "10.40.2.0/24", "dev", name)
    check().failed(999, "no route to the peer's subnet 10.40.2.0/24")
    host.ip("route", "add", "10.40.2.0/24", "dev", name)
    host.exec(["wg", "set", name, "peer", other.public, "allowed-ips", "10.40.2.0/25"])
    check().failed(999, f"no packets of the peer {other.public} from 10.40.2.0/24")
    host.exec(["wg", "set", name, "peer", other.public, "remove"])
    check().failed(999, f"lacks the peer {other.public}")
    check(listenPort=PORT + 1).failed(999, f"has the port {PORT}, want {PORT + 1}")
    check(peers=peers[:2]).failed(999, f"has the peer {third.public}, which is not")
    host.ip("link", "set", "eth0", "mtu", "1400")
    check().failed(999, "large packets may be lost")
    host.ip("link", "set", "eth0", "mtu", "1500")
    host.ip("link", "set", name, "down")
    check().failed(999, f"{name} is down")
    host.ip("link", "del", name)
    check().failed(999, f"{name} not found")

    node.add(peers, 2)
    other.add(peers, 2)
    check().succeeded()
    ping(container, "10.40.2.2")


def test_what_others_have_stays(nodes: list[Node]) -> None:
    """A port, a route and a name that are taken are errors; a failed ADD leaves nothing."""
    node, other = nodes[:2]
    host, container = node.host, node.containers[9]
    peers = [each.peer() for each in nodes]
    conf = node.conf(peers, 9)

    def refused(conf: Json, *texts: str) -> None:
        with unchanged(host, container):
            node.runtime.add("wireguard", conf, container).failed(999, *texts)

    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", PORT))
        refused(conf, f"UDP port {PORT} is in use")
    host.ip("route", "add", "10.40.2.0/24", "dev", "eth0")
    refused(conf, "failed to route 10.40.2.0/24", "the node has a route to it")
    host.ip("route", "del", "10.40.2.0/24", "dev", "eth0")
    refused({**conf, "ipam": other.conf(peers, 9)["ipam"]}, "10.40.2.9 is in the subnets of")
    static = {"type": "static", "addresses": [{"address": "10.41.0.9/16", "gateway": "10.41.0.1"}]}
    refused({**conf, "ipam": static}, "10.41.0.9 is not in this node's subnets")
    apart = {"address": "10.40.1.9/24", "gateway": "10.40.1.1"}
    own = {"type": "static", "addresses": [apart]}
    refused({**conf, "ipam": own, "ipMasq": True}, "ipMasq would masquerade")
    node.runtime.add("wireguard", conf, container).succeeded()
    name = node.link
    node.runtime.delete("wireguard", conf, container).succeeded()
    host.ip("link", "add", name, "type", "bridge")
    refused(conf, f'"{name}" exists and is not of this network')
    node.runtime.delete("wireguard", conf, container).succeeded()
    assert name in links(host)


def test_a_failed_add_puts_the_former_peers_back(nodes: list[Node]) -> None:
    """Peers, routes and port are those of the containers that are there, also for the next ADD."""
    node, other, third = nodes
    peers = [each.peer() for each in nodes]
    node.add(peers[:2])
    other.add(peers)
    third.add(peers)
    ping(node.containers[2], "10.40.2.2", timeout=60)
    container = node.containers[9]
    changed = [peers[0], {**peers[1], "subnets": ["10.40.2.0/25"]}, peers[2]]
    # the last step that can fail: the name of the node's end is taken
    conf = node.conf(changed, 9, listenPort=PORT + 1, hostInterfaceName="eth0")
    before = node.shown()
    with unchanged(node.host, container):
        node.runtime.add("wireguard", conf, container).failed(999, "has an interface of that name")
    assert node.shown() == before
    assert node.host.exec(["wg", "show", node.link, "listen-port"]).stdout.strip() == str(PORT)
    ping(node.containers[2], "10.40.2.2", timeout=60)
    node.add(changed, 3, listenPort=PORT + 1)
    assert node.shown()[other.public][1] == {"10.40.2.0/25"}


def test_no_list_of_links(nodes: list[Node]) -> None:
    """A DEL, also that of the last container, lists routes of one table, and no links."""
    node = nodes[0]
    for number in (2, 3):
        node.add([], number)
    for number in (2, 3):
        conf = node.conf([], number)
        done = node.runtime.delete(
            "wireguard",
            conf,
            node.containers[number],
            container_id=f"c{number}",
            env={"CNI_DEBUG": "netlink"},
        ).succeeded()
        lists = [line for line in done.stderr.splitlines() if "|DUMP" in line]
        assert any("RTM_GETROUTE" in line for line in lists)
        assert not [line for line in lists if "RTM_GETLINK" in line]
    nothing_left(node)


def test_gc_removes_all(nodes: list[Node]) -> None:
    node = nodes[0]
    peers = [each.peer() for each in nodes]
    node.add(peers, 2)
    node.add(peers, 3)
    conf = node.conf(peers, 2)
    node.runtime.gc("wireguard", conf, [("c2", "eth0")]).succeeded()
    assert node.link in links(node.host)
    node.runtime.gc("wireguard", conf, []).succeeded()
    nothing_left(node)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peers": None}, "needs peers"),
        ({"listenPort": 0}, "invalid listenPort 0"),
        ({"mtu": 9}, "invalid mtu 9"),
        ({"ipam": {}}, "needs ipam"),
        ({"ipam": {"type": "dhcp"}}, "cannot use dhcp with wireguard"),
        ({"privateKeyFile": "key"}, "invalid privateKeyFile"),
    ],
)
def test_refusals(nodes: list[Node], keys: Json, message: str) -> None:
    node = nodes[0]
    container = node.containers[9]
    with unchanged(node.host, container):
        node.runtime.add("wireguard", {**node.conf([], 2), **keys}, container).failed(999, message)


def test_many_at_once(nodes: list[Node]) -> None:
    """From nothing to nothing: all of them find one link, and the last one removes it."""
    node, other = nodes[:2]
    peers = [each.peer() for each in nodes]
    other.add(peers)
    numbers = range(2, 8)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda number: node.add(peers, number), numbers))
        ping(node.containers[7], "10.40.2.2")
        list(pool.map(lambda number: node.delete(peers, number), numbers))
    nothing_left(node)
