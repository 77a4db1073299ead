"""`cni trace`: steps with their times, by exec and through a server, and nothing harmful."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Netns, links
from tests.harness.build import is_self_contained
from tests.harness.command_line import Node
from tests.harness.wait import wait_until

Json = dict[str, Any]
PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}
COLUMNS = 80


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    made = Node(host, bin_dir, tmp_path)
    made.env["CNI_SERVER_SOCKET"] = str(tmp_path / "no-server")
    return made


def every(steps: list[Json]) -> Iterator[Json]:
    for each in steps:
        yield each
        yield from every(each["steps"])


def require_sound(run: Json) -> None:
    """Steps lie within the run and within each other; the verb is the plugin's."""
    assert run["ms"] > 0

    def within(steps: list[Json], begin: float, end: float) -> None:
        for each in steps:
            assert begin - 0.01 <= each["at"] <= each["at"] + each["ms"] <= end + 0.01, each
            within(each["steps"], each["at"], each["at"] + each["ms"])

    within(run["steps"], 0, run["ms"])
    verbs = [each["detail"] for each in every(run["steps"]) if each["step"] == "verb"]
    assert verbs[0] == f"{run['plugin']} {run['verb']}"


def names(run: Json) -> set[str]:
    return {f"{each['step']} {each['detail']}".strip() for each in every(run["steps"])}


def require_nothing_left(node: Node) -> None:
    assert node.json("ps") == []
    assert node.leases("net") == {}
    assert not [name for name in links(node.host) if name.startswith("veth")]


def test_an_add_and_its_del(node: Node, bin_dir: Path) -> None:
    node.network("net", "10.81.0.0/24", PORTMAP, {"type": "firewall"}, ipMasq=True)
    found = node.json("trace", "net")
    assert [(run["verb"], run["plugin"]) for run in found["runs"]] == [
        ("ADD", "bridge"), ("ADD", "portmap"), ("ADD", "firewall"),
        ("DEL", "firewall"), ("DEL", "portmap"), ("DEL", "bridge"),
    ]  # fmt: skip
    assert found["error"] is None
    for run in found["runs"]:
        assert run["via"] == "exec"
        require_sound(run)
    added, deleted = found["runs"][0], found["runs"][-1]
    assert {"verb host-local ADD", "netlink RTM_NEWLINK", "netlink RTM_NEWROUTE"} <= names(added)
    assert {"reserve addresses", "note for reload"} <= names(added)
    # where nothing of the request needs it, a visitor takes its place (cni/netns/visit.py)
    assert ("fork an executor" in names(added)) is not is_self_contained(bin_dir)
    assert any(name.startswith("nftables transaction ") for name in names(added))
    # the snapshot of the self-contained file has all that bridge needs
    loads = any(name.startswith("load modules ") for name in names(added))
    assert loads is not is_self_contained(bin_dir)
    assert any(name.startswith("lock ") for name in names(added))
    assert {"verb host-local DEL", "release an address 10.81.0.2"} <= names(deleted)
    require_nothing_left(node)


def test_what_a_person_sees(node: Node, container: Netns) -> None:
    node.network("net", "10.81.0.0/24", {"type": "tuning"})
    code, text = node.person("trace", "net", container.path)
    assert code == 0
    first, second, heading, *rows = text.splitlines()
    times = r"ADD \d+\.\d\d ms, DEL \d+\.\d\d ms: net, "
    assert re.fullmatch(times + re.escape(container.path), first)
    assert second == "steps below 0.1 ms are left out: -o wide has them"
    assert re.fullmatch(r" *MS +STEP +WHAT", heading)
    assert all(len(row) <= COLUMNS for row in rows)
    assert text.count("◀") == 3
    tops = [row for row in rows if re.match(r" *[\d.]+  [ ◀]  \S", row)]
    assert [" ".join(re.sub("[◀]", "", row).split()[1:]) for row in tops] == [
        "bridge ADD by exec", "tuning ADD by exec", "tuning DEL by exec", "bridge DEL by exec",
    ]  # fmt: skip
    assert all(float(row.split()[0]) >= 0.1 for row in rows)
    assert len(node.run("trace", "net", "-o", "wide").stdout.splitlines()) > len(rows)
    assert node.ok("trace", "net", "-o", "name").split()[0] == "ADD/bridge"
    assert "eth0" not in links(container)


def test_through_a_server(node: Node, tmp_path: Path) -> None:
    node.network("net", "10.81.0.0/24", PORTMAP, ipMasq=True)
    node.env["CNI_SERVER_SOCKET"] = str(tmp_path / "s")
    argv = [str(node.bin_dir / "cni"), "serve", "--socket", str(tmp_path / "s"), "--workers", "1"]
    node.host.popen(argv, env=node.env)
    status = [str(node.bin_dir / "cni"), "serve", "--status", "--socket", str(tmp_path / "s")]
    wait_until(
        lambda: node.host.exec(status, env=node.env, check=False).returncode == 0, "it serves"
    )
    for _ in range(2):  # the worker is as it was before
        found = node.json("trace", "net")
        assert {run["via"] for run in found["runs"]} == {"server"}
        for run in found["runs"]:
            require_sound(run)
        assert "netlink RTM_NEWLINK" in names(found["runs"][0])
        assert not [name for name in names(found["runs"][0]) if name.startswith("load modules")]
    assert {run["via"] for run in node.json("trace", "net", "--exec")["runs"]} == {"exec"}
    worker = json.loads(node.host.exec(status, env=node.env).stdout)
    assert worker["served"] >= 8
    require_nothing_left(node)


