"""ipvlan: interfaces that share the MAC of a link of the node or of the container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    DUAL,
    V4,
    Family,
    Netns,
    Runtime,
    addresses,
    capture,
    each_family,
    has_route,
    kind,
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
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_kernel("ipvlan")

Json = dict[str, Any]


class TestContract(InterfaceContract):
    plugin = "ipvlan"
    kind = "ipvlan"


def network(**keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "net", "master": MASTER, **keys}


def info(ns: Netns, name: str = "eth0") -> Json:
    return dict(link(ns, name)["linkinfo"]["info_data"])


def previous(name: str = MASTER, *ips: Json, **more: Any) -> Json:
    """The result of a plugin before, which reports the master and maybe addresses."""
    return {"cniVersion": "1.1.0", "interfaces": [{"name": name}], "ips": list(ips), **more}


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s", None])
def test_modes(runtime: Runtime, container: Netns, outside: Netns, mode: str | None) -> None:
    plug(runtime.host, outside)
    conf = network(mtu=1500, ipam=V4.static(routes=False), **({"mode": mode} if mode else {}))
    result = runtime.add("ipvlan", conf, container).result
    assert info(container)["mode"] == (mode or "l2")
    assert info(container).get("flags", "bridge") == "bridge"
    mac = link(runtime.host, MASTER)["address"]
    entry = {"name": "eth0", "mac": mac, "sandbox": container.path}
    assert result["interfaces"] == [entry]
    runtime.check("ipvlan", conf, container, prev_result=result).succeeded()
    other = "l3" if mode != "l3" else "l2"
    runtime.check("ipvlan", {**conf, "mode": other}, container, prev_result=result).failed(
        999, f"Container IPVlan mode {mode or 'l2'} does not match expected value: {other}"
    )


@pytest.mark.parametrize(("mtu", "expected"), [(None, 1400), (0, 1400), (1300, 1300)])
def test_mtu(
    runtime: Runtime, container: Netns, outside: Netns, mtu: int | None, expected: int
) -> None:
    plug(runtime.host, outside, mtu=1400)
    conf = network(ipam=V4.static(), **({} if mtu is None else {"mtu": mtu}))
    runtime.add("ipvlan", conf, container).succeeded()
    assert link(container, "eth0")["mtu"] == expected


@pytest.mark.parametrize("where", ["host", "container"])
def test_master_of_the_default_route(
    runtime: Runtime, container: Netns, outside: Netns, where: str
) -> None:
    ns = runtime.host if where == "host" else container
    plug(ns, outside)
    ns.ip_batch(f"address add 10.22.0.9/24 dev {MASTER}", "route add default via 10.22.0.1")
    conf = network(linkInContainer=where == "container", ipam=V4.static(routes=False))
    del conf["master"]
    result = runtime.add("ipvlan", conf, container, ifname="net1").result
    assert result["interfaces"][0]["mac"] == link(ns, MASTER)["address"]
    for changed in (conf, {**conf, "master": MASTER}):
        runtime.check("ipvlan", changed, container, prev_result=result, ifname="net1").succeeded()
    ns.ip("route", "delete", "default")
    runtime.delete("ipvlan", conf, container, ifname="net1").succeeded()  # the reference's fails
    assert "net1" not in links(container)


# -- chained --------------------------------------------------------------------------------------

IP = {"address": "10.22.0.7/24", "gateway": "10.22.0.1", "interface": 0}


@pytest.mark.parametrize("where", ["host", "container"])
def test_chained(runtime: Runtime, container: Netns, outside: Netns, where: str) -> None:
    """Master and address come from the plugin before; its interfaces and DNS go."""
    plug(runtime.host if where == "host" else container, outside)
    conf = network(linkInContainer=where == "container")
    del conf["master"]
    before = previous(MASTER, IP, routes=[{"dst": "0.0.0.0/0"}], dns={"domain": "example.org"})
    result = runtime.add("ipvlan", conf, container, prev_result=before).result
    assert result["ips"] == [IP]
    assert result["routes"] == [{"dst": "0.0.0.0/0"}]
    assert not result.get("dns")
    assert [one["name"] for one in result["interfaces"]] == ["eth0"]
    assert addresses(container, "eth0") == ["10.22.0.7/24"]
    assert has_route(container, "default", via="10.22.0.1", dev="eth0")
    ping(container, "10.22.0.1")
    named = {**conf, "master": MASTER}
    runtime.check("ipvlan", named, container, prev_result=result).succeeded()
    for _ in range(2):
        runtime.delete("ipvlan", named, container, prev_result=result).succeeded()
        assert "eth0" not in links(container)


def test_chained_with_ipam_of_its_own(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    plug(runtime.host, outside)
    conf = network(ipam=V4.host_local(data_dir))
    del conf["master"]
    result = runtime.add("ipvlan", conf, container, prev_result=previous(MASTER, IP)).result
    assert [ip["address"] for ip in result["ips"]] == ["10.22.0.2/24"]
    # At DEL the runtime hands over the final result, whose only interface is our own.
    runtime.delete("ipvlan", conf, container, prev_result=result).succeeded()
    assert not leases(data_dir)


@pytest.mark.parametrize(
    ("before", "text"),
    [
        ({"interfaces": []}, "chained master failure. PrevResult lacks a single named interface"),
        (
            {"interfaces": [{"name": "a"}, {"name": "b"}]},
            "chained master failure. PrevResult lacks a single named interface",
        ),
        (
            {"interfaces": [{"name": ""}]},
            "chained master failure. PrevResult lacks a single named interface",
        ),
        ({"interfaces": [{"name": "gone0"}]}, "Link not found"),
        ({"interfaces": [{"name": MASTER}]}, "no plugin name provided"),
        ({"ips": "none"}, "could not parse prevResult: "),
    ],
    ids=["none", "two", "unnamed", "gone", "no-address", "malformed"],
)
def test_unusable_previous_result(
    runtime: Runtime, container: Netns, outside: Netns, before: Json, text: str
) -> None:
    plug(runtime.host, outside)
    conf = network()
    del conf["master"]
    with unchanged(runtime.host, container):
        prev = {"cniVersion": "1.1.0", **before}
        runtime.add("ipvlan", conf, container, prev_result=prev).failed(999, text)


# -- packets --------------------------------------------------------------------------------------


@each_family()
@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
def test_two_containers_and_a_peer(
    runtime: Runtime,
    container: Netns,
    container2: Netns,
    outside: Netns,
    data_dir: Path,
    family: Family,
    mode: str,
) -> None:
    without_dad(container, container2)
    plug(runtime.host, outside)
    conf = network(mode=mode, ipam=family.host_local(data_dir, routes=False))
    runtime.add("ipvlan", conf, container).succeeded()
    runtime.add("ipvlan", conf, container2, container_id="c2").succeeded()
    for first, second in zip(family.first, family.second, strict=True):
        mine, other = (cidr.partition("/")[0] for cidr in (first, second))
        ping(container, other)
        with tcp_server(container2) as server:
            assert tcp_exchange(container, other, server.port) == mine
    if mode == "l2":
        for gateway in family.gateways:
            ping(container, gateway)
            ping(container2, gateway)
        return
    # In layer 3 nobody answers for the containers, and the node routes what they send.
    for subnet in family.subnets:
        cidr = subnet.replace(".0/", ".200/").replace("::/", "::200/")
        runtime.host.ip_batch(
            f"address add {cidr} dev {MASTER}" + (" nodad" if ":" in cidr else "")
        )
    # A packet that is not the node's own is resolved from the master's link-local address.
    runtime.host.ip_batch(f"address add fe80::200/64 dev {MASTER} nodad")
    mac = link(runtime.host, MASTER)["address"]
    for cidr in (*family.first, *family.second):
        address = cidr.partition("/")[0]
        outside.ip("neighbour", "replace", address, "lladdr", mac, "dev", "peer0")
        ping(outside, address)


def test_neighbours_are_told(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    without_dad(container)
    plug(runtime.host, outside)
    conf = network(ipam=DUAL.host_local(data_dir))
    with capture(outside) as seen:
        runtime.add("ipvlan", conf, container).succeeded()
        ping(container, DUAL.gateways[0])
    assert seen.gratuitous("10.22.0.2")
    assert seen.advertisements("fd00:22::2")


# -- bad input ------------------------------------------------------------------------------------

BAD: list[tuple[Json, str]] = [
    ({"mode": "l4"}, 'unknown ipvlan mode: "l4"'),
    ({"mode": "L2"}, 'unknown ipvlan mode: "L2"'),
    ({"master": "gone0"}, "Link not found"),
    ({"master": ""}, "no default route interface found"),
    ({"linkInContainer": True}, "Link not found"),
    ({"mtu": -1}, "invalid mtu -1"),
    ({"mtu": 60}, "failed to create ipvlan: "),
    ({"mtu": True}, "failed to load netconf: json: cannot unmarshal bool into field mtu"),
    ({"ipam": {}}, "no plugin name provided"),
    ({"ipam": {"type": "no-such-plugin"}}, "no-such-plugin"),
]


@pytest.mark.parametrize(("keys", "text"), BAD, ids=[repr(one[0]) for one in BAD])
def test_bad_input_changes_nothing(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, keys: Json, text: str
) -> None:
    plug(runtime.host, outside)
    conf = network(**{"ipam": V4.host_local(data_dir), **keys})
    with unchanged(runtime.host, container, data_dir):
        reply = runtime.add("ipvlan", conf, container)
        reply.failed(None, text)
        assert reply.stderr == ""


def test_master_in_use_by_macvlan(
    runtime: Runtime, container: Netns, outside: Netns, tmp_path: Path
) -> None:
    plug(runtime.host, outside)
    runtime.host.ip("link", "add", "mv0", "link", MASTER, "type", "macvlan", "mode", "bridge")
    ipam = StandIn(tmp_path / "ipam", "").install(runtime)
    with unchanged(runtime.host, container):
        reply = runtime.add("ipvlan", network(ipam=ipam.ipam), container)
        reply.failed(999, "failed to create ipvlan: device or resource busy")
    assert ipam.calls == []


def test_check_sees_a_missing_master(runtime: Runtime, container: Netns, outside: Netns) -> None:
    plug(runtime.host, outside)
    conf = network(ipam=V4.static())
    result = runtime.add("ipvlan", conf, container).result
    assert kind(link(container, "eth0")) == "ipvlan"
    reply = runtime.check("ipvlan", {**conf, "master": "gone0"}, container, prev_result=result)
    reply.failed(999, 'failed to lookup master "gone0": Link not found')
