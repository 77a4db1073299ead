"""Keys of several main plugins: names, MACs, routes, and what is set before a link is up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    DUAL,
    Netns,
    Runtime,
    connect,
    find_routes,
    has_route,
    link,
    links,
    nft,
    ping,
    tcp_exchange,
    tcp_server,
    unchanged,
)
from tests.harness.contract import leases, plug, without_dad

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Json = dict[str, Any]

PAIRS: dict[str, Json] = {"bridge": {"bridge": "br0", "isGateway": True}, "ptp": {}}
each_pair = pytest.mark.parametrize("plugin", PAIRS)


def network(plugin: str, data_dir: Path, **keys: Any) -> Json:
    ipam = DUAL.host_local(data_dir)
    return {"cniVersion": "1.1.0", "name": "net", **PAIRS.get(plugin, {}), "ipam": ipam, **keys}


def host_ends(host: Netns) -> set[str]:
    return {name for name in links(host) if name.startswith("veth") or name == "web0"}


# -- hostInterfaceName ----------------------------------------------------------------------------


@each_pair
def test_host_interface_name(
    runtime: Runtime, container: Netns, data_dir: Path, plugin: str
) -> None:
    """In the result and on the node; DEL needs neither the key nor the prevResult."""
    conf = network(plugin, data_dir, hostInterfaceName="web0")
    result = runtime.add(plugin, conf, container).result
    assert "web0" in [one["name"] for one in result["interfaces"]]
    assert host_ends(runtime.host) == {"web0"}
    ping(container, DUAL.gateways[0])
    runtime.check(plugin, conf, container, prev_result=result).succeeded()
    runtime.add(plugin, conf, container).failed(999, "already exists")
    runtime.delete(plugin, network(plugin, data_dir), container).succeeded()
    assert host_ends(runtime.host) == set()
    assert not leases(data_dir)


@each_pair
def test_host_interface_name_goes_by_gc(
    runtime: Runtime, container: Netns, data_dir: Path, plugin: str
) -> None:
    conf = network(plugin, data_dir, hostInterfaceName="web0")
    runtime.add(plugin, conf, container).succeeded()
    runtime.gc(plugin, conf, [("c1", "eth0")]).succeeded()
    assert host_ends(runtime.host) == {"web0"}
    runtime.gc(plugin, network(plugin, data_dir), []).succeeded()
    assert host_ends(runtime.host) == set()


@each_pair
def test_host_interface_name_without_alternative_names(
    runtime: Runtime, container: Netns, data_dir: Path, plugin: str
) -> None:
    """As on a kernel before 5.5, or after a kill between the two requests."""
    conf = network(plugin, data_dir, hostInterfaceName="web0")
    runtime.add(plugin, conf, container).succeeded()
    (other,) = link(runtime.host, "web0")["altnames"]
    runtime.host.ip("link", "property", "del", "dev", "web0", "altname", other)
    runtime.delete(plugin, conf, container).succeeded()
    assert host_ends(runtime.host) == set()


@each_pair
def test_host_interface_name_that_is_taken(
    runtime: Runtime, container: Netns, data_dir: Path, plugin: str
) -> None:
    """The other link, which has no mark either, is left alone."""
    runtime.host.ip("link", "add", "web0", "type", "veth", "peer", "name", "other0")
    if plugin == "bridge":
        runtime.host.ip("link", "add", "br0", "type", "bridge")
    conf = network(plugin, data_dir, hostInterfaceName="web0")
    index = link(runtime.host, "web0")["ifindex"]
    reply = runtime.add(plugin, conf, container)
    reply.failed(999, "web0", "file exists")
    assert "hostInterfaceName is for one container" in reply.error["details"]
    for _ in range(2):
        assert host_ends(runtime.host) == {"web0"}
        assert link(runtime.host, "web0")["ifindex"] == index
        runtime.delete(plugin, conf, container).succeeded()
    assert not leases(data_dir)


@each_pair
@pytest.mark.parametrize("name", ["a/b", "a name", "x" * 16, "."])
def test_host_interface_name_that_no_link_can_have(
    runtime: Runtime, container: Netns, data_dir: Path, plugin: str, name: str
) -> None:
    with unchanged(runtime.host, container, data_dir):
        reply = runtime.add(plugin, network(plugin, data_dir, hostInterfaceName=name), container)
        reply.failed(999, "invalid hostInterfaceName")


# -- mac of ptp -----------------------------------------------------------------------------------


@pytest.mark.parametrize("link_type", ["veth", "netkit"])
@pytest.mark.parametrize("source", ["runtimeConfig", "args"])
def test_mac_of_ptp(
    runtime: Runtime, container: Netns, data_dir: Path, source: str, link_type: str
) -> None:
    mac = "02:00:00:00:00:42"
    keys: Json = {"linkType": link_type}
    if source == "runtimeConfig":
        keys |= {"runtimeConfig": {"mac": mac}, "args": {"cni": {"mac": "02:00:00:00:00:01"}}}
    else:
        keys |= {"args": {"cni": {"mac": mac}}}
    conf = network("ptp", data_dir, **keys)
    result = runtime.add("ptp", conf, container).result
    assert link(container, "eth0")["address"] == mac
    assert result["interfaces"][1]["mac"] == mac
    ping(container, DUAL.gateways[0])
    runtime.check("ptp", conf, container, prev_result=result).succeeded()


@pytest.mark.parametrize("mac", ["nonsense", "01:00:00:00:00:01"])
def test_wrong_mac_of_ptp(runtime: Runtime, container: Netns, data_dir: Path, mac: str) -> None:
    conf = network("ptp", data_dir, runtimeConfig={"mac": mac})
    with unchanged(runtime.host, container, data_dir):
        runtime.add("ptp", conf, container).failed(999, "failed to make veth pair")


# -- routes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["bridge", "ptp", "macvlan"])
def test_no_default_route(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, plugin: str
) -> None:
    keys: Json = {}
    if plugin == "macvlan":
        plug(runtime.host, outside)
        keys = {"master": "lan0"}
    conf = network(plugin, data_dir, noDefaultRoute=True, **keys)
    conf["ipam"]["routes"].append({"dst": "10.99.0.0/16", "metric": 70})
    result = runtime.add(plugin, conf, container).result
    assert result["routes"] == [{"dst": "10.99.0.0/16", "priority": 70}]
    assert not has_route(container, "0.0.0.0/0")
    assert not has_route(container, "::/0")
    (made,) = find_routes(container, "10.99.0.0/16")
    assert made["metric"] == 70
    runtime.check(plugin, conf, container, prev_result=result).succeeded()
    runtime.delete(plugin, conf, container).succeeded()


def test_no_default_route_contradicts_the_default_gateway(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    conf = network("bridge", data_dir, noDefaultRoute=True, isDefaultGateway=True)
    with unchanged(runtime.host, container, data_dir):
        runtime.add("bridge", conf, container).failed(999, "noDefaultRoute")


# -- acceptRA, autoconf ---------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["bridge", "ptp", "macvlan"])
@pytest.mark.parametrize("wanted", [False, True, None])
def test_accept_ra_and_autoconf(
    runtime: Runtime,
    container: Netns,
    outside: Netns,
    data_dir: Path,
    plugin: str,
    wanted: bool | None,
) -> None:
    """Whatever the namespace's default is; the other interfaces' are left alone."""
    keys: Json = {}
    if plugin == "macvlan":
        plug(runtime.host, outside)
        keys = {"master": "lan0"}
    default = 0 if wanted else 1
    for name in ("accept_ra", "autoconf"):
        container.set_sysctl(f"net/ipv6/conf/default/{name}", default)
    conf = network(plugin, data_dir, acceptRA=wanted, autoconf=wanted, **keys)
    runtime.add(plugin, conf, container).succeeded()
    for name in ("accept_ra", "autoconf"):
        want = default if wanted is None else int(wanted)
        assert container.sysctl(f"net/ipv6/conf/eth0/{name}") == str(want)
        assert container.sysctl(f"net/ipv6/conf/lo/{name}") is not None


@pytest.mark.parametrize("plugin", ["bridge", "macvlan"])
def test_accept_ra_without_ipam(
    runtime: Runtime, container: Netns, outside: Netns, plugin: str
) -> None:
    keys: Json = {"bridge": "br0"}
    if plugin == "macvlan":
        plug(runtime.host, outside)
        keys = {"master": "lan0"}
    conf = {"cniVersion": "1.1.0", "name": "net", "acceptRA": False, "autoconf": False, **keys}
    runtime.add(plugin, conf, container).succeeded()
    assert "UP" in link(container, "eth0")["flags"]
    for name in ("accept_ra", "autoconf"):
        assert container.sysctl(f"net/ipv6/conf/eth0/{name}") == "0"


# -- mtu: "auto" ----------------------------------------------------------------------------------


def uplinks(host: Netns, *mtus: int) -> list[str]:
    """Links of the node with these MTUs, up and with addresses; eth0 is their first."""
    names = [f"eth{number}" for number in range(len(mtus))]
    for number, (name, mtu) in enumerate(zip(names, mtus, strict=True)):
        peer = f"wire{number}"
        host.ip("link", "add", name, "mtu", str(mtu), "type", "veth", "peer", "name", peer)
        host.ip("link", "set", name, "up")
        host.ip("link", "set", peer, "up")
        host.ip("addr", "add", f"198.51.{number}.2/24", "dev", name)
        host.ip("addr", "add", f"2001:db8:{number}::2/64", "dev", name, "nodad")
    return names


def attached_mtu(runtime: Runtime, plugin: str, conf: Json, container: Netns) -> int:
    result = runtime.add(plugin, conf, container).result
    runtime.check(plugin, conf, container, prev_result=result).succeeded()
    mtu: int = link(container, "eth0")["mtu"]
    return mtu


HOPS = ("nexthop", "via", "198.51.0.1", "nexthop", "via", "198.51.1.1")
DEFAULTS: dict[str, tuple[list[str], int]] = {
    "ipv4": (["-4 route add default via 198.51.1.1"], 1400),
    "ipv6": (["-6 route add default via 2001:db8:1::1"], 1400),
    "both": (
        ["-4 route add default via 198.51.0.1", "-6 route add default via 2001:db8:1::1"],
        1400,
    ),
    "multipath": ([f"-4 route add default {' '.join(HOPS)}"], 1400),
    "multipath ipv6": (
        [
            "-6 route add default nexthop via 2001:db8:0::1 dev eth0 "
            "nexthop via 2001:db8:1::1 dev eth1"
        ],
        1400,
    ),
    "the one with the smaller metric": (
        [
            "-4 route add default via 198.51.0.1 metric 5",
            "-4 route add default via 198.51.1.1 metric 9",
        ],
        9000,
    ),
    "a network has the address that the kernel is asked for": (
        [
            "-4 route add default via 198.51.0.1 metric 5",
            "-4 route add default via 198.51.1.1 metric 9",
            "-4 route add 240.0.0.0/4 via 198.51.1.1",
        ],
        9000,
    ),
    "a gateway of another family": (
        ["-4 route add default via inet6 2001:db8:1::1 dev eth1"],
        1400,
    ),
}


@each_pair
@pytest.mark.parametrize("case", DEFAULTS)
def test_mtu_of_the_uplink(
    runtime: Runtime, container: Netns, data_dir: Path, plugin: str, case: str
) -> None:
    """The default routes' smallest, on both ends and on the bridge that is made."""
    routes, mtu = DEFAULTS[case]
    uplinks(runtime.host, 9000, 1400)
    for each in routes:
        runtime.host.ip(*each.split())
    conf = network(plugin, data_dir, mtu="auto")
    assert attached_mtu(runtime, plugin, conf, container) == mtu
    (outer,) = host_ends(runtime.host)
    assert link(runtime.host, outer)["mtu"] == mtu
    if plugin == "bridge":
        assert link(runtime.host, "br0")["mtu"] == mtu
    runtime.delete(plugin, conf, container).succeeded()
    assert host_ends(runtime.host) == set()


