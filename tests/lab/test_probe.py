"""`cni test` on links that this kernel may lack: what cannot work by design has not failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness import V4, Netns
from tests.harness.command_line import Node
from tests.harness.requires import requires_kernel

Json = dict[str, Any]


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    host.ip_batch("link add m0 type veth peer m1", "link set m0 up", "link set m1 up")
    return Node(host, bin_dir, tmp_path)


def checks(node: Node, plugin: Json) -> dict[str, Json]:
    """The rows of IPv4 by check, of a network that works."""
    ipam = V4.host_local(node.data_dir)
    node.write({"cniVersion": "1.0.0", "name": "net", "plugins": [{**plugin, "ipam": ipam}]})
    value = node.json("test", "net")
    assert not [each for each in value["checks"] if each["state"] == "failed"]
    assert node.json("ps") == []
    return {each["check"]: each for each in value["checks"] if each["family"] != 6}


@requires_kernel("ipvlan")
@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_ipvlan(node: Node, mode: str) -> None:
    rows = checks(node, {"type": "ipvlan", "master": "m0", "mode": mode})
    for check in ("attach", "neighbour", "MTU", "detach"):
        assert rows[check]["state"] == "ok", rows[check]
    for check in ("from node", "uplink", "way out"):
        assert "hands no packets to its own master" in rows[check]["text"]


@requires_kernel("vlan")
def test_vlan(node: Node) -> None:
    """A second container with the same VLAN cannot be attached, and is not tried."""
    rows = checks(node, {"type": "vlan", "master": "m0", "vlanId": 5})
    assert rows["neighbour"]["text"] == "a link has one interface of a VLAN"
    assert rows["way out"]["text"] == "its packets go to the network behind the master"
    assert {rows[check]["state"] for check in ("attach", "detach")} == {"ok"}


@requires_kernel("dummy")
def test_dummy(node: Node) -> None:
    rows = checks(node, {"type": "dummy"})
    assert rows["neighbour"]["text"] == "a dummy interface sends and receives nothing"
    assert rows["MTU"]["state"] == "skipped"
