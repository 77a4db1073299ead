"""The engine `kubernetes`, on the emulated API server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni.store import kubernetes
from cni.store.interface import (
    Conflict,
    Exists,
    Expired,
    Item,
    Refused,
    Store,
    Unavailable,
)
from tests.harness.admission import NODE_CLAIM, User
from tests.harness.apiobjects import Answer
from tests.harness.apiserver import ApiServer, Fault, serving
from tests.harness.store_contract import StoreContract
from tests.harness.wait import TIMEOUT

CLUSTER = Path(__file__).resolve().parents[2] / "deploy" / "cluster"
MANIFESTS = [CLUSTER / name for name in ("crds.yaml", "rbac.yaml", "policy.yaml")]
ACCOUNT = "system:serviceaccount:kube-system:cni-plugins"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with serving(tmp_path_factory.mktemp("api"), MANIFESTS) as api:
        yield api


@pytest.fixture
def api(served: ApiServer) -> ApiServer:
    served.reset()
    served.tokens["admin"] = User("admin", ("system:masters",))
    served.tokens["n1"] = User(ACCOUNT, extra={NODE_CLAIM: ["n1"]})
    served.tokens["n2"] = User(ACCOUNT, extra={NODE_CLAIM: ["n2"]})
    return served


def opened(
    api: ApiServer, token: str = "admin", timeout: float = TIMEOUT
) -> kubernetes.KubernetesStore:
    path = api.directory / f"token-{token}"
    if not path.exists():
        path.write_text(token)
    options = {"server": api.url, "caFile": str(api.ca), "tokenFile": str(path)}
    return kubernetes.connect({"type": "kubernetes", "timeout": timeout, **options})


@pytest.fixture
def store(api: ApiServer) -> Iterator[kubernetes.KubernetesStore]:
    store = opened(api)
    yield store
    store.close()


class TestContract(StoreContract):
    many = 1200  # three pages

    @pytest.fixture
    def opened(self, api: ApiServer) -> Iterator[Callable[[], Store]]:
        self.api = api
        stores: list[Store] = []

        def another() -> Store:
            stores.append(opened(api))
            return stores[-1]

        yield another
        for store in stores:
            store.close()

    def forget(self, store: Store) -> None:  # noqa: ARG002
        self.api.cluster.compact()


# --- objects as people see them ---


def test_a_block_says_what_it_is(api: ApiServer, store: Store) -> None:
    value = {"node": "n1", "uid": "9f", "boot": "6c", "seq": 17}
    item = store.create("blocks/default/10.64.3.0-26", value)
    stored = api.cluster.objects["ipblocks", "", "default--10.64.3.0-26"]
    assert stored["kind"] == "IPBlock"
    assert stored["block"] == {"space": "default", "cidr": "10.64.3.0/26"}
    assert stored["spec"] == item.value == value
    assert stored["key"] == item.key


def test_a_pool_of_a_manifest_is_an_item(api: ApiServer, store: Store) -> None:
    spec = {"ranges": [[{"subnet": "10.64.0.0/16"}]], "blockSize": 26, "space": "default"}
    api.cluster.put("ippools", {"metadata": {"name": "storage"}, "spec": spec})
    item = store.read("pools/storage")
    assert item is not None
    assert item.value == spec
    assert store.list("pools/").items == [item]


def test_objects_that_are_no_items_are_passed_over(api: ApiServer, store: Store) -> None:
    for value in (
        {"metadata": {"name": "default--zx61"}, "key": "blocks/default/a", "spec": {}},
        {"metadata": {"name": "zx00ff"}, "key": "blocks/default/a", "spec": {}},
        {"metadata": {"name": "default--a"}, "key": "blocks/default/a"},
    ):
        api.cluster.put("ipblocks", value)
    assert store.list("blocks/").items == []


def test_what_others_noted_on_an_object_stays(api: ApiServer, store: Store) -> None:
    store.create("nodes/n1", {"uid": "a"})
    stored = api.cluster.objects["iprecords", "", "nodes--n1"]
    api.cluster.put(
        "iprecords", {**stored, "metadata": {"name": "nodes--n1", "labels": {"a": "b"}}}
    )
    item = store.read("nodes/n1")
    assert item is not None
    store.update(item, {"uid": "b"})
    changed = api.cluster.objects["iprecords", "", "nodes--n1"]
    assert (changed["metadata"]["labels"], changed["spec"]) == ({"a": "b"}, {"uid": "b"})


def test_what_the_schema_does_not_allow_is_refused_by_name(store: Store) -> None:
    for value in ({"blocksize": 26}, {"blockSize": 99}):
        with pytest.raises(Refused, match=r"pools/storage.*blocks?[sS]ize") as raised:
            store.create("pools/storage", value)
        assert "crds.yaml" in raised.value.remedy
    with pytest.raises(Refused, match=r"spec\.node"):
        store.create("blocks/default/10.1.0.0-26", {"node": 7})


def test_a_finalizer_is_named(api: ApiServer, store: Store) -> None:
    item = store.create("nodes/n1", {})
    stored = api.cluster.objects["iprecords", "", "nodes--n1"]
    metadata = {**stored["metadata"], "finalizers": ["example.com/keep"]}
    api.cluster.put("iprecords", {**stored, "metadata": metadata})
    kept = store.read("nodes/n1")
    assert kept is not None
    assert kept.version != item.version
    with pytest.raises(Refused, match=r"example\.com/keep"):
        store.delete(kept)
    with pytest.raises(Exists):
        store.create("nodes/n1", {})


# --- who may ---


def test_a_node_claims_for_itself_only(api: ApiServer) -> None:
    one, other = opened(api, "n1"), opened(api, "n2")
    item = one.create("blocks/default/10.64.3.0-26", {"node": "n1"})
    for refused in (
        lambda: one.create("blocks/default/10.64.4.0-26", {"node": "n2"}),
        lambda: other.delete(item),
        lambda: other.update(item, {"node": "n2"}),
        lambda: other.create("nodes/n1", {}),
    ):
        with pytest.raises(Refused, match="denied") as raised:
            refused()
        assert "policy.yaml" in raised.value.remedy
        assert "an administrator's account" in raised.value.remedy
    other.create("nodes/n2", {})
    other.create("wanted/default/n2", {})
    one.delete(item)
    one.close()
    other.close()


def test_a_permission_that_is_missing_is_named(api: ApiServer) -> None:
    store = opened(api, "n1")
    with pytest.raises(Refused, match="create of ippools") as raised:
        store.create("pools/a", {})
    assert "rbac.yaml" in raised.value.remedy
    api.tokens["n1"] = User("somebody")
    with pytest.raises(Refused, match="list of ipblocks"):
        store.list("blocks/")
    with pytest.raises(Refused, match="watch of ipblocks"):
        list(store.watch("blocks/", "1", 1))
    store.close()


def test_a_token_that_was_renewed_is_read_again(api: ApiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one")
    api.tokens["one"] = api.tokens["admin"]
    options = {"server": api.url, "caFile": str(api.ca), "tokenFile": str(token)}
    store = kubernetes.connect({"type": "kubernetes", "timeout": TIMEOUT, **options})
    store.list("pools/")
    del api.tokens["one"]
    api.tokens["two"] = api.tokens["admin"]
    with pytest.raises(Refused, match="credentials") as raised:
        store.list("pools/")
    assert str(token) in raised.value.remedy
    token.write_text("two")
    store.list("pools/")
    # Renewed between our reading and the server's: 401 once, then with the new one.
    api.faults.append(Fault(Answer(401, "Unauthorized")))
    store.list("pools/")
    assert api.authorizations[-2:] == ["Bearer two", "Bearer two"]
    store.close()


def test_a_kubeconfig_with_a_certificate(api: ApiServer, tmp_path: Path) -> None:
    crt, key = api.client_certificate("ada", "system:masters")
    cluster = {"server": api.url, "certificate-authority": str(api.ca)}
    user = {"client-certificate": str(crt), "client-key": str(key)}
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    store = kubernetes.connect({"type": "kubernetes", "kubeconfig": str(path)})
    assert store.create("pools/a", {}).key == "pools/a"
    store.close()
    cluster["certificate-authority"] = str(crt)
    path.write_text(json.dumps(config))
    store = kubernetes.connect({"type": "kubernetes", "kubeconfig": str(path)})
    with pytest.raises(Refused, match="not signed by certificate-authority"):
        store.list("pools/")
    store.close()


def test_the_account_of_a_pod_on_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, MANIFESTS, host="::1") as api:
        api.tokens["admin"] = User("admin", ("system:masters",))
        (tmp_path / "token").write_text("admin")
        host, _, port = api.url.removeprefix("https://").rpartition(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host.strip("[]"))
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        monkeypatch.setattr("cni.store.kubeconfig.in_cluster.__defaults__", (str(tmp_path),))
        store = kubernetes.connect({"type": "kubernetes", "namespace": "kube-system"})
        assert store.list("").items == []
        assert store.identity() == store.identity()
        store.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"endpoints": ["https://a"]}, "store.endpoints: unknown key"),
        ({"kubeconfig": 5}, "store.*kubeconfig"),
        ({"timeout": True}, "store.timeout"),
        ({"server": "https://a"}, "store.tokenFile"),
        ({"server": "https://a", "kubeconfig": "/k"}, "store.server"),
        ({"kubeconfig": "/nothing/config"}, "/nothing/config"),
        ({"server": "ftp://a", "tokenFile": "/t"}, "server"),
    ],
)
def test_options_that_are_wrong_are_named(options: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        kubernetes.connect({"type": "kubernetes", **options})


# --- a server that does not want, or cannot ---


def test_too_many_requests_is_a_pause(api: ApiServer, store: Store) -> None:
    api.faults.append(Fault(Answer(429, "slow down", retryAfterSeconds=1)))
    assert store.create("nodes/n1", {})
    assert [method for method, _ in api.requests].count("POST") == 2
    api.faults.append(Fault(Answer(429, "slow down", retryAfterSeconds=3000)))
    with pytest.raises(Unavailable) as raised:
        store.create("nodes/n2", {})
    assert raised.value.retry_after == 3000


@pytest.mark.parametrize("code", [500, 503, 504])
def test_a_server_in_trouble_is_unavailable(api: ApiServer, store: Store, code: int) -> None:
    item = store.create("nodes/n1", {})
    for verb in (
        lambda: store.create("nodes/n2", {}),
        lambda: store.update(item, {}),
        lambda: store.delete(item),
        lambda: store.read("nodes/n1"),
        lambda: store.list("nodes/"),
    ):
        api.faults.append(Fault(Answer(code, "etcdserver: leader changed")))
        with pytest.raises(Unavailable, match="leader changed"):
            verb()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_change_whose_answer_is_lost_is_sent_once(
    api: ApiServer, store: Store, when: str
) -> None:
    item = store.create("nodes/n1", {"n": 1})
    for verb in (
        lambda: store.create("nodes/n2", {}),
        lambda: store.update(item, {"n": 2}),
        lambda: store.delete(store.read("nodes/n1") or item),
    ):
        api.faults.append(Fault(when, applies=lambda method, _: method != "GET"))
        before = len([method for method, _ in api.requests if method != "GET"])
        with pytest.raises(Unavailable):
            verb()
        assert len([method for method, _ in api.requests if method != "GET"]) == before + 1
    assert (store.read("nodes/n2") is not None) is (when == "after")
    assert (store.read("nodes/n1") is None) is (when == "after")


def test_types_that_are_missing_name_the_manifest(api: ApiServer) -> None:
    crds = api.cluster.resources
    store = opened(api)
    try:
        item = store.create("nodes/n1", {})
        api.cluster.undefine("iprecords")
        for verb in (
            lambda: store.create("nodes/n2", {}),
            lambda: store.read("nodes/n1"),
            lambda: store.update(item, {}),
            lambda: store.delete(item),
            lambda: store.list("nodes/"),
        ):
            with pytest.raises(Refused, match=r"no type iprecords\.ipam") as raised:
                verb()
            assert "crds.yaml" in raised.value.remedy
    finally:
        api.cluster.resources = crds
        store.close()


def test_a_listing_is_read_again_when_its_pages_expire(api: ApiServer, store: Store) -> None:
    with api.cluster.lock:
        for number in range(900):
            key = f"nodes/n{number:03}"
            value = {"metadata": {"name": f"nodes--n{number:03}"}, "key": key, "spec": {}}
            api.cluster.put("iprecords", value)

    def compacted(_: str, path: str) -> bool:
        if "continue=" in path and not done:
            done.append(path)
            api.cluster.compact()
        return False

    done: list[str] = []
    api.faults.append(Fault("before", applies=compacted))
    assert len(store.list("nodes/").items) == 900
    assert [path for _, path in api.requests if "iprecords" in path][1:3] == [
        done[0],
        "/apis/ipam.cni-plugins.internal/v1/iprecords?limit=500",
    ]


@pytest.mark.parametrize("as_event", [True, False])
def test_a_watch_from_forgotten_history_is_expired(
    api: ApiServer, store: Store, as_event: bool
) -> None:
    revision = store.list("nodes/").revision
    api.cluster.compact()
    api.gone_as_event = as_event
    with pytest.raises(Expired):
        list(store.watch("nodes/", revision, TIMEOUT))
    with pytest.raises(Expired):
        list(store.watch("", "1", TIMEOUT))


def test_a_bookmark_moves_the_revision(api: ApiServer, store: Store) -> None:
    revision = store.list("nodes/").revision
    api.cluster.bump()
    told = next(iter(store.watch("nodes/", revision, TIMEOUT)))
    assert (told.key, told.item, told.revision) == ("", None, str(api.cluster.version))
    # Nothing has changed since: there is no other.
    assert list(store.watch("nodes/", told.revision, 0.5)) == []


def test_a_watch_that_breaks_is_unavailable(api: ApiServer, store: Store) -> None:
    revision = store.list("nodes/").revision
    store.create("nodes/n1", {})
    api.faults.append(Fault("after", applies=lambda _, path: "watch=1" in path))
    watch = store.watch("nodes/", revision, TIMEOUT)
    assert next(watch).key == "nodes/n1"
    with pytest.raises(Unavailable):
        next(watch)


def test_the_clock_is_the_servers(api: ApiServer, store: Store) -> None:
    api.skew = 86_400.0
    clock = store.clock()
    assert clock is not None
    assert clock - time.time() > 80_000


def test_it_is_of_this_cluster(api: ApiServer, store: Store) -> None:
    uid = api.cluster.objects["namespaces", "", "kube-system"]["metadata"]["uid"]
    assert store.identity() == uid


def test_an_item_of_another_object_of_that_name_is_a_conflict(api: ApiServer, store: Store) -> None:
    item = store.create("nodes/n1", {})
    store.delete(item)
    again = store.create("nodes/n1", {})
    uid, _, _ = item.version.partition(" ")
    _, _, version = again.version.partition(" ")
    forged = Item(item.key, {}, f"{uid} {version}")  # as after a restored backup
    with pytest.raises(Conflict):
        store.update(forged, {})
    with pytest.raises(Conflict):
        store.delete(forged)
