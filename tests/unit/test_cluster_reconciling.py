"""Rounds of reconciling, again and again: one at a time, bounded, told to the operator once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cni.cli import main
from cni.ipam.cluster import reconcile, reconciling, rounds
from cni.ipam.cluster.kubernetes_nodes import NodeObject, Pod
from cni.ipam.cluster.reconciling import EVERY, Reconciling
from cni.protocol.errors import CNIError
from cni.store import settings
from cni.store.directory import DirectoryStore
from cni.store.interface import Unavailable
from tests.harness.cluster_store import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Clocked(Memory):
    """A store with a time, and with the nodes and pods of a cluster."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000.0
        self.nodes: dict[str, NodeObject] = {}
        self.running: list[Pod] = []
        self.asked: list[str] = []

    def clock(self) -> float:
        return self.now

    # --- Presence ---

    def find(self, name: str) -> NodeObject | None:
        return self.nodes.get(name)

    def all(self) -> Mapping[str, NodeObject]:
        return dict(self.nodes)

    def pods(self, node: str) -> list[Pod]:
        self.asked.append(node)
        return [pod for pod in self.running if pod.node == node]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Clocked:
    """Each Node has one block, and one pod with an address of it."""
    made = Clocked()
    monkeypatch.setattr(reconciling, "presence_of", lambda store: store)
    made.create("spaces/default", {"layout": {"10.64.0.0/16": 26}, "store": "s"})
    for number in range(50):
        name = f"n{number:02}"
        made.nodes[name] = NodeObject(name, f"uid-{name}", True)
        made.create(f"blocks/default/10.64.{number}.0-26", {"node": name, "uid": name})
        made.create(f"nodes/{name}", {"uid": name, "boot": "b", "beat": 1, "timeout": 0})
        made.running.append(Pod("default", f"pod-{name}", name, (f"10.64.{number}.5",)))
    return made


def test_a_minute_has_one_round_however_many_servers_there_are(store: Clocked) -> None:
    servers = [Reconciling() for _ in range(10)]
    for _ in range(3):
        done = [server.round(store, every=EVERY).report for server in servers]
        assert [report is not None for report in done].count(True) == 1
        before = len(store.requests)
        assert servers[-1].round(store, every=EVERY).report is None
        assert len(store.requests) == before + 1  # what the others cost
        store.now += EVERY
    # a person does not wait
    assert Reconciling().round(store).report is not None


