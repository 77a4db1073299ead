"""The configurations in examples/ are right, and work: each is judged, and each that can is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from cni.describe import catalogue
from tests.harness import Netns, Runtime
from tests.harness.build import ROOT, copy_installation
from tests.harness.netns import PATH
from tests.harness.requires import missing, requires_kernel

EXAMPLES = ROOT / "examples"
FILES = sorted(EXAMPLES.rglob("*.conflist"))
IDS = [str(each.relative_to(EXAMPLES)) for each in FILES]
SETUPS = sorted({each.parent for each in FILES} - {EXAMPLES / "label"})

# Type of plugin -> what the kernel has to have for it.
FEATURES = {
    "bond": "bond",
    "dummy": "dummy",
    "ipvlan": "ipvlan",
    "macvlan": "macvlan",
    "macvtap": "macvtap",
    "tap": "tap",
    "vlan": "vlan",
    "vrf": "vrf",
    "vxlan": "vxlan",
    "wireguard": "wireguard",
}
# Why an ADD is not tried here.
NOT_HERE = {
    "cluster-etcd": "needs an etcd: tests/netns/test_cluster_etcd.py",
    "several-nodes-encrypted": "needs an etcd: tests/netns/test_wireguard_peers.py",
    "several-nodes-etcd": "needs an etcd: tests/netns/test_vxlan_peers.py",
    "cluster-kubernetes": "needs a Kubernetes API: tests/unit/test_cluster_on_kubernetes.py",
    "dhcp": "needs a DHCP server: tests/netns/test_dhcp.py",
    "flannel": "needs flanneld's file: tests/netns/test_flannel.py",
    "label": "needs the plugin: test_the_example_plugin",
    "lan-dhcp": "needs a DHCP server: tests/netns/test_dhcp.py",
    "slaac": "needs a router that advertises: tests/netns/test_slaac.py",
    "sriov": "needs a card with virtual functions: tests/unit/test_sriov.py",
    "sriov-device": "needs a device with a PCI address: tests/netns/test_host_device.py",
    "whereabouts": "needs a store: tests/unit/test_cluster_whereabouts.py",
    "macvtap": "needs a program that opens its device: tests/netns/test_macvtap.py",
    "tc-redirect-tap": "needs a program that opens its device: tests/lab/test_tc_redirect_tap.py",
    "win-bridge": "needs Windows",
    "win-overlay": "needs Windows",
}
# What a runtime passes for the capabilities.
RUNTIME_CONFIG = {
    "portMappings": [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}],
    "bandwidth": {"ingressRate": 8000000, "ingressBurst": 800000},
    "mac": "02:00:00:00:00:77",
    "ips": ["10.144.0.77/24"],
}


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_every_plugin_has_an_example() -> None:
    for name in catalogue.NAMES:
        plugins = content(EXAMPLES / "plugins" / f"{name}.conflist")["plugins"]
        assert name in {each["type"] for each in plugins} | {
            each["ipam"]["type"] for each in plugins if "ipam" in each
        }


def test_every_file_is_in_the_overview() -> None:
    text = (EXAMPLES / "README.md").read_text()
    linked = {(EXAMPLES / each).resolve() for each in re.findall(r"\]\(([^)#:]+)\)", text)}
    assert {each for each in FILES if each.parent.name != "plugins"} <= linked


def test_no_two_networks_of_a_folder_collide() -> None:
    for folder in SETUPS:
        names = [content(each)["name"] for each in folder.glob("*.conflist")]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("folder", SETUPS, ids=lambda each: each.name)
def test_the_configurations_are_valid(
    host: Netns, bin_dir: Path, tmp_path: Path, folder: Path
) -> None:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    env = {"PATH": PATH, "NETCONFPATH": str(tmp_path), "CNI_PATH": str(bin_dir)}
    argv = [str(bin_dir / "cni"), "validate", "--strict", "--offline", str(folder)]
    done = host.exec(argv, check=False, env=env, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr


def with_needs(path: Path) -> Any:
    """The file as a parameter of a test, marked with what it needs of the kernel."""
    plugins = content(path)["plugins"]
    needed = {FEATURES[each["type"]] for each in plugins if each["type"] in FEATURES}
    if any("vlan" in each or "vlanTrunk" in each for each in plugins):
        needed.add("vlan_filtering")
    is_run = path.stem not in NOT_HERE and needed
    return pytest.param(path, marks=[requires_kernel(*sorted(needed))] if is_run else [])


@pytest.mark.parametrize("path", [with_needs(each) for each in FILES], ids=IDS)
def test_the_configurations_work(
    runtime: Runtime, host: Netns, container: Netns, tmp_path: Path, path: Path
) -> None:
    if path.stem in NOT_HERE:
        pytest.skip(NOT_HERE[path.stem])
    network = content(path)
    types = {each["type"] for each in network["plugins"]}
    prepare(host, container, types)
    for plugin in network["plugins"]:
        move_state(plugin, tmp_path)
        wanted = {k: v for k, v in RUNTIME_CONFIG.items() if k in plugin.get("capabilities", {})}
        if wanted:
            plugin["runtimeConfig"] = wanted
    result = runtime.add_list(network, container)
    if "sample" not in types:  # whose CHECK says that it is not implemented
        runtime.check_list(network, container, result)
    runtime.delete_list(network, container, result)


def prepare(host: Netns, container: Netns, types: set[str]) -> None:
    """The links that the examples name: eth1 is a LAN of the node, eth2 and eth3 are spare."""
    for name in ("eth1", "eth2", "eth3"):
        host.ip_batch(
            f"link add {name} type veth peer name {name}peer",
            f"link set {name} up",
            f"link set {name}peer up",
        )
    host.ip("address", "add", "10.140.0.2/24", "dev", "eth1")
    if "bond" in types:
        host.ip_batch("link set eth2 down", "link set eth3 down")


def move_state(plugin: dict[str, Any], directory: Path) -> None:
    """Keep reservations, and the store of a cluster, below the test's directory."""
    ipam = plugin.get("ipam", {})
    if ipam.get("type") in ("host-local", "cluster"):
        ipam["dataDir"] = str(directory / "data")
    if ipam.get("type") == "cluster":
        ipam["store"] = {"type": "directory", "path": str(directory / "store")}
    if plugin["type"] == "wireguard":
        plugin["privateKeyFile"] = str(directory / "key")


def test_the_example_plugin(host: Netns, bin_dir: Path, tmp_path: Path) -> None:
    """Its own tests, which need nothing of this repository, pass on the built file."""
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    plugins = tmp_path / "bin"
    copy_installation(bin_dir, plugins)
    shutil.copy(EXAMPLES / "label" / "label", plugins)
    copy = shutil.copy(EXAMPLES / "label" / "test_label.py", tmp_path)  # away from our conftest
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(copy)]
    env = {"PATH": PATH, "CNI_PATH": str(plugins), "HOME": os.environ.get("HOME", "/root")}
    done = host.exec(argv, check=False, env=env, cwd=str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_enough_is_tried() -> None:
    """Few examples are left out; and no reason stands for an example that is gone."""
    stems = {each.stem for each in FILES}
    assert set(NOT_HERE) <= stems
    assert len([each for each in FILES if each.stem not in NOT_HERE]) > 25
    assert missing("bridge") is None
