"""`uplinkInterface` of bridge: which VLANs the uplink carries, how long, and that packets flow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    Netns,
    PortVlan,
    Runtime,
    connect,
    link,
    links,
    ping,
    requires_kernel,
    vlans,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = requires_kernel("vlan_filtering", "vlan")

Json = dict[str, Any]
DEFAULT = PortVlan(1, pvid=True, untagged=True)


def network(**keys: Any) -> Json:
    base = {"cniVersion": "1.1.0", "name": "net", "bridge": "br0", "uplinkInterface": "lan0"}
    return {**base, **keys}


def addressed(number: int, **keys: Any) -> Json:
    ipam = {"type": "static", "addresses": [{"address": f"10.77.0.{number}/24"}]}
    return network(ipam=ipam, **keys)


@pytest.fixture
def lan(runtime: Runtime, netns: Callable[..., Netns], tmp_path: Path) -> Netns:
    """A host that is 10.77.0.1 in VLAN 100 of the wire at the node's lan0."""
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    outside = netns("outside")
    runtime.host.ip(
        *("link", "add", "lan0", "type", "veth", "peer", "name", "wire0"),
        *("netns", outside.name),
    )
    outside.ip_batch(
        "link set wire0 up",
        "link add link wire0 name wire0.100 type vlan id 100",
        "link set wire0.100 up",
        "address add 10.77.0.1/24 dev wire0.100",
    )
    return outside


def notes(runtime: Runtime) -> list[int]:
    """The VLANs that are noted as ours; 0 is the port."""
    directory = Path(runtime.env["CNI_STATE_DIR"]) / "uplinks"
    return sorted(int(each.name.rpartition("-")[2]) for each in directory.iterdir())


def carried(runtime: Runtime) -> list[int]:
    found = vlans(runtime.host, "lan0")
    assert found[0] == DEFAULT
    assert not any(vlan.pvid or vlan.untagged for vlan in found[1:])
    return [vlan.vid for vlan in found[1:]]


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_a_vlan_goes_with_its_last_user(
    runtime: Runtime, netns: Callable[..., Netns], lan: Netns, verb: str
) -> None:
    one, two, three = (netns(name) for name in ("one", "two", "three"))
    in_vlan = [addressed(number, vlan=100) for number in (2, 3)]
    runtime.add("bridge", in_vlan[0], one, container_id="c1").succeeded()
    result = runtime.add("bridge", in_vlan[1], two, container_id="c2").result
    runtime.add("bridge", network(vlan=200), three, container_id="c3").succeeded()
    assert carried(runtime) == [100, 200]
    ping(one, "10.77.0.1")
    runtime.check("bridge", in_vlan[1], two, container_id="c2", prev_result=result).succeeded()
    runtime.delete("bridge", in_vlan[0], one, container_id="c1").succeeded()
    assert carried(runtime) == [100, 200]
    ping(two, "10.77.0.1")
    if verb == "DEL":
        runtime.delete("bridge", in_vlan[1], None, container_id="c2").succeeded()
    else:
        runtime.gc("bridge", network(vlan=100), [("c3", "eth0")]).succeeded()
    assert carried(runtime) == [200]
    assert notes(runtime) == [0, 200]
    runtime.delete("bridge", network(vlan=200), three, container_id="c3").succeeded()
    runtime.delete("bridge", network(vlan=200), three, container_id="c3").succeeded()
    assert carried(runtime) == []
    assert notes(runtime) == [0]


def test_trunks_overlap(runtime: Runtime, netns: Callable[..., Netns], lan: Netns) -> None:
    """Each VLAN stays as long as one port has it."""
    one, two = netns("one"), netns("two")
    first = network(vlan=5, vlanTrunk=[{"minID": 10, "maxID": 12}])
    second = network(vlanTrunk=[{"minID": 11, "maxID": 13}, {"id": 5}])
    runtime.add("bridge", first, one, container_id="c1").succeeded()
    runtime.add("bridge", second, two, container_id="c2").succeeded()
    assert carried(runtime) == [5, 10, 11, 12, 13]
    runtime.delete("bridge", first, one, container_id="c1").succeeded()
    assert carried(runtime) == [5, 11, 12, 13]
    runtime.delete("bridge", second, two, container_id="c2").succeeded()
    assert carried(runtime) == []


