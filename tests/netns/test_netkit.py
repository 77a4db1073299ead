"""ptp with `linkType: "netkit"` on a kernel without it; with it: tests/lab/test_netkit.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import V4, Family, Netns, Runtime, each_family, kind, link, ping, unchanged
from tests.harness.contract import leases
from tests.harness.requires import missing

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]


def network(family: Family, data_dir: Path, **keys: Any) -> Json:
    ipam = family.host_local(data_dir)
    return {"cniVersion": "1.1.0", "name": "net", "linkType": "netkit", "ipam": ipam, **keys}


@each_family()
def test_without_netkit_veth_is_used(
    runtime: Runtime, container: Netns, data_dir: Path, family: Family
) -> None:
    if missing("netkit") is None:
        pytest.skip("this kernel has netkit")
    conf = network(family, data_dir)
    reply = runtime.add("ptp", conf, container)
    result = reply.result
    assert reply.stderr == "this kernel has no netkit (Linux 6.7, CONFIG_NETKIT): using veth\n"
    assert kind(link(container, "eth0")) == "veth"
    for gateway in family.gateways:
        ping(container, gateway)
    runtime.check("ptp", conf, container, prev_result=result).succeeded()
    runtime.delete("ptp", conf, container).succeeded()
    assert not leases(data_dir)


def test_unknown_link_type(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    conf = network(V4, data_dir, linkType="tun")
    with unchanged(runtime.host, container, data_dir):
        runtime.add("ptp", conf, container).failed(999, 'unknown linkType "tun"')
