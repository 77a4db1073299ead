"""Unusual states of a cluster: what verbs and commands say, and that nothing is claimed wrongly."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from cni.cli import main
from cni.ipam.cluster import session
from cni.ipam.cluster.node import Node
from cni.store import settings
from cni.store.node_files import boot_time, claiming

from .ipam_node import Failure, Ipam
from .test_cluster_plugin import Cluster, plain, until_it_fails

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = {"ranges": [[{"subnet": "10.64.0.0/27"}]], "blockSize": 29}  # four blocks


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(settings, "NODE_FILE", str(tmp_path / "none.json"))
    monkeypatch.setenv("NETCONFPATH", str(tmp_path / "net.d"))
    return Cluster(tmp_path)


@pytest.fixture
def command(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs `cni ipam …` on a node; returns what it prints, and requires its exit code."""

    def run(node: str, *arguments: str, code: int = 0) -> str:
        path = cluster.directory / f"{node}.json"
        ipam = cluster.node(node).conf["ipam"]
        path.write_text(json.dumps({key: ipam[key] for key in ("store", "nodeName", "dataDir")}))
        monkeypatch.setattr(settings, "NODE_FILE", str(path))
        capfd.readouterr()
        result = main(["ipam", *arguments])
        out, err = capfd.readouterr()
        monkeypatch.setattr(settings, "NODE_FILE", str(cluster.directory / "none.json"))
        assert result == code, out + err
        return " ".join((out + err).split())

    return run


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A minute passes."""

    def wait() -> None:
        monkeypatch.setattr(session, "boot_time", lambda: boot_time() + 61)

    return wait


def not_ready(node: Ipam) -> str:
    """What STATUS says."""
    with pytest.raises(Failure) as failure:
        node.call("STATUS")
    assert failure.value.code == 50
    return f"{failure.value.msg}; {failure.value.details}"


def unclaimed(cluster: Cluster) -> list[str]:
    """CNI_ARGS that ask for an address of each block that nobody has."""
    taken = {key.rpartition("/")[2] for key in cluster.blocks()}
    firsts = [first for first in (0, 8, 16, 24) if f"10.64.0.{first}-29" not in taken]
    return [f"IP=10.64.0.{first + 5}" for first in firsts]


def empty(cluster: Cluster) -> None:
    """Somebody deletes all items of the store, which makes it another one."""
    shutil.rmtree(cluster.path)


# --- STATUS knows what keeps an ADD from claiming -------------------------------------------------


def test_status_of_a_cordoned_node(cluster: Cluster, command: Callable[..., str]) -> None:
    node = cluster.node("n1", **SMALL)
    node.add("a")
    command("n1", "cordon", "n1")
    node.call("STATUS")  # it has free addresses
    node.delete("a")
    command("n1", "sync")  # learns it, and gives the block back
    assert "node n1 is cordoned" in not_ready(node)
    command("n1", "cordon", "n1", "--undo")
    command("n1", "sync")
    node.call("STATUS")


def test_status_of_subnets_that_do_not_fit(cluster: Cluster) -> None:
    cluster.node("n1", **SMALL).add("a")
    coarse = cluster.node("n2", **{**SMALL, "blockSize": 28})
    assert "is divided into /29 blocks already" in not_ready(coarse)
    other = cluster.node("n2", ranges=[[{"subnet": "10.64.0.16/28"}]])
    assert "overlaps 10.64.0.0/27 in the same space" in not_ready(other)
    cluster.node("n2", **SMALL).call("STATUS")


def test_an_emptied_store(cluster: Cluster, command: Callable[..., str]) -> None:
    """Nothing is claimed in it, STATUS says so, and it learns how the space is divided again."""
    one, two = cluster.node("n1", **SMALL), cluster.node("n2", **SMALL)
    held = set(plain(one.add("a")))
    two.add("b")
    two.delete("b")
    command("n2", "sync", "--release")
    empty(cluster)
    assert "cni ipam accept default" in not_ready(two)
    assert "cni ipam accept default" in command("n1", "check", "--cluster", code=1)
    command("n2", "sync")
    command("n1", "sync")
    (block,) = cluster.blocks("n1")
    # The blocks are shown, although nobody has accepted the store.
    assert "n1" in command("n2", "blocks")
    assert "node n1" in command("n2", "show", *held)
    new = cluster.node("n3", **{**SMALL, "blockSize": 28})
    for node in (two, new):
        with pytest.raises(Failure, match="was restored"):
            node.add("x")
    command("n2", "accept")
    # A block of another size would contain addresses of n1.
    with pytest.raises(Failure, match="is divided into /29 blocks already"):
        new.add("x")
    two.call("STATUS")
    _, failure = until_it_fails(two)
    assert "all 4 blocks" in failure.msg
    assert "cni ipam sync" in failure.details
    assert cluster.blocks("n1") == [block]
    command("n1", "check", "--cluster")


# --- CHECK ----------------------------------------------------------------------------------------


def test_check_after_the_ranges_were_changed(cluster: Cluster) -> None:
    node = cluster.node("n1", **SMALL)
    [address] = plain(node.add("a"))
    moved = cluster.node("n1", ranges=[[{"subnet": "10.65.0.0/24"}]])
    with pytest.raises(Failure, match="Failed to find address") as failure:
        moved.check("a")
    assert f"eth0 has {address}" in failure.value.details
    assert "the ranges were changed" in failure.value.details
    # An address of another set is no sign of that.
    dual = cluster.node("n1", ranges=[[{"subnet": "10.65.0.0/24"}], *SMALL["ranges"]])
    with pytest.raises(Failure, match="Failed to find address") as failure:
        dual.check("a")
    assert "was never attached to this network" in failure.value.details


# --- two machines with one name -------------------------------------------------------------------


def test_a_namesake_is_noticed_with_a_claim(
    cluster: Cluster, command: Callable[..., str], later: Callable[[], None]
) -> None:
    """A node without a server was forgotten, and another machine has its name by now."""
    node = cluster.node("n1", **SMALL)
    node.add("a")
    command("n1", "forget", "n1", "--force")
    other = cluster.node("n1", dataDir=str(cluster.directory / "other"), **SMALL)
    other.add("b", env_args=unclaimed(cluster)[0])
    assert "another node is called n1" in command("n1", "check", "--cluster", code=1)
    before = cluster.blocks()
    later()
    with pytest.raises(Failure, match="another node is called n1"):
        node.add("c", env_args=unclaimed(cluster)[0])
    assert cluster.blocks() == before


def test_the_copy_of_a_disk_is_noticed_with_a_claim(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, later: Callable[[], None]
) -> None:
    node = cluster.node("n1", **SMALL)
    node.add("a")
    shutil.copytree(cluster.directory / "n1", cluster.directory / "copy")
    with monkeypatch.context() as patch:
        patch.setattr("cni.ipam.host_local.reservation.this_boot", lambda: b"\x02" * 16)
        copy = cluster.node("n1", dataDir=str(cluster.directory / "copy"), **SMALL)
        copy.add("b", env_args=unclaimed(cluster)[0])  # as after a reboot: it cannot be known yet
    before = cluster.blocks()
    later()
    with pytest.raises(Failure, match="another machine uses the identity of node n1"):
        node.add("c", env_args=unclaimed(cluster)[0])
    assert cluster.blocks() == before


# --- the lock of the node -------------------------------------------------------------------------


def test_an_add_that_waits_for_another_names_the_store(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is no culprit that should be killed: it waits for the store, too."""
    monkeypatch.setattr(Node, "claiming", lambda its, _timeout: claiming(its.data_dir, 0.0))
    node = cluster.node("n1", **SMALL)
    with claiming(str(cluster.directory / "n1")), pytest.raises(Failure) as failure:
        node.add("a")
    assert failure.value.code == 11
    assert "cannot lock" in failure.value.msg
    assert "look whether the store can be reached" in failure.value.details
    assert "end it" not in failure.value.details


