"""flannel with real delegates: containers that reach each other, and nothing left of them.

What the delegate is called with is tested in tests/unit/test_flannel.py.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    CHECK_VERSIONS,
    DUAL,
    V4,
    Family,
    Netns,
    Runtime,
    addresses,
    each_family,
    each_version,
    has_route,
    kind,
    link,
    links,
    nft,
    ping,
    requires_kernel,
    result_addresses,
    tree,
    unchanged,
)
from tests.harness.contract import leases, without_dad

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_kernel("bridge", "veth")

Json = dict[str, Any]

NETWORKS = {"v4": ["10.22.0.0/16"], "v6": ["fd00:22::/48"]}
NETWORKS["dual"] = [*NETWORKS["v4"], *NETWORKS["v6"]]


class Flanneld:
    """Writes subnet.env, and knows what a configuration for it looks like."""

    def __init__(self, directory: Path, family: Family = V4) -> None:
        self.file = directory / "run/flannel/subnet.env"
        self.notes = directory / "flannel"
        self.leases = directory / "networks"
        self.write(family)

    def write(self, family: Family, mtu: int = 1430) -> None:
        lines = [f"FLANNEL_MTU={mtu}", "FLANNEL_IPMASQ=true"]
        for network, subnet, gateway in zip(
            NETWORKS[family.name], family.subnets, family.gateways, strict=True
        ):
            middle = "IPV6_" if ":" in subnet else ""
            lines.append(f"FLANNEL_{middle}NETWORK={network}")
            lines.append(f"FLANNEL_{middle}SUBNET={gateway}/{subnet.rpartition('/')[2]}")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n".join(lines) + "\n")

    def conf(self, **keys: Any) -> Json:
        where = {"subnetFile": str(self.file), "dataDir": str(self.notes)}
        ipam = {"dataDir": str(self.leases)}
        return {"cniVersion": "1.1.0", "name": "net", "ipam": ipam, **where, **keys}

    def left(self) -> list[str]:
        """Names of notes and leases."""
        return [*tree(self.notes, contents=False), *leases(self.leases)]


@pytest.fixture
def flanneld(tmp_path: Path) -> Flanneld:
    return Flanneld(tmp_path)


@each_family()
def test_two_containers(
    runtime: Runtime, container: Netns, container2: Netns, tmp_path: Path, family: Family
) -> None:
    """flannel, bridge and host-local: they reach each other, and the node's gateway."""
    flanneld = Flanneld(tmp_path, family)
    conf = flanneld.conf()
    without_dad(container, container2)
    runtime.status("flannel", conf).succeeded()
    results = []
    for one, cid, expected in (
        (container, "c1", family.first),
        (container2, "c2", family.second),
    ):
        reply = runtime.add("flannel", conf, one, container_id=cid)
        assert reply.stderr == ""
        results.append(reply.result)
        assert tuple(result_addresses(reply.result)) == expected
        assert addresses(one, "eth0") == list(expected)
        assert link(one, "eth0")["mtu"] == 1430
    for gateway, cidr in zip(family.gateways, family.second, strict=True):
        ping(container, gateway)
        ping(container, cidr.partition("/")[0])
    for wanted, gateway in zip(NETWORKS[family.name], family.gateways, strict=True):
        assert has_route(container, wanted, via=gateway, dev="eth0")
    for one, cid, result in ((container, "c1", results[0]), (container2, "c2", results[1])):
        runtime.check("flannel", conf, one, container_id=cid, prev_result=result).succeeded()
        for _ in range(2):
            runtime.delete("flannel", conf, one, container_id=cid).succeeded()
        assert "eth0" not in links(one)
    assert flanneld.left() == []


@each_version()
def test_every_version(
    runtime: Runtime, container: Netns, tmp_path: Path, cni_version: str
) -> None:
    flanneld = Flanneld(tmp_path, DUAL)
    conf = flanneld.conf(cniVersion=cni_version)
    result = runtime.add("flannel", conf, container).result
    assert result["cniVersion"] == cni_version
    assert result_addresses(result) == list(DUAL.first)
    if cni_version in CHECK_VERSIONS:
        runtime.check("flannel", conf, container, prev_result=result).succeeded()
        container.ip("address", "delete", DUAL.first[0], "dev", "eth0")
        runtime.check("flannel", conf, container, prev_result=result).failed()
    runtime.delete("flannel", conf, container).succeeded()
    assert flanneld.left() == []


def test_without_a_version(runtime: Runtime, container: Netns, flanneld: Flanneld) -> None:
    """The delegate then speaks 0.1.0, and so does the result."""
    conf = flanneld.conf()
    del conf["cniVersion"]
    result = runtime.add("flannel", conf, container).result
    assert result["ip4"]["ip"] == "10.22.0.2/24"
    runtime.delete("flannel", conf, container).succeeded()
    assert flanneld.left() == []


