"""Containers with a point-to-point link to the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import Family, each_family, has_route, kind, links

from .checks import check_own_network, check_seen_outside, check_talking, in_subnets, leaks

if TYPE_CHECKING:
    from collections.abc import Callable

    from .engines import Engine
    from .networks import Network
    from .node import Node
    from .plugins import Plugins

pytestmark = pytest.mark.runtime


@each_family()
def test_two_containers(
    network: Callable[..., Network], engine: Engine, node: Node, plugins: Plugins, family: Family
) -> None:
    net = network(family, plugin="ptp")
    first, second = engine.run(net), engine.run(net)
    one, two = in_subnets(first, family), in_subnets(second, family)
    assert node.leases(net) == sorted([*one, *two])
    assert [kind(link) for link in links(node.netns).values()].count("bridge") == 0
    for address in (*one, *two):
        width = 128 if ":" in address else 32
        assert has_route(node.netns, f"{address}/{width}")

    check_own_network(first, family)
    check_talking(first, second, family)
    check_seen_outside(node, first, family, masked=True)

    engine.remove(first)
    assert node.leases(net) == sorted(two)
    check_own_network(second, family)
    engine.remove(second)
    node.nothing_left(net, first.id, second.id, but=leaks(engine, plugins))
