"""VLANs of the bridge plugin: what each port carries, and which packets get through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    ALL_VERSIONS,
    CHECK_VERSIONS,
    INTERFACE_VERSIONS,
    V4,
    Netns,
    PortVlan,
    Runtime,
    addresses,
    capture,
    connect,
    each_family,
    each_version,
    has_route,
    kind,
    link,
    links,
    ping,
    port,
    ports,
    requires_kernel,
    result_addresses,
    tcp_exchange,
    tcp_server,
    unchanged,
    vlans,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness import Family

pytestmark = requires_kernel("vlan_filtering")

TRUNK = [{"id": 101}, {"minID": 200, "maxID": 210}]
TRUNK_IDS = (101, *range(200, 211))
ACCESS = PortVlan(100, pvid=True, untagged=True)
DEFAULT = PortVlan(1, pvid=True, untagged=True)

Json = dict[str, Any]


def network(**keys: Any) -> Json:
    """A layer-2 network on bridge br0 with these further keys."""
    return {"cniVersion": "1.0.0", "name": "net", "bridge": "br0", **keys}


def filtering(host: Netns) -> bool:
    return bool(link(host, "br0")["linkinfo"]["info_data"]["vlan_filtering"])


def tagged(*vids: int) -> list[PortVlan]:
    return [PortVlan(vid) for vid in vids]


def add_port(runtime: Runtime, conf: Json, container: Netns, **kwargs: Any) -> list[PortVlan]:
    """ADD, and the VLANs of the new port."""
    result = runtime.add("bridge", conf, container, **kwargs).result
    name = result["interfaces"][1]["name"]
    assert link(runtime.host, name)["master"] == "br0"
    return vlans(runtime.host, name)


# -- what a port carries --------------------------------------------------------------------------


def test_no_vlan_means_no_filtering(runtime: Runtime, container: Netns) -> None:
    runtime.add("bridge", network(vlan=0), container).succeeded()
    assert not filtering(runtime.host)


@each_version(INTERFACE_VERSIONS)
def test_access_vlan(runtime: Runtime, container: Netns, cni_version: str) -> None:
    conf = network(cniVersion=cni_version, vlan=100)
    assert add_port(runtime, conf, container) == [ACCESS]
    assert filtering(runtime.host)
    # The bridge itself stays where the kernel put it.
    assert vlans(runtime.host, "br0") == [DEFAULT]


@pytest.mark.parametrize("vlan", [2, 4094])
def test_first_and_last_vlan(runtime: Runtime, container: Netns, vlan: int) -> None:
    port_vlans = add_port(runtime, network(vlan=vlan), container)
    assert port_vlans == [PortVlan(vlan, pvid=True, untagged=True)]


def test_access_vlan_1(runtime: Runtime, container: Netns) -> None:
    assert add_port(runtime, network(vlan=1), container) == [DEFAULT]


def test_access_vlan_beside_the_default_one(runtime: Runtime, container: Netns) -> None:
    conf = network(vlan=100, preserveDefaultVlan=True)
    assert add_port(runtime, conf, container) == [PortVlan(1, untagged=True), ACCESS]


@pytest.mark.parametrize("preserve", [True, False])
def test_trunk_alone_has_vlan_1_untagged(
    runtime: Runtime, container: Netns, preserve: bool
) -> None:
    conf = network(vlanTrunk=TRUNK, preserveDefaultVlan=preserve)
    assert add_port(runtime, conf, container) == [DEFAULT, *tagged(*TRUNK_IDS)]
    assert filtering(runtime.host)


@pytest.mark.parametrize("preserve", [True, False])
def test_trunk_with_an_access_vlan(runtime: Runtime, container: Netns, preserve: bool) -> None:
    conf = network(vlan=100, vlanTrunk=TRUNK, preserveDefaultVlan=preserve)
    first = [PortVlan(1, untagged=True)] if preserve else []
    assert add_port(runtime, conf, container) == [*first, ACCESS, *tagged(*TRUNK_IDS)]


def test_trunk_items_are_united(runtime: Runtime, container: Netns) -> None:
    trunk = [
        {"minID": 10, "maxID": 12, "id": 11},
        {"id": 4094},
        {"id": 5},
        {"minID": 5, "maxID": 5},
    ]
    conf = network(vlan=100, vlanTrunk=trunk)
    assert add_port(runtime, conf, container) == [
        *tagged(5, 10, 11, 12),
        ACCESS,
        PortVlan(4094),
    ]


def test_empty_trunk_only_switches_filtering_on(runtime: Runtime, container: Netns) -> None:
    assert add_port(runtime, network(vlanTrunk=[]), container) == [DEFAULT]
    assert filtering(runtime.host)


def test_existing_bridge_is_left_as_it_is(runtime: Runtime, container: Netns) -> None:
    runtime.host.ip("link", "add", "br0", "mtu", "1400", "type", "bridge", "vlan_filtering", "0")
    before = link(runtime.host, "br0")
    assert add_port(runtime, network(vlan=100, mtu=1300), container) == [ACCESS]
    after = link(runtime.host, "br0")
    assert not filtering(runtime.host)
    assert (after["ifindex"], after["mtu"]) == (before["ifindex"], 1300)  # mtu follows the ports


def test_ports_of_other_containers_are_left_alone(
    runtime: Runtime, container: Netns, container2: Netns
) -> None:
    first = runtime.add("bridge", network(vlanTrunk=TRUNK), container).result
    add_port(runtime, network(vlan=100), container2, container_id="c2")
    name = first["interfaces"][1]["name"]
    assert vlans(runtime.host, name) == [DEFAULT, *tagged(*TRUNK_IDS)]


@pytest.mark.parametrize("keys", [{"vlan": 100}, {"vlanTrunk": TRUNK}], ids=["access", "trunk"])
@each_version(CHECK_VERSIONS)
def test_check_and_delete(runtime: Runtime, container: Netns, keys: Json, cni_version: str) -> None:
    conf = network(cniVersion=cni_version, ipam=V4.static(), **keys)
    result = runtime.add("bridge", conf, container).result
    runtime.check("bridge", conf, container, prev_result=result).succeeded()
    runtime.delete("bridge", conf, container, prev_result=result).succeeded()
    assert not ports(runtime.host, "br0")
    assert filtering(runtime.host)
    runtime.check("bridge", conf, container, prev_result=result).failed()
    runtime.delete("bridge", conf, container, prev_result=result).succeeded()


@pytest.mark.parametrize("keys", [{"vlan": 100}, {"vlanTrunk": TRUNK}], ids=["access", "trunk"])
@each_version(ALL_VERSIONS[:2])
def test_layer_2_has_no_result_in_the_oldest_versions(
    runtime: Runtime, container: Netns, keys: Json, cni_version: str
) -> None:
    conf = network(cniVersion=cni_version, **keys)
    reply = runtime.add("bridge", conf, container)
    reply.failed(999, "cannot convert: no valid IP addresses")
    runtime.delete("bridge", conf, container).succeeded()
    assert "eth0" not in links(container)
    assert not ports(runtime.host, "br0")


# -- bad input ------------------------------------------------------------------------------------

BAD = [
    ({"vlan": -100}, "invalid VLAN ID -100 (must be between 0 and 4094)"),
    ({"vlan": 4095}, "invalid VLAN ID 4095 (must be between 0 and 4094)"),
    ({"vlan": 5000}, "invalid VLAN ID 5000 (must be between 0 and 4094)"),
    ({"vlanTrunk": [{"minID": 100}]}, "maxID is missing"),
    ({"vlanTrunk": [{"maxID": 100}]}, "minID is missing"),
    ({"vlanTrunk": [{"minID": -1, "maxID": 100}]}, "incorrect trunk minID parameter"),
    ({"vlanTrunk": [{"minID": 0, "maxID": 100}]}, "incorrect trunk minID parameter"),
    ({"vlanTrunk": [{"minID": 4095, "maxID": 4095}]}, "incorrect trunk minID parameter"),
    ({"vlanTrunk": [{"minID": 1, "maxID": 4095}]}, "incorrect trunk maxID parameter"),
    ({"vlanTrunk": [{"minID": 20, "maxID": 10}]}, "minID is greater than maxID in trunk parameter"),
    ({"vlanTrunk": [{"id": 4095}]}, "incorrect trunk id parameter"),
    ({"vlanTrunk": [{"id": 0}]}, "incorrect trunk id parameter"),
    ({"vlanTrunk": [{"id": -1}]}, "incorrect trunk id parameter"),
    ({"vlanTrunk": [{"id": 5}, {"minID": 5}]}, "maxID is missing"),
]


@pytest.mark.parametrize(("keys", "text"), BAD, ids=[str(keys) for keys, _ in BAD])
def test_bad_vlans_change_nothing(
    runtime: Runtime, container: Netns, data_dir: Path, keys: Json, text: str
) -> None:
    conf = network(ipam=V4.host_local(data_dir), **keys)
    with unchanged(runtime.host, container, data_dir):
        runtime.add("bridge", conf, container).failed(999, text)
        runtime.check("bridge", conf, container).failed(999, text)
    with unchanged(runtime.host, container):
        runtime.delete("bridge", conf, container).succeeded()


# -- the gateway of a VLAN ------------------------------------------------------------------------


@pytest.mark.parametrize("preserve", [True, False], ids=["preserve", "remove"])
@each_family()
@each_version(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_gateway(
    runtime: Runtime,
    container: Netns,
    data_dir: Path,
    family: Family,
    preserve: bool,
    cni_version: str,
) -> None:
    host = runtime.host
    conf = network(
        cniVersion=cni_version,
        vlan=100,
        preserveDefaultVlan=preserve,
        isDefaultGateway=True,
        ipam=family.host_local(data_dir, routes=False),
    )
    result = runtime.add("bridge", conf, container).result

    assert result_addresses(result) == list(family.first)
    assert [one["name"] for one in result["interfaces"]] == [
        "br0",
        result["interfaces"][1]["name"],
        "eth0",
        "br0.100",
    ]
    gateway = link(host, "br0.100")
    assert result["interfaces"][3] == {"name": "br0.100", "mac": gateway["address"]}
    assert kind(gateway) == "veth"
    assert "UP" in gateway["flags"]
    prefixes = [subnet.rpartition("/")[2] for subnet in family.subnets]
    expected = [f"{ip}/{n}" for ip, n in zip(family.gateways, prefixes, strict=True)]
    assert addresses(host, "br0.100") == expected
    assert addresses(host, "br0") == []

    # Its other end is a port like a container's.
    peer = gateway["link"]
    assert set(ports(host, "br0")) == {peer, result["interfaces"][1]["name"]}
    expected_vlans = [PortVlan(1, untagged=True), ACCESS] if preserve else [ACCESS]
    assert vlans(host, peer) == vlans(host, result["interfaces"][1]["name"]) == expected_vlans
    assert not port(link(host, peer))["hairpin"]
    assert not port(link(host, peer))["isolated"]

    for default, address in zip(family.defaults, family.gateways, strict=True):
        assert has_route(container, default, via=address, dev="eth0")
        ping(container, address)
    assert (host.sysctl("net/ipv4/ip_forward") == "1") == (family.name != "v6")
    assert (host.sysctl("net/ipv6/conf/all/forwarding") == "1") == (family.name != "v4")


def test_gateway_is_shared_and_stays(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path
) -> None:
    conf = network(vlan=100, isGateway=True, mtu=1400, ipam=V4.host_local(data_dir))
    first = runtime.add("bridge", conf, container).result
    gateway = link(runtime.host, "br0.100")
    assert gateway["mtu"] == 1400
    with runtime.attached("bridge", conf, container2, container_id="c2") as second:
        assert second["interfaces"][3] == first["interfaces"][3]
        assert link(runtime.host, "br0.100")["ifindex"] == gateway["ifindex"]
        assert len(ports(runtime.host, "br0")) == 3
        ping(container, V4.second[0].partition("/")[0])
        ping(container2, V4.gateways[0])
    runtime.check("bridge", conf, container, prev_result=first).succeeded()
    runtime.delete("bridge", conf, container, prev_result=first).succeeded()
    assert link(runtime.host, "br0.100")["ifindex"] == gateway["ifindex"]
    assert addresses(runtime.host, "br0.100") == ["10.22.0.1/24"]
    assert list(ports(runtime.host, "br0")) == [gateway["link"]]


def test_gateways_go_with_their_last_port(
    runtime: Runtime, container: Netns, container2: Netns
) -> None:
    """With `removeEmptyBridge`: each VLAN's by itself, the bridge with the last, others' never."""

    def of_vlan(vlan: int) -> Json:
        ipam = {"type": "static", "addresses": [{"address": f"10.{vlan}.0.2/24"}]}
        keys = {"vlan": vlan, "isGateway": True, "removeEmptyBridge": True, "ipam": ipam}
        return network(name=f"net{vlan}", **keys)

    runtime.add("bridge", of_vlan(100), container, container_id="c1").succeeded()
    runtime.add("bridge", of_vlan(200), container2, container_id="c2").succeeded()
    more = {**of_vlan(100), "ipam": {}, "isGateway": False}
    runtime.add("bridge", more, container2, container_id="c3", ifname="eth1").succeeded()
    runtime.delete("bridge", of_vlan(100), container, container_id="c1").succeeded()
    assert {"br0.100", "br0.200"} <= set(links(runtime.host))
    runtime.delete("bridge", more, container2, container_id="c3", ifname="eth1").succeeded()
    assert "br0.100" not in links(runtime.host)
    ping(container2, "10.200.0.1")
    runtime.delete("bridge", of_vlan(200), container2, container_id="c2").succeeded()
    assert not {"br0", "br0.100", "br0.200"} & set(links(runtime.host))

    reference = {**of_vlan(100), "removeEmptyBridge": False}
    runtime.add("bridge", reference, container, container_id="c1").succeeded()
    runtime.delete("bridge", of_vlan(100), container, container_id="c1").succeeded()
    runtime.gc("bridge", {**of_vlan(100), "cniVersion": "1.1.0"}, []).succeeded()
    assert {"br0", "br0.100"} <= set(links(runtime.host))


def test_each_vlan_has_its_own_gateway(
    runtime: Runtime, container: Netns, container2: Netns
) -> None:
    for vlan, ns in ((100, container), (200, container2)):
        subnet = f"10.{vlan}.0"
        ipam = {"type": "static", "addresses": [{"address": f"{subnet}.2/24"}]}
        conf = network(name=f"net{vlan}", vlan=vlan, isDefaultGateway=True, ipam=ipam)
        runtime.add("bridge", conf, ns, container_id=f"c{vlan}").succeeded()
        assert addresses(runtime.host, f"br0.{vlan}") == [f"{subnet}.1/24"]
        ping(ns, f"{subnet}.1")
    # From one VLAN to the other the way is through the node, which forwards.
    with tcp_server(container2) as server:
        assert tcp_exchange(container, "10.200.0.2", server.port) == "10.100.0.2"


def test_gateway_with_another_address(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path
) -> None:
    conf = network(vlan=100, isGateway=True, ipam=V4.host_local(data_dir))
    runtime.add("bridge", conf, container).succeeded()
    ranges = [[{"subnet": "10.33.0.0/24"}]]
    other = network(name="other", vlan=100, isGateway=True, ipam={**conf["ipam"], "ranges": ranges})
    reply = runtime.add("bridge", other, container2, container_id="c2")
    reply.failed(
        999,
        "failed to set vlan interface for bridge with addr: ",
        "already has an IP address different from 10.33.0.1/24",
    )
    assert addresses(runtime.host, "br0.100") == ["10.22.0.1/24"]
    # The address was given back.
    assert not (data_dir / "other" / "10.33.0.2").exists()
    runtime.delete("bridge", other, container2, container_id="c2").succeeded()

    other["forceAddress"] = True
    runtime.add("bridge", other, container2, container_id="c2").succeeded()
    assert addresses(runtime.host, "br0.100") == ["10.33.0.1/24"]


@pytest.mark.parametrize(
    "bridge_filtering",
    [
        "0",
        pytest.param(
            "1",
            marks=pytest.mark.xfail(
                raises=TimeoutError,
                reason="as in the reference, packets on their way across the bridge to the VLAN's "
                "gateway are masqueraded already there, where no address is, and are lost",
            ),
        ),
    ],
)
def test_masquerade_behind_a_vlan_gateway(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, bridge_filtering: str
) -> None:
    connect(runtime.host, outside)
    runtime.host.set_sysctl("net/bridge/bridge-nf-call-iptables", bridge_filtering)
    conf = network(vlan=100, isGateway=True, ipMasq=True, ipam=V4.host_local(data_dir))
    with runtime.attached("bridge", conf, container), tcp_server(outside) as server:
        assert tcp_exchange(container, "198.51.100.2", server.port) == "198.51.100.1"


# -- packets --------------------------------------------------------------------------------------


@pytest.fixture
def member(runtime: Runtime, netns: Callable[..., Netns]) -> Callable[..., Netns]:
    """Makes a container on br0 with host number n of the test subnets: `member(2, vlan=100)`."""

    def make(number: int, **keys: Any) -> Netns:
        ns = netns(f"container{number}")
        ipam = {
            "type": "static",
            "addresses": [
                {"address": f"10.22.0.{number}/24"},
                {"address": f"fd00:22::{number}/64"},
            ],
        }
        conf = network(ipam=ipam, **keys)
        runtime.add("bridge", conf, ns, container_id=f"c{number}").succeeded()
        return ns

    return make


def reaches(source: Netns, number: int, expect: bool = True) -> None:
    for address in (f"10.22.0.{number}", f"fd00:22::{number}"):
        ping(source, address, expect=expect, wait=0.5 if expect else 0.2)


def test_vlans_are_separate(member: Callable[..., Netns]) -> None:
    first = member(2, vlan=100)
    second = member(3, vlan=100)
    other = member(4, vlan=200)
    plain = member(5, vlan=0)
    reaches(first, 3)
    reaches(second, 2)
    for source, target in ((first, 4), (other, 2), (first, 5), (plain, 3), (other, 5)):
        reaches(source, target, expect=False)


def test_same_vlan_carries_streams(member: Callable[..., Netns]) -> None:
    first, second = member(2, vlan=100), member(3, vlan=100)
    with tcp_server(second) as server:
        assert tcp_exchange(first, "10.22.0.3", server.port, b"x" * 200_000) == "10.22.0.2"
        assert tcp_exchange(first, "fd00:22::3", server.port) == "fd00:22::2"


@requires_kernel("vlan")
def test_trunk_carries_tagged_frames(member: Callable[..., Netns]) -> None:
    trunk = member(2, vlanTrunk=[{"id": 100}, {"minID": 300, "maxID": 310}])
    access = member(3, vlan=100)
    other = member(4, vlan=200)
    trunk.ip_batch(
        "link add link eth0 name eth0.100 type vlan id 100",
        "link add link eth0 name eth0.200 type vlan id 200",
        "link set eth0.100 up",
        "link set eth0.200 up",
        "address flush dev eth0",
        "address add 10.22.0.2/24 dev eth0.100",
    )
    with capture(trunk, "eth0") as at_trunk, capture(access, "eth0") as at_access:
        ping(access, "10.22.0.2")
    assert {frame.vlan for frame in at_trunk.frames if frame.arp} == {100}
    assert {frame.vlan for frame in at_access.frames if frame.arp} == {None}
    ping(other, "10.22.0.2", expect=False, wait=0.2)
    # VLAN 200 is not in the trunk.
    trunk.ip_batch(
        "address flush dev eth0.100",
        "address add 10.22.0.2/24 dev eth0.200",
    )
    ping(trunk, "10.22.0.4", expect=False, wait=0.2)
    ping(trunk, "10.22.0.3", expect=False, wait=0.2)


def test_untagged_frames_of_a_trunk_are_in_vlan_1(member: Callable[..., Netns]) -> None:
    trunk = member(2, vlanTrunk=[{"id": 100}])
    member(3, vlan=100)
    member(4, vlan=0)
    reaches(trunk, 4)
    reaches(trunk, 3, expect=False)


def test_untagged_frames_of_a_trunk_are_in_its_access_vlan(member: Callable[..., Netns]) -> None:
    trunk = member(2, vlan=100, vlanTrunk=[{"id": 300}])
    member(3, vlan=100)
    member(4, vlan=0)
    reaches(trunk, 3)
    reaches(trunk, 4, expect=False)


@pytest.mark.parametrize("preserve", [True, False], ids=["preserve", "remove"])
def test_only_a_port_with_the_default_vlan_hears_it(
    member: Callable[..., Netns], preserve: bool
) -> None:
    listener = member(2, vlan=100, preserveDefaultVlan=preserve)
    plain = member(3, vlan=0)
    with capture(listener, "eth0") as heard:
        # Nobody can answer: what the listener sends is in VLAN 100.
        ping(plain, "10.22.0.2", expect=False, wait=0.2)
    questions = [arp for arp in heard.arps("10.22.0.3") if not arp.gratuitous]
    assert bool(questions) == preserve


def test_isolated_ports_reach_only_the_gateway(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path
) -> None:
    conf = network(vlan=100, portIsolation=True, isGateway=True, ipam=V4.host_local(data_dir))
    for ns, cid in ((container, "c1"), (container2, "c2")):
        result = runtime.add("bridge", conf, ns, container_id=cid).result
        assert port(link(runtime.host, result["interfaces"][1]["name"]))["isolated"]
        ping(ns, V4.gateways[0])
    ping(container, V4.second[0].partition("/")[0], expect=False, wait=0.2)
