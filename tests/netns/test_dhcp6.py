"""dhcp with `ipv6`: DHCPv6 by dnsmasq and Kea, routes by dnsmasq and radvd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime, addresses, capture, ping
from tests.harness.dhcp import (
    FAST,
    Daemon,
    dnsmasq,
    kea4,
    kea6,
    messages,
    messages6,
    no_server,
    radvd,
)
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]

SWITCH = "br0"
SHORT = {
    "preferred-lifetime": 5, "valid-lifetime": 6, "renew-timer": 1, "rebind-timer": 3,
}  # fmt: skip


@pytest.fixture
def daemon(bin_dir: Path, host: Netns, tmp_path: Path) -> Iterator[Daemon]:
    directory = tmp_path / "run"
    directory.mkdir()
    started = Daemon(bin_dir, host, directory, FAST).start()
    yield started
    log = started.log.read_text()
    assert "Traceback" not in log, log


@pytest.fixture
def lan(container: Netns, outside: Netns) -> Netns:
    """A switch with the servers' address, and the container's eth0 connected to it."""
    for ns in (container, outside):
        ns.set_sysctl("net/ipv6/conf/default/accept_dad", 0)
    outside.set_sysctl("net/ipv6/conf/default/accept_ra", 0)
    outside.ip_batch(
        f"link add {SWITCH} address 02:00:00:00:55:01 type bridge mcast_snooping 0",
        "link add keep0 type veth peer name keep1",
        "link set keep1 up",
        f"link set keep0 master {SWITCH} up",
        f"address add fd55::1/64 dev {SWITCH} nodad",
        f"address add 10.55.0.1/24 dev {SWITCH}",
        f"link set {SWITCH} up",
    )
    container.ip("link", "add", "eth0", "type", "veth", "peer", "port0", "netns", outside.name)
    outside.ip("link", "set", "port0", "master", SWITCH, "up")
    return outside


def conf(daemon: Daemon, **ipam: Any) -> Json:
    ipam = {"type": "dhcp", "daemonSocketPath": str(daemon.socket), "ipv6": True, **ipam}
    return {"cniVersion": "1.1.0", "name": "net", "ipam": ipam}


def put(container: Netns, result: Json) -> None:
    for ip in result["ips"]:
        container.ip("address", "add", ip["address"], "dev", "eth0", "nodad")
    for route in result.get("routes", []):
        container.ip("route", "add", route["dst"], "via", route["gw"], "dev", "eth0")


def global_addresses(ns: Netns) -> list[str]:
    return [a for a in addresses(ns, "eth0") if not a.startswith("fe80:")]


def test_dnsmasq_gives_address_and_routes(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """The address by DHCPv6, its prefix length and the default route by the advertisement."""
    dnsmasq(
        lan, tmp_path / "dns", SWITCH, "--enable-ra", "--dhcp-range=fd55::50,fd55::99,64,2m",
        "--dhcp-option=option6:dns-server,[fd55::3]",
    )  # fmt: skip
    network = conf(daemon, ipv4=False, priority=9)
    result = runtime.add("dhcp", network, container).result
    (ip,) = result["ips"]
    assert ip["address"].startswith("fd55::")
    assert ip["address"].endswith("/64")
    assert ip["gateway"] == "fe80::ff:fe00:5501"
    assert result["routes"] == [{"dst": "::/0", "gw": ip["gateway"], "priority": 9}]
    assert result["dns"] == {"nameservers": ["fd55::3"]}
    assert container.sysctl("net/ipv6/conf/eth0/accept_ra") == "0"
    assert global_addresses(container) == []
    put(container, result)
    ping(container, "fd55::1")
    runtime.check("dhcp", network, container, prev_result=result).succeeded()
    with capture(lan, SWITCH) as wire:
        for _ in range(2):
            runtime.delete("dhcp", network, container).succeeded()
    assert messages6(wire, "DHCP6_Release")
    assert daemon.leases() == []


def test_rapid_commit_and_routes_of_the_router(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """Two messages instead of four; and no default route if the router is none."""
    kea6(lan, tmp_path / "kea", SWITCH, **{"rapid-commit": True})
    radvd(
        lan, tmp_path / "ra", SWITCH,
        "AdvDefaultLifetime 0; prefix fd55::/64 { AdvAutonomous on; }; route fd77::/48 { };",
    )  # fmt: skip
    with capture(lan, SWITCH) as wire:
        result = runtime.add("dhcp", conf(daemon, ipv4=False), container).result
    (ip,) = result["ips"]
    assert ip == {"address": "fd55::50/64"}
    assert result["routes"] == [{"dst": "fd77::/48", "gw": "fe80::ff:fe00:5501"}]
    assert messages6(wire, "DHCP6_Solicit")
    assert not messages6(wire, "DHCP6_Request")


def test_both_families(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    kea4(lan, tmp_path / "kea", SWITCH)
    kea6(lan, tmp_path / "kea", SWITCH)
    network = conf(daemon)
    result = runtime.add("dhcp", network, container).result
    # no router: the prefix length is not known either
    assert [ip["address"] for ip in result["ips"]] == ["10.55.0.50/24", "fd55::50/128"]
    assert [row["state"] for row in daemon.leases()] == ["bound", "bound"]
    put(container, result)
    daemon.kill()
    daemon.start()
    wait_until(
        lambda: [row["state"] for row in daemon.leases()] == ["bound", "bound"], "both confirmed"
    )
    assert runtime.add("dhcp", network, container).result == result
    with capture(lan, SWITCH) as wire:
        runtime.delete("dhcp", network, container).succeeded()
    assert messages(wire, "release")
    assert messages6(wire, "DHCP6_Release")


def test_one_family_without_a_server_fails_both(
    runtime: Runtime, bin_dir: Path, host: Netns, container: Netns, lan: Netns, tmp_path: Path
) -> None:
    """And what the other family had leased is given back."""
    kea6(lan, tmp_path / "kea", SWITCH)
    (tmp_path / "run").mkdir()
    flags = ("-timeout", "200ms", "-resendtimeout", "1s")
    daemon = Daemon(bin_dir, host, tmp_path / "run", flags).start()
    with capture(lan, SWITCH) as wire:
        error = runtime.add("dhcp", conf(daemon), container).failed(999, "no more tries")
    assert "IPv4 on eth0: no server answered" in error["details"]
    assert len(messages6(wire, "DHCP6_Reply")) == len(messages6(wire, "DHCP6_Release")) * 2
    assert daemon.leases() == []


@pytest.mark.slow
def test_renewed_rebound_expired_and_leased_again(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    server = kea6(lan, tmp_path / "kea", SWITCH, **SHORT)
    result = runtime.add("dhcp", conf(daemon, ipv4=False), container).result
    put(container, result)
    with capture(lan, SWITCH) as wire:
        wait_until(lambda: len(messages6(wire, "DHCP6_Renew")) >= 2, "renewed twice")
        with no_server(server):
            wait_until(lambda: messages6(wire, "DHCP6_Rebind"), "rebinds")
        daemon.await_state("bound")
        server.stop()
        daemon.await_state("lost")
    assert global_addresses(container) == []
    server.start()
    daemon.await_state("bound")
    wait_until(lambda: global_addresses(container), "the address is back")
    assert global_addresses(container) == [result["ips"][0]["address"]]


def test_duplicate_address_detection_is_waited_for(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    container.set_sysctl("net/ipv6/conf/eth0/accept_dad", 1)
    kea6(lan, tmp_path / "kea", SWITCH)
    result = runtime.add("dhcp", conf(daemon, ipv4=False), container).result
    assert result["ips"] == [{"address": "fd55::50/128"}]
