"""macvtap: a macvlan whose packets a program reads and writes, by a device of the node."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import V4, Netns, Runtime, addresses, link, links, requires_kernel, unchanged
from tests.harness.contract import MASTER, PEER, InterfaceContract, leases, plug, without_ipv6
from tests.harness.kernel import neighbours
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = requires_kernel("macvtap")

Json = dict[str, Any]

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x2, 0x1000
ARP, REQUEST, REPLY = 0x0806, 1, 2


class TestContract(InterfaceContract):
    plugin = "macvtap"
    kind = "macvtap"
    layer2 = True


def network(**keys: Any) -> Json:
    # all workers have one /dev, in which the device has a number made of its owner
    return {"cniVersion": "1.1.0", "name": f"net{os.getpid()}", "master": MASTER, **keys}


def device(ns: Netns, name: str = "eth0") -> Path:
    return Path(f"/dev/tap{link(ns, name)['ifindex']}")


def answer_arp(fd: int, mac: bytes, ip: bytes) -> Callable[[], bool]:
    """Has a request for `ip` come in? Then a machine with `mac` answers it."""

    def look() -> bool:
        try:
            frame = os.read(fd, 65536)
        except BlockingIOError:
            return False
        kind, operation = struct.unpack_from("!H", frame, 12)[0], frame[20:22]
        if kind != ARP or operation != REQUEST.to_bytes(2, "big") or frame[38:42] != ip:
            return False
        sender = frame[22:32]
        head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, REPLY)
        os.write(fd, frame[6:12] + mac + ARP.to_bytes(2, "big") + head + mac + ip + sender)
        return True

    return look


def test_a_machine_behind_it(runtime: Runtime, container: Netns, outside: Netns) -> None:
    """Packets come in and go out by the device; it goes with the interface."""
    without_ipv6(container)
    plug(runtime.host, outside)
    conf = network(owner=54321, group=54322)
    result = runtime.add("macvtap", conf, container).result
    (entry,) = result["interfaces"]
    assert entry["mac"] == link(container, "eth0")["address"]
    path = device(container)
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (54321, 54322, 0o660)
    runtime.check("macvtap", conf, container, prev_result=result).succeeded()

    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"", IFF_TAP | IFF_NO_PI))
        outside.popen(["ping", "-n", "-c", "60", "10.22.0.77"])
        mac = bytes.fromhex(entry["mac"].replace(":", ""))
        wait_until(answer_arp(fd, mac, bytes((10, 22, 0, 77))), "a request arrives")
        wait_until(
            lambda: neighbours(outside, PEER).get("10.22.0.77") == entry["mac"],
            "the answer arrives",
            tell=lambda: neighbours(outside, PEER),
        )
    finally:
        os.close(fd)
    for _ in range(2):
        runtime.delete("macvtap", conf, container, prev_result=result).succeeded()
    assert "eth0" not in links(container)
    assert not path.exists()


def test_two_containers_have_two_devices(
    runtime: Runtime, container: Netns, container2: Netns, outside: Netns
) -> None:
    """Their indexes are of different namespaces, and the node has one /dev."""
    plug(runtime.host, outside)
    runtime.add("macvtap", network(), container).succeeded()
    runtime.add("macvtap", network(), container2, container_id="c2").succeeded()
    paths = [device(container), device(container2)]
    assert len(set(paths)) == 2
    assert len({path.stat().st_rdev for path in paths}) == 2
    for ns, path in zip((container, container2), paths, strict=True):
        shown = ns.exec(["sh", "-c", "cat /sys/class/net/eth0/macvtap/tap*/dev"], check=False)
        number = path.stat().st_rdev
        if shown.returncode == 0:
            assert shown.stdout.strip() == f"{os.major(number)}:{os.minor(number)}"


def test_check_compares_the_device(runtime: Runtime, container: Netns, outside: Netns) -> None:
    plug(runtime.host, outside)
    conf = network(owner=54321, mode="private")
    result = runtime.add("macvtap", conf, container).result
    path = device(container)

    def check(**keys: Any) -> Any:
        return runtime.check("macvtap", {**conf, **keys}, container, prev_result=result)

    check().succeeded()
    check(mode="bridge").failed(999, "eth0 has mode private, not bridge")
    os.chown(path, 1, -1)
    check().failed(999, f"{path} is of owner 1, not 54321")
    path.unlink()
    check().failed(999, f"{path}: no such file or directory")


def test_with_addresses(runtime: Runtime, container: Netns, outside: Netns, data_dir: Path) -> None:
    plug(runtime.host, outside)
    conf = network(ipam=V4.host_local(data_dir))
    result = runtime.add("macvtap", conf, container).result
    assert [ip["address"] for ip in result["ips"]] == addresses(container, "eth0")
    runtime.delete("macvtap", conf, container).succeeded()
    assert not leases(data_dir, f"net{os.getpid()}")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"mode": "wrong"}, 'unknown macvtap mode: "wrong"'),
        ({"owner": -1}, "invalid owner -1"),
        ({"mtu": 1600}, "invalid MTU 1600"),
        ({"master": "gone0"}, "Link not found"),
    ],
)
def test_refused(runtime: Runtime, container: Netns, outside: Netns, keys: Json, text: str) -> None:
    plug(runtime.host, outside)
    with unchanged(runtime.host, container):
        runtime.add("macvtap", network(**keys), container).failed(999, text)
