"""The plugin `cluster`, in this process, on several nodes that share a store in a directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni.ipam.cluster import shortage
from cni.ipam.cluster.node import Node, Space
from cni.store import engines, settings
from cni.store.directory import DirectoryStore
from cni.store.interface import Unavailable
from cni.store.node_files import boot_time

from .ipam_node import Failure, Ipam

RANGES = [[{"subnet": "10.64.0.0/24"}], [{"subnet": "fd00:64::/64"}]]


class Cluster:
    """Nodes with a store; the store can be taken away."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "store"

    @property
    def store(self) -> DirectoryStore:
        return DirectoryStore(str(self.path), sync=False)

    def node(self, name: str, network: str = "net", **ipam: Any) -> Ipam:
        keys = {
            "type": "cluster",
            "store": {"type": "directory", "path": str(self.path)},
            "nodeName": name,
            "dataDir": str(self.directory / name),
        }
        keys |= {"ranges": RANGES, "blockSize": 29, "blockSizeV6": 125} | ipam
        keys = {key: value for key, value in keys.items() if value is not None}
        return Ipam("cluster", {"cniVersion": "1.1.0", "name": network, "ipam": keys})

    def blocks(self, node: str = "", space: str = "default") -> list[str]:
        items = self.store.list(f"blocks/{space}/").items
        return [item.key for item in items if not node or item.value["node"] == node]

    def away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(_: object) -> Any:
            raise Unavailable("etcd at https://192.0.2.1:2379 does not answer")

        monkeypatch.setattr(engines, "connect", unreachable)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(settings, "NODE_FILE", str(tmp_path / "none.json"))
    return Cluster(tmp_path)


def plain(addresses: list[str]) -> list[str]:
    return [each.partition("/")[0] for each in addresses]


def reserved(cluster: Cluster, node: str, space: str = "default") -> set[str]:
    directory = cluster.directory / node / space
    names = os.listdir(directory) if directory.exists() else []
    return {name for name in names if name[0].isdigit() or ":" in name}


def until_it_fails(node: Ipam) -> tuple[int, Failure]:
    """How many ADDs succeed, and what the next one says."""
    for number in range(1000):
        try:
            node.add(f"container{number}")
        except Failure as failure:
            return number, failure
    raise AssertionError


# --- ADD and DEL ----------------------------------------------------------------------------------


def test_one_address_of_each_range_set(cluster: Cluster) -> None:
    result = cluster.node("n1", routes=[{"dst": "0.0.0.0/0"}], dns={"domain": "x.test"}).call("ADD")

    v4, v6 = result["ips"]
    assert ip_address(plain([v4["address"]])[0]) in ip_network("10.64.0.0/24")
    assert v4["address"].endswith("/24")
    assert v4["gateway"] == "10.64.0.1"
    assert ip_address(plain([v6["address"]])[0]) in ip_network("fd00:64::/64")
    assert result["routes"] == [{"dst": "0.0.0.0/0"}]
    assert result["dns"] == {"domain": "x.test"}


def test_nodes_get_different_blocks_and_addresses(cluster: Cluster) -> None:
    nodes = [cluster.node(f"n{number}") for number in range(6)]
    got = [address for cid in "abcdef" for node in nodes for address in node.add(cid)]

    assert len(set(got)) == len(got) == 6 * 6 * 2
    keys = cluster.blocks()
    assert len(keys) == len(set(keys))
    for number in range(6):
        own = Space(Node(str(cluster.directory / f"n{number}"), ""), "default").own()
        assert len(own) == len(cluster.blocks(f"n{number}"))


def test_the_same_attachment_gets_the_same_again(cluster: Cluster) -> None:
    node = cluster.node("n1")
    first = node.add("a")
    assert node.add("a") == first
    assert node.add("a", "eth1") != first
    node.check("a")


def test_networks_of_one_space_share_blocks_and_keep_their_own(cluster: Cluster) -> None:
    one, other = cluster.node("n1", "one"), cluster.node("n1", "other")
    a, b = one.add("a"), other.add("a")
    assert not set(a) & set(b)
    assert len(cluster.blocks()) == 2

    one.gc()
    assert reserved(cluster, "n1") == set(plain(b))
    other.delete("a")
    assert not reserved(cluster, "n1")


