"""tc-redirect-tap: a virtual machine in the place of the container."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    DUAL,
    Netns,
    Runtime,
    link,
    links,
    ping,
    requires_kernel,
    unchanged,
)
from tests.harness.contract import without_dad

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = requires_kernel("tc-redirect-tap")

Json = dict[str, Any]

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x2, 0x1000
CLONE_NEWNET = 0x40000000
CONTAINER_ID = "c1"


def conflist(data_dir: Path, **keys: Any) -> Json:
    return {
        "cniVersion": "1.1.0",
        "name": "net",
        "plugins": [
            {"type": "ptp", "ipam": DUAL.host_local(data_dir)},
            {"type": "tc-redirect-tap", **keys},
        ],
    }


def machine_of(result: Json) -> tuple[str, str, list[Json]]:
    """As the programs do that start virtual machines: device, MAC and addresses by the sandbox."""
    (index,) = (n for n, e in enumerate(result["interfaces"]) if e.get("sandbox") == CONTAINER_ID)
    entry = result["interfaces"][index]
    return entry["name"], entry["mac"], [ip for ip in result["ips"] if ip["interface"] == index]


def _open(name: str, flags: int = IFF_TAP | IFF_NO_PI) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    return fd


def _carry(container: str, vm: str, name: str, ready: Any) -> None:
    """Stands in for the monitor of a machine: carry frames between two TAP devices."""
    ends = []
    for path, device in ((container, name), (vm, "eth0")):
        with open(path) as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) == 0
        ends.append(_open(device))
    ready.set()
    while True:
        for end in select.select(ends, [], [])[0]:
            try:
                os.write(ends[end == ends[0]], os.read(end, 65536))
            except OSError:
                continue  # its other end is down


@contextmanager
def machine(container: Netns, vm: Netns, result: Json) -> Iterator[None]:
    """A virtual machine on the device of the result, with what the result gives it."""
    name, mac, ips = machine_of(result)
    context = get_context("fork")
    ready = context.Event()
    carrier = context.Process(target=_carry, args=(container.path, vm.path, name, ready))
    carrier.start()
    try:
        assert ready.wait(60)
        vm.ip_batch(f"link set eth0 address {mac} up")
        for ip in ips:
            v6 = ":" in ip["address"]
            family = "-6" if v6 else "-4"
            vm.ip("address", "add", ip["address"], "dev", "eth0", *(["nodad"] if v6 else []))
            vm.ip(family, "route", "add", ip["gateway"], "dev", "eth0")
            vm.ip(family, "route", "add", "default", "via", ip["gateway"])
        yield
    finally:
        carrier.kill()
        carrier.join()


def test_a_machine_takes_the_place(
    runtime: Runtime, host: Netns, container: Netns, container2: Netns, data_dir: Path
) -> None:
    """Packets reach the machine, with the container's MAC and addresses, and not the container."""
    without_dad(container, container2)
    network = conflist(data_dir)
    result = runtime.add_list(network, container, container_id=CONTAINER_ID)
    name, mac, ips = machine_of(result)
    assert mac == link(container, "eth0")["address"]
    assert [ip["address"] for ip in ips] == [ip["address"] for ip in result["ips"][:2]]
    assert [ip["gateway"] for ip in ips] == [ip["gateway"] for ip in result["ips"][:2]]
    device = link(container, name)
    assert device["linkinfo"]["info_kind"] == "tun"
    assert device["linkinfo"]["info_data"]["type"] == "tap"
    assert device["linkinfo"]["info_data"]["vnet_hdr"]
    assert device["mtu"] == link(container, "eth0")["mtu"]
    assert container.sysctl(f"net/ipv6/conf/{name}/disable_ipv6") == "1"

    for ip in ips:  # nobody answers: the container's own kernel gets nothing any more
        ping(host, ip["address"].partition("/")[0], expect=False)
    with machine(container, container2, result):
        for ip in ips:
            ping(container2, ip["gateway"])
            ping(host, ip["address"].partition("/")[0])

    runtime.check_list(network, container, result, container_id=CONTAINER_ID)
    for _ in range(2):
        runtime.delete_list(network, container, result, container_id=CONTAINER_ID)
        assert set(links(container)) == {"lo"}


def plain(container: Netns) -> Json:
    """An interface that another project's plugin has made, and its result."""
    container.ip_batch(
        "link add eth0 mtu 1400 type veth peer name eth0p",
        "link set eth0p up",
        "link set eth0 up",
        "address add 10.66.0.9/24 dev eth0",
    )
    return {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": container.path}],
        "ips": [{"address": "10.66.0.9/24", "interface": 0}],
    }


CONF = {"cniVersion": "1.1.0", "name": "net"}


