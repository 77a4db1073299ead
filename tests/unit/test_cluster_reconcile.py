"""Whose blocks become free: only of nodes that are proven to be gone, and bounded in a round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni.cli import main
from cni.ipam.cluster import reconcile
from cni.ipam.cluster.kubernetes_nodes import NodeObject, Nodes, Pod
from cni.ipam.cluster.reconcile import Misplaced, Reconciler, Report
from cni.store import kubernetes
from cni.store.directory import DirectoryStore
from cni.store.interface import Item, Refused, Store
from tests.harness.admission import User
from tests.harness.apiserver import ApiServer, serving

CLUSTER = Path(__file__).resolve().parents[2] / "deploy" / "cluster"
MANIFESTS = [CLUSTER / name for name in ("crds.yaml", "rbac.yaml", "policy.yaml")]


class Cluster:
    """Nodes that there are, by name; `returns` come back just before the last look."""

    def __init__(self, *names: str) -> None:
        self.names = {name: NodeObject(name, f"uid-{name}", True) for name in names}
        self.returns: set[str] = set()

    def all(self) -> dict[str, NodeObject]:
        return dict(self.names)

    def find(self, name: str) -> NodeObject | None:
        found = self.names.get(name)
        return NodeObject(name, "anew", True) if name in self.returns else found


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path / "store"))


def join(
    store: Store, name: str, blocks: int = 2, timeout: int = 0, uid: str = "", idle: bool = True
) -> None:
    """What a node has in the store."""
    uid = uid or f"id-{name}"
    value = {"uid": uid, "boot": "b", "beat": 1, "timeout": timeout, "cordoned": False}
    value["idle"] = idle
    if store.read(f"nodes/{name}") is None:
        store.create(f"nodes/{name}", value)
    number = len(store.list("blocks/").items)
    for index in range(number, number + blocks):
        claim = {"node": name, "uid": uid, "boot": "b", "seq": index}
        store.create(f"blocks/default/10.64.{index}.0-26", claim)


def beat(store: Store, name: str) -> None:
    item = store.read(f"nodes/{name}")
    assert item is not None
    store.update(item, {**item.value, "beat": item.value["beat"] + 1})


def round_at(store: Store, presence: Any, now: float, limit: int = 100) -> Report:
    return Reconciler(store, presence, now, settle=60, limit=limit).run()


def holders(store: Store) -> list[str]:
    return [item.value["node"] for item in store.list("blocks/").items]


def test_a_node_that_is_gone_in_two_rounds_gives_up_its_blocks(store: Store) -> None:
    join(store, "n1")
    join(store, "n2")
    store.create("wanted/default/n2", {"uid": "id-n2", "since": 1})
    cluster = Cluster("n1", "n2")
    assert round_at(store, cluster, 1000) == Report([], [], [], [])
    del cluster.names["n2"]
    assert round_at(store, cluster, 2000).suspects == ["n2"]
    assert round_at(store, cluster, 2059).suspects == ["n2"]
    assert holders(store) == ["n1", "n1", "n2", "n2"]
    report = round_at(store, cluster, 2060)
    assert report.gone == ["n2"]
    assert report.freed == ["blocks/default/10.64.2.0-26", "blocks/default/10.64.3.0-26"]
    assert holders(store) == ["n1", "n1"]
    assert [item.key for item in store.list("").items if "n2" in item.key] == ["lost/id-n2"]


def publish(store: Store, name: str, uid: str = "") -> None:
    """Where a node is reached in an overlay network."""
    value = {"node": name, "uid": uid or f"id-{name}", "vni": 1, "port": 4789, "addresses": []}
    store.create(f"endpoints/over/{name}", value)


def test_the_endpoints_of_a_node_that_is_gone_go_too(store: Store) -> None:
    """Also of one without blocks; never those of the machine that has its name by now."""
    join(store, "n1", timeout=30)
    join(store, "n2", blocks=0, timeout=30)
    join(store, "n3", timeout=30)
    for name in ("n1", "n2"):
        publish(store, name)
    publish(store, "n3", uid="another")
    publish(store, "n4")  # without a record nobody knows whether it lives
    round_at(store, None, 1000)
    beat(store, "n1")
    assert round_at(store, None, 2000).gone == ["n2", "n3"]
    left = [item.key.rpartition("/")[2] for item in store.list("endpoints/").items]
    assert left == ["n1", "n3", "n4"]


def test_the_endpoints_of_a_deleted_node_object_go_too(store: Store) -> None:
    publish(store, "n1")
    publish(store, "n2")
    cluster = Cluster("n1", "n2")
    round_at(store, cluster, 1000)
    del cluster.names["n2"]
    round_at(store, cluster, 2000)
    assert round_at(store, cluster, 3000).gone == ["n2"]
    assert [item.key for item in store.list("endpoints/").items] == ["endpoints/over/n1"]


def test_not_ready_is_alive(store: Store) -> None:
    join(store, "n1")
    cluster = Cluster("n1")
    cluster.names["n1"] = NodeObject("n1", "u", None)
    for now in (1000, 2000, 90_000):
        assert round_at(store, cluster, now) == Report([], [], [], [])


def test_a_round_in_which_all_is_well_writes_nothing(store: Store) -> None:
    join(store, "n1")
    round_at(store, Cluster("n1"), 1000)
    before = store.list("").items
    round_at(store, Cluster("n1"), 2000)
    assert store.list("").items == before


def test_a_name_that_was_never_a_nodes_is_not_gone(store: Store) -> None:
    """nodeName may be a host name, which is not the Node's name."""
    join(store, "host-1")
    for now in (1000, 2000, 3000):
        assert round_at(store, Cluster("n1"), now).unknown == ["host-1"]
    assert holders(store) == ["host-1", "host-1"]


