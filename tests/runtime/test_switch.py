"""A node changes plugins while containers run: from Debian's Go plugins to ours, and back.

As an administrator does it: `cni install` into the directory where the Go plugins are, and
`cni uninstall`, which brings them back.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.harness import DUAL, JoinedNetns, links

from .checks import check_own_network
from .networks import Network
from .node import NODE_ADDRESSES, OUTSIDE_ADDRESSES
from .plugins import BIN_DIR
from .published import (
    Published,
    check_not_published,
    check_published,
    check_reached,
    listening,
    published_tables,
    reached,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .engines import Podman
    from .node import Node
    from .plugins import Plugins

pytestmark = pytest.mark.runtime

# Backends whose rules both sets of plugins know.
IPTABLES = (
    {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "iptables"},
    {"type": "firewall", "backend": "iptables"},
    {"type": "tuning", "mtu": 1400, "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}},
)


@dataclass
class Switch:
    """Changes the plugins of the node."""

    node: Node
    dist: str

    def to_ours(self) -> None:
        self.node.run([self.dist, "install", "--bin-dir", BIN_DIR])
        assert self._are_ours()

    def to_go(self) -> None:
        self.node.run([self.dist, "uninstall", "--bin-dir", BIN_DIR, "--force"])
        assert not self._are_ours()

    def _are_ours(self) -> bool:
        """Called by hand, a plugin says its version, of which the Go plugins know nothing."""
        done = self.node.run([f"{BIN_DIR}/bridge"], check=False)
        said = done.stdout + done.stderr
        assert "CNI bridge plugin" in said
        return "+py." in said


@pytest.fixture
def switch(node: Node, plugins: Plugins, go_bin_dir: Path) -> Iterator[Switch]:
    """The node with the Go plugins; afterwards it has ours again, and nothing else."""
    if plugins.dist is None:
        pytest.skip(f"CNI_TEST_BIN_DIR={plugins.given} chooses other plugins")
    changer = Switch(node, str(plugins.dist))
    node.run([changer.dist, "uninstall", "--bin-dir", BIN_DIR, "--force"])
    shutil.copytree(go_bin_dir, node.path(BIN_DIR), symlinks=True, dirs_exist_ok=True)
    try:
        yield changer
    finally:
        node.run([changer.dist, "uninstall", "--bin-dir", BIN_DIR, "--force"], check=False)
        node.run(["sh", "-c", f"rm -rf {BIN_DIR}/* {BIN_DIR}/.[!.]*"])
        plugins.install(node)


def kept(node: Node) -> list[str]:
    """What only ours keeps of containers."""
    return [path.name for path in node.path("/run/cni").glob("intent/*")]


def iptables(node: Node, word: str) -> list[str]:
    text = node.run(["iptables-save"]).stdout + node.run(["ip6tables-save"]).stdout
    return [line for line in text.splitlines() if word in line]


def test_podman_from_go_to_ours(switch: Switch, made: Network, podman: Podman, node: Node) -> None:
    """A network as podman makes it, whose containers were started on the Go plugins."""
    ports = Published()
    neighbour, container = podman.run(made), podman.run(made, *ports.podman())
    assert iptables(node, "CNI-DN-")
    assert not kept(node)

    switch.to_ours()
    check_published(node, ports, container, neighbour)
    more = Published(8100)
    new = podman.run(made, *more.podman())
    assert kept(node)
    check_published(node, more, new, container)
    podman.remove(container)
    assert not iptables(node, "CNI-DN-")
    check_not_published(node, ports)
    check_published(node, more, new, neighbour)
    podman.podman("restart", neighbour.name)
    check_own_network(neighbour, DUAL)
    for one in (new, neighbour):
        podman.remove(one)
    node.nothing_left(made, container.id, new.id, neighbour.id)
    assert published_tables(node) == set()


def test_podman_from_ours_to_go(
    switch: Switch, network: Callable[..., Network], podman: Podman, node: Node
) -> None:
    """With the iptables backends, which the Go plugins can clean up, and with host-local."""
    options = {"hairpinMode": True, "ipMasqBackend": "iptables"}
    net = network(DUAL, options=options, chained=IPTABLES)
    ports = Published()
    switch.to_ours()
    neighbour, container = podman.run(net), podman.run(net, *ports.podman())
    assert iptables(node, "CNI-DN-")
    notes = kept(node)
    assert notes

    switch.to_go()
    check_published(node, ports, container, neighbour)
    more = Published(8100)
    new = podman.run(net, *more.podman())
    check_published(node, more, new, container)
    podman.remove(container)
    check_not_published(node, ports)
    for one in (new, neighbour):
        podman.remove(one)
    # The Go plugins neither end UDP flows nor know what ours keep for `cni reload`.
    node.nothing_left(net, container.id, new.id, neighbour.id, but=("flow", "file"))
    left = node.traces(net, container.id, new.id, neighbour.id).get("file", [])
    assert sorted(left) == sorted(f"run/cni/intent/{name}" for name in notes)
    # Such notes bring nothing back.
    switch.to_ours()
    assert node.run(["/opt/cni/bin/cni", "reload"]).returncode == 0
    assert "rule" not in node.traces(net, container.id, new.id, neighbour.id)


def test_podman_from_ours_to_go_with_nftables(
    switch: Switch, made: Network, podman: Podman, node: Node
) -> None:
    """What the Go plugins cannot know: portmap's maps, until ours publish again."""
    ports = Published()
    switch.to_ours()
    container = podman.run(made, *ports.podman())
    switch.to_go()
    podman.remove(container)
    left = node.traces(made, container.id)
    assert set(left) <= {"rule", "flow", "file"}
    assert all("cni_hostport" in rule for rule in left["rule"])
    assert all(file.startswith("run/cni/intent/") for file in left["file"])

    switch.to_ours()
    neighbour, again = podman.run(made), podman.run(made, *ports.podman())
    check_published(node, ports, again, neighbour)
    for one in (again, neighbour):
        podman.remove(one)
    assert published_tables(node) == set()
    assert "rule" not in node.traces(made, container.id, again.id, neighbour.id)


