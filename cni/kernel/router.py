"""Router advertisements that the kernel has processed (RFC 4861, RFC 8106, linux/rtnetlink.h).

The kernel itself makes addresses and routes of an advertisement. Options that it does not use, such
as DNS servers, it announces to RTNLGRP_ND_USEROPT (RTM_NEWNDUSEROPT).
"""

from __future__ import annotations

import struct
from _socket import AF_INET6

from ..protocol.address import format_ip
from . import netlink as nl
from . import uapi
from .netlink import Netlink

RTNLGRP_ND_USEROPT = uapi.RTNLGRP_ND_USEROPT
SOLICITED = uapi.IF_RS_SENT
ADVERTISED = uapi.IF_RA_RCVD
MANAGED = uapi.IF_RA_MANAGED

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_USEROPT = struct.Struct("=BxHiBBHI")  # family, length of the options, index, ICMP type, code, pads
_RDNSS, _DNSSL = 25, 31  # RFC 8106
SOLICITATION = bytes((133, 0, 0, 0, 0, 0, 0, 0))  # the kernel fills in the checksum


class Names:
    """What routers advertised of DNS: addresses of servers and search domains, in their order."""

    def __init__(self) -> None:
        self.servers: list[str] = []
        self.search: list[str] = []

    def note(self, kind: int, payload: bytes, index: int) -> None:
        """Take in a notification; one of another link than `index`, or a torn one, is ignored."""
        if kind != uapi.RTM_NEWNDUSEROPT or len(payload) < _USEROPT.size:
            return
        family, size, device, *_ = nl.unpack(_USEROPT, payload)
        if family != AF_INET6 or device != index:
            return
        data = payload[_USEROPT.size : _USEROPT.size + size]
        while len(data) >= 8 and 8 * data[1] in range(8, len(data) + 1):
            self._option(data[0], data[2 : 8 * data[1]])
            data = data[8 * data[1] :]

    def _option(self, code: int, body: bytes) -> None:
        """An option without its type and length: two reserved bytes, a lifetime, the values."""
        values = body[6:]
        if code == _RDNSS:
            known = self.servers
            found = [format_ip(values[at : at + 16]) for at in range(0, len(values) - 15, 16)]
        elif code == _DNSSL:
            known, found = self.search, _domains(values)
        else:
            return
        alive = any(body[2:6])  # a lifetime of 0 withdraws what was advertised
        for each in found:
            if alive and each not in known:
                known.append(each)
            elif not alive and each in known:
                known.remove(each)


def _domains(data: bytes) -> list[str]:
    """The names of a search list, which is padded with zeros; empty if the list is torn."""
    names: list[str] = []
    labels: list[str] = []
    while data:
        size, label, data = data[0], data[1 : 1 + data[0]], data[1 + data[0] :]
        if size > 63 or len(label) < size:
            return []
        if size:
            labels.append(label.decode("ascii", "replace"))
        elif labels:
            names.append(".".join(labels))
            labels = []
    return [name for name in names if name.isprintable() and " " not in name and "�" not in name]


def state(sock: Netlink, index: int) -> int:
    """The link's state as flags: SOLICITED, ADVERTISED, MANAGED. Raises NetlinkError."""
    request = _IFINFO.pack(0, 0, index, 0, 0)
    there = nl.attr_map(sock.get(uapi.RTM_GETLINK, request), _IFINFO.size)
    families = nl.attr_map(there.get(uapi.IFLA_AF_SPEC, b""))
    ipv6 = nl.attr_map(families.get(int(AF_INET6), b""))
    return nl.get_u32(ipv6.get(uapi.IFLA_INET6_FLAGS))