@pytest.mark.parametrize(
    ("keys", "args", "name", "owner", "group"),
    [
        ({"tapName": "vm0", "uid": 54321, "gid": 54322}, "", "vm0", 54321, 54322),
        ({"tap_name": "vm1"}, "", "vm1", 0, 0),
        (
            {"tapName": "vm0", "uid": 5},
            "TC_REDIRECT_TAP_NAME=vm2;TC_REDIRECT_TAP_UID=54323;TC_REDIRECT_TAP_GID=54324;A=x",
            "vm2",
            54323,
            54324,
        ),
    ],
)
def test_name_and_owner(
    runtime: Runtime,
    container: Netns,
    keys: Json,
    args: str,
    name: str,
    owner: int,
    group: int,
) -> None:
    """CNI_ARGS wins over the configuration; other keys of it are not looked at."""
    before = plain(container)
    conf = {**CONF, **keys}
    added = runtime.add("tc-redirect-tap", conf, container, prev_result=before, args=args)
    data = link(container, name)["linkinfo"]["info_data"]
    assert machine_of(added.result)[0] == name
    shown = data["user"], data["group"]  # by name, where the id has one
    assert shown == (("root", "root") if not owner else (owner, group))
    # by the mark alone: neither the name nor a prevResult is needed
    with unchanged(container):
        runtime.delete("tc-redirect-tap", CONF, container, container_id="c2").succeeded()
    runtime.delete("tc-redirect-tap", CONF, container).succeeded()
    assert name not in links(container)
    assert not container.exec(["tc", "filter", "show", "dev", "eth0", "ingress"]).stdout


def test_check_names_each_difference(runtime: Runtime, container: Netns) -> None:
    conf = {**CONF, "tapName": "vm0"}
    result = runtime.add("tc-redirect-tap", conf, container, prev_result=plain(container)).result

    def check() -> Any:
        return runtime.check("tc-redirect-tap", conf, container, prev_result=result)

    check().succeeded()
    container.ip("link", "set", "vm0", "mtu", "1300")
    check().failed(999, "the MTU of vm0 is 1300, that of eth0 1400")
    container.ip("link", "set", "vm0", "mtu", "1400", "down")
    check().failed(999, "vm0 is down")
    container.ip("link", "set", "vm0", "up")
    check().succeeded()
    container.exec(["tc", "qdisc", "delete", "dev", "vm0", "ingress"])
    check().failed(999, "vm0 is not redirected to eth0")
    container.exec(["tc", "filter", "delete", "dev", "eth0", "ingress"])
    reply = check()
    reply.failed(999, "eth0 is not redirected to vm0")
    assert "vm0 is not redirected to eth0" in reply.error["details"]
    container.ip("link", "delete", "vm0")
    check().failed(999, 'there is no TAP device "vm0" in the container')


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"tapName": "eth0"}, 'the TAP device cannot be called "eth0"'),
        ({"tapName": "lo"}, "failed to create tap device lo: file exists"),
        ({"tapName": "sixteen-letters-"}, "invalid name of a TAP device"),
        ({"tapName": "a/b"}, "invalid name of a TAP device"),
        ({"tapName": "tap%d"}, "invalid name of a TAP device"),
        ({"uid": -1}, "invalid uid or gid -1"),
    ],
)
def test_refused(runtime: Runtime, container: Netns, keys: Json, text: str) -> None:
    before = plain(container)
    with unchanged(container):
        reply = runtime.add("tc-redirect-tap", {**CONF, **keys}, container, prev_result=before)
        reply.failed(999, text)


def test_refused_arguments(runtime: Runtime, container: Netns) -> None:
    before = plain(container)
    with unchanged(container):
        args = "TC_REDIRECT_TAP_UID=root"
        reply = runtime.add("tc-redirect-tap", CONF, container, prev_result=before, args=args)
        reply.failed(999, 'TC_REDIRECT_TAP_UID should be a number, got "root"')
        runtime.add("tc-redirect-tap", CONF, container).failed(999, "no previous result was found")
    container.ip("link", "delete", "eth0")
    reply = runtime.add("tc-redirect-tap", CONF, container, prev_result=before)
    reply.failed(999, 'failed to find redirect interface "eth0"')


@pytest.mark.parametrize("qdisc", ["ingress", "clsact"])
def test_another_programs_ingress(runtime: Runtime, container: Netns, qdisc: str) -> None:
    """It is not taken, by no verb."""
    before = plain(container)
    container.exec(["tc", "qdisc", "add", "dev", "eth0", qdisc])
    with unchanged(container):
        reply = runtime.add("tc-redirect-tap", CONF, container, prev_result=before)
        reply.failed(999, "eth0 has an ingress qdisc already")
        runtime.delete("tc-redirect-tap", CONF, container).succeeded()
    assert qdisc in container.exec(["tc", "qdisc", "show", "dev", "eth0"]).stdout


def test_after_the_known_plugin(runtime: Runtime, container: Netns) -> None:
    """A device without our mark goes if the prevResult names it as the machine's."""
    before = plain(container)
    container.ip("tuntap", "add", "dev", "tap0", "mode", "tap")
    container.ip("tuntap", "add", "dev", "tap1", "mode", "tap")
    container.exec(["tc", "qdisc", "add", "dev", "eth0", "ingress"])
    redirect = ["matchall", "action", "mirred", "egress", "redirect", "dev", "tap0"]
    container.exec(["tc", "filter", "add", "dev", "eth0", "parent", "ffff:", *redirect])
    before["interfaces"] += [
        {"name": "tap0", "sandbox": container.path},
        {"name": "tap0", "sandbox": CONTAINER_ID},
    ]
    runtime.delete("tc-redirect-tap", CONF, container, prev_result=before).succeeded()
    assert "tap0" not in links(container)
    assert "tap1" in links(container)
    assert "ingress" not in container.exec(["tc", "qdisc", "show", "dev", "eth0"]).stdout


def test_without_a_namespace(runtime: Runtime) -> None:
    runtime.delete("tc-redirect-tap", CONF, "/run/netns/gone").succeeded()
    runtime.status("tc-redirect-tap", CONF).succeeded()
