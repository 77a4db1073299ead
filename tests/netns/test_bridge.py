"""bridge in real namespaces: what the kernel has, what packets do, and what DEL and GC leave.

VLANs are in tests/lab/test_bridge_vlan.py: they need another kernel.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
from contextlib import contextmanager
from pathlib import Path
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
    connect,
    each_family,
    each_version,
    find_routes,
    has_route,
    kind,
    link,
    links,
    ping,
    port,
    ports,
    tcp_exchange,
    tcp_server,
    tree,
    udp_exchange,
    udp_server,
    unchanged,
)
from tests.harness.contract import await_carrier
from tests.harness.wait import TIMEOUT, last_seen, wait_for_line, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Json = dict[str, Any]


def network(**keys: Any) -> Json:
    """A layer-2 network on bridge br0 with these further keys."""
    return {"cniVersion": "1.1.0", "name": "net", "bridge": "br0", **keys}


def routed(family: Family = V4, number: int = 2, **keys: Any) -> Json:
    """A network whose bridge is the gateway; the container is host `number`."""
    return network(isGateway=True, **{"ipam": family.static(number), **keys})


def once(ns: Netns, address: str, wait: str = "5") -> bool:
    """Is one single echo request answered?"""
    return ns.exec(["ping", "-n", "-c", "1", "-W", wait, address], check=False).returncode == 0


def plain(cidr: str) -> str:
    return cidr.partition("/")[0]


def await_up(ns: Netns, name: str) -> None:
    """The link is set up; its state follows, on a loaded machine a little later."""
    assert "UP" in link(ns, name)["flags"]
    await_carrier(ns, name)


class Ipam:
    """A stand-in for somebody else's IPAM plugin: a shell script that says what the test wants."""

    def __init__(self, directory: Path, runtime: Runtime) -> None:
        self.dir = directory
        self.dir.mkdir()
        self.log = directory / "log"
        self.conf = {"type": "other-ipam"}
        self.answer({"cniVersion": "1.0.0", "ips": [{"address": "10.22.0.2/24"}]})
        runtime.cni_path = f"{directory}:{runtime.cni_path}"

    def answer(self, result: Json) -> None:
        (self.dir / "result").write_text(json.dumps(result))
        self.script(f'test "$CNI_COMMAND" != ADD || cat {self.dir}/result')

    def script(self, body: str) -> None:
        program = self.dir / "other-ipam"
        program.write_text(
            f'#!/bin/sh\necho "$CNI_COMMAND $CNI_CONTAINERID" >>{self.log}\n{body}\n'
        )
        program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def ipam(tmp_path: Path, runtime: Runtime) -> Ipam:
    return Ipam(tmp_path / "ipam", runtime)


# -- what a DHCP server offers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "gateway", "why"),
    [
        ("10.99.0.7/24", "10.99.0.1", ""),
        ("10.99.0.7/0", "10.99.0.1", "shorter than /8"),
        ("10.99.0.7/24", "0.0.0.0", "no unicast address"),
        ("10.99.0.7/24", "127.0.0.1", "no unicast address"),
        ("10.99.0.7/24", "224.0.0.1", "no unicast address"),
        ("10.99.0.7/24", "10.98.0.1", "not in the leased subnet"),
        ("10.99.0.7/24", "10.99.0.7", "leased to the container"),
        ("192.0.2.7/24", "192.0.2.9", "which uplink of this node has"),
        ("192.0.2.7/28", "192.0.2.1", "which uplink of this node has"),
        ("192.0.0.7/16", "192.0.0.1", "which uplink of this node has"),
        ("fd99::7/64", "fe80::1", "no unicast address"),
        ("fd99::7/16", "fd99::1", "shorter than /32"),
        ("fd99::7/64", "fd99::1", ""),
    ],
)
def test_a_gateway_from_the_wire_is_checked(
    runtime: Runtime, container: Netns, tmp_path: Path, address: str, gateway: str, why: str
) -> None:
    """It would be an address of the node, with a route: of the node's own traffic, in the end."""
    offers = Ipam(tmp_path / "offers", runtime)
    offers.answer({"cniVersion": "1.0.0", "ips": [{"address": address, "gateway": gateway}]})
    (offers.dir / "other-ipam").rename(offers.dir / "dhcp")
    runtime.host.ip_batch(
        "link add uplink type veth peer name beyond",
        "address add 192.0.2.2/24 dev uplink",
        "link set uplink up",
        "link set beyond up",
    )
    conf = {
        "cniVersion": "1.0.0",
        "name": "wire",
        "bridge": "br0",
        "isGateway": True,
        "ipam": {"type": "dhcp"},
    }
    reply = runtime.add("bridge", conf, container)
    if why:
        reply.failed(999, f"refused the gateway {gateway}/", why)
        assert "br0" not in links(runtime.host), "the bridge that this ADD made is left"
        assert offers.calls[-1].startswith("DEL")
    else:
        reply.succeeded()
        assert gateway in str(addresses(runtime.host, "br0"))


# -- what ADD makes -------------------------------------------------------------------------------


def expected(conf: Json, family: Family, host: Netns, container: Netns) -> Json:
    """The result, from what the kernel has."""
    version = conf["cniVersion"]
    routes = [{"dst": dst} for dst in family.defaults]
    if version in ("0.1.0", "0.2.0"):
        out: Json = {"cniVersion": version, "dns": {}}
        for cidr, gateway, route in zip(family.first, family.gateways, routes, strict=True):
            key = "ip6" if ":" in cidr else "ip4"
            out[key] = {"ip": cidr, "gateway": gateway, "routes": [route]}
        return out
    (veth,) = ports(host, "br0")
    ips: list[Json] = [
        {"address": cidr, "gateway": gateway, "interface": 2}
        for cidr, gateway in zip(family.first, family.gateways, strict=True)
    ]
    interfaces = [
        {"name": "br0", "mac": link(host, "br0")["address"]},
        {"name": veth, "mac": link(host, veth)["address"]},
        {
            "name": "eth0",
            "mac": link(container, "eth0")["address"],
            "sandbox": container.path,
        },
    ]
    result = {"cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": routes}
    return as_version(result, version)


