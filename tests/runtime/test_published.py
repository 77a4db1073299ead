"""Published ports of real containers, reached from everywhere; stopped, nothing is left."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.harness import DUAL, links, ports
from tests.harness.tc import passed, tbf
from tests.harness.wait import last_seen

from .checks import leaks
from .engines import IMAGE, web_server
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


# --- several networks -----------------------------------------------------------------------------

SECOND = replace(
    DUAL,
    name="second",
    subnets=("10.22.7.0/24", "fd00:22:7::/64"),
    gateways=("10.22.7.1", "fd00:22:7::1"),
)
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


def answer(node: Node, port: int = 8080) -> str:
    """What a container's web server says to the host outside; "" if nobody answers."""
    request = ["busybox", "nc", "-w", "3", NODE_ADDRESSES[0], str(port)]
    done = node.outside.exec(request, stdin="GET /name HTTP/1.0\r\n\r\n", check=False)
    return done.stdout.rpartition("\n\n")[2].strip().rpartition("\n")[2]


def server(node: Node) -> str:
    """The same, once it answers: podman does not wait until the web server listens."""
    return last_seen(lambda: answer(node))


def test_a_port_of_several_networks(
    network: Callable[..., Network], podman: Podman, node: Node, plugins: Plugins
) -> None:
    """Every network has the port; the one that is left serves it."""
    if not plugins.ours:
        pytest.skip("with the reference, DEL in one network ends the port in all")
    first, second = (network(family, chained=[PORTMAP]) for family in (DUAL, SECOND))
    container = podman.run(first, f"--network={second.name}", "--publish=8080:80")
    assert server(node) == container.name
    for gone, left in ((first, second), (second, first)):
        podman.podman("network", "disconnect", gone.name, container.name)
        assert server(node) == container.name, f"not through {left.name}"
        podman.podman("network", "connect", gone.name, container.name)
        assert server(node) == container.name
    podman.podman("restart", container.name)
    assert server(node) == container.name
    podman.remove(container)
    assert answer(node) == ""
    assert published_tables(node) == set()
    for one in (first, second):
        node.nothing_left(one, container.id)


@pytest.mark.skipif(shutil.which("podman-compose") is None, reason="needs podman-compose")
def test_a_port_in_a_compose_file(
    network: Callable[..., Network], podman: Podman, node: Node, plugins: Plugins
) -> None:
    if not plugins.ours:
        pytest.skip("with the reference, DEL in one network ends the port in all")
    first, second = (network(family, chained=[PORTMAP]) for family in (DUAL, SECOND))
    service = {
        "image": IMAGE,
        "container_name": "composed",
        "command": web_server("composed"),
        "ports": ["8080:80"],
        "networks": [first.name, second.name],
        "stop_signal": "SIGKILL",
        "ulimits": {"nofile": 1024, "nproc": 1000},
    }
    external = {one.name: {"external": True, "name": one.name} for one in (first, second)}
    document = {"version": "3", "services": {"web": service}, "networks": external}
    directory = node.path("/var/tmp/compose")
    directory.mkdir(exist_ok=True)
    (directory / "compose.yaml").write_text(json.dumps(document))
    compose = ["podman-compose", "--file", "/var/tmp/compose/compose.yaml"]
    group = f"--podman-run-args=--cgroup-parent=/{node.tag}"
    node.run([*compose, group, "up", "--detach"])
    assert server(node) == "composed"
    node.run([*compose, "restart"])
    assert server(node) == "composed"
    podman.podman("network", "disconnect", first.name, "composed")
    assert server(node) == "composed"
    container = podman.podman("inspect", "--format", "{{.Id}}", "composed")
    node.run([*compose, "down"])
    assert answer(node) == ""
    assert published_tables(node) == set()
    for one in (first, second):
        node.nothing_left(one, container)