class Direct(ExitStack):
    """Namespaces of the node on a network, attached by `cni add` as cnitool would."""

    def __init__(self, switch: Switch, net: Network) -> None:
        super().__init__()
        self.switch, self.net, self.node = switch, net, switch.node

    def attach(self, name: str, ports: Published) -> None:
        self.node.run(["ip", "netns", "add", name])
        self.callback(self.remove, name)
        self("add", name, ports)

    def remove(self, name: str) -> None:
        """As often as you like."""
        self.node.run(["ip", "netns", "delete", name], check=False)

    def netns(self, name: str) -> JoinedNetns:
        return JoinedNetns(self.node.path(f"/run/netns/{name}"), name)

    def __call__(self, verb: str, name: str, ports: Published) -> None:
        mappings = json.dumps({"portMappings": ports.mappings()})
        env = {"CNI_PATH": BIN_DIR, "CAP_ARGS": mappings}
        self.node.run([self.switch.dist, verb, self.net.name, f"/run/netns/{name}"], env=env)


@pytest.mark.parametrize("started_on", ["go", "ours"])
def test_conflist(
    switch: Switch, network: Callable[..., Network], node: Node, started_on: str
) -> None:
    """The whole chain, bandwidth included; a namespace may be gone when its DEL comes."""
    rates = {"ingressRate": 80_000_000, "ingressBurst": 8_000_000}
    rates |= {"egressRate": 80_000_000, "egressBurst": 8_000_000}
    options = {"hairpinMode": True, "ipMasqBackend": "iptables"}
    net = network(DUAL, options=options, chained=[*IPTABLES, {"type": "bandwidth", **rates}])
    ports, more = Published(), Published(8100)
    if started_on == "ours":
        switch.to_ours()
    with Direct(switch, net) as direct:
        direct.attach("one", ports)
        direct.attach("two", more)
        assert len([name for name in links(node.netns) if name.startswith("bwp")]) == 2
        assert bool(kept(node)) == (started_on == "ours")
        (switch.to_ours if started_on == "go" else switch.to_go)()
        with direct.netns("one") as one, direct.netns("two") as two:
            check_reached(node, ports, one, two)
            check_reached(node, more, two, one)
        if started_on == "go":
            # The reverse fails: the reference's CHECK wants the IPv4 rules in ip6tables, too.
            direct("check", "one", ports)
            direct.remove("one")
        direct("del", "one", ports)
        check_not_published(node, ports)
        with direct.netns("two") as two, listening(two):
            reached(node.outside, NODE_ADDRESSES[0], more.everywhere, OUTSIDE_ADDRESSES[0])
        direct("del", "two", more)
    # `cni del` removes the notes, of which the Go plugins do not know.
    assert kept(node) == []
    left = node.traces(net)
    if started_on == "ours":  # as above
        left.pop("flow", None)
    assert left == {}