def test_spaces_are_independent(cluster: Cluster) -> None:
    one = cluster.node("n1", "one", blockSize=24)
    other = cluster.node("n1", "other", blockSize=24, space="tenant")
    assert one.add("a")[0] == other.add("b")[0]


def test_delete_needs_neither_store_nor_pool(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = cluster.node("n1")
    node.add("a")
    cluster.away(monkeypatch)
    node.conf["ipam"] = {"type": "cluster", "pool": "gone", "dataDir": node.conf["ipam"]["dataDir"]}

    node.delete("a")
    node.delete("a")

    assert not reserved(cluster, "n1")


def test_a_failed_add_leaves_no_address(cluster: Cluster) -> None:
    """The second range set has none."""
    few = [[{"subnet": "10.64.0.0/24"}], [{"subnet": "10.65.0.0/29", "rangeEnd": "10.65.0.2"}]]
    node = cluster.node("n1", ranges=few, blockSize=None)
    node.add("a")
    with pytest.raises(Failure, match=r"failed to allocate for range 1: .*all 1 blocks"):
        node.add("b")
    assert len(reserved(cluster, "n1")) == 2


def test_collection_keeps_the_valid(cluster: Cluster) -> None:
    node = cluster.node("n1")
    kept = node.add("a")
    node.add("b")
    node.gc(("a", "eth0"))
    assert reserved(cluster, "n1") == set(plain(kept))


def test_check(cluster: Cluster) -> None:
    node = cluster.node("n1")
    with pytest.raises(Failure, match="Failed to find address"):
        node.check("a")
    node.add("a")
    node.check("a")
    ledger = cluster.directory / "n1/.cni/default.blocks"
    ledger.unlink()
    with pytest.raises(Failure, match="has no longer"):
        node.check("a")


# --- requested addresses --------------------------------------------------------------------------


def test_a_requested_address_claims_its_block(cluster: Cluster) -> None:
    node = cluster.node("n1")
    asked = {"runtimeConfig": {"ips": ["10.64.0.77", "fd00:64::beef"]}}
    assert plain(node.add("a", **asked)) == ["10.64.0.77", "fd00:64::beef"]
    assert plain(node.add("a", **asked)) == ["10.64.0.77", "fd00:64::beef"]
    assert plain(node.add("b", env_args="IP=10.64.0.78"))[0] == "10.64.0.78"

    with pytest.raises(Failure, match="not available") as failure:
        node.add("c", **asked)
    assert "container a (eth0 of net) holds it" in failure.value.details


def test_a_requested_address_of_another_node_s_block(cluster: Cluster) -> None:
    cluster.node("n1").add("a", env_args="IP=10.64.0.77")
    with pytest.raises(Failure, match=r"block 10.64.0.72/29 belongs to node n1"):
        cluster.node("n2").add("b", env_args="IP=10.64.0.78")
    assert not reserved(cluster, "n2")


@pytest.mark.parametrize(
    ("address", "why"), [("10.64.0.1", "gateway"), ("10.64.0.9", "exclude"), ("192.0.2.1", "sets")]
)
def test_what_cannot_be_requested(cluster: Cluster, address: str, why: str) -> None:
    node = cluster.node("n1", exclude=["10.64.0.8/30"])
    with pytest.raises(Failure) as failure:
        node.add("a", env_args=f"IP={address}")
    assert why in failure.value.details
    assert not cluster.blocks()


def test_sticky(cluster: Cluster) -> None:
    node = cluster.node("n1", sticky=True)
    pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0"
    first = node.add("a", env_args=pod)
    node.delete("a")
    node.add("b")
    assert node.add("c", env_args=pod) == first


def test_the_longest_free_address_is_next(cluster: Cluster) -> None:
    node = cluster.node("n1", ranges=[[{"subnet": "10.64.0.0/29"}]], blockSize=29)
    got = {cid: node.add(cid)[0] for cid in "abcde"}
    for cid in "cae":
        node.delete(cid)
    assert [node.add(cid)[0] for cid in "xyz"] == [got["c"], got["a"], got["e"]]


def test_an_address_rests(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    node = cluster.node("n1", ranges=[[{"subnet": "10.64.0.0/29"}]], blockSize=29, cooldown=60)
    got = {cid: node.add(cid)[0] for cid in "abcde"}
    node.delete("b")
    with pytest.raises(Failure, match="are taken") as failure:
        node.add("x")
    assert "rests for 60 s" in failure.value.details

    clock = boot_time()
    for module in ("allocation", "plugin"):
        monkeypatch.setattr(f"cni.ipam.cluster.{module}.boot_time", lambda: clock + 61)
    assert node.add("x")[0] == got["b"]


def test_very_many_releases(cluster: Cluster) -> None:
    """The file of releases stays small, and what falls out of it is the longest free."""
    node = cluster.node("n1", ranges=[[{"subnet": "10.64.0.0/24"}]], blockSize=24)
    used = []
    for number in range(400):
        used += node.add(f"c{number}")
        node.delete(f"c{number}")
    assert len(set(used[:200])) == 200
    path = Path(node.conf["ipam"]["dataDir"]) / ".cni/default.freed"
    assert path.stat().st_size < 32 * 500


# --- the store is away, full, or says no ----------------------------------------------------------


def test_own_blocks_do_while_the_store_is_away(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = cluster.node("n1", ranges=[[{"subnet": "10.64.0.0/24"}]])
    node.add("c0")
    cluster.away(monkeypatch)
    node.call("STATUS")
    added, failure = until_it_fails(node)
    assert failure.code == 11
    assert "does not answer" in failure.msg
    assert 4 <= added <= 7

    with pytest.raises(Failure, match="no block can be claimed") as failed:
        node.call("STATUS")
    assert failed.value.code == 50
    node.delete("c0")
    node.call("STATUS")
    node.add("d")


def test_a_full_space_is_wanted(cluster: Cluster) -> None:
    ranges = [[{"subnet": "10.64.0.0/28"}]]
    cluster.node("n1", ranges=ranges, blockSize=28).add("a")
    other = cluster.node("n2", ranges=ranges, blockSize=28)
    with pytest.raises(Failure, match="all 1 blocks of the ranges in space default are taken"):
        other.add("b")
    assert [item.key for item in cluster.store.list("wanted/").items] == ["wanted/default/n2"]
    with pytest.raises(Failure, match="all 1 blocks are taken") as failure:
        other.call("STATUS")
    assert failure.value.code == 50
    cluster.node("n1", ranges=ranges, blockSize=28).call("STATUS")


def test_two_nodes_of_one_name(cluster: Cluster) -> None:
    cluster.node("n1").add("a")
    twin = cluster.node("n1", dataDir=str(cluster.directory / "elsewhere"))
    with pytest.raises(Failure, match="another node is called n1"):
        twin.add("b")


def test_a_copied_disk(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy runs under the same identity, in another boot."""
    node = cluster.node("n1")
    node.add("a")
    subprocess.run(["cp", "-a", cluster.directory / "n1", cluster.directory / "copy"], check=True)
    monkeypatch.setattr("cni.ipam.host_local.reservation.this_boot", lambda: b"\x02" * 16)
    copy = cluster.node("n1", dataDir=str(cluster.directory / "copy"))
    copy.add("x", env_args="IP=10.64.0.200")  # it registers: it cannot know yet
    monkeypatch.undo()
    with pytest.raises(Failure, match="another machine uses the identity of node n1"):
        force_registration(cluster, node)


def force_registration(cluster: Cluster, node: Ipam) -> None:
    """The renewal that comes with time."""
    path = Path(node.conf["ipam"]["dataDir"]) / ".cni/registered"
    before = json.loads(path.read_text())
    for entry in before.values():
        entry["timeout"] = 1
    path.write_text(json.dumps(before))
    node.add("renewing", env_args="IP=10.64.0.216")


def test_a_node_that_was_renamed(cluster: Cluster) -> None:
    cluster.node("n1").add("a")
    renamed = cluster.node("n2", dataDir=str(cluster.directory / "n1"))
    renamed.add("b")  # of its own blocks
    with pytest.raises(Failure, match="this node is n1 in the store, not n2"):
        renamed.add("c", env_args="IP=10.64.0.200")


def test_no_store(cluster: Cluster) -> None:
    with pytest.raises(Failure, match="no `store` is configured"):
        cluster.node("n1", store=None).add("a")


def test_settings_of_the_node(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cluster.directory / "cluster.json"
    keys = {"store": {"type": "directory", "path": str(cluster.path)}, "nodeName": "of-file"}
    path.write_text(json.dumps(keys | {"dataDir": str(cluster.directory / "data")}))
    monkeypatch.setattr(settings, "NODE_FILE", str(path))
    node = cluster.node("", store=None, nodeName=None, dataDir=None)
    node.add("a")
    assert len(cluster.blocks("of-file")) == 2
    node.delete("a")

    path.write_text("{")
    with pytest.raises(Failure, match=str(path)):
        node.delete("a")


# --- pools in the store ---------------------------------------------------------------------------


def test_a_pool_by_name(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    node = cluster.node("n1", ranges=None, blockSize=None, blockSizeV6=None, pool="storage")
    with pytest.raises(Failure, match="there is no pool storage in"):
        node.add("a")
    pool = {"ranges": [[{"subnet": "10.9.0.0/28"}]], "blockSize": 30, "dns": {"domain": "p.test"}}
    item = cluster.store.create("pools/storage", pool)
    result = node.call("ADD", "a")
    assert result["ips"][0]["address"].startswith("10.9.0.")
    assert result["dns"] == {"domain": "p.test"}

    # It is full, and grows.
    added, failure = until_it_fails(node)
    assert added == 12
    assert "of pool storage are taken" in failure.msg
    larger = [[{"subnet": "10.9.0.0/28"}, {"subnet": "10.9.1.0/28"}]]
    cluster.store.update(item, {**pool, "ranges": larger})
    assert node.add("d")[0].startswith("10.9.1.")

    cluster.away(monkeypatch)
    node.add("e")


def test_a_broken_pool_is_named(cluster: Cluster) -> None:
    cluster.store.create("pools/broken", {"ranges": [[{"subnet": "10.9.0.0/24"}]], "blockSize": 20})
    node = cluster.node("n1", ranges=None, blockSize=None, blockSizeV6=None, pool="broken")
    with pytest.raises(Failure, match=r"pool broken: blockSize 20 does not divide 10.9.0.0/24"):
        node.add("a")


@pytest.mark.parametrize(
    ("ipam", "message"),
    [
        ({"ranges": [[{"subnet": "10.64.0.0/25"}]]}, "10.64.0.0/25 overlaps 10.64.0.0/24"),
        ({"blockSize": 28}, "divided into /29 blocks already, not /28"),
        ({"blockSize": 33}, "invalid blockSize 33"),
        ({"blockSizeV6": 60}, "blockSizeV6 60 does not divide fd00:64::/64"),
        ({"reserve": -1}, "invalid reserve -1"),
        ({"cooldown": 1201}, "invalid cooldown 1201"),
        ({"space": "../x"}, "invalid space '../x'"),
        ({"space": "store"}, "invalid space 'store'"),
        ({"pool": "p"}, "ipam.pool p and ipam.ranges exclude each other"),
        ({"ranges": []}, "no IP ranges specified"),
        ({"exclude": ["10.64.0.0/24"]}, "range set 0 has no address to hand out"),
        ({"nodeName": "a b"}, "invalid nodeName 'a b'"),
        ({"nodeTimeout": -1}, "invalid nodeTimeout -1"),
        ({"store": {"type": "zk"}}, "store.type: 'zk' is unknown"),
        ({"store": {"type": "directory", "path": "x"}}, "store.path"),
        ({"store": {"type": "directory", "pth": "/x"}}, "store.pth: unknown key"),
        ({"dataDir": 7}, "dataDir"),
        ({"store": "etcd"}, "store"),
    ],
)
def test_bad_configuration(cluster: Cluster, ipam: dict[str, Any], message: str) -> None:
    cluster.node("n1").add("a")
    with pytest.raises(Failure, match=message.replace("(", r"\(")):
        cluster.node("n2", **ipam).add("b")
    assert not reserved(cluster, "n2")


# --- imports --------------------------------------------------------------------------------------


def test_an_add_from_own_blocks_loads_no_engine(cluster: Cluster) -> None:
    node = cluster.node("n1")
    node.add("a")
    code = """
import json, os, sys
from cni import dispatch
data = sys.stdin.buffer.read()
code, output = dispatch.answer("cluster", dict(os.environ), lambda: data)
print(json.dumps([code, sorted(m for m in sys.modules if m.startswith("cni.ipam"))]))
"""
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "b",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/nosuch",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_CLUSTER_CONF": settings.NODE_FILE,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(node.conf).encode(),
        env=env,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    exit_code, modules = json.loads(done.stdout)
    assert exit_code == 0
    assert "cni.ipam.cluster.allocation" in modules
    assert not [each for each in modules if "cluster.store" in each or "cluster.claim" in each]
    assert shortage.__name__ not in modules
