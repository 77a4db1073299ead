"""conflictCheck: another host of the LAN has an address that is free in the pool."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP

from cni.ipam import conflict
from tests.harness import Netns, Runtime, addresses, link, requires_kernel
from tests.harness.contract import MASTER, plug

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]
V4, V6 = "10.64.0.0/29", "fd00:64::/125"
FAST = {"probes": 2, "interval": 300}


class Lan:
    """A bridge of the node, a host on it, and a network whose addresses it may have."""

    def __init__(self, runtime: Runtime, outside: Netns, directory: Path) -> None:
        self.runtime = runtime
        self.outside = outside
        self.directory = directory
        host = runtime.host
        host.ip("link", "add", "lan0", "type", "bridge")
        host.ip("link", "set", "lan0", "up")
        host.ip(
            "link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", outside.name
        )
        host.ip("link", "set", "out0", "master", "lan0", "up")
        outside.ip("link", "set", "eth0", "up")

    def has(self, *texts: str) -> None:
        """The host on the LAN gets these addresses."""
        for text in texts:
            nodad = ["nodad"] if ":" in text else []
            self.outside.ip("addr", "add", text, "dev", "eth0", *nodad)

    def conf(self, *subnets: str, check: Json | None = FAST, **ipam: Any) -> Json:
        keys = {
            "type": "cluster",
            "ranges": [[{"subnet": each, "gateway": _last(each)}] for each in subnets],
            "store": {"type": "directory", "path": str(self.directory / "store")},
            "dataDir": str(self.directory / "data"),
            "nodeName": "n1",
            "blockSize": 29,
            "blockSizeV6": 125,
            **ipam,
        }
        if check is not None:
            keys["conflictCheck"] = check
        return {
            "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "lan0", "ipam": keys,
        }  # fmt: skip

    def reserved(self) -> dict[str, str]:
        """Address → container, of the node's files."""
        directory = self.directory / "data" / "default"
        names = os.listdir(directory) if directory.exists() else []
        return {
            name: (directory / name).read_text().splitlines()[0]
            for name in names
            if name[0].isdigit() or ":" in name
        }


def _last(subnet: str) -> str:
    return "10.64.0.6" if subnet == V4 else "fd00:64::7"


@pytest.fixture
def lan(runtime: Runtime, outside: Netns, tmp_path: Path) -> Lan:
    return Lan(runtime, outside, tmp_path)


def got(result: Json) -> list[str]:
    return [each["address"].partition("/")[0] for each in result["ips"]]


def test_another_address_is_taken(lan: Lan, container: Netns, container2: Netns) -> None:
    theirs = {"10.64.0.1", "10.64.0.2", "10.64.0.3", "fd00:64::1"}
    lan.has(*(f"{each}/{125 if ':' in each else 29}" for each in theirs))
    conf = lan.conf(V4, V6)
    reply = lan.runtime.add("bridge", conf, container)
    v4, v6 = got(reply.result)
    assert not theirs & {v4, v6}
    mac = link(lan.outside, "eth0")["address"]
    held = lan.reserved()
    aside = {each for each, container_id in held.items() if container_id == "conflict"}
    assert "fd00:64::1" in aside
    assert len(aside) > 1
    assert aside <= theirs
    for each in aside:
        assert f"{mac} has {each}, which was free here" in reply.stderr
    assert {each.split("/")[0] for each in addresses(container, "eth0")} >= {v4, v6}
    assert "UP" in link(container, "eth0")["flags"]
    assert {each for each in held if each not in aside} == {v4, v6}
    # It is set aside, so the next container is not made to find out again.
    second = lan.runtime.add("bridge", conf, container2, container_id="c2")
    assert got(second.result) == ["10.64.0.5", "fd00:64::3"]
    assert second.stderr == ""
    lan.runtime.delete("bridge", conf, container).succeeded()
    # GC of the network lets it go; when the host is gone, too, it is handed out.
    lan.runtime.gc("bridge", conf, [("c2", "eth0")]).succeeded()
    assert set(lan.reserved().values()) == {"c2"}


def test_without_the_key_nobody_is_asked(lan: Lan, container: Netns) -> None:
    lan.has("10.64.0.1/29")
    assert got(lan.runtime.add("bridge", lan.conf(V4, check=None), container).result) == [
        "10.64.0.1"
    ]


def test_a_range_of_which_others_have_all(lan: Lan, container: Netns) -> None:
    lan.has(*(f"10.64.0.{i}/29" for i in range(1, 6)))
    reply = lan.runtime.add("bridge", lan.conf(V4), container)
    reply.failed(999, "blocks of the ranges in space default are taken")
    assert set(lan.reserved().values()) == {"conflict"}


