"""host-device: devices of the node that move into the container and come back.

A veth end plays the device. sysfs is faked by bind mounts in a mount namespace of the plugin's own.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    CHECK_VERSIONS,
    INTERFACE_VERSIONS,
    NEWEST,
    V4,
    Family,
    Netns,
    Runtime,
    addresses,
    each_family,
    each_version,
    has_route,
    link,
    links,
    ping,
    requires_kernel,
    unchanged,
)
from tests.harness.contract import (
    BAD_ROUTE,
    FAILING,
    NO_ADDRESS,
    StandIn,
    leases,
    plug,
    without_dad,
    without_ipv6,
)
from tests.harness.sysfs import Sysfs

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = requires_kernel("veth")

Json = dict[str, Any]

DEVICE = "dev0"
MAC = "02:00:00:00:00:d0"


def network(**keys: Any) -> Json:
    return {"cniVersion": NEWEST, "name": "net", **keys}


@pytest.fixture
def device(host: Netns, outside: Netns) -> str:
    """A device of the node, up, with a peer outside that is the gateway."""
    host.set_sysctl("net/ipv6/conf/default/addr_gen_mode", 1)
    plug(host, outside, master=DEVICE)
    host.ip("link", "set", DEVICE, "address", MAC)
    return DEVICE


@pytest.fixture
def quiet(container: Netns, host: Netns) -> None:
    """No IPv6: whole snapshots are compared while links come and go."""
    without_ipv6(container, host)


def moved(host: Netns, container: Netns, ifname: str = "eth0") -> Json:
    """The device in the container, after checking that it is there as it should be."""
    assert DEVICE not in links(host)
    found = link(container, ifname)
    assert found["ifalias"] == DEVICE
    assert found["address"] == MAC
    assert "UP" in found["flags"]
    return found


def returned(host: Netns, container: Netns, ifname: str = "eth0") -> Json:
    """The device back on the host, without traces."""
    assert ifname not in links(container)
    found = link(host, DEVICE)
    assert found["address"] == MAC
    assert "ifalias" not in found
    assert "altnames" not in found
    assert "UP" not in found["flags"]
    return found


# -- there and back -------------------------------------------------------------------------------


@each_version(INTERFACE_VERSIONS)
@pytest.mark.usefixtures("device")
def test_without_ipam(runtime: Runtime, container: Netns, cni_version: str) -> None:
    conf = network(cniVersion=cni_version, device=DEVICE)
    result = runtime.add("host-device", conf, container, ifname="net1").result
    entry = {"name": "net1", "mac": MAC, "sandbox": container.path}
    assert result["interfaces"] == [entry]
    assert not {"ips", "routes"} & set(result)
    moved(runtime.host, container, "net1")
    check = runtime.check("host-device", conf, container, prev_result=result, ifname="net1")
    if cni_version in CHECK_VERSIONS:
        check.succeeded()
    for _ in range(2):
        runtime.delete("host-device", conf, container, ifname="net1").succeeded()
        returned(runtime.host, container, "net1")


@each_family()
@pytest.mark.usefixtures("device")
def test_with_addresses(runtime: Runtime, container: Netns, data_dir: Path, family: Family) -> None:
    conf = network(device=DEVICE, ipam=family.host_local(data_dir))
    result = runtime.add("host-device", conf, container).result
    assert addresses(container, "eth0") == list(family.first)
    assert [ip["interface"] for ip in result["ips"]] == [0] * len(family.first)
    for dst, gateway in zip(family.defaults, family.gateways, strict=True):
        assert has_route(container, dst, via=gateway, dev="eth0")
        ping(container, gateway)
    moved(runtime.host, container)
    runtime.status("host-device", conf).succeeded()
    runtime.check("host-device", conf, container, prev_result=result).succeeded()
    runtime.delete("host-device", conf, container).succeeded()
    returned(runtime.host, container)
    assert not leases(data_dir)
    runtime.host.ip("link", "set", DEVICE, "up")
    assert addresses(runtime.host, DEVICE) == []


@each_version()
@pytest.mark.usefixtures("device", "quiet")
def test_every_version(
    runtime: Runtime, container: Netns, data_dir: Path, cni_version: str
) -> None:
    conf = network(cniVersion=cni_version, device=DEVICE, ipam=V4.host_local(data_dir))
    runtime.host.ip("link", "set", DEVICE, "down")
    with unchanged(container), runtime.attached("host-device", conf, container):
        assert addresses(container, "eth0") == ["10.22.0.2/24"]
        moved(runtime.host, container)
    assert not leases(data_dir)


@pytest.mark.usefixtures("device")
def test_dns(runtime: Runtime, container: Netns) -> None:
    """That of the configuration, and only beside addresses."""
    dns = {"domain": "example.org"}
    ipam = {**V4.static(), "dns": {"domain": "ipam.example"}}
    for keys, expected in (
        ({"ipam": ipam, "dns": dns}, dns),
        ({"ipam": ipam}, None),
        ({"dns": dns}, None),
    ):
        conf = network(device=DEVICE, **keys)
        with runtime.attached("host-device", conf, container) as result:
            assert result.get("dns") == expected


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("hwaddr", [MAC, MAC.upper(), "02-00-00-00-00-d0", "0200.0000.00d0"])
def test_by_mac(runtime: Runtime, container: Netns, hwaddr: str) -> None:
    conf = network(hwaddr=hwaddr)
    with runtime.attached("host-device", conf, container):
        moved(runtime.host, container)
    returned(runtime.host, container)


@pytest.mark.usefixtures("device")
def test_name_that_the_container_has_already(runtime: Runtime, container: Netns) -> None:
    """An unrelated interface of the device's own name is not touched."""
    container.ip("link", "add", DEVICE, "type", "veth", "peer", "name", "other0")
    container.ip("link", "set", DEVICE, "alias", "something else")
    before = link(container, DEVICE)
    conf = network(device=DEVICE, ipam=V4.static())
    with runtime.attached("host-device", conf, container, ifname="net1"):
        moved(runtime.host, container, "net1")
        assert link(container, DEVICE)["ifindex"] == before["ifindex"]
    returned(runtime.host, container, "net1")
    runtime.delete("host-device", conf, container, ifname="net1").succeeded()
    assert link(container, DEVICE) == before


