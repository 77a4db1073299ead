"""portmap's checkHostListeners: a port on which a process of the node listens is not published."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    DUAL,
    V4,
    V6,
    Family,
    Netns,
    Runtime,
    connect,
    tcp_exchange,
    tcp_server,
    udp_server,
    unchanged,
)
from tests.harness.portmap import NODE4, NODE6, OUTSIDE4, Node, each_backend, tcp, udp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.runtime import Reply

Json = dict[str, Any]


@pytest.fixture
def node(runtime: Runtime, outside: Netns, data_dir: Path) -> Node:
    connect(runtime.host, outside)
    return Node(runtime, data_dir)


SOCKETS: dict[Callable[..., Json], int] = {tcp: socket.SOCK_STREAM, udp: socket.SOCK_DGRAM}


@contextmanager
def listener(host: Netns, address: str, port: int, kind: int) -> Iterator[None]:
    """A socket that waits for packets, of which there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.socket(family, kind) as sock:
        if family == socket.AF_INET6:
            only = not (address == "::" or address.startswith("::ffff:"))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(1)
        yield


def is_of(ip: Json, family: Family) -> bool:
    return family is DUAL or (":" in ip["address"]) == (family is V6)


def conf_of(node: Node, ports: list[Json], **keys: Any) -> Json:
    return node.conf(ports, checkHostListeners=True, **keys)


def add(node: Node, container: Netns, prev: Json, conf: Json) -> Reply:
    return node.runtime.call("ADD", "portmap", conf, container, prev_result=prev)


@each_backend
def test_the_process_is_named_and_goes_on(
    node: Node, container: Netns, outside: Netns, backend: str
) -> None:
    prev = node.attach(container)
    conf = conf_of(node, [tcp(8081), tcp(8080)], backend=backend)
    with tcp_server(node.host, port=8080):
        with unchanged(node.host, container):
            error = add(node, container, prev, conf).failed(999, "host port 8080/tcp is in use: ")
        assert f"(process {os.getpid()})" in error["msg"]
        assert error["msg"].endswith(" listens on [::]:8080")
        assert tcp_exchange(outside, NODE4, 8080) == OUTSIDE4
    # now that it has ended, the container gets the port
    add(node, container, prev, conf).succeeded()
    with tcp_server(container, port=80) as server:
        assert tcp_exchange(outside, NODE4, 8080) == OUTSIDE4
        assert server.clients
    with tcp_server(node.host, port=8080):  # which comes too late to count
        node.runtime.check("portmap", conf, container, prev_result=prev).succeeded()
    node.runtime.delete("portmap", conf, container, prev_result=prev).succeeded()
    assert node.rules() == []


# Where the process listens, what is to be published, the container's families: is it refused?
CASES: list[tuple[str, Json, Family, bool]] = [
    ("::", {}, V4, True),
    ("::", {}, V6, True),
    ("0.0.0.0", {}, V4, True),
    ("0.0.0.0", {}, V6, False),
    ("127.0.0.1", {}, DUAL, True),
    (f"::ffff:{NODE4}", {}, V4, True),
    (f"::ffff:{NODE4}", {}, V6, False),
    (NODE4, {"hostIP": NODE4}, DUAL, True),
    (NODE4, {"hostIP": "127.0.0.1"}, DUAL, False),
    (NODE4, {"hostIP": "0.0.0.0"}, DUAL, True),
    (NODE4, {"hostIP": "::"}, DUAL, False),
    (NODE6, {"hostIP": NODE6}, DUAL, True),
    ("::", {"hostIP": NODE4}, DUAL, True),
]


@pytest.mark.parametrize("protocol", [tcp, udp], ids=["tcp", "udp"])
def test_only_what_would_get_the_packets_counts(
    node: Node, container: Netns, protocol: Callable[..., Json]
) -> None:
    """A socket of another protocol, of another port, or of a client never does."""
    kind = SOCKETS[protocol]
    everything = node.attach(container)
    wrong = []
    for address, keys, family, expected in CASES:
        prev = {**everything, "ips": [ip for ip in everything["ips"] if is_of(ip, family)]}
        conf = node.conf([protocol(8080, **keys)], checkHostListeners=True)
        with (
            listener(node.host, address, 8080, kind),
            listener(node.host, address, 8081, kind),
            udp_server(node.host, port=80) if kind == socket.SOCK_STREAM else tcp_server(node.host),
        ):
            reply = node.runtime.call("ADD", "portmap", conf, container, prev_result=prev)
        if expected:
            refused = reply.rc != 0 and " is in use: " in reply.error["msg"]
        else:
            refused = reply.rc != 0
        if refused != expected:
            wrong.append((address, keys, str(family), str(reply)))
        node.runtime.delete("portmap", conf, container, prev_result=prev).succeeded()
    assert wrong == []


def test_clients_do_not_count(node: Node, container: Netns, outside: Netns) -> None:
    """A connection that the node itself has begun from the port, of TCP and of UDP."""
    prev = node.attach(container)
    with tcp_server(outside, port=9000), udp_server(outside, port=9000):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with node.host.socket(socket.AF_INET, kind) as client:
                client.bind((NODE4, 8080))
                client.connect((OUTSIDE4, 9000))
                ports = [tcp(8080), udp(8080)]
                node.runtime.add("portmap", conf_of(node, ports), container, prev_result=prev)
                node.runtime.delete("portmap", conf_of(node, ports), container)


def test_without_the_key_nobody_looks(node: Node, container: Netns, outside: Netns) -> None:
    with tcp_server(node.host, port=8080):
        prev = node.publish(container, [tcp(8080)])
        with tcp_server(container, port=80) as server:
            assert tcp_exchange(outside, NODE4, 8080) == OUTSIDE4
            assert server.clients
    node.runtime.delete("portmap", node.conf([tcp(8080)]), container, prev_result=prev).succeeded()
