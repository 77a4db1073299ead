"""What whereabouts has given is taken over while containers run: nothing is handed out twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni.cli import main
from cni.ipam.cluster import adopt, takeover, whereabouts
from cni.ipam.cluster.claim import Claims
from cni.ipam.cluster.node import Node, Space
from cni.protocol.address import parse_ip
from cni.protocol.errors import CNIError
from cni.store import settings
from cni.store.directory import DirectoryStore
from tests.harness.admission import NODE_CLAIM, User
from tests.harness.apiserver import ApiServer, serving

from .ipam_node import Failure, Ipam

Json = dict[str, Any]
CLUSTER = Path(__file__).resolve().parents[2] / "deploy" / "cluster"
MANIFESTS = [CLUSTER / name for name in ("crds.yaml", "rbac.yaml")]
ADMIN = User("admin", groups=("system:masters",))
RANGE = "10.1.0.0/28"


def pod(name: str, node: str, namespace: str = "default") -> Json:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": node},
    }


def pool(range_: str, allocations: dict[int, str], name: str = "", **more: Any) -> Json:
    """An IPPool: offset → "<container> <namespace/pod>"."""
    found = {}
    for offset, text in allocations.items():
        container, podref = text.split()
        found[str(offset)] = {"id": container, "podref": podref, "ifname": "net1"}
    metadata = {"name": name or range_.replace("/", "-").replace(":", "-")}
    return {"kind": "IPPool", "metadata": metadata, "spec": {"range": range_, "allocations": found}}


def reservation(name: str, container: str, podref: str) -> Json:
    spec = {"containerid": container, "podref": podref, "ifname": "net1"}
    return {"kind": "OverlappingRangeIPReservation", "metadata": {"name": name}, "spec": spec}


def slices(range_: str, size: str, given: dict[str, str], name: str = "") -> Json:
    allocations = [{"nodeName": node, "sliceRange": each} for each, node in given.items()]
    return {
        "kind": "NodeSlicePool",
        "metadata": {"name": name or range_.replace("/", "-")},
        "spec": {"range": range_, "sliceSize": size},
        "status": {"allocations": allocations},
    }


# --- what objects say -----------------------------------------------------------------------------


def said(*objects: Json) -> list[tuple[str, str, str, str]]:
    found = takeover.interpret(objects).allocations
    return [(each.space, each.address, each.container_id, each.node) for each in found]


def test_pools_and_reservations() -> None:
    pods = [pod("a", "n1"), pod("b", "n2"), pod("c", "n2", "other")]
    objects = [
        pool(RANGE, {1: "ca default/a", 14: "cb default/b"}),
        pool(RANGE, {1: "cc other/c"}, name="blue-10.1.0.0-28"),
        pool("fd00:1::/64", {5: "ca default/a", 6: "cx default/gone"}),
        reservation("10.1.0.1", "ca", "default/a"),  # of the pool's allocation
        reservation("10.1.0.9", "cb", "default/b"),  # that the pool has lost
        reservation("blue-10.1.0.2", "cc", "other/c"),
        reservation("fd00-1--7", "cb", "default/b"),
    ]
    assert said(*pods, *objects) == [
        ("blue", "10.1.0.1", "cc", "n2"),
        ("blue", "10.1.0.2", "cc", "n2"),
        ("default", "10.1.0.1", "ca", "n1"),
        ("default", "10.1.0.9", "cb", "n2"),
        ("default", "10.1.0.14", "cb", "n2"),
        ("default", "fd00:1::5", "ca", "n1"),
        ("default", "fd00:1::6", "cx", ""),
        ("default", "fd00:1::7", "cb", "n2"),
    ]
    layouts = takeover.interpret([*pods, *objects]).layouts
    assert layouts == {"default": {RANGE: 32, "fd00:1::/64": 128}, "blue": {RANGE: 32}}


def test_offsets_count_from_the_address_as_written() -> None:
    objects = pod("a", "n1"), pool("192.168.2.225/28", {0: "c default/a", 3: "d default/a"})
    assert [each[1] for each in said(*objects)] == ["192.168.2.225", "192.168.2.228"]


def test_defects_of_whereabouts_are_left_out() -> None:
    """An offset below the range came out as one near 2**64."""
    objects = pod("a", "n1"), pool(RANGE, {18446463705355360228: "c default/a", 2: "c default/a"})
    assert [each[1] for each in said(*objects)] == ["10.1.0.2"]


def test_slices_of_nodes() -> None:
    objects = [
        pod("a", "worker-1"),
        slices("10.2.0.0/24", "/28", {"10.2.0.0/28": "worker-1", "10.2.0.16/28": "w2",
                                      "10.2.0.32/28": ""}),
        pool("10.2.0.0/28", {3: "ca default/a"}, name="worker-1-10.2.0.0-28"),
        slices("10.3.0.0/24", "28", {"10.3.0.0/28": "w2"}, name="red-10.3.0.0-24"),
        pool("10.3.0.0/28", {4: "ca default/a"}, name="red-w2-10.3.0.0-28"),
    ]  # fmt: skip
    found = takeover.interpret(objects)
    assert found.layouts == {"default": {"10.2.0.0/24": 28}, "red": {"10.3.0.0/24": 28}}
    blocks = {str(b): node for b, node in found.slices["default"].items()}
    assert blocks == {"10.2.0.0/28": "worker-1", "10.2.0.16/28": "w2"}
    assert [(a.space, str(a.block)) for a in found.allocations] == [
        ("default", "10.2.0.0/28"),
        ("red", "10.3.0.0/28"),
    ]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (pool("10.1.0.0", {}), "invalid CIDR address"),
        (pool(RANGE, {1: "c default/a"}, name="other"), "does not end in its range"),
        (slices("10.2.0.0/24", "x", {}), "sliceSize is 'x'"),
        (slices("10.2.0.0/24", "/8", {}), "sliceSize is '/8'"),
        (reservation("nonsense", "c", "default/a"), "ends in no address"),
        ({"kind": "IPPool", "metadata": {"name": "10.1.0.0-28"},
          "spec": {"range": RANGE, "allocations": {"x": {}}}}, "'x' is no number"),
    ],
)  # fmt: skip
def test_what_is_odd_is_named(value: Json, why: str) -> None:
    with pytest.raises(CNIError, match=why) as raised:
        takeover.interpret([value])
    assert value["metadata"]["name"] in raised.value.msg
    assert raised.value.details


# --- taking over ----------------------------------------------------------------------------------


class Nodes:
    """Nodes with a store in a directory, and what the runtimes keep of their containers."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self._patch = monkeypatch

    @property
    def store(self) -> DirectoryStore:
        return DirectoryStore(str(self.directory / "store"), sync=False)

    def settings(self, name: str) -> Json:
        store = {"type": "directory", "path": str(self.directory / "store")}
        return {"store": store, "nodeName": name, "dataDir": str(self.directory / name)}

    def plugin(self, name: str, range_: str = RANGE, **keys: Any) -> Ipam:
        ipam = {"type": "whereabouts", "range": range_, **self.settings(name), **keys}
        return Ipam("whereabouts", {"cniVersion": "1.1.0", "name": "lan", "ipam": ipam})

    def cached(self, node: str, container: str, *addresses: str, ifname: str = "net1") -> None:
        results = self.directory / f"{node}-cache" / "results"
        results.mkdir(parents=True, exist_ok=True)
        value = {
            "kind": "cniCacheV1",
            "containerId": container,
            "config": "e30=",
            "ifName": ifname,
            "networkName": "lan",
            "netns": "/run/netns/gone",
            "cniArgs": [["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", f"pod-{container}"]],
            "result": {"cniVersion": "1.0.0", "ips": [{"address": a} for a in addresses]},
        }
        (results / f"lan-{container}-{ifname}").write_text(json.dumps(value))

    def command(self, node: str, *words: str) -> int:
        path = self.directory / f"{node}.json"
        if not path.exists():
            path.write_text(json.dumps(self.settings(node)))
        self._patch.setattr(settings, "NODE_FILE", str(path))
        self._patch.setenv("NETCONFPATH", str(self.directory / "net.d"))
        cache = str(self.directory / f"{node}-cache")
        caches = [] if words[0] == "pools" else ["--cache-dir", cache]
        return main(["ipam", *words, *caches, "-o", "json"])

    def blocks(self, space: str = "default") -> dict[str, str]:
        items = self.store.list(f"blocks/{space}/").items
        return {item.key.rpartition("/")[2]: str(item.value["uid"]) for item in items}

    def file(self, name: str, *objects: Json) -> str:
        path = self.directory / name
        path.write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": list(objects)}))
        return str(path)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.setattr(settings, "NODE_FILE", str(tmp_path / "none.json"))
    return Nodes(tmp_path, monkeypatch)