# --- commands -------------------------------------------------------------------------------------


def test_sync_that_fails_does_not_say_that_all_agrees(
    cluster: Cluster, command: Callable[..., str]
) -> None:
    cluster.node("n1", **SMALL).add("a")
    assert "this node and the store agree" in command("n1", "sync")
    path = cluster.directory / "n1/.cni/node"
    path.write_text(path.read_text().replace('"n1"', '"n0"'))
    said = command("n1", "sync", code=1)
    assert "agree" not in said
    assert "while it is n0" in said


@pytest.mark.parametrize("kind", ["cluster", "whereabouts"])
@pytest.mark.parametrize(
    "arguments", [("list", "net"), ("check", "net"), ("release", "net", "10.64.0.1")]
)
def test_commands_of_host_local_name_those_of_a_cluster(
    cluster: Cluster, command: Callable[..., str], kind: str, arguments: tuple[str, ...]
) -> None:
    net_d = cluster.directory / "net.d"
    net_d.mkdir()
    plugin = {"type": "bridge", "ipam": {"type": kind}}
    conflist = {"cniVersion": "1.1.0", "name": "net", "plugins": [plugin]}
    (net_d / "1.conflist").write_text(json.dumps(conflist))
    said = command("n1", *arguments, code=3)
    assert f"network net has its addresses from {kind}, not from host-local" in said
    assert "cni ipam show IP" in said


def test_pools_of_configurations_are_listed(cluster: Cluster, command: Callable[..., str]) -> None:
    cluster.node("n1").add("a")
    cluster.node("n1", space="other", **SMALL).add("b")
    cluster.store.create("pools/small", {**SMALL, "space": "other"})
    found = json.loads(command("n1", "pools", "-o", "json"))
    listed = {(each["pool"], each["space"], each["ranges"]): each for each in found}
    assert sorted(listed) == [
        ("", "default", "10.64.0.1-10.64.0.254"),
        ("", "default", "fd00:64::1-fd00:64::ffff:ffff:ffff:ffff"),
        ("small", "other", "10.64.0.1-10.64.0.30"),
    ]
    assert [(each["blocks"], each["taken"]) for each in found] == [(4, 1), (32, 1), (1 << 61, 1)]
    assert command("n1", "pools", "-o", "name") == "small"
    # What cannot be understood hides nothing else.
    item = cluster.store.read("spaces/other")
    assert item is not None
    cluster.store.update(item, {**item.value, "layout": {"nonsense": 3}})
    assert "spaces/other: " in command("n1", "pools", code=1)
