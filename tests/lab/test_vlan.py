"""vlan: 802.1Q interfaces of a link of the node or of the container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    INTERFACE_VERSIONS,
    V4,
    Family,
    Netns,
    Runtime,
    addresses,
    capture,
    each_family,
    each_version,
    link,
    links,
    ping,
    requires_kernel,
    tcp_exchange,
    tcp_server,
    unchanged,
)
from tests.harness.contract import (
    MASTER,
    InterfaceContract,
    StandIn,
    leases,
    plug,
    without_dad,
    without_ipv6,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_kernel("vlan")

Json = dict[str, Any]


class TestContract(InterfaceContract):
    plugin = "vlan"
    kind = "vlan"
    no_prev_result = "vlan: Required prevResult missing"
    ipam_error = "failed to execute IPAM delegate: the stand-in has no address"
    ipam_code = 999

    def prepare(self, ns: Netns, outside: Netns) -> Json:
        plug(ns, outside, vlan=1234)
        return {"master": MASTER, "vlanId": 1234}

    def second(self, host: Netns) -> Json:  # noqa: ARG002
        return {"vlanId": 1235}


def network(**keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "net", "master": MASTER, "ipam": V4.static(), **keys}


def vlan(ns: Netns, name: str = "eth0") -> tuple[int, str]:
    data = link(ns, name)["linkinfo"]["info_data"]
    return data["id"], data["protocol"]


@pytest.mark.parametrize("where", ["host", "container"])
@pytest.mark.parametrize(
    ("keys", "number", "mtu"),
    [
        ({"vlanId": 33, "mtu": 1200}, 33, 1200),
        ({"vlanId": 33, "mtu": 1100}, 33, 1100),
        ({"vlanId": 33}, 33, 1200),
        ({"vlanId": 4094, "mtu": 0}, 4094, 1200),
        ({"vlanID": 1}, 1, 1200),
        ({}, 0, 1200),
    ],
    ids=repr,
)
def test_id_and_mtu(
    runtime: Runtime,
    container: Netns,
    outside: Netns,
    keys: Json,
    number: int,
    mtu: int,
    where: str,
) -> None:
    ns = runtime.host if where == "host" else container
    plug(ns, outside)
    ns.ip("link", "set", MASTER, "mtu", "1200")  # too little for IPv6
    conf = network(linkInContainer=where == "container", **keys)
    result = runtime.add("vlan", conf, container).result
    made = link(container, "eth0")
    assert vlan(container) == (number, "802.1Q")
    assert made["mtu"] == mtu
    assert made["address"] == link(ns, MASTER)["address"] == result["interfaces"][0]["mac"]
    runtime.check("vlan", conf, container, prev_result=result).succeeded()


@pytest.mark.parametrize("where", ["host", "container"])
@pytest.mark.parametrize("protocol", ["802.1Q", "802.1ad", "802.1AD"])
def test_protocol(
    runtime: Runtime, container: Netns, outside: Netns, protocol: str, where: str
) -> None:
    ns = runtime.host if where == "host" else container
    plug(ns, outside)
    conf = network(vlanId=33, protocol=protocol, linkInContainer=where == "container")
    result = runtime.add("vlan", conf, container).result
    name = "802.1Q" if protocol == "802.1Q" else "802.1ad"
    assert vlan(container) == (33, name)
    runtime.check("vlan", conf, container, prev_result=result).succeeded()
    other = {**conf, "protocol": "802.1Q" if name == "802.1ad" else "802.1ad"}
    text = f"vlan: eth0 has protocol {name}, not {other['protocol']}"
    runtime.check("vlan", other, container, prev_result=result).failed(999, text)
    for _ in range(2):
        runtime.delete("vlan", conf, container, prev_result=result).succeeded()
    assert "eth0" not in links(container)


def test_two_tags(runtime: Runtime, container: Netns, outside: Netns, data_dir: Path) -> None:
    """A container's own VLAN inside of the node's (QinQ): both tags are on the wire."""
    without_dad(container)
    plug(runtime.host, outside)
    outside.ip_batch(
        "link add outer link peer0 type vlan protocol 802.1ad id 33",
        "link add inner link outer type vlan id 5",
        "link set outer up",
        "link set inner up",
        "address add 10.55.5.1/24 dev inner",
    )
    conf = network(vlanId=33, protocol="802.1ad", ipam=V4.host_local(data_dir))
    runtime.add("vlan", conf, container).succeeded()
    container.ip_batch(
        "link add eth0.5 link eth0 type vlan id 5",
        "address add 10.55.5.2/24 dev eth0.5",
        "link set eth0.5 up",
    )
    ping(container, "10.55.5.1")
    outside.ip("link", "set", "outer", "down")
    ping(container, "10.55.5.1", expect=False)


IP = {"address": "10.22.0.7/24", "gateway": "10.22.0.1", "interface": 0}


@pytest.mark.parametrize("where", ["host", "container"])
@pytest.mark.parametrize("own", [False, True])
def test_chained(
    runtime: Runtime,
    container: Netns,
    outside: Netns,
    data_dir: Path,
    where: str,
    own: bool,
) -> None:
    """The master is the interface of the plugin before, where that is; so are the addresses."""
    ns = runtime.host if where == "host" else container
    plug(ns, outside, vlan=7)
    without_dad(container)
    conf = network(vlanId=7, ipam=V4.host_local(data_dir) if own else {})
    del conf["master"]
    sandbox = {"sandbox": container.path} if where == "container" else {}
    before = {"cniVersion": "1.1.0", "interfaces": [{"name": MASTER, **sandbox}], "ips": [IP]}
    result = runtime.add("vlan", conf, container, prev_result=before).result
    wanted = "10.22.0.2/24" if own else "10.22.0.7/24"
    assert [each["name"] for each in result["interfaces"]] == ["eth0"]
    assert [each["address"] for each in result["ips"]] == [wanted]
    assert addresses(container, "eth0") == [wanted]
    ping(container, "10.22.0.1")
    runtime.check("vlan", conf, container, prev_result=result).succeeded()
    for _ in range(2):
        runtime.delete("vlan", conf, container, prev_result=result).succeeded()
    assert "eth0" not in links(container)
    assert not leases(data_dir)


@pytest.mark.parametrize(
    ("interfaces", "text"),
    [
        ([], '"master" field is required'),
        ([{"name": MASTER}, {"name": "b"}], '"master" field is required'),
        ([{"name": "gone0"}], "Link not found"),
        ([{"name": "eth0", "sandbox": "NETNS"}], "chained master failure. The prevResult's"),
    ],
    ids=["none", "two", "gone", "itself"],
)
def test_chained_without_a_master(
    runtime: Runtime, container: Netns, outside: Netns, interfaces: list[Json], text: str
) -> None:
    plug(runtime.host, outside)
    container.ip("link", "add", "eth0", "type", "veth", "peer", "eth0p")
    for each in interfaces:
        if "sandbox" in each:
            each["sandbox"] = container.path
    conf = network(vlanId=7)
    del conf["master"]
    before = {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": [IP]}
    with unchanged(runtime.host, container):
        runtime.add("vlan", conf, container, prev_result=before).failed(999, text)


def test_ids_on_one_master(
    runtime: Runtime, container: Netns, container2: Netns, outside: Netns, tmp_path: Path
) -> None:
    """Each id can be there once."""
    plug(runtime.host, outside)
    without_ipv6(container)
    runtime.add("vlan", network(vlanId=7), container).succeeded()
    ipam = StandIn(tmp_path / "ipam", "").install(runtime)
    with unchanged(runtime.host, container, container2):
        conf = network(vlanId=7, ipam=ipam.ipam)
        reply = runtime.add("vlan", conf, container2, container_id="c2")
        reply.failed(999, "failed to create vlan: file exists")
    assert ipam.calls == []
    runtime.add("vlan", network(vlanId=8), container2, container_id="c2").succeeded()


def test_master_that_is_down(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    plug(runtime.host, outside)
    runtime.host.ip("link", "set", MASTER, "down")
    with unchanged(runtime.host, container):
        conf = network(vlanId=7, ipam=V4.host_local(data_dir))
        runtime.add("vlan", conf, container).failed(999, "network is down")
    assert not leases(data_dir)


@each_version(INTERFACE_VERSIONS)
def test_only_the_configurations_dns(
    runtime: Runtime, container: Netns, outside: Netns, cni_version: str
) -> None:
    plug(runtime.host, outside)
    ipam = {**V4.static(), "dns": {"domain": "ipam.example"}}
    conf = network(cniVersion=cni_version, vlanId=7, ipam=ipam)
    assert not runtime.add("vlan", conf, container).result.get("dns")
    runtime.delete("vlan", conf, container).succeeded()
    conf["dns"] = {"domain": "example.org"}
    assert runtime.add("vlan", conf, container).result["dns"] == {"domain": "example.org"}


@each_family()
def test_two_containers_and_a_peer(
    runtime: Runtime,
    container: Netns,
    container2: Netns,
    outside: Netns,
    data_dir: Path,
    family: Family,
) -> None:
    """One VLAN over two masters, which are ports of one bridge outside: frames carry the tag."""
    without_dad(container, container2)
    plug(runtime.host, outside, vlan=100, family=family)
    plug(runtime.host, outside, master="lan1", peer="peer1", index=1002, vlan=200, family=family)
    outside.ip_batch(
        "link add br0 type bridge",
        *(f"address flush dev {name}" for name in ("peer0.100", "peer1.200")),
        *("link set peer0 master br0", "link set peer1 master br0", "link set br0 up"),
        "link delete peer0.100",
        "link delete peer1.200",
        "link add br0.100 link br0 type vlan id 100",
        "link set br0.100 up",
        *(
            f"address add {gateway}/{subnet.rpartition('/')[2]} dev br0.100"
            + (" nodad" if ":" in gateway else "")
            for subnet, gateway in zip(family.subnets, family.gateways, strict=True)
        ),
    )
    conf = network(vlanId=100, ipam=family.host_local(data_dir))
    runtime.add("vlan", conf, container).succeeded()
    second = {**conf, "master": "lan1"}
    runtime.add("vlan", second, container2, container_id="c2").succeeded()
    with capture(outside) as seen:
        for gateway in family.gateways:
            ping(container, gateway)
            ping(container2, gateway)
        for mine, other in zip(family.first, family.second, strict=True):
            with tcp_server(container2) as server:
                address = other.partition("/")[0]
                found = tcp_exchange(container, address, server.port)
                assert found == mine.partition("/")[0]
    incoming = [f for f in seen.frames if f.ifname in ("peer0", "peer1") and not f.outgoing]
    assert incoming
    assert {frame.vlan for frame in incoming} == {100}

    # another id on the same master hears nothing of it
    runtime.delete("vlan", second, container2, container_id="c2").succeeded()
    other = {**second, "vlanId": 101}
    runtime.add("vlan", other, container2, container_id="c2").succeeded()
    ping(container2, family.gateways[0], expect=False)


REQUIRED = '"master" field is required. It specifies the host interface name to create the VLAN for'
RANGE = "invalid VLAN ID {} (must be between 0 and 4095 inclusive)"
BAD: list[tuple[Json, str]] = [
    ({"master": ""}, REQUIRED),
    ({"master": None}, REQUIRED),
    ({"master": "", "vlanId": 5000}, REQUIRED),
    ({"vlanId": 4095}, RANGE.format(4095)),
    ({"vlanId": -1}, RANGE.format(-1)),
    ({"vlanId": 5000, "mtu": 9000}, RANGE.format(5000)),
    ({"protocol": "802.1x"}, 'unknown VLAN protocol: "802.1x"'),
    ({"vlanId": "7"}, "failed to load netconf: json: cannot unmarshal string into field vlanId"),
    ({"master": "gone0"}, "Link not found"),
    ({"linkInContainer": True}, "Link not found"),
    ({"mtu": 1600}, "invalid MTU 1600, must be [0, master MTU(1500)]"),
    ({"mtu": -100}, "invalid MTU -100, must be [0, master MTU(1500)]"),
    ({"ipam": {}}, "failed to execute IPAM delegate: no plugin name provided"),
]


@pytest.mark.parametrize(("keys", "text"), BAD, ids=[repr(one[0]) for one in BAD])
def test_bad_input_changes_nothing(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, keys: Json, text: str
) -> None:
    plug(runtime.host, outside)
    conf = network(**{"ipam": V4.host_local(data_dir), "vlanId": 7, **keys})
    with unchanged(runtime.host, container, data_dir):
        reply = runtime.add("vlan", conf, container)
        reply.failed(999, text)
        assert reply.stderr == ""


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"vlanId": 8},
            "Error: Tuning link eth0 configured promisc is 8, current value is 7",
        ),
        ({"mtu": 1300}, "Error: Tuning configured MTU of eth0 is 1300, current value is 1400"),
        ({"master": "gone0"}, 'failed to lookup master "gone0": Link not found'),
    ],
    ids=["id", "mtu", "master"],
)
def test_check_compares_the_configuration(
    runtime: Runtime, container: Netns, outside: Netns, keys: Json, text: str
) -> None:
    plug(runtime.host, outside)
    conf = network(vlanId=7, mtu=1400)
    result = runtime.add("vlan", conf, container).result
    runtime.check("vlan", conf, container, prev_result=result).succeeded()
    runtime.check("vlan", {**conf, **keys}, container, prev_result=result).failed(999, text)


def test_delete_does_not_need_a_valid_configuration(
    runtime: Runtime, container: Netns, outside: Netns
) -> None:
    plug(runtime.host, outside)
    runtime.add("vlan", network(vlanId=7), container).succeeded()
    assert addresses(container, "eth0")
    conf = network(vlanId=5000, master="", mtu=9000, linkInContainer=True)
    runtime.delete("vlan", conf, container).succeeded()
    assert "eth0" not in links(container)
    runtime.delete("vlan", conf).succeeded()