@pytest.mark.usefixtures("device")
def test_same_name_inside(runtime: Runtime, container: Netns) -> None:
    with runtime.attached("host-device", network(device=DEVICE), container, ifname=DEVICE):
        moved(runtime.host, container, DEVICE)
    returned(runtime.host, container, DEVICE)


# -- renamed inside -------------------------------------------------------------------------------


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("keys", [{"device": DEVICE}, {"hwaddr": MAC}], ids=["name", "mac"])
def test_renamed_in_the_container(
    runtime: Runtime, container: Netns, data_dir: Path, keys: Json
) -> None:
    conf = network(ipam=V4.host_local(data_dir), **keys)
    runtime.add("host-device", conf, container).succeeded()
    container.ip_batch("link set eth0 down", "link set eth0 name wan0", "link set wan0 up")
    runtime.delete("host-device", conf, container).succeeded()
    assert "wan0" not in links(container)
    returned(runtime.host, container)
    assert not leases(data_dir)


@pytest.mark.usefixtures("device")
def test_renamed_and_another_in_its_place(runtime: Runtime, container: Netns) -> None:
    conf = network(device=DEVICE)
    runtime.add("host-device", conf, container).succeeded()
    container.ip_batch(
        "link set eth0 down",
        "link set eth0 name wan0",
        "link add eth0 type veth peer name other0",
    )
    runtime.delete("host-device", conf, container).succeeded()
    assert "eth0" in links(container)
    assert "wan0" not in links(container)
    assert DEVICE in links(runtime.host)


@pytest.mark.usefixtures("device")
def test_del_of_another_attachment_takes_nothing(runtime: Runtime, container: Netns) -> None:
    """A repeated DEL must not find the device of a second interface."""
    runtime.host.ip("link", "add", "dev1", "type", "veth", "peer", "name", "dev1p")
    first, second = network(device=DEVICE), network(device="dev1")
    runtime.add("host-device", first, container, ifname="net1").succeeded()
    runtime.add("host-device", second, container, ifname="net2").succeeded()
    for _ in range(2):
        runtime.delete("host-device", second, container, ifname="net2").succeeded()
        assert "dev1" in links(runtime.host)
        moved(runtime.host, container, "net1")
    runtime.delete("host-device", first, container, ifname="net1").succeeded()
    returned(runtime.host, container, "net1")