@pytest.mark.parametrize("sign", ["beat", "back for a moment"])
def test_a_sign_of_life_begins_anew(store: Store, sign: str) -> None:
    join(store, "n1")
    cluster = Cluster("n1")
    round_at(store, cluster, 1000)
    node = cluster.names.pop("n1")
    round_at(store, cluster, 2000)
    if sign == "beat":
        beat(store, "n1")
    else:
        cluster.names["n1"] = node
        round_at(store, cluster, 2050)
        del cluster.names["n1"]
    assert round_at(store, cluster, 2100).suspects == ["n1"]
    assert holders(store) == ["n1", "n1"]
    assert round_at(store, cluster, 2200).gone == ["n1"]


def test_the_last_look_counts(store: Store) -> None:
    join(store, "n1")
    cluster = Cluster("n1")
    round_at(store, cluster, 1000)
    del cluster.names["n1"]
    round_at(store, cluster, 2000)
    cluster.returns.add("n1")
    assert round_at(store, cluster, 3000) == Report([], [], [], [])
    item = store.read("nodes/n1")
    assert item is not None
    assert "lost" not in item.value


def test_a_node_that_renews_during_the_last_look_is_alive(store: Store) -> None:
    join(store, "n1")
    cluster = Cluster("n1")
    round_at(store, cluster, 1000)
    del cluster.names["n1"]
    round_at(store, cluster, 2000)

    class Late(Cluster):
        def find(self, name: str) -> NodeObject | None:
            beat(store, name)
            return None

    assert round_at(store, Late(), 3000).gone == []
    assert holders(store) == ["n1", "n1"]


def test_blocks_of_another_machine_of_that_name_stay(store: Store) -> None:
    """It was installed anew: its blocks name another id than its record."""
    join(store, "n1")
    join(store, "n1", uid="other")
    cluster = Cluster("n1")
    round_at(store, cluster, 1000)
    del cluster.names["n1"]
    round_at(store, cluster, 2000)
    round_at(store, cluster, 3000)
    assert [item.value["uid"] for item in store.list("blocks/").items] == ["other", "other"]


def test_a_round_is_bounded_and_the_next_one_goes_on(store: Store) -> None:
    join(store, "n1", blocks=5)
    cluster = Cluster("n1")
    round_at(store, cluster, 1000)
    del cluster.names["n1"]
    round_at(store, cluster, 2000)
    freed = [len(round_at(store, cluster, 3000 + n, limit=2).freed) for n in range(4)]
    assert freed == [2, 2, 1, 0]
    assert store.list("nodes/").items == []


