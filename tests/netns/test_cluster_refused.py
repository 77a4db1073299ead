"""ADDs while a real etcd refuses, is cut off, loses its leader, or is restored: what nodes do.

The engine alone is tested in tests/netns/test_cluster_etcd.py. Here the verbs are called: an ADD
that fails leaves no address and no block, DEL works in any case, and when the cause is gone the
next ADD succeeds.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from cni.ipam.cluster import rounds
from cni.ipam.cluster.blocks import block_of_key
from cni.ipam.cluster.node import OWN, Node, Space
from cni.store import settings
from cni.store.interface import Unavailable
from tests.conftest import making_netns
from tests.harness.certificates import Authority
from tests.harness.etcd import EtcdCluster, client_options
from tests.harness.store_contract import together
from tests.harness.wait import wait_until
from tests.unit.ipam_node import Failure, Ipam

from .test_cluster_etcd import with_users

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.netns import Netns

    Json = dict[str, Any]

TRY_AGAIN = 11
REFUSED = 999


class OnNode:
    """The plugin on one node, in the namespace from which it reaches the members."""

    def __init__(self, etcd: EtcdCluster, directory: Path, name: str = "n1") -> None:
        self.etcd, self.name, self.data = etcd, name, directory / name

    def plugin(self, store: Json, **ipam: Any) -> Ipam:
        keys: Json = {"type": "cluster", "ranges": [[{"subnet": "10.64.0.0/24"}]], "blockSize": 29}
        keys |= {"store": store, "nodeName": self.name, "dataDir": str(self.data)} | ipam
        return Ipam("cluster", {"cniVersion": "1.1.0", "name": "net", "ipam": keys})

    def add(self, store: Json, container: str, **ipam: Any) -> list[str]:
        return self.etcd.node.run(self.plugin(store, **ipam).add, container)

    def delete(self, store: Json, container: str) -> None:
        self.etcd.node.run(self.plugin(store).delete, container)

    def fails(self, store: Json, container: str = "refused") -> Failure:
        """The error of an ADD, which has left nothing on the node."""
        before = self.state()
        with pytest.raises(Failure) as raised:
            self.add(store, container)
        assert self.state() == before
        assert raised.value.details, "it says what to do"
        return raised.value

    def state(self) -> tuple[set[str], set[str]]:
        """The addresses that are reserved, and the blocks that the node knows of."""
        ledger = Space(Node(str(self.data), self.name), "default").ledger()
        path = self.data / "default"
        names = os.listdir(path) if path.is_dir() else []
        return {name for name in names if name[0].isdigit()}, {e.cidr for e in ledger.blocks}


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "NODE_FILE", str(tmp_path / "none.json"))


# --- certificates ---


@pytest.fixture(scope="module")
def secured(
    _namespaces: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EtcdCluster, dict[str, Json]]]:
    """A member with TLS, and what a node may have configured, by name."""
    directory = tmp_path_factory.mktemp("secured")
    authority, stranger = Authority(directory / "ca"), Authority(directory / "other")
    with making_netns() as netns:
        etcd = EtcdCluster(netns, directory, authority=authority)
        mine = authority.issue("node")
        closed = [etcd.members[0].url.replace("2379", "2399")]
        right = client_options(authority, mine)
        yield (
            etcd,
            {
                "right": etcd.options(**right),
                "another authority": etcd.options(**client_options(stranger, mine)),
                "another's certificate": etcd.options(
                    **client_options(authority, stranger.issue("node"))
                ),
                "an expired certificate": etcd.options(
                    **client_options(authority, authority.issue("old", days=-1))
                ),
                "no certificate": etcd.options(caFile=authority.cert),
                "no such file": etcd.options(**{**right, "keyFile": str(directory / "none")}),
                "a closed port": etcd.options(**right, endpoints=closed, timeout=5),
            },
        )
        etcd.close()


@pytest.mark.parametrize(
    ("which", "code", "words"),
    [
        ("another authority", REFUSED, "is not signed by store.caFile"),
        ("another's certificate", REFUSED, "does not accept the client certificate"),
        ("an expired certificate", REFUSED, "does not accept the client certificate"),
        ("no certificate", REFUSED, "does not accept no certificate"),
        ("no such file", REFUSED, "store.keyFile"),
        ("a closed port", TRY_AGAIN, "cannot be reached"),
    ],
)
def test_what_keeps_a_node_from_the_store_is_named(
    which: str,
    code: int,
    words: str,
    secured: tuple[EtcdCluster, dict[str, Json]],
    tmp_path: Path,
) -> None:
    etcd, options = secured
    node = OnNode(etcd, tmp_path, which.replace(" ", "-").replace("'", ""))
    failure = node.fails(options[which])
    assert words in failure.msg, failure.msg
    assert failure.code == code, (failure.code, failure.msg)
    node.delete(options[which], "refused")
    # A node that has a block goes on with it, whatever becomes of its way to the store.
    added = [node.add(options["right"], "first")]
    added += [node.add(options[which], f"c{number}") for number in range(4)]
    assert len({address for each in added for address in each}) == 5
    for number in range(4):
        node.delete(options[which], f"c{number}")
    node.delete(options[which], "first")
    assert node.state()[0] == set()


# --- permissions ---


def test_a_permission_that_is_missing_is_named(netns: Callable[..., Netns], tmp_path: Path) -> None:
    etcd = EtcdCluster(netns, tmp_path)
    try:
        password = tmp_path / "password"
        password.write_text("secret")
        store = etcd.options(username="cni", passwordFile=str(password))
        with_users(etcd)
        ctl, root = etcd.members[0].ctl, "--user=root:root"
        ctl(root, "role", "revoke-permission", "--prefix=true", "cni", "/cni/v1/")
        ctl(root, "role", "grant-permission", "--prefix=true", "cni", "read", "/cni/v1/")
        node = OnNode(etcd, tmp_path)
        failure = node.fails(store)
        assert "permission denied" in failure.msg, failure.msg
        assert "grant-permission" in failure.details
        assert failure.code == REFUSED
        ctl(root, "role", "revoke-permission", "--prefix=true", "cni", "/cni/v1/")
        ctl(root, "role", "grant-permission", "--prefix=true", "cni", "readwrite", "/cni/v1/")
        assert node.add(store, "c1")
        password.write_text("wrong")
        other = OnNode(etcd, tmp_path, "n2")
        assert "invalid user ID or password" in other.fails(store).msg
    finally:
        etcd.close()


# --- partitions, and a leader that is killed ---


def test_a_node_that_is_cut_off(netns: Callable[..., Netns], tmp_path: Path) -> None:
    """Own blocks do; then ADDs fail; everything it did is in the store when it is joined again."""
    etcd = EtcdCluster(netns, tmp_path)
    try:
        node, [member] = OnNode(etcd, tmp_path), etcd.members
        store = etcd.options(timeout=2)
        node.add(store, "c0")
        member.cut_off(etcd.node_address)
        added, failure = 0, None
        while failure is None:
            failure = _failure(node, store, f"d{added}")
            added += failure is None
        assert failure.code == TRY_AGAIN
        assert member.url in failure.msg
        assert added >= 4, "a block of eight has room for more"
        node.delete(store, "c0")
        node.delete(store, "d0")
        node.add(store, "again")
        member.join()
        node.add(store, "e0")
        node.add(store, "e1")
        addresses, known = node.state()
        assert len(addresses) == added + 2
        items = etcd.store()
        claimed = [item.key.rpartition("/")[2] for item in items.list("blocks/").items]
        assert {str(block_of_key(each)) for each in claimed} == known
        items.close()
    finally:
        etcd.close()


@pytest.mark.slow
def test_adds_of_three_nodes_while_the_leader_is_killed(
    netns: Callable[..., Netns], tmp_path: Path
) -> None:
    """Each ADD claims a block. One that fails for lack of a leader is repeated, as runtimes do."""
    etcd = EtcdCluster(netns, tmp_path, 3)
    nodes = [OnNode(etcd, tmp_path, f"n{number}") for number in range(3)]
    store = etcd.options(timeout=8)
    leader, killed, begun = etcd.leader, threading.Event(), threading.Semaphore(0)

    def run(number: int) -> list[str]:
        if number == len(nodes):
            for _ in range(9):
                begun.acquire(timeout=120)
            leader.kill()
            killed.set()
            return []
        etcd.node.enter()
        plugin, won = nodes[number].plugin(store, blockSize=32), []
        for pod in range(20):
            wait_until(lambda pod=pod: _added(plugin, f"c{pod}", won), "an address", timeout=300)
            begun.release()
        return won

    try:
        outcomes = together(len(nodes) + 1, run)
        assert killed.is_set()
        assert all(isinstance(won, list) for won in outcomes), outcomes
        every = [address for won in outcomes for address in won]
        assert len(every) == len(set(every)) == 60
        items = etcd.store()
        wait_until(lambda: _settled(items, nodes), "each claim is in the store", timeout=120)
        items.close()
    finally:
        etcd.close()


# --- a backup is restored ---


@pytest.mark.slow
def test_a_backup_that_is_restored_hands_out_nothing_twice(
    netns: Callable[..., Netns], tmp_path: Path
) -> None:
    """It lacks a block that is in use, and has one that was given back since."""
    etcd = EtcdCluster(netns, tmp_path)
    one, two, third = nodes = [OnNode(etcd, tmp_path, f"n{number}") for number in range(3)]
    stores = {node: etcd.options(stateDir=str(tmp_path / f"{node.name}-state")) for node in nodes}

    def served(node: OnNode, **options: Any) -> None:
        """A round of the node's server."""
        file = tmp_path / f"{node.name}.json"
        own = {"store": stores[node], "nodeName": node.name, "dataDir": str(node.data)}
        file.write_text(json.dumps(own))
        env = {"CNI_CLUSTER_CONF": str(file)}
        _, problems = etcd.node.run(lambda: rounds.once(env, print, **options))
        assert not problems, problems

    try:
        held = {*one.add(stores[one], "early")}
        two.add(stores[two], "gone")
        etcd.members[0].ctl("snapshot", "save", str(tmp_path / "backup"))
        two.delete(stores[two], "gone")
        served(two, give_back=True)
        held |= {*(a for number in range(9) for a in one.add(stores[one], f"c{number}"))}
        _, claimed = one.state()
        assert len(claimed) == 2
        etcd.restore(tmp_path / "backup")

        served(one)
        for node in (third, two):
            assert "was restored" in node.fails(stores[node]).msg
        for node in (one, two, one, two):
            served(node)
        with closing(etcd.store()) as items:
            there = [item.key.rpartition("/")[2] for item in items.list("blocks/").items]
            assert {str(block_of_key(each)) for each in there} == claimed
            # What `cni ipam accept` does.
            space = items.read("spaces/default")
            assert space is not None
            items.update(space, {**space.value, "store": items.identity()})
        for number in range(12):
            assert not held & {*third.add(stores[third], f"y{number}")}
        assert one.add(stores[one], "later")
    finally:
        etcd.close()


def _failure(node: OnNode, store: Json, container: str) -> Failure | None:
    try:
        node.add(store, container)
    except Failure as failure:
        return failure
    return None


def _added(plugin: Ipam, container: str, won: list[str]) -> bool:
    try:
        won += plugin.add(container)
    except Failure as failure:
        if failure.code != TRY_AGAIN:
            raise
        return False
    return True


def _settled(store: Any, nodes: list[OnNode]) -> bool:
    """Do the ledgers have what the store has for each node?"""
    there: dict[str, set[str]] = {}
    try:
        for item in store.list("blocks/").items:
            block = block_of_key(item.key.rpartition("/")[2])
            there.setdefault(item.value["node"], set()).add(str(block))
    except Unavailable:
        return False
    own = {
        node.name: {
            entry.cidr
            for entry in Space(Node(str(node.data), node.name), "default").ledger().blocks
            if entry.state == OWN
        }
        for node in nodes
    }
    return there == own
