"""IP addresses on links (rtnetlink(7), linux/if_addr.h)."""

from __future__ import annotations

import struct
import sys
from _socket import AF_INET, AF_INET6
from collections.abc import Callable
from errno import EADDRNOTAVAIL, ENODEV
from time import monotonic
from typing import NamedTuple

from .. import interrupts
from ..protocol.address import Prefix
from . import netlink as nl
from . import uapi
from .errors import DuplicateAddress, NetlinkError
from .netlink import Netlink

RTNLGRP_IPV6_IFADDR = uapi.RTNLGRP_IPV6_IFADDR

SCOPE_UNIVERSE = uapi.RT_SCOPE_UNIVERSE
IFA_F_NODAD = uapi.IFA_F_NODAD
IFA_F_DADFAILED = uapi.IFA_F_DADFAILED
IFA_F_TENTATIVE = uapi.IFA_F_TENTATIVE

_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_FAMILIES = (bytes((AF_INET,)), bytes((AF_INET6,)))


class Address(NamedTuple):
    """An address as the kernel holds it: `flags` are IFA_F_*, `lifetimes` an ifa_cacheinfo.

    `peer` is the address of the other end (packed); empty if that equals the address itself.
    """

    prefix: Prefix
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants
    scope: int
    flags: int
    lifetimes: bytes = b""
    peer: bytes = b""

    @property
    def usable(self) -> bool:
        """Is it neither tentative nor refused by duplicate address detection?"""
        return not self.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)

    @property
    def is_autoconf(self) -> bool:
        """Did the kernel derive it from a router's prefix? False for temporary ones (RFC 8981)."""
        made_by_hand = uapi.IFA_F_PERMANENT | uapi.IFA_F_TEMPORARY
        is_v6 = self.prefix.family == AF_INET6
        return is_v6 and self.scope == SCOPE_UNIVERSE and not self.flags & made_by_hand


def show(sock: Netlink, index: int = 0, family: int = 0) -> list[Address]:
    """The addresses of a link (0: of all links), of a family (0: of both)."""
    entries = []
    for data in sock.dump(uapi.RTM_GETADDR, _IFADDR.pack(family, 0, 0, 0, index)):
        if data[:1] not in _FAMILIES:
            continue  # without a family the kernel also lists those of other protocols
        entry = _parse(data)
        if index in (0, entry.index):
            entries.append(entry)
    return entries


def _parse(data: bytes) -> Address:
    _, length, flags, scope, index = nl.unpack(_IFADDR, data)
    a = nl.attr_map(data, _IFADDR.size)
    remote = a.get(uapi.IFA_ADDRESS, b"")
    # IFA_LOCAL is the link's own address; IPv6 has it only if there is a peer
    ip = a.get(uapi.IFA_LOCAL) or remote or b"\0\0\0\0"
    # the header has room for the lowest eight flags only
    flags = nl.get_u32(a.get(uapi.IFA_FLAGS), flags)
    lifetimes, peer = a.get(uapi.IFA_CACHEINFO, b""), remote if remote != ip else b""
    return Address(Prefix(ip, length), index, scope, flags, lifetimes, peer)


def add(sock: Netlink, index: int, prefix: Prefix, *, nodad: bool = False) -> None:
    """Put an address on a link. Raises NetlinkError (EEXIST when it is there).

    IPv4 gets the broadcast address of its subnet for prefixes shorter than /31. `nodad` makes an
    IPv6 address usable at once, without duplicate address detection.
    """
    flags = IFA_F_NODAD if nodad and prefix.family == AF_INET6 else 0
    message = _message(index, prefix, flags, broadcast=True)
    sock.request(uapi.RTM_NEWADDR, message, nl.NLM_F_CREATE | nl.NLM_F_EXCL)