@pytest.fixture
def run(nodes: Nodes, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def run(node: str, *words: str, code: int = 0) -> Any:
        capfd.readouterr()
        found = nodes.command(node, *words)
        out, err = capfd.readouterr()
        assert found == code, out + err
        return json.loads(out if code == 0 else err or out)

    return run


PODS = [pod("pod-ca", "n1"), pod("pod-cb", "n2"), pod("pod-cc", "n1")]
GIVEN = pool(RANGE, {
    1: "ca default/pod-ca", 2: "cb default/pod-cb", 3: "cc default/pod-cc", 4: "x default/old",
})  # fmt: skip


def test_containers_keep_their_addresses_and_nobody_else_gets_them(
    nodes: Nodes, run: Callable[..., Any]
) -> None:
    dump = nodes.file("dump.json", *PODS, GIVEN)
    nodes.cached("n1", "ca", "10.1.0.1/28")
    nodes.cached("n1", "cc", "10.1.0.3/28")
    nodes.cached("n2", "cb", "10.1.0.2/28")

    dry = run("n1", "import", "whereabouts", dump, "--dry-run")
    assert nodes.blocks() == {}
    assert set(os.listdir(nodes.directory / "n1" / "default")) == {"lock"}
    first = run("n1", "import", "whereabouts", dump)
    assert {**dry, "dryRun": False} == first
    assert first["held"] == [f"default/10.1.0.{i}/32" for i in (1, 2, 3)]
    assert first["orphans"] == ["default/10.1.0.4"]
    assert first["node"]["taken"] == ["default/10.1.0.1/32", "default/10.1.0.3/32"]
    assert nodes.blocks()["10.1.0.2-32"] == takeover.HELD

    # Before n2 has taken over, no node gets an address that a container has.
    got = [nodes.plugin("n3").add(f"new{i}")[0].partition("/")[0] for i in range(11)]
    assert not {"10.1.0.1", "10.1.0.2", "10.1.0.3"} & set(got)
    assert len(set(got)) == 11
    with pytest.raises(Failure, match="are taken"):
        nodes.plugin("n3").add("more")

    second = run("n2", "import", "whereabouts", dump)
    assert second["node"]["taken"] == ["default/10.1.0.2/32"]
    assert takeover.HELD not in nodes.blocks().values()
    for name, container in (("n1", "ca"), ("n1", "cc"), ("n2", "cb")):
        nodes.plugin(name).check(container, "net1")

    before = nodes.blocks()
    for name in ("n1", "n2"):
        again = run(name, "import", "whereabouts", dump)
        assert (again["held"], again["letGo"], again["node"]["taken"]) == ([], [], [])
    assert nodes.blocks() == before

    # DEL finds what was taken over by its owner; then the address can be had again.
    nodes.plugin("n1").delete("ca", "net1")
    assert nodes.plugin("n1").add("again")[0] == "10.1.0.1/28"
    # What was deleted does not come back with another import.
    nodes.plugin("n1").delete("again")
    run("n1", "import", "whereabouts", dump)
    assert nodes.plugin("n1").add("again")[0] == "10.1.0.1/28"


def test_a_container_that_nobody_knows_stays_held_until_its_pod_is_gone(
    nodes: Nodes, run: Callable[..., Any]
) -> None:
    dump = nodes.file("dump.json", *PODS, GIVEN)
    nodes.cached("n1", "ca", "10.1.0.1/28")
    nodes.cached("n1", "cc", "10.1.0.9/28")  # another address than whereabouts says
    found = run("n1", "import", "whereabouts", dump)
    assert found["node"]["unknown"] == ["default/10.1.0.3"]
    assert nodes.blocks()["10.1.0.3-32"] == takeover.HELD
    later = nodes.file("later.json", *PODS[:2], GIVEN)
    assert run("n1", "import", "whereabouts", later)["letGo"] == ["default/10.1.0.3/32"]
    assert "10.1.0.3-32" not in nodes.blocks()


def test_slices_become_blocks_with_all_that_is_given_in_them(
    nodes: Nodes, run: Callable[..., Any]
) -> None:
    objects = [
        *PODS,
        slices("10.2.0.0/24", "/28", {"10.2.0.0/28": "n1", "10.2.0.16/28": "n2"}),
        pool(
            "10.2.0.0/28", {1: "ca default/pod-ca", 2: "cc default/pod-cc"}, name="n1-10.2.0.0-28"
        ),
    ]
    nodes.cached("n1", "ca", "10.2.0.1/24")
    found = run("n1", "import", "whereabouts", nodes.file("dump.json", *objects))
    assert found["node"]["taken"] == ["default/10.2.0.0/28"]
    assert found["node"]["unknown"] == ["default/10.2.0.2"]
    plugin = nodes.plugin("n1", "10.2.0.0/24", node_slice_size="/28")
    plugin.check("ca", "net1")
    got = {plugin.add(f"new{i}")[0] for i in range(13)}  # of the slice; the network's .0 is none
    assert got == {f"10.2.0.{i}/24" for i in range(3, 16)}
    assert set(nodes.blocks()) == {"10.2.0.0-28", "10.2.0.16-28"}


def test_what_another_node_claims_is_told_and_left(nodes: Nodes, run: Callable[..., Any]) -> None:
    nodes.plugin("n9").add("own", env_args="IP=10.1.0.1")
    before = nodes.blocks()["10.1.0.1-32"]
    found = run("n1", "import", "whereabouts", nodes.file("dump.json", *PODS, GIVEN))
    assert found["others"] == ["default/10.1.0.1/32"]
    assert nodes.blocks()["10.1.0.1-32"] == before


@pytest.mark.parametrize("step", range(1, 11))
def test_killed_at_any_step_and_repeated(
    nodes: Nodes, run: Callable[..., Any], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it ends: nothing that a container has is given to another, and it is taken over."""
    found = takeover.interpret([*PODS, GIVEN])
    its = settings.read(nodes.settings("n1"), {})
    node = Node(its.data_dir, its.node)
    claims = Claims(nodes.store, its, node, print)
    adopt.hold(claims, found)
    at = adopt.Attachment("ca", "lan", "net1", "", frozenset([parse_ip("10.1.0.1")]))

    class Killed(BaseException):
        pass

    count = 0

    def dies(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                raise Killed
            made = function(*args, **kwargs)
            count += 1
            if count == step:
                raise Killed
            return made

        return wrapped

    with monkeypatch.context() as patch:
        for owner, name in ((Space, "ledger"), (Claims, "ask")):
            patch.setattr(owner, name, dies(getattr(owner, name)))
        with suppress(Killed), node.claiming():
            adopt.take_over(claims, found, [at])
        assert count >= step
    with node.claiming():
        claims.register()
        claims.settle(Space(node, "default"))
    plugin = nodes.plugin("n1")
    got = [plugin.add(f"new{i}")[0] for i in range(4)]
    assert "10.1.0.1/28" not in got
    with node.claiming():
        adopt.take_over(Claims(nodes.store, its, node, print), found, [at])
    plugin.check("ca", "net1")


# --- by the API -----------------------------------------------------------------------------------


CRDS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.whereabouts.cni.cncf.io}}
spec:
  group: whereabouts.cni.cncf.io
  scope: Namespaced
  names: {{kind: {kind}, listKind: {kind}List, plural: {plural}, singular: {singular}}}
  versions:
    - name: v1alpha1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec: {{type: object, x-kubernetes-preserve-unknown-fields: true}}
            status: {{type: object, x-kubernetes-preserve-unknown-fields: true}}
"""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with serving(tmp_path, MANIFESTS) as api:
        for kind, plural in takeover.KINDS.items():
            api.cluster.load(CRDS.format(kind=kind, plural=plural, singular=kind.lower()))
        yield api


def put(api: ApiServer, *objects: Json) -> None:
    """Store objects; two types are called `ippools`, so by their group."""
    for each in objects:
        kind = each["kind"]
        plural = takeover.KINDS.get(kind, "pods")
        group = (takeover.GROUP, "v1alpha1") if kind in takeover.KINDS else ("", "v1")
        resource = api.cluster.resources[(*group, plural)]
        metadata = {"namespace": "kube-system", "uid": each["metadata"]["name"], **each["metadata"]}
        key = (resource.table, metadata["namespace"], metadata["name"])
        value = {**each, "apiVersion": resource.api_version, "metadata": metadata}
        with api.cluster.lock:
            api.cluster.store(key, value, "ADDED")


def of_api(api: ApiServer, name: str, nodes: Nodes) -> Json:
    token = api.directory / "admin"
    token.write_text("admin")
    api.tokens["admin"] = ADMIN
    store = {
        "type": "kubernetes",
        "server": api.url,
        "caFile": str(api.ca),
        "tokenFile": str(token),
    }
    return {**nodes.settings(name), "store": store}


def test_no_address_is_given_before_the_allocations_are_taken_over(
    api: ApiServer, nodes: Nodes, run: Callable[..., Any]
) -> None:
    put(api, *PODS, GIVEN)
    own = of_api(api, "n1", nodes)
    plugin = nodes.plugin("n1", **own)
    with pytest.raises(Failure, match=r"whereabouts has given 4 addresses of space default") as no:
        plugin.add("new")
    assert "cni ipam import whereabouts" in no.value.details
    nodes.plugin("n1", **own, network_name="blue").add("blue")  # has none

    (nodes.directory / "n1.json").write_text(json.dumps(own))
    nodes.cached("n1", "ca", "10.1.0.1/28")
    found = run("n1", "import", "whereabouts")
    assert found["node"]["taken"] == ["default/10.1.0.1/32"]
    assert len(found["held"]) == 3
    got = {plugin.add(f"new{i}")[0].partition("/")[0] for i in range(5)}
    assert not got & {"10.1.0.1", "10.1.0.2", "10.1.0.3"}
    assert all(ip_address(each) in ip_network(RANGE) for each in got)


def test_an_import_finds_the_api_by_whereabouts_own_file(
    api: ApiServer, nodes: Nodes, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks that Multus attaches are in no file of the node, and nothing else names a store."""
    put(api, *PODS, GIVEN)
    store = of_api(api, "n1", nodes)["store"]
    kubeconfig = nodes.directory / "whereabouts.kubeconfig"
    user = {"tokenFile": store["tokenFile"]}
    server = {"server": store["server"], "certificate-authority": store["caFile"]}
    kubeconfig.write_text(json.dumps({
        "clusters": [{"name": "local", "cluster": server}],
        "users": [{"name": "whereabouts", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "local", "user": "whereabouts"}}],
        "current-context": "c",
    }))  # fmt: skip
    flat = nodes.directory / "whereabouts.conf"
    flat.write_text(json.dumps({"kubernetes": {"kubeconfig": str(kubeconfig)}}))
    monkeypatch.setattr(whereabouts, "FLAT_FILES", (str(flat),))
    own = {"nodeName": "n1", "dataDir": str(nodes.directory / "n1")}
    (nodes.directory / "n1.json").write_text(json.dumps(own))
    nodes.cached("n1", "ca", "10.1.0.1/28")
    assert run("n1", "import", "whereabouts")["node"]["taken"] == ["default/10.1.0.1/32"]
    # whereabouts' own pools are none of the store's, though their type has the same name
    assert [(each["pool"], each["ranges"]) for each in run("n1", "pools")] == [
        ("", "10.1.0.1-10.1.0.14")  # of the network; a pool in the store would have a name
    ]
    listed = run("n1", "export", "whereabouts")["items"]
    assert [each["metadata"]["name"] for each in listed] == ["10.1.0.0-28", "10.1.0.1"]


def test_nodes_that_may_change_their_own_alone(
    tmp_path: Path, nodes: Nodes, run: Callable[..., Any]
) -> None:
    """An administrator holds everything; each node takes over its own by its own account."""
    (tmp_path / "api").mkdir()
    with serving(tmp_path / "api", [*MANIFESTS, CLUSTER / "policy.yaml"]) as api:
        for kind, plural in takeover.KINDS.items():
            api.cluster.load(CRDS.format(kind=kind, plural=plural, singular=kind.lower()))
        put(api, *PODS, GIVEN)
        own = of_api(api, "n1", nodes)
        (nodes.directory / "n1.json").write_text(json.dumps(own))
        assert len(run("n1", "import", "whereabouts", "--hold-only")["held"]) == 3

        token = api.directory / "n1-token"
        token.write_text("n1")
        account = "system:serviceaccount:kube-system:cni-plugins"
        api.tokens["n1"] = User(account, extra={NODE_CLAIM: ["n1"]})
        own["store"]["tokenFile"] = str(token)
        (nodes.directory / "n1.json").write_text(json.dumps(own))
        nodes.cached("n1", "ca", "10.1.0.1/28")
        dump = nodes.file("dump.json", PODS[0], GIVEN)  # by now the pod of n2 is gone
        found = run("n1", "import", "whereabouts", dump)
        assert found["node"]["taken"] == ["default/10.1.0.1/32"]
        assert found["letGo"] == ["default/10.1.0.3/32"]
        assert nodes.plugin("n1", **own).add("new")


def test_the_way_back(nodes: Nodes, run: Callable[..., Any]) -> None:
    """What export writes says what import has read."""
    dump = nodes.file("dump.json", *PODS, GIVEN, pool("fd00:1::/64", {5: "ca default/pod-ca"}))
    nodes.cached("n1", "ca", "10.1.0.1/28", "fd00:1::5/64")
    nodes.cached("n1", "cc", "10.1.0.3/28")
    run("n1", "import", "whereabouts", dump)
    listed = run("n1", "export", "whereabouts")
    back = takeover.interpret([*PODS, *listed["items"]])
    before = takeover.interpret(json.loads(Path(dump).read_text())["items"])
    assert back.allocations == [each for each in before.allocations if each.node == "n1"]
    assert {each["metadata"]["namespace"] for each in listed["items"]} == {"kube-system"}
    assert run("n1", "export", "whereabouts") == listed


def test_the_way_back_names_containers_without_a_pod(
    nodes: Nodes, run: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """whereabouts would free their addresses while they run."""
    run("n1", "import", "whereabouts", nodes.file("dump.json", *PODS))
    nodes.plugin("n1").add("cy")
    nodes.cached("n1", "cy", "10.1.0.1/28")
    capfd.readouterr()
    assert nodes.command("n1", "export", "whereabouts") == 0
    assert capfd.readouterr().err == ""
    (address,) = nodes.plugin("n1").add("cz")
    assert nodes.command("n1", "export", "whereabouts") == 0
    told = capfd.readouterr().err
    assert f"container cz ({address.partition('/')[0]})" in told
    assert "cy" not in told


def test_files_of_kubectl(nodes: Nodes, run: Callable[..., Any]) -> None:
    yaml = nodes.directory / "dump.yaml"
    yaml.write_text(
        "apiVersion: v1\nitems:\n- kind: IPPool\n  metadata:\n    name: 10.1.0.0-28\n"
        "  spec:\n    allocations:\n      \"5\":\n        id: ca\n        podref: default/pod-ca\n"
        "    range: 10.1.0.0/28\nkind: List\n---\nkind: Pod\nmetadata:\n  name: pod-ca\n"
        "  namespace: default\nspec:\n  nodeName: n2\n"
    )  # fmt: skip
    assert run("n1", "import", "whereabouts", str(yaml))["held"] == ["default/10.1.0.5/32"]
    without = nodes.file("without.json", GIVEN)
    error = run("n1", "import", "whereabouts", without, code=5)
    assert "kubectl get" in json.dumps(error)
    for text, why in (("a: {b: c}", "line 1"), ("{}", "kubectl"), ("[", "kubectl")):
        yaml.write_text(text)
        assert why in json.dumps(run("n1", "import", "whereabouts", str(yaml), code=1))
    assert "FILE" in json.dumps(run("n1", "import", "whereabouts", code=5))