def life(runtime: Runtime, container: Netns, family: Family, version: str) -> None:
    """ADD, CHECK, DEL, DEL, with a look at the kernel after each."""
    host, conf = runtime.host, routed(family, cniVersion=version)
    before = set(links(host))
    result = runtime.add("bridge", conf, container).result
    assert result == expected(conf, family, host, container)

    bridge = link(host, "br0")
    (veth,) = ports(host, "br0")
    assert set(links(host)) == before | {"br0", veth}
    assert kind(bridge) == "bridge"
    assert kind(link(host, veth)) == kind(link(container, "eth0")) == "veth"
    assert link(host, veth)["operstate"] == "UP"
    for ns, name in ((host, "br0"), (host, veth), (container, "eth0")):
        await_up(ns, name)
        assert len(link(ns, name)["address"]) == 17
    assert bridge["promiscuity"] == 0
    assert bridge["address"] not in (
        link(host, veth)["address"],
        link(container, "eth0")["address"],
    )
    assert sorted(addresses(container, "eth0")) == sorted(family.first)
    masks = [cidr.rpartition("/")[2] for cidr in family.first]
    gateways = [f"{gw}/{mask}" for gw, mask in zip(family.gateways, masks, strict=True)]
    assert sorted(addresses(host, "br0")) == sorted(gateways)
    for dst, gateway in zip(family.defaults, family.gateways, strict=True):
        assert has_route(container, dst, via=gateway, dev="eth0")
    v4 = any("." in cidr for cidr in family.first)
    v6 = any(":" in cidr for cidr in family.first)
    assert host.sysctl("net/ipv4/ip_forward") == str(int(v4))
    assert host.sysctl("net/ipv6/conf/all/forwarding") == str(int(v6))

    checked = runtime.check("bridge", conf, container, prev_result=result)
    if version in CHECK_VERSIONS:
        checked.succeeded()
    else:
        checked.failed(1, "config version does not allow CHECK")
    for _ in range(2):
        runtime.delete("bridge", conf, container, prev_result=result).succeeded()
        assert set(links(host)) == before | {"br0"}
        assert "eth0" not in links(container)
        assert sorted(addresses(host, "br0")) == sorted(gateways)


@each_version()
def test_life(runtime: Runtime, container: Netns, cni_version: str) -> None:
    life(runtime, container, DUAL, cni_version)


@pytest.mark.parametrize("family", [V4, V6], ids=str)
def test_life_of_one_family(runtime: Runtime, container: Netns, family: Family) -> None:
    life(runtime, container, family, "1.0.0")


@each_version()
def test_layer_2(runtime: Runtime, container: Netns, cni_version: str) -> None:
    conf = network(cniVersion=cni_version)
    reply = runtime.add("bridge", conf, container)
    if cni_version in ("0.1.0", "0.2.0"):
        # as the reference: the link is there, and stays until DEL
        reply.failed(999, "cannot convert: no valid IP addresses")
    else:
        assert set(reply.result) <= {"cniVersion", "interfaces", "dns"}
        assert len(reply.result["interfaces"]) == 3
    await_up(container, "eth0")
    assert addresses(container, "eth0") == addresses(runtime.host, "br0") == []
    assert runtime.host.sysctl("net/ipv4/ip_forward") == "0"
    if cni_version in CHECK_VERSIONS:
        runtime.check("bridge", conf, container, prev_result=reply.json).succeeded()
    runtime.delete("bridge", conf, container).succeeded()
    assert "eth0" not in links(container)
    assert ports(runtime.host, "br0") == {}


def test_the_default_bridge_is_cni0(runtime: Runtime, container: Netns) -> None:
    conf = network()
    del conf["bridge"]
    assert runtime.add("bridge", conf, container).result["interfaces"][0]["name"] == "cni0"
    assert kind(link(runtime.host, "cni0")) == "bridge"


def test_several_addresses_of_a_family(runtime: Runtime, container: Netns) -> None:
    cidrs = ["10.22.0.2/24", "fd00:1::2/64", "fd00:2::2/64"]
    static = {"type": "static", "addresses": [{"address": cidr} for cidr in cidrs]}
    conf = network(isGateway=True, ipam=static)
    result = runtime.add("bridge", conf, container).result
    # without a gateway from IPAM it is the subnet's first address
    gateways = ["10.22.0.1", "fd00:1::1", "fd00:2::1"]
    assert [ip["gateway"] for ip in result["ips"]] == gateways
    assert sorted(addresses(container, "eth0")) == sorted(cidrs)
    for gateway in gateways:
        assert once(container, gateway)
    runtime.check("bridge", conf, container, prev_result=result).succeeded()


def test_two_subnets_of_ipv4_conflict_on_one_bridge(runtime: Runtime, container: Netns) -> None:
    static = {
        "type": "static",
        "addresses": [{"address": "10.22.0.2/24"}, {"address": "10.23.0.2/24"}],
    }
    runtime.add("bridge", network(isGateway=True, ipam=static), container).failed(
        999, '"br0" already has an IP address different from 10.23.0.1/24'
    )
    assert "eth0" not in links(container)
    assert ports(runtime.host, "br0") == {}


def test_no_gateway(runtime: Runtime, container: Netns, container2: Netns) -> None:
    """Addresses without isGateway: the containers talk, the bridge has none."""
    bare = {"type": "static", "addresses": [{"address": "10.22.0.2/24"}]}
    result = runtime.add("bridge", network(ipam=bare), container).result
    assert "gateway" not in result["ips"][0]
    bare["addresses"] = [{"address": "10.22.0.3/24"}]
    runtime.add("bridge", network(ipam=bare), container2, container_id="c2").succeeded()
    assert addresses(runtime.host, "br0") == []
    assert runtime.host.sysctl("net/ipv4/ip_forward") == "0"
    assert once(container, "10.22.0.3")


@each_family()
def test_default_gateway(runtime: Runtime, container: Netns, family: Family) -> None:
    ipam = family.static(routes=False)
    conf = network(isDefaultGateway=True, ipam=ipam)
    result = runtime.add("bridge", conf, container).result
    wanted = [
        {"dst": dst, "gw": gateway}
        for dst, gateway in zip(family.defaults, family.gateways, strict=True)
    ]
    assert result["routes"] == wanted
    for route in wanted:
        assert len(find_routes(container, route["dst"], via=route["gw"])) == 1
    assert all(once(container, gateway) for gateway in family.gateways)
    runtime.check("bridge", conf, container, prev_result=result).succeeded()


@pytest.mark.parametrize("existed", [False, True], ids=["new bridge", "bridge that exists"])
def test_macspoofchk_keeps_the_bridge_from_learning_unchecked(
    runtime: Runtime, container: Netns, existed: bool
) -> None:
    if existed:
        runtime.host.ip("link", "add", "cni0", "type", "bridge")
    conf = network(bridge="cni0", macspoofchk=True)
    runtime.add("bridge", conf, container).succeeded()
    (bridge,) = json.loads(runtime.host.ip("-d", "-j", "link", "show", "cni0"))
    assert bridge["linkinfo"]["info_data"]["no_linklocal_learn"] == 1


@pytest.mark.parametrize("whose", ["bridge", "silent neighbour", "port"])
def test_macspoofchk_refuses_a_mac_that_is_in_use(
    runtime: Runtime, container: Netns, container2: Netns, whose: str
) -> None:
    conf = network(macspoofchk=True)
    result = runtime.add("bridge", conf, container).result
    index = {"bridge": 0, "port": 1, "silent neighbour": 2}[whose]
    mac = result["interfaces"][index]["mac"]
    wanted = {**conf, "runtimeConfig": {"mac": mac}}
    with unchanged(runtime.host, container2):
        reply = runtime.add("bridge", wanted, container2, container_id="c2")
        reply.failed(999, "failed to setup spoof-check", mac, "in use")
    wanted["runtimeConfig"]["mac"] = "02:00:00:00:77:01"
    runtime.add("bridge", wanted, container2, container_id="c2").succeeded()