def test_a_requested_address_is_not_exchanged(lan: Lan, container: Netns) -> None:
    lan.has("10.64.0.2/29")
    mac = link(lan.outside, "eth0")["address"]
    reply = lan.runtime.add("bridge", lan.conf(V4), container, args="IgnoreUnknown=1;IP=10.64.0.2")
    reply.failed(999, "requested IP address 10.64.0.2 is in use on the link", mac)
    assert lan.reserved() == {}


def test_gateways_have_to_answer(lan: Lan, container: Netns) -> None:
    conf = lan.conf(V4, V6, check={**FAST, "gateway": True})
    lan.has("10.64.0.6/29")
    reply = lan.runtime.add("bridge", conf, container)
    reply.failed(999, "gateway fd00:64::7 does not answer on the link of eth0")
    assert lan.reserved() == {}
    lan.has("fd00:64::7/125")
    assert len(got(lan.runtime.add("bridge", conf, container).result)) == 2


def test_an_interface_that_comes_later(lan: Lan, container: Netns) -> None:
    conf = {**lan.conf(V4), "type": "ptp"}
    lan.runtime.add("ptp", conf, container).failed(999, "eth0 does not exist yet", "conflictCheck")
    assert lan.reserved() == {}


# --- host-local, with the same code ---


def host_local(lan: Lan, *subnets: str, check: Json | None = FAST, **ipam: Any) -> Json:
    conf = lan.conf(*subnets, check=check)
    keys = {k: each for k, each in conf["ipam"].items() if k in ("ranges", "dataDir")}
    if check is not None:
        keys["conflictCheck"] = check
    return {**conf, "name": "default", "ipam": {"type": "host-local", **keys, **ipam}}


def test_host_local_takes_another_address(lan: Lan, container: Netns, container2: Netns) -> None:
    """The address of the other family stays, as the first one of its range set."""
    lan.has("10.64.0.1/29", "10.64.0.2/29")
    conf = host_local(lan, V6, V4)
    reply = lan.runtime.add("bridge", conf, container)
    assert got(reply.result) == ["fd00:64::1", "10.64.0.3"]
    mac = link(lan.outside, "eth0")["address"]
    assert f"{mac} has 10.64.0.1, which was free here" in reply.stderr
    held = lan.reserved()
    assert {a for a, cid in held.items() if cid == "conflict"} == {"10.64.0.1", "10.64.0.2"}
    assert {each.split("/")[0] for each in addresses(container, "eth0")} >= {"10.64.0.3"}
    lan.runtime.check("bridge", {**conf, "prevResult": reply.result}, container).succeeded()
    second = lan.runtime.add("bridge", conf, container2, container_id="c2")
    assert got(second.result) == ["fd00:64::2", "10.64.0.4"]
    assert second.stderr == ""
    lan.runtime.delete("bridge", conf, container).succeeded()
    lan.runtime.gc("bridge", conf, [("c2", "eth0")]).succeeded()
    assert set(lan.reserved().values()) == {"c2"}


def test_host_local_with_ipv6(lan: Lan, container: Netns) -> None:
    lan.has("fd00:64::1/125")
    assert got(lan.runtime.add("bridge", host_local(lan, V6), container).result) == ["fd00:64::2"]


def test_host_local_without_the_key(lan: Lan, container: Netns) -> None:
    lan.has("10.64.0.1/29")
    reply = lan.runtime.add("bridge", host_local(lan, V4, check=None), container)
    assert got(reply.result) == ["10.64.0.1"]


def test_host_local_when_others_have_all(lan: Lan, container: Netns) -> None:
    lan.has(*(f"10.64.0.{i}/29" for i in range(1, 6)))
    reply = lan.runtime.add("bridge", host_local(lan, V4), container)
    reply.failed(999, "no IP addresses available in range set")
    assert set(lan.reserved().values()) == {"conflict"}


def test_host_local_does_not_exchange_a_requested_address(lan: Lan, container: Netns) -> None:
    lan.has("10.64.0.2/29")
    args = "IgnoreUnknown=1;IP=10.64.0.2"
    reply = lan.runtime.add("bridge", host_local(lan, V4), container, args=args)
    reply.failed(999, "requested IP address 10.64.0.2 is in use on the link")
    assert lan.reserved() == {}


