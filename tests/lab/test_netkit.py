"""ptp with `linkType: "netkit"`. What happens without netkit: tests/netns/test_netkit.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.harness import (
    V4,
    Family,
    Netns,
    Runtime,
    each_family,
    kind,
    link,
    links,
    ping,
    requires_kernel,
    tcp_exchange,
    tcp_server,
    unchanged,
)
from tests.harness.contract import leases

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]


def network(family: Family, data_dir: Path, **keys: Any) -> Json:
    ipam = family.host_local(data_dir)
    return {"cniVersion": "1.1.0", "name": "net", "linkType": "netkit", "ipam": ipam, **keys}


def kinds(ns: Netns) -> set[str]:
    return {kind(one) for one in links(ns).values()} - {""}


@requires_kernel("netkit")
@each_family()
def test_two_containers(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path, family: Family
) -> None:
    conf = network(family, data_dir, mtu=1400)
    with unchanged(container, container2):
        reply = runtime.add("ptp", conf, container)
        assert reply.stderr == ""
        first = reply.result
        second = runtime.add("ptp", conf, container2, container_id="c2").result
        for ns, result in ((container, first), (container2, second)):
            inner, outer = link(ns, "eth0"), link(runtime.host, result["interfaces"][0]["name"])
            assert kind(inner) == kind(outer) == "netkit"
            assert inner["mtu"] == outer["mtu"] == 1400
            assert result["interfaces"][1]["mac"] == inner["address"]
            assert result["interfaces"][0]["mac"] == outer["address"]
        for mine, other in zip(family.first, family.second, strict=True):
            address = other.partition("/")[0]
            ping(container, address)
            with tcp_server(container2) as server:
                assert tcp_exchange(container, address, server.port) == mine.partition("/")[0]
        for gateway in family.gateways:
            ping(container, gateway)
        for cidr in family.first:
            ping(runtime.host, cidr.partition("/")[0])
        runtime.check("ptp", conf, container, prev_result=first).succeeded()
        for _ in range(2):
            runtime.delete("ptp", conf, container).succeeded()
            runtime.delete("ptp", conf, container2, container_id="c2").succeeded()
    assert "netkit" not in kinds(runtime.host)
    assert not leases(data_dir)


@requires_kernel("netkit")
@each_family()
def test_gone_namespace_and_gc(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path, family: Family
) -> None:
    conf = network(family, data_dir)
    runtime.add("ptp", conf, container).succeeded()
    runtime.add("ptp", conf, container2, container_id="c2").succeeded()
    runtime.delete("ptp", conf).succeeded()  # the namespace still holds the link
    assert "eth0" not in links(container)
    runtime.gc("ptp", conf, [("c2", "eth0")]).succeeded()
    assert "netkit" in kinds(container2)
    runtime.gc("ptp", conf, []).succeeded()
    assert "netkit" not in kinds(container2) | kinds(runtime.host)
    assert not leases(data_dir)


@requires_kernel("netkit")
def test_failed_add_leaves_nothing(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    conf = network(V4, data_dir)
    conf["ipam"]["routes"] = [{"dst": "10.99.0.0/16", "gw": "192.0.2.1"}]
    runtime.host.set_sysctl("net/ipv4/ip_forward", 1)
    with unchanged(runtime.host, container):
        runtime.add("ptp", conf, container).failed(999, "failed to add route")
    assert not leases(data_dir)
