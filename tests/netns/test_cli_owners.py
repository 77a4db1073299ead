"""The command line beside a container runtime: it acts on what it was told, or on nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Netns, addresses, links, nft, ping, ports, tree
from tests.harness.command_line import Node, Pod
from tests.harness.kernel import iptables_save
from tests.harness.requires import requires_kernel
from tests.harness.wait import wait_until

PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    return Node(host, bin_dir, tmp_path)


@pytest.fixture(params=["ours", "go"])
def plugins(request: pytest.FixtureRequest, bin_dir: Path) -> Path:
    """The plugins with which the runtime has attached the containers."""
    if request.param == "ours":
        return bin_dir
    path: Path = request.getfixturevalue("go_bin_dir")
    return path


def seen(node: Node) -> dict[str, Any]:
    """What must stay the same when a command is refused."""
    return {
        "cache": tree(node.cache),
        "leases": node.leases("net"),
        "state": tree(Path(node.env["CNI_STATE_DIR"])),
        "ports": sorted(ports(node.host, "br-net")),
        "nft": nft(node.host, "ruleset"),
        "iptables": iptables_save(node.host),
    }


def rules_text(node: Node) -> str:
    """The packet filter's rules, of both kinds."""
    return json.dumps([nft(node.host, "ruleset"), iptables_save(node.host)])


@contextmanager
def nothing_changes(node: Node, *pods: Pod) -> Iterator[None]:
    before = seen(node)
    yield
    assert seen(node) == before
    for pod in pods:
        assert addresses(pod.netns, pod.ifname) == [pod.result["ips"][0]["address"]]


def ways(pod: Pod) -> dict[str, list[str]]:
    return {
        "netns": [pod.netns.path],
        "id": ["--id", pod.cid],
        "prefix": ["--id", pod.cid[:12]],
        "pod": [pod.pod],
        "both": [pod.netns.path, "--id", pod.cid[:12]],
    }


@pytest.mark.parametrize("way", ["netns", "id", "prefix", "pod", "both"])
def test_what_a_runtime_attached(
    node: Node, plugins: Path, container: Netns, container2: Netns, way: str
) -> None:
    """Left alone without --force, and with it nothing of it is left."""
    conf = node.network("net", "10.81.0.0/24", PORTMAP, ipMasq=True)
    pod = node.start(conf, container, bin_dir=plugins, capabilities=PORTS)
    other = node.start(conf, container2, "default/web-1", bin_dir=plugins)
    arguments = ways(pod)[way]

    assert node.ok("check", "net", *arguments) == ""
    with nothing_changes(node, pod, other):
        done = node.run("del", "net", *arguments)
        assert done.returncode == 5
        assert pod.cid in done.stderr
        assert "--force" in done.stderr
        would = node.json("del", "net", *arguments, "--force", "--dry-run")
        assert (would["containerID"], would["ifname"]) == (pod.cid, "eth0")
    gone = node.json("del", "net", *arguments, "--force")
    assert gone["containerID"] == pod.cid
    assert (gone["pod"], gone["addresses"]) == ("default/web-0", ["10.81.0.2/24"])

    assert "eth0" not in links(container)
    assert node.leases("net") == {other.address: other.cid}
    assert [name for name in node.results if pod.cid in name] == []
    assert len(ports(node.host, "br-net")) == 1
    assert pod.cid not in rules_text(node)
    assert "8080" not in rules_text(node)
    assert not [path for path in tree(Path(node.env["CNI_STATE_DIR"])) if pod.cid in str(path)]
    ping(container2, "10.81.0.1")
    assert node.ok("check", "net", "--id", other.cid) == ""


