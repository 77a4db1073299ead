"""The harness on Debian's Go plugins: it must see on the reference what the contract says.

So a failure of our plugins in other tests is theirs, not the harness's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import (
    DUAL,
    NEWEST,
    V4,
    Family,
    Netns,
    Runtime,
    addresses,
    connect,
    each_family,
    has_route,
    iptables_save,
    kind,
    link,
    ping,
    ports,
    result_addresses,
    tcp_exchange,
    tcp_server,
    tree,
    unchanged,
)

if TYPE_CHECKING:
    from pathlib import Path

# Debian 12 has version 1.1.1, of before spec 1.1.0.
GO_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")


@pytest.mark.parametrize("cni_version", GO_VERSIONS)
def test_loopback(go_runtime: Runtime, container: Netns, cni_version: str) -> None:
    conf = {"cniVersion": cni_version, "name": "lo"}
    go_runtime.add("loopback", conf, container).succeeded()
    assert "UP" in link(container, "lo")["flags"]
    if cni_version in ("0.4.0", "1.0.0"):
        go_runtime.check("loopback", conf, container).succeeded()
    go_runtime.delete("loopback", conf, container).succeeded()
    assert "UP" not in link(container, "lo")["flags"]


def test_errors(go_runtime: Runtime, container: Netns) -> None:
    conf = {"cniVersion": "1.0.0", "name": "lo"}
    with unchanged(go_runtime.host, container):
        go_runtime.add("loopback", "{", container).failed(6)
        go_runtime.add("loopback", {**conf, "cniVersion": NEWEST}, container).failed(1, NEWEST)
        go_runtime.add("loopback", {**conf, "name": "a b"}, container).failed(7)
        go_runtime.add("loopback", conf, None).failed(4, "CNI_NETNS")
        go_runtime.add("loopback", conf, "/run/netns/nosuch").failed(999, "nosuch")
    versions = go_runtime.version("loopback").result["supportedVersions"]
    assert versions == list(GO_VERSIONS)


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
@each_family()
def test_add_check_delete(
    go_runtime: Runtime,
    container: Netns,
    container2: Netns,
    data_dir: Path,
    family: Family,
    plugin: str,
) -> None:
    conf = {
        "cniVersion": "1.0.0",
        "name": "net",
        "isGateway": True,
        "ipam": family.host_local(data_dir),
    }
    result = go_runtime.add(plugin, conf, container).result
    assert result_addresses(result) == list(family.first)
    assert addresses(container, "eth0") == list(family.first)
    for default, gateway in zip(family.defaults, family.gateways, strict=True):
        assert has_route(container, default, via=gateway, dev="eth0")
        ping(container, gateway)
    assert sorted(tree(data_dir / "net", contents=False)) == sorted(
        [
            *(address.partition("/")[0] for address in family.first),
            *(f"last_reserved_ip.{number}" for number in range(len(family.first))),
            "lock",
        ]
    )
    go_runtime.check(plugin, conf, container, prev_result=result).succeeded()

    with go_runtime.attached(plugin, conf, container2, container_id="c2"):
        with tcp_server(container2) as server:
            for own, other in zip(family.first, family.second, strict=True):
                source, target = own.partition("/")[0], other.partition("/")[0]
                assert tcp_exchange(container, target, server.port) == source
        assert len(server.clients) == len(family.first)
        if plugin == "bridge":
            assert len(ports(go_runtime.host, "cni0")) == 2
            assert {kind(one) for one in ports(go_runtime.host, "cni0").values()} == {"veth"}

    go_runtime.delete(plugin, conf, container, prev_result=result).succeeded()
    go_runtime.check(plugin, conf, container, prev_result=result).failed(999)
    assert not ports(go_runtime.host, "cni0")


def test_masquerade(go_runtime: Runtime, container: Netns, outside: Netns, data_dir: Path) -> None:
    host = go_runtime.host
    connect(host, outside)
    conf = {
        "cniVersion": "1.0.0",
        "name": "net",
        "isGateway": True,
        "ipMasq": True,
        "ipam": DUAL.host_local(data_dir),
    }
    with go_runtime.attached("bridge", conf, container), tcp_server(outside) as server:
        # The uplink is a router's interface now; its address answers for the container.
        for target in ("198.51.100.2", "2001:db8:ffff::2"):
            seen = tcp_exchange(container, target, server.port)
            assert seen == target[:-1] + "1"
        assert any("MASQUERADE" in line for line in iptables_save(host))
        assert any("MASQUERADE" in line for line in iptables_save(host, 6))
    assert not any("MASQUERADE" in line for line in iptables_save(host))


def test_chain(go_runtime: Runtime, container: Netns, data_dir: Path) -> None:
    conflist = {
        "cniVersion": "1.0.0",
        "name": "net",
        "plugins": [
            {"type": "bridge", "ipam": V4.host_local(data_dir), "isGateway": True},
            {"type": "tuning", "capabilities": {"mac": True}},
        ],
    }
    mac = "c2:11:22:33:44:55"
    options = {"capabilities": {"mac": mac}}
    result = go_runtime.add_list(conflist, container, **options)
    assert link(container, "eth0")["address"] == mac
    assert result_addresses(result) == list(V4.first)
    go_runtime.check_list(conflist, container, result, **options)
    go_runtime.delete_list(conflist, container, result, **options)
    assert not ports(go_runtime.host, "cni0")
