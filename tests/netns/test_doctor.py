"""`cni doctor` finds what is wrong with a node, and what it says mends it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Netns
from tests.harness.command_line import Node
from tests.harness.paths import let_everybody_in


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    made = Node(host, bin_dir, tmp_path)
    made.env["CNI_SERVER_SOCKET"] = str(tmp_path / "cni.sock")
    return made


def doctor(node: Node) -> list[dict[str, Any]]:
    argv = [str(node.bin_dir / "cni"), "doctor", "--json", "--cache-dir", str(node.cache)]
    done = node.host.exec(argv, env=node.env, cwd="/", check=False)
    assert done.stderr == ""
    value = json.loads(done.stdout)
    assert done.returncode == bool(value["errors"])
    unseen = [each for each in value["findings"] if "could not be looked at" in each["text"]]
    assert unseen == []
    wrong = [each for each in value["findings"] if each["level"] in ("warning", "error")]
    # The machine that runs the tests may be full: tests/unit/test_doctor.py tests what is said.
    return [each for each in wrong if "of the space" not in each["text"]]


def mend(node: Node, finding: dict[str, Any]) -> None:
    """Run the command that a finding names, as it stands."""
    argv = shlex.split(finding["mend"])
    extra = ["--cache-dir", str(node.cache)] if argv[:2] == ["cni", "gc"] else []
    program = str(node.bin_dir / "cni") if argv[0] == "cni" else argv[0]
    node.host.exec([program, *argv[1:], *extra], env=node.env, cwd="/")


def areas(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["level"], each["area"]) for each in found]


def test_a_node_on_which_nothing_is_wrong(node: Node, container: Netns) -> None:
    node.configure(ipMasq=True)
    assert doctor(node) == []
    node.ok("add", "net", container.path)
    assert doctor(node) == []


def test_ports_of_the_go_plugins(node: Node, container: Netns, go_bin_dir: Path) -> None:
    """Of what they made nothing is noted: to reload would not help."""
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    conf = node.network("net", "10.81.0.0/24", portmap)
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    pod = node.start(conf, container, bin_dir=go_bin_dir, capabilities=ports)
    assert doctor(node) == []
    node.host.exec(["nft", "flush", "ruleset"])
    [found] = doctor(node)
    assert found["level"] == "error"
    assert f"8080/tcp of {pod.pod} in net" in found["text"]
    assert found["mend"] == f"cni inspect {pod.cid}"


def test_rules_are_named_not_what_else_is_different(node: Node, container: Netns) -> None:
    node.configure(ipMasq=True)
    node.ok("add", "net", container.path)
    container.exec(["ip", "link", "set", "eth0", "down"])
    container.exec(["ip", "link", "set", "eth0", "name", "lan0"])
    node.host.exec(["nft", "flush", "ruleset"])
    [found] = doctor(node)
    assert "masquerading" in found["text"]


def test_what_another_user_is_told(node: Node, container: Netns) -> None:
    """Nothing of what only this user may not do is said of the node."""
    node.configure()
    node.ok("add", "net", container.path)
    for path in (node.bin_dir, node.net_d, node.data_dir):
        for parent in (path, *path.parents):
            if parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o055)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    argv = [*user, str(node.bin_dir / "cni")]
    done = node.host.exec([*argv, "status", "net", "--json"], check=False, env=node.env, cwd="/")
    assert done.returncode == 6, done
    assert "as root" in json.loads(done.stdout)["details"]
    done = node.host.exec([*argv, "doctor", "--json"], check=False, env=node.env, cwd="/")
    found = json.loads(done.stdout)["findings"]
    assert [each["level"] for each in found if each["area"] == "networks"] == ["note"]


def test_forwarding_that_was_switched_off(node: Node, container: Netns) -> None:
    node.configure()
    node.ok("add", "net", container.path)
    node.host.exec(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    (found,) = doctor(node)
    assert "net.ipv4.ip_forward is 0" in found["text"]
    mend(node, found)
    assert doctor(node) == []


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_rules_that_were_flushed(node: Node, container: Netns, backend: str) -> None:
    node.configure(ipMasq=True, ipMasqBackend=backend)
    node.ok("add", "net", container.path)
    node.host.exec(["nft", "flush", "ruleset"])
    found = doctor(node)
    assert areas(found) == [("error", "packet filter")]
    assert "rules are gone" in found[0]["text"]
    mend(node, found[0])
    assert doctor(node) == []


def test_a_chain_that_drops(node: Node) -> None:
    node.configure()
    node.host.exec(["nft", "add table inet strict"])
    chain = "{ type filter hook forward priority 0; policy drop; }"
    node.host.exec(["nft", f"add chain inet strict forward {chain}"])
    (found,) = doctor(node)
    assert (found["level"], found["area"]) == ("warning", "packet filter")
    assert "inet strict forward" in found["text"]
    shown = node.host.exec(shlex.split(found["mend"])).stdout
    assert "policy drop" in shown


def test_iptables_that_drops_without_the_plugin_firewall(node: Node) -> None:
    node.configure()
    node.host.exec(["iptables", "-P", "FORWARD", "DROP"])
    (found,) = doctor(node)
    assert "add the plugin firewall" in found["text"]
    conf = json.loads((node.net_d / "10-net.conflist").read_text())
    conf["plugins"].append({"type": "firewall"})
    (node.net_d / "10-net.conflist").write_text(json.dumps(conf))
    assert doctor(node) == []


def test_leftovers_of_dead_containers(node: Node) -> None:
    node.configure()
    with Netns("gone") as gone:
        node.ok("add", "net", gone.path)
    found = doctor(node)
    assert areas(found) == [("warning", "state")]
    assert "net: 1 attachment of dead containers" in found[0]["text"]
    mend(node, found[0])
    assert doctor(node) == []


def test_a_broken_configuration(node: Node) -> None:
    node.configure()
    (node.net_d / "20-broken.conflist").write_text('{"name": "x",}')
    found = doctor(node)
    assert ("error", "networks") in areas(found)
    assert any("20-broken.conflist" in each["mend"] for each in found)


def test_a_network_that_is_not_ready(node: Node) -> None:
    node.configure(type="macvlan", master="eth77", isGateway=None)
    found = doctor(node)
    assert areas(found) == [("error", "networks")]
    assert "eth77" in found[0]["text"]
    assert found[0]["mend"] == "cni status net"


def test_missing_plugins(node: Node) -> None:
    node.configure()
    node.env["CNI_PATH"] = "/nonexistent"
    found = doctor(node)
    assert ("error", "software") in areas(found)
    assert "missing in /nonexistent: bridge, host-local" in [e["text"] for e in found]


def test_a_server_that_does_not_answer(node: Node) -> None:
    import socket

    node.configure()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(node.env["CNI_SERVER_SOCKET"])
        found = doctor(node)
    assert areas(found) == [("warning", "software")]
    assert "no server answers" in found[0]["text"]


def test_state_that_anybody_may_write(node: Node) -> None:
    node.configure()
    node.net_d.chmod(0o777)
    (found,) = doctor(node)
    assert (found["level"], found["area"]) == ("error", "state")
    mend(node, found)
    assert doctor(node) == []


def test_on_a_terminal(node: Node) -> None:
    node.configure()
    code, shown = node.person("doctor")
    assert "✓ kernel: Linux" in shown
    assert shown.endswith("nothing is wrong\n") or "of the space" in shown
    assert code == 0 or "of the space" in shown


# A mount namespace in which something is not mounted, or another user.
BLIND = {
    "no /proc": ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"],
    "no /sys": ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys && exec "$@"', "sh"],
    "neither": [
        *("unshare", "-m", "sh", "-c"),
        'mount -t tmpfs none /sys && mount -t tmpfs none /proc && exec "$@"',
        "sh",
    ],
    "not root": ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
}


@pytest.mark.parametrize("how", BLIND)
def test_what_cannot_be_looked_at_is_not_all_right(node: Node, container: Netns, how: str) -> None:
    node.configure(ipMasq=True)
    node.ok("add", "net", container.path)
    let_everybody_in(node.cache)
    let_everybody_in(node.bin_dir)
    argv = [*BLIND[how], str(node.bin_dir / "cni"), "doctor", "--cache-dir", str(node.cache)]
    done = node.host.exec([*argv, "--json"], env=node.env, cwd="/", check=False)
    value = json.loads(done.stdout)
    unknown = [each for each in value["findings"] if each["level"] == "unknown"]
    assert len(unknown) == value["unknown"] > 0
    assert done.returncode == (1 if value["errors"] else 7)
    text = node.host.exec(argv, env=node.env, cwd="/", check=False).stdout
    assert "nothing is wrong" not in text
    assert "could not be made" in text
