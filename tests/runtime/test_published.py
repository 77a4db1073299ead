"""Published ports of real containers, reached from everywhere; stopped, nothing is left."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.harness import DUAL, links, ports
from tests.harness.tc import passed, tbf

from .checks import leaks
from .node import NODE_ADDRESSES
from .published import (
    Published,
    check_not_published,
    check_published,
    listening,
    published_tables,
    reached,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .engines import Containerd, Podman
    from .networks import Network
    from .node import Node
    from .plugins import Plugins

pytestmark = pytest.mark.runtime


def test_podmans_own_network(made: Network, podman: Podman, node: Node, plugins: Plugins) -> None:
    neighbour = podman.run(made)
    published = Published()
    container = podman.run(made, *published.podman(), "--publish=8080:80")
    assert {"link", "lease", "rule", "file"} <= set(node.traces(made, container.id))
    check_published(node, published, container, neighbour)
    assert plugins.ours <= bool(node.traces(made)["flow"]), "nothing to be ended"
    if plugins.ours:
        # Where the machine has br_netfilter, answers would get lost.
        node.run(["sysctl", "-qe", "net.bridge.bridge-nf-call-ip6tables=0"])
        with container.netns() as own, listening(own):
            reached(node.netns, "::1", published.everywhere, DUAL.gateways[1])
    # Programs in the containers, and no socket of the test's.
    assert neighbour.fetch(NODE_ADDRESSES[0], 8080) == container.name
    request = ["busybox", "nc", NODE_ADDRESSES[0], "8080"]
    answer = node.outside.exec(request, stdin="GET /name HTTP/1.0\r\n\r\n").stdout
    assert answer.endswith(f"{container.name}\n")

    podman.remove(container)
    check_not_published(node, published)
    if plugins.ours:
        assert published_tables(node) == set()
    # The same ports again, of another container.
    again = podman.run(made, *published.podman())
    check_published(node, published, again, neighbour)
    for one in (again, neighbour):
        podman.remove(one)
    node.nothing_left(made, container.id, again.id, neighbour.id, but=leaks(podman, plugins))


def test_rules_come_back_after_a_flush(
    made: Network, podman: Podman, node: Node, plugins: Plugins
) -> None:
    if not plugins.ours:
        pytest.skip("the reference has no `cni reload`")
    published = Published()
    neighbour = podman.run(made)
    container = podman.run(made, *published.podman())
    node.run(["nft", "flush", "ruleset"])
    with container.netns() as own, listening(own):
        refused(node.outside, NODE_ADDRESSES[0], published.everywhere)
        refused(node.outside, NODE_ADDRESSES[1], published.limited[NODE_ADDRESSES[1]])
    node.run(["/opt/cni/bin/cni", "reload"])
    check_published(node, published, container, neighbour)
    for one in (container, neighbour):
        podman.remove(one)
    check_not_published(node, published)
    node.nothing_left(made, container.id, neighbour.id)


def test_containerd_with_a_whole_chain(
    network: Callable[..., Network], containerd: Containerd, node: Node, plugins: Plugins
) -> None:
    """bridge, portmap, firewall and bandwidth; ctr hands nothing over, so all is in the file."""
    published = Published()
    rates = {"ingressRate": 80_000_000, "egressRate": 160_000_000}
    bursts = {"ingressBurst": 8_000_000, "egressBurst": 16_000_000}
    chained = [
        {"type": "portmap", "runtimeConfig": {"portMappings": published.mappings()}},
        {"type": "firewall"},
        {"type": "bandwidth", **rates, **bursts},
    ]
    net = network(DUAL, options={"hairpinMode": True}, chained=chained)
    container = containerd.run(net)
    (port,) = ports(node.netns, net.bridge)
    (shaped,) = (name for name in links(node.netns) if name.startswith("bwp"))
    # As the kernel counts: bytes per second.
    assert tbf(node.netns, port)["rate"] == 10_000_000
    assert tbf(node.netns, shaped)["rate"] == 20_000_000
    # The same ports cannot be published twice: the other one gets a network without.
    node.path(net.file).write_text(replace(net, chained=chained[1:2]).conflist())
    neighbour = containerd.run(net)
    check_published(node, published, container, neighbour)
    for dev in (port, shaped):
        assert passed(node.netns, dev) > 10_000, f"{dev} shapes nothing"

    containerd.remove(container)
    check_not_published(node, published)
    assert sorted(ports(node.netns, net.bridge)) != [port]
    assert shaped not in links(node.netns)
    containerd.remove(neighbour)
    node.nothing_left(net, container.id, neighbour.id, but=leaks(containerd, plugins))
    assert published_tables(node) == set() or not plugins.ours
