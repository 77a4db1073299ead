"""Tell the neighbours that an address has moved here: gratuitous ARP and unsolicited NA.

A reused address otherwise loses packets until the neighbours' caches expire. Frames are made here
and sent through a packet socket opened in the container's namespace (RFC 5227 §3, RFC 4861 §7.2.6).
"""

from __future__ import annotations

import struct
from _socket import AF_PACKET, IPPROTO_ICMPV6, SOCK_CLOEXEC, SOCK_RAW, socket

from ..protocol.address import Prefix

ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD

_BROADCAST = b"\xff" * 6
_ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_NA, _OVERRIDE, _TARGET_LLADDR = 136, 0x20000000, 2

SOCKET = (AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)


def frame(mac: bytes, ip: bytes) -> bytes:
    """The Ethernet frame that announces `ip` (packed) at `mac`."""
    return _gratuitous_arp(mac, ip) if len(ip) == 4 else _unsolicited_na(mac, ip)


def send(sock: socket, ifname: str, mac: bytes, prefixes: list[Prefix]) -> None:
    """Announce each address once on a link. Failing to do so is not an error of the ADD."""
    for prefix in prefixes:
        try:
            sock.sendto(frame(mac, prefix.ip), (ifname, 0))
        except OSError:
            return  # link down or gone; whoever needs the address will ask for it


def _gratuitous_arp(mac: bytes, ip: bytes) -> bytes:
    # a request, since some receivers ignore replies nobody asked for (RFC 5227 §3)
    header = _BROADCAST + mac + struct.pack("!H", ETH_P_ARP)
    return header + struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, 1) + mac + ip + bytes(6) + ip


def _unsolicited_na(mac: bytes, ip: bytes) -> bytes:
    option = bytes((_TARGET_LLADDR, 1)) + mac
    body = struct.pack("!I", _OVERRIDE) + ip + option
    length = 4 + len(body)
    pseudo = ip + _ALL_NODES + struct.pack("!II", length, IPPROTO_ICMPV6)
    checksum = _checksum(pseudo + bytes((_NA, 0, 0, 0)) + body)
    icmp = struct.pack("!BBH", _NA, 0, checksum) + body
    ipv6 = struct.pack("!IHBB", 6 << 28, length, IPPROTO_ICMPV6, 255) + ip + _ALL_NODES
    return _ALL_NODES_MAC + mac + struct.pack("!H", ETH_P_IPV6) + ipv6 + icmp


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