@pytest.mark.parametrize("gone", ["empty", "path"])
def test_delete_without_a_namespace(
    runtime: Runtime, container: Netns, flanneld: Flanneld, gone: str
) -> None:
    """And without flanneld's file."""
    conf = flanneld.conf()
    runtime.add("flannel", conf, container).succeeded()
    flanneld.file.unlink()
    runtime.delete("flannel", conf, None if gone == "empty" else "/run/netns/nosuch").succeeded()
    assert flanneld.left() == []
    assert not [name for name, one in links(runtime.host).items() if kind(one) == "veth"]


def test_flanneld_has_moved(runtime: Runtime, container: Netns, flanneld: Flanneld) -> None:
    """The node got another subnet meanwhile: the container is deleted as it was added."""
    conf = flanneld.conf(delegate={"bridge": "br22"})
    result = runtime.add("flannel", conf, container).result
    flanneld.write(DUAL, mtu=1280)
    runtime.check("flannel", conf, container, prev_result=result).succeeded()
    runtime.delete("flannel", conf, container).succeeded()
    assert flanneld.left() == []


def test_two_networks_of_one_container(
    runtime: Runtime, container: Netns, flanneld: Flanneld
) -> None:
    """Both keep their notes in one directory; deleting one leaves the other alone."""
    first = flanneld.conf(delegate={"bridge": "br22"})
    second = flanneld.conf(name="two", delegate={"type": "ptp"})
    before = links(runtime.host).keys()
    runtime.add("flannel", first, container).succeeded()
    runtime.add("flannel", second, container, ifname="net1").succeeded()
    assert kind(link(container, "net1")) == "veth"
    runtime.delete("flannel", second, container, ifname="net1").succeeded()
    assert "net1" not in links(container)
    assert addresses(container, "eth0") == ["10.22.0.2/24"]
    ping(container, "10.22.0.1")
    runtime.delete("flannel", first, container).succeeded()
    assert flanneld.left() == []
    assert links(runtime.host).keys() - before == {"br22"}


def test_gc(runtime: Runtime, container: Netns, container2: Netns, flanneld: Flanneld) -> None:
    conf = flanneld.conf()
    runtime.add("flannel", conf, container).succeeded()
    runtime.add("flannel", conf, container2, container_id="c2").succeeded()
    runtime.gc("flannel", conf, [("c2", "eth0")]).succeeded()
    assert "eth0" not in links(container)
    ping(container2, "10.22.0.1")
    assert sorted(tree(flanneld.notes, contents=False)) == ["c2", "c2:eth0"]
    assert len(leases(flanneld.leases)) == 1
    runtime.gc("flannel", conf, []).succeeded()
    assert flanneld.left() == []


def test_waiting_for_flanneld(runtime: Runtime, container: Netns, flanneld: Flanneld) -> None:
    conf = flanneld.conf()
    flanneld.file.unlink()
    with unchanged(runtime.host, container, flanneld.notes, flanneld.leases):
        runtime.status("flannel", conf).failed(50, f"waiting for flanneld to write {flanneld.file}")
        reply = runtime.add("flannel", conf, container)
        reply.failed(999, "failed to load flannel 'subnet.env' file", str(flanneld.file))
        runtime.delete("flannel", conf, container).succeeded()
    flanneld.write(V4)
    runtime.status("flannel", conf).succeeded()


def test_failed_add(runtime: Runtime, container: Netns, flanneld: Flanneld) -> None:
    """The delegate undoes what it did, and the note goes."""
    container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other0")
    conf = flanneld.conf()
    runtime.add("flannel", conf, container).failed(999, "eth0")
    assert flanneld.left() == []
    container.ip("link", "delete", "eth0")
    runtime.delete("flannel", conf, container).succeeded()
    assert flanneld.left() == []


def test_a_delegate_that_is_not_ours(
    runtime: Runtime, container: Netns, flanneld: Flanneld, go_bin_dir: Path
) -> None:
    """Debian's bridge and host-local as children."""
    conf = flanneld.conf(cniVersion="1.0.0")
    runtime.cni_path = f"{go_bin_dir}:{runtime.bin_dir}"
    result = runtime.add("flannel", conf, container).result
    assert result["cniVersion"] == "1.0.0"
    assert result_addresses(result) == ["10.22.0.2/24"]
    ping(container, "10.22.0.1")
    runtime.delete("flannel", conf, container).succeeded()
    assert flanneld.left() == []
    assert "eth0" not in links(container)


@requires_kernel("nft_masquerade")
def test_rules_come_back(
    runtime: Runtime, container: Netns, flanneld: Flanneld, tmp_path: Path
) -> None:
    """`cni reload` knows the delegate's rules, and its DEL forgets them."""
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    conf = flanneld.conf(delegate={"ipMasq": True, "ipMasqBackend": "nftables"})
    runtime.add("flannel", conf, container).succeeded()
    rules = nft(runtime.host)
    assert rules
    runtime.host.exec(["nft", "flush", "ruleset"])
    runtime.host.exec([runtime.bin_dir / "cni", "reload"], env={**os.environ, **runtime.env})
    assert nft(runtime.host) == rules
    runtime.delete("flannel", conf, container).succeeded()
    assert list((tmp_path / "state/intent").iterdir()) == []