# -- on the way back ------------------------------------------------------------------------------


@pytest.mark.usefixtures("device")
def test_the_host_never_sees_the_name_it_had_in_the_container(
    runtime: Runtime, host: Netns, container: Netns
) -> None:
    """udev acts on the first name that it sees."""
    conf = network(device=DEVICE)
    runtime.add("host-device", conf, container, ifname="net1").succeeded()
    with host.socket(socket.AF_NETLINK, socket.SOCK_RAW) as events:
        events.bind((0, 1))  # RTMGRP_LINK
        runtime.delete("host-device", conf, container, ifname="net1").succeeded()
        seen = received(events)
    assert DEVICE.encode() + b"\0" in seen
    assert b"net1\0" not in seen


def received(events: socket.socket) -> bytes:
    """What has arrived: the kernel tells of a change before it answers who asked for it."""
    seen = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := events.recv(1 << 16, socket.MSG_DONTWAIT):
            seen += chunk
    return seen


@pytest.mark.usefixtures("device")
def test_old_name_taken_in_the_container(runtime: Runtime, host: Netns, container: Netns) -> None:
    """Something made it there in the meantime: the device gets back all the same."""
    conf = network(device=DEVICE)
    runtime.add("host-device", conf, container).succeeded()
    container.ip("link", "property", "del", "dev", "eth0", "altname", DEVICE)
    container.ip("link", "add", DEVICE, "type", "veth", "peer", "name", "other0")
    runtime.delete("host-device", conf, container).succeeded()
    returned(host, container)
    assert "other0" in links(container)


@pytest.mark.usefixtures("device", "quiet")
def test_conflict_on_the_way_back(runtime: Runtime, container: Netns) -> None:
    conf = network(device=DEVICE, ipam=V4.static())
    runtime.add("host-device", conf, container).succeeded()
    runtime.host.ip("link", "add", DEVICE, "type", "veth", "peer", "name", "other0")
    with unchanged(runtime.host, container):
        reply = runtime.delete("host-device", conf, container)
        reply.failed(999, "failed to move link eth0", "file exists", f"interface {DEVICE}")
    assert "UP" in link(container, "eth0")["flags"]
    runtime.host.ip("link", "delete", DEVICE)
    runtime.delete("host-device", conf, container).succeeded()
    returned(runtime.host, container)


@pytest.mark.usefixtures("device", "quiet")
def test_alias_that_was_lost(runtime: Runtime, container: Netns) -> None:
    """The reference, which notes nothing, has moved the device: its alias is the old name."""
    conf = network(device=DEVICE)
    runtime.add("host-device", conf, container).succeeded()
    container.ip("link", "set", "eth0", "alias", "")
    forget_notes(runtime)
    with unchanged(runtime.host, container):
        reply = runtime.delete("host-device", conf, container)
        reply.failed(999, 'failed to find original ifname for "eth0" (alias is not set)')
    container.ip("link", "set", "eth0", "alias", DEVICE)
    runtime.delete("host-device", conf, container).succeeded()
    returned(runtime.host, container)


def forget_notes(runtime: Runtime) -> None:
    for note in (Path(runtime.env["CNI_STATE_DIR"]) / "devices").iterdir():
        note.unlink()


# -- the container's word -------------------------------------------------------------------------


def decoy(name: str, container: Netns, accomplice: Netns) -> None:
    container.ip("link", "add", name, "type", "veth", "peer", "name", "evil0", *netns(accomplice))


def netns(ns: Netns) -> tuple[str, str]:
    return "netns", ns.name


def same_names(container: Netns, _accomplice: Netns) -> None:
    container.ip("link", "set", "eth0", "alias", "lo")


def mark_of_a_decoy(container: Netns, accomplice: Netns) -> None:
    marks = link(container, "eth0")["altnames"]
    drop = [f"link property del dev eth0 altname {mark}" for mark in marks]
    container.ip_batch("link set eth0 down", *drop, "link set eth0 name mine")
    decoy("eth0", container, accomplice)
    have = [f"link property add dev eth0 altname {mark}" for mark in marks]
    container.ip_batch("link set eth0 alias eth7", *have)


