"""`runtimeConfig.deviceID` as master: the link of a device that a device plugin has allocated.

A veth end plays the device. sysfs is faked by bind mounts in a mount namespace of the plugin's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import V4, Netns, Runtime, link, ping, requires_kernel, unchanged
from tests.harness.contract import plug, without_dad
from tests.harness.sysfs import Sysfs

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

PCI, SF = "0000:3b:00.1", "mlx5_core.sf.4"
DEVICE = "ens3f0"  # the link of the device
CASES: dict[str, Json] = {
    "macvlan": {},
    "macvtap": {},
    "ipvlan": {},
    "vlan": {"vlanId": 7},
}
each_plugin = pytest.mark.parametrize(
    "plugin", [pytest.param(name, marks=requires_kernel(name)) for name in CASES]
)


@pytest.fixture
def sysfs(runtime: Runtime, tmp_path: Path) -> Sysfs:
    return Sysfs(runtime, tmp_path / "sys")


@pytest.fixture
def device(plugin: str, host: Netns, outside: Netns, container: Netns) -> None:
    """The device's link, and another one, to which the default route leads."""
    without_dad(container)
    plug(host, outside, master=DEVICE, vlan=7 if plugin == "vlan" else None)
    host.ip_batch(
        "link add other0 type veth peer name other1",
        "link set other0 up",
        "link set other1 up",
        "address add 203.0.113.1/24 dev other0",
        "route add default via 203.0.113.2",
    )


def network(plugin: str, device: str = PCI, **keys: Any) -> Json:
    return {
        "cniVersion": "1.1.0",
        "name": "net",
        "ipam": V4.static(),
        "runtimeConfig": {"deviceID": device},
        **CASES[plugin],
        **keys,
    }


def make_pci(sysfs: Sysfs, net: str = f"net/{DEVICE}", driver: str = "mlx5_core") -> None:
    (sysfs.pci / PCI / net).mkdir(parents=True)
    (sysfs.pci / PCI / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")


def master_of(host: Netns, container: Netns) -> str:
    """The name of the node's link on which eth0 is."""
    index = link(container, "eth0")["link_index"]
    return next(each["ifname"] for each in host.ip_json("link") if each["ifindex"] == index)


@each_plugin
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("how", ["pci", "virtio", "auxiliary"])
def test_the_device_is_the_master(
    sysfs: Sysfs, runtime: Runtime, host: Netns, container: Netns, plugin: str, how: str
) -> None:
    conf = network(plugin, SF if how == "auxiliary" else PCI)
    if how == "auxiliary":
        (sysfs.auxiliary / SF / "net" / DEVICE).mkdir(parents=True)
    else:
        make_pci(sysfs, f"net/{DEVICE}" if how == "pci" else f"virtio0/net/{DEVICE}")
    result = sysfs.call("ADD", plugin, conf, container).result
    assert master_of(host, container) == DEVICE
    if plugin != "macvtap":  # whose packets are its program's
        ping(container, V4.gateways[0])
    sysfs.call("CHECK", plugin, conf, container, prev_result=result).succeeded()
    # the device need not be there, nor its driver, nor the link
    runtime.delete(plugin, conf, container, prev_result=result).succeeded()
    assert [each["ifname"] for each in container.ip_json("link")] == ["lo"]


@each_plugin
@pytest.mark.usefixtures("device")
def test_a_master_in_the_configuration_counts_more(
    sysfs: Sysfs, host: Netns, container: Netns, plugin: str
) -> None:
    """As with the reference, to which a deviceID means nothing."""
    make_pci(sysfs)
    conf = network(plugin, master="other0")
    sysfs.call("ADD", plugin, conf, container).succeeded()
    assert master_of(host, container) == "other0"
    sysfs.call("DEL", plugin, conf, container).succeeded()


@each_plugin
@pytest.mark.usefixtures("device")
def test_without_a_link_nothing_is_made(
    sysfs: Sysfs, host: Netns, container: Netns, plugin: str
) -> None:
    """Not on the default route's link instead."""

    def fails(*texts: str, **keys: Any) -> None:
        with unchanged(host, container):
            sysfs.call("ADD", plugin, network(plugin, **keys), container).failed(999, *texts)

    for unknown in (PCI, SF, "../../x"):
        fails(f"runtime config DeviceID {unknown} not found", device=unknown)
    (sysfs.auxiliary / SF / "net").mkdir(parents=True)
    fails(f"device {SF} has no link", "in a container already", device=SF)
    make_pci(sysfs, ".", "vfio-pci")
    fails(f"device {PCI} has no link", "driver of user space")
    (sysfs.pci / PCI / "driver").unlink()
    fails(f"device {PCI} has no link", "bound to no driver")
    make_pci_link = sysfs.pci / PCI / "net" / "gone0"
    make_pci_link.mkdir(parents=True)
    fails("gone0")
    fails("linkInContainer is set", linkInContainer=True)


@each_plugin
@pytest.mark.usefixtures("device")
def test_check_misses_the_device(
    sysfs: Sysfs, runtime: Runtime, container: Netns, plugin: str
) -> None:
    make_pci(sysfs)
    conf = network(plugin)
    result = sysfs.call("ADD", plugin, conf, container).result
    reply = runtime.check(plugin, conf, container, prev_result=result)  # the real /sys
    reply.failed(None, f"runtime config DeviceID {PCI} not found")
    runtime.delete(plugin, conf, container).succeeded()
