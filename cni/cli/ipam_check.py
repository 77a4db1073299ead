"""`cni ipam check --cluster`: do the store, this node's blocks and its reservations agree?"""

from __future__ import annotations

from cni.ipam.cluster import reconcile, survey
from cni.ipam.cluster.kubernetes_nodes import Nodes
from cni.ipam.cluster.node import Node
from cni.store.interface import Refused, Store

from . import ipam_cluster, output


def of_cluster(network: str | None) -> list[str]:
    """What is wrong, a line each; `network` is whose store to ask. Raises CNIError."""
    with ipam_cluster.opened(network) as cluster:
        node = Node(cluster.its.data_dir, cluster.its.node)
        found = survey.silence(node, cluster.its) + survey.problems(cluster.store, node)
        # Only the Kubernetes API knows pods.
        if getattr(cluster.store, "api", None) is not None:
            found += _of_pods(cluster.store, node.name)
    return found


def _of_pods(store: Store, node: str) -> list[str]:
    """Pods of this node with addresses of blocks that it has not; empty if it may not list them."""
    try:
        pods = Nodes(store.api).pods(node)  # type: ignore[attr-defined]
    except Refused as error:
        # Listing pods is a right of its own, which the plugins do not need.
        output.line(f"cni: pods are not compared: {error}", err=True)
        return []
    found = []
    for space in store.list("spaces/").items:
        name, layout = space.key.partition("/")[2], space.value.get("layout") or {}
        items = store.list(f"blocks/{name}/").items
        for each in reconcile.misplaced(pods, items, layout):
            whose = f"node {each.holder}'s" if each.holder else "nobody's"
            found.append(f"{name}: {each.address} of pod {each.pod} is of a block that is {whose}")
    return found
