"""Published ports of a container, and from where they are reached."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.harness import DUAL, nft_tables, tcp_exchange, tcp_server, udp_exchange, udp_server

from .node import NODE_ADDRESSES, OUTSIDE_ADDRESSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Netns

    from .engines import Container
    from .node import Node

# The containers' ends, for tcp and udp alike; something else than their web server's.
TARGET = 7000
GATEWAYS = DUAL.gateways
# protocol -> a client that tells what address the server sees
EXCHANGES: dict[str, Callable[..., str]] = {"tcp": tcp_exchange, "udp": udp_exchange}


@dataclass(frozen=True)
class Published:
    """Host ports of one container, each for TCP and for UDP, from `first` on."""

    first: int = 8000

    @property
    def everywhere(self) -> int:
        """On all addresses of the node."""
        return self.first

    @property
    def limited(self) -> dict[str, int]:
        """On one address only: address -> host port."""
        addresses = (*NODE_ADDRESSES, "127.0.0.1")
        return {address: self.first + 1 + i for i, address in enumerate(addresses)}

    def podman(self) -> list[str]:
        """Options for `podman run`."""
        ports = [f"{self.everywhere}", *(f"{_host(a)}:{p}" for a, p in self.limited.items())]
        return [f"--publish={port}:{TARGET}/{protocol}" for port in ports for protocol in EXCHANGES]

    def mappings(self) -> list[dict[str, Any]]:
        """The same as the capability `portMappings`."""
        ports = [("", self.everywhere), *self.limited.items()]
        return [
            {"hostIP": address, "hostPort": port, "containerPort": TARGET, "protocol": protocol}
            for address, port in ports
            for protocol in EXCHANGES
        ]


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@contextmanager
def listening(container: Netns) -> Iterator[None]:
    """During the block, servers listen on TARGET in a container."""
    with tcp_server(container, port=TARGET), udp_server(container, port=TARGET):
        yield


def reached(source: Netns, address: str, port: int, *seen_as: str) -> None:
    """TCP and UDP get through, and the container sees one of these addresses as the client's."""
    for protocol, exchange in EXCHANGES.items():
        seen = exchange(source, address, port, timeout=15)
        assert seen in seen_as, f"{protocol} from {source!r} to {address} {port}: seen as {seen}"


def refused(source: Netns, address: str, port: int) -> None:
    """Neither TCP nor UDP is answered."""
    for protocol, exchange in EXCHANGES.items():
        try:
            exchange(source, address, port, timeout=0.3)
        except OSError:
            continue
        raise AssertionError(f"{protocol} from {source!r} to {address} {port} is answered")


def check_published(
    node: Node, ports: Published, container: Container, neighbour: Container
) -> None:
    """`check_reached` for containers of a runtime."""
    with container.netns() as own, neighbour.netns() as other:
        check_reached(node, ports, own, other)


def check_reached(node: Node, ports: Published, own: Netns, other: Netns) -> None:
    """From the node, its localhost, a neighbour, the container itself, and from beyond the node."""
    host, outside = node.netns, node.outside
    with listening(own):
        for address, gateway, client in zip(
            NODE_ADDRESSES, GATEWAYS, OUTSIDE_ADDRESSES, strict=True
        ):
            for port in (ports.everywhere, ports.limited[address]):
                reached(outside, address, port, client)
                reached(host, address, port, address, gateway)
                # On one link with the server, which would otherwise answer directly.
                for source in (other, own):
                    reached(source, address, port, gateway)
            reached(host, gateway, ports.everywhere, gateway)
            for source in (other, own):
                reached(source, gateway, ports.everywhere, gateway)
        reached(host, "127.0.0.1", ports.everywhere, GATEWAYS[0])
        reached(host, "127.0.0.1", ports.limited["127.0.0.1"], GATEWAYS[0])
        # What is limited to one address answers at no other.
        for source in (outside, other):
            refused(source, NODE_ADDRESSES[0], ports.limited["127.0.0.1"])
            refused(source, NODE_ADDRESSES[0], ports.limited[NODE_ADDRESSES[1]])
        refused(other, GATEWAYS[0], ports.limited[NODE_ADDRESSES[0]])


def check_not_published(node: Node, ports: Published) -> None:
    """Nobody answers any more, on any address."""
    for address in NODE_ADDRESSES:
        for port in (ports.everywhere, ports.limited[address]):
            refused(node.outside, address, port)
            refused(node.netns, address, port)
    refused(node.netns, "127.0.0.1", ports.everywhere)
    refused(node.netns, "127.0.0.1", ports.limited["127.0.0.1"])


def published_tables(node: Node) -> set[tuple[str, str]]:
    """The nftables tables in which portmap keeps ports; gone when there is none."""
    return {table for table in nft_tables(node.netns) if table[1] == "cni_hostport"}
