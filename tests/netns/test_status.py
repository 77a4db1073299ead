"""`cni status` says what the next ADD would say, also of networks that are older than STATUS."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Netns
from tests.harness.command_line import Node

BRIDGE = {"type": "bridge", "bridge": "br9", "isGateway": True}


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    return Node(host, bin_dir, tmp_path)


def configure(node: Node, *plugins: dict[str, Any], version: str = "1.0.0") -> None:
    conf = {"cniVersion": version, "name": "net", "plugins": list(plugins)}
    (node.net_d / "10-net.conflist").write_text(json.dumps(conf))


def host_local(node: Node, subnet: str = "10.22.0.0/24") -> dict[str, Any]:
    return {"type": "host-local", "subnet": subnet, "dataDir": str(node.data_dir)}


def status(node: Node) -> tuple[int, dict[str, Any]]:
    done = node.run("status", "net", "--json", CNI_STATE_DIR=str(node.cache))
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def fails_as_said(node: Node, container: Netns, words: str) -> None:
    """STATUS says 50 with these words, and the ADD fails indeed."""
    code, said = status(node)
    assert (code, said["code"]) == (50, 50), said
    assert words in f"{said['msg']} {said.get('details', '')}"
    assert node.run("add", "net", container.path).returncode != 0


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0", "1.1.0"])
def test_a_full_range(node: Node, container: Netns, container2: Netns, version: str) -> None:
    configure(node, {**BRIDGE, "ipam": host_local(node, "10.22.0.0/30")}, version=version)
    assert status(node)[0] == 0
    node.ok("add", "net", container.path)
    fails_as_said(node, container2, "no IP addresses available")


@pytest.mark.parametrize("installed", ["all of Go", "IPAM of Go", "another build"])
def test_a_full_range_whichever_build_is_installed(
    node: Node, netns: Callable[..., Netns], go_bin_dir: Path, tmp_path: Path, installed: str
) -> None:
    """What an ADD would meet does not depend on who is asked."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    another = tmp_path / "another"
    another.write_bytes((node.bin_dir / "cni").read_bytes() + b" ")
    another.chmod(0o755)
    for name in ("bridge", "host-local"):
        of_go = installed == "all of Go" or (installed == "IPAM of Go" and name == "host-local")
        own = another if installed == "another build" else node.bin_dir / "cni"
        (plugins / name).symlink_to(go_bin_dir / name if of_go else own)
    node.env["CNI_PATH"] = str(plugins)
    conf = node.network("net", "10.22.0.0/30")
    assert status(node)[0] == 0
    node.start(conf, netns(), bin_dir=plugins)
    fails_as_said(node, netns(), "no IP addresses available")


def test_who_was_not_asked_since_it_is_of_another_build(node: Node, go_bin_dir: Path) -> None:
    node.env["CNI_PATH"] = str(go_bin_dir)
    node.network("net", "10.22.0.0/24", {"type": "firewall"}, {"type": "tuning"})
    code, said = status(node)
    assert code == 0, said
    assert [each.partition(",")[0] for each in said["notAsked"]] == ["firewall"]


def test_what_an_add_would_meet(node: Node, container: Netns) -> None:
    ipam = host_local(node)
    on = {"type": "macvlan", "master": "eth77", "ipam": ipam}
    for plugins, words in (
        ([on], "eth77"),
        ([{"type": "firewall"}, {**BRIDGE, "ipam": ipam}], "firewall comes before"),
        ([{**BRIDGE, "mtu": 70000, "ipam": ipam}], "mtu is 70000"),
    ):
        configure(node, *plugins)
        fails_as_said(node, container, words)
    configure(node, {**BRIDGE, "ipam": ipam}, {"type": "firewall"}, version="0.3.1")
    fails_as_said(node, container, "0.3.1")
    # What the plugin itself says comes first.
    configure(node, {**BRIDGE, "mtu": "1500", "ipam": ipam})
    code, said = status(node)
    assert (code, said["code"]) == (1, 999)
    assert "field mtu of type int" in said["msg"]