@each_family()
@pytest.mark.parametrize("table", [{}, {"table": 254}], ids=["", "main table"])
def test_default_gateway_that_is_not_ipams(
    runtime: Runtime, host: Netns, container: Netns, data_dir: Path, family: Family, table: Json
) -> None:
    """Only one of them can be wanted; nothing is changed."""
    ipam = family.host_local(data_dir, routes=False)
    other = {"0.0.0.0/0": "10.22.0.9", "::/0": "fd00:22::9"}
    dst = family.defaults[-1]
    conf = network(
        isDefaultGateway=True,
        ipam={**ipam, "routes": [{"dst": dst, "gw": other[dst], **table}]},
    )
    with unchanged(host, container):
        reply = runtime.add("bridge", conf, container)
        error = reply.failed(999, "isDefaultGateway", "routes of ipam", dst, other[dst])
    assert "isDefaultGateway" in error["details"]
    assert not leases(data_dir)
    conf["isDefaultGateway"], conf["isGateway"] = False, True
    runtime.add("bridge", conf, container).succeeded()
    assert has_route(container, dst, via=other[dst])


@pytest.mark.parametrize(
    "wanted",
    [{"dst": "::/0", "gw": "fd00:22::9", "table": 100}, {"dst": "::/0", "gw": "fd00:23::1"}],
    ids=["other table", "second gateway"],
)
def test_default_gateway_beside_a_route_of_ipam(
    runtime: Runtime, container: Netns, wanted: Json
) -> None:
    """In another table it is another route; and the gateways of two subnets are one bridge."""
    ipam = V6.static(routes=False)
    ipam["addresses"].append({"address": "fd00:23::2/64", "gateway": "fd00:23::1"})
    ipam["routes"] = [wanted]
    result = runtime.add("bridge", network(isDefaultGateway=True, ipam=ipam), container).result
    own = [{"dst": "::/0", "gw": "fd00:22::1"}] if "table" in wanted else []
    assert result["routes"] == [wanted, *own]
    via = own[0]["gw"] if own else wanted["gw"]
    assert len(find_routes(container, "::/0", via=via)) == 1


@pytest.mark.parametrize("family", [V4, DUAL], ids=str)
@pytest.mark.parametrize("with_gateway", [False, True], ids=["without gw", "same gw"])
def test_default_gateway_and_ipams_default_route_are_one(
    runtime: Runtime, container: Netns, family: Family, with_gateway: bool
) -> None:
    ipam = family.static(routes=False)
    pairs = zip(family.defaults, family.gateways, strict=True)
    ipam["routes"] = [{"dst": d, **({"gw": g} if with_gateway else {})} for d, g in pairs]
    conf = network(isDefaultGateway=True, ipam=ipam)
    result = runtime.add("bridge", conf, container).result
    assert result["routes"] == ipam["routes"]
    for dst, gateway in zip(family.defaults, family.gateways, strict=True):
        assert len(find_routes(container, dst)) == 1
        assert has_route(container, dst, via=gateway)


def test_two_default_routes_of_ipam(runtime: Runtime, container: Netns) -> None:
    """The error names the keys that ask for them."""
    ipam = V4.static(routes=False)
    ipam["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0"}]
    conf = network(isDefaultGateway=True, ipam=ipam)
    error = runtime.add("bridge", conf, container).failed(999, "file exists", "isDefaultGateway")
    assert "routes" in error["details"]


def test_route_attributes(runtime: Runtime, container: Netns) -> None:
    ipam = DUAL.static(routes=False)
    ipam["routes"] = [
        {"dst": "10.99.0.0/16", "priority": 50, "table": 100},
        {"dst": "10.98.0.0/16", "scope": 253, "gw": "0.0.0.0"},
        {"dst": "10.97.0.7/16", "gw": "10.22.0.1"},
        {"dst": "10.97.0.7/16", "gw": "10.22.0.5"},
        {"dst": "fd99::/64", "priority": 77},
    ]
    conf = routed(DUAL, ipam=ipam)
    result = runtime.add("bridge", conf, container).result
    assert result["routes"] == ipam["routes"]
    assert has_route(container, "10.99.0.0/16", via="10.22.0.1", table="100", metric=50)
    assert has_route(container, "10.98.0.0/16", dev="eth0", scope="link")
    for gateway in ("10.22.0.1", "10.22.0.5"):
        assert has_route(container, "10.97.0.0/16", via=gateway)
    assert has_route(container, "fd99::/64", via="fd00:22::1", metric=77)
    runtime.check("bridge", conf, container, prev_result=result).succeeded()
    container.ip("route", "delete", "10.99.0.0/16", "table", "100")
    runtime.check("bridge", conf, container, prev_result=result).failed(
        999, "Expected Route 10.99.0.0/16 not found in routing table"
    )


DNS = {"nameservers": ["10.22.0.9"], "domain": "a.example", "search": ["b"], "options": ["o"]}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, DNS),
        ({}, DNS),
        ({"domain": ""}, DNS),
        ({"nameservers": ["10.9.9.9"]}, {"nameservers": ["10.9.9.9"]}),
        ({"search": []}, None),
        ({"domain": "x"}, {"domain": "x"}),
    ],
)
def test_dns(runtime: Runtime, container: Netns, given: Json | None, wanted: Json | None) -> None:
    ipam = {**V4.static(), "dns": DNS}
    conf = routed(ipam=ipam, **({} if given is None else {"dns": given}))
    assert runtime.add("bridge", conf, container).result.get("dns") == wanted


# -- the bridge -----------------------------------------------------------------------------------


def test_an_existing_bridge_is_used_as_it_is(runtime: Runtime, container: Netns) -> None:
    runtime.host.ip("link", "add", "br0", "type", "bridge")
    before = link(runtime.host, "br0")
    result = runtime.add("bridge", network(mtu=1400), container).result
    after = link(runtime.host, "br0")
    assert after["ifindex"] == before["ifindex"]
    assert after["operstate"] == "UP"
    veth = result["interfaces"][1]["name"]
    assert link(runtime.host, veth)["mtu"] == link(container, "eth0")["mtu"] == 1400
    assert result["interfaces"][0] == {"name": "br0", "mac": after["address"]}


def test_what_is_not_a_bridge(runtime: Runtime, container: Netns) -> None:
    runtime.host.ip("link", "add", "br0", "type", "veth")
    with unchanged(runtime.host, container):
        runtime.add("bridge", network(), container).failed(
            999,
            'failed to create bridge "br0": "br0" already exists but is not a bridge',
            "it is a veth",
        )


