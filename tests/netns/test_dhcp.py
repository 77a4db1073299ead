"""dhcp: the plugin and its daemon, against dnsmasq and Kea."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    ALL_VERSIONS,
    Netns,
    Runtime,
    addresses,
    capture,
    each_version,
    has_route,
    link,
    ping,
)
from tests.harness.contract import without_ipv6
from tests.harness.dhcp import Daemon, dnsmasq, eventually, kea4, messages, no_server, options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]

SWITCH = "br0"

POOL = "--dhcp-range=10.55.0.50,10.55.0.99,255.255.255.0,2m"
ROUTER = "--dhcp-option=option:router,10.55.0.1"
# Seconds: renewed at once, rebound soon after, and gone.
SHORT = {"valid-lifetime": 6, "renew-timer": 1, "rebind-timer": 3}


@pytest.fixture
def daemon(bin_dir: Path, host: Netns, tmp_path: Path) -> Iterator[Daemon]:
    directory = tmp_path / "run"
    directory.mkdir()
    started = Daemon(bin_dir, host, directory).start()
    yield started
    log = started.log.read_text()
    assert "Traceback" not in log, log


@pytest.fixture
def lan(container: Netns, outside: Netns) -> Netns:
    """The container's eth0, and the server's end of the cable with the address 10.55.0.1."""
    wire(container, outside)
    return outside


def wire(container: Netns, outside: Netns, *ifnames: str) -> None:
    """Connect the container to a switch that has a carrier whatever happens to the container.

    Kea does not serve an interface that had none when it started.
    """
    without_ipv6(container, outside)
    outside.ip_batch(
        f"link add {SWITCH} address 02:00:00:00:55:01 type bridge",
        "link add keep0 type veth peer name keep1",
        "link set keep1 up",
        f"link set keep0 master {SWITCH} up",
        f"address add 10.55.0.1/24 dev {SWITCH}",
        f"link set {SWITCH} up",
    )
    for name in ifnames or ("eth0",):
        port = f"p{name}"
        container.ip("link", "add", name, "type", "veth", "peer", port, "netns", outside.name)
        outside.ip("link", "set", port, "master", SWITCH, "up")


def conf(daemon: Daemon, **ipam: Any) -> Json:
    return {
        "cniVersion": "1.1.0",
        "name": "net",
        "ipam": {"type": "dhcp", "daemonSocketPath": str(daemon.socket), **ipam},
    }


def put(container: Netns, result: Json) -> None:
    """What a main plugin does with the result."""
    for ip in result["ips"]:
        container.ip("address", "add", ip["address"], "dev", "eth0")
    for route in result.get("routes", []):
        container.ip("route", "add", route["dst"], "via", route["gw"])


# -- ADD, DEL -------------------------------------------------------------------------------------


@each_version()
def test_versions(
    runtime: Runtime,
    container: Netns,
    lan: Netns,
    daemon: Daemon,
    tmp_path: Path,
    cni_version: str,
) -> None:
    dnsmasq(lan, tmp_path / "dns", SWITCH, POOL, ROUTER)
    network = {**conf(daemon), "cniVersion": cni_version}
    result = runtime.add("dhcp", network, container).result
    assert result["cniVersion"] == cni_version
    (row,) = daemon.leases()
    address = row["address"]
    assert address.startswith("10.55.0.")
    assert address.endswith("/24")
    if cni_version in ALL_VERSIONS[:2]:
        assert result["ip4"]["ip"] == address
        assert result["ip4"]["gateway"] == "10.55.0.1"
        assert result["ip4"]["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.55.0.1"}]
    else:
        assert result["ips"][0]["address"] == address
        assert result["ips"][0]["gateway"] == "10.55.0.1"
        assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.55.0.1"}]
    with capture(lan, SWITCH) as wire:
        for _ in range(2):
            runtime.delete("dhcp", network, container).succeeded()
    assert daemon.leases() == []
    assert daemon.files == []
    (release,) = messages(wire, "release")
    assert release["BOOTP"].ciaddr == address.partition("/")[0]
    assert options(release)["server_id"] == "10.55.0.1"


def test_what_the_client_sends(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    dnsmasq(
        lan,
        tmp_path / "dns",
        SWITCH,
        POOL,
        ROUTER,
        "--dhcp-option=121,10.9.0.0/16,10.55.0.9",
        "--dhcp-option=6,10.55.0.3",
        "--dhcp-option=15,example.test",
        "--dhcp-option=26,1400",
    )
    network = conf(
        daemon,
        request=[{"option": "121"}, {"option": "6"}, {"option": "15"}, {"option": "26"}],
        provide=[
            {"option": "host-name", "fromArg": "K8S_POD_NAME"},
            {"option": "vendor-class-identifier", "value": "cni"},
        ],
        priority=7,
    )
    args = "IgnoreUnknown=1;K8S_POD_NAME=web-1"
    with capture(lan, SWITCH) as wire:
        result = runtime.add("dhcp", network, container, args=args).result
    assert result["routes"] == [{"dst": "10.9.0.0/16", "gw": "10.55.0.9", "priority": 7}]
    assert result["ips"][0]["gateway"] == "10.55.0.1"
    assert result["dns"] == {"nameservers": ["10.55.0.3"], "domain": "example.test"}
    assert link(container, "eth0")["mtu"] == 1400
    (discover,) = messages(wire, "discover")
    (request,) = messages(wire, "request")
    (offer,) = messages(wire, "offer")
    for message in (discover, request):
        assert (message.dst, message["IP"].src, message["IP"].dst) == (
            "ff:ff:ff:ff:ff:ff", "0.0.0.0", "255.255.255.255",
        )  # fmt: skip
        assert message["BOOTP"].flags == 0
        assert message["BOOTP"].xid == offer["BOOTP"].xid
        sent = options(message)
        assert sent["hostname"] == b"web-1"
        assert sent["vendor_class_id"] == b"cni"
        assert sent["client_id"] == b"\0c1/net/eth0"
        assert sent["max_dhcp_size"] == 1500
        assert sent["param_req_list"] == [121, 6, 15, 26, 3, 1]
    assert options(request)["server_id"] == "10.55.0.1"
    assert options(request)["requested_addr"] == offer["BOOTP"].yiaddr


def test_two_interfaces_and_an_empty_pool(
    runtime: Runtime,
    container: Netns,
    outside: Netns,
    bin_dir: Path,
    host: Netns,
    tmp_path: Path,
) -> None:
    """One address for two interfaces; three DELs at once do no harm."""
    wire(container, outside, "eth0", "eth1")
    dnsmasq(outside, tmp_path / "dns", "br0", "--dhcp-range=10.55.0.5,10.55.0.5,2m", ROUTER)
    (tmp_path / "run").mkdir()
    flags = ("-timeout", "200ms", "-resendmax", "8s", "--resendtimeout", "2500ms")
    daemon = Daemon(bin_dir, host, tmp_path / "run", flags).start()
    network = conf(daemon)
    result = runtime.add("dhcp", network, container).result
    assert result["ips"][0]["address"] == "10.55.0.5/24"
    error = runtime.add("dhcp", network, container, ifname="eth1").failed(999)
    assert error["msg"] == "error calling DHCP.Allocate: no more tries"
    assert "eth1" in error["details"]
    assert daemon.lease()["address"] == "10.55.0.5/24"
    runtime.delete("dhcp", network, container, ifname="eth1").succeeded()
    children = [runtime.start("DEL", "dhcp", network, container) for _ in range(3)]
    assert [child.wait(20) for child in children] == [0, 0, 0]
    result = runtime.add("dhcp", network, container, ifname="eth1").result
    assert result["ips"][0]["address"] == "10.55.0.5/24"


# -- the life of a lease --------------------------------------------------------------------------


def test_renewed_and_rebound(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """Renewal goes to the server alone; when that is silent any server is asked."""
    server = kea4(lan, tmp_path / "kea", SWITCH, **SHORT)
    result = runtime.add("dhcp", conf(daemon), container).result
    address = result["ips"][0]["address"].partition("/")[0]
    put(container, result)
    server_mac = link(lan, SWITCH)["address"]
    with capture(lan, SWITCH) as wire:
        eventually(lambda: len(messages(wire, "ack")) >= 2, "renewed twice")
    for request in messages(wire, "request"):
        assert (request.dst, request["IP"].src, request["IP"].dst) == (
            server_mac, address, "10.55.0.1",
        )  # fmt: skip
        assert request["BOOTP"].ciaddr == address
        assert not {"server_id", "requested_addr"} & set(options(request))
    with capture(lan, SWITCH) as wire, no_server(server):
        daemon.await_state("rebinding")
        eventually(lambda: messages(wire)[-1:][0].dst == "ff:ff:ff:ff:ff:ff", "rebinds")
    daemon.await_state("bound")
    assert messages(wire)[-1]["BOOTP"].ciaddr == address
    assert addresses(container, "eth0") == [f"{address}/24"]
    ping(container, "10.55.0.1")


def test_expired_and_leased_again(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    server = kea4(lan, tmp_path / "kea", SWITCH, **SHORT)
    network = conf(daemon)
    result = runtime.add("dhcp", network, container).result
    put(container, result)
    server.stop()
    daemon.await_state("lost")
    assert addresses(container, "eth0") == []
    failed = runtime.check("dhcp", network, container, prev_result=result).failed(999)
    assert "IPv4 lease is lost" in failed["msg"]
    server.start()
    daemon.await_state("bound", 60)
    eventually(lambda: addresses(container, "eth0"), "the address is back")
    assert addresses(container, "eth0") == [result["ips"][0]["address"]]
    assert has_route(container, "default", via="10.55.0.1", dev="eth0")
    ping(container, "10.55.0.1")
    runtime.check("dhcp", network, container, prev_result=result).succeeded()


def test_refused_on_renewal(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """The server was reconfigured: NAK. The address goes at once, and another one is leased."""
    soon = ("--dhcp-option-force=58,1", "--dhcp-option-force=59,60")
    server = dnsmasq(lan, tmp_path / "dns", SWITCH, POOL, ROUTER, *soon)
    network = conf(daemon)
    result = runtime.add("dhcp", network, container).result
    put(container, result)
    server.stop()
    with capture(lan, SWITCH) as wire:
        other = "--dhcp-range=10.55.0.150,10.55.0.150,255.255.255.0,2m"
        dnsmasq(lan, tmp_path / "dns", SWITCH, other, ROUTER, "--dhcp-authoritative")
        daemon.logged("to 10.55.0.150/24")
    assert messages(wire, "nak")
    assert addresses(container, "eth0") == ["10.55.0.150/24"]
    failed = runtime.check("dhcp", network, container, prev_result=result).failed(999)
    assert "leased 10.55.0.150/24, but prevResult does not have it" in failed["msg"]


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_leases_survive_the_daemon(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path, how: str
) -> None:
    """The next daemon asks by INIT-REBOOT whether the address is still ours, and renews it."""
    kea4(lan, tmp_path / "kea", SWITCH, **{**SHORT, "valid-lifetime": 60})
    network = conf(daemon)
    result = runtime.add("dhcp", network, container).result
    address = result["ips"][0]["address"]
    put(container, result)
    getattr(daemon, how)()
    assert daemon.socket.exists() == (how == "kill")
    with capture(lan, SWITCH) as wire:
        daemon.start()
        daemon.await_state("bound")
        eventually(lambda: len(messages(wire, "ack")) >= 2, "confirmed and renewed")
    first = messages(wire, "request")[0]
    assert options(first)["requested_addr"] == address.partition("/")[0]
    assert "server_id" not in options(first)
    assert first["BOOTP"].ciaddr == "0.0.0.0"
    runtime.check("dhcp", network, container, prev_result=result).succeeded()
    assert runtime.add("dhcp", network, container).result == result
    with capture(lan, SWITCH) as wire:
        runtime.delete("dhcp", network, container).succeeded()
    assert len(messages(wire, "release")) == 1


def test_refused_after_a_restart(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    server = kea4(lan, tmp_path / "kea", SWITCH)
    result = runtime.add("dhcp", conf(daemon), container).result
    put(container, result)
    daemon.kill()
    server.stop()
    (tmp_path / "kea" / "kea4.csv").unlink()
    moved = {"pools": [{"pool": "10.55.0.150-10.55.0.199"}]}
    kea4(lan, tmp_path / "kea", SWITCH, **moved)
    daemon.start()
    daemon.logged("to 10.55.0.150/24")
    assert addresses(container, "eth0") == ["10.55.0.150/24"]


@pytest.mark.parametrize("gone", ["link", "namespace"])
def test_a_gone_container_is_forgotten(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path, gone: str
) -> None:
    kea4(lan, tmp_path / "kea", SWITCH, **SHORT)
    runtime.add("dhcp", conf(daemon), container).succeeded()
    if gone == "link":
        container.ip("link", "delete", "eth0")
    else:
        container.close()
    eventually(lambda: daemon.leases() == [], "the lease is dropped")
    assert daemon.files == []


def test_a_gone_container_is_forgotten_after_a_restart(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """DEL without a daemon succeeds; the daemon cleans up when it is back."""
    dnsmasq(lan, tmp_path / "dns", SWITCH, POOL)
    network = conf(daemon)
    runtime.add("dhcp", network, container).succeeded()
    daemon.kill()
    reply = runtime.delete("dhcp", network, container)
    reply.succeeded()
    assert "the lease is not released" in reply.stderr
    container.ip("link", "delete", "eth0")
    daemon.start()
    eventually(lambda: daemon.leases() == [], "the lease is dropped")
    assert daemon.files == []


def test_made_anew_without_del(
    runtime: Runtime,
    container: Netns,
    container2: Netns,
    lan: Netns,
    daemon: Daemon,
    tmp_path: Path,
) -> None:
    """An ADD for the same id and another namespace must not be answered with the old lease."""
    dnsmasq(lan, tmp_path / "dns", SWITCH, POOL)
    network = conf(daemon)
    first = runtime.add("dhcp", network, container).result
    container.ip("link", "set", "eth0", "netns", container2.name)
    second = runtime.add("dhcp", network, container2).result
    assert first == second
    assert daemon.lease()["netns"] == container2.path


def test_killed_while_waiting(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon
) -> None:
    """There is no server. The runtime gives up and kills the plugin: nobody wants the lease."""
    child = runtime.start("ADD", "dhcp", conf(daemon), container)
    daemon.await_state("acquiring")
    child.kill()
    eventually(lambda: daemon.leases() == [], "the attempt is given up")


# -- CHECK, GC, STATUS ----------------------------------------------------------------------------


def test_check_acquires_nothing(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    dnsmasq(lan, tmp_path / "dns", SWITCH, POOL)
    previous = {"cniVersion": "1.1.0", "ips": [{"address": "10.55.0.50/24"}]}
    error = runtime.check("dhcp", conf(daemon), container, prev_result=previous).failed(999)
    assert error["msg"] == "error calling DHCP.Check: no lease is held for c1/net/eth0"
    assert daemon.leases() == []


def test_gc_keeps_what_is_valid_and_other_networks(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    dnsmasq(lan, tmp_path / "dns", SWITCH, POOL)
    network = conf(daemon)
    for container_id, name in (("c1", "net"), ("c2", "net"), ("c3", "other")):
        runtime.add(
            "dhcp", {**network, "name": name}, container, container_id=container_id
        ).succeeded()
    with capture(lan, SWITCH) as wire:
        runtime.gc("dhcp", network, [("c1", "eth0")]).succeeded()
    assert sorted(row["containerID"] for row in daemon.leases()) == ["c1", "c3"]
    assert len(messages(wire, "release")) == 1


def test_status_without_a_daemon(runtime: Runtime, daemon: Daemon) -> None:
    network = conf(daemon)
    runtime.status("dhcp", network).succeeded()
    daemon.stop()
    error = runtime.status("dhcp", network).failed(50, "error dialing DHCP daemon: dial unix")
    assert "systemctl start cni-dhcp.socket" in error["details"]
    reply = runtime.add("dhcp", network, "/run/netns/none")
    reply.failed(999, f"error dialing DHCP daemon: dial unix {daemon.socket}: connect: ")
