"""The plugin `whereabouts`: cluster by other keys, on several nodes that share a store."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni.ipam.cluster import whereabouts
from cni.store import settings
from cni.store.directory import DirectoryStore

from .ipam_node import Failure, Ipam

Json = dict[str, Any]


class Nodes:
    """Nodes that share a store; each has the flat file in which `flat` is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def store(self) -> DirectoryStore:
        return DirectoryStore(str(self.directory / "store"), sync=False)

    def node(self, name: str, network: str = "net", **ipam: Any) -> Ipam:
        keys = {"type": "whereabouts", "nodeName": name, "dataDir": str(self.directory / name)}
        keys["store"] = {"type": "directory", "path": str(self.directory / "store")}
        keys = {key: value for key, value in {**keys, **ipam}.items() if value is not None}
        return Ipam("whereabouts", {"cniVersion": "1.1.0", "name": network, "ipam": keys})

    def flat(self, value: Json | str) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        (self.directory / "whereabouts.conf").write_text(text)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.setattr(settings, "NODE_FILE", str(tmp_path / "cluster.json"))
    monkeypatch.setattr(whereabouts, "FLAT_FILES", (str(tmp_path / "whereabouts.conf"),))
    monkeypatch.delenv("NODENAME", raising=False)
    return Nodes(tmp_path)


def plain(addresses: list[str]) -> list[str]:
    return [each.partition("/")[0] for each in addresses]


def test_every_address_of_a_small_range_is_handed_out_once_on_any_node(nodes: Nodes) -> None:
    """14 hosts of a /28, less one excluded; 13 nodes with one container each."""
    keys = {"range": "192.168.2.225/28", "exclude": ["192.168.2.229/32"]}
    got = [plain(nodes.node(f"n{i}", **keys).add("c"))[0] for i in range(13)]
    hosts = {str(each) for each in ip_network("192.168.2.224/28").hosts()}
    assert sorted(got) == sorted(hosts - {"192.168.2.229"})
    with pytest.raises(Failure, match="blocks of the ranges in space default are taken"):
        nodes.node("n13", **keys).add("c")


def test_the_result_is_as_whereabouts_has_it(nodes: Nodes) -> None:
    keys: Json = {
        "range": "10.1.0.0/24",
        "range_start": "10.1.0.9",
        "ipRanges": [{"range": "fd00:1::/64"}],
        "gateway": "10.1.0.1",
        "routes": [{"dst": "0.0.0.0/0"}],
        "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}],
    }
    result = nodes.node("n1", **keys).call("ADD")
    v4, v6, extra = result["ips"]
    assert ip_address(plain([v4["address"]])[0]) >= ip_address("10.1.0.9")
    assert v4["gateway"] == "10.1.0.1"
    assert ip_address(plain([v6["address"]])[0]) in ip_network("fd00:1::/64")
    assert "gateway" not in v6
    assert extra == {"address": "10.9.0.5/24", "gateway": "10.9.0.1"}
    assert result["routes"] == [{"dst": "0.0.0.0/0"}]
    # without a gateway nothing is kept for one
    node = nodes.node("n1", "other", range="10.7.0.0/30", network_name="other")
    assert {node.add(cid)[0] for cid in ("a", "b")} == {"10.7.0.1/30", "10.7.0.2/30"}


def test_ranges_that_overlap_share_addresses_of_a_network_name(nodes: Nodes) -> None:
    wide, narrow = {"range": "10.1.0.0/28"}, {"range": "10.1.0.0/29"}
    got = [nodes.node("n1", "a", **narrow).add(f"a{i}")[0] for i in range(6)]
    got += [nodes.node("n2", "b", **wide).add(f"b{i}")[0] for i in range(8)]
    assert len({each.partition("/")[0] for each in got}) == 14
    # in another address space they are free again
    assert nodes.node("n3", "c", **narrow, network_name="blue").add("c")


