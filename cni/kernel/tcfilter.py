"""Traffic control: filters, which send packets to a class or to another device (linux/pkt_cls.h).

u32 is what the reference uses; a kernel without it has matchall and flower.
"""

from __future__ import annotations

import struct
from _socket import htons
from errno import ENOENT
from typing import NamedTuple

from ..protocol.address import Prefix
from . import netlink as nl
from . import tc, uapi
from .errors import NetlinkError
from .netlink import Netlink

# By the size of an address, and whether it is the source; the mask of each is the next number.
_FLOWER_ADDRESS = {
    (4, True): uapi.TCA_FLOWER_KEY_IPV4_SRC,
    (4, False): uapi.TCA_FLOWER_KEY_IPV4_DST,
    (16, True): uapi.TCA_FLOWER_KEY_IPV6_SRC,
    (16, False): uapi.TCA_FLOWER_KEY_IPV6_DST,
}
_ACTIONS = {"u32": uapi.TCA_U32_ACT, "matchall": uapi.TCA_MATCHALL_ACT}

_SEL = struct.Struct("=BBBxHHhhI")  # flags, offshift, nkeys, offmask, off, offoff, hoff, hmask
_KEY = struct.Struct("=4s4sii")  # mask, value, offset, offset mask
_OFFSETS = {(4, True): 12, (4, False): 16, (16, True): 8, (16, False): 24}  # in the IP header

# index, capabilities, what becomes of the packet, references, bindings, action, interface
_MIRRED = struct.Struct("=IIiiiiI")


class Filter(NamedTuple):
    """A filter as the kernel describes it.

    `match` is what its kind matches, comparable to matching()'s; `target` the class that it sends
    to, `redirect` the index of the device, or 0.
    """

    kind: str
    priority: int
    protocol: int
    match: bytes
    target: int
    redirect: int


def redirect(sock: Netlink, index: int, parent: int, device: int, *, priority: int = 1) -> None:
    """Redirect every packet that comes to `parent` to another device. Raises NetlinkError."""
    parms = nl.attr(
        uapi.TCA_MIRRED_PARMS,
        _MIRRED.pack(0, 0, uapi.TC_ACT_STOLEN, 0, 0, uapi.TCA_EGRESS_REDIR, device),
    )
    act = nl.nest(1, nl.text(uapi.TCA_ACT_KIND, "mirred"), nl.nest(uapi.TCA_ACT_OPTIONS, parms))
    u32 = (
        nl.u32(uapi.TCA_U32_CLASSID, tc.handle(1, 1))
        + nl.attr(uapi.TCA_U32_SEL, _selector([(bytes(4), bytes(4), 0)]))
        + nl.nest(uapi.TCA_U32_ACT, act)
    )
    try:
        _add(sock, index, parent, "u32", priority, uapi.ETH_P_ALL, u32)
    except NetlinkError as error:
        if error.errno != ENOENT:
            raise
        options = nl.nest(uapi.TCA_MATCHALL_ACT, act)
        _add(sock, index, parent, "matchall", priority, uapi.ETH_P_ALL, options)


def classify(
    sock: Netlink, index: int, parent: int, subnet: Prefix, *, source: bool, target: int
) -> None:
    """Send packets from (`source`) or to a subnet to the class `target`. Raises NetlinkError.

    IPv6 has priority 15, IPv4 has 16: the kernel wants another priority for each protocol.
    """
    protocol, priority = (uapi.ETH_P_IP, 16) if subnet.is_v4 else (uapi.ETH_P_IPV6, 15)
    try:
        kind = "u32"
        options = nl.u32(uapi.TCA_U32_CLASSID, target)
        options += nl.attr(uapi.TCA_U32_SEL, matching(kind, subnet, source=source))
        _add(sock, index, parent, kind, priority, protocol, options)
    except NetlinkError as error:
        if error.errno != ENOENT:
            raise
        kind = "flower"
        options = nl.u32(uapi.TCA_FLOWER_CLASSID, target) + matching(kind, subnet, source=source)
        _add(sock, index, parent, kind, priority, protocol, options)