def test_a_mark_is_there_before_the_first_block_goes(store: Store) -> None:
    """So that a node that comes back meanwhile takes itself for another one."""
    join(store, "n1", blocks=3)
    cluster = Cluster("n1")
    round_at(store, cluster, 1000)
    del cluster.names["n1"]
    round_at(store, cluster, 2000)
    round_at(store, cluster, 3000, limit=1)
    item = store.read("nodes/n1")
    assert item is not None
    assert item.value["lost"] is True
    assert holders(store) == ["n1", "n1"]


@pytest.mark.parametrize("comes_back", [False, True])
def test_what_a_lost_node_claims_late_is_freed(store: Store, comes_back: bool) -> None:
    """Its request was under way; or it came back as another one, and a part was not freed yet."""
    join(store, "n2")
    join(store, "n1", timeout=30)
    round_at(store, None, 1000)
    assert round_at(store, None, 2000).gone == ["n1"]
    if comes_back:
        join(store, "n1", uid="anew", timeout=30)
    store.create("blocks/default/10.64.99.0-26", {"node": "n1", "uid": "id-n1", "boot": "b"})
    report = round_at(store, None, 2060)
    assert report.freed == ["blocks/default/10.64.99.0-26"]
    assert holders(store) == ["n2", "n2", *(["n1", "n1"] if comes_back else [])]
    assert (store.read("nodes/n1") is not None) == comes_back
    # It is not remembered for ever, nor is another node's block of unknown age taken.
    store.create("blocks/default/10.64.98.0-26", {"node": "n3", "uid": "id-n3", "boot": "b"})
    round_at(store, None, 2060 + 86400)
    assert store.read("lost/id-n1") is None
    assert "n3" in holders(store)


def test_what_late_requests_of_a_lost_node_made_is_reported(store: Store) -> None:
    """Its record without a timeout, and a block: no time frees them, but an operator may."""
    join(store, "n1", timeout=30)
    round_at(store, None, 1000)
    assert round_at(store, None, 1060).gone == ["n1"]
    join(store, "n1", blocks=1, idle=False)
    join(store, "n2", blocks=1, idle=False)
    for now in (1120, 1180):
        report = round_at(store, None, now)
        assert (report.gone, report.freed, report.silent) == ([], [], ("n1",))
    item = store.read("nodes/n1")
    assert item is not None
    store.update(item, {**item.value, "lost": True})  # `cni ipam forget n1 --force`
    assert round_at(store, None, 1240).gone == ["n1"]
    assert holders(store) == ["n2"]


def test_without_a_cluster_an_idle_node_is_gone_after_a_time(store: Store) -> None:
    join(store, "idle", timeout=100)
    join(store, "untimed")
    for now in (1000, 1100, 1199):
        assert round_at(store, None, now).freed == []
    assert round_at(store, None, 1200).gone == ["idle"]
    assert round_at(store, None, 90_000).gone == []
    assert holders(store) == ["untimed", "untimed"]


def test_a_silent_node_that_may_have_containers_keeps_its_blocks(store: Store) -> None:
    """Its server may hang while they run. A record of an earlier version says nothing of that."""
    join(store, "busy", timeout=100, idle=False)
    join(store, "old", timeout=100)
    item = store.read("nodes/old")
    assert item is not None
    del item.value["idle"]
    store.update(item, item.value)
    assert round_at(store, None, 1000) == Report([], [], [], [])  # a sign of life
    assert round_at(store, None, 1100) == Report([], [], ["busy", "old"], [])
    for now in (1200, 90_000):
        assert round_at(store, None, now) == Report([], [], [], [], silent=("busy", "old"))
    beat(store, "busy")
    assert round_at(store, None, 90_060) == Report([], [], [], [], silent=("old",))
    assert holders(store) == ["busy", "busy", "old", "old"]


@pytest.mark.parametrize("presence", [None, Cluster("other")], ids=["by time", "by objects"])
def test_a_clock_that_was_ahead_does_not_keep_blocks_for_years(
    store: Store, presence: Cluster | None
) -> None:
    """The store's clock is set back: what was seen before it would be ten years in the future."""
    join(store, "n1", timeout=100)
    year = 365 * 86400
    if presence is not None:
        round_at(store, Cluster("n1", "other"), 10 * year)
    round_at(store, presence, 10 * year)
    for now in (1000, 1030):
        assert round_at(store, presence, now).gone == []
    assert round_at(store, presence, 1230).gone == ["n1"]


