"""`cni validate` on a node: plugins, links, subnets and the kernel that an ADD would need."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Netns
from tests.harness.netns import PATH

IPAM = {"type": "host-local", "subnet": "10.22.0.0/24"}
BRIDGE = {"type": "bridge", "bridge": "br9", "isGateway": True, "ipam": IPAM}


class Node:
    """A node with the installed file and one network; findings as (code, path, severity)."""

    def __init__(self, host: Netns, bin_dir: Path, root: Path) -> None:
        self.host = host
        self.bin_dir = bin_dir
        self.file = root / "10-net.conflist"
        self.path = str(bin_dir)

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": PATH, "LC_ALL": "C", "CNI_PATH": self.path}
        argv = [str(self.bin_dir / "cni"), "validate", *args, str(self.file)]
        return self.host.exec(argv, check=False, env=env, cwd="/")

    def judge(self, *plugins: dict[str, Any]) -> list[dict[str, Any]]:
        conf = {"cniVersion": "1.0.0", "name": "net", "plugins": list(plugins)}
        self.file.write_text(json.dumps(conf))
        done = self.run("--json")
        value = json.loads(done.stdout)
        assert done.returncode == bool(value["errors"]), done.stdout + done.stderr
        found: list[dict[str, Any]] = value["findings"]
        return found

    def codes(self, *plugins: dict[str, Any]) -> list[tuple[str, str]]:
        return [(each["code"], each["path"]) for each in self.judge(*plugins)]


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    return Node(host, bin_dir, tmp_path)


def test_nothing_is_missing(node: Node) -> None:
    before = node.host.ip("link")
    assert node.codes(BRIDGE) == []
    assert node.host.ip("link") == before  # it made nothing


def test_missing_plugins(node: Node) -> None:
    ipam = {"type": "spiderpool", "range": "10.0.0.0/24"}
    assert node.codes({**BRIDGE, "ipam": ipam}, {"type": "cilium"}) == [
        ("missing-plugin", "plugins[0].ipam.type"),
        ("missing-plugin", "plugins[1].type"),
    ]
    node.path = "/nonexistent"
    assert ("missing-plugin", "plugins[0].type") in node.codes(BRIDGE)
    assert node.run("--offline").returncode == 0


def test_masters(node: Node) -> None:
    node.host.ip("link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "up1")
    node.host.ip("link", "set", "up0", "up")
    on = {"type": "macvlan", "master": "up0", "ipam": IPAM}
    assert node.codes(on) == []
    assert node.codes({**on, "master": "up77"}) == [("missing-link", "plugins[0].master")]
    assert node.codes({**on, "master": "up77", "linkInContainer": True}) == []
    assert node.codes({**on, "mtu": 1400}) == []
    assert node.codes({**on, "mtu": 1401}) == [("mtu", "plugins[0].mtu")]
    node.host.ip("link", "set", "up0", "down")
    assert [(each["code"], each["severity"]) for each in node.judge(on)] == [
        ("link-down", "warning")
    ]


def test_the_default_routes_link(node: Node) -> None:
    on = {"type": "macvlan", "ipam": IPAM}
    assert node.codes(on) == [("missing-link", "plugins[0].type")]
    node.host.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    node.host.ip("link", "set", "up0", "up")
    node.host.ip("link", "set", "up1", "up")
    node.host.ip("route", "add", "default", "dev", "up0")
    assert node.codes(on) == []


@pytest.mark.parametrize("plugin", ["macvlan", "ipvlan", "vlan"])
def test_a_loopback_is_no_master(node: Node, plugin: str) -> None:
    """What the kernel says of it, too."""
    node.host.ip("link", "set", "lo", "up")
    on = {"type": plugin, "master": "lo", "ipam": IPAM}
    found = [(code, place) for code, place in node.codes(on) if code != "missing-kernel-module"]
    assert found == [("unfit-link", "plugins[0].master")]
    more = ["id", "5"] if plugin == "vlan" else []
    make = ["ip", "link", "add", "x0", "link", "lo", "type", plugin, *more]
    assert node.host.exec(make, check=False).returncode != 0


def test_a_link_without_mac_is_no_master(node: Node) -> None:
    node.host.exec(["ip", "tuntap", "add", "tun0", "mode", "tun"])
    node.host.ip("link", "set", "tun0", "up")
    on = {"type": "macvlan", "master": "tun0", "ipam": IPAM}
    assert ("unfit-link", "plugins[0].master") in node.codes(on)
    node.host.ip("route", "add", "default", "dev", "tun0")
    assert ("unfit-link", "plugins[0].type") in node.codes({"type": "macvlan", "ipam": IPAM})


def test_a_master_that_is_a_bridge_port(node: Node) -> None:
    node.host.ip("link", "add", "br0", "type", "bridge")
    node.host.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    node.host.ip("link", "set", "up0", "master", "br0", "up")
    on = {"type": "macvlan", "master": "up0", "ipam": IPAM}
    assert node.codes(on) == [("busy-link", "plugins[0].master")]


def test_bridges(node: Node) -> None:
    node.host.ip("link", "add", "br9", "type", "veth", "peer", "name", "up1")
    assert node.codes(BRIDGE) == [("busy-link", "plugins[0].bridge")]
    node.host.ip("link", "del", "br9")
    node.host.ip("link", "add", "br9", "type", "bridge")
    assert node.codes({**BRIDGE, "vlan": 5}) == [("vlan-filtering", "plugins[0].vlan")]
    node.host.ip("address", "add", "10.22.0.1/24", "dev", "br9")
    node.host.ip("link", "set", "br9", "up")
    assert node.codes(BRIDGE) == []
    other = {**BRIDGE, "ipam": {**IPAM, "subnet": "10.23.0.0/24"}}
    assert node.codes(other) == [("conflicting-address", "plugins[0].ipam.subnet")]
    assert node.codes({**other, "forceAddress": True}) == []


def test_subnets_that_the_node_reaches_otherwise(node: Node) -> None:
    node.host.ip("link", "add", "br0", "type", "bridge")
    node.host.ip("link", "set", "br0", "up")
    node.host.ip("address", "add", "10.22.0.200/25", "dev", "br0")
    found = node.judge(BRIDGE)
    assert [(each["code"], each["path"]) for each in found] == [
        ("overlap", "plugins[0].ipam.subnet")
    ]
    assert "10.22.0.128/25 through br0" in found[0]["message"]
    assert node.codes({**BRIDGE, "bridge": "br0", "forceAddress": True}) == []


def test_an_attached_network_is_right(node: Node, container: Netns, tmp_path: Path) -> None:
    """Links, addresses and routes of the network itself are no fault."""
    ptp = {"type": "ptp", "ipam": {**IPAM, "dataDir": str(tmp_path / "leases")}}
    bridge = {**BRIDGE, "ipam": {**IPAM, "subnet": "10.23.0.0/24", "dataDir": str(tmp_path / "b")}}
    for plugin, ifname in ((ptp, "eth0"), (bridge, "eth1")):
        assert node.codes(plugin) == []
        env = {"PATH": PATH, "CNI_PATH": node.path, "NETCONFPATH": str(tmp_path)}
        cni = [str(node.bin_dir / "cni"), "add", "net", container.path, "-i", ifname]
        node.host.exec([*cni, "--cache-dir", str(tmp_path / "cache")], env=env, cwd="/")
        assert node.codes(plugin) == []


def kinds(node: Node) -> dict[str, bool]:
    """Which kinds of links this kernel has, found by making one."""
    found = {}
    for kind in ("dummy", "vrf"):
        more = ["table", "7"] if kind == "vrf" else []
        done = node.host.exec(["ip", "link", "add", "probe0", "type", kind, *more], check=False)
        found[kind] = done.returncode == 0
        node.host.exec(["ip", "link", "del", "probe0"], check=False)
    return found


def test_kinds_of_links(node: Node) -> None:
    has = kinds(node)
    static = {"type": "static", "addresses": [{"address": "10.1.2.3/32"}]}
    expected = [] if has["dummy"] else [("missing-kernel-module", "plugins[0].type")]
    assert node.codes({"type": "dummy", "ipam": static}) == expected
    expected = [] if has["vrf"] else [("missing-kernel-module", "plugins[1].type")]
    assert node.codes(BRIDGE, {"type": "vrf", "vrfname": "blue"}) == expected
