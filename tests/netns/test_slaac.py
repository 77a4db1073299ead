"""slaac: addresses of a router's advertisement, with radvd as the router."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    ALL_VERSIONS,
    Netns,
    Runtime,
    addresses,
    each_version,
    has_route,
    links,
    ping,
    requires_kernel,
    routes,
    unchanged,
)
from tests.harness.dhcp import Server, radvd
from tests.harness.kernel import address_info
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

SWITCH = "br0"
ROUTER = "fe80::ff:fe00:5501"
PREFIX = "prefix fd55::/64 { AdvAutonomous on; };"
NAMES = "RDNSS fd55::3 fd55::4 { }; DNSSL lan.example corp.example { };"
FOREVER = (1 << 32) - 1


@pytest.fixture
def lan(host: Netns, container: Netns, outside: Netns) -> Netns:
    """A switch with a router's address outside, and the node's lan0 connected to it.

    Duplicate address detection is off in the container, unless a test wants it: it takes seconds.
    """
    for ns in (container, outside):
        ns.set_sysctl("net/ipv6/conf/default/accept_dad", 0)
    outside.set_sysctl("net/ipv6/conf/default/accept_ra", 0)
    outside.ip_batch(
        f"link add {SWITCH} address 02:00:00:00:55:01 type bridge mcast_snooping 0",
        f"address add fd55::1/64 dev {SWITCH} nodad",
        f"link set {SWITCH} up",
    )
    host.ip("link", "add", "lan0", "type", "veth", "peer", "port0", "netns", outside.name)
    outside.ip("link", "set", "port0", "master", SWITCH, "up")
    host.ip("link", "set", "lan0", "addrgenmode", "none", "up")
    return outside


def slaac(plugin: str, *, timeout: int = 60, **keys: Any) -> Json:
    return {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": plugin,
        "ipam": {"type": "slaac", "timeout": timeout},
        **keys,
    }


def advertise(lan: Netns, tmp_path: Path, body: str) -> Server:
    return radvd(lan, tmp_path / "ra", SWITCH, body)


def _bridge(host: Netns) -> Json:
    """lan0 is a port of the bridge."""
    host.ip_batch(
        "link add brlan type bridge mcast_snooping 0",
        "link set lan0 master brlan",
        "link set brlan addrgenmode none up",
    )
    return {"bridge": "brlan"}


MAIN = {
    "macvlan": lambda _: {"master": "lan0"},
    "ipvlan": lambda _: {"master": "lan0"},
    "host-device": lambda _: {"device": "lan0"},
    "bridge": _bridge,
}


@pytest.mark.parametrize(
    "plugin",
    [
        pytest.param("macvlan", marks=requires_kernel("macvlan")),
        pytest.param("ipvlan", marks=requires_kernel("ipvlan")),
        "host-device",
        "bridge",
    ],
)
def test_behind(
    runtime: Runtime, host: Netns, container: Netns, lan: Netns, tmp_path: Path, plugin: str
) -> None:
    """The address, the router and its names, which the kernel keeps; CHECK, and DEL."""
    server = advertise(lan, tmp_path, PREFIX + NAMES)
    conf = slaac(plugin, **MAIN[plugin](host))
    result = runtime.add(plugin, conf, container).result
    (ip,) = result["ips"]
    assert ip["address"].startswith("fd55::")
    assert ip["address"].endswith("/64")
    assert result["interfaces"][ip["interface"]]["name"] == "eth0"
    assert ip["gateway"] == ROUTER
    assert result["routes"] == [{"dst": "::/0", "gw": ROUTER}]
    assert addresses(container, "eth0") == [ip["address"]]
    plain = ip["address"].partition("/")[0]
    assert address_info(container, "eth0", ip["address"])["valid_life_time"] < FOREVER  # not by us
    (default,) = (each for each in routes(container, 6) if each["dst"] == "default")
    assert default["protocol"] == "ra"
    ping(container, "fd55::1")
    ping(lan, plain)
    if plugin == "bridge":  # the others' results have the dns of the configuration alone
        assert result["dns"]["nameservers"] == ["fd55::3", "fd55::4"]
    runtime.check(plugin, conf, container, prev_result=result).succeeded()

    server.stop()  # which would give the address again
    container.ip("address", "delete", ip["address"], "dev", "eth0")
    lost = f"slaac: eth0 has lost {ip['address']}"
    runtime.check(plugin, conf, container, prev_result=result).failed(999, lost)
    for _ in range(2):
        runtime.delete(plugin, conf, container, prev_result=result).succeeded()
    assert "eth0" not in links(container)


@each_version()
def test_versions(
    runtime: Runtime,
    host: Netns,
    container: Netns,
    lan: Netns,
    tmp_path: Path,
    cni_version: str,
) -> None:
    """As a delegate alone, on an interface that is there, with the names of the router."""
    advertise(lan, tmp_path, PREFIX + NAMES)
    host.ip("link", "set", "lan0", "netns", container.name, "name", "eth0")
    conf = {**slaac("slaac"), "cniVersion": cni_version}
    result = runtime.add("slaac", conf, container).result
    (address,) = addresses(container, "eth0")
    if cni_version in ALL_VERSIONS[:2]:
        assert result["ip6"]["ip"] == address
        assert result["ip6"]["gateway"] == ROUTER
    else:
        assert result["ips"][0]["address"] == address
    assert result["dns"]["nameservers"] == ["fd55::3", "fd55::4"]
    assert result["dns"]["search"] == ["lan.example", "corp.example"]
    with unchanged(container):
        runtime.delete("slaac", conf, container).succeeded()


def test_interface_that_is_up(
    runtime: Runtime, host: Netns, container: Netns, lan: Netns, tmp_path: Path
) -> None:
    """A link that came up without listening is asked to; routers are solicited again."""
    container.set_sysctl("net/ipv6/conf/default/accept_ra", 0)
    host.ip("link", "set", "lan0", "netns", container.name, "name", "eth0")
    container.ip("link", "set", "eth0", "addrgenmode", "eui64", "up")
    wait_until(lambda: addresses(container, "eth0", link_local=True), "a link-local address")
    advertise(lan, tmp_path, PREFIX + "MinRtrAdvInterval 1000; MaxRtrAdvInterval 1800;")
    result = runtime.add("slaac", slaac("slaac"), container).result
    assert [ip["address"] for ip in result["ips"]] == addresses(container, "eth0")


def test_several_prefixes_and_a_route(
    runtime: Runtime, host: Netns, container: Netns, lan: Netns, tmp_path: Path
) -> None:
    advertise(lan, tmp_path, PREFIX + "prefix fd66::/64 { }; AdvDefaultLifetime 0;")
    host.ip("link", "set", "lan0", "netns", container.name, "name", "eth0")
    result = runtime.add("slaac", slaac("slaac"), container).result
    assert sorted(ip["address"][:6] for ip in result["ips"]) == ["fd55::", "fd66::"]
    assert all("gateway" not in ip for ip in result["ips"])
    assert result.get("routes", []) == []


def test_duplicate_address_detection(
    runtime: Runtime, host: Netns, container: Netns, lan: Netns, tmp_path: Path
) -> None:
    """The address is usable when ADD returns; another node's is refused."""
    container.set_sysctl("net/ipv6/conf/default/accept_dad", 1)
    advertise(lan, tmp_path, PREFIX)
    host.ip_batch(
        "link set lan0 down",
        "link set lan0 address 02:00:00:00:00:77",
        f"link set lan0 netns {container.name} name eth0",
    )
    result = runtime.add("slaac", slaac("slaac"), container).result
    assert [ip["address"] for ip in result["ips"]] == ["fd55::ff:fe00:77/64"]
    assert "tentative" not in address_info(container, "eth0", "fd55::ff:fe00:77/64")
    ping(container, "fd55::1")

    container.ip("link", "set", "eth0", "down")
    # The switch notices its port's carrier up to a second late, and loses what comes before.
    container.set_sysctl("net/ipv6/conf/eth0/dad_transmits", 3)
    lan.ip("address", "add", "fe80::ff:fe00:77/64", "dev", SWITCH, "nodad")
    refused = runtime.add("slaac", slaac("slaac"), container)
    refused.failed(999, "slaac: another node uses fe80::ff:fe00:77/64 of eth0")