def test_what_is_attached(node: Node, container: Netns) -> None:
    conf = node.network("net", "10.81.0.0/24", PORTMAP)
    pod = node.start(conf, container)
    before = container.ip("-o", "address")
    for words in ([container.path], ["--id", pod.cid[:9]], [pod.pod]):
        found = node.json("trace", "net", *words, "--check")
        assert [(run["verb"], run["plugin"]) for run in found["runs"]] == [
            ("CHECK", "bridge"), ("CHECK", "portmap"),
        ]  # fmt: skip
        require_sound(found["runs"][0])
    assert node.json("trace", "net", container.path, code=5)["msg"].endswith("would remove it")
    refused = node.json("trace", "net", container.path, "--del", code=5)
    assert "attached by a container runtime" in refused["msg"]
    assert container.ip("-o", "address") == before
    found = node.json("trace", "net", "--id", pod.cid, "--del", "--force")
    assert [run["verb"] for run in found["runs"]] == ["DEL", "DEL"]
    require_nothing_left(node)


def test_keep(node: Node, container: Netns) -> None:
    node.network("net", "10.81.0.0/24")
    node.json("trace", "net", container.path, "--keep")
    assert "eth0" in links(container)
    node.ok("check", "net", container.path)
    found = node.json("trace", "net", container.path, "--del")
    assert [run["verb"] for run in found["runs"]] == ["DEL"]
    require_nothing_left(node)


def test_an_interface_that_nobody_is_known_to_have_made(node: Node, container: Netns) -> None:
    node.network("net", "10.81.0.0/24")
    container.ip("link", "add", "eth0", "type", "veth", "peer", "eth1")
    assert node.json("trace", "net", container.path, code=5)["msg"]
    assert "eth0" in links(container)
    found = node.json("trace", "net", container.path, "-i", "net1")
    assert found["error"] is None


def test_an_add_that_fails(node: Node, container: Netns) -> None:
    node.network("net", "10.81.0.0/24", {"type": "tuning", "sysctl": {"net.core.nothing": "1"}})
    done = node.run("trace", "net", container.path, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert 'plugin type="tuning" failed (add): ' in found["error"]["msg"]
    assert [(run["plugin"], run["verb"], bool(run["error"])) for run in found["runs"]] == [
        ("bridge", "ADD", False), ("tuning", "ADD", True),
        ("tuning", "DEL", False), ("bridge", "DEL", False),
    ]  # fmt: skip
    require_sound(found["runs"][1])
    require_nothing_left(node)
    code, text = node.person("trace", "net", container.path)
    assert code == 1
    assert "by exec, failed" in text
    assert 'error: plugin type="tuning" failed (add): ' in text


def test_plugins_of_others(node: Node, go_bin_dir: Path) -> None:
    node.network("net", "10.81.0.0/24")
    node.env["CNI_PATH"] = str(go_bin_dir)
    found = node.json("trace", "net")
    assert {(run["via"], len(run["steps"])) for run in found["runs"]} == {("unknown", 0)}
    require_nothing_left(node)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal(node: Node, tmp_path: Path, number: int) -> None:
    ready = tmp_path / "ready"
    slow = tmp_path / "slow"
    slow.write_text(
        f"#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = DEL ] || {{ touch {ready}; sleep 1; }}\n"
    )
    slow.chmod(0o755)
    node.env["CNI_PATH"] += f":{tmp_path}"
    node.network("net", "10.81.0.0/24", {"type": "slow"})
    argv = ["env", "--default-signal", *node.argv("trace", "net")]
    child = node.host.popen(argv, env=node.env, cwd="/")
    wait_until(ready.exists, "the plugin runs")
    child.send_signal(number)
    assert child.wait(60) == 128 + number
    require_nothing_left(node)


def test_wrong_usage(node: Node, container: Netns) -> None:
    node.network("net", "10.81.0.0/24")
    assert node.run("trace", "other").returncode == 3
    assert node.run("trace", "net", "/run/netns/nothing").returncode == 3
    assert node.run("trace", "net", "--check").returncode == 2
    assert node.run("trace", "net", "--keep").returncode == 2
    assert node.run("trace", "net", "--id", "5f1b").returncode == 2
    assert node.run("trace", "net", container.path, "--check").returncode == 3


def test_it_costs_nothing_without(node: Node, container: Netns) -> None:
    """A plugin loads nothing of it, and writes nothing where nothing is asked for."""
    node.network("net", "10.81.0.0/24")
    path = node.net_d.parent / "steps"
    path.touch()
    node.ok("add", "net", container.path, CNI_STEPS_FILE=str(path))
    node.ok("del", "net", container.path, CNI_STEPS_FILE=str(path), CNI_DEBUG="steps")
    (line,) = path.read_text().splitlines()
    assert (json.loads(line)["plugin"], json.loads(line)["verb"]) == ("bridge", "DEL")
