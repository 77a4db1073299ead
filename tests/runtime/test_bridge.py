"""Containers on a bridge, started by podman and by containerd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import DUAL, Family, each_family, ports
from tests.harness.wait import wait_until

from .checks import check_own_network, check_seen_outside, check_talking, in_subnets, leaks
from .node import Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from .engines import Engine, Podman
    from .networks import Network
    from .plugins import Plugins

pytestmark = pytest.mark.runtime


@each_family()
def test_two_containers(
    network: Callable[..., Network],
    engine: Engine,
    node: Node,
    plugins: Plugins,
    family: Family,
) -> None:
    net = network(family)
    first, second = engine.run(net), engine.run(net)
    one, two = in_subnets(first, family), in_subnets(second, family)
    assert not set(one) & set(two)
    # Everything is where nothing_left will look for it.
    found = set(node.traces(net, first.id))
    assert {"link", "lease", "rule", "file", "process"} <= found
    assert ("netns" in found) == (engine.name == "podman")  # containerd's have no name
    assert node.leases(net) == sorted([*one, *two])
    assert len(ports(node.netns, net.bridge)) == 2

    for container in (first, second):
        check_own_network(container, family)
    check_talking(first, second, family)
    check_seen_outside(node, first, family, masked=True)

    engine.remove(first)
    # What the other one has is untouched.
    assert node.leases(net) == sorted(two)
    check_own_network(second, family)
    check_seen_outside(node, second, family, masked=True)

    engine.remove(second)
    node.nothing_left(net, first.id, second.id, but=leaks(engine, plugins))


def test_gateway_answers_at_once(
    network: Callable[..., Network], podman: Podman, plugins: Plugins
) -> None:
    """The first packet of the first container gets through: nothing settles after ADD."""
    if not plugins.ours:
        pytest.skip("the reference's IPv6 gateway is silent for two seconds")
    container = podman.run(network(DUAL))
    for gateway in reversed(DUAL.gateways):
        assert "1 packets received" in container.exec("ping", "-c", "1", "-W", "1", gateway)


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_masquerade_backends(
    network: Callable[..., Network], engine: Engine, node: Node, plugins: Plugins, backend: str
) -> None:
    net = network(DUAL, options={"ipMasqBackend": backend})
    container = engine.run(net)
    check_seen_outside(node, container, DUAL, masked=True)
    engine.remove(container)
    node.nothing_left(net, container.id, but=leaks(engine, plugins))


def test_without_masquerade(network: Callable[..., Network], engine: Engine, node: Node) -> None:
    """Shows that the other tests would notice if nothing was masqueraded."""
    net = network(DUAL, options={"ipMasq": False})
    container = engine.run(net)
    check_seen_outside(node, container, DUAL, masked=False)
    assert "rule" not in node.traces(net, container.id)
    engine.remove(container)
    node.nothing_left(net, container.id)


@pytest.mark.parametrize("cni_version", ["0.3.1", "0.4.0"])
def test_older_spec_versions(
    network: Callable[..., Network], engine: Engine, node: Node, plugins: Plugins, cni_version: str
) -> None:
    """The other tests speak 1.0.0, the newest that these runtimes know."""
    net = network(DUAL, cni_version=cni_version)
    first, second = engine.run(net), engine.run(net)
    check_talking(first, second, DUAL)
    engine.remove(first)
    engine.remove(second)
    node.nothing_left(net, first.id, second.id, but=leaks(engine, plugins))


def test_loopback_in_the_chain(
    network: Callable[..., Network], engine: Engine, node: Node, plugins: Plugins
) -> None:
    """Neither runtime asks for `loopback` by itself; at the end of a list it passes the result."""
    net = network(DUAL, chained=[{"type": "loopback"}])
    container = engine.run(net)
    check_own_network(container, DUAL)
    check_seen_outside(node, container, DUAL, masked=True)
    engine.remove(container)
    node.nothing_left(net, container.id, but=leaks(engine, plugins))


def test_full_subnet(
    network: Callable[..., Network], engine: Engine, node: Node, plugins: Plugins
) -> None:
    """A container that gets no address does not start, leaves nothing and harms nobody."""
    ranges = [[{"subnet": "10.22.0.0/24", "rangeStart": "10.22.0.9", "rangeEnd": "10.22.0.9"}]]
    net = network(DUAL, ipam={"ranges": ranges})
    first = engine.run(net)
    assert first.addresses() == ["10.22.0.9/24"]
    with pytest.raises(AssertionError, match=r"10\.22\.0\.9"):
        engine.run(net)
    assert node.leases(net) == ["10.22.0.9"]
    if engine.name == "podman" or plugins.ours:
        # ctr does not ask for DEL after a failed ADD; the reference then keeps the port.
        wait_until(
            lambda: len(ports(node.netns, net.bridge)) == 1,
            "one port is left",
            tell=lambda: sorted(ports(node.netns, net.bridge)),
        )
    assert first.reaches("10.22.0.1")

    engine.remove(first)
    third = engine.run(net)
    assert third.addresses() == ["10.22.0.9/24"]
    engine.remove(third)
    engine.remove_all()  # ctr keeps the one that failed
    node.nothing_left(net, first.id, third.id, but=leaks(engine, plugins))


def test_main_process_killed(
    network: Callable[..., Network], engine: Engine, node: Node, plugins: Plugins
) -> None:
    """The container's namespace is gone before the runtime asks for DEL."""
    net = network(DUAL)
    container = engine.run(net)
    node.run(["kill", "-9", str(engine.main_pid(container))])
    engine.remove_dead(container)
    node.nothing_left(net, container.id, but=leaks(engine, plugins))


def test_eight_at_once(
    network: Callable[..., Network], engine: Engine, node: Node, plugins: Plugins
) -> None:
    net = network(DUAL)
    containers = engine.run_many(net, 8)
    addresses = [address for one in containers for address in in_subnets(one, DUAL)]
    assert len(set(addresses)) == 16, addresses
    assert node.leases(net) == sorted(addresses)
    assert len(ports(node.netns, net.bridge)) == 8
    check_talking(containers[0], containers[-1], DUAL)
    check_seen_outside(node, containers[3], DUAL, masked=True)
    engine.remove_many(containers)
    node.nothing_left(net, *(one.id for one in containers), but=leaks(engine, plugins))