@requires_kernel("macvlan")
def test_no_default_route(runtime: Runtime, container: Netns, lan: Netns, tmp_path: Path) -> None:
    """The router's prefix, without its route; a second interface keeps the first one's."""
    advertise(lan, tmp_path, PREFIX)
    conf = slaac("macvlan", master="lan0", noDefaultRoute=True)
    result = runtime.add("macvlan", conf, container).result
    assert len(result["ips"]) == 1
    assert result.get("routes", []) == []
    assert not has_route(container, "default", family=6)
    ping(container, "fd55::1")


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (None, "no router advertisement arrived: a router was asked for"),
        ("AdvManagedFlag on;", 'refers to DHCPv6 for addresses: use "ipam": {"type": "dhcp"'),
        ("prefix fd55::/64 { AdvAutonomous off; };", "but no prefix for autoconfiguration"),
        ("prefix fd55::/72 { AdvAutonomous on; };", "but no prefix for autoconfiguration"),
    ],
)
def test_what_was_missing(
    runtime: Runtime,
    host: Netns,
    container: Netns,
    lan: Netns,
    tmp_path: Path,
    body: str | None,
    missing: str,
) -> None:
    """A time-out names the step that was not reached, and the ADD is undone."""
    if body is not None:
        server = advertise(lan, tmp_path, body)
        assert server.process.poll() is None
    conf = slaac("host-device", device="lan0", timeout=5)
    before = set(links(host))
    reply = runtime.add("host-device", conf, container)
    reply.failed(11, "slaac: eth0 has no address after 5 s")
    assert missing in reply.error["details"]
    assert set(links(host)) == before
    assert "eth0" not in links(container)