def test_what_it_carried_before_it_goes_on_to_carry(
    runtime: Runtime, container: Netns, lan: Netns
) -> None:
    """An administrator's bridge, and VLAN 100 on the link; 200 is ours."""
    runtime.host.ip_batch(
        "link add br0 type bridge vlan_filtering 1", "link set br0 up", "link set lan0 master br0"
    )
    runtime.host.exec(["bridge", "vlan", "add", "vid", "100", "dev", "lan0"])
    conf = network(vlan=100, vlanTrunk=[{"id": 200}])
    runtime.add("bridge", conf, container).succeeded()
    assert carried(runtime) == [100, 200]
    assert notes(runtime) == [200]
    runtime.delete("bridge", conf, container).succeeded()
    assert carried(runtime) == [100]
    assert link(runtime.host, "lan0")["master"] == "br0"


def test_a_port_of_others_keeps_its_vlan(runtime: Runtime, container: Netns, lan: Netns) -> None:
    """Such as a virtual machine's; and the same VLAN on another bridge keeps nothing."""
    conf = network(vlan=100)
    runtime.add("bridge", conf, container).succeeded()
    for name, bridge in (("vm0", "br0"), ("vm1", "br1")):
        if bridge == "br1":
            runtime.host.ip("link", "add", "br1", "type", "bridge", "vlan_filtering", "1")
        runtime.host.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        runtime.host.ip("link", "set", name, "master", bridge)
        runtime.host.exec(["bridge", "vlan", "add", "vid", "100", "dev", name])
    runtime.delete("bridge", conf, container).succeeded()
    assert carried(runtime) == [100]
    runtime.host.ip("link", "del", "vm0")
    runtime.gc("bridge", conf, []).succeeded()
    assert carried(runtime) == []


@pytest.mark.parametrize("removes", [True, False])
def test_the_gateway_is_no_user(
    runtime: Runtime, container: Netns, lan: Netns, removes: bool
) -> None:
    """The node's own interface in the VLAN stays on the bridge, or goes with it."""
    keys: Json = {"removeEmptyBridge": True} if removes else {}
    conf = addressed(2, vlan=100, isGateway=True, **keys)
    conf["ipam"]["addresses"][0]["gateway"] = "10.77.0.9"
    runtime.add("bridge", conf, container).succeeded()
    ping(container, "10.77.0.1")
    ping(lan, "10.77.0.9")
    runtime.delete("bridge", conf, container).succeeded()
    if removes:
        assert not {"br0", "br0.100"} & set(links(runtime.host))
        assert "master" not in link(runtime.host, "lan0")
        assert notes(runtime) == []
    else:
        assert carried(runtime) == []


def test_an_add_that_fails_takes_its_vlan_back(
    runtime: Runtime, netns: Callable[..., Netns], lan: Netns
) -> None:
    one, two = netns("one"), netns("two")
    runtime.add("bridge", network(vlan=200), one, container_id="c1").succeeded()
    broken = addressed(2, vlan=100)
    broken["ipam"]["routes"] = [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]
    runtime.add("bridge", broken, two, container_id="c2").failed(999, "failed to add route")
    assert carried(runtime) == [200]
    assert notes(runtime) == [0, 200]


def test_check_misses_a_vlan(runtime: Runtime, container: Netns, lan: Netns) -> None:
    conf = network(vlan=100)
    result = runtime.add("bridge", conf, container).result
    runtime.host.exec(["bridge", "vlan", "del", "vid", "100", "dev", "lan0"])
    error = runtime.check("bridge", conf, container, prev_result=result).failed(999)
    assert "uplinkInterface lan0 lacks VLAN 100" in error["msg"] + error.get("details", "")
    runtime.delete("bridge", conf, container).succeeded()
    assert notes(runtime) == [0]


def test_another_uplink_is_no_user(
    runtime: Runtime, netns: Callable[..., Netns], lan: Netns
) -> None:
    """Two networks on one bridge, each with an uplink of its own in the same VLAN."""
    other, one, two = netns("other"), netns("one"), netns("two")
    connect(runtime.host, other)
    (name,) = [each for each in links(runtime.host) if each not in ("lo", "lan0")]
    runtime.host.ip("address", "flush", "dev", name)
    second = {**network(vlan=100), "name": "net2", "uplinkInterface": name}
    runtime.add("bridge", network(vlan=100), one, container_id="c1").succeeded()
    runtime.add("bridge", second, two, container_id="c2").succeeded()
    runtime.delete("bridge", network(vlan=100), one, container_id="c1").succeeded()
    runtime.delete("bridge", second, two, container_id="c2").succeeded()
    assert carried(runtime) == []
    assert [vlan.vid for vlan in vlans(runtime.host, name)] == [1]
