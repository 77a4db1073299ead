"""`cni network`: what it writes works, and collides with nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cni.describe import schema
from tests.harness import Netns, addresses, links, ping, routes
from tests.harness.command_line import Node


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    return Node(host, bin_dir, tmp_path)


def network(node: Node, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    extra = ["--cache-dir", str(node.cache)] if args[0] == "rm" else []
    argv = [str(node.bin_dir / "cni"), "network", *args, *extra]
    done = node.host.exec(argv, env=node.env, cwd="/", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def created(node: Node, name: str, *args: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(network(node, "create", name, *args, "--json").stdout)
    path = Path(value["file"])
    # Leases belong below the test's own directory.
    conf = json.loads(path.read_text())
    if conf["plugins"][0]["ipam"]["type"] == "host-local":
        conf["plugins"][0]["ipam"]["dataDir"] = str(node.data_dir)
        path.write_text(json.dumps(conf))
    return value


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_containers_of_a_new_network_talk(
    node: Node, container: Netns, container2: Netns, driver: str
) -> None:
    created(node, "web", "--driver", driver, "--ipv6")
    results = [json.loads(node.ok("add", "web", ns.path)) for ns in (container, container2)]
    for result in results:
        assert len(result["ips"]) == 2
    for ip in results[1]["ips"]:
        ping(container, ip["address"].partition("/")[0])
    for ns in (container, container2):
        node.ok("check", "web", ns.path)
        node.ok("del", "web", ns.path)


def test_each_network_has_a_subnet_of_its_own(node: Node) -> None:
    first, second = (created(node, name)["subnets"] for name in ("one", "two"))
    assert (first, second) == (["10.201.0.0/24"], ["10.201.1.0/24"])
    node.host.ip("link", "add", "br7", "type", "bridge")
    node.host.ip("address", "add", "10.201.2.77/26", "dev", "br7")
    node.host.ip("link", "set", "br7", "up")
    assert created(node, "three")["subnets"] == ["10.201.3.0/24"]
    done = node.host.exec(
        [str(node.bin_dir / "cni"), "validate"], env=node.env, cwd="/", check=False
    )
    assert done.returncode == 0, done.stdout


def test_what_is_in_use_is_refused(node: Node) -> None:
    created(node, "one", "--subnet", "10.9.0.0/24")
    refused = network(node, "create", "two", "--subnet", "10.9.0.0/16", code=5)
    assert "10.9.0.0/24 (network one)" in refused.stderr
    network(node, "create", "one", code=5)
    node.host.ip("link", "add", "br7", "type", "bridge")
    node.host.ip("link", "set", "br7", "up")
    node.host.ip("route", "add", "10.77.0.0/16", "dev", "br7")
    refused = network(node, "create", "two", "--subnet", "10.77.3.0/24", code=5)
    assert "route through br7" in refused.stderr
    node.host.ip("link", "add", "cni-two", "type", "bridge")
    assert "cni-two" in network(node, "create", "two", code=5).stderr
    assert sorted(path.name for path in node.net_d.iterdir()) == ["90-one.conflist"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a/b"], "invalid characters"),
        (["x", "--subnet", "10.9.0.1/24"], "host bits"),
        (["x", "--subnet", "10.9.0.0"], "invalid CIDR"),
        (["x", "--range", "10.9.0.1-10.9.0.9"], "--range needs --subnet"),
        (["x", "--master", "eth0"], "--master goes with"),
        (["x", "--driver", "vlan"], "vlan needs --master LINK"),
        (["x", "--subnet", "10.9.0.0/24", "--range", "10.9.0.9"], "a range is like"),
        (["x", "--subnet", "10.9.0.0/24", "--range", "10.9.0.9-10.9.0.5"], "a range is like"),
    ],
)
def test_wrong_usage(node: Node, args: list[str], words: str) -> None:
    assert words in network(node, "create", *args, code=2).stderr
    assert list(node.net_d.iterdir()) == []


def test_what_would_not_work_is_not_written(node: Node) -> None:
    for args, words in (
        (["--subnet", "10.9.0.0/24", "--gateway", "10.8.0.1"], "gateway"),
        (["--subnet", "10.9.0.0/24", "--range", "10.8.0.1-10.8.0.9"], "RangeStart"),
        (["--driver", "macvlan", "--master", "eth77"], "eth77"),
        (["--mtu", "50"], "mtu"),
    ):
        said = network(node, "create", "x", *args, code=1).stderr
        assert words in said
        message, _, details = said.removeprefix("the network would not work: ").partition("; ")
        assert message not in details
    assert list(node.net_d.iterdir()) == []


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan", "vlan"])
def test_a_master_that_cannot_be_one(node: Node, driver: str) -> None:
    """The advice is about the option, and names the links that can be the master."""
    node.host.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    said = network(node, "create", "x", "--driver", driver, "--master", "lo", code=1).stderr
    assert f"no {driver} on lo, a loopback" in said
    assert "another link with --master; this node has" in said
    without = network(node, "create", "x", "--driver", driver, code=2 if driver == "vlan" else 1)
    for text in (said, without.stderr):
        assert "--master" in text
        assert "`master`" not in text
        names = text.partition("this node has ")[2].splitlines()[0].split(";")[0].split(", ")
        assert {"up0", "up1"} <= set(names)
        assert "lo" not in names
    assert list(node.net_d.iterdir()) == []


def test_names_alone(node: Node) -> None:
    """`-o name` is one name a line, of a document, too."""
    assert network(node, "create", "web", "--dry-run", "-o", "name").stdout == "web\n"
    assert list(node.net_d.iterdir()) == []


def test_an_internal_network(node: Node, container: Netns, container2: Netns) -> None:
    created(node, "back", "--internal")
    for ns in (container, container2):
        node.ok("add", "back", ns.path)
    ping(container, addresses(container2, "eth0")[0].partition("/")[0])
    assert not any("default" in each for each in routes(container))
    assert node.host.ip("-4", "address", "show", "cni-back").strip() == ""


def test_dry_run(node: Node) -> None:
    before = network(node, "create", "web", "--dry-run").stdout
    assert list(node.net_d.iterdir()) == []
    assert json.loads(before)["name"] == "web"


@pytest.mark.parametrize(
    "args",
    [
        ["--driver", "bridge", "--ipv6", "--mtu", "1400"],
        ["--driver", "bridge", "--internal"],
        ["--driver", "ptp"],
        ["--driver", "macvlan", "--master", "up0"],
        ["--driver", "macvlan", "--master", "up0", "--subnet", "192.168.7.0/24"],
        [
            *("--driver", "macvlan", "--master", "up0", "--subnet", "192.168.7.0/24"),
            *("--range", "192.168.7.100-192.168.7.150", "--gateway", "192.168.7.254"),
        ],
    ],
)
def test_what_is_written_is_valid(node: Node, args: list[str]) -> None:
    """By the schema, too; a network on a link may have that link's subnet."""
    import jsonschema  # takes more than a second, in every worker that collects

    node.host.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    node.host.ip("link", "set", "up0", "up")
    node.host.ip("address", "add", "192.168.7.1/24", "dev", "up0")
    conf = json.loads(network(node, "create", "net", *args, "--dry-run").stdout)
    jsonschema.Draft202012Validator(schema.of_list()).validate(conf)


