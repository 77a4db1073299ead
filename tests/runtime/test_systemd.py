"""The units that `cni install` writes, under a real systemd and with real containers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.harness import DUAL
from tests.harness.wait import wait_until

from .engines import Podman, make_image
from .networks import Network
from .node import NODE_ADDRESSES, Node, left_of
from .plugins import BIN_DIR
from .published import Published, check_published, listening, published_tables, refused
from .systemd import SYSTEMD, UNITS, Systemd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .plugins import Plugins

pytestmark = pytest.mark.runtime

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
FIREWALL = """flush ruleset
table inet administrator {
    chain forward {
        type filter hook forward priority filter; policy accept;
    }
}
"""


@pytest.fixture(scope="module")
def systemd(_namespaces: None, _runtimes_installed: None, plugins: Plugins) -> Iterator[Systemd]:
    """On a node of its own, as podman notices that there is a systemd. It has all of our units."""
    if plugins.dist is None:
        pytest.skip(f"CNI_TEST_BIN_DIR={plugins.given} chooses other plugins")
    if not SYSTEMD.exists():
        pytest.fail(f"no {SYSTEMD}: apt-get install systemd")
    node = Node()
    try:
        systemd = Systemd(node, ("nftables.service",))
        directories = ("--bin-dir", BIN_DIR, "--units", UNITS)
        node.run([str(plugins.dist), "install", *directories, "--service"])
        node.path("/etc/nftables.conf").write_text(FIREWALL)
        systemd.systemctl("daemon-reload")
        yield systemd
    finally:
        node.stop()
    assert left_of(node) == []


@pytest.fixture(scope="module")
def _podman(systemd: Systemd) -> Podman:
    engine = Podman(systemd.node)
    make_image(systemd.node)
    return engine


@pytest.fixture
def podman(_podman: Podman, net: Network) -> Iterator[Podman]:
    yield _podman
    _podman.remove_all()


@pytest.fixture
def net(systemd: Systemd) -> Iterator[Network]:
    """bridge and portmap, both with rules that a flush takes away."""
    options = {"hairpinMode": True}
    net = Network("net1", DUAL, options=options, chained=[PORTMAP])
    systemd.node.path(net.file).write_text(net.conflist())
    yield net
    systemd.node.path(net.file).unlink()


def test_systemd_understands_them(systemd: Systemd) -> None:
    names = [path.name for path in systemd.node.path(UNITS).glob("cni*")]
    assert len(names) == 6, names
    for name in names:
        assert systemd.show(name, "LoadState") == "loaded", name
    console = systemd.log()
    assert not [line for line in console.splitlines() if "cni" in line], console


def test_rules_outlive_the_firewalls_restart(
    systemd: Systemd, podman: Podman, net: Network
) -> None:
    node = systemd.node
    systemd.systemctl("enable", "--now", "nftables.service", "cni-reload.service")
    assert systemd.show("cni-reload.service", "ActiveState") == "active"
    ports = Published()
    neighbour, container = podman.run(net), podman.run(net, *ports.podman())
    for command in (["restart"], ["reload"], ["stop", "start"]):
        node.run(["nft", "flush", "ruleset"])
        assert published_tables(node) == set()
        for word in command:
            systemd.change(word, "nftables.service")
        assert "administrator" in node.run(["nft", "list", "tables"]).stdout
        check_published(node, ports, container, neighbour)

    # Stopped means no rules, also none of ours, until it is started again.
    systemd.systemctl("stop", "nftables.service")
    with container.netns() as own, listening(own):
        refused(node.outside, NODE_ADDRESSES[0], ports.everywhere)
    systemd.change("start", "nftables.service")
    check_published(node, ports, container, neighbour)
    for one in (container, neighbour):
        podman.remove(one)
    node_left(systemd, net, container.id, neighbour.id)


def test_the_first_container_starts_the_server(
    systemd: Systemd, podman: Podman, net: Network
) -> None:
    """And it enters namespaces that the runtime has mounted meanwhile."""
    node = systemd.node
    # As the administrator of a node whose runtime has mounts of its own would: here, systemd has.
    mounts = node.path(f"{UNITS}/cni.service.d/mounts.conf")
    mounts.parent.mkdir(exist_ok=True)
    mounts.write_text(f"[Service]\nExecStart=\nExecStart={BIN_DIR}/cni serve --any-mounts\n")
    systemd.systemctl("daemon-reload")
    systemd.systemctl("stop", "cni.socket", "cni.service")
    systemd.systemctl("enable", "--now", "cni.socket")
    assert systemd.show("cni.service", "ActiveState") == "inactive"
    ports = Published()
    neighbour, container = podman.run(net), podman.run(net, *ports.podman())
    assert systemd.show("cni.service", "ActiveState") == "active"
    check_published(node, ports, container, neighbour)
    status = json.loads(node.run([f"{BIN_DIR}/cni", "serve", "--status"]).stdout)
    assert status["served"] >= 4, status
    systemd.systemctl("restart", "cni.service")
    podman.remove(container)
    # By exec again.
    systemd.systemctl("stop", "cni.socket", "cni.service")
    podman.remove(neighbour)
    node_left(systemd, net, container.id, neighbour.id)


def test_the_dhcp_daemon_gets_its_socket(systemd: Systemd) -> None:
    systemd.systemctl("enable", "--now", "cni-dhcp.socket")
    assert systemd.show("cni-dhcp.service", "ActiveState") == "inactive"
    asked = systemd.node.run([f"{BIN_DIR}/cni", "dhcp", "leases", "--json"])
    assert asked.stdout == "[]\n"
    wait_until(
        lambda: systemd.show("cni-dhcp.service", "ActiveState") == "active", "the daemon runs"
    )


def node_left(systemd: Systemd, net: Network, *container_ids: str) -> None:
    """Nothing is left of containers; systemd and its services are no leftovers."""
    systemd.node.nothing_left(net, *container_ids, but=("process",))
