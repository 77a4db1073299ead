"""ptp in real namespaces: routes on both ends, packets, and what DEL and GC leave."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    CHECK_VERSIONS,
    DUAL,
    V4,
    V6,
    Family,
    Netns,
    Runtime,
    address_info,
    addresses,
    as_version,
    capture,
    each_family,
    each_version,
    find_routes,
    has_route,
    kind,
    link,
    links,
    ping,
    routes,
    tcp_exchange,
    tcp_server,
    udp_exchange,
    udp_server,
    unchanged,
)
from tests.harness.wait import wait_for_line
from tests.netns.test_bridge import (
    Ipam,
    advertise_router,
    await_link_local,
    learnt,
    leases,
    once,
    plain,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Json = dict[str, Any]


def network(family: Family = V4, number: int = 2, **keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "p2p", "ipam": family.static(number), **keys}


@pytest.fixture
def ipam(tmp_path: Path, runtime: Runtime) -> Ipam:
    return Ipam(tmp_path / "ipam", runtime)


def veths(host: Netns) -> list[str]:
    return [name for name, one in links(host).items() if kind(one) == "veth"]


# -- what ADD makes -------------------------------------------------------------------------------


def expected(conf: Json, family: Family, host: Netns, container: Netns) -> Json:
    """The result, from what the kernel has."""
    version = conf["cniVersion"]
    all_routes = [{"dst": dst} for dst in family.defaults]
    if version in ("0.1.0", "0.2.0"):
        out: Json = {"cniVersion": version, "dns": {}}
        for cidr, gateway, route in zip(family.first, family.gateways, all_routes, strict=True):
            key = "ip6" if ":" in cidr else "ip4"
            out[key] = {"ip": cidr, "gateway": gateway, "routes": [route]}
        return out
    (veth,) = veths(host)
    ips: list[Json] = [
        {"address": cidr, "gateway": gateway, "interface": 1}
        for cidr, gateway in zip(family.first, family.gateways, strict=True)
    ]
    interfaces = [
        {"name": veth, "mac": link(host, veth)["address"]},
        {"name": "eth0", "mac": link(container, "eth0")["address"], "sandbox": container.path},
    ]
    result = {"cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": all_routes}
    return as_version(result, version)


def life(runtime: Runtime, container: Netns, family: Family, version: str) -> None:
    """ADD, CHECK, DEL, DEL, with a look at the kernel after each."""
    host, conf = runtime.host, network(family, cniVersion=version)
    before, before_routes = set(links(host)), routes(host, table="all")
    result = runtime.add("ptp", conf, container).result
    assert result == expected(conf, family, host, container)
    (veth,) = veths(host)
    assert set(links(host)) == before | {veth}
    assert veth.startswith("veth")
    assert "p2p/c1/eth0" in link(host, veth)["ifalias"]
    assert kind(link(container, "eth0")) == "veth"
    assert link(host, veth)["operstate"] == link(container, "eth0")["operstate"] == "UP"

    assert sorted(addresses(container, "eth0")) == sorted(family.first)
    for cidr, gateway, subnet, default in zip(
        family.first, family.gateways, family.subnets, family.defaults, strict=True
    ):
        v6 = ":" in cidr
        host_bits = 128 if v6 else 32
        assert f"{gateway}/{host_bits}" in addresses(host, veth)
        assert has_route(host, f"{plain(cidr)}/{host_bits}", dev=veth)
        # the gateway is reached on the link, everything else through it
        assert has_route(container, default, via=gateway, dev="eth0")
        assert has_route(container, f"{gateway}/{host_bits}", dev="eth0", prefsrc=plain(cidr))
        assert has_route(container, subnet, via=gateway, dev="eth0", prefsrc=plain(cidr))
        assert len(find_routes(container, subnet)) == 1
        assert once(container, gateway), f"the first ping of {gateway} after ADD is lost"
        assert once(host, plain(cidr))
    assert host.sysctl("net/ipv4/ip_forward") == str(int(family is not V6))
    assert host.sysctl("net/ipv6/conf/all/forwarding") == str(int(family is not V4))

    status = runtime.status("ptp", conf)
    status.succeeded() if version == "1.1.0" else status.failed(1)
    checked = runtime.check("ptp", conf, container, prev_result=result)
    if version in CHECK_VERSIONS:
        checked.succeeded()
    else:
        checked.failed(1, "config version does not allow CHECK")
    for _ in range(2):
        runtime.delete("ptp", conf, container, prev_result=result).succeeded()
        assert set(links(host)) == before
        assert "eth0" not in links(container)
    assert [r for r in routes(host, table="all") if r not in before_routes] == []


@each_version()
def test_life(runtime: Runtime, container: Netns, cni_version: str) -> None:
    life(runtime, container, DUAL, cni_version)


@pytest.mark.parametrize("family", [V4, V6], ids=str)
def test_life_of_one_family(runtime: Runtime, container: Netns, family: Family) -> None:
    life(runtime, container, family, "1.0.0")


def test_mtu(runtime: Runtime, container: Netns) -> None:
    runtime.add("ptp", network(DUAL, mtu=5000), container).succeeded()
    (veth,) = veths(runtime.host)
    assert link(runtime.host, veth)["mtu"] == link(container, "eth0")["mtu"] == 5000
    ping(container, "10.22.0.1", size=4900)
    ping(container, "fd00:22::1", size=4900)


def test_routes(runtime: Runtime, container: Netns) -> None:
    static = {
        "type": "static",
        "addresses": [
            {"address": "10.1.2.3/24", "gateway": "10.1.2.1"},
            {"address": "fd00:1:2::3/66", "gateway": "fd00:1:2::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16"}, {"dst": "1.2.3.4/32"}],
    }
    conf = network(ipam=static)
    result = runtime.add("ptp", conf, container).result
    assert result["routes"] == static["routes"]
    for route in static["routes"]:
        assert has_route(container, route["dst"], via="10.1.2.1", dev="eth0")
    assert not has_route(container, "::/0")
    assert once(container, "10.1.2.1")
    assert once(container, "fd00:1:2::1")
    runtime.check("ptp", conf, container, prev_result=result).succeeded()


@pytest.mark.parametrize(
    "addresses_",
    [
        [("10.22.0.5/32", "10.22.0.1")],
        [("fd00:22::5/128", "fd00:22::1")],
        [("10.22.0.5/32", "169.254.1.1"), ("fd00:22::5/128", "fe80::1")],
        [("10.22.0.5/31", "10.22.0.4")],
        [("10.22.0.5/24", "10.22.0.1"), ("10.23.0.5/24", "10.23.0.1")],
    ],
    ids=["/32", "/128", "link-local gateway", "/31", "two subnets"],
)
def test_addresses(runtime: Runtime, container: Netns, addresses_: list[tuple[str, str]]) -> None:
    static = {
        "type": "static",
        "addresses": [{"address": cidr, "gateway": gateway} for cidr, gateway in addresses_],
        "routes": [],
    }
    conf = network(ipam=static)
    result = runtime.add("ptp", conf, container).result
    assert sorted(addresses(container, "eth0")) == sorted(cidr for cidr, _ in addresses_)
    for cidr, gateway in addresses_:
        if not gateway.startswith("fe80"):
            assert once(container, gateway)
        assert once(runtime.host, plain(cidr))
    runtime.check("ptp", conf, container, prev_result=result).succeeded()
    runtime.delete("ptp", conf, container).succeeded()
    assert veths(runtime.host) == []


DNS = {"nameservers": ["10.22.0.9"], "domain": "a.example", "search": ["b"], "options": ["o"]}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, DNS),
        ({}, DNS),
        ({"nameservers": ["10.9.9.9"]}, {"nameservers": ["10.9.9.9"]}),
        ({"domain": "x"}, {"domain": "x"}),
        ({"search": ["x"]}, {"search": ["x"]}),
        ({"options": ["x"]}, {"options": ["x"]}),
        ({"nameservers": [], "search": [], "options": []}, None),
    ],
)
def test_dns(runtime: Runtime, container: Netns, given: Json | None, wanted: Json | None) -> None:
    conf = network(ipam={**V4.static(), "dns": DNS})
    if given is not None:
        conf["dns"] = given
    assert runtime.add("ptp", conf, container).result.get("dns") == wanted


# -- packets --------------------------------------------------------------------------------------


@each_family()
def test_containers_talk_through_the_node(
    runtime: Runtime, container: Netns, container2: Netns, family: Family
) -> None:
    runtime.add("ptp", network(family), container).succeeded()
    runtime.add("ptp", network(family, 3), container2, container_id="c2").succeeded()
    for mine, theirs in zip(family.first, family.second, strict=True):
        assert once(container, plain(theirs)), f"the first ping of {theirs} after ADD is lost"
        with tcp_server(container2, plain(theirs)) as server:
            assert tcp_exchange(container, plain(theirs), server.port) == plain(mine)
        with udp_server(container2, plain(theirs)) as server:
            assert udp_exchange(container, plain(theirs), server.port) == plain(mine)


@each_family()
def test_an_address_that_is_used_again_loses_no_packet(
    runtime: Runtime,
    netns: Callable[..., Netns],
    container: Netns,
    container2: Netns,
    family: Family,
) -> None:
    later = netns("container3")
    runtime.add("ptp", network(family), container).succeeded()
    runtime.add("ptp", network(family, 3), container2, container_id="c2").succeeded()
    for cidr in family.first:
        ping(container2, plain(cidr))
    runtime.delete("ptp", network(family), container).succeeded()
    runtime.add("ptp", network(family), later, container_id="c3").succeeded()
    for cidr in family.first:
        assert once(container2, plain(cidr))
        assert once(runtime.host, plain(cidr))


def test_no_address_is_tentative(runtime: Runtime, container: Netns) -> None:
    with capture(container) as seen:
        runtime.add("ptp", network(V6), container).succeeded()
    # nobody is asked whether he has the address, which would take one to two seconds
    assert [f.solicitation for f in seen.frames if f.solicitation and f.outgoing] == []
    (veth,) = veths(runtime.host)
    for ns, name, cidr in (
        (container, "eth0", "fd00:22::2/64"),
        (runtime.host, veth, "fd00:22::1/128"),
    ):
        assert "tentative" not in address_info(ns, name, cidr)


def test_a_containers_router_advertisement_is_ignored(runtime: Runtime, container: Netns) -> None:
    host = runtime.host
    host.set_sysctl("net/ipv6/conf/default/accept_ra", 2)
    host.set_sysctl("net/ipv6/conf/all/accept_ra", 2)
    runtime.add("ptp", network(), container).succeeded()
    (veth,) = veths(host)
    assert host.sysctl(f"net/ipv6/conf/{veth}/accept_ra") == "0"
    await_link_local(host, veth)
    await_link_local(container, "eth0")
    advertise_router(container)
    assert not learnt(host, 0.5)
    # and what the test sends is heard: with the setting off by hand, the node falls for it
    host.set_sysctl(f"net/ipv6/conf/{veth}/accept_ra", 2)
    advertise_router(container)
    assert learnt(host, 3)


# -- failures -------------------------------------------------------------------------------------


def test_ipam_is_mandatory(runtime: Runtime, container: Netns) -> None:
    conf = network()
    del conf["ipam"]
    with unchanged(runtime.host, container):
        runtime.add("ptp", conf, container).failed(999, "no plugin name provided")
        runtime.status("ptp", conf).failed(999, "no plugin name provided")


def test_a_gateway_is_mandatory(runtime: Runtime, container: Netns, ipam: Ipam) -> None:
    with unchanged(runtime.host, container):
        runtime.add("ptp", network(ipam=ipam.conf), container).failed(
            999, "failed to add IP addr (10.22.0.2/24) to veth: no gateway", "ipam"
        )
    assert ipam.calls == ["ADD c1", "DEL c1"]


def test_no_address_from_ipam(runtime: Runtime, container: Netns, ipam: Ipam) -> None:
    ipam.answer({"cniVersion": "1.0.0"})
    with unchanged(runtime.host, container):
        runtime.add("ptp", network(ipam=ipam.conf), container).failed(
            999, "IPAM plugin returned missing IP config"
        )
    assert ipam.calls == ["ADD c1", "DEL c1"]


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"routes": [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]}, "failed to add route '10.9"),
        (
            {
                "ips": [
                    {"address": "10.22.0.2/24", "gateway": "10.22.0.1"},
                    {"address": "10.22.0.3/24", "gateway": "10.22.0.1"},
                ]
            },
            "failed to add",
        ),
    ],
    ids=["route", "two addresses with one gateway"],
)
def test_a_failure_after_the_allocation_leaves_nothing(
    runtime: Runtime, container: Netns, ipam: Ipam, extra: Json, text: str
) -> None:
    runtime.host.set_sysctl("net/ipv4/ip_forward", 1)
    ipam.answer(
        {
            "cniVersion": "1.0.0",
            "ips": [{"address": "10.22.0.2/24", "gateway": "10.22.0.1"}],
            **extra,
        }
    )
    with unchanged(runtime.host, container):
        runtime.add("ptp", network(ipam=ipam.conf), container).failed(999, text)
    assert ipam.calls == ["ADD c1", "DEL c1"]


def test_a_second_add_leaves_the_first_alone(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    conf = network(ipam=DUAL.host_local(data_dir))
    result = runtime.add("ptp", conf, container).result
    with unchanged(runtime.host, container, data_dir):
        runtime.add("ptp", conf, container).failed(
            999, 'container veth name ("eth0") peer provided ("veth', "already exists"
        )
    runtime.check("ptp", conf, container, prev_result=result).succeeded()


def test_a_signal_during_add(runtime: Runtime, container: Netns, ipam: Ipam) -> None:
    ipam.script(f'test "$CNI_COMMAND" = DEL || {{ echo >{ipam.dir}/started; exec sleep 60; }}')
    with unchanged(runtime.host, container):
        child = runtime.start("ADD", "ptp", network(ipam=ipam.conf), container)
        wait_for_line(ipam.dir / "started", child)
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=20)
    assert child.returncode == 1
    assert json.loads(out)["msg"] == "interrupted by SIGTERM"
    assert ipam.calls == ["ADD c1", "DEL c1"]


# -- DEL and GC -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["empty", "gone", "twice"])
def test_del_cleans_up_without_the_namespace(
    runtime: Runtime, container: Netns, data_dir: Path, how: str
) -> None:
    conf = network(ipam=DUAL.host_local(data_dir))
    runtime.add("ptp", conf, container).succeeded()
    assert len(leases(data_dir)) == 2
    path: Any = None if how == "empty" else container
    if how == "gone":
        container.unname()
    for _ in range(2):
        runtime.delete("ptp", conf, path).succeeded()
        assert veths(runtime.host) == []
        assert leases(data_dir) == set()
    assert "eth0" not in links(container)


def test_del_of_what_was_never_added(runtime: Runtime, container: Netns) -> None:
    with unchanged(runtime.host, container):
        runtime.delete("ptp", network(), container).succeeded()
        runtime.delete("ptp", network(), None).succeeded()
        runtime.delete("ptp", network(), "/run/netns/nosuch").succeeded()
        taken = runtime.delete("ptp", network(), "/proc/self/status").succeeded()
        assert "taken for gone" in taken.stderr


def test_del_goes_on_when_ipam_fails(runtime: Runtime, container: Netns, ipam: Ipam) -> None:
    ipam.answer(
        {"cniVersion": "1.0.0", "ips": [{"address": "10.22.0.2/24", "gateway": "10.22.0.1"}]}
    )
    conf = network(ipam=ipam.conf)
    runtime.add("ptp", conf, container).succeeded()
    ipam.script("""echo '{"code": 11, "msg": "try later"}'; exit 1""")
    runtime.delete("ptp", conf, container).failed(11, "try later")
    assert veths(runtime.host) == []


def test_gc_removes_what_no_attachment_needs(
    runtime: Runtime,
    netns: Callable[..., Netns],
    container: Netns,
    container2: Netns,
    data_dir: Path,
) -> None:
    host, third = runtime.host, netns("container3")
    conf = network(ipam=V4.host_local(data_dir))
    other = network(name="other", ipam=V6.host_local(data_dir))
    result = runtime.add("ptp", conf, container).result
    runtime.add("ptp", conf, container2, container_id="c2").succeeded()
    runtime.add("ptp", other, third, container_id="c3").succeeded()
    with unchanged(host, data_dir):
        runtime.gc("ptp", conf, None).succeeded()
        runtime.gc("ptp", conf, [("c1", "eth0"), ("c2", "eth0")]).succeeded()
    for _ in range(2):
        runtime.gc("ptp", conf, [("c1", "eth0")]).succeeded()
        assert "eth0" not in links(container2)
        assert len(veths(host)) == len(leases(data_dir)) == 2
    runtime.check("ptp", conf, container, prev_result=result).succeeded()
    assert once(container, "10.22.0.1")
    runtime.gc("ptp", conf, []).succeeded()
    assert "eth0" in links(third)
    assert len(veths(host)) == len(leases(data_dir)) == 1


# -- CHECK ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("link delete eth0", "ptp: Container Interface name in prevResult: eth0 not found"),
        ("link set eth0 address 02:00:00:00:00:99", "doesn't match container Mac"),
        ("address delete 10.22.0.2/24 dev eth0", "Failed to match addr 10.22.0.2/24"),
        ("address delete fd00:22::2/64 dev eth0", "Failed to match addr fd00:22::2/64"),
        ("route delete 10.22.0.0/24", "Failed to find Gateway 10.22.0.1 for interface eth0"),
        ("route delete 0.0.0.0/0", "Expected Route 0.0.0.0/0 not found"),
        ("route delete ::/0", "Expected Route ::/0 not found"),
    ],
)
def test_check_finds_damage(runtime: Runtime, container: Netns, line: str, text: str) -> None:
    conf = network(DUAL)
    result = runtime.add("ptp", conf, container).result
    container.ip_batch(line)
    runtime.check("ptp", conf, container, prev_result=result).failed(999, text)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("link set VETH down", "the container's link on the node, is down"),
        ("address delete 10.22.0.1/32 dev VETH", "VETH lacks the gateway's address 10.22.0.1/32"),
        ("address delete fd00:22::1/128 dev VETH", "VETH lacks the gateway's address fd00:22::1"),
        ("route delete 10.22.0.2/32", "the node does not reach 10.22.0.2/32 through VETH"),
        ("route delete fd00:22::2/128", "the node does not reach fd00:22::2/128 through VETH"),
    ],
)
def test_check_finds_damage_on_the_node(
    runtime: Runtime, container: Netns, line: str, text: str
) -> None:
    conf = network(DUAL)
    result = runtime.add("ptp", conf, container).result
    name = result["interfaces"][0]["name"]
    runtime.host.ip_batch(line.replace("VETH", name))
    checked = runtime.check("ptp", conf, container, prev_result=result)
    checked.failed(999, text.replace("VETH", name))


@pytest.mark.parametrize(
    ("name", "family"), [("ipv4.ip_forward", "IPv4"), ("ipv6.conf.all.forwarding", "IPv6")]
)
def test_check_finds_that_nothing_is_forwarded(
    runtime: Runtime, container: Netns, name: str, family: str
) -> None:
    conf = network(DUAL)
    result = runtime.add("ptp", conf, container).result
    runtime.host.exec(["sysctl", "-qw", f"net.{name}=0"])
    runtime.check("ptp", conf, container, prev_result=result).failed(
        999, f"the node does not forward {family} packets"
    )


def test_check_of_another_link(runtime: Runtime, container: Netns, container2: Netns) -> None:
    conf = network()
    result = runtime.add("ptp", conf, container).result
    runtime.check("ptp", conf, container).failed(999, "Required prevResult missing")
    runtime.check("ptp", conf, container2, prev_result=result).failed(
        999, f"Sandbox in prevResult {container.path} doesn't match configured netns"
    )
    mac = result["interfaces"][1]["mac"]
    container.ip_batch(
        "link delete eth0",
        f"link add eth0 address {mac} type bridge",
        "link set eth0 up",
        "address add 10.22.0.2/24 dev eth0",
    )
    runtime.check("ptp", conf, container, prev_result=result).failed(
        999, "Error: Container interface eth0 not of type veth/p2p"
    )


def test_status(runtime: Runtime, ipam: Ipam) -> None:
    ipam.script("""echo '{"code": 50, "msg": "unavailable"}'; exit 1""")
    with unchanged(runtime.host):
        runtime.status("ptp", network(ipam=ipam.conf)).failed(50, "unavailable")
    assert ipam.calls == ["STATUS "]