def test_a_round_that_fails_is_not_one(store: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise Unavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(reconcile.Reconciler, "run", fail)
        with pytest.raises(Unavailable):
            Reconciling().round(store, every=EVERY)
    assert Reconciling().round(store, every=EVERY).report is not None


def test_blocks_of_a_deleted_node_are_free_after_two_minutes(store: Clocked) -> None:
    servers, log = [Reconciling(), Reconciling()], []
    for number in range(6):
        if number == 1:
            del store.nodes["n07"]
            store.running = [pod for pod in store.running if pod.node != "n07"]
        outcome = servers[number % 2].round(store, every=EVERY)
        reconciling.tell(outcome, log.append)
        store.now += EVERY
    assert "blocks/default/10.64.7.0-26" not in store.items
    assert len([key for key in store.items if key.startswith("blocks/")]) == 49
    assert log == [
        "cluster: 1 blocks of nodes that are gone are free",
        "cluster: node n07 is gone, and has no block any more",
    ]


def test_pods_whose_addresses_are_somebody_elses_are_told_of_once(store: Clocked) -> None:
    server, log = Reconciling(), []
    store.running.append(Pod("default", "wrong", "n03", ("10.64.9.9",)))
    for _ in range(8):
        store.asked.clear()
        reconciling.tell(server.round(store, every=EVERY), log.append)
        assert 0 < len(store.asked) <= 21, "a round is bounded"
        store.now += EVERY
    assert len(log) == 1
    assert "pod default/wrong on node n03 has 10.64.9.9, which is of node n09's block" in log[0]


def test_a_pod_that_is_wrong_for_a_moment_is_not_told_of(store: Clocked) -> None:
    """Its block was claimed when the list of blocks had been read."""
    server, log = Reconciling(), []
    store.running.append(Pod("default", "new", "n03", ("10.64.200.9",)))
    reconciling.tell(server.round(store, every=EVERY), log.append)
    store.create("blocks/default/10.64.200.0-26", {"node": "n03", "uid": "n03"})
    for _ in range(6):
        store.now += EVERY
        reconciling.tell(server.round(store, every=EVERY), log.append)
    assert log == []


def test_every_node_s_pods_are_looked_at(store: Clocked) -> None:
    server = Reconciling()
    for _ in range(3):
        server.round(store, every=EVERY)
        store.now += EVERY
    assert set(store.asked) == set(store.nodes)


# --- in the server ---


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ({}, False),
        ({"reconcile": True}, False),  # in which store?
        ({"store": {"type": "etcd"}}, False),  # nobody is gone by time
        ({"store": {"type": "etcd"}, "nodeTimeout": 30}, True),
        ({"store": {"type": "etcd"}, "nodeTimeout": 30, "reconcile": False}, False),
        ({"store": {"type": "kubernetes"}, "nodeTimeout": 30}, False),  # a node's account must not
        ({"store": {"type": "kubernetes"}, "reconcile": True}, True),
        ({"store": {"type": "etcd"}, "reconcile": "yes"}, None),
    ],
)
def test_which_servers_reconcile(
    conf: dict[str, Any], expected: bool | None, tmp_path: Path
) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({**conf, "nodeName": "n1"}))
    env = {"CNI_CLUSTER_CONF": str(path)}
    if expected is None:
        with pytest.raises(CNIError, match="reconcile"):
            settings.reconciles(env)
    else:
        assert settings.reconciles(env) is expected


class Stopped(BaseException):
    """The end of a loop without one."""


def test_the_server_frees_what_a_silent_node_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was idle, and does not renew; the store is a real one."""
    store = DirectoryStore(str(tmp_path / "store"))
    store.create("nodes/n2", {"uid": "u2", "boot": "b", "beat": 1, "timeout": 30, "idle": True})
    store.create("blocks/default/10.64.0.0-26", {"node": "n2", "uid": "u2"})
    path = tmp_path / "cluster.json"
    where = {"type": "directory", "path": str(tmp_path / "store")}
    own = {"store": where, "nodeName": "n1", "nodeTimeout": 30, "dataDir": str(tmp_path / "data")}
    path.write_text(json.dumps(own))
    now, log = [1_000_000.0], []

    def pass_time(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 1_000_000 + 300:
            raise Stopped

    monkeypatch.setattr(DirectoryStore, "clock", lambda _: now[0])
    monkeypatch.setattr(rounds.time, "sleep", pass_time)
    with pytest.raises(Stopped):
        rounds.forever({"CNI_CLUSTER_CONF": str(path)}, log.append)
    assert [item.key for item in store.list("").items] == ["lost/u2", "reconcile/lock"]
    assert log == [
        "cluster: 1 blocks of nodes that are gone are free",
        "cluster: node n2 is gone, and has no block any more",
    ]


def test_the_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = DirectoryStore(str(tmp_path / "store"))
    store.create("nodes/n2", {"uid": "u2", "boot": "b", "beat": 1, "timeout": 1, "idle": True})
    path = tmp_path / "cluster.json"
    where = {"type": "directory", "path": str(tmp_path / "store")}
    path.write_text(json.dumps({"store": where, "nodeName": "n1"}))
    monkeypatch.setenv("CNI_CLUSTER_CONF", str(path))
    now = [1_000_000.0]

    def pass_time(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 1_000_000 + 100:
            raise KeyboardInterrupt

    monkeypatch.setattr(DirectoryStore, "clock", lambda _: now[0])
    monkeypatch.setattr(reconciling.time, "sleep", pass_time)
    assert main(["ipam", "reconcile", "--every", "30", "--settle", "20"]) != 0
    printed = capfd.readouterr()
    assert "node n2 is gone" in printed.err
    assert store.read("nodes/n2") is None