def decoy_that_looks_half_moved(container: Netns, accomplice: Netns) -> None:
    container.ip_batch("link set eth0 down", "link set eth0 name mine alias eth7")
    decoy("eth7", container, accomplice)
    container.ip("link", "set", "eth7", "alias", "eth7")


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    "trick", [same_names, mark_of_a_decoy, decoy_that_looks_half_moved], ids=lambda f: f.__name__
)
def test_the_container_does_not_decide_what_moves(
    runtime: Runtime,
    container: Netns,
    container2: Netns,
    trick: Callable[[Netns, Netns], None],
) -> None:
    conf = network(device=DEVICE)
    before = link(runtime.host, DEVICE)
    runtime.add("host-device", conf, container).succeeded()
    trick(container, container2)
    for _ in range(2):
        runtime.delete("host-device", conf, container).succeeded()
        assert "eth7" not in links(runtime.host)
        assert "evil0" in links(container2) or trick is same_names
        assert link(runtime.host, DEVICE)["ifindex"] == before["ifindex"]


@pytest.mark.usefixtures("device")
def test_a_pair_that_the_container_moved_on_is_not_taken_for_gone(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path
) -> None:
    conf = network(device=DEVICE, ipam=V4.host_local(data_dir))
    runtime.add("host-device", conf, container).succeeded()
    container.ip("link", "set", "eth0", *netns(container2))
    reply = runtime.delete("host-device", conf, container)
    reply.failed(999, "failed to find device", "something in the container has moved it on")
    assert leases(data_dir)
    container2.ip("link", "delete", "eth0")
    runtime.delete("host-device", conf, container).succeeded()
    assert not leases(data_dir)


@pytest.mark.usefixtures("device")
def test_the_device_is_what_it_was(runtime: Runtime, container: Netns) -> None:
    host = runtime.host
    conf = network(device=DEVICE)
    host.ip_batch(
        f"link set {DEVICE} down",
        f"link set {DEVICE} mtu 1400 alias uplink",
        f"link property add dev {DEVICE} altname enp1s0",
    )
    before = link(host, DEVICE)
    runtime.add("host-device", conf, container).succeeded()
    assert link(container, "eth0")["ifalias"] == DEVICE
    container.ip_batch(
        "link set eth0 mtu 1300 promisc on allmulticast on address 02:00:00:00:00:99",
        "link property del dev eth0 altname enp1s0",
        "link property add dev eth0 altname eth7",
    )
    runtime.delete("host-device", conf, container).succeeded()
    after = link(host, DEVICE)
    for key in ("ifindex", "address", "mtu", "flags", "ifalias"):
        assert after[key] == before[key], key
    assert "eth7" not in after.get("altnames", [])


@pytest.mark.usefixtures("device")
def test_another_containers_namespace_is_left_alone(
    runtime: Runtime, container: Netns, container2: Netns
) -> None:
    """The path of a dead container's namespace names another's by now."""
    runtime.host.ip("link", "add", "dev1", "type", "veth", "peer", "name", "dev1p")
    first, second = network(device=DEVICE), network(device="dev1")
    runtime.add("host-device", first, container).succeeded()
    runtime.add("host-device", second, container2, container_id="c2").succeeded()
    runtime.delete("host-device", first, container2).succeeded()
    assert link(container2, "eth0")["ifalias"] == "dev1"
    assert "dev1" not in links(runtime.host)
    runtime.delete("host-device", second, container2, container_id="c2").succeeded()
    assert "dev1" in links(runtime.host)


@pytest.mark.parametrize("gone", ["empty", "path"])
@pytest.mark.usefixtures("device")
def test_delete_without_a_namespace(
    runtime: Runtime, container: Netns, data_dir: Path, gone: str
) -> None:
    """The address is released; the device is the kernel's business."""
    conf = network(device=DEVICE, ipam=V4.host_local(data_dir))
    runtime.add("host-device", conf, container).succeeded()
    path = container.path
    container.close()
    for _ in range(2):
        runtime.delete("host-device", conf, None if gone == "empty" else path).succeeded()
        assert not leases(data_dir)


