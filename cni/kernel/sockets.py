"""Sockets of this namespace on which somebody waits for packets (NETLINK_SOCK_DIAG, sock_diag(7)).

As `ss -ltun` shows them. A request names one port, and the kernel lists the sockets bound to it, so
the node's other sockets need not be read, as they would from /proc/net/tcp.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_INET, AF_INET6
from typing import NamedTuple

from . import netlink as nl
from .netlink import Netlink

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
INET_DIAG_SKV6ONLY = 11  # linux/inet_diag.h
IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP = 6, 17, 132

# States, as bits: a UDP socket that is bound, but not connected, is in TCP_CLOSE.
_LISTEN, _CLOSE = 1 << 10, 1 << 7
# struct inet_diag_req_v2: family, protocol, ext, states; in it struct inet_diag_sockid: ports,
# addresses, interface, and as cookie INET_DIAG_NOCOOKIE
_REQUEST = struct.Struct("=BBBxI2s2x32x4x8s")
# struct inet_diag_msg: family, state, timer, retrans; the same; expires, queues, user, inode
_ANSWER = struct.Struct("=B3x2s2x16s16x4x8x12xII")
_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96


class Listener(NamedTuple):
    """A socket on `port`. `address` is packed; `::` and 0.0.0.0 mean every address of the family.

    `is_dual`: an IPv6 socket that also takes IPv4. `user` is the owner's uid; `inode` is the number
    in the links of /proc/PID/fd.
    """

    address: bytes
    port: int
    is_dual: bool
    user: int
    inode: int

    def takes(self, address: bytes, size: int) -> bool:
        """Does the socket get packets to `address`, which has `size` bytes? An empty `address`
        means any one of that size.
        """
        if len(self.address) != size:
            return self.is_dual and size == 4
        return not any(self.address) or not address or self.address == address


def open_socket() -> Netlink:
    """A socket for such questions about this namespace."""
    return Netlink(NETLINK_SOCK_DIAG)


def listening(sock: Netlink, protocol: int, port: int) -> list[Listener]:
    """The sockets that wait for packets to a port, TCP's, UDP's or SCTP's, of both families.

    Raises NetlinkError: ENOENT where the kernel cannot tell.
    """
    if protocol == IPPROTO_SCTP and not os.path.exists("/proc/net/sctp"):
        return []  # the kernel has no SCTP; to ask could load it
    states = _CLOSE if protocol == IPPROTO_UDP else _LISTEN
    listeners = []
    for family in (AF_INET, AF_INET6):
        number = port.to_bytes(2, "big")
        request = _REQUEST.pack(family, protocol, 0, states, number, b"\xff" * 8)
        for data in sock.dump(SOCK_DIAG_BY_FAMILY, request):
            listener = _parse(data)
            if listener.port == port:
                listeners.append(listener)
    return listeners


def _parse(data: bytes) -> Listener:
    family, port, address, user, inode = nl.unpack(_ANSWER, data)
    is_dual = False
    if family == AF_INET:
        address = address[:4]
    elif address[:12] == _MAPPED:
        address = address[12:]
    elif not any(address):
        is_dual = not nl.get_byte(nl.attr_map(data, _ANSWER.size).get(INET_DIAG_SKV6ONLY))
    return Listener(address, int.from_bytes(port, "big"), is_dual, user, inode)


def processes_of(inode: int, processes: list[str]) -> list[str]:
    """Which of these processes (names in /proc) have the socket open, as far as we may see that."""
    wanted = f"socket:[{inode}]"
    return [pid for pid in processes if _has_open(pid, wanted)]


def _has_open(pid: str, wanted: str) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return False  # it has ended, or we may not look into it
    for name in names:
        try:
            if os.readlink(f"{directory}/{name}") == wanted:
                return True
        except OSError:
            continue
    return False