@pytest.mark.parametrize("gateway", [True, False])
def test_the_mac_of_the_bridge_is_stable(
    runtime: Runtime, container: Netns, container2: Netns, gateway: bool
) -> None:
    """Its own, whatever ports come and go: neighbours never have to learn another."""
    host = runtime.host
    macs = set()

    def look() -> None:
        mac = link(host, "br0")["address"]
        macs.add(mac)
        assert mac not in {one["address"] for one in ports(host, "br0").values()}

    low = {"args": {"cni": {"mac": "02:00:00:00:00:01"}}}
    first, second = (routed(**low), routed(V4, 3)) if gateway else (network(**low), network())
    for verb in (runtime.add, runtime.delete, runtime.add):
        verb("bridge", first, container).succeeded()
        look()
        verb("bridge", second, container2, container_id="c2").succeeded()
        look()
    assert len(macs) == 1
    assert int(macs.pop()[:2], 16) & 3 == 2  # locally administered, unicast


def test_the_mac_of_a_bridge_that_was_there_is_pinned(
    runtime: Runtime, container: Netns, container2: Netns
) -> None:
    runtime.host.ip("link", "add", "br0", "type", "bridge")
    before = link(runtime.host, "br0")["address"]
    result = runtime.add("bridge", routed(), container).result
    assert result["interfaces"][0]["mac"] == link(runtime.host, "br0")["address"] == before
    runtime.delete("bridge", routed(), container).succeeded()
    assert link(runtime.host, "br0")["address"] == before


@each_family()
def test_address_conflict(
    runtime: Runtime, container: Netns, container2: Netns, family: Family
) -> None:
    runtime.add("bridge", routed(family), container).succeeded()
    other = {
        "v4": ("10.23.0.2/24", "10.23.0.1/24", "10.22.0.1/24"),
        "v6": ("fd00:22::1:2/48", "fd00:22::1/48", "fd00:22::1/64"),
        "dual": ("10.22.0.9/16", "10.22.0.1/16", "10.22.0.1/24"),
    }[family.name]
    cidr, gateway, present = other
    address = {"address": cidr, "gateway": plain(gateway)}
    conf = network(isGateway=True, ipam={"type": "static", "addresses": [address]})
    with unchanged(runtime.host, container2):
        runtime.add("bridge", conf, container2, container_id="c2").failed(
            999,
            f'failed to set bridge addr: "br0" already has an IP address different from {gateway}',
            f"ip address del {present} dev br0",
            "forceAddress",
        )
    conf["forceAddress"] = True
    runtime.add("bridge", conf, container2, container_id="c2").succeeded()
    assert gateway in addresses(runtime.host, "br0")
    assert present not in addresses(runtime.host, "br0")
    assert once(container2, plain(gateway))


def test_ipv6_subnets_that_do_not_overlap_coexist(
    runtime: Runtime, container: Netns, container2: Netns
) -> None:
    runtime.add("bridge", routed(V6), container).succeeded()
    static = {"type": "static", "addresses": [{"address": "fd00:99::2/64"}]}
    conf = network(isGateway=True, ipam=static)
    runtime.add("bridge", conf, container2, container_id="c2").succeeded()
    assert sorted(addresses(runtime.host, "br0")) == ["fd00:22::1/64", "fd00:99::1/64"]
    assert once(container, "fd00:22::1")
    assert once(container2, "fd00:99::1")


def test_the_conflict_releases_the_address(runtime: Runtime, container: Netns, ipam: Ipam) -> None:
    runtime.host.ip_batch(
        "link add br0 type bridge", "link set br0 up", "address add 10.1.0.1/24 dev br0"
    )
    conf = network(isGateway=True, ipam=ipam.conf)
    runtime.add("bridge", conf, container).failed(999, "different from 10.22.0.1/24")
    assert ipam.calls == ["ADD c1", "DEL c1"]
    assert addresses(runtime.host, "br0") == ["10.1.0.1/24"]


def test_mtu(runtime: Runtime, container: Netns) -> None:
    result = runtime.add("bridge", network(mtu=1400), container).result
    for name in ("br0", result["interfaces"][1]["name"]):
        assert link(runtime.host, name)["mtu"] == 1400
    assert link(container, "eth0")["mtu"] == 1400


def test_promiscuous_mode(runtime: Runtime, container: Netns) -> None:
    conf = network(promiscMode=True)
    result = runtime.add("bridge", conf, container).result
    assert link(runtime.host, "br0")["promiscuity"] == 1
    assert "PROMISC" in link(runtime.host, "br0")["flags"]
    runtime.check("bridge", conf, container, prev_result=result).succeeded()
    runtime.host.ip("link", "set", "br0", "promisc", "off")
    runtime.check("bridge", conf, container, prev_result=result).failed(
        999,
        "Bridge interface br0 configured Promisc Mode true doesn't match current state: false ",
    )
    runtime.host.ip("link", "set", "br0", "promisc", "on")
    runtime.check("bridge", network(), container, prev_result=result).failed(
        999,
        "Bridge interface br0 configured Promisc Mode false doesn't match current state: true ",
    )


def test_a_capture_on_the_bridge_is_no_promiscuous_mode(runtime: Runtime, container: Netns) -> None:
    result = runtime.add("bridge", network(), container).result
    with runtime.host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        index = link(runtime.host, "br0")["ifindex"]
        sock.setsockopt(263, 1, struct.pack("iHH8s", index, 1, 0, b""))  # PACKET_MR_PROMISC
        assert link(runtime.host, "br0")["promiscuity"] == 1
        runtime.check("bridge", network(), container, prev_result=result).succeeded()


# -- the port -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [False, True])
def test_hairpin(runtime: Runtime, container: Netns, wanted: bool) -> None:
    conf = routed(hairpinMode=wanted)
    result = runtime.add("bridge", conf, container).result
    assert port(link(runtime.host, result["interfaces"][1]["name"]))["hairpin"] is wanted
    own = result["interfaces"][2]["mac"]
    with capture(container, "eth0") as seen:
        once(container, "10.22.0.77", wait="0.2")  # which nobody has
    asked = [frame for frame in seen.frames if frame.arp and frame.arp.target_ip == "10.22.0.77"]
    assert any(frame.outgoing for frame in asked)
    # with hairpin mode, what a port sends is flooded to the port itself, too
    assert any(not frame.outgoing and frame.src == own for frame in asked) is wanted


def test_port_isolation(
    runtime: Runtime, netns: Callable[..., Netns], container: Netns, container2: Netns
) -> None:
    open_one = netns("container3")
    for number, ns, isolated in ((2, container, True), (3, container2, True), (4, open_one, False)):
        conf = routed(V4, number, portIsolation=isolated)
        result = runtime.add("bridge", conf, ns, container_id=f"c{number}").result
        assert port(link(runtime.host, result["interfaces"][1]["name"]))["isolated"] is isolated
    assert once(container, "10.22.0.1")
    assert once(container, "10.22.0.4")
    assert not once(container, "10.22.0.3", wait="0.3")
    assert once(open_one, "10.22.0.3")


