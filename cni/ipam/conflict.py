"""Does another host on the link have an address? Probes from the container's interface.

    IPv4   ARP probes (RFC 5227 §2.1.1): sender address 0, so that nobody's cache is changed
    IPv6   neighbour solicitations of duplicate address detection (RFC 4862 §5.4): from ::

An answer, or the same probe of another host, means that the address is taken. A gateway is searched
in the same way. The link is set down afterwards: the plugin that made it sets it up, and announces
its addresses then.
"""

from __future__ import annotations

import struct
from _socket import AF_PACKET, SOCK_DGRAM
from collections.abc import Collection
from select import POLLIN, poll
from time import monotonic
from typing import TYPE_CHECKING

from .. import interrupts
from ..kernel import link
from ..kernel.errors import KernelError
from ..protocol.errors import CNIError

if TYPE_CHECKING:
    from _socket import socket

    from ..netns import Namespace

_ETH_P_IP, _ETH_P_ARP, _ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0
_PACKET_OUTGOING = 4
_BROADCAST, _ALL_NODES = b"\xff" * 6, b"\x33\x33\x00\x00\x00\x01"
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_REQUEST = 1
_SOLICITATION, _ADVERTISEMENT, _ICMPV6 = 135, 136, 58
_CARRIER = 5.0  # seconds until a link that is set up carries packets


def answers(
    netns: Namespace, ifname: str, addresses: Collection[bytes], probes: int, interval: float
) -> dict[bytes, str]:
    """Hosts on the link that have one of the addresses: address (packed) → MAC.

    Sends `probes` probes, one every `interval` seconds, and waits as long after the last one; stops
    early if all addresses are answered. Raises CNIError if the link is missing or has no carrier.
    """
    try:
        sock = netns.netlink()
        its = link.find(sock, ifname)
        if its is None:
            raise CNIError(
                f"{ifname} does not exist yet, so that conflictCheck cannot ask on its link",
                "the plugin that calls IPAM makes the interface later: remove conflictCheck",
            )
        with netns.subscribe(link.RTNLGRP_LINK) as events:
            if not its.up:
                link.change(sock, its.index, up=True)
            try:
                with interrupts.waiting():
                    ready = link.wait_operational(sock, events, its.index, _CARRIER)
                if not ready.carrier:
                    raise CNIError(
                        f"{ifname} has no carrier, so that conflictCheck cannot ask on its link",
                        "look at the link that the interface is made on",
                    )
                return _ask(netns, ready, addresses, probes, interval)
            finally:
                if not its.up:
                    link.change(sock, its.index, up=False)
    except (KernelError, OSError) as error:
        raise CNIError(f"conflictCheck cannot ask on {ifname}: {error}") from None


def _ask(
    netns: Namespace, its: link.Link, addresses: Collection[bytes], probes: int, interval: float
) -> dict[bytes, str]:
    mac = link.parse_mac(its.mac)
    sockets = {}
    answered: dict[bytes, str] = {}
    try:
        for width, protocol in ((4, _ETH_P_ARP), (16, _ETH_P_IPV6)):
            if any(len(each) == width for each in addresses):
                sockets[width] = _open(netns, its, protocol)
        for _ in range(probes):
            for packed in addresses:
                if packed not in answered:
                    to, data = _question(mac, packed)
                    address = (its.name, _protocol(packed), 0, 0, to)
                    sockets[len(packed)].sendto(data, address)
            _listen(sockets, mac, addresses, answered, interval)
            if len(answered) == len(set(addresses)):
                break
    finally:
        for each in sockets.values():
            each.close()
    return answered


def _open(netns: Namespace, its: link.Link, protocol: int) -> socket:
    sock = netns.socket(AF_PACKET, SOCK_DGRAM)
    try:
        if protocol == _ETH_P_IPV6:
            # a host that defends its address answers a probe to all
            # nodes (RFC 4862 §5.4, RFC 4861 §7.2.4)
            wanted = struct.pack("=iHH8s", its.index, _PACKET_MR_MULTICAST, 6, _ALL_NODES)
            sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, wanted)
        sock.bind((its.name, protocol))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen(
    sockets: dict[int, socket],
    mac: bytes,
    addresses: Collection[bytes],
    found: dict[bytes, str],
    seconds: float,
) -> None:
    """Read packets for so many seconds, or until all addresses are found."""
    watch = poll()
    for each in sockets.values():
        watch.register(each, POLLIN)
    deadline = monotonic() + seconds
    while (left := deadline - monotonic()) > 0 and len(found) < len(set(addresses)):
        with interrupts.waiting():
            watch.poll(left * 1000)
        for width, sock in sockets.items():
            for _ in range(256):  # so that a busy link cannot hold this loop
                try:
                    data, source = sock.recvfrom(2048)
                except BlockingIOError:
                    break
                # a packet socket also receives what this host sends
                if source[2] == _PACKET_OUTGOING:
                    continue
                packed = claimed_arp(data, mac) if width == 4 else claimed_ndp(data, source[4], mac)
                if packed is not None and packed in addresses:
                    found.setdefault(packed, link.format_mac(bytes(source[4])))


def _protocol(packed: bytes) -> int:
    return _ETH_P_ARP if len(packed) == 4 else _ETH_P_IPV6


def _question(mac: bytes, packed: bytes) -> tuple[bytes, bytes]:
    """The probe for an address: its destination MAC, and the packet without Ethernet header."""
    if len(packed) == 4:
        fields = (1, _ETH_P_IP, 6, 4, _REQUEST, mac, bytes(4), bytes(6), packed)
        return _BROADCAST, _ARP.pack(*fields)
    # the solicited-node multicast address (RFC 4291 §2.7.1)
    group = b"\xff\x02" + bytes(9) + b"\x01\xff" + packed[13:]
    body = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + packed
    total = _checksum(bytes(16) + group + struct.pack("!II", len(body), _ICMPV6) + body)
    body = body[:2] + struct.pack("!H", total) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + bytes(16) + group
    return b"\x33\x33" + group[12:], header + body


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of data of even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def claimed_arp(data: bytes, mac: bytes) -> bytes | None:
    """The address that an ARP packet shows to be taken; None if it shows none.

    `mac` is this host's own: a switch may send its probes back.
    """
    if len(data) < _ARP.size:
        return None
    kind, protocol, _, width, operation, its_mac, sender, _, target = _ARP.unpack_from(data)
    if (kind, protocol, width) != (1, _ETH_P_IP, 4):
        return None
    if any(sender):
        return bytes(sender)
    return bytes(target) if operation == _REQUEST and its_mac != mac else None


def claimed_ndp(data: bytes, source: bytes, mac: bytes) -> bytes | None:
    """As claimed_arp, for an IPv6 packet that came from the MAC `source`."""
    # with another hop limit it did not come from this link (RFC 4861 §7.1)
    if len(data) < 64 or data[0] >> 4 != 6 or data[6] != _ICMPV6 or data[7] != 255:
        return None
    kind, sender, target = data[40], data[8:24], data[48:64]
    if kind == _ADVERTISEMENT:
        return target
    is_probe = kind == _SOLICITATION and not any(sender)
    return target if is_probe and bytes(source) != mac else None