def test_check_finds_what_is_wrong_with_the_runtime_s(
    node: Node, plugins: Path, container: Netns
) -> None:
    pod = node.start(node.network("net", "10.81.0.0/24"), container, bin_dir=plugins)
    container.ip("address", "flush", "dev", "eth0")
    done = node.run("check", "net", container.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "eth0" in done.stderr or "10.81.0.2" in done.stderr
    assert node.leases("net") == {pod.address: pod.cid}


def test_without_cache_the_reservation_says_who(
    node: Node, plugins: Path, container: Netns
) -> None:
    conf = node.network("net", "10.81.0.0/24")
    pod = node.start(conf, container, bin_dir=plugins, cached=False)
    with nothing_changes(node, pod):
        assert node.run("del", "net", container.path).returncode == 5
        error = node.json("check", "net", "--id", pod.cid, code=1)
        assert f"there is no {node.cache}/results/net-{pod.cid}-eth0" in error["details"]
    assert node.json("del", "net", "--id", pod.cid[:8], "--force")["containerID"] == pod.cid
    assert node.leases("net") == {}


def test_without_cache_and_reservation_the_link_says_who(node: Node, container: Netns) -> None:
    """Static addresses, no masquerading: only the alias of the pair's end on the node is left."""
    ipam = {"type": "static", "addresses": [{"address": "10.81.0.2/24"}]}
    conf = node.network("net", "10.81.0.0/24", ipam=ipam)
    pod = node.start(conf, container, cached=False)
    done = node.run("del", "net", container.path)
    assert (done.returncode, pod.cid in done.stderr) == (5, True)
    assert addresses(container, "eth0") == ["10.81.0.2/24"]
    assert node.ok("gc", "net") == ""
    assert addresses(container, "eth0") == ["10.81.0.2/24"]
    assert node.ok("del", "net", container.path, "--force") == ""
    assert "eth0" not in links(container)


@requires_kernel("macvlan")
def test_without_all_of_these_the_device_note_says_who(node: Node, container: Netns) -> None:
    """A macvlan has no end on the node: its note has the key, its alias the name."""
    node.host.ip_batch("link add up0 type veth peer name up1", "link set up0 up")
    ipam = {"type": "static", "addresses": [{"address": "10.81.0.2/24"}]}
    plugin = {"type": "macvlan", "master": "up0", "ipam": ipam}
    conf = node.write({"cniVersion": "1.0.0", "name": "net", "plugins": [plugin]})
    pod = node.start(conf, container, cached=False)
    (found,) = node.json("ps")
    assert (found["containerID"], found["netnsState"]) == (pod.cid, "alive")
    done = node.run("del", "net", container.path)
    assert (done.returncode, pod.cid in done.stderr) == (5, True)
    # The container cannot pass for another one.
    container.ip("link", "set", "eth0", "alias", f"cni:{'0' * 16}-{'0' * 16} net/other/eth0")
    assert node.json("ps") == []
    assert node.run("del", "net", container.path).returncode == 5
    assert node.ok("del", "net", "--id", pod.cid, container.path, "--force") == ""
    assert "eth0" not in links(container)


def test_an_interface_of_nobody_is_left_alone(
    node: Node, go_bin_dir: Path, container: Netns
) -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.81.0.2/24"}]}
    conf = node.network("net", "10.81.0.0/24", ipam=ipam)
    node.start(conf, container, bin_dir=go_bin_dir, cached=False)
    for command in ("del", "check"):
        assert node.run(command, "net", container.path).returncode in (3, 5)
    assert addresses(container, "eth0") == ["10.81.0.2/24"]
    assert node.ok("del", "net", container.path, "--force") == ""
    assert "eth0" not in links(container)


def test_of_two_networks_only_the_one_that_was_named(node: Node, container: Netns) -> None:
    first = node.network("net", "10.81.0.0/24")
    second = node.network("other", "10.82.0.0/24")
    pod = node.start(first, container)
    node.start(second, container, cid=pod.cid, ifname="net1")
    done = node.run("del", "third", "--id", pod.cid, "--force")
    assert done.returncode == 3
    done = node.run("del", "net", container.path, "-i", "net1", "--force", "--dry-run")
    assert done.returncode == 0  # exactly what was asked for, which is nothing
    assert node.json("del", "other", container.path, "--force")["ifname"] == "net1"
    assert sorted(links(container)) == ["eth0", "lo"]


def test_what_is_not_there(node: Node, container: Netns) -> None:
    conf = node.network("net", "10.81.0.0/24")
    pod = node.start(conf, container)
    wrong = {
        "/run/netns/typo": "does not exist",
        "default/typo": "no pod default/typo",
        container.name: f"is {container.path} meant",
        "/etc/hostname": "is not a network namespace",
        "": "it is empty",
    }
    for command in ("del", "check"):
        for where, text in wrong.items():
            with nothing_changes(node, pod):
                done = node.run(command, "net", where)
            assert done.returncode == (2 if not where else 3), done.stderr
            assert text in done.stderr
        done = node.run(command, "net", "--id", "0123")
        assert done.returncode == 3
    assert node.json("del", "net", "/run/netns/typo", code=3)["msg"].endswith("does not exist")


def test_an_id_in_place_of_a_path(node: Node, container: Netns) -> None:
    pod = node.start(node.network("net", "10.81.0.0/24"), container)
    for given in (pod.cid, pod.cid[:12]):
        with nothing_changes(node, pod):
            done = node.run("del", "net", given)
        assert done.returncode == 3
        assert f"--id {pod.cid}" in done.stderr


def test_a_path_that_may_not_be_looked_at(node: Node, container: Netns) -> None:
    """Of another process, without the capability to look into it."""
    pod = node.start(node.network("net", "10.81.0.0/24"), container)
    poor = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    command = [*poor, str(node.bin_dir / "cni"), "del", "net", "/proc/1/ns/net", "-o", "json"]
    with nothing_changes(node, pod):
        done = node.host.exec(command, check=False, env=node.env)
    assert done.returncode == 6, done.stderr
    assert json.loads(done.stdout)["msg"] == "/proc/1/ns/net: permission denied"


def test_an_ambiguous_prefix(node: Node, container: Netns, container2: Netns) -> None:
    conf = node.network("net", "10.81.0.0/24")
    start = os.urandom(8).hex()
    pods = [
        node.start(conf, netns, f"default/web-{n}", cid=start + os.urandom(24).hex())
        for n, netns in enumerate((container, container2))
    ]
    with nothing_changes(node, *pods):
        done = node.run("del", "net", "--id", start, "--force")
    assert done.returncode == 4
    assert pods[0].cid in done.stderr
    assert pods[1].cid in done.stderr


def test_cnitool_s_own_is_detached_without_force(node: Node, container: Netns) -> None:
    node.network("net", "10.81.0.0/24")
    node.ok("add", "net", container.path)
    assert node.ok("del", "net", container.path) == ""
    assert "eth0" not in links(container)
    assert node.leases("net") == {}
    # Nothing else is attached, so the id that cnitool derives is right, and DEL may be repeated.
    again = node.json("del", "net", container.path)
    assert again["known"] is False
    assert node.run("check", "net", container.path).returncode == 3


def test_a_network_that_is_not_configured_any_more(node: Node, container: Netns) -> None:
    pod = node.start(node.network("net", "10.81.0.0/24"), container)
    (node.net_d / "10-net.conflist").unlink()
    assert node.ok("check", "net", pod.pod) == ""
    assert node.ok("del", "net", pod.pod, "--force") == ""
    assert "eth0" not in links(container)
    assert node.results == []


def test_gc_deletes_what_is_dead_and_nothing_else(
    node: Node, plugins: Path, netns: Callable[..., Netns], container: Netns, container2: Netns
) -> None:
    conf = node.network("net", "10.81.0.0/24", ipMasq=True)
    alive = node.start(conf, container, bin_dir=plugins)
    quiet = node.start(conf, container2, "default/quiet", bin_dir=plugins, cached=False)
    ended = [
        node.start(conf, netns(f"ended{n}"), f"default/ended-{n}", bin_dir=plugins)
        for n in range(3)
    ]
    for pod in ended:
        pod.netns.close()
    # The kernel takes the links away a moment later.
    wait_until(lambda: len(ports(node.host, "br-net")) == 2, "the dead containers' links are gone")
    with nothing_changes(node, alive, quiet):
        would = node.json("gc", "net", "--dry-run")
    assert sorted(each["containerID"] for each in would["deleted"]) == sorted(
        pod.cid for pod in ended
    )
    kept = ended.pop()
    assert node.run("gc", "net", "--keep", f"{kept.cid[:9]}/eth0").returncode == 0
    assert node.leases("net") == {pod.address: pod.cid for pod in (alive, quiet, kept)}
    assert node.ok("gc", "net") == ""
    assert node.leases("net") == {pod.address: pod.cid for pod in (alive, quiet)}
    assert len(node.results) == 1
    rules = rules_text(node)
    assert not [pod.cid for pod in ended if pod.cid in rules]
    for netns_ in (container, container2):
        ping(netns_, "10.81.0.1")


def test_gc_goes_by_the_namespace_not_by_its_path(
    node: Node, netns: Callable[..., Netns], container: Netns
) -> None:
    """A dead container's path names another container's namespace by now."""
    conf = node.network("net", "10.81.0.0/24")
    old = node.start(conf, netns("old"), "default/old")
    path = old.netns.path
    old.netns.close()
    new = node.start(conf, container, "default/new")
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o444))
    node.host.exec(["mount", "--bind", container.path, path])
    try:
        assert node.json("check", "net", path)["containerID"] == new.cid
        assert node.ok("gc", "net") == ""
        assert addresses(container, "eth0") == [new.result["ips"][0]["address"]]
        assert node.leases("net") == {new.address: new.cid}
    finally:
        node.host.exec(["umount", path])
        os.unlink(path)