ARGS_MAC, CNI_MAC, RUNTIME_MAC = (f"02:00:00:00:00:0{number}" for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("sources", "wanted"),
    [
        ("a", ARGS_MAC),
        ("c", CNI_MAC),
        ("r", RUNTIME_MAC),
        ("ac", CNI_MAC),
        ("ar", RUNTIME_MAC),
        ("acr", RUNTIME_MAC),
    ],
)
def test_mac(runtime: Runtime, container: Netns, sources: str, wanted: str) -> None:
    conf = network()
    if "c" in sources:
        conf["args"] = {"cni": {"mac": CNI_MAC}}
    if "r" in sources:
        conf["RuntimeConfig"] = {"mac": RUNTIME_MAC}
    args = f"IgnoreUnknown=true;K8S_POD_NAME=p;MAC={ARGS_MAC}" if "a" in sources else ""
    result = runtime.add("bridge", conf, container, args=args).result
    assert result["interfaces"][2]["mac"] == link(container, "eth0")["address"] == wanted


@pytest.mark.parametrize("spelling", ["02-00-00-00-00-AB", "0200.0000.00ab"])
def test_spellings_of_a_mac(runtime: Runtime, container: Netns, spelling: str) -> None:
    conf = network(runtimeConfig={"mac": spelling})
    result = runtime.add("bridge", conf, container).result
    assert result["interfaces"][2]["mac"] == "02:00:00:00:00:ab"


@pytest.mark.parametrize("wanted", [False, True])
def test_duplicate_address_detection(runtime: Runtime, container: Netns, wanted: bool) -> None:
    conf = routed(V6, enabledad=wanted)
    with capture(container) as seen:
        runtime.add("bridge", conf, container).succeeded()
    info = address_info(container, "eth0", "fd00:22::2/64")
    assert "tentative" not in info
    assert container.sysctl("net/ipv6/conf/eth0/accept_dad") == str(int(wanted))
    probed = any(
        frame.solicitation == "fd00:22::2" and frame.payload[8:24] == bytes(16)
        for frame in seen.frames
    )
    assert probed is wanted
    assert once(container, "fd00:22::1")


def test_a_duplicate_address_is_found(
    runtime: Runtime, container: Netns, container2: Netns, ipam: Ipam
) -> None:
    ipam.answer(
        {"cniVersion": "1.0.0", "ips": [{"address": "fd00:22::2/64", "gateway": "fd00:22::1"}]}
    )
    conf = network(isGateway=True, ipam=ipam.conf, enabledad=True)
    runtime.add("bridge", conf, container).succeeded()
    with unchanged(runtime.host, container2):
        runtime.add("bridge", conf, container2, container_id="c2").failed(
            999, "link eth0 has address fd00:22::2/64 in DADFAILED state"
        )
    assert ipam.calls == ["ADD c1", "ADD c2", "DEL c2"]


def test_disabled_container_interface(runtime: Runtime, container: Netns) -> None:
    conf = network(disableContainerInterface=True)
    result = runtime.add("bridge", conf, container).result
    assert "UP" not in link(container, "eth0")["flags"]
    assert addresses(container, "eth0", link_local=True) == []
    assert "ips" not in result
    runtime.delete("bridge", conf, container).succeeded()
    assert "eth0" not in links(container)


# -- packets --------------------------------------------------------------------------------------


@each_family()
def test_containers_talk(
    runtime: Runtime, container: Netns, container2: Netns, family: Family
) -> None:
    """At once: the very first packet after ADD arrives."""
    runtime.add("bridge", routed(family), container).succeeded()
    for gateway in family.gateways:
        assert once(container, gateway), f"the first ping of {gateway} after ADD is lost"
    conf = routed(family, 3)
    runtime.add("bridge", conf, container2, container_id="c2").succeeded()
    for mine, theirs, gateway in zip(family.first, family.second, family.gateways, strict=True):
        assert once(container, plain(theirs)), f"the first ping of {theirs} after ADD is lost"
        assert once(container2, plain(mine))
        assert once(container2, gateway)
        assert once(runtime.host, plain(mine))
        ping(container, plain(theirs), size=1400)
        with tcp_server(container2, plain(theirs)) as server:
            data = bytes(200_000)
            assert tcp_exchange(container, plain(theirs), server.port, data) == plain(mine)
        with udp_server(container2, plain(theirs)) as server:
            assert udp_exchange(container, plain(theirs), server.port) == plain(mine)


def test_the_first_packet_from_outside_arrives(
    runtime: Runtime, container: Netns, outside: Netns
) -> None:
    """The node can ask for its neighbours as soon as the bridge is there."""
    host = runtime.host
    connect(host, outside)
    outside.ip_batch("route add 10.22.0.0/24 via 198.51.100.1")
    outside.ip("-6", "route", "add", "fd00:22::/64", "via", "2001:db8:ffff::1")
    ping(outside, "198.51.100.1")
    ping(outside, "2001:db8:ffff::1")
    runtime.add("bridge", routed(DUAL), container).succeeded()
    assert once(outside, "fd00:22::2")
    assert once(outside, "10.22.0.2")


@each_family()
def test_an_address_that_is_used_again_loses_no_packet(
    runtime: Runtime,
    netns: Callable[..., Netns],
    container: Netns,
    container2: Netns,
    family: Family,
) -> None:
    """A neighbour that knew the old container's MAC reaches the new one with its first packet."""
    host, later = runtime.host, netns("container3")
    runtime.add("bridge", routed(family), container).succeeded()
    conf = routed(family, 3)
    runtime.add("bridge", conf, container2, container_id="c2").succeeded()
    cidrs = family.first
    for cidr in cidrs:
        ping(container2, plain(cidr))
        ping(host, plain(cidr))
    runtime.delete("bridge", routed(family), container).succeeded()
    with capture(container2, "eth0") as seen:
        runtime.add("bridge", routed(family), later, container_id="c3").succeeded()
        for cidr in cidrs:
            assert once(container2, plain(cidr)), f"the neighbour has not learnt about {cidr}"
            assert once(host, plain(cidr)), f"the node has not learnt about {cidr}"
    mac = link(later, "eth0")["address"]
    for cidr in cidrs:
        if "." in cidr:
            assert mac in {arp.sender_mac for arp in seen.gratuitous(plain(cidr))}
        else:
            unsolicited = [a for a in seen.advertisements(plain(cidr)) if not a.solicited]
            assert (mac, True) in {(a.mac, a.override) for a in unsolicited}


@each_family()
def test_other_containers_get_no_more_than_the_announcement(
    runtime: Runtime, container: Netns, container2: Netns, family: Family
) -> None:
    """A bridge sends each to all containers; over IPv6 there is none for IPv4 addresses."""
    runtime.add("bridge", routed(family), container).succeeded()
    with capture(container, "eth0") as seen:
        conf = routed(family, 3)
        runtime.add("bridge", conf, container2, container_id="c2").succeeded()
    mac = link(container2, "eth0")["address"]
    arps = [arp for arp in seen.arps() if arp.sender_mac == mac and arp.gratuitous]
    assert len(arps) == sum("." in cidr for cidr in family.second)
    targets = [each.target for each in seen.advertisements() if each.mac == mac]
    v6 = [plain(cidr) for cidr in family.second if ":" in cidr]
    # the kernel sends one of its own when it has made the address usable, before or after the port
    assert {each for each in targets if not each.startswith("fe80:")} == set(v6)
    assert v6 or not targets


