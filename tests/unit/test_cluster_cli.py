"""`cni ipam` of a cluster: what it shows, and what it does to the store."""

from __future__ import annotations

import json
import os
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.cli import main
from cni.ipam.cluster import rounds, session, survey
from cni.ipam.cluster.node import Node, Space
from cni.store import settings
from cni.store.directory import DirectoryStore
from cni.store.node_files import boot_time

from .ipam_node import Failure, Ipam

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.store.interface import Item

POOL = {"ranges": [[{"subnet": "10.9.0.0/26"}]], "blockSize": 29, "exclude": ["10.9.0.40"]}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a pool; commands run on node n1."""
    here = {
        "store": {"type": "directory", "path": str(tmp_path / "store")},
        "nodeName": "n1",
        "dataDir": str(tmp_path / "n1"),
    }
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(here))
    monkeypatch.setattr(settings, "NODE_FILE", str(path))
    monkeypatch.setenv("NETCONFPATH", str(tmp_path / "net.d"))
    store(tmp_path).create("pools/storage", POOL)
    return tmp_path


def store(directory: Path) -> DirectoryStore:
    return DirectoryStore(str(directory / "store"), sync=False)


def node(directory: Path, name: str = "n1") -> Ipam:
    ipam = {"type": "cluster", "pool": "storage", "nodeName": name}
    conf = {**ipam, "dataDir": str(directory / name)}
    return Ipam("cluster", {"cniVersion": "1.1.0", "name": "net", "ipam": conf})


@pytest.fixture
def shown(capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def run(*arguments: str, code: int = 0) -> Any:
        capfd.readouterr()
        assert main(["ipam", *arguments, "-o", "json"]) == code, capfd.readouterr().err
        out, err = capfd.readouterr()
        return json.loads(out) if code == 0 else json.loads(err or out)

    return run


def test_pools_and_blocks(cluster: Path, shown: Callable[..., Any]) -> None:
    node(cluster).add("a")
    node(cluster, "n2").add("b")

    (pool,) = shown("pools")
    assert (pool["pool"], pool["blocks"], pool["taken"]) == ("storage", 8, 2)
    listed = shown("blocks")
    assert sorted(each["node"] for each in listed) == ["n1", "n2"]
    assert [each.get("used") for each in listed if each["node"] == "n1"] == [1]
    assert shown("blocks", "--node", "n2") == [each for each in listed if each["node"] == "n2"]


def test_whose_an_address_is(cluster: Path, shown: Callable[..., Any]) -> None:
    mine = node(cluster).add("a")[0].partition("/")[0]
    other = node(cluster, "n2").add("b")[0].partition("/")[0]

    (here,) = shown("show", mine)
    assert (here["node"], here["containerID"], here["ifname"]) == ("n1", "a", "eth0")
    (there,) = shown("show", other)
    assert there["node"] == "n2"
    assert "containerID" not in there
    assert shown("show", "192.0.2.1", code=3)


def test_a_cordoned_node_claims_no_more_and_gives_back(
    cluster: Path, shown: Callable[..., Any]
) -> None:
    its = node(cluster)
    its.add("a")
    shown("cordon", "n1")
    its.delete("a")
    shown("sync")
    assert shown("blocks") == []
    with pytest.raises(Failure, match="is cordoned"):
        its.add("b")

    shown("cordon", "n1", "--undo")
    its.add("b")
    assert shown("cordon", "nowhere", code=3)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A minute passes."""
    passed = [0.0]
    monkeypatch.setattr(session, "boot_time", lambda: boot_time() + passed[0])

    def wait() -> None:
        passed[0] += 61

    return wait


def test_a_cordon_counts_after_a_minute_without_a_server(
    cluster: Path, shown: Callable[..., Any], later: Callable[[], None]
) -> None:
    """Nobody renews for the node, so that its next claim has to ask."""
    its = node(cluster)
    its.add("a")
    shown("cordon", "n1")
    later()
    with pytest.raises(Failure, match="is cordoned"):
        its.add("b", env_args="IP=10.9.0.50")
    its.add("b")  # of its own block
    shown("cordon", "n1", "--undo")
    later()
    its.add("c", env_args="IP=10.9.0.50")


def test_a_node_that_is_forgotten_learns_it_with_a_claim(
    cluster: Path, shown: Callable[..., Any], later: Callable[[], None]
) -> None:
    its = node(cluster)
    its.add("a")
    uid = {item.value["uid"] for item in store(cluster).list("blocks/").items}
    shown("forget", "n1", "--force")
    later()
    its.add("b", env_args="IP=10.9.0.50")
    assert not uid & {item.value["uid"] for item in store(cluster).list("blocks/").items}