@each_pair
def test_mtu_of_no_uplink(runtime: Runtime, container: Netns, data_dir: Path, plugin: str) -> None:
    """Without a default route ADD fails before it changes anything; DEL does not look for one."""
    uplinks(runtime.host, 9000)
    conf = network(plugin, data_dir, mtu="auto")
    with unchanged(runtime.host, container, data_dir):
        reply = runtime.add(plugin, conf, container)
        reply.failed(999, "no default route")
    runtime.delete(plugin, conf, container).succeeded()


@each_pair
def test_mtu_that_the_uplink_has_no_longer(
    runtime: Runtime, container: Netns, data_dir: Path, plugin: str
) -> None:
    """CHECK says that packets may be lost; an uplink with a larger MTU is none of its business."""
    uplinks(runtime.host, 1500)
    runtime.host.ip("route", "add", "default", "via", "198.51.0.1")
    conf = network(plugin, data_dir, mtu="auto")
    result = runtime.add(plugin, conf, container).result
    runtime.host.ip("link", "set", "eth0", "mtu", "9000")
    runtime.check(plugin, conf, container, prev_result=result).succeeded()
    runtime.host.ip("link", "set", "eth0", "mtu", "1400")
    error = runtime.check(plugin, conf, container, prev_result=result).failed(999)
    assert "eth0 has the MTU 1500, and the uplink eth0 only 1400" in error["msg"]
    fixed = {**conf, "mtu": 1500}
    runtime.check(plugin, fixed, container, prev_result=result).succeeded()