# -- router advertisements (CVE-2020-10749) -------------------------------------------------------


def await_link_local(ns: Netns, name: str) -> None:
    """Until the interface has a link-local address that it may use."""

    def usable() -> bool:
        return any(
            cidr.startswith("fe80:") and "tentative" not in address_info(ns, name, cidr)
            for cidr in addresses(ns, name, link_local=True)
        )

    wait_until(usable, f"{name} in {ns!r} has a usable link-local address")


def advertise_router(container: Netns) -> None:
    """Send a router advertisement with a default route and a prefix from eth0."""
    index = link(container, "eth0")["ifindex"]
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0)
    prefix += socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
    advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
    with container.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.sendto(advertisement, ("ff02::1", 0, 0, index))


def learnt(host: Netns, within: float) -> bool:
    """Does the node take up a route or address from an advertisement within some seconds?"""

    def protocols() -> set[str]:
        return {route.get("protocol", "") for route in host.ip_json("-6", "route")}

    return "ra" in last_seen(protocols, wanted=lambda seen: "ra" in seen, timeout=within)


def test_a_containers_router_advertisement_is_ignored(runtime: Runtime, container: Netns) -> None:
    host = runtime.host
    host.set_sysctl("net/ipv6/conf/default/accept_ra", 2)
    host.set_sysctl("net/ipv6/conf/all/accept_ra", 2)
    result = runtime.add("bridge", routed(), container).result
    for name in ("br0", result["interfaces"][1]["name"]):
        assert host.sysctl(f"net/ipv6/conf/{name}/accept_ra") == "0"
    await_link_local(host, "br0")
    await_link_local(container, "eth0")
    advertise_router(container)
    assert not learnt(host, 0.5)
    # and what the test sends is heard: with the setting off by hand, the node falls for it
    host.set_sysctl("net/ipv6/conf/br0/accept_ra", 2)
    advertise_router(container)
    assert learnt(host, TIMEOUT)


def test_a_port_has_no_address_of_its_own(runtime: Runtime, container: Netns) -> None:
    """Its packets are the bridge's; routes to such addresses make each DEL on the node slower."""
    result = runtime.add("bridge", routed(), container).result
    await_link_local(runtime.host, "br0")
    await_link_local(container, "eth0")
    port = link(runtime.host, result["interfaces"][1]["name"])
    assert port["inet6_addr_gen_mode"] == "none"
    assert addresses(runtime.host, port["ifname"], link_local=True) == []


def test_a_port_without_ipv6(runtime: Runtime, container: Netns) -> None:
    """With a smaller MTU than IPv6's the kernel has no such setting for the link."""
    result = runtime.add("bridge", routed(mtu=1000), container).result
    ping(container, V4.gateways[0])
    assert link(runtime.host, result["interfaces"][1]["name"])["mtu"] == 1000


# -- names and owners -----------------------------------------------------------------------------


def test_the_hosts_end_has_a_derived_name_and_its_owner(
    runtime: Runtime, container: Netns, container2: Netns
) -> None:
    def name(ns: Netns, **kwargs: Any) -> str:
        conf = network(name=kwargs.pop("network", "net"))
        with runtime.attached("bridge", conf, ns, **kwargs) as result:
            veth = str(result["interfaces"][1]["name"])
            owner = f"{conf['name']}/{kwargs.get('container_id', 'c1')}/"
            assert owner in link(runtime.host, veth)["ifalias"]
        return veth

    first = name(container)
    assert first.startswith("veth")
    assert name(container2) == first  # not of the namespace
    others = {
        name(container, ifname="eth1"),
        name(container, container_id="c2"),
        name(container, network="net2"),
    }
    assert len(others | {first}) == 4


def test_another_name_when_the_derived_one_is_taken(runtime: Runtime, container: Netns) -> None:
    with runtime.attached("bridge", network(), container) as result:
        taken = result["interfaces"][1]["name"]
    runtime.host.ip_batch(
        f"link add {taken} type veth peer name other", f"link set {taken} alias somebody"
    )
    with runtime.attached("bridge", network(), container) as result:
        assert result["interfaces"][1]["name"] != taken
    # a DEL without namespace finds ours behind the other's
    runtime.add("bridge", network(), container).succeeded()
    runtime.delete("bridge", network(), None).succeeded()
    assert ports(runtime.host, "br0") == {}
    assert taken in links(runtime.host)


@pytest.mark.parametrize("ifname", ["eth0.5", "ééééééé", "a" * 15, "-x"])
def test_unusual_interface_names(runtime: Runtime, container: Netns, ifname: str) -> None:
    conf = routed(DUAL)
    with runtime.attached("bridge", conf, container, ifname=ifname) as result:
        assert result["interfaces"][2]["name"] == ifname
        assert sorted(addresses(container, ifname)) == sorted(DUAL.first)
        runtime.check("bridge", conf, container, ifname=ifname, prev_result=result).succeeded()
        assert once(container, V6.gateways[0])
    assert ifname not in links(container)


# -- failures -------------------------------------------------------------------------------------


def test_a_second_add_leaves_the_first_alone(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    conf = network(isGateway=True, ipam=DUAL.host_local(data_dir))
    result = runtime.add("bridge", conf, container).result
    with unchanged(runtime.host, container, data_dir):
        runtime.add("bridge", conf, container).failed(
            999, 'container veth name ("eth0") peer provided ("veth', "already exists", "DEL"
        )
    runtime.check("bridge", conf, container, prev_result=result).succeeded()


def test_a_failure_after_the_allocation_releases_it(
    runtime: Runtime, container: Netns, ipam: Ipam
) -> None:
    runtime.add("bridge", network(), container, ifname="eth9").succeeded()  # the bridge is there
    ipam.answer(
        {
            "cniVersion": "1.0.0",
            "ips": [{"address": "10.22.0.2/24"}],
            "routes": [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}],
        }
    )
    with unchanged(runtime.host, container):
        runtime.add("bridge", network(ipam=ipam.conf), container).failed(
            999, "failed to add route '10.9.0.0/16 via 192.0.2.1"
        )
    assert ipam.calls == ["ADD c1", "DEL c1"]


def test_no_address_from_ipam(runtime: Runtime, container: Netns, ipam: Ipam) -> None:
    ipam.answer({"cniVersion": "1.0.0"})
    with unchanged(runtime.host, container):
        runtime.add("bridge", network(ipam=ipam.conf), container).failed(
            999, "IPAM plugin returned missing IP config"
        )
    assert ipam.calls == ["ADD c1", "DEL c1"]


