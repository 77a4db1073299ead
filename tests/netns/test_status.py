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


# What is done to the node, and what is said of it, by a network of bridge or ptp.
LACKS = {
    "bridge down": ("ip link set br-net down", "the bridge br-net is down"),
    "port down": ("ip link set PORT down", "PORT, its link on the node, is down"),
    "port blocked": ("bridge link set dev PORT state 0", "br-net forwards nothing through"),
    "gateway lost": ("ip address del 10.22.0.1/24 dev br-net", "lacks the address 10.22.0.1/24"),
    "IPv6 gateway lost": ("ip address del fd00:22::1/64 dev br-net", "lacks the address fd00:22"),
    "no forwarding": ("sysctl -qw net.ipv4.ip_forward=0", "net.ipv4.ip_forward is 0"),
    "no IPv6 forwarding": (
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "net.ipv6.conf.all.forwarding is 0",
    ),
    "no forwarding here": (
        "sysctl -qw net.ipv4.conf.br-net.forwarding=0",
        "net.ipv4.conf.br-net.forwarding is 0",
    ),
}


def attached(node: Node, container: Netns, made_by: Path, **keys: Any) -> tuple[str, list[str]]:
    """Attach a container of a runtime in IPv4 and IPv6: the node's end, and how to CHECK it."""
    subnets = [[{"subnet": "10.22.0.0/24"}], [{"subnet": "fd00:22::/64"}]]
    ipam = {"type": "host-local", "dataDir": str(node.data_dir), "ranges": subnets}
    conf = node.network("net", "10.22.0.0/24", **{"ipam": ipam, **keys})
    node.env["CNI_STATE_DIR"] = str(node.cache)
    pod = node.start(conf, container, bin_dir=made_by)
    (port,) = json.loads(node.host.ip("-j", "link", "show", "type", "veth"))
    return port["ifname"], ["check", "net", "--id", pod.cid]


def is_named_everywhere(node: Node, check: list[str], words: str) -> list[str]:
    """Do status, doctor and CHECK say it? The commands that doctor names."""
    code, said = status(node)
    assert (code, said["code"]) == (51, 51), said
    assert words in f"{said['msg']} {said.get('details', '')}"
    found = json.loads(node.run("doctor", "--json").stdout)["findings"]
    wrong = [each for each in found if each["level"] == "error"]
    assert words in " ".join(each["text"] for each in wrong), found
    assert node.run(*check).returncode == 1
    return [each["mend"] for each in wrong]


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("made_by", ["ours", "Go"])
def test_what_attached_containers_lack(
    node: Node, container: Netns, go_bin_dir: Path, lack: str, made_by: str
) -> None:
    """The commands that doctor names put it right."""
    port, check = attached(node, container, go_bin_dir if made_by == "Go" else node.bin_dir)
    assert status(node)[0] == 0
    node.ok(*check)
    done, words = (text.replace("PORT", port) for text in LACKS[lack])
    node.host.exec(done.split())
    for mend in is_named_everywhere(node, check, words):
        node.host.exec(mend.split())
    assert status(node)[0] == 0
    node.ok(*check)


@pytest.mark.parametrize(
    ("done", "words"),
    [
        ("ip link set PORT down", "PORT, "),
        ("ip address del 10.22.0.1/32 dev PORT", "10.22.0.1/32"),
        ("sysctl -qw net.ipv4.ip_forward=0", "net.ipv4.ip_forward is 0"),
    ],
)
def test_what_a_routed_pair_lacks(node: Node, container: Netns, done: str, words: str) -> None:
    port, check = attached(node, container, node.bin_dir, type="ptp")
    assert status(node)[0] == 0
    node.host.exec(done.replace("PORT", port).split())
    is_named_everywhere(node, check, words.replace("PORT", port))


def test_what_nobody_needs_is_no_lack(node: Node, container: Netns) -> None:
    """A bridge without a gateway forwards nothing; one without containers may be down."""
    attached(node, container, node.bin_dir, isGateway=False)
    node.host.exec(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    assert status(node)[0] == 0
    node.host.ip("link", "add", "br9", "type", "bridge")
    configure(node, {**BRIDGE, "ipam": host_local(node, "10.23.0.0/24")})
    (node.net_d / "10-net.conflist").rename(node.net_d / "11-net.conflist")
    assert status(node)[0] == 0


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