def test_host_local_keeps_a_requested_address(lan: Lan, container: Netns) -> None:
    """One address is exchanged, and the requested one of the other range set stays."""
    lan.has("fd00:64::1/125")
    args = "IgnoreUnknown=1;IP=10.64.0.4"
    reply = lan.runtime.add("bridge", host_local(lan, V4, V6), container, args=args)
    assert got(reply.result) == ["10.64.0.4", "fd00:64::2"]


def test_host_local_requires_the_gateways(lan: Lan, container: Netns) -> None:
    conf = host_local(lan, V4, check={**FAST, "gateway": True})
    reply = lan.runtime.add("bridge", conf, container)
    reply.failed(999, "gateway 10.64.0.6 does not answer on the link of eth0")
    assert lan.reserved() == {}
    lan.has("10.64.0.6/29")
    assert len(got(lan.runtime.add("bridge", conf, container).result)) == 1


@pytest.mark.parametrize(("key", "value"), [("probes", 0), ("probes", 11), ("interval", 5001)])
def test_host_local_refuses_what_makes_no_sense(
    lan: Lan, container: Netns, key: str, value: int
) -> None:
    reply = lan.runtime.add("bridge", host_local(lan, V4, check={key: value}), container)
    reply.failed(999, f"invalid conflictCheck.{key} {value}")


@requires_kernel("macvlan")
def test_on_a_lan_beyond_the_node(
    runtime: Runtime, container: Netns, outside: Netns, tmp_path: Path
) -> None:
    plug(runtime.host, outside)
    lan = Lan.__new__(Lan)
    lan.runtime, lan.outside, lan.directory = runtime, outside, tmp_path
    found = json.loads(outside.ip("-j", "link"))
    (name,) = [each["ifname"] for each in found if each["ifname"] != "lo"]
    for text in ("10.64.0.3/29", "fd00:64::1/125"):  # which would be the first ones
        outside.ip("addr", "add", text, "dev", name, *(["nodad"] if ":" in text else []))
    conf = {**lan.conf(V4, V6), "type": "macvlan", "master": MASTER}
    reply = runtime.add("macvlan", conf, container)
    assert got(reply.result) == ["10.64.0.4", "fd00:64::2"]


def test_whereabouts_asks_too(lan: Lan, container: Netns) -> None:
    lan.has("10.64.0.1/29")
    conf = lan.conf(V4)
    ipam = {key: each for key, each in conf["ipam"].items() if key[:5] not in ("range", "block")}
    conf["ipam"] = {**ipam, "type": "whereabouts", "range": V4, "range_end": "10.64.0.2"}
    for _ in range(3):  # a block is one address, and which comes first a hash decides
        assert got(lan.runtime.add("bridge", conf, container).result) == ["10.64.0.2"]
        lan.runtime.delete("bridge", conf, container).succeeded()


# --- packets --------------------------------------------------------------------------------------

MINE, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
A, B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])


def arp(operation: int, mac: bytes, sender: bytes, target: bytes) -> bytes:
    return conflict._ARP.pack(1, 0x800, 6, 4, operation, mac, sender, bytes(6), target)


@pytest.mark.parametrize(
    ("packet", "claimed"),
    [
        (arp(2, OTHER, A, B), A),  # an answer
        (arp(1, OTHER, A, B), A),  # a question of who has A
        (arp(1, OTHER, A, A), A),  # an announcement
        (arp(2, MINE, A, B), A),  # of another container of an ipvlan's master
        (arp(1, OTHER, bytes(4), A), A),  # the same probe
        (arp(1, MINE, bytes(4), A), None),  # our own, returned by a switch
        (arp(2, OTHER, bytes(4), A), None),
        (arp(1, OTHER, A, B)[:20], None),
        (b"", None),
    ],
)
def test_what_an_arp_packet_shows(packet: bytes, claimed: bytes | None) -> None:
    assert conflict.claimed_arp(packet, MINE) == claimed


def test_the_questions_are_as_others_make_them() -> None:
    """scapy takes them apart, checksums included."""
    to, data = conflict._question(MINE, A)
    assert to == b"\xff" * 6
    packet = ARP(data)
    assert (packet.op, packet.psrc, packet.pdst) == (1, "0.0.0.0", "10.0.0.1")
    target = bytes.fromhex("fd000064000000000000000000abcdef")
    to, data = conflict._question(MINE, target)
    assert to.hex() == "3333ffabcdef"
    packet = IPv6(data)
    assert (packet.src, packet.dst, packet.hlim) == ("::", "ff02::1:ffab:cdef", 255)
    sent = packet[ICMPv6ND_NS].cksum
    del packet[ICMPv6ND_NS].cksum
    assert IPv6(bytes(packet))[ICMPv6ND_NS].cksum == sent