def test_a_path_that_is_not_seen_is_no_proof(
    node: Node, plugins: Path, netns: Callable[..., Netns], container: Netns
) -> None:
    """In another mount namespace no path of a container is there."""
    conf = node.network("net", "10.81.0.0/24", ipMasq=True)
    alive = node.start(conf, container, bin_dir=plugins)
    dead = node.start(conf, netns("dead"), "default/dead", bin_dir=plugins)
    dead.netns.close()
    wait_until(lambda: len(ports(node.host, "br-net")) == 1, "the dead container's link is gone")
    hide = f"mount -t tmpfs none {Path(container.path).parent}"
    release = ["ipam", "release", "net", alive.address]
    for command in (release, ["gc", "net"], ["network", "rm", "net"]):
        elsewhere = ["unshare", "--mount", "sh", "-c", f'{hide} && exec "$@"', "-"]
        argv = [*elsewhere, *node.argv(*command, "--json")]
        done = node.host.exec(argv, check=False, env=node.env)
        value = json.loads(done.stdout)
        if command[0] == "gc":
            assert [each["containerID"] for each in value["deleted"]] == [dead.cid]
        else:
            assert done.returncode == 5, done
    ping(container, "10.81.0.1")
    assert node.leases("net") == {alive.address: alive.cid}