def test_ipams_error_is_ours(runtime: Runtime, container: Netns, ipam: Ipam) -> None:
    ipam.script("""echo '{"code": 11, "msg": "try later", "details": "soon"}'; exit 1""")
    with unchanged(runtime.host, container):
        error = runtime.add("bridge", network(ipam=ipam.conf), container).failed(11)
    assert error == {"code": 11, "msg": "try later", "details": "soon"}
    assert ipam.calls == ["ADD c1"]  # it has nothing to release


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_add(
    runtime: Runtime, container: Netns, ipam: Ipam, number: signal.Signals
) -> None:
    ipam.script(f'test "$CNI_COMMAND" = DEL || {{ echo $$ >{ipam.dir}/started; exec sleep 60; }}')
    conf = network(isGateway=True, ipam=ipam.conf)
    with unchanged(runtime.host, container):
        child = runtime.start("ADD", "bridge", conf, container)
        pid = wait_for_line(ipam.dir / "started", child)
        child.send_signal(number)
        out, _ = child.communicate(timeout=20)
        assert not Path("/proc", pid.strip()).exists(), "the IPAM plugin goes on"
    assert child.returncode == 1
    error = json.loads(out)
    assert (error["code"], error["msg"]) == (999, f"interrupted by {number.name}")
    assert ipam.calls == ["ADD c1", "DEL c1"]  # it may have allocated


def test_the_nodes_own_namespace(runtime: Runtime) -> None:
    host = runtime.host
    with unchanged(host):
        for path in (host.path, f"/proc/{getpid_inside(host)}/ns/net"):
            runtime.add("bridge", routed(), path).failed(
                8, "plugin's netns and netns from CNI_NETNS should not be the same"
            )
            runtime.delete("bridge", routed(), path).failed(8)
    override = {"CNI_NETNS_OVERRIDE": "TRUE"}
    runtime.add("bridge", routed(), host, env=override).succeeded()
    assert addresses(host, "eth0") == ["10.22.0.2/24"]
    runtime.delete("bridge", routed(), host, env=override).succeeded()
    assert "eth0" not in links(host)


def getpid_inside(host: Netns) -> int:
    """A process in the node's namespace, ended with it."""
    return host.popen(["sleep", "60"]).pid


# -- DEL ------------------------------------------------------------------------------------------


def leases(data_dir: Path) -> set[str]:
    """host-local's leases on disk."""
    return {name for name in tree(data_dir) if name[-1].isalnum() and "last" not in name
            and "lock" not in name and "/" in name}  # fmt: skip


def leased(data_dir: Path, family: Family = DUAL, **keys: Any) -> Json:
    return network(isGateway=True, ipam=family.host_local(data_dir), **keys)


@pytest.mark.parametrize("how", ["empty", "gone", "twice"])
def test_del_cleans_up_without_the_namespace(
    runtime: Runtime, container: Netns, data_dir: Path, how: str
) -> None:
    conf = leased(data_dir)
    runtime.add("bridge", conf, container).succeeded()
    assert len(leases(data_dir)) == 2
    path: Any = container
    if how == "empty":
        path = None
    if how == "gone":
        container.unname()
    for _ in range(2):
        runtime.delete("bridge", conf, path).succeeded()
        assert ports(runtime.host, "br0") == {}
        assert leases(data_dir) == set()
    assert "eth0" not in links(container)


