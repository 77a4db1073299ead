"""dhcp: the plugin and its daemon, against dnsmasq and Kea."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path
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
    links,
    ping,
    requires_kernel,
)
from tests.harness.build import is_self_contained
from tests.harness.contract import without_ipv6
from tests.harness.dhcp import (
    FAST,
    Daemon,
    FakeServer,
    answer,
    dnsmasq,
    kea4,
    messages,
    no_server,
    options,
)
from tests.harness.paths import let_everybody_in
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    # to the server alone, from the leased address (RFC 2131 §4.4.4)
    assert (release["IP"].src, release["IP"].dst) == (address.partition("/")[0], "10.55.0.1")
    assert release.dst == "02:00:00:00:55:01"


def test_client_id_of_the_arguments(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon
) -> None:
    """A provided option 61 takes the place of the derived one, in each message of the lease."""
    sent: dict[str, Any] = {}

    def answers(kind: str, request: Any) -> list[bytes]:
        sent[kind] = options(request)
        reply = {"discover": "offer", "request": "ack"}.get(kind)
        return [answer(request, reply, "10.55.0.50")] if reply else []

    provide = [
        {"option": "dhcp-client-identifier", "value": "nobody", "fromArg": "K8S_POD_UID"},
        {"option": "12", "value": "fallback", "fromArg": "K8S_POD_NAME"},
    ]
    network = conf(daemon, provide=provide)
    args = "IgnoreUnknown=1;K8S_POD_UID=6f1c"
    with FakeServer(lan, SWITCH, answers):
        runtime.add("dhcp", network, container, args=args).succeeded()
        runtime.delete("dhcp", network, container, args=args).succeeded()
        wait_until(lambda: "release" in sent, "the lease is released", tell=lambda: sent)
    assert {kind: each["client_id"] for kind, each in sent.items()} == dict.fromkeys(
        ("discover", "request", "release"), b"6f1c"
    )
    assert sent["request"]["hostname"] == b"fallback"


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
        wait_until(lambda: len(messages(wire, "ack")) >= 2, "renewed twice")
    for request in messages(wire, "request"):
        assert (request.dst, request["IP"].src, request["IP"].dst) == (
            server_mac, address, "10.55.0.1",
        )  # fmt: skip
        assert request["BOOTP"].ciaddr == address
        assert not {"server_id", "requested_addr"} & set(options(request))
    with capture(lan, SWITCH) as wire, no_server(server):
        daemon.await_state("rebinding")
        wait_until(lambda: messages(wire)[-1:][0].dst == "ff:ff:ff:ff:ff:ff", "rebinds")
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
    daemon.await_state("bound")
    wait_until(lambda: addresses(container, "eth0"), "the address is back")
    assert addresses(container, "eth0") == [result["ips"][0]["address"]]
    assert has_route(container, "default", via="10.55.0.1", dev="eth0")
    ping(container, "10.55.0.1")
    runtime.check("dhcp", network, container, prev_result=result).succeeded()


def test_refused_on_renewal(runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon) -> None:
    """NAK: the address goes at once, and another one is leased."""
    leased = ["10.55.0.50"]

    def answers(kind: str, request: Any) -> list[bytes]:
        if request["BOOTP"].ciaddr != "0.0.0.0":
            leased[:] = ["10.55.0.60"]
            return [answer(request, "nak", "0.0.0.0", error_message="moved")]
        reply = {"discover": "offer", "request": "ack"}[kind]
        soon = {"renewal_time": 1 if leased == ["10.55.0.50"] else 100, "rebinding_time": 200}
        return [answer(request, reply, leased[0], router="10.55.0.1", **soon)]

    network = conf(daemon)
    with FakeServer(lan, SWITCH, answers):
        result = runtime.add("dhcp", network, container).result
        assert result["ips"][0]["address"] == "10.55.0.50/24"
        put(container, result)
        daemon.logged("address changed from 10.55.0.50/24 to 10.55.0.60/24")
    daemon.logged("NAK from 10.55.0.2: 'moved'")
    assert addresses(container, "eth0") == ["10.55.0.60/24"]
    assert has_route(container, "default", via="10.55.0.1", dev="eth0")
    failed = runtime.check("dhcp", network, container, prev_result=result).failed(999)
    assert "leased 10.55.0.60/24, but prevResult does not have it" in failed["msg"]


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
        wait_until(lambda: len(messages(wire, "ack")) >= 2, "confirmed and renewed")
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
    wait_until(lambda: daemon.leases() == [], "the lease is dropped")
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
    wait_until(lambda: daemon.leases() == [], "the lease is dropped")
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
    wait_until(lambda: daemon.leases() == [], "the attempt is given up")


def test_expired_while_no_daemon_ran(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """The address may be somebody else's by now: it is taken away, and another one leased."""
    server = kea4(lan, tmp_path / "kea", SWITCH, **{**SHORT, "valid-lifetime": 4})
    result = runtime.add("dhcp", conf(daemon), container).result
    put(container, result)
    daemon.kill()
    server.stop()
    (tmp_path / "kea" / "kea4.csv").unlink()
    time.sleep(4)  # the lease is over
    moved = {"pools": [{"pool": "10.55.0.150-10.55.0.199"}]}
    kea4(lan, tmp_path / "kea", SWITCH, **moved)
    daemon.start()
    daemon.logged("expired while no daemon ran")
    daemon.await_state("bound")
    wait_until(lambda: addresses(container, "eth0") == ["10.55.0.150/24"], "the new address")