def test_a_clock_that_jumps_ahead_frees_nothing_that_is_used(store: Store) -> None:
    """At the worst it frees an idle node's blocks, from which that allocates nothing."""
    join(store, "busy", timeout=100, idle=False)
    join(store, "idle", timeout=100)
    round_at(store, None, 1000)
    assert round_at(store, None, 10 * 365 * 86400).gone == ["idle"]
    assert holders(store) == ["busy", "busy"]


def test_sightings_of_nodes_with_containers_are_written_seldom(store: Store) -> None:
    """All servers renew all the time: the store must not have as many changes again."""
    join(store, "busy", timeout=100, idle=False)
    join(store, "idle", timeout=100)
    written: dict[str, set[str]] = {"busy": set(), "idle": set()}
    for now in range(1000, 3000, 50):
        for name in written:
            beat(store, name)
        assert round_at(store, None, now) == Report([], [], [], [])
        for name, versions in written.items():
            sighting = store.read(f"seen/{name}")
            assert sighting is not None
            versions.add(sighting.version)
    assert len(written["idle"]) == 40
    assert len(written["busy"]) == 10
    # It stops: it is reported no sooner than after 200 seconds, and after 400 at the latest.
    for now in (3000, 3199):
        assert "busy" not in round_at(store, None, now).silent
    assert "busy" in round_at(store, None, 3399).silent


def test_a_sighting_counts_anew_when_a_busy_node_becomes_idle(store: Store) -> None:
    """What was seen of it when it had containers is old, and proves nothing."""
    join(store, "n1", timeout=100, idle=False)
    round_at(store, None, 1000)
    beat(store, "n1")
    round_at(store, None, 1050)
    item = store.read("nodes/n1")
    assert item is not None
    store.update(item, {**item.value, "idle": True})
    for now in (1150, 1201, 1349):
        assert round_at(store, None, now).gone == []
    assert round_at(store, None, 1350).gone == ["n1"]


def test_what_a_restored_store_says_of_idle_nodes_is_old(store: Store) -> None:
    """They may have containers since: until it is accepted, nothing is freed by time."""
    join(store, "n1", timeout=30)
    store.create("spaces/default", {"layout": {}, "store": "before the restore"})
    for now in (1000, 2000):
        assert round_at(store, None, now).gone == []
    item = store.read("spaces/default")
    assert item is not None
    store.update(item, {"layout": {}, "store": store.identity()})
    assert round_at(store, None, 3000).gone == ["n1"]


def test_one_at_a_time(store: Store) -> None:
    held = reconcile.lock(store, 1000)
    assert held is not None
    assert reconcile.lock(store, 1050) is None
    late = reconcile.lock(store, 1200)  # the first was killed
    assert late is not None
    reconcile.unlock(store, held)
    assert reconcile.lock(store, 1201) is None
    reconcile.unlock(store, late)
    assert reconcile.lock(store, 1202) is not None


def test_a_lock_of_a_wrong_clock_is_not_for_ever(store: Store) -> None:
    assert reconcile.lock(store, 9_000_000_000) is not None
    assert reconcile.lock(store, 1000) is not None


def test_pods_whose_addresses_are_of_no_block_of_their_node() -> None:
    def block(word: str, node: str) -> Item:
        return Item(f"blocks/default/{word}", {"node": node}, "1")

    items = [
        block("10.64.0.0-26", "n1"),
        block("10.64.0.64-26", "n2"),
        block("fd00-0064-0000-0000-0000-0000-0000-0000-122", "n1"),
        block("none", "n1"),
    ]
    pods = [
        Pod("d", "fine", "n1", ("10.64.0.5", "fd00:64::5")),
        Pod("d", "elsewhere", "n1", ("192.0.2.1",)),
        Pod("d", "other", "n1", ("10.64.0.70",)),
        Pod("d", "orphan", "n2", ("10.64.1.1", "fd00:64::5")),
    ]
    assert reconcile.misplaced(pods, items, ["10.64.0.0/16", "fd00:64::/64"]) == [
        Misplaced("d/other", "n1", "10.64.0.70", "n2"),
        Misplaced("d/orphan", "n2", "10.64.1.1", ""),
        Misplaced("d/orphan", "n2", "fd00:64::5", "n1"),
    ]