def test_a_wrong_pool_does_not_hide_the_others(
    cluster: Path, shown: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    node(cluster).add("a")
    store(cluster).create("pools/coarse", {"subnet": "10.10.0.0/24", "blockSize": 20})
    store(cluster).create("pools/over", {"subnet": "10.9.0.32/27", "blockSize": 29, "blokSize": 1})
    assert main(["ipam", "pools", "-o", "json"]) == 1
    out, err = capfd.readouterr()
    assert [each["pool"] for each in json.loads(out)] == ["over", "storage"]
    assert "pool coarse: blockSize 20 does not divide 10.10.0.0/24" in err
    text = failing(shown)
    for part in (
        "pool coarse: blockSize 20 does not divide",
        "pool over: blokSize is no key of a pool",
        "pool over: subnet 10.9.0.32/27 overlaps 10.9.0.0/26",
    ):
        assert part in text
    assert "pool storage" not in text


def test_only_a_space_that_there_is_can_be_accepted(
    cluster: Path, shown: Callable[..., Any]
) -> None:
    node(cluster).add("a")
    assert "there is no address space nosuch" in str(shown("accept", "nosuch", code=3))
    shown("accept", "default")
    assert [item.key for item in store(cluster).list("spaces/").items] == ["spaces/default"]


def test_a_forgotten_node_begins_anew(cluster: Path, shown: Callable[..., Any]) -> None:
    its = node(cluster)
    its.add("a")
    assert shown("forget", "n1", code=5)
    for name in ("n1", "n2"):
        store(cluster).create(f"endpoints/over/{name}", {"node": name, "uid": "any"})
    assert len(shown("forget", "n1", "--force")["freed"]) == 1
    assert [item.key for item in store(cluster).list("endpoints/").items] == ["endpoints/over/n2"]
    assert shown("blocks") == []
    node(cluster, "n2").add("b", env_args="IP=10.9.0.50")

    # It has not noticed, and does so with its next word to the store.
    shown("sync")
    blocks = {each["block"]: each["node"] for each in shown("blocks")}
    assert blocks["10.9.0.48/29"] == "n2"
    assert set(blocks.values()) == {"n1", "n2"}
    its.check("a")


def test_claiming_ahead_and_giving_back(cluster: Path, shown: Callable[..., Any]) -> None:
    its = node(cluster)
    for number in range(3):
        its.add(f"c{number}")
    shown("sync")
    free = 8 * len(shown("blocks")) - 3
    assert free >= 8
    for number in range(3):
        its.delete(f"c{number}")
    shown("sync", "--release")
    assert shown("blocks") == []
    assert os.listdir(cluster / "store" / "items")


def test_split(cluster: Path, shown: Callable[..., Any]) -> None:
    parts = shown("split", "storage", "3", "--write")
    assert list(parts) == ["storage-1", "storage-2", "storage-3"]
    pools = {each["pool"]: each["blocks"] for each in shown("pools")}
    assert pools.pop("storage") == 8
    assert sum(pools.values()) == 8
    assert max(pools.values()) - min(pools.values()) <= 1

    whole = set(addresses(cluster, "storage", "n1"))
    apart = [set(addresses(cluster, name, name)) for name in parts]
    assert set().union(*apart) == whole
    assert sum(map(len, apart)) == len(whole)
    assert shown("split", "storage", "3", "--write", code=5)
    assert shown("split", "storage", "9", code=5)


def addresses(directory: Path, pool: str, name: str) -> list[str]:
    """All that the pool hands out, in a store of its own."""
    ipam = store(directory).read(f"pools/{pool}")
    assert ipam is not None
    own = {"type": "directory", "path": str(directory / f"store-{name}")}
    conf = {**ipam.value, "type": "cluster", "store": own, "dataDir": str(directory / f"d-{name}")}
    plugin = Ipam("cluster", {"cniVersion": "1.1.0", "name": "n", "ipam": conf})
    found = []
    while True:
        try:
            found += plugin.add(f"c{len(found)}")
        except Failure as failure:
            assert "are taken" in failure.msg  # noqa: PT017 the end
            return found


def test_nothing_is_configured(cluster: Path, shown: Callable[..., Any]) -> None:
    (cluster / "cluster.json").unlink()
    assert "store" in json.dumps(shown("pools", code=1))


def test_check_finds_what_does_not_fit(cluster: Path, shown: Callable[..., Any]) -> None:
    its = node(cluster)
    address = its.add("a")[0].partition("/")[0]
    assert shown("check", "--cluster") == {"problems": []}

    (block,) = shown("blocks")
    item = stored(cluster, block["block"])
    store(cluster).delete(item)
    assert "lacks this node's block" in failing(shown)
    shown("sync")
    item = stored(cluster, block["block"])
    mine = item.value
    store(cluster).update(item, {**mine, "node": "n7", "uid": "other"})
    found = failing(shown)
    assert f"block {block['block']} is used here, but is of node n7" in found
    assert "of node n7, which the store does not know" in found
    item = stored(cluster, block["block"])
    store(cluster).update(item, mine)
    # a reservation outside of the node's blocks, and one that another host's use has caused
    directory = cluster / "n1" / "default"
    (directory / "10.9.0.62").write_text("x\r\neth0\r\nnet")
    (directory / "10.9.0.61").write_text("conflict\r\n02:00:00:00:00:01\r\nnet")
    found = failing(shown)
    assert "10.9.0.62 of container x (eth0 of net) is of no block" in found
    assert "10.9.0.61 is set aside: 02:00:00:00:00:01 on the link has it" in found
    for name in ("10.9.0.62", "10.9.0.61"):
        (directory / name).unlink()
    # blocks that share addresses, of no subnet, and what is held for a node
    value = {"node": "n1", "uid": "whereabouts", "boot": "", "seq": 0}
    store(cluster).create(f"blocks/default/{address}-32", value)
    store(cluster).create("blocks/default/10.200.0.0-29", {**mine, "uid": "z"})
    found = failing(shown)
    assert f"and {address}/32 of n1 share addresses" in found
    assert f"block {address}/32 is held for n1" in found
    assert "block 10.200.0.0/29 of n1 is of no subnet that the space has" in found


def test_check_says_whether_a_server_renews(
    cluster: Path, shown: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cluster / "cluster.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "nodeTimeout": 60}))
    node(cluster).add("a")
    assert "no server renews for n1" in failing(shown)
    env = {"CNI_CLUSTER_CONF": str(path)}
    _, problems = rounds.once(env, print, pace=rounds.Pace())
    assert not problems
    assert shown("check", "--cluster") == {"problems": []}
    now = boot_time()
    monkeypatch.setattr("cni.ipam.cluster.survey.boot_time", lambda: now + 61)
    assert "n1 was not renewed in the store for 60 s" in failing(shown)


def stored(cluster: Path, block: str) -> Item:
    item = store(cluster).read("blocks/default/" + block.replace("/", "-"))
    assert item is not None
    return item


def failing(shown: Callable[..., Any]) -> str:
    """What `check --cluster` finds, with exit code 1."""
    return json.dumps(shown("check", "--cluster", code=1))


def test_metrics_of_a_node(
    cluster: Path, shown: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    its = node(cluster)
    for name in "ab":
        its.add(name)
    (cluster / "n1" / "default" / "10.9.0.61").write_text("conflict\r\n02:00:00:00:00:01\r\nnet")
    capfd.readouterr()
    assert main(["metrics"]) == 0
    out = capfd.readouterr().out
    own = next(each for each in shown("blocks"))
    size = 8 - sum(each in _hosts(own["block"]) for each in ("10.9.0.0", "10.9.0.1", "10.9.0.40"))
    size -= "10.9.0.63" in _hosts(own["block"])
    assert 'cni_cluster_addresses{space="default",state="used"} 2' in out
    assert 'cni_cluster_addresses{space="default",state="conflict"} 1' in out
    aside = int("10.9.0.61" in _hosts(own["block"]))
    assert f'cni_cluster_addresses{{space="default",state="free"}} {size - 2 - aside}' in out
    assert 'cni_cluster_blocks{space="default",state="own"} 1' in out


def _hosts(block: str) -> set[str]:
    return {str(each) for each in ip_network(block)}


def test_a_reservation_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """As for host-local, its address counts as taken."""
    space = Space(Node(str(tmp_path), "n"), "default")
    directory = Path(space.location.path)
    directory.mkdir(parents=True)
    os.mkfifo(directory / "10.1.0.2")
    (directory / "10.1.0.3").write_bytes(b"x" * 5000)
    (directory / "10.1.0.4").write_bytes(b"c1\r\neth0\n")
    found = survey.reserved(space)
    assert [found[bytes((10, 1, 0, last))] for last in (2, 3, 4)] == [b"", b"", b"c1\r\neth0"]