def test_a_lease_of_no_time_does_not_keep_the_daemon_busy(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon
) -> None:
    def answers(kind: str, request: Any) -> list[bytes]:
        reply = {"discover": "offer", "request": "ack"}.get(kind)
        return [answer(request, reply, "10.55.0.50", lease_time=0)] if reply else []

    with FakeServer(lan, SWITCH, answers), capture(lan, SWITCH) as wire:
        runtime.add("dhcp", conf(daemon), container).succeeded()
        begun = time.monotonic()
        wait_until(lambda: len(messages(wire, "ack")) >= 3, "leased again and again")
        # at most one each second, less the jitter
        assert time.monotonic() - begun > 1.5
        runtime.delete("dhcp", conf(daemon), container).succeeded()


def test_a_lost_helper_process_costs_no_lease(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """The child that opens sockets in the namespaces is killed, for example for lack of memory.

    A self-contained file has none, but visitors: tests/selfcontained/test_visit.py.
    """
    kea4(lan, tmp_path / "kea", SWITCH, **{**SHORT, "valid-lifetime": 60})
    runtime.add("dhcp", conf(daemon), container).succeeded()
    assert daemon.process is not None
    pid = daemon.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == (0 if is_self_contained(runtime.bin_dir) else 1)
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    with capture(lan, SWITCH) as wire:
        wait_until(lambda: messages(wire, "request"), "renews")


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


# -- hostile networks and users -------------------------------------------------------------------


def test_no_mask_no_lease(runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon) -> None:
    """What was leased before the failure is given back."""

    def answers(kind: str, request: Any) -> list[bytes]:
        replies = {"discover": "offer", "request": "ack"}
        if kind not in replies:
            return []
        return [answer(request, replies[kind], "10.55.0.50", subnet_mask=None)]

    with FakeServer(lan, SWITCH, answers), capture(lan, SWITCH) as wire:
        error = runtime.add("dhcp", conf(daemon), container).failed(999)
    assert error["msg"] == (
        "error calling DHCP.Allocate: DHCP option Subnet Mask not found in DHCPACK"
    )
    assert len(messages(wire, "release")) == 1
    assert daemon.leases() == []


def test_hostile_answers(runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon) -> None:
    """Junk, forgeries and half messages around the right answer change nothing."""
    dice = random.Random(1)

    def answers(kind: str, request: Any) -> list[bytes]:
        if kind == "release":
            return []
        reply = {"discover": "offer", "request": "ack"}[kind]
        good = answer(request, reply, "10.55.0.50")
        xid = request["BOOTP"].xid
        bad = [
            answer(request, reply, "10.55.0.66", xid=xid ^ 1),
            answer(request, reply, "10.55.0.66", chaddr=b"\2" * 6),
            answer(request, reply, "10.55.0.66", server_id=None),
            answer(request, reply, "255.255.255.255"),
            answer(request, reply, "0.0.0.0"),
            *(good[:size] for size in (14, 20, 34, 42, 100, 281, 284)),
            good[:42] + dice.randbytes(1400),
        ]
        if kind == "request":
            for forged in ("nak", "ack"):
                bad.append(answer(request, forged, "10.55.0.66", server="10.55.0.77"))
        for _ in range(200):
            spoiled = bytearray(good)
            for _ in range(dice.randint(1, 8)):
                spoiled[dice.randrange(14, 282)] = dice.randrange(256)
            # never a valid message: the transaction is another
            spoiled[46:50] = bytes(byte ^ 0xFF for byte in good[46:50])
            bad.append(bytes(spoiled))
        return [*bad, good]

    network = conf(daemon)
    with FakeServer(lan, SWITCH, answers):
        result = runtime.add("dhcp", network, container).result
        assert result["ips"] == [{"address": "10.55.0.50/24"}]
        runtime.delete("dhcp", network, container).succeeded()
    assert daemon.leases() == []


def test_only_root_may_ask(daemon: Daemon) -> None:
    mode = stat.S_IMODE(daemon.socket.stat().st_mode)
    assert mode == 0o600
    assert stat.S_IMODE(daemon.state.stat().st_mode) == 0o700
    let_everybody_in(daemon.directory)
    ask = [
        "python3", "-c",
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        "s.connect(sys.argv[1]); s.sendall(b'{\"method\": \"DHCP.Leases\"}\\n');"
        "print(s.recv(100))",
        str(daemon.socket),
    ]  # fmt: skip
    assert "PermissionError" in daemon.host.exec(ask, check=False).stderr
    daemon.socket.chmod(0o666)
    assert "{" not in daemon.host.exec(ask, check=False).stdout
    daemon.logged("refused a request of user 65534")


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (b"CONNECT /_goRPC_ HTTP/1.0\n\n", b"HTTP/1.0 501 this DHCP daemon is not the one"),
        (b"\n", b'{"error":{"code":999,"msg":"request not understood'),
        (b"[" * 100_000 + b"\n", b'{"error":{"code":999,"msg":"request not understood'),
        (b'{"method": "DHCP.Eat"}\n', b'{"error":{"code":999,"msg":"can\'t find method DHCP.Eat'),
        (
            b'{"method": "DHCP.Allocate", "params": {"network": 1}}\n',
            b'{"error":{"code":999,"msg":"request not understood: Expected `str`',
        ),
    ],
)
def test_bad_requests(daemon: Daemon, request_: bytes, reply: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(daemon.socket))
        sock.sendall(request_)
        assert sock.recv(65536).startswith(reply)
    assert daemon.leases() == []