def test_no_carrier(runtime: Runtime, container: Netns) -> None:
    container.ip("link", "add", "eth0", "type", "veth", "peer", "peer0")
    reply = runtime.add("slaac", slaac("slaac", timeout=1), container)
    reply.failed(11, "slaac: eth0 has no address after 1 s")
    assert "eth0 has no carrier" in reply.error["details"]


def test_no_link_local_address(runtime: Runtime, container: Netns) -> None:
    container.ip_batch(
        "link add eth0 type veth peer name peer0",
        "link set eth0 addrgenmode none",
        "link set peer0 up",
    )
    reply = runtime.add("slaac", slaac("slaac", timeout=2), container)
    reply.failed(11, "slaac: eth0 has no address after 2 s")
    assert "eth0 has no link-local address" in reply.error["details"]


def test_prefix_has_changed(
    runtime: Runtime, host: Netns, container: Netns, lan: Netns, tmp_path: Path
) -> None:
    """CHECK says that routers advertise another prefix by now."""
    server = advertise(lan, tmp_path, PREFIX)
    host.ip("link", "set", "lan0", "netns", container.name, "name", "eth0")
    result = runtime.add("slaac", slaac("slaac"), container).result
    server.stop()
    (old,) = addresses(container, "eth0")
    container.ip("address", "delete", old, "dev", "eth0")
    radvd(lan, tmp_path / "other", SWITCH, "prefix fd66::/64 { };")
    wait_until(lambda: addresses(container, "eth0"), "an address of the other prefix")
    reply = runtime.check("slaac", slaac("slaac"), container, prev_result=result)
    reply.failed(999, f"slaac: eth0 has lost {old}")
    assert "routers advertise another prefix by now (fd66::" in reply.error["details"]


def test_a_signal_ends_the_wait(runtime: Runtime, host: Netns, container: Netns) -> None:
    """Nothing is left, and nobody waits for the time-out."""
    host.ip("link", "add", "lan0", "type", "veth", "peer", "lan1")
    conf = slaac("host-device", device="lan0", timeout=600)
    child = runtime.start("ADD", "host-device", conf, container)
    wait_until(lambda: "UP" in links(container).get("eth0", {}).get("flags", ()), "slaac waits")
    child.send_signal(signal.SIGTERM)
    output, _ = child.communicate(timeout=60)
    assert "interrupted by SIGTERM" in str(output)
    assert "lan0" in links(host)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ipam": {"type": "slaac", "timeout": 0}}, "invalid timeout 0"),
        ({"ipam": {"type": "slaac", "timeout": 601}}, "invalid timeout 601"),
        ({"acceptRA": False}, "slaac needs acceptRA"),
        ({"autoconf": False}, "slaac needs autoconf"),
        ({"isGateway": True}, "cannot set isGateway with slaac"),
        ({"isDefaultGateway": True}, "cannot set isGateway with slaac"),
    ],
)
def test_refused(runtime: Runtime, host: Netns, container: Netns, keys: Json, message: str) -> None:
    with unchanged(host, container):
        runtime.add("bridge", {**slaac("bridge"), **keys}, container).failed(999, message)


def test_without_an_interface(runtime: Runtime, host: Netns, container: Netns) -> None:
    with unchanged(host, container):
        reply = runtime.add("ptp", slaac("ptp"), container)
        reply.failed(999, "cannot use slaac with ptp")
        reply = runtime.add("slaac", slaac("slaac"), container)
        reply.failed(999, 'slaac: no interface "eth0"')
    runtime.delete("ptp", slaac("ptp"), container).succeeded()
    runtime.status("bridge", slaac("bridge")).succeeded()