def matching(kind: str, subnet: Prefix, *, source: bool) -> bytes:
    """The attributes, or u32's selector, that match packets from or to a subnet."""
    value, size = subnet.network.ip, len(subnet.ip)
    mask = (((1 << subnet.length) - 1) << (size * 8 - subnet.length)).to_bytes(size, "big")
    if kind == "flower":
        ether = nl.u16(
            uapi.TCA_FLOWER_KEY_ETH_TYPE, htons(uapi.ETH_P_IP if subnet.is_v4 else uapi.ETH_P_IPV6)
        )
        if subnet.length == 0:
            return ether  # the kernel drops a mask without bits
        address = _FLOWER_ADDRESS[size, source]
        return ether + nl.attr(address, value) + nl.attr(address + 1, mask)
    words = range(0, max((subnet.length + 31) // 32, 1) * 4, 4)
    at = _OFFSETS[size, source]
    return _selector([(mask[n : n + 4], value[n : n + 4], at + n) for n in words])


def _selector(keys: list[tuple[bytes, bytes, int]]) -> bytes:
    head = _SEL.pack(uapi.TC_U32_TERMINAL, 0, len(keys), 0, 0, 0, 0, 0)
    return head + b"".join(_KEY.pack(mask, value, at, 0) for mask, value, at in keys)


def _add(
    sock: Netlink, index: int, parent: int, kind: str, priority: int, protocol: int, options: bytes
) -> None:
    info = priority << 16 | htons(protocol)
    payload = tc.message(index, 0, parent, info) + nl.text(tc.KIND, kind)
    payload += nl.nest(tc.OPTIONS, options)
    sock.request(uapi.RTM_NEWTFILTER, payload, nl.NLM_F_CREATE | nl.NLM_F_EXCL)


def show(sock: Netlink, index: int, parent: int) -> list[Filter]:
    """The filters of an interface at `parent`; none if it does not exist. Raises NetlinkError."""
    filters = []
    for payload in sock.dump(uapi.RTM_GETTFILTER, tc.message(index, 0, parent)):
        _, own, _, info, attributes = tc.unpack(payload)
        kind = nl.get_text(attributes.get(tc.KIND))
        options = nl.attr_map(attributes.get(tc.OPTIONS, b""))
        if own == 0 or (kind == "u32" and uapi.TCA_U32_SEL not in options):
            continue  # the filter's hash table, not a filter
        classid = uapi.TCA_FLOWER_CLASSID if kind == "flower" else uapi.TCA_U32_CLASSID
        filters.append(
            Filter(
                kind,
                info >> 16,
                htons(info & 0xFFFF),
                _match(kind, options),
                nl.get_u32(options.get(classid)),
                _redirect(options.get(_ACTIONS.get(kind, 0), b"")),
            )
        )
    return filters


def _match(kind: str, options: dict[int, bytes]) -> bytes:
    if kind == "u32":
        return options[uapi.TCA_U32_SEL]
    kept = range(uapi.TCA_FLOWER_KEY_ETH_TYPE, uapi.TCA_FLOWER_KEY_IPV6_DST_MASK + 1)
    return b"".join(nl.attr(key, options[key]) for key in sorted(options) if key in kept)


def _redirect(actions: bytes) -> int:
    """The index of the device to which the actions redirect a packet; 0 if none does."""
    for _, action in nl.attrs(actions):
        fields = nl.attr_map(action)
        if nl.get_text(fields.get(uapi.TCA_ACT_KIND)) == "mirred":
            parms = nl.attr_map(fields.get(uapi.TCA_ACT_OPTIONS, b"")).get(
                uapi.TCA_MIRRED_PARMS, b""
            )
            return int(nl.unpack(_MIRRED, parms)[-1])
    return 0
