"""A node's claims in the Kubernetes API, with the account, roles and policies of deploy/cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.ipam.cluster.claim import Claims
from cni.ipam.cluster.kubernetes_nodes import Nodes
from cni.ipam.cluster.node import Node, Space
from cni.ipam.cluster.pool import Pool, convert
from cni.ipam.cluster.reconcile import Reconciler
from cni.store import kubernetes, settings
from cni.store.interface import Refused, Unavailable
from tests.harness.admission import NODE_CLAIM, User
from tests.harness.apiserver import ApiServer, Fault, serving

CLUSTER = Path(__file__).resolve().parents[2] / "deploy" / "cluster"
MANIFESTS = [CLUSTER / name for name in ("crds.yaml", "rbac.yaml", "policy.yaml")]
ACCOUNT = "system:serviceaccount:kube-system:cni-plugins"
POOL = {"ranges": [[{"subnet": "10.64.0.0/24"}]], "blockSize": 26}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with serving(tmp_path, MANIFESTS) as api:
        api.cluster.put("ippools", {"metadata": {"name": "storage"}, "spec": POOL})
        yield api


class Member:
    """A node: its directory, and its claims by its own token."""

    def __init__(self, api: ApiServer, name: str, claimed: str = "") -> None:
        directory = api.directory / name
        directory.mkdir(exist_ok=True)
        token = directory / "token"
        token.write_text(f"of-{name}")
        api.tokens[f"of-{name}"] = User(ACCOUNT, extra={NODE_CLAIM: [claimed or name]})
        where = {"type": "kubernetes", "server": api.url, "caFile": str(api.ca)}
        store = {**where, "tokenFile": str(token)}
        its = settings.read({"store": store, "nodeName": name, "dataDir": str(directory)}, {})
        self.store = kubernetes.connect(store)
        self.node = Node(its.data_dir, its.node)
        self.claims = Claims(self.store, its, self.node, print)
        self.space = Space(self.node, "default")

    def claim(self) -> str:
        definition = self.claims.read_pool("storage")
        assert definition is not None
        with self.node.claiming():
            pool = Pool.of(convert(definition, "storage"), "storage", "")
            return str(self.claims.claim(self.space, pool, 0))


def test_nodes_claim_release_and_are_reconciled(api: ApiServer) -> None:
    one, other = Member(api, "n1"), Member(api, "n2")
    first, second = one.claim(), other.claim()
    assert first != second
    stored = api.cluster.objects
    names = {key[2]: value["spec"]["node"] for key, value in stored.items() if key[0] == "ipblocks"}
    assert set(names.values()) == {"n1", "n2"}
    with one.node.claiming():
        assert one.claims.release(one.space, lambda _: True) == [first]
    third = one.claim()
    assert third != second
    # n2 is deleted from the cluster; a round with the account of rbac.yaml frees its block.
    api.cluster.node("n1")
    api.cluster.node("n2")
    api.tokens["of-n1"] = User("system:serviceaccount:kube-system:cni-ipam-reconcile")
    for now in (1000, 2000, 3000):
        report = Reconciler(one.store, Nodes(one.store.api), now).run()
        if now == 1000:
            api.cluster.remove("nodes", "n2")
    assert report.gone == ["n2"]
    assert len(report.freed) == 1
    one.store.close()
    other.store.close()


def test_a_wrong_node_name_is_refused_with_the_reason(api: ApiServer) -> None:
    member = Member(api, "host-1", claimed="n1")
    with pytest.raises(Refused, match="nodeName has to be the Node's name"):
        member.claim()
    assert not any(key[0] == "ipblocks" for key in api.cluster.objects)
    member.store.close()


def test_a_claim_whose_answer_is_lost_is_found_again(api: ApiServer) -> None:
    member = Member(api, "n1")

    def is_claim(method: str, path: str) -> bool:
        return method == "POST" and "/ipblocks" in path

    api.faults.append(Fault("after", applies=is_claim))
    try:
        block = member.claim()
    except Unavailable:
        block = member.claim()
    held = [
        value["block"]["cidr"] for key, value in api.cluster.objects.items() if "ipblocks" in key
    ]
    assert held == [block]
    member.store.close()
