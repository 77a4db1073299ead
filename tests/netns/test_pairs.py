"""bridge and ptp: to whom a veth pair belongs, and when it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import V4, Netns, Runtime, link, links, requires_kernel, unchanged
from tests.harness.contract import hide, leases

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = requires_kernel("veth", "bridge")

Json = dict[str, Any]

each_plugin = pytest.mark.parametrize("plugin", ["bridge", "ptp"])


def network(data_dir: Path, **keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "net", "ipam": V4.host_local(data_dir), **keys}


def pairs(host: Netns) -> list[str]:
    return [name for name in links(host) if name.startswith("veth")]


@each_plugin
@pytest.mark.parametrize("trick", ["renamed", "and no alias", "and a decoy", "lo"])
@pytest.mark.parametrize("reference", [False, True], ids=["marked", "unmarked"])
def test_del_takes_the_pair_that_add_made(
    runtime: Runtime,
    container: Netns,
    data_dir: Path,
    plugin: str,
    trick: str,
    reference: bool,
) -> None:
    """Also one without a mark, as the reference makes them, if the prevResult names it."""
    conf = network(data_dir)
    result = runtime.add(plugin, conf, container).result
    (pair,) = pairs(runtime.host)
    if reference:
        runtime.host.ip_batch(
            f"link set {pair} down", f"link set {pair} name vethofgo", "link set vethofgo alias ''"
        )
        for entry in result["interfaces"]:
            entry["name"] = "vethofgo" if entry["name"] == pair else entry["name"]
    hide(container, trick)
    runtime.delete(plugin, conf, container, prev_result=result).succeeded()
    assert not pairs(runtime.host)
    assert "hidden" not in links(container)
    assert ("eth0" in links(container)) == (trick in ("and a decoy", "lo"))
    assert not leases(data_dir)


@each_plugin
def test_del_leaves_another_containers_pair(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path, plugin: str
) -> None:
    """The path of the namespace names another container's by now."""
    conf = network(data_dir)
    runtime.add(plugin, conf, container).succeeded()
    runtime.add(plugin, conf, container2, container_id="c2").succeeded()
    with unchanged(container2):
        runtime.delete(plugin, conf, container2).succeeded()
        runtime.delete(plugin, conf, container2).succeeded()
    assert len(pairs(runtime.host)) == 1
    assert list(leases(data_dir).values()) == ["c2 eth0"]


@each_plugin
def test_a_decoy_cannot_name_another_pair(
    runtime: Runtime,
    container: Netns,
    container2: Netns,
    netns: Callable[..., Netns],
    data_dir: Path,
    plugin: str,
) -> None:
    """A container chooses the indexes of its own pairs; they may be those of a victim's."""
    conf = network(data_dir)
    runtime.add(plugin, conf, container2, container_id="victim").succeeded()
    inner = link(container2, "eth0")
    accomplice = netns("accomplice")
    container.ip(
        *("link", "add", "eth0", "index", str(inner["ifindex"]), "type", "veth"),
        *("peer", "name", "x", "index", str(inner["link_index"]), "netns", accomplice.name),
    )
    with unchanged(runtime.host, container2):
        runtime.delete(plugin, conf, container).succeeded()


@each_plugin
def test_an_add_takes_the_place_of_a_pair_whose_namespace_has_ended(
    runtime: Runtime, netns: Callable[..., Netns], data_dir: Path, plugin: str
) -> None:
    """As after a restart without a DEL. While the namespace exists, that is an error."""
    conf = network(data_dir, ipam=V4.static())
    first, second = netns("first"), netns("second")
    runtime.add(plugin, conf, first).succeeded()
    with unchanged(runtime.host, first, second):
        runtime.add(plugin, conf, second).failed(999, "an earlier ADD")
    first.close()
    runtime.add(plugin, conf, second).succeeded()
    assert len(pairs(runtime.host)) == 1
    runtime.delete(plugin, conf, second).succeeded()
    assert not pairs(runtime.host)


@pytest.mark.parametrize("existed", [True, False], ids=["existed", "new"])
def test_a_failed_add_removes_the_bridge_that_it_made(
    runtime: Runtime, container: Netns, data_dir: Path, existed: bool
) -> None:
    ipam = {**V4.host_local(data_dir), "routes": [{"dst": "10.99.0.0/16", "gw": "192.0.2.1"}]}
    if existed:
        runtime.host.ip("link", "add", "cni0", "type", "bridge")
    with unchanged(runtime.host) if not existed else unchanged(container):
        runtime.add("bridge", network(data_dir, ipam=ipam), container).failed(999, "add route")
    assert ("cni0" in links(runtime.host)) == existed