def test_the_verbs(nodes: Nodes) -> None:
    node = nodes.node("n1", range="10.1.0.0/24")
    first = node.add("a")
    assert node.add("a") == first
    node.check("a")
    assert node.call("STATUS") is None
    node.add("b")
    node.gc(("b", "eth0"))
    with pytest.raises(Failure, match="Failed to find address"):
        node.check("a")
    node.check("b")
    node.delete("b")
    node.delete("b")
    directory = nodes.directory / "n1" / "default"
    assert not [each for each in directory.iterdir() if each.name[0].isdigit()]


def test_del_needs_no_more_than_the_directory(nodes: Nodes) -> None:
    nodes.flat({"dataDir": str(nodes.directory / "flat")})
    node = nodes.node("n1", range="10.1.0.0/24", dataDir=None)
    node.add("a")
    assert (nodes.directory / "flat" / "default").is_dir()
    node.conf["ipam"] = {"type": "whereabouts", "range": 7, "exclude": "x"}
    node.delete("a")
    directory = nodes.directory / "flat" / "default"
    assert not [each for each in directory.iterdir() if each.name[0].isdigit()]
    nodes.flat("{")  # what cannot be read is told of, after every step
    with pytest.raises(Failure, match=r"whereabouts\.conf"):
        node.delete("a")


def test_the_flat_file_and_the_name_beside_it(nodes: Nodes) -> None:
    store = {"type": "directory", "path": str(nodes.directory / "store")}
    nodes.flat({"store": store, "network_name": "flat", "log_level": "debug"})
    (nodes.directory / "nodename").write_text("of-the-file\n")
    nodes.node("n1", range="10.1.0.0/24", store=None, nodeName=None).add("a")
    (item,) = nodes.store.list("blocks/flat/").items
    assert item.value["node"] == "of-the-file"


def test_whose_store_counts(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's own, then the node's, then the API that whereabouts has always needed."""
    keys = {"range": "10.1.0.0/24", "kubernetes": {"kubeconfig": "/no/kubeconfig"}}
    with pytest.raises(Failure, match="/no/kubeconfig"):
        nodes.node("n1", **keys, store=None).add("a")
    node_file = nodes.directory / "cluster.json"
    store = {"type": "directory", "path": str(nodes.directory / "of-the-node")}
    node_file.write_text(json.dumps({"store": store}))
    nodes.node("n1", **keys, store=None).add("a")
    assert (nodes.directory / "of-the-node").is_dir()
    nodes.node("n2", **keys).add("a")
    assert (nodes.directory / "store").is_dir()


def test_what_has_no_meaning_is_said_once_on_a_node(
    nodes: Nodes, capfd: pytest.CaptureFixture[str]
) -> None:
    node = nodes.node("n1", range="10.1.0.0/24", log_file="/l", sleep_for_race=3, etcd_host=7)
    node.add("a")
    said = capfd.readouterr().err
    assert [said.count(key) for key in ("log_file", "sleep_for_race", "etcd_host")] == [1, 1, 1]
    node.add("b")
    node.delete("b")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("ipam", "message"),
    [
        ({}, "no IP ranges specified"),
        ({"range": 7}, "ipam.range"),
        ({"range": "10.1.0.0"}, "range: "),
        ({"range": "10.1.0.0/24", "routes": [{"dst": "x"}]}, "x"),
        ({"range": "10.1.0.0/24", "addresses": [{"address": "10.1.0.9"}]}, "10.1.0.9"),
        ({"range": "10.1.0.0/24", "configuration_path": "/gone"}, "/gone does not exist"),
        ({"range": "10.1.0.0/24", "node_slice_size": "/99"}, "node_slice_size /99"),
        ({"range": "10.1.0.0/24", "store": {"type": "zk"}}, "store.type"),
    ],
)
def test_what_is_wrong_is_named(nodes: Nodes, ipam: Json, message: str) -> None:
    with pytest.raises(Failure, match=message) as raised:
        nodes.node("n1", **ipam).add("a")
    assert raised.value.details