def test_another_program_on_the_socket(runtime: Runtime, tmp_path: Path, container: Netns) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        network = {"cniVersion": "1.1.0", "name": "net",
                   "ipam": {"type": "dhcp", "daemonSocketPath": str(path)}}  # fmt: skip
        error = runtime.add("dhcp", network, container).failed(999, "is not understood")
        thread.join()
    assert "the daemon of the Go plugins" in error["details"]


# -- the daemon as a program ----------------------------------------------------------------------


def test_pidfile_and_signals(bin_dir: Path, host: Netns, tmp_path: Path) -> None:
    pidfile = tmp_path / "dhcp.pid"
    (tmp_path / "run").mkdir()
    daemon = Daemon(bin_dir, host, tmp_path / "run", ("--pidfile", str(pidfile))).start()
    assert daemon.process is not None
    assert pidfile.read_text() == str(daemon.process.pid)
    second = host.exec([bin_dir / "dhcp", "daemon", "-socketpath", daemon.socket], check=False)
    assert second.returncode == 1
    assert "Error getting listener" in second.stderr
    daemon.kill()
    daemon.start()  # the socket that was left behind is no obstacle
    assert daemon.stop() == 0
    assert not pidfile.exists()
    assert not daemon.socket.exists()


def test_host_prefix(
    runtime: Runtime, bin_dir: Path, host: Netns, container: Netns, lan: Netns, tmp_path: Path
) -> None:
    """In a pod the host's file system is elsewhere: the socket's path and the namespaces'."""
    dnsmasq(lan, tmp_path / "dns", SWITCH, POOL)
    with tempfile.TemporaryDirectory() as short:  # a socket's path has 107 bytes
        prefix = Path(short, "host")
        prefix.symlink_to("/")
        daemon = Daemon(bin_dir, host, Path(short), (*FAST, "-hostprefix", str(prefix))).start()
        runtime.add("dhcp", conf(daemon), container).succeeded()
        assert daemon.lease()["netns"] == f"{prefix}{container.path}"
        runtime.delete("dhcp", conf(daemon), container).succeeded()
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["-pidfile", "x.pid"], 1, 'Error writing pidfile "x.pid": path not absolute'),
        (["-nonsense"], 2, "flag provided but not defined: -nonsense"),
        (["-h"], 0, "Usage of dhcp daemon"),
    ],
)
def test_bad_flags(bin_dir: Path, host: Netns, flags: list[str], code: int, text: str) -> None:
    done = host.exec([bin_dir / "dhcp", "daemon", *flags], check=False)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    by_command = host.exec([bin_dir / "cni", "dhcp", "daemon", *flags], check=False)
    assert (by_command.returncode, by_command.stderr) == (code, done.stderr)


