"""Blocks are freed by time only of idle nodes; what a node says whose blocks others have by now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cni.ipam.cluster import survey
from cni.ipam.cluster.node import Node, Space
from cni.ipam.cluster.reconcile import Reconciler
from cni.store import settings
from cni.store.directory import DirectoryStore

from .ipam_node import Failure
from .test_cluster_failures import reconcile, serve
from .test_cluster_plugin import Cluster, plain

if TYPE_CHECKING:
    from pathlib import Path

    from cni.store.interface import Item

ONE_SET = [[{"subnet": "10.64.0.0/27"}]]  # four blocks of /29
YEAR = 365 * 86400


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(settings, "NODE_FILE", str(tmp_path / "none.json"))
    return Cluster(tmp_path)


def is_idle(cluster: Cluster, name: str = "n1") -> bool:
    item = cluster.store.read(f"nodes/{name}")
    assert item is not None
    return item.value["idle"] is True


def forget(cluster: Cluster, name: str) -> None:
    """What `cni ipam forget --force` does."""
    store = cluster.store
    item = store.read(f"nodes/{name}")
    assert item is not None
    store.update(item, {**item.value, "lost": True})
    for each in store.list("blocks/").items:
        if each.value["node"] == name:
            store.delete(each)


def test_a_node_whose_server_stopped_keeps_the_blocks_of_its_containers(cluster: Cluster) -> None:
    one = cluster.node("n1", nodeTimeout=60, ranges=ONE_SET)
    (its,) = plain(one.add("a"))
    serve(cluster, "n1")
    for now in (1000, 2000, YEAR):
        assert reconcile(cluster, now) == []
    report = Reconciler(cluster.store, None, YEAR, settle=60).run()
    assert report.silent == ("n1",)
    with pytest.raises(Failure, match="belongs to node n1"):
        cluster.node("n2", ranges=ONE_SET).add("b", env_args=f"IP={its}")
    assert plain(one.add("c")) != [its]  # it goes on, too
    one.check("a")


def test_a_node_is_idle_from_its_last_container_to_the_next_one(cluster: Cluster) -> None:
    one = cluster.node("n1", nodeTimeout=60, ranges=ONE_SET)
    one.add("a")
    serve(cluster, "n1")
    assert not is_idle(cluster)
    one.delete("a")
    serve(cluster, "n1")
    assert is_idle(cluster)
    blocks = cluster.blocks("n1")
    assert blocks
    one.add("b")
    assert not is_idle(cluster)
    assert cluster.blocks("n1") == blocks, "it has used the block that it had"
    serve(cluster, "n1")
    assert not is_idle(cluster)


@pytest.mark.parametrize("keys", [{}, {"nodeTimeout": 0}])
def test_without_the_key_no_node_is_idle(cluster: Cluster, keys: dict[str, Any]) -> None:
    one = cluster.node("n1", ranges=ONE_SET, **keys)
    one.add("a")
    one.delete("a")
    serve(cluster, "n1")
    assert not is_idle(cluster)


def test_status_does_not_wake_a_node(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    one = cluster.node("n1", nodeTimeout=60, ranges=ONE_SET)
    one.add("a")
    one.delete("a")
    serve(cluster, "n1")
    one.call("STATUS")
    assert is_idle(cluster)
    cluster.away(monkeypatch)
    with pytest.raises(Failure, match="the node is idle, and the store has to know") as failed:
        one.call("STATUS")
    assert failed.value.code == 50


def test_it_is_awake_before_it_allocates(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody frees the blocks between a look at the record and its change: one of them fails."""
    one = cluster.node("n1", nodeTimeout=60, ranges=ONE_SET)
    one.add("a")
    one.delete("a")
    serve(cluster, "n1")
    assert reconcile(cluster, 1000) == []
    update, done = DirectoryStore.update, []

    def slow(store: DirectoryStore, item: Item, value: dict[str, Any]) -> Item:
        if item.key == "nodes/n1" and not value.get("lost") and not done:
            done.append(True)
            assert Reconciler(cluster.store, None, 2000, settle=60).run().gone == ["n1"]
        return update(store, item, value)

    monkeypatch.setattr(DirectoryStore, "update", slow)
    (got,) = plain(one.add("b"))
    assert done
    monkeypatch.undo()
    item = cluster.store.read(cluster.blocks("n1")[0])
    assert item is not None
    assert item.value["uid"] == Node(str(cluster.directory / "n1"), "n1").identity().uid
    one.check("b")
    assert reconcile(cluster, 3000) == []
    with pytest.raises(Failure, match="belongs to node n1"):
        cluster.node("n2", ranges=ONE_SET).add("c", env_args=f"IP={got}")


def test_a_node_that_was_forgotten_while_its_containers_ran(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    """It says which of them have addresses that are another node's."""
    one, two = (cluster.node(name, ranges=ONE_SET) for name in ("n1", "n2"))
    (its,) = plain(one.add("old"))
    forget(cluster, "n1")
    assert plain(two.add("new", env_args=f"IP={its}")) == [its]
    serve(cluster, "n1")
    assert "belongs to n2 by now, and containers here have addresses" in capfd.readouterr().out
    with pytest.raises(Failure, match="no longer, and which node n2 has by now") as failed:
        one.check("old")
    assert its in failed.value.details
    with pytest.raises(Failure, match=f"{its} of container old .*block of node n2") as failed:
        one.call("STATUS")
    assert failed.value.code == 51
    assert "recreate" in failed.value.details
    its_settings = settings.read(one.conf["ipam"], {})
    node = Node(its_settings.data_dir, "n1")
    told = survey.problems(cluster.store, node)
    assert any(f"{its} of" in each and "node n2's block" in each for each in told), told
    cluster.node("n1", network="other", ranges=ONE_SET).call("STATUS")  # none of its containers
    # The container is recreated: all is well, and what was lost is forgotten.
    one.delete("old")
    assert plain(one.add("new")) != [its]
    one.check("new")
    one.call("STATUS")
    serve(cluster, "n1")
    assert Space(node, "default").ledger().lost == {}
    two.check("new")


def test_blocks_that_nobody_took_meanwhile_are_its_own_again(cluster: Cluster) -> None:
    one = cluster.node("n1", ranges=ONE_SET)
    one.add("old")
    blocks = cluster.blocks()
    forget(cluster, "n1")
    serve(cluster, "n1")
    assert set(cluster.blocks("n1")) >= set(blocks)
    one.check("old")
    one.call("STATUS")