# --- the facts, of an API server ---


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    directory = tmp_path_factory.mktemp("api")
    with serving(directory, MANIFESTS) as api:
        api.tokens["r"] = User("system:serviceaccount:kube-system:cni-ipam-reconcile")
        (directory / "token").write_text("r")
        yield api


def connected(api: ApiServer) -> kubernetes.KubernetesStore:
    token = str(api.directory / "token")
    options = {"server": api.url, "caFile": str(api.ca), "tokenFile": token}
    return kubernetes.connect({"type": "kubernetes", **options})


def test_nodes_and_pods_of_an_api_server(api: ApiServer) -> None:
    store = connected(api)
    nodes = Nodes(store.api)
    for name, ready in (("a", "True"), ("b", "False"), ("c", "Unknown")):
        api.cluster.node(name, ready)
    assert {n: node.is_ready for n, node in nodes.all().items()} == {
        "a": True,
        "b": False,
        "c": None,
    }
    found = nodes.find("a")
    assert found is not None
    assert found.uid == api.cluster.objects["nodes", "", "a"]["metadata"]["uid"]
    assert nodes.find("z") is None
    api.cluster.pod("p", "a", "10.64.0.5", "fd00:64::5")
    api.cluster.pod("done", "a", "10.64.0.6", phase="Succeeded")
    api.cluster.pod("q", "b", "10.64.0.7")
    assert nodes.pods("a") == [Pod("default", "p", "a", ("10.64.0.5", "fd00:64::5"))]
    for number in range(600):
        api.cluster.node(f"m{number}")
    assert len(nodes.all()) == 603
    core = dict(api.cluster.resources)
    api.cluster.resources.pop(("", "v1", "nodes"))
    with pytest.raises(Refused, match="no Nodes"):
        nodes.find("a")  # no such path is not: no such Node
    api.cluster.resources = core
    store.close()


def test_a_round_on_an_api_server(api: ApiServer) -> None:
    api.reset()
    api.tokens["r"] = User("system:serviceaccount:kube-system:cni-ipam-reconcile")
    store = connected(api)
    api.cluster.node("n1")
    api.cluster.node("n2", "Unknown")
    join(store, "n1")
    join(store, "n2")
    held = reconcile.lock(store, 1000)
    assert held is not None
    nodes = Nodes(store.api)
    assert round_at(store, nodes, 1000) == Report([], [], [], [])
    api.cluster.remove("nodes", "n1")
    round_at(store, nodes, 2000)
    assert round_at(store, nodes, 3000).gone == ["n1"]
    assert holders(store) == ["n2", "n2"]
    reconcile.unlock(store, held)
    store.close()


# --- the command ---


def command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Any
) -> Any:
    """What a round prints as JSON."""
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({"store": store}))
    monkeypatch.setenv("CNI_CLUSTER_CONF", str(path))
    code = main(["ipam", "reconcile", "--settle", "0", "-o", "json"])
    printed = capfd.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def test_the_command_with_an_api_server(
    api: ApiServer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api.reset()
    api.tokens["r"] = User("system:serviceaccount:kube-system:cni-ipam-reconcile")
    token = str(api.directory / "token")
    where = {"type": "kubernetes", "server": api.url, "caFile": str(api.ca), "tokenFile": token}
    store = connected(api)
    api.cluster.node("n1")
    join(store, "n1")
    join(store, "n2")
    assert command(capfd, monkeypatch, tmp_path, where)["unknown"] == ["n2"]
    api.cluster.remove("nodes", "n1")
    assert command(capfd, monkeypatch, tmp_path, where)["suspects"] == ["n1"]
    report = command(capfd, monkeypatch, tmp_path, where)
    assert report["gone"] == ["n1"]
    assert len(report["freed"]) == 2
    assert holders(store) == ["n2", "n2"]
    reconcile.lock(store, store.clock() or 0)
    assert command(capfd, monkeypatch, tmp_path, where) == {"locked": True}
    store.close()