def put_back(sock: Netlink, entry: Address) -> None:
    """Give a link an IPv6 address again, with its flags and lifetimes. Raises NetlinkError.

    One that was usable before is usable at once: duplicate address detection is not repeated.
    """
    message = _message(entry.index, entry.prefix, peer=entry.peer)
    message += nl.u32(uapi.IFA_FLAGS, entry.flags | (IFA_F_NODAD if entry.usable else 0))
    if entry.lifetimes:
        message += nl.attr(uapi.IFA_CACHEINFO, entry.lifetimes)
    sock.request(uapi.RTM_NEWADDR, message, nl.NLM_F_CREATE | nl.NLM_F_REPLACE)


def delete(sock: Netlink, index: int, prefix: Prefix) -> None:
    """Take an address off a link; one that is gone already is success. Raises NetlinkError.

    The kernel identifies an address by itself and its peer. The peer mostly equals the address;
    if the link has none such, the one with another peer is looked up and deleted.
    """
    if _is_deleted(sock, index, prefix):
        return
    for entry in show(sock, index, prefix.family):
        if entry.prefix == prefix and entry.peer:
            _is_deleted(sock, index, prefix, entry.peer)


def _is_deleted(sock: Netlink, index: int, prefix: Prefix, peer: bytes = b"") -> bool:
    """Delete an address; False if the link has none with this peer."""
    try:
        sock.request(uapi.RTM_DELADDR, _message(index, prefix, peer=peer))
    except NetlinkError as error:
        if error.errno == ENODEV:
            return True  # the link is gone, and its addresses with it
        if error.errno != EADDRNOTAVAIL:
            raise
        return False
    return True


def _message(
    index: int, prefix: Prefix, flags: int = 0, broadcast: bool = False, peer: bytes = b""
) -> bytes:
    out = _IFADDR.pack(prefix.family, prefix.length, flags, 0, index)
    out += nl.attr(uapi.IFA_LOCAL, prefix.ip) + nl.attr(uapi.IFA_ADDRESS, peer or prefix.ip)
    # a /31 or /32 has no broadcast address (RFC 3021)
    if broadcast and prefix.family == AF_INET and prefix.length < 31:
        out += nl.attr(uapi.IFA_BROADCAST, prefix.broadcast)
    return out


def settle(sock: Netlink, subscribe: Callable[[], Netlink], index: int, timeout: float) -> bool:
    """Wait until no IPv6 address of the link is tentative; False when time ran out first.

    `subscribe` opens a socket that is subscribed to RTNLGRP_IPV6_IFADDR; it is called only if an
    address is tentative. The kernel's notification ends the wait; nothing is polled.
    Raises DuplicateAddress or Terminated.
    """
    if not _tentative(sock, index):
        return True
    deadline = monotonic() + timeout
    with subscribe() as events:
        while _tentative(sock, index):
            left = deadline - monotonic()
            if left <= 0:
                return False
            # the wait may take many seconds, and nothing is being changed
            interrupts.check()
            events.events(min(left, 0.25))
    return True


def detection(sock: Netlink, index: int) -> tuple[int, int]:
    """How far duplicate address detection is on a link: as it goes on, one of two numbers changes.

    They are the tentative addresses, and the ICMPv6 messages that the link has sent: each probe is
    one (RFC 4862 §5.4.2). Raises NetlinkError.
    """
    tentative = sum(bool(e.flags & IFA_F_TENTATIVE) for e in show(sock, index, AF_INET6))
    data = sock.get(uapi.RTM_GETLINK, _IFINFO.pack(0, 0, index, 0, 0))
    families = nl.attr_map(nl.attr_map(data, _IFINFO.size).get(uapi.IFLA_AF_SPEC, b""))
    counts = nl.attr_map(families.get(AF_INET6, b"")).get(uapi.IFLA_INET6_ICMP6STATS, b"")
    start = 8 * uapi.ICMP6_MIB_OUTMSGS
    return tentative, int.from_bytes(counts[start : start + 8], sys.byteorder)


def _tentative(sock: Netlink, index: int) -> bool:
    entries = show(sock, index, AF_INET6)
    for entry in entries:
        if entry.flags & IFA_F_DADFAILED:
            raise DuplicateAddress(entry.prefix)
    return any(entry.flags & IFA_F_TENTATIVE for entry in entries)