def test_del_of_what_was_never_added(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    conf = leased(data_dir)
    with unchanged(runtime.host, container):
        runtime.delete("bridge", conf, container).succeeded()
        runtime.delete("bridge", conf, None).succeeded()
        runtime.delete("bridge", network(), container).succeeded()
        runtime.delete("bridge", network(), "/run/netns/nosuch").succeeded()
        taken = runtime.delete("bridge", network(), "/proc/self/status").succeeded()
        assert "taken for gone" in taken.stderr
    assert leases(data_dir) == set()


def test_del_after_the_link_was_deleted(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    conf = leased(data_dir)
    runtime.add("bridge", conf, container).succeeded()
    container.ip("link", "delete", "eth0")
    runtime.delete("bridge", conf, container).succeeded()
    assert leases(data_dir) == set()


def test_del_goes_on_when_ipam_fails(runtime: Runtime, container: Netns, ipam: Ipam) -> None:
    conf = network(ipam=ipam.conf)
    runtime.add("bridge", conf, container).succeeded()
    ipam.script("""echo '{"code": 11, "msg": "try later"}'; exit 1""")
    runtime.delete("bridge", conf, container).failed(11, "try later")
    assert "eth0" not in links(container)
    assert ports(runtime.host, "br0") == {}


# -- GC -------------------------------------------------------------------------------------------


def test_gc_removes_what_no_attachment_needs(
    runtime: Runtime,
    netns: Callable[..., Netns],
    container: Netns,
    container2: Netns,
    tmp_path: Path,
) -> None:
    host, third = runtime.host, netns("container3")
    conf, other = leased(tmp_path / "a", V4), leased(tmp_path / "a", V6, name="net2")
    result = runtime.add("bridge", conf, container).result
    runtime.add("bridge", conf, container, ifname="eth1").succeeded()
    runtime.add("bridge", conf, container2, container_id="c2").succeeded()
    runtime.add("bridge", other, third, container_id="c3").succeeded()
    host.ip("link", "add", "vethmine", "type", "veth", "peer", "name", "vethpeer")
    host.ip("link", "set", "vethmine", "master", "br0")

    with unchanged(host, tmp_path):
        runtime.gc("bridge", conf, None).succeeded()  # without a list nothing is known
        everything = [("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0")]
        runtime.gc("bridge", conf, everything).succeeded()
    runtime.gc("bridge", conf, [("c1", "eth0")]).succeeded()
    assert "eth0" in links(container)
    assert "eth1" not in links(container)
    assert "eth0" not in links(container2)
    assert "eth0" in links(third)
    assert "vethmine" in links(host)
    assert {Path(name).name for name in leases(tmp_path / "a")} == {
        plain(result["ips"][0]["address"]),
        "fd00:22::2",
    }
    runtime.check("bridge", conf, container, prev_result=result).succeeded()
    assert once(container, "10.22.0.1")
    for _ in range(2):
        runtime.gc("bridge", conf, []).succeeded()
    assert "eth0" not in links(container)
    assert "eth0" in links(third)
    assert {Path(name).name for name in leases(tmp_path / "a")} == {"fd00:22::2"}


def test_gc_goes_on_when_ipam_fails(runtime: Runtime, container: Netns, ipam: Ipam) -> None:
    conf = network(ipam=ipam.conf)
    runtime.add("bridge", conf, container).succeeded()
    ipam.script("echo broken >&2; exit 1")
    runtime.gc("bridge", conf, []).failed(None, "broken")
    assert "eth0" not in links(container)


# -- CHECK ----------------------------------------------------------------------------------------


@contextmanager
def damaged(runtime: Runtime, container: Netns, ns: Netns, *lines: str) -> Iterator[Any]:
    """ADD, damage by `ip` commands (VETH is the host's end); gives a function that CHECKs."""
    conf = routed(DUAL)
    result = runtime.add("bridge", conf, container).result
    check = lambda: runtime.check("bridge", conf, container, prev_result=result)  # noqa: E731
    check().succeeded()
    veth = result["interfaces"][1]["name"]
    ns.ip_batch(*(line.replace("VETH", veth) for line in lines))
    yield check


@pytest.mark.parametrize(
    ("where", "lines", "text"),
    [
        ("host", ["link delete br0"], "Interface name br0 not found"),
        ("host", ["link set br0 down"], "Bridge interface br0 is down"),
        ("host", ["link set br0 down"], "br0 lacks the gateway's address fd00:22::1/64"),
        ("host", ["address delete 10.22.0.1/24 dev br0"], "br0 lacks the gateway's address"),
        ("host", ["address delete fd00:22::1/64 dev br0"], "br0 lacks the gateway's address"),
        ("host", ["link set VETH down"], "the container's link on the node, is down"),
        ("host", ["link set br0 address 02:00:00:00:00:99"], "Mac"),
        (
            "host",
            ["link set VETH nomaster"],
            "CNI veth created for bridge br0 was not found",
        ),
        (
            "host",
            ["link add br9 type bridge", "link set VETH master br9"],
            "CNI veth created for bridge br0 was not found",
        ),
        ("host", ["link set VETH address 02:00:00:00:00:99"], "CNI veth created for bridge"),
        ("host", ["link set VETH down", "link set VETH name vethx"], "Interface name veth"),
        ("container", ["link delete eth0"], "Interface name eth0 not found"),
        (
            "container",
            ["link set eth0 address 02:00:00:00:00:99"],
            "Interface eth0 Mac",
        ),
        (
            "container",
            ["address delete 10.22.0.2/24 dev eth0"],
            "Failed to match addr 10.22.0.2/24 on interface eth0",
        ),
        (
            "container",
            ["address add 10.22.0.2/16 dev eth0", "address delete 10.22.0.2/24 dev eth0"],
            "Failed to match addr 10.22.0.2/24 on interface eth0",
        ),
        (
            "container",
            ["address delete fd00:22::2/64 dev eth0"],
            "Failed to match addr fd00:22::2/64 on interface eth0",
        ),
        (
            "container",
            ["route delete 10.22.0.0/24"],
            "Failed to find Gateway 10.22.0.1 for interface eth0",
        ),
        ("container", ["route delete default"], "Expected Route 0.0.0.0/0 not found"),
        ("container", ["route delete ::/0"], "Expected Route ::/0 not found"),
        ("container", ["link set eth0 down"], "Failed to find Gateway 10.22.0.1"),
    ],
)
def test_check_finds_damage(
    runtime: Runtime, container: Netns, where: str, lines: list[str], text: str
) -> None:
    ns = runtime.host if where == "host" else container
    with damaged(runtime, container, ns, *lines) as check:
        check().failed(999, text)


@pytest.mark.parametrize(
    ("name", "family"), [("ipv4.ip_forward", "IPv4"), ("ipv6.conf.all.forwarding", "IPv6")]
)
def test_check_finds_that_nothing_is_forwarded(
    runtime: Runtime, container: Netns, name: str, family: str
) -> None:
    with damaged(runtime, container, container) as check:
        runtime.host.exec(["sysctl", "-qw", f"net.{name}=0"])
        check().failed(999, f"the node does not forward {family} packets")
        runtime.host.exec(["sysctl", "-qw", f"net.{name}=1"])
        check().succeeded()


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_check_finds_that_nothing_from_the_bridge_is_forwarded(
    runtime: Runtime, container: Netns, family: str
) -> None:
    with damaged(runtime, container, container) as check:
        name = f"net.{family}.conf.br0.forwarding"
        runtime.host.exec(["sysctl", "-qw", f"{name}=0"])
        check().failed(999, f"br0 does not forward IP{family[2:]} packets: {name} is 0")


def test_check_finds_a_port_that_forwards_nothing(runtime: Runtime, container: Netns) -> None:
    with damaged(runtime, container, container) as check:
        (port,) = json.loads(runtime.host.ip("-j", "link", "show", "master", "br0"))
        mend = ["bridge", "link", "set", "dev", port["ifname"], "state"]
        runtime.host.exec([*mend, "0"])
        check().failed(999, f"the bridge br0 forwards nothing through its port {port['ifname']}")
        runtime.host.exec([*mend, "3"])
        check().succeeded()


def test_check_does_not_ask_for_forwarding_without_a_gateway(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    conf = network(isGateway=False, isDefaultGateway=False)
    result = runtime.add("bridge", conf, container).result
    runtime.host.exec(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    runtime.check("bridge", conf, container, prev_result=result).succeeded()


def test_check_reports_every_difference(runtime: Runtime, container: Netns) -> None:
    lines = ("address delete 10.22.0.2/24 dev eth0", "link set eth0 address 02:00:00:00:00:99")
    with damaged(runtime, container, container, *lines) as check:
        check().failed(999, "Failed to match addr 10.22.0.2/24", "Interface eth0 Mac", "0.0.0.0/0")


def test_check_tolerates_what_others_added(runtime: Runtime, container: Netns) -> None:
    lines = ("address add 10.5.0.1/24 dev eth0", "route add 10.6.0.0/16 dev eth0")
    with damaged(runtime, container, container, *lines) as check:
        check().succeeded()


def test_check_needs_a_prev_result_of_this_attachment(
    runtime: Runtime, container: Netns, container2: Netns
) -> None:
    conf = routed()
    result = runtime.add("bridge", conf, container).result
    runtime.check("bridge", conf, container).failed(999, "Required prevResult missing")
    runtime.check("bridge", conf, container2, prev_result=result).failed(
        999, f"doesn't match configured netns: {container2.path}"
    )
    runtime.check("bridge", {**conf, "bridge": "br1"}, container, prev_result=result).failed(
        999, "Interface name missing "
    )


def test_check_asks_ipam(runtime: Runtime, container: Netns, data_dir: Path, ipam: Ipam) -> None:
    conf = leased(data_dir, V4)
    result = runtime.add("bridge", conf, container).result
    runtime.check("bridge", conf, container, prev_result=result).succeeded()
    (lease,) = leases(data_dir)
    (data_dir / lease).unlink()
    runtime.check("bridge", conf, container, prev_result=result).failed(999)


# -- STATUS ---------------------------------------------------------------------------------------


def test_status(runtime: Runtime, ipam: Ipam) -> None:
    with unchanged(runtime.host):
        runtime.status("bridge", network()).succeeded()
        runtime.status("bridge", routed()).succeeded()
        runtime.status("bridge", network(ipam=ipam.conf)).succeeded()
        assert ipam.calls == ["STATUS "]
        ipam.script("""echo '{"code": 51, "msg": "limited"}'; exit 1""")
        runtime.status("bridge", network(ipam=ipam.conf)).failed(51, "limited")
        runtime.status("bridge", network(ipam={"type": "nosuch"})).failed(
            999, 'failed to find plugin "nosuch"'
        )
