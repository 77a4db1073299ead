"""The command line of the built file with real namespaces and plugins, as a person uses it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.harness import (
    V4,
    Family,
    Netns,
    addresses,
    each_family,
    link,
    links,
    ping,
    ports,
    result_addresses,
    tree,
    unchanged,
)
from tests.harness.command_line import Node
from tests.harness.netns import PATH


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    return Node(host, bin_dir, tmp_path)


@each_family()
def test_life_of_an_attachment(node: Node, container: Netns, family: Family) -> None:
    node.configure(family)
    assert node.ok("status", "net") == ""
    result = json.loads(node.ok("add", "net", container.path))
    assert result_addresses(result) == list(family.first)
    assert addresses(container, "eth0") == list(family.first)
    assert len(node.results) == 1
    kept = json.loads((node.cache / "results" / node.results[0]).read_text())
    assert kept["result"] == result
    assert kept["netns"] == container.path

    assert node.ok("check", "net", container.path) == ""
    container.ip("address", "flush", "dev", "eth0")
    broken = node.run("check", "net", container.path)
    assert (broken.returncode, broken.stdout) == (1, "")
    assert broken.stderr

    assert node.ok("del", "net", container.path) == ""
    assert "eth0" not in links(container)
    assert not ports(node.host, "cni0")
    assert node.results == []
    assert node.ok("del", "net", container.path) == ""


def test_two_containers_talk(node: Node, container: Netns, container2: Netns) -> None:
    node.configure()
    first = json.loads(node.ok("add", "net", container.path))
    second = json.loads(node.ok("add", "net", container2.path))
    address = result_addresses(second)[0].partition("/")[0]
    assert result_addresses(first) != result_addresses(second)
    ping(container, address)
    assert len(node.results) == 2


def test_interface_name_and_capability(node: Node, container: Netns) -> None:
    node.configure()
    mac = "c2:11:22:33:44:55"
    node.ok("add", "net", container.path, "-i", "net1", CAP_ARGS=json.dumps({"mac": mac}))
    assert link(container, "net1")["address"] == mac
    node.ok("del", "net", container.path, "-i", "net1")
    assert "net1" not in links(container)


def test_two_interfaces_of_one_container(node: Node, container: Netns) -> None:
    node.configure()
    node.ok("add", "net", container.path, "-i", "net1")
    node.ok("add", "net", container.path, "-i", "net2")
    assert len(node.results) == 2
    node.ok("del", "net", container.path, "-i", "net1")
    assert addresses(container, "net2") == list(V4.second)
    assert node.results[0].endswith("-net2")


def test_del_after_the_namespace_is_gone(node: Node, container: Netns) -> None:
    node.configure()
    node.ok("add", "net", container.path)
    container.unname()
    node.ok("del", "net", container.path)
    assert node.results == []
    assert not ports(node.host, "cni0")


def test_a_failed_add_leaves_nothing(node: Node, container: Netns) -> None:
    node.configure(ipam={"type": "no-such-ipam"})
    with unchanged(container):
        done = node.run("add", "net", container.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f'plugin type="bridge" failed (add): failed to find plugin "no-such-ipam" in path '
        f"[{node.bin_dir}]"
    )
    assert node.results == []
    assert not ports(node.host, "cni0")
    assert not node.data_dir.exists() or tree(node.data_dir) == {}


def test_status_of_a_full_range(node: Node, container: Netns) -> None:
    ipam = {
        "type": "host-local",
        "dataDir": str(node.data_dir),
        "ranges": [[{"subnet": "10.22.0.0/30"}]],
    }
    node.configure(ipam=ipam)
    node.ok("add", "net", container.path)
    done = node.run("status", "net", "--json")
    assert done.returncode == 50
    assert json.loads(done.stdout)["code"] == 50
    assert done.stderr == ""


def test_on_a_terminal(node: Node, container: Netns) -> None:
    node.configure()
    code, shown = node.person("add", "net", container.path)
    assert code == 0
    assert shown.startswith(f"eth0 in {container.path} is attached to net\n")
    for text in ("10.22.0.2/24", "gateway 10.22.0.1", "0.0.0.0/0", "cnitool-"):
        assert text in shown
    assert node.person("check", "net", container.path)[1].endswith("as it should be\n")
    assert node.person("status", "net") == (0, "net: ready\n")
    code, shown = node.person("add", "net", container.path)
    assert code == 1
    assert 'error: plugin type="bridge" failed (add): ' in shown
    assert f"cni del net {container.path}" in shown
    code, shown = node.person("add", "blue", container.path)
    assert (code, shown.split()[-4:]) == (3, ["details", "networks", "there:", "net"])
    assert node.person("gc", "net")[1] == "net: 0 attachments deleted\n"
    code, shown = node.person("gc", "net", "--all", typed="n\n")
    assert (code, node.results != []) == (5, True), shown
    code, shown = node.person("gc", "net", "--all", typed="y\n")
    assert (code, node.results) == (0, []), shown
    assert "net: 1 attachment deleted\n" in shown
    code, shown = node.person("add", "--json", "net", container.path)
    assert json.loads(shown)["cniVersion"] == "1.1.0"
    assert node.person("del", "net", container.path)[1].endswith("is detached from net\n")


def test_our_own_directory_is_searched(node: Node, container: Netns) -> None:
    if os.path.exists("/opt/cni/bin"):
        pytest.skip("/opt/cni/bin exists, and comes first")
    node.configure()
    del node.env["CNI_PATH"]
    node.ok("add", "net", container.path)
    node.ok("del", "net", container.path)


def test_plugins_of_the_built_file(node: Node) -> None:
    found = json.loads(node.ok("plugins", "--json"))
    assert [entry["name"] for entry in found if entry["kind"] == "ipam"][:1]
    assert not [entry for entry in found if entry["verbs"] is None]
    assert "build " in node.ok("--version")


@pytest.mark.parametrize("shell", ["bash"])
def test_completion_in_a_shell(node: Node, shell: str) -> None:
    node.configure()
    script = (
        "source <(cni completion bash); COMP_WORDS=(cni add n); COMP_CWORD=2; "
        "COMP_LINE='cni add n'; "
        '_cni_completion cni; echo "${COMPREPLY[@]}"'
    )
    env = {**node.env, "PATH": f"{node.bin_dir}:{PATH}"}
    done = node.host.exec([shell, "-c", script], env=env)
    assert done.stdout.split() == ["net"], done.stderr


def test_differs_from_nothing_with_the_go_plugins(
    node: Node, go_bin_dir: Path, container: Netns
) -> None:
    """The command line with somebody else's plugins: the same attachment, the same cache."""
    node.configure(version="1.0.0")
    ours = json.loads(node.ok("add", "net", container.path))
    our_cache = json.loads((node.cache / "results" / node.results[0]).read_text())
    node.ok("del", "net", container.path)
    node.host.ip("link", "delete", "cni0")
    (node.data_dir / "net" / "last_reserved_ip.0").unlink(missing_ok=True)
    node.env["CNI_PATH"] = str(go_bin_dir)
    theirs = json.loads(node.ok("add", "net", container.path))
    their_cache = json.loads((node.cache / "results" / node.results[0]).read_text())
    node.ok("check", "net", container.path)
    # Our plugins take over what the others made, and the other way round.
    node.env["CNI_PATH"] = str(node.bin_dir)
    node.ok("del", "net", container.path)
    assert node.results == []
    assert result_addresses(ours) == result_addresses(theirs)
    assert [route["dst"] for route in ours["routes"]] == [r["dst"] for r in theirs["routes"]]
    assert {k: v for k, v in our_cache.items() if k != "result"} == {
        k: v for k, v in their_cache.items() if k != "result"
    }
    assert list(our_cache) == list(their_cache)
