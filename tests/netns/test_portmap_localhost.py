"""Ports published on localhost: nobody else reaches what listens on the node's 127.0.0.1."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import sysctl
from cni.netfilter import nft
from tests.harness import Netns, Runtime, connect, tcp_exchange, tcp_server
from tests.harness.portmap import GATEWAYS, Node, each_backend, tcp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SYSCTL = "net/ipv4/conf/cni0/route_localnet"
PORT = 9999


@pytest.fixture
def node(runtime: Runtime, outside: Netns, data_dir: Path) -> Node:
    connect(runtime.host, outside)
    return Node(runtime, data_dir)


class Attacker:
    """A container that sends what is for 127.0.0.1 to the node."""

    def __init__(self, node: Node, ns: Netns) -> None:
        self.node, self.ns = node, ns
        node.attach(ns, "evil")
        ns.ip_batch(
            "route del table local local 127.0.0.1 dev lo",
            "route del table local local 127.0.0.0/8 dev lo",
            "link set lo down",
            f"route add 127.0.0.1 via {GATEWAYS['4']} dev eth0",
        )
        ns.set_sysctl("net/ipv4/conf/eth0/route_localnet", 1)

    def reaches(self) -> bool:
        """Does a datagram arrive at the node's 127.0.0.1, before one that certainly arrives?"""
        dgram = (socket.AF_INET, socket.SOCK_DGRAM)
        with (
            self.node.host.socket(*dgram) as local,
            self.node.host.socket(*dgram) as control,
            self.ns.socket(*dgram) as sender,
        ):
            local.bind(("127.0.0.1", PORT))
            control.bind((GATEWAYS["4"], PORT))
            control.settimeout(10)
            for _ in range(3):
                sender.sendto(b"x", ("127.0.0.1", PORT))
                sender.sendto(b"x", (GATEWAYS["4"], PORT))
                control.recv(100)  # so what was sent before has arrived, or was dropped
            local.setblocking(False)
            try:
                return bool(local.recv(100))
            except BlockingIOError:
                return False


@pytest.fixture
def attacker(node: Node, netns: Any) -> Iterator[Attacker]:
    return Attacker(node, netns("evil"))


def remove(node: Node, ns: Netns, cid: str, backend: str, result: Any) -> None:
    conf = node.conf([tcp(8080 if cid == "c1" else 8081)], backend=backend)
    node.runtime.delete("portmap", conf, ns, container_id=cid, prev_result=result)


@each_backend
def test_only_with_guards(
    node: Node, container: Netns, container2: Netns, attacker: Attacker, backend: str
) -> None:
    assert not attacker.reaches()
    first = node.publish(container, [tcp(8080)], backend=backend)
    second = node.publish(container2, [tcp(8081)], cid="c2", backend=backend)
    assert node.host.sysctl(SYSCTL) == "1"
    assert not attacker.reaches()
    with tcp_server(container, port=80):
        assert tcp_exchange(node.host, "127.0.0.1", 8080)
    remove(node, container, "c1", backend, first)
    assert node.host.sysctl(SYSCTL) == "1", "the second container needs it still"
    assert not attacker.reaches()
    with tcp_server(container2, port=80):
        assert tcp_exchange(node.host, "127.0.0.1", 8081)
    remove(node, container2, "c2", backend, second)
    assert node.host.sysctl(SYSCTL) == "0"
    assert not attacker.reaches()
    assert "127.0.0.0/8" not in node.host.exec(["nft", "list", "ruleset"]).stdout


@each_backend
def test_a_flush_opens_nothing(
    node: Node, container: Netns, attacker: Attacker, backend: str
) -> None:
    node.publish(container, [tcp(8080)], backend=backend)
    node.host.exec(["nft", "flush", "ruleset"])
    assert node.host.sysctl(SYSCTL) == "1"
    assert not attacker.reaches()
    node.host.exec(["ip", "xfrm", "policy", "flush"])
    assert attacker.reaches(), "the test's own way in does not work"
    env = {**node.runtime.env, "CNI_SERVER": "off"}
    node.host.exec([node.runtime.bin_dir / "cni", "reload"], env=env)
    assert not attacker.reaches()
    with tcp_server(container, port=80):
        assert tcp_exchange(node.host, "127.0.0.1", 8080)


@each_backend
def test_a_bridge_that_is_down_opens_no_other_link(
    node: Node, container: Netns, backend: str
) -> None:
    """The default route leads to the container's address then, and not to the container."""
    node.host.ip("route", "add", "default", "via", "198.51.100.2")
    node.publish(container, [tcp(8080)], backend=backend)
    node.host.ip("link", "set", "cni0", "down")
    env = {**node.runtime.env, "CNI_SERVER": "off"}
    node.host.exec([node.runtime.bin_dir / "cni", "reload"], env=env)
    assert node.host.sysctl("net/ipv4/conf/uplink/route_localnet") == "0"
    assert node.host.sysctl(SYSCTL) == "1"


@each_backend
def test_the_node_itself_is_not_kept_out(node: Node, container: Netns, backend: str) -> None:
    """Whatever source address its own packets have."""
    node.publish(container, [tcp(8080)], backend=backend)
    with (
        tcp_server(node.host, "127.0.0.1", PORT),
        node.host.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        client.settimeout(10)
        client.bind((GATEWAYS["4"], 0))
        client.connect(("127.0.0.1", PORT))


def test_the_guards_come_first(
    node: Node, container: Netns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And go last: at no moment is the sysctl set without them."""
    from cni.plugins.portmap import localhost
    from cni.protocol.address import Prefix

    seen: list[tuple[str, str, str]] = []
    real = sysctl.write

    def write(name: str, value: str) -> None:
        policies = node.host.exec(["ip", "xfrm", "policy", "list", "dir", "in"]).stdout
        rules = node.host.exec(["nft", "list", "ruleset"]).stdout
        guarded = "block" in policies and "127.0.0.0/8 drop" in rules
        seen.append((name, value, "guarded" if guarded else "open"))
        real(name, value)

    class Request:
        env = {"CNI_STATE_DIR": str(tmp_path)}

    class FakeCall:
        request, log = Request(), print

        class owner:  # noqa: N801
            key = "0123456789abcdef-0123456789abcdef"

    node.attach(container, "c1")
    address = Prefix.parse("10.22.0.2/24")
    monkeypatch.setattr(sysctl, "write", write)
    try:
        node.host.run(localhost.enable, FakeCall, FakeCall.owner, address, filtered=False)
        node.host.run(localhost.release, FakeCall)
    finally:
        nft.forget()
    assert seen == [(SYSCTL, "1", "guarded"), (SYSCTL, "0", "guarded")]
    assert "block" not in node.host.exec(["ip", "xfrm", "policy", "list", "dir", "in"]).stdout


def test_what_was_set_before_stays(
    node: Node, container: Netns, attacker: Attacker, tmp_path: Path
) -> None:
    """As the administrator, or the Go plugin, had it; then the policy stays, too."""
    node.runtime.env["CNI_STATE_DIR"] = str(tmp_path)
    node.host.set_sysctl(SYSCTL, 1)
    result = node.publish(container, [tcp(8080)])
    remove(node, container, "c1", "nftables", result)
    assert node.host.sysctl(SYSCTL) == "1"
    assert not attacker.reaches()