def test_socket_activation(bin_dir: Path, host: Netns, tmp_path: Path) -> None:
    """systemd's socket is taken over, and left alone at the end."""
    path = tmp_path / "run" / "dhcp.sock"
    path.parent.mkdir()
    argv = ["systemd-socket-activate", "--listen", path, bin_dir / "dhcp", "daemon",
            "-socketpath", path]  # fmt: skip
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("needs systemd-socket-activate: apt-get install systemd")
    child = host.popen(argv)
    daemon = Daemon(bin_dir, host, path.parent)
    wait_until(path.exists, "systemd listens")
    assert daemon.leases() == []
    child.terminate()
    assert child.wait(20) == 0
    assert path.exists()


def test_the_list_of_leases(
    runtime: Runtime,
    container: Netns,
    lan: Netns,
    daemon: Daemon,
    tmp_path: Path,
    bin_dir: Path,
) -> None:
    kea4(lan, tmp_path / "kea", SWITCH)
    runtime.add("dhcp", conf(daemon), container).succeeded()
    command = [bin_dir / "cni", "dhcp", "leases", "--socket", str(daemon.socket)]
    lines = runtime.host.exec(command).stdout.splitlines()
    assert lines[0].split()[:4] == ["ADDRESS", "STATE", "RENEW", "EXPIRES"]
    assert lines[1].split()[:2] == ["10.55.0.50/24", "bound"]
    assert lines[1].split()[4:7] == ["net", "c1", "eth0"]
    (row,) = json.loads(runtime.host.exec([*command, "--json"]).stdout)
    assert row["address"] == "10.55.0.50/24"
    daemon.stop()
    done = runtime.host.exec(command, check=False)
    assert done.returncode == 1
    assert "error dialing DHCP daemon" in done.stderr


# -- with the plugins that make interfaces --------------------------------------------------------


@pytest.mark.parametrize(
    "plugin",
    [
        "bridge",
        pytest.param("macvlan", marks=requires_kernel("macvlan")),
        pytest.param("ipvlan", marks=requires_kernel("ipvlan")),
    ],
)
def test_end_to_end(
    runtime: Runtime,
    container: Netns,
    outside: Netns,
    daemon: Daemon,
    tmp_path: Path,
    plugin: str,
) -> None:
    """The container talks to the server's host, CHECK agrees, and DEL leaves nothing."""
    without_ipv6(container, outside)
    host = runtime.host
    host.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1", "netns", outside.name)
    outside.ip_batch("address add 10.55.0.1/24 dev lan1", "link set lan1 up")
    network = {**conf(daemon), "ipam": conf(daemon)["ipam"]}
    if plugin == "bridge":
        host.ip_batch("link add br0 type bridge", "link set br0 up", "link set lan0 master br0")
        network["bridge"] = "br0"
    else:
        network["master"] = "lan0"
    host.ip("link", "set", "lan0", "up")
    dnsmasq(outside, tmp_path / "dns", "lan1", POOL, ROUTER)
    runtime.status(plugin, network).succeeded()
    result = runtime.add(plugin, network, container).result
    assert addresses(container, "eth0") == [result["ips"][0]["address"]]
    assert has_route(container, "default", via="10.55.0.1", dev="eth0")
    ping(container, "10.55.0.1")
    runtime.check(plugin, network, container, prev_result=result).succeeded()
    with capture(outside, "lan1") as wire:
        runtime.delete(plugin, network, container, prev_result=result).succeeded()
        runtime.delete(plugin, network, container, prev_result=result).succeeded()
    assert len(messages(wire, "release")) == 1
    assert daemon.files == []


