"""What a cluster's addresses do when clocks, disks, nodes and stores fail. Kills: tests/netns."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.ipam.cluster import allocation, holding, plugin, rounds, session
from cni.ipam.cluster.claim import Claims
from cni.ipam.cluster.node import OWN, RELEASING, Node, Space
from cni.ipam.cluster.reconcile import Reconciler
from cni.store import engines, settings
from cni.store.directory import DirectoryStore

from .ipam_node import Failure
from .test_cluster_plugin import Cluster, plain

if TYPE_CHECKING:
    from cni.store.interface import Item

ONE_SET = [[{"subnet": "10.64.0.0/27"}]]  # four blocks of /29


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(settings, "NODE_FILE", str(tmp_path / "none.json"))
    return Cluster(tmp_path)


class Clock:
    """The boot's clock, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10_000.0
        for module in (allocation, holding, plugin, session):
            monkeypatch.setattr(module, "boot_time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def serve(cluster: Cluster, name: str) -> None:
    """A round of the node's server."""
    _, problems = rounds.once(env_of(cluster, name), print, pace=rounds.Pace())
    assert not problems


def reconcile(cluster: Cluster, now: float) -> list[str]:
    return Reconciler(cluster.store, None, now, settle=60).run().gone


# --- clocks ---


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_the_time_of_day_decides_nothing_on_a_node(
    jump: float, cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may be away for any time, and the time of day be any."""
    one = cluster.node("n1", nodeTimeout=60, ranges=ONE_SET)
    one.add("a")
    serve(cluster, "n1")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    with monkeypatch.context() as away:
        cluster.away(away)
        one.add("b")  # of its own block, without the store
        clock.now += 61
        one.add("c")
    assert cluster.blocks("n1") == cluster.blocks()


# --- a node is lost ---


def test_a_node_that_comes_back_after_its_blocks_were_taken(
    cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was idle and cut off: it allocates nothing before the store knows that it does."""
    one = cluster.node("n1", nodeTimeout=60, ranges=ONE_SET)
    (lost,) = plain(one.add("old"))
    one.delete("old")
    serve(cluster, "n1")
    assert reconcile(cluster, 1000) == []
    with monkeypatch.context() as away:
        cluster.away(away)
        with pytest.raises(Failure, match="does not answer"):
            one.add("early")
        assert reconcile(cluster, 1061) == [], "twice its time has not passed"
    assert reconcile(cluster, 1121) == ["n1"]
    assert cluster.blocks() == []
    two = cluster.node("n2", ranges=ONE_SET)
    others = plain(two.add("c0", env_args=f"IP={lost}"))
    assert others == [lost]
    clock.now += 60
    uid = Node(str(cluster.directory / "n1"), "n1").identity().uid
    new = plain(one.add("new"))
    assert not set(new) & set(others)
    assert Node(str(cluster.directory / "n1"), "n1").identity().uid != uid
    one.delete("new")
    assert plain(two.add("c0")) == [lost]


@pytest.mark.parametrize("idle", [True, False])
def test_a_late_request_does_not_bring_a_node_s_record_back(
    idle: bool, cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node's first request was under way for long: it makes the record that was deleted."""
    sent: list[dict[str, Any]] = []
    create = DirectoryStore.create

    def late(store: DirectoryStore, key: str, value: dict[str, Any]) -> Item:
        if key == "nodes/n1" and not sent:
            sent.append(value)
            raise engines.Unavailable("no answer")
        return create(store, key, value)

    monkeypatch.setattr(DirectoryStore, "create", late)
    one = cluster.node("n1", nodeTimeout=60, ranges=ONE_SET)
    with pytest.raises(Failure, match="no answer"):
        one.add("first")
    (lost,) = plain(one.add("old"))
    one.delete("old")
    serve(cluster, "n1")
    assert reconcile(cluster, 1000) == []
    assert reconcile(cluster, 1120) == ["n1"]
    others = plain(cluster.node("n2", ranges=ONE_SET).add("c0", env_args=f"IP={lost}"))
    cluster.store.create("nodes/n1", {**sent[0], "idle": idle})

    clock.now += 3600
    uid = Node(str(cluster.directory / "n1"), "n1").identity().uid
    serve(cluster, "n1")
    assert Node(str(cluster.directory / "n1"), "n1").identity().uid != uid
    for number in range(8):
        assert not {*plain(one.add(f"new{number}"))} & {*others}


def test_a_node_without_a_server_is_never_taken_for_lost(
    cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody renews for it while no container is started: that says nothing about those it has."""
    one = cluster.node("n1", nodeTimeout=60, ranges=ONE_SET)
    one.add("a")
    for hours in range(4):
        assert reconcile(cluster, 1000 + hours * 3600) == []
    assert cluster.blocks("n1")
    clock.now += 4 * 3600
    cluster.away(monkeypatch)
    one.add("b")


def test_an_add_keeps_the_timeout_of_the_server(cluster: Cluster, clock: Clock) -> None:
    one = cluster.node("n1", nodeTimeout=60, ranges=ONE_SET)
    one.add("a")
    serve(cluster, "n1")
    clock.now += 61
    one.add("b")  # asks the store
    record = cluster.store.read("nodes/n1")
    assert record is not None
    assert record.value["timeout"] == 60


def test_a_node_whose_idleness_was_told_without_an_answer_keeps_to_it(
    cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may take the blocks then, so the node tells the store before it allocates."""
    one = cluster.node("n1", nodeTimeout=60, ranges=ONE_SET)
    one.add("a")
    one.delete("a")
    update = DirectoryStore.update

    def lost(store: DirectoryStore, item: Item, value: dict[str, Any]) -> Item:
        update(store, item, value)
        raise engines.Unavailable("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "update", lost)
        _, problems = rounds.once(env_of(cluster, "n1"), print, pace=rounds.Pace())
        assert "the answer was lost" in str(problems)
    record = cluster.store.read("nodes/n1")
    assert record is not None
    assert (record.value["timeout"], record.value["idle"]) == (60, True)
    with monkeypatch.context() as away:
        cluster.away(away)
        with pytest.raises(Failure, match="does not answer"):
            one.add("b")
    one.add("b")
    record = cluster.store.read("nodes/n1")
    assert record is not None
    assert record.value["idle"] is False


class Stopped(BaseException):
    """The end of a loop without one."""


@pytest.mark.parametrize("timeout", [7, 20, 31, 45, 59, 60, 90, 300])
def test_a_server_renews_in_time(
    timeout: int, cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short the time is, nobody takes a node for lost that reaches the store.

    However long it is, the store is changed only when half of it has passed.
    """
    one = cluster.node("n1", nodeTimeout=timeout, ranges=ONE_SET)
    one.add("a")
    one.delete("a")  # it is idle then
    end = clock.now + 900

    def sleep(seconds: float) -> None:
        assert reconcile(cluster, clock.now) == []
        clock.now += seconds + 0.5
        if clock.now > end:
            raise Stopped

    monkeypatch.setattr(rounds.time, "sleep", sleep)
    monkeypatch.setattr(rounds, "boot_time", lambda: clock.now)
    with pytest.raises(Stopped):
        rounds.forever(env_of(cluster, "n1"), print)
    record = cluster.store.read("nodes/n1")
    assert record is not None
    assert record.value["timeout"] == timeout
    assert 900 / max(timeout, 60) - 2 < record.value["beat"] < 900 / (timeout / 2) + 3
    assert record.value["idle"] is True


# --- the store is away ---


def test_releases_wait_for_the_store_and_go_in_their_order(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given up is on the disk, so that another process, after a restart, goes on."""
    conf = {"ranges": [[{"subnet": "10.64.0.0/27"}]], "blockSize": 32}
    one = cluster.node("n1", **conf)
    for number in range(4):
        one.add(f"c{number}")
    own = Node(str(cluster.directory / "n1"), "n1")
    space = Space(own, "default")
    for number in (2, 0, 3):
        one.delete(f"c{number}")
    its = settings.read(one.conf["ipam"], {})
    asked: list[str] = []

    class Away(type(cluster.store)):  # type: ignore[misc]
        """It answers no change."""

        def delete(self, item: Item) -> None:
            asked.append(item.key)
            raise engines.Unavailable("etcd does not answer")

    claims = Claims(Away(str(cluster.path), sync=False), its, own, lambda _: None)
    with own.claiming(), pytest.raises(engines.Unavailable):
        claims.release(space, lambda _: True)
    assert len(asked) == 1
    assert [each.state for each in space.ledger().blocks].count(RELEASING) == 3
    assert len(cluster.blocks()) == 4
    waiting = [each.cidr for each in space.ledger().of_state(RELEASING)]

    again = Claims(cluster.store, its, Node(own.data_dir, "n1"), lambda _: None)
    order: list[str] = []
    give_back = again.give_back
    monkeypatch.setattr(
        again, "give_back", lambda where, entry: (order.append(entry.cidr), give_back(where, entry))
    )
    with own.claiming():
        again.settle(space)
    assert order == waiting
    assert [each.state for each in space.ledger().blocks] == [OWN]
    assert len(cluster.blocks()) == 1


# --- the store is put back ---


def test_a_store_that_was_restored_hands_out_nothing_twice(cluster: Cluster) -> None:
    """The backup lacks a block that is in use, and has one that was given back since."""
    one, two = (cluster.node(name, ranges=ONE_SET) for name in ("n1", "n2"))
    held = {*plain(one.add("early"))}
    two.add("gone")
    backup = cluster.directory / "backup"
    shutil.copytree(cluster.path, backup)
    two.delete("gone")
    rounds.once(env_of(cluster, "n2"), print, give_back=True)
    for number in range(9):  # more than a block
        held |= {*plain(one.add(f"c{number}"))}
    claimed = set(cluster.blocks("n1"))
    assert len(claimed) == 2
    shutil.rmtree(cluster.path)
    shutil.copytree(backup, cluster.path)
    assert set(cluster.blocks("n1")) < claimed

    third = cluster.node("n3", ranges=ONE_SET)
    for each in (third, two):
        with pytest.raises(Failure, match="was restored"):
            each.add("x")
    for _ in range(2):
        for name in ("n1", "n2"):
            rounds.once(env_of(cluster, name), print)
    assert set(cluster.blocks("n1")) == claimed
    assert cluster.blocks("n2") == []
    own = Node(str(cluster.directory / "n1"), "n1")
    its = settings.read(one.conf["ipam"], {})
    Claims(cluster.store, its, own, print).accept("default")
    for number in range(10):
        assert not held & {*plain(third.add(f"y{number}"))}


def env_of(cluster: Cluster, name: str) -> dict[str, str]:
    """The environment of the node's server."""
    import json

    path = cluster.directory / f"{name}.json"
    ipam = cluster.node(name).conf["ipam"]
    path.write_text(json.dumps({key: ipam[key] for key in ("store", "nodeName", "dataDir")}))
    return {"CNI_CLUSTER_CONF": str(path)}


# --- the node's disk is full ---

FULL = """
import os, sys
from pathlib import Path
from cni.store import settings
from cni.ipam.cluster.blocks import block_of_key
from cni.ipam.cluster.node import Node, Space
from tests.unit.ipam_node import Failure
from tests.unit.test_cluster_plugin import Cluster, plain
directory = Path(sys.argv[1])
settings.NODE_FILE = str(directory / "none.json")
cluster = Cluster(directory)
cluster.path = Path(sys.argv[2])
node = cluster.node("n1", ranges=[[{"subnet": "10.64.0.0/24"}]])
first = plain(node.add("a"))
with open(directory / "fill", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
for request in ({}, {"env_args": "IP=10.64.0.200"}):  # of its own block, and of another one
    try:
        node.add("b", **request)
    except Failure as failure:
        assert "no space left" in failure.msg.lower() + failure.details.lower(), vars(failure)
    else:
        raise SystemExit("it was not full")
    known = Space(Node(str(directory / "n1"), "n1"), "default").ledger().blocks
    claimed = [block_of_key(each.rpartition("/")[2]) for each in cluster.blocks()]
    assert set(claimed) <= {each.prefix for each in known}, (claimed, known)
node.check("a")
node.delete("a")  # it needs no space
os.unlink(directory / "fill")
assert plain(node.add("b", env_args="IP=10.64.0.200")) == ["10.64.0.200"]
assert len(cluster.blocks()) == 2
"""


def test_a_full_disk_of_the_node_strands_no_block(tmp_path: Path) -> None:
    """The ledger names each block that the store has for the node, or the store is not asked."""
    if os.geteuid():
        pytest.skip("needs root, to mount a small file system")
    script = tmp_path / "full.py"
    script.write_text(FULL)
    disk = tmp_path / "disk"
    disk.mkdir()
    run = f"exec {sys.executable} {script} {disk} {tmp_path / 'store'}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c",
         f"mount -t tmpfs -o size=256k none {disk} && {run}"],
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
