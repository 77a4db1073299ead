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
    find_routes,
    has_route,
    link,
    ping,
    requires_kernel,
)
from tests.harness.contract import without_ipv6
from tests.harness.dhcp import Daemon, dnsmasq, eventually, kea4, messages, no_server, options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Json = dict[str, Any]

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


def wire(container: Netns, outside: Netns, peer: str = "srv0") -> None:
    without_ipv6(container, outside)
    container.ip_batch(
        f"link add eth0 type veth peer name {peer} netns {outside.name}",
    )
    outside.ip_batch(f"address add 10.55.0.1/24 dev {peer}", f"link set {peer} up")


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


# -- ADD, DEL ---------------------------------------------------------------------------------------


@each_version()
def test_versions(
    runtime: Runtime,
    container: Netns,
    lan: Netns,
    daemon: Daemon,
    tmp_path: Path,
    cni_version: str,
) -> None:
    dnsmasq(lan, tmp_path / "dns", "srv0", POOL, ROUTER)
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
    with capture(lan, "srv0") as wire:
        for _ in range(2):
            runtime.delete("dhcp", network, container).succeeded()
    assert daemon.leases() == []
    assert daemon.files == []
    (release,) = messages(wire, "release")
    assert release["BOOTP"].ciaddr == address.partition("/")[0]
    assert options(release)["server_id"] == "10.55.0.1"