def test_as_the_go_plugin(
    runtime: Runtime,
    go_runtime: Runtime,
    container: Netns,
    lan: Netns,
    daemon: Daemon,
    tmp_path: Path,
    go_bin_dir: Path,
) -> None:
    """The same result, and on the wire the same messages."""
    dnsmasq(lan, tmp_path / "dns", SWITCH, POOL, ROUTER, "--dhcp-option=33,10.9.0.0,10.55.0.9")
    path = tmp_path / "go.sock"
    runtime.host.popen([go_bin_dir / "dhcp", "daemon", "-socketpath", path, "-timeout", "2s"])
    wait_until(path.exists, "the Go daemon listens")
    request: Json = {
        "request": [{"option": "33"}],
        "provide": [{"option": "host-name", "value": "h"}, {"option": "77", "fromArg": "X"}],
    }
    seen = []
    for way, sock in ((go_runtime, path), (runtime, daemon.socket)):
        network = conf(daemon, **{**request, "daemonSocketPath": str(sock)})
        network["cniVersion"] = "1.0.0"
        with capture(lan, SWITCH) as wire:
            result = way.add("dhcp", network, container, args="X=user").result
            way.delete("dhcp", network, container, args="X=user").succeeded()
        sent = [m for m in messages(wire) if m["BOOTP"].op == 1]
        kinds = [(options(m), m["BOOTP"].flags) for m in sent]
        for fields, _ in kinds:
            fields.pop("max_dhcp_size", None)  # sent by newer versions than Debian's
            if "param_req_list" in fields:  # in which Debian's has no certain order
                fields["param_req_list"].sort()
        result.pop("dns", None)  # Debian's version still prints an empty one
        seen.append((result, kinds))
    assert seen[0] == seen[1]


def test_behind_ptp(runtime: Runtime, host: Netns, container: Netns, daemon: Daemon) -> None:
    """The link is there before the address: a server on the node's end leases it."""
    without_ipv6(host, container)
    asked: list[str] = []

    def answers(kind: str, request: Any) -> list[bytes]:
        asked.append(kind)
        reply = {"discover": "offer", "request": "ack"}.get(kind)
        more = {"server": "10.55.0.1", "router": "10.55.0.1"}
        return [answer(request, reply, "10.55.0.50", **more)] if reply else []

    network = conf(daemon)
    before = set(links(host))
    with FakeServer(host, "", answers):
        result = runtime.add("ptp", network, container).result
        (ip,) = result["ips"]
        assert ip == {"address": "10.55.0.50/24", "gateway": "10.55.0.1", "interface": 1}
        assert addresses(container, "eth0") == ["10.55.0.50/24"]
        ping(container, "10.55.0.1")
        ping(host, "10.55.0.50")
        runtime.check("ptp", network, container, prev_result=result).succeeded()
        for _ in range(2):
            runtime.delete("ptp", network, container, prev_result=result).succeeded()
        wait_until(lambda: "release" in asked, "the lease is released", tell=lambda: asked)
    assert set(links(host)) == before
    assert "eth0" not in links(container)
    assert daemon.leases() == []


def test_ptp_without_a_gateway(
    runtime: Runtime, host: Netns, container: Netns, daemon: Daemon
) -> None:
    """What was leased is given back, and the link goes."""
    without_ipv6(host, container)
    asked: list[str] = []

    def answers(kind: str, request: Any) -> list[bytes]:
        asked.append(kind)
        reply = {"discover": "offer", "request": "ack"}.get(kind)
        return [answer(request, reply, "10.55.0.50", server="10.55.0.1")] if reply else []

    before = set(links(host))
    with FakeServer(host, "", answers):
        refused = runtime.add("ptp", conf(daemon), container)
        refused.failed(999, "failed to add IP addr (10.55.0.50/24) to veth: no gateway")
    assert "release" in asked
    assert set(links(host)) == before
    assert daemon.leases() == []
