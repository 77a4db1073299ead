"""`cni plan` says what the next ADD does, and does nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni import dispatch
from cni.cli import plan
from cni.describe import catalogue
from tests.harness import Netns, addresses, tree
from tests.harness.command_line import Node


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    return Node(host, bin_dir, tmp_path)


def configure(node: Node, *plugins: dict[str, Any]) -> None:
    conf = {"cniVersion": "1.0.0", "name": "net", "plugins": list(plugins)}
    (node.net_d / "10-net.conflist").write_text(json.dumps(conf))


def steps(node: Node, code: int = 0) -> list[tuple[str, str]]:
    argv = [str(node.bin_dir / "cni"), "plan", "net", "--json"]
    done = node.host.exec(argv, env=node.env, cwd="/", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return [(each["plugin"], each["text"]) for each in json.loads(done.stdout)["steps"]]


def bridge(node: Node, **keys: Any) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": "10.22.0.0/24", "dataDir": str(node.data_dir)}
    return {"type": "bridge", "bridge": "br9", "isGateway": True, "ipam": ipam, **keys}


def test_an_interface_that_no_add_makes(node: Node) -> None:
    configure(node, bridge(node))
    for name in ("longer-than-the-kernel-takes", "a/b", ""):
        argv = [str(node.bin_dir / "cni"), "plan", "net", "-i", name]
        done = node.host.exec(argv, env=node.env, cwd="/", check=False)
        assert done.returncode == 2, done


def test_a_version_that_no_plugin_speaks(node: Node) -> None:
    """It is named by `status`, which cannot ask plugins in it."""
    configure(node, bridge(node))
    file = node.net_d / "10-net.conflist"
    file.write_text(file.read_text().replace('"1.0.0"', '"1.2.0"'))
    argv = [str(node.bin_dir / "cni"), "status", "net"]
    done = node.host.exec(argv, env=node.env, cwd="/", check=False)
    assert done.returncode == 50, done
    assert 'cniVersion is "1.2.0"' in done.stderr


def test_it_says_what_add_does(node: Node, container: Netns, container2: Netns) -> None:
    configure(
        node,
        bridge(node, ipMasq=True, hairpinMode=True),
        {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
    )
    before = node.host.ip("-d", "link"), node.host.ip("route")
    planned = steps(node)
    assert (node.host.ip("-d", "link"), node.host.ip("route")) == before
    assert not node.data_dir.exists() or tree(node.data_dir) == {}
    texts = [text for _, text in planned]
    assert ("bridge", "make the bridge br9") in planned
    assert ("bridge", "reserve 10.22.0.2/24 (host-local)") in planned
    assert ("bridge", "put the gateway's address 10.22.0.1/24 on br9") in planned
    assert any("masquerade packets that leave 10.22.0.0/24" in text for text in texts)
    assert any("arp_filter = 1" in text for text in texts)

    node.ok("add", "net", container.path)
    assert addresses(container, "eth0") == ["10.22.0.2/24"]
    planned = steps(node)
    assert ("bridge", "use the bridge br9, which exists") in planned
    assert ("bridge", "reserve 10.22.0.3/24 (host-local)") in planned
    node.ok("add", "net", container2.path)
    assert addresses(container2, "eth0") == ["10.22.0.3/24"]


def test_the_next_address_is_the_one_after_the_last(node: Node, container: Netns) -> None:
    configure(node, bridge(node))
    for number in (2, 3):
        assert ("bridge", f"reserve 10.22.0.{number}/24 (host-local)") in steps(node)
        node.ok("add", "net", container.path)
        assert addresses(container, "eth0") == [f"10.22.0.{number}/24"]
        node.ok("del", "net", container.path)


def test_an_add_that_would_fail(node: Node) -> None:
    configure(node, {**bridge(node), "type": "macvlan", "master": "eth77"})
    argv = [str(node.bin_dir / "cni"), "plan", "net"]
    done = node.host.exec(argv, env=node.env, cwd="/", check=False)
    assert done.returncode == 1
    assert "it would fail: the node has no link eth77" in done.stdout


def test_every_plugin_is_told() -> None:
    """Of Windows nothing: there are no namespaces to plan for."""
    main = {name for name in dispatch.TABLE if name not in catalogue.IPAM_NAMES}
    assert set(plan.TELLERS) == main


@pytest.mark.parametrize("name", sorted(set(dispatch.TABLE) - {"flannel"}))
def test_examples_can_be_told(node: Node, name: str) -> None:
    described = catalogue.plugin(name)
    assert described is not None
    own = described.example
    if described.place == "ipam":
        configure(node, {"type": "dummy", "ipam": own})
    elif described.place == "chained":
        configure(node, bridge(node), own)
    else:
        configure(node, own)
    argv = [str(node.bin_dir / "cni"), "plan", "net", "--json"]
    done = node.host.exec(argv, env=node.env, cwd="/", check=False)
    value = json.loads(done.stdout)
    assert done.returncode == value["fails"]
    assert all("cannot be told" not in each["text"] for each in value["steps"])
    assert len(value["steps"]) >= 2


@pytest.mark.parametrize("kind", [5, None, ["bridge"], {}, True])
def test_a_type_that_names_no_plugin(node: Node, kind: Any) -> None:
    plugins = [{"type": kind}, {"type": "bridge", "ipam": {"type": "host-local"}}]
    node.write({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}, "bad")
    argv = [str(node.bin_dir / "cni"), "plan", "net"]
    shown = node.host.exec(argv, env=node.env, cwd="/", check=False)
    assert shown.returncode == 1
    assert "1. plugins[0]: no plugin can be told from its type" in shown.stdout
    assert "it would fail: plugins[0].type " in shown.stdout
    assert "run the plugin ," not in shown.stdout