@pytest.mark.usefixtures("device", "quiet")
def test_delete_without_add(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    conf = network(device=DEVICE, ipam=V4.host_local(data_dir))
    with unchanged(runtime.host, container):
        runtime.delete("host-device", conf, container).succeeded()
        runtime.delete("host-device", network(), container).succeeded()
        runtime.delete("host-device", network(pciBusID="0000:ff:1f.7"), container).succeeded()


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("device", "quiet")
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("failure", ["error", "no-address", "route"])
def test_failed_add_puts_the_device_back(
    runtime: Runtime, container: Netns, tmp_path: Path, failure: str, up: bool
) -> None:
    host = runtime.host
    host.ip("link", "set", DEVICE, "up" if up else "down")
    if failure == "route":
        ipam: Json = {**V4.static(), "routes": BAD_ROUTE}
    else:
        reply, status = (FAILING, 1) if failure == "error" else (NO_ADDRESS, 0)
        ipam = StandIn(tmp_path / "ipam", reply, status).install(runtime).ipam
    conf = network(cniVersion="1.0.0", device=DEVICE, ipam=ipam)
    before = link(host, DEVICE)
    with unchanged(container):
        runtime.add("host-device", conf, container).failed()
    after = link(host, DEVICE)
    assert ("UP" in after["flags"]) == up
    for key in ("ifname", "address", "mtu"):
        assert before[key] == after[key]
    assert not {"ifalias", "altnames"} & set(after)


SPECIFY = 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'
ABSOLUTE = 'kernel device path "{}" must be absolute and begin with /sys/devices/'
BAD: list[tuple[Json, str]] = [
    ({}, SPECIFY),
    ({"device": "", "hwaddr": ""}, SPECIFY),
    ({"device": None}, SPECIFY),
    ({"device": "gone0"}, "failed to find host device: Link not found"),
    ({"device": "a-name-that-is-much-too-long"}, "failed to find host device: Link not found"),
    ({"hwaddr": "02:00"}, 'failed to parse MAC address "02:00": '),
    (
        {"hwaddr": "02:00:00:00:00:ee"},
        "failed to find host device: failed to find physical interface",
    ),
    ({"kernelpath": "devices/x"}, ABSOLUTE.format("devices/x")),
    ({"kernelpath": "/sys/class/net/dev0"}, ABSOLUTE.format("/sys/class/net/dev0")),
    ({"kernelpath": "/sys/devices/../class"}, ABSOLUTE.format("/sys/devices/../class")),
    ({"kernelpath": "/sys/devices/none"}, "/sys/devices/none/net"),
    ({"pciBusID": "0000:ff:1f.7"}, "error with host device: lstat /sys/bus/pci/devices/0000:ff:"),
    (
        {"runtimeConfig": {"deviceID": "0000:ff:1f.7"}},
        "runtime config DeviceID 0000:ff:1f.7 not found or unsupported",
    ),
    (
        {"device": DEVICE, "runtimeConfig": {"deviceID": "../../x"}},
        "runtime config DeviceID ../../x not found or unsupported",
    ),
    ({"device": 7}, "json: cannot unmarshal number into field device"),
    ({"device": "lo"}, "failed to move link lo: "),
]


@pytest.mark.usefixtures("device", "quiet")
@pytest.mark.parametrize(("keys", "text"), BAD, ids=[repr(one[0]) for one in BAD])
def test_bad_input_changes_nothing(
    runtime: Runtime, container: Netns, data_dir: Path, keys: Json, text: str
) -> None:
    conf = network(ipam=V4.host_local(data_dir), **keys)
    with unchanged(runtime.host, container, data_dir):
        reply = runtime.add("host-device", conf, container)
        reply.failed(999, text)
        assert reply.stderr == ""


@pytest.mark.usefixtures("device", "quiet")
def test_interface_name_that_is_taken(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other0")
    conf = network(device=DEVICE, ipam=V4.host_local(data_dir))
    with unchanged(runtime.host, container, data_dir):
        reply = runtime.add("host-device", conf, container)
        reply.failed(999, f"failed to move link {DEVICE}: file exists")


@pytest.mark.usefixtures("device", "quiet")
def test_device_that_is_in_use(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path
) -> None:
    """A container has it already: it is not there any more."""
    conf = network(device=DEVICE, ipam=V4.host_local(data_dir))
    runtime.add("host-device", conf, container).succeeded()
    with unchanged(runtime.host, container, container2, data_dir):
        reply = runtime.add("host-device", conf, container2, container_id="c2")
        reply.failed(999, "failed to find host device: Link not found")


# -- CHECK and GC ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("device")
def test_check(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    without_dad(container)
    conf = network(device=DEVICE, ipam=V4.static())
    result = runtime.add("host-device", conf, container).result

    def problem(prev_result: Json | None = result, **keys: Any) -> str:
        reply = runtime.check("host-device", {**conf, **keys}, container, prev_result=prev_result)
        return str(reply.error["msg"]) if reply.rc else ""

    assert problem() == ""
    standin = StandIn(tmp_path / "ipam", "").install(runtime)
    assert problem(None, ipam=standin.ipam) == "Required prevResult missing"
    entry = result["interfaces"][0]
    other = {**result, "interfaces": [{**entry, "sandbox": "/run/netns/other"}]}
    assert problem(other).startswith("Sandbox in prevResult /run/netns/other doesn't match")
    other = {**result, "interfaces": [{**entry, "mac": "02:00:00:00:00:99"}]}
    assert problem(other) == (
        f"Interface eth0 Mac 02:00:00:00:00:99 doesn't match container Mac: {MAC}"
    )
    container.ip("route", "delete", "default")
    assert "not found in routing table" in problem()
    container.ip("address", "delete", "10.22.0.2/24", "dev", "eth0")
    assert problem() == "Failed to match addr 10.22.0.2/24 on interface eth0"
    container.ip("link", "delete", "eth0")
    assert "eth0" in problem()


@pytest.mark.usefixtures("device")
def test_gc_releases_leases(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    conf = network(device=DEVICE, ipam=V4.host_local(data_dir))
    runtime.add("host-device", conf, container).succeeded()
    runtime.gc("host-device", conf, [("c1", "eth0")]).succeeded()
    assert leases(data_dir)
    runtime.gc("host-device", conf, []).succeeded()
    assert not leases(data_dir)
    runtime.gc("host-device", network(device=DEVICE), []).succeeded()


@pytest.mark.usefixtures("device")
def test_what_a_kill_left_of_the_note_goes(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """The note is written beside its place first: DEL removes that, too, without a note."""
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    conf = network(device=DEVICE)
    runtime.add("host-device", conf, container).succeeded()
    [note] = (tmp_path / "state" / "devices").iterdir()
    runtime.delete("host-device", conf, container).succeeded()
    unfinished = note.with_name(f"{note.name}~")
    unfinished.touch()
    runtime.delete("host-device", conf, container).succeeded()
    assert not unfinished.exists()


# -- sysfs ----------------------------------------------------------------------------------------


@pytest.fixture
def sysfs(runtime: Runtime, tmp_path: Path) -> Sysfs:
    return Sysfs(runtime, tmp_path / "sys")


PCI = "0000:3b:00.1"
SF = "mlx5_core.sf.4"


def pci_device(sysfs: Sysfs, driver: str, net: str = "net") -> None:
    base = sysfs.pci / PCI
    base.mkdir()
    (base / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
    if driver != "vfio-pci":
        (base / net / DEVICE).mkdir(parents=True)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("conf", "make"),
    [
        ({"pciBusID": PCI}, lambda fs: pci_device(fs, "mlx5_core")),
        ({"pciBusID": PCI}, lambda fs: pci_device(fs, "virtio-pci", "virtio0/net")),
        ({"runtimeConfig": {"deviceID": PCI}}, lambda fs: pci_device(fs, "mlx5_core")),
        (
            {"runtimeConfig": {"deviceID": SF}, "pciBusID": "0000:00:00.0"},
            lambda fs: (fs.auxiliary / SF / "net" / DEVICE).mkdir(parents=True),
        ),
        (
            {"kernelpath": "/sys/devices/pci0000:3a/x"},
            lambda fs: (fs.devices / "pci0000:3a/x/net" / DEVICE).mkdir(parents=True),
        ),
    ],
    ids=["pci", "virtio", "device-id", "auxiliary", "kernelpath"],
)
def test_by_sysfs(
    sysfs: Sysfs, host: Netns, container: Netns, conf: Json, make: Callable[[Sysfs], None]
) -> None:
    make(sysfs)
    selects_pci = PCI in str(conf)
    conf = network(ipam=V4.static(), **conf)
    result = sysfs.call("ADD", "host-device", conf, container).result
    assert [one["mac"] for one in result["interfaces"]] == [MAC]
    assert [one.get("pciID") for one in result["interfaces"]] == [PCI if selects_pci else None]
    moved(host, container)
    sysfs.call("CHECK", "host-device", conf, container, prev_result=result).succeeded()
    for _ in range(2):
        sysfs.call("DEL", "host-device", conf, container, prev_result=result).succeeded()
        returned(host, container)


@pytest.mark.usefixtures("device")
def test_sysfs_device_renamed_in_the_container(
    sysfs: Sysfs, runtime: Runtime, host: Netns, container: Netns
) -> None:
    """Found again by its mark, although sysfs shows nothing of it by now."""
    pci_device(sysfs, "mlx5_core")
    conf = network(pciBusID=PCI)
    sysfs.call("ADD", "host-device", conf, container).succeeded()
    container.ip_batch("link set eth0 down", "link set eth0 name wan0")
    runtime.delete("host-device", conf, container).succeeded()
    returned(host, container)


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic", "igb_uio"])
@pytest.mark.usefixtures("device", "quiet")
def test_user_space_driver(
    sysfs: Sysfs, host: Netns, container: Netns, data_dir: Path, driver: str
) -> None:
    """DPDK: addresses without a link."""
    pci_device(sysfs, driver)
    conf = network(pciBusID=PCI, ipam=V4.host_local(data_dir))
    with unchanged(host, container):
        result = sysfs.call("ADD", "host-device", conf, container).result
        assert result["interfaces"] == [{"name": "eth0", "sandbox": container.path, "pciID": PCI}]
        assert [ip["address"] for ip in result["ips"]] == ["10.22.0.2/24"]
        assert result["routes"] == [{"dst": "0.0.0.0/0"}]
        sysfs.call("CHECK", "host-device", conf, container, prev_result=result).succeeded()
        sysfs.call("DEL", "host-device", conf, container).succeeded()
    assert not leases(data_dir)


@pytest.mark.usefixtures("device", "quiet")
def test_user_space_driver_beside_a_link_of_that_name(
    sysfs: Sysfs, host: Netns, container: Netns
) -> None:
    pci_device(sysfs, "vfio-pci")
    container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other0")
    conf = network(pciBusID=PCI)
    with unchanged(host, container):
        sysfs.call("ADD", "host-device", conf, container).succeeded()
        sysfs.call("DEL", "host-device", conf, container).succeeded()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("keys", "make", "text"),
    [
        (
            {"pciBusID": PCI},
            lambda fs: (fs.pci / PCI / "driver").mkdir(parents=True),
            "error with host device: ",
        ),
        (
            {"runtimeConfig": {"deviceID": SF}},
            lambda fs: (fs.auxiliary / SF / "net").mkdir(parents=True),
            f"failed to find network device in path /sys/bus/auxiliary/devices/{SF}/net",
        ),
        (
            {"runtimeConfig": {"deviceID": SF}},
            lambda fs: (fs.auxiliary / SF).mkdir(parents=True),
            f"failed to read directory /sys/bus/auxiliary/devices/{SF}/net",
        ),
    ],
    ids=["driver", "empty", "no-net"],
)
def test_bad_sysfs(
    sysfs: Sysfs,
    host: Netns,
    container: Netns,
    keys: Json,
    make: Callable[[Sysfs], None],
    text: str,
) -> None:
    make(sysfs)
    with unchanged(host, container):
        sysfs.call("ADD", "host-device", network(**keys), container).failed(999, text)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("keys", [{"device": DEVICE}, {"hwaddr": MAC}], ids=["name", "mac"])
def test_a_selector_is_stronger_than_the_device_id(
    sysfs: Sysfs, host: Netns, container: Netns, keys: Json
) -> None:
    """As in the reference: the runtime may give a deviceID beside it."""
    host.ip("link", "add", "dev1", "type", "veth", "peer", "name", "dev1p")
    (sysfs.auxiliary / SF / "net/dev1").mkdir(parents=True)
    conf = network(**keys, runtimeConfig={"deviceID": SF})
    sysfs.call("ADD", "host-device", conf, container).succeeded()
    moved(host, container)
    sysfs.call("DEL", "host-device", conf, container).succeeded()
    returned(host, container)


PATH = "/sys/devices/x"


@pytest.fixture
def known(sysfs: Sysfs, device: str) -> Sysfs:
    """A /sys that knows the device by its path and its PCI address."""
    (sysfs.devices / "x/net" / device).mkdir(parents=True)
    pci_device(sysfs, "mlx5_core")
    return sysfs


def test_selectors_that_agree(known: Sysfs, host: Netns, container: Netns) -> None:
    conf = network(device=DEVICE, hwaddr=MAC, kernelpath=PATH, pciBusID=PCI)
    known.call("ADD", "host-device", conf, container).succeeded()
    moved(host, container)
    known.call("DEL", "host-device", conf, container).succeeded()
    returned(host, container)


@pytest.mark.parametrize(
    "keys",
    [
        {"device": "dev1", "hwaddr": MAC},
        {"device": DEVICE, "hwaddr": "02:00:00:00:00:ee"},
        {"device": "dev1", "kernelpath": PATH},
        {"device": DEVICE, "kernelpath": "/sys/devices/none"},
        {"device": "dev1", "pciBusID": PCI},
        {"hwaddr": "02:00:00:00:00:d1", "kernelpath": PATH},
        {"device": DEVICE, "hwaddr": MAC, "pciBusID": "0000:3b:00.2"},
    ],
    ids=repr,
)
@pytest.mark.usefixtures("quiet")
def test_two_selectors_for_one_device(
    known: Sysfs, host: Netns, container: Netns, data_dir: Path, keys: Json
) -> None:
    """They mean different devices, or one of them none: nobody can know which is right."""
    host.ip("link", "add", "dev1", "type", "veth", "peer", "name", "dev1p")
    host.ip("link", "set", "dev1", "address", "02:00:00:00:00:d1")
    (known.pci / "0000:3b:00.2/net/dev1").mkdir(parents=True)
    (known.pci / "0000:3b:00.2/driver").symlink_to("../../../bus/pci/drivers/mlx5_core")
    first, *_, second = keys
    conf = network(ipam=V4.host_local(data_dir), **keys)
    with unchanged(host, container, data_dir):
        reply = known.call("ADD", "host-device", conf, container)
        reply.failed(999, f'"{first}" and "{second}" select different devices', "give one of them")


@pytest.mark.usefixtures("device", "quiet")
def test_a_selector_beside_a_device_of_user_space(
    sysfs: Sysfs, host: Netns, container: Netns
) -> None:
    pci_device(sysfs, "vfio-pci")
    with unchanged(host, container):
        reply = sysfs.call("ADD", "host-device", network(device=DEVICE, pciBusID=PCI), container)
        reply.failed(999, '"device" and "pciBusID" select different devices', PCI)


# -- killed ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("verb", "ifname"), [("ADD", "eth0"), ("DEL", "eth0"), ("DEL", DEVICE)])
def test_killed(
    runtime: Runtime, host: Netns, container: Netns, data_dir: Path, verb: str, ifname: str
) -> None:
    """SIGKILL at each request to the kernel; DEL then brings the device back."""
    conf = network(device=DEVICE, ipam=V4.host_local(data_dir))
    for call in range(1, 40):
        if verb == "DEL":
            runtime.add("host-device", conf, container, ifname=ifname).succeeded()
        killed = killed_at(call, runtime, verb, conf, container, ifname)
        runtime.delete("host-device", conf, container, ifname=ifname).succeeded()
        assert ifname not in links(container), f"killed at request {call}"
        found = link(host, DEVICE)
        assert not {"ifalias", "altnames"} & set(found), f"killed at request {call}"
        assert not leases(data_dir)
        if not killed:
            return
    pytest.fail(f"the {verb} never came to its end")


def killed_at(
    call: int, runtime: Runtime, verb: str, conf: Json, container: Netns, ifname: str
) -> bool:
    """Run a verb, killed as it sends its `call`-th request; False if it came to its end."""
    done = runtime.host.run(
        subprocess.run,
        [
            *("strace", "-qq", "-o", "/dev/null", "-e", "trace=sendto"),
            *("-e", f"inject=sendto:signal=KILL:when={call}"),
            str(runtime.bin_dir / "host-device"),
        ],
        input=json.dumps({"type": "host-device", **conf}).encode(),
        capture_output=True,
        # strace sees this process only: the work has to be done in it
        env=runtime.environment(verb, container, ifname=ifname, env={"CNI_SERVER": "off"}),
        cwd="/",
    )
    assert done.returncode in (0, -signal.SIGKILL)
    return bool(done.returncode)
