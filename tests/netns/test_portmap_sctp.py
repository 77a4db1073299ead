"""portmap with SCTP, which needs a kernel that has it: `make test-debian`."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime, connect, requires_kernel, tcp_exchange, tcp_server
from tests.harness.portmap import (
    GATEWAYS,
    NODE4,
    NODE6,
    OUTSIDE4,
    OUTSIDE6,
    Node,
    each_backend,
    tcp,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_kernel("sctp", "nft_masquerade", "iptables")

server = partial(tcp_server, port=90, protocol=socket.IPPROTO_SCTP)
exchange = partial(tcp_exchange, port=9000, protocol=socket.IPPROTO_SCTP, timeout=20)


@pytest.fixture
def node(runtime: Runtime, outside: Netns, data_dir: Path) -> Node:
    connect(runtime.host, outside)
    return Node(runtime, data_dir)


def sctp(host_port: int = 9000, container_port: int = 90, **keys: Any) -> dict[str, Any]:
    return {**tcp(host_port, container_port), "protocol": "sctp", **keys}


@each_backend
@pytest.mark.parametrize("address", [NODE4, NODE6])
def test_from_outside_until_del(
    node: Node, container: Netns, outside: Netns, backend: str, address: str
) -> None:
    prev = node.publish(container, [sctp()], backend=backend)
    with server(container):
        assert exchange(outside, address) == {NODE4: OUTSIDE4, NODE6: OUTSIDE6}[address]
        conf = node.conf([sctp()], backend=backend)
        node.runtime.delete("portmap", conf, container, prev_result=prev).succeeded()
        with pytest.raises(ConnectionRefusedError):
            exchange(outside, address)
    assert node.rules() == []


@each_backend
def test_from_the_node_and_the_container_itself(node: Node, container: Netns, backend: str) -> None:
    node.publish(container, [sctp()], backend=backend)
    with server(container):
        assert exchange(node.host, NODE4) == NODE4
        assert exchange(node.host, "127.0.0.1") == GATEWAYS["4"]
        assert exchange(container, NODE4) == GATEWAYS["4"]


@each_backend
def test_the_next_container_gets_the_port(
    node: Node, container: Netns, container2: Netns, outside: Netns, backend: str
) -> None:
    """A client that keeps its port reaches the new container: the old flow is not remembered."""
    local = (OUTSIDE4, 40000)
    for ns, name in ((container, "c1"), (container2, "c2")):
        prev = node.publish(ns, [sctp()], name, backend=backend)
        with server(ns) as running, outside.socket(socket.AF_INET, socket.SOCK_STREAM, 132) as sock:
            sock.bind(local)
            sock.settimeout(20)
            sock.connect((NODE4, 9000))
            assert sock.recv(100).decode().strip() == OUTSIDE4
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"
            assert running.clients == [local]
        conf = node.conf([sctp()], backend=backend)
        deleted = node.runtime.delete("portmap", conf, ns, container_id=name, prev_result=prev)
        assert deleted.succeeded().stderr == ""
        assert "dport=9000" not in node.host.exec(["conntrack", "-L", "-p", "sctp"]).stdout


@pytest.mark.parametrize("address", ["0.0.0.0", "::", NODE4])
def test_a_listener_of_the_node_is_named(node: Node, container: Netns, address: str) -> None:
    prev = node.attach(container)
    conf = node.conf([sctp()], checkHostListeners=True)
    with server(node.host, address, port=9001):  # another port
        with server(node.host, address, port=9000):
            call = node.runtime.call("ADD", "portmap", conf, container, prev_result=prev)
            call.failed(999, "host port 9000/sctp is in use: ")
        node.runtime.add("portmap", conf, container, prev_result=prev).succeeded()