@pytest.mark.parametrize("how", ["deleted", "made again", "taken out"])
def test_a_bridge_that_containers_have_lost(
    node: Node, container: Netns, container2: Netns, how: str
) -> None:
    """As CHECK says; status, ps and doctor say it, too. A network with its bridge is not named."""
    configure(node, {**BRIDGE, "ipam": host_local(node)})
    other = {**BRIDGE, "bridge": "br8", "ipam": host_local(node, "10.23.0.0/24")}
    conf = {"cniVersion": "1.0.0", "name": "other", "plugins": [other]}
    (node.net_d / "20-other.conflist").write_text(json.dumps(conf))
    env = {"CNI_STATE_DIR": str(node.cache)}
    node.ok("add", "net", container.path, **env)
    node.ok("add", "other", container2.path, **env)
    before = node.run("ps", "--json", "--cache-dir", str(node.cache), **env)
    assert [each["cutOff"] for each in json.loads(before.stdout)] == ["", ""]
    assert status(node)[0] == 0
    if how == "taken out":
        (port,) = json.loads(node.host.ip("-j", "link", "show", "master", "br9"))
        node.host.ip("link", "set", port["ifname"], "nomaster")
    else:
        node.host.ip("link", "del", "br9")
    if how == "made again":
        node.host.ip("link", "add", "br9", "type", "bridge")
    assert node.run("check", "net", container.path, **env).returncode == 1
    words = "the bridge br9 is gone" if how == "deleted" else "is no port of the bridge br9"
    code, said = status(node)
    assert (code, said["code"]) == (51, 51), said
    assert "net: 1 container is cut off" in said["msg"]
    assert words in said["msg"]
    after = node.run("ps", "--json", "--cache-dir", str(node.cache), **env)
    found = {each["network"]: each["cutOff"] for each in json.loads(after.stdout)}
    assert words in found["net"]
    assert found["other"] == ""
    assert words in node.run("ps", "net", "--cache-dir", str(node.cache), **env).stderr
    examined = node.run("doctor", "--cache-dir", str(node.cache), **env).stdout
    assert "net: 1 container is cut off" in examined
    assert "other: 1 container" not in examined


def test_an_mtu_above_the_masters(node: Node, container: Netns) -> None:
    node.host.ip("link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "up1")
    on = {"type": "macvlan", "master": "up0", "mtu": 9000, "ipam": host_local(node)}
    configure(node, on)
    fails_as_said(node, container, "1400")


def test_ready_with_warnings(node: Node, container: Netns) -> None:
    configure(node, {**BRIDGE, "isGatway": True, "ipam": host_local(node)})
    code, said = status(node)
    assert (code, said["ready"]) == (0, True)
    assert [each["code"] for each in said["warnings"]] == ["unknown-key"]
    node.ok("add", "net", container.path)


def test_who_was_not_asked(node: Node) -> None:
    program = node.bin_dir / "other"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    try:
        configure(node, {**BRIDGE, "ipam": host_local(node)}, {"type": "other"})
        code, said = status(node)
        assert code == 0
        assert said["notAsked"] == ["other, since cniVersion 1.0.0 has no STATUS"]
    finally:
        program.unlink()


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_rules_that_were_flushed(node: Node, container: Netns, backend: str) -> None:
    plugin = {**BRIDGE, "ipMasq": True, "ipMasqBackend": backend, "ipam": host_local(node)}
    configure(node, plugin)
    state = {"CNI_STATE_DIR": str(node.cache)}
    assert node.run("add", "net", container.path, **state).returncode == 0
    assert status(node)[0] == 0
    node.host.exec(["nft", "flush", "ruleset"])
    code, said = status(node)
    assert (code, said["code"]) == (51, 51)
    assert "cni reload" in said["msg"]
    cni = [str(node.bin_dir / "cni"), "reload"]
    node.host.exec(cni, env={**node.env, **state}, cwd="/")
    assert status(node)[0] == 0