def test_gc_of_all_asks(node: Node, container: Netns, container2: Netns) -> None:
    conf = node.network("net", "10.81.0.0/24")
    pods = [node.start(conf, container), node.start(conf, container2, "default/web-1")]
    with nothing_changes(node, *pods):
        assert node.run("gc", "net", "--all").returncode == 5
        assert node.run("gc", "net", "--all", "--keep", "nobody/eth0", "--yes").returncode == 3
        assert len(node.json("gc", "net", "--all", "--dry-run")["deleted"]) == 2
    kept = pods.pop()
    node.ok("gc", "net", "--all", "--yes", "--keep", f"{kept.cid}/eth0")
    assert node.leases("net") == {kept.address: kept.cid}
    assert "eth0" not in links(container)
    ping(container2, "10.81.0.1")


def test_what_came_after_the_question_stays(
    node: Node, container: Netns, container2: Netns, netns: Callable[..., Netns]
) -> None:
    """The plugins' own GC, too, leaves a container that started while the person read."""
    conf = node.write({**node.network("net", "10.81.0.0/24"), "cniVersion": "1.1.0"})
    kept = node.start(conf, container2, "default/web-1")
    node.start(conf, container)
    came: list[Pod] = []

    def start_another() -> None:
        came.append(node.start(conf, netns("late"), "default/web-2"))

    keep = ("--keep", f"{kept.cid}/eth0")
    code, shown = node.person("gc", "net", "--all", *keep, typed="y\n", meanwhile=start_another)
    assert code == 0, shown
    assert node.leases("net") == {each.address: each.cid for each in (kept, *came)}
    assert "eth0" not in links(container)
    for each in (kept, *came):
        ping(each.netns, "10.81.0.1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "net", "/run/netns/x"],
        ["check", "net", "/run/netns/x"],
        ["del", "net", "/run/netns/x"],
        ["gc", "net"],
        ["reload"],
        ["serve"],
    ],
    ids=lambda each: each[0],
)
def test_not_root(node: Node, arguments: list[str]) -> None:
    node.network("net", "10.81.0.0/24")
    # pytest keeps its directories to itself.
    for path in (node.bin_dir, node.net_d):
        for parent in (path, *path.parents):
            if parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o055)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = node.host.exec(
        [*command, str(node.bin_dir / "cni"), *arguments], check=False, env=node.env, cwd="/"
    )
    assert done.returncode == 6, done.stderr
    assert "only root can" in done.stderr


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_a_directory_of_root(node: Node, tmp_path: Path, command: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    for path in (node.bin_dir, theirs):
        for parent in (path, *path.parents):
            if parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o055)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    argv = [*user, str(node.bin_dir / "cni"), command, "--bin-dir", str(theirs)]
    done = node.host.exec(argv, check=False, env=node.env, cwd="/")
    assert done.returncode == 6, done
    assert "Permission denied; run as root" in done.stderr
