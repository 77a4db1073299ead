"""`cluster` through a server that knows more of the node than the runtime: as in the DaemonSet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.ipam.cluster.node import OWN, Node, Space
from cni.store.directory import DirectoryStore
from tests.harness.server import served, serving
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from tests.harness import Netns, Runtime

pytestmark = pytest.mark.own_server

NODE = "node-1.example"  # not the host's name


def test_requests_and_the_background_are_of_one_node(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """NODENAME is in the server's environment alone. Blocks are claimed by both under that name."""
    own = {
        "store": {"type": "directory", "path": str(tmp_path / "store")},
        "dataDir": str(tmp_path / "data"),
        "nodeTimeout": 300,
    }
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps(own))
    ipam = {"type": "cluster", "ranges": [[{"subnet": "10.64.0.0/24"}]], "blockSize": 29}
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam}
    runtime.env["CNI_CLUSTER_CONF"] = str(file)
    store = DirectoryStore(own["store"]["path"])
    variables = ["env", f"NODENAME={NODE}", f"CNI_CLUSTER_CONF={file}"]
    with serving(runtime, tmp_path / "socket", "--workers", "1", prefix=variables) as server:
        served(server, lambda: runtime.add("bridge", conf, container)).succeeded()

        def is_renewed() -> bool:
            record = store.read(f"nodes/{NODE}")
            return record is not None and record.value["timeout"] == 300

        # The first block is no sooner there than the ADD; the process for blocks follows.
        wait_until(is_renewed, "the server's process renews for the node", timeout=60)
        wait_until(lambda: len(store.list("blocks/").items) >= 2, "it claims ahead", timeout=60)
        assert {item.value["node"] for item in store.list("blocks/").items} == {NODE}
        assert [item.key for item in store.list("nodes/").items] == [f"nodes/{NODE}"]
        served(server, lambda: runtime.delete("bridge", conf, container)).succeeded()
    space = Space(Node(own["dataDir"], NODE), "default")
    assert len(space.ledger().of_state(OWN)) == len(store.list("blocks/").items)