def test_mtu_of_a_tap(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    uplinks(runtime.host, 1400)
    runtime.host.ip("route", "add", "default", "via", "198.51.0.1")
    conf = network("tap", data_dir, mtu="auto")
    assert attached_mtu(runtime, "tap", conf, container) == 1400
    runtime.delete("tap", conf, container).succeeded()


def test_mtu_of_the_master(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    """On a master "auto" is the master's, whatever the default route's link has."""
    uplinks(runtime.host, 1400, 9000)
    runtime.host.ip("route", "add", "default", "via", "198.51.0.1")
    conf = network("macvlan", data_dir, mtu="auto", master="eth1")
    assert attached_mtu(runtime, "macvlan", conf, container) == 9000
    runtime.delete("macvlan", conf, container).succeeded()


@pytest.mark.parametrize("value", ["AUTO", "1400", "", 1.5, True, []])
def test_mtu_that_is_none(
    runtime: Runtime, container: Netns, data_dir: Path, value: object
) -> None:
    """As for any number: only this one word is another way to say it."""
    with unchanged(runtime.host, container, data_dir):
        error = runtime.add("ptp", network("ptp", data_dir, mtu=value), container).failed(999)
    assert "into field mtu of type int" in error["msg"]


# -- ipMasqFamilies -------------------------------------------------------------------------------

OUTSIDE = {"ipv4": "198.51.100.2", "ipv6": "2001:db8:ffff::2"}
NODE = {"ipv4": "198.51.100.1", "ipv6": "2001:db8:ffff::1"}


@each_pair
@pytest.mark.parametrize(
    ("families", "backend"),
    [
        (["ipv4"], {"ipMasqBackend": "iptables"}),
        (["ipv6"], {"ipMasqBackend": "nftables"}),
        (["ipv4"], {"ipMasqSet": True}),
        (["ipv6", "ipv4"], {"ipMasqSet": True}),
        ([], {"ipMasqBackend": "nftables"}),
    ],
)
def test_masquerading_of_some_families(
    runtime: Runtime,
    container: Netns,
    netns: Callable[..., Netns],
    data_dir: Path,
    plugin: str,
    families: list[str],
    backend: Json,
) -> None:
    """Packets of the other family leave under the container's own address."""
    outside = netns("outside")
    without_dad(runtime.host, outside)  # else the node cannot yet ask for neighbours to forward to
    connect(runtime.host, outside)
    for subnet, family in zip(DUAL.subnets, OUTSIDE, strict=True):
        outside.ip("route", "add", subnet, "via", NODE[family])
    conf = network(plugin, data_dir, ipMasq=True, ipMasqFamilies=families, **backend)
    result = runtime.add(plugin, conf, container).result
    own = {
        family: ip["address"].partition("/")[0]
        for family, ip in zip(OUTSIDE, result["ips"], strict=True)
    }
    with tcp_server(outside) as server:
        seen = {each: tcp_exchange(container, OUTSIDE[each], server.port) for each in OUTSIDE}
    assert seen == {each: (NODE if each in (families or OUTSIDE) else own)[each] for each in own}
    runtime.check(plugin, conf, container, prev_result=result).succeeded()
    if len(families) == 1:
        every = {**conf, "ipMasqFamilies": []}
        error = runtime.check(plugin, every, container, prev_result=result).failed(999)
        assert "masquerading of" in error["msg"] + error.get("details", "")
    runtime.delete(plugin, conf, container).succeeded()
    rules = str(nft(runtime.host))
    assert not [address for address in own.values() if address in rules]


@each_pair
def test_masquerading_of_no_family(
    runtime: Runtime, container: Netns, data_dir: Path, plugin: str
) -> None:
    conf = network(plugin, data_dir, ipMasq=True, ipMasqFamilies=["ipv4", "ipx"])
    with unchanged(runtime.host, container, data_dir):
        runtime.add(plugin, conf, container).failed(999, 'unknown family of addresses "ipx"')