def test_two_at_once(node: Node) -> None:
    """Each chooses another subnet."""
    argv = [str(node.bin_dir / "cni"), "network", "create"]
    env, pipe = node.env, subprocess.PIPE
    running = [
        node.host.popen([*argv, f"net{at}"], env=env, cwd="/", stdout=pipe, stderr=pipe)
        for at in range(4)
    ]
    assert [child.wait(60) for child in running] == [0] * 4
    found = set()
    for path in node.net_d.iterdir():
        ranges = json.loads(path.read_text())["plugins"][0]["ipam"]["ranges"]
        found.add(ranges[0][0]["subnet"])
    assert len(found) == 4


def test_rm(node: Node, container: Netns) -> None:
    path = Path(created(node, "web")["file"])
    node.ok("add", "web", container.path)
    assert "1 container is attached" in network(node, "rm", "web", code=5).stderr
    assert path.exists()
    network(node, "rm", "web", "--dry-run", code=5)
    # What a dry run says is what was asked for: also where stdout is no terminal.
    assert "would be detached from web" in node.ok("del", "web", container.path, "--dry-run")
    node.ok("del", "web", container.path)
    assert network(node, "rm", "web", "--dry-run").stdout == f"{path} would be removed\n"
    assert path.exists()
    network(node, "rm", "web")
    assert not path.exists()
    network(node, "rm", "web", code=3)


def test_rm_says_what_ended_containers_have_left(node: Node) -> None:
    """And that is still removed without the configuration, by the command that it names."""
    created(node, "web")
    with Netns() as ended:
        node.ok("add", "web", ended.path)
    would = network(node, "rm", "web", "--dry-run", "--json")
    assert (json.loads(would.stdout)["dead"], would.stderr) == (1, "")
    said = network(node, "rm", "web").stderr
    assert "1 attachment of ended containers" in said
    assert "`cni gc web`" in said
    assert list((node.data_dir / "web").glob("10.*")) != []
    node.ok("gc", "web")
    assert list((node.data_dir / "web").glob("10.*")) == []


def test_rm_by_force_leaves_what_del_needs(node: Node, container: Netns) -> None:
    created(node, "web")
    node.ok("add", "web", container.path)
    network(node, "rm", "web", "--force")
    node.ok("del", "web", container.path)
    assert "eth0" not in links(container)
