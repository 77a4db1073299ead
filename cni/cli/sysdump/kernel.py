"""The network of a namespace as text, a line each, read over netlink: no tool is needed.

Written as ip(8), bridge(8) and tc(8) would write it, where that is short. Each kind is read to at
most `_MOST` entries: a container may fill its own namespace with whatever it likes.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, AF_UNSPEC
from collections.abc import Callable, Iterator
from itertools import islice

from cni.kernel import link, uapi
from cni.kernel import netlink as nl
from cni.kernel.errors import KernelError, NetlinkError
from cni.kernel.netlink import Netlink
from cni.protocol.address import format_ip

_MOST = 20_000  # entries of a kind
_BUFFER = 1 << 16
_HEADER = struct.Struct("=IHHII")
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, lengths, tos, table, protocol, scope, type, flags
_NEXTHOP = struct.Struct("=HBBi")
_RULE = struct.Struct("=BBBBBxxBI")  # family, dst len, src len, tos, table, action, flags
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_TCMSG = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
# linux/neighbour.h, linux/rtnetlink.h
_RTM_GETNEIGH = 30
_NDA_DST, _NDA_LLADDR = 1, 2
_RTA_SRC, _FRA_DST, _FRA_IIFNAME = 2, 1, 3
_NEIGHBOUR_STATES = [
    "INCOMPLETE",
    "REACHABLE",
    "STALE",
    "DELAY",
    "PROBE",
    "FAILED",
    "NOARP",
    "PERMANENT",
]
_TYPES = [
    "unspec",
    "unicast",
    "local",
    "broadcast",
    "anycast",
    "multicast",
    "blackhole",
    "unreachable",
    "prohibit",
]
_TABLES = {253: "default", 254: "main", 255: "local"}
_PROTOCOLS = {1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 16: "dhcp"}
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_FAMILIES = (AF_INET, AF_INET6)
_ADDRESS_FLAGS = [
    "secondary",
    "nodad",
    "optimistic",
    "dadfailed",
    "home",
    "deprecated",
    "tentative",
    "permanent",
]


def sections() -> Iterator[tuple[str, str]]:
    """Title and text of each kind, of the namespace that this process is in."""
    with Netlink() as sock:
        names = {each.index: each.name for each in link.list_all(sock)}
    for title, lines in _KINDS.items():
        try:
            with Netlink() as sock:  # a dump that is given up leaves answers in its socket
                listed = list(islice(lines(sock, names), _MOST))
        except (KernelError, OSError) as error:
            yield title, f"cannot be read: {error}\n"
            continue
        rest = [f"… more than {_MOST} are not shown"] if len(listed) == _MOST else []
        yield title, "".join(f"{line}\n" for line in [*listed, *rest])


def text() -> str:
    """All of it, with headings."""
    return "".join(f"== {title}\n{found}\n" for title, found in sections())


def _dump(sock: Netlink, kind: int, payload: bytes) -> Iterator[bytes]:
    """As Netlink.dump, without keeping what came. Raises NetlinkError."""
    sequence = sock.next_sequence()
    head = _HEADER.pack(16 + len(payload), kind, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, sequence, 0)
    sock.sock.send(head + payload)
    while True:
        for answer, _, number, data in nl.split(sock.sock.recv(_BUFFER)):
            # An answer to an earlier request.
            if number != sequence:
                continue
            code = int.from_bytes(data[:4], "little", signed=True)
            if answer == nl.NLMSG_ERROR and code:
                raise NetlinkError(-code)
            if answer in (nl.NLMSG_ERROR, nl.NLMSG_DONE):
                return
            yield data


def _links(sock: Netlink, names: dict[int, str]) -> Iterator[str]:
    request = struct.pack("=BxHiII", AF_UNSPEC, 0, 0, 0, 0)
    # Counters are most of an answer, and not shown.
    request += nl.u32(uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_SKIP_STATS)
    for data in _dump(sock, uapi.RTM_GETLINK, request):
        each = link.parse(data)
        facts = [
            f"{each.index}: {each.name} {each.kind or 'device'}",
            "up" if each.up else "down",
            f"flags {each.flags:#x} mtu {each.mtu} state {each.operstate_text}",
            f"address {each.mac}" if each.mac else "",
            f"master {names.get(each.master, each.master)}" if each.master else "",
            f"peer {each.peer}" if each.peer else "",
            f"nsid {each.peer_nsid}" if each.peer_nsid is not None else "",
            f"qlen {each.txqlen}",
            f"promiscuity {each.promiscuity}" if each.promiscuity else "",
            f"group {each.group}" if each.group else "",
            "hairpin" if each.hairpin else "",
            "isolated" if each.isolated else "",
            "vlan_filtering" if each.kind == "bridge" and each.vlan_filtering else "",
            *(f"altname {name}" for name in each.altnames),
            f'alias "{each.alias}"' if each.alias else "",
        ]
        yield " ".join(fact for fact in facts if fact)


def _addresses(sock: Netlink, names: dict[int, str]) -> Iterator[str]:
    for data in _dump(sock, uapi.RTM_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
        family, length, flags, scope, index = nl.unpack(_IFADDR, data)
        if family not in _FAMILIES:
            continue
        attributes = nl.attr_map(data, _IFADDR.size)
        ip = attributes.get(uapi.IFA_LOCAL) or attributes.get(uapi.IFA_ADDRESS, b"")
        bits = [name for bit, name in enumerate(_ADDRESS_FLAGS) if flags >> bit & 1]
        peer = attributes.get(uapi.IFA_ADDRESS, ip)
        with_peer = f" peer {_ip(peer)}" if peer != ip else ""
        shown = f"{names.get(index, index)}: {_ip(ip)}/{length}{with_peer}"
        yield f"{shown} scope {_SCOPES.get(scope, scope)} {' '.join(bits)}".rstrip()


def _routes(sock: Netlink, names: dict[int, str]) -> Iterator[str]:
    for data in _dump(sock, uapi.RTM_GETROUTE, _RTMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
        family, dst_len, src_len, tos, table, proto, scope, kind, flags = nl.unpack(_RTMSG, data)
        if family not in _FAMILIES:
            continue
        a = nl.attr_map(data, _RTMSG.size)
        # The header has one byte for the table; larger numbers are in the attribute.
        table = nl.get_u32(a.get(uapi.RTA_TABLE), table)
        target = f"{_ip(a[uapi.RTA_DST])}/{dst_len}" if uapi.RTA_DST in a else "default"
        facts = [
            f"{_at(_TYPES, kind)} {'-6 ' if family == AF_INET6 else ''}{target}",
            f"from {_ip(a[_RTA_SRC])}/{src_len}" if _RTA_SRC in a else "",
            f"tos {tos}" if tos else "",
            *_hop(a, names),
            f"src {_ip(a[uapi.RTA_PREFSRC])}" if uapi.RTA_PREFSRC in a else "",
            f"table {_TABLES.get(table, table)} proto {_PROTOCOLS.get(proto, proto)}",
            f"scope {_SCOPES.get(scope, scope)}",
            f"metric {nl.get_u32(a[uapi.RTA_PRIORITY])}" if uapi.RTA_PRIORITY in a else "",
            "onlink" if flags & uapi.RTNH_F_ONLINK else "",
            *_hops(a.get(uapi.RTA_MULTIPATH, b""), names),
        ]
        yield " ".join(fact for fact in facts if fact)


def _hop(attributes: dict[int, bytes], names: dict[int, str]) -> Iterator[str]:
    if uapi.RTA_GATEWAY in attributes:
        yield f"via {_ip(attributes[uapi.RTA_GATEWAY])}"
    if uapi.RTA_OIF in attributes:
        index = nl.get_u32(attributes[uapi.RTA_OIF])
        yield f"dev {names.get(index, index)}"


def _hops(data: bytes, names: dict[int, str]) -> Iterator[str]:
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, _, weight, index = _NEXTHOP.unpack_from(data, offset)
        if length < _NEXTHOP.size:
            return
        a = nl.attr_map(data[offset : offset + length], _NEXTHOP.size)
        via = " ".join(_hop(a, names))
        yield f"nexthop {via} dev {names.get(index, index)} weight {weight + 1}"
        # RTNH_ALIGN
        offset += length + 3 & ~3


def _rules(sock: Netlink, names: dict[int, str]) -> Iterator[str]:
    del names
    for data in _dump(sock, uapi.RTM_GETRULE, _RULE.pack(AF_UNSPEC, 0, 0, 0, 0, 0, 0)):
        family, dst_len, src_len, tos, table, action, _ = nl.unpack(_RULE, data)
        if family not in _FAMILIES:
            continue
        a = nl.attr_map(data, _RULE.size)
        source = f"{_ip(a[uapi.FRA_SRC])}/{src_len}" if uapi.FRA_SRC in a else "all"
        mark = nl.get_u32(a.get(uapi.FRA_FWMARK))
        mask = nl.get_u32(a.get(uapi.FRA_FWMASK))
        table = nl.get_u32(a.get(uapi.FRA_TABLE), table)
        facts = [
            f"{nl.get_u32(a.get(uapi.FRA_PRIORITY))}:{' -6' if family == AF_INET6 else ''}",
            f"from {source}",
            f"to {_ip(a[_FRA_DST])}/{dst_len}" if _FRA_DST in a else "",
            f"tos {tos}" if tos else "",
            f"fwmark {mark:#x}/{mask:#x}" if uapi.FRA_FWMARK in a else "",
            f"iif {nl.get_text(a[_FRA_IIFNAME])}" if _FRA_IIFNAME in a else "",
            "l3mdev" if uapi.FRA_L3MDEV in a else "",
            f"lookup {_TABLES.get(table, table)}"
            if action == uapi.FR_ACT_TO_TBL
            else f"action {action}",
        ]
        yield " ".join(fact for fact in facts if fact)


def _neighbours(sock: Netlink, names: dict[int, str]) -> Iterator[str]:
    for data in _dump(sock, _RTM_GETNEIGH, _NDMSG.pack(0, 0, 0, 0, 0)):
        family, index, state, _, _ = nl.unpack(_NDMSG, data)
        if family not in _FAMILIES:
            continue
        a = nl.attr_map(data, _NDMSG.size)
        states = [name for bit, name in enumerate(_NEIGHBOUR_STATES) if state >> bit & 1]
        mac = a.get(_NDA_LLADDR, b"").hex(":")
        shown = f"{_ip(a.get(_NDA_DST, b''))} dev {names.get(index, index)}"
        yield f"{shown} {f'lladdr {mac} ' if mac else ''}{' '.join(states) or 'NONE'}"


def _queueing(sock: Netlink, names: dict[int, str]) -> Iterator[str]:
    for data in _dump(sock, uapi.RTM_GETQDISC, _TCMSG.pack(AF_UNSPEC, 0, 0, 0, 0)):
        _, index, handle, parent, _ = nl.unpack(_TCMSG, data)
        kind = nl.get_text(nl.attr_map(data, _TCMSG.size).get(uapi.TCA_KIND))
        yield f"{kind} {handle >> 16:x}: dev {names.get(index, index)} parent {_parent(parent)}"


def _parent(number: int) -> str:
    return {0xFFFFFFFF: "root", 0xFFFFFFF1: "ingress"}.get(
        number, f"{number >> 16:x}:{number & 0xFFFF:x}"
    )


def _ip(packed: bytes) -> str:
    return format_ip(packed) if len(packed) in (4, 16) else packed.hex() or "?"


def _at(names: list[str], number: int) -> str:
    return names[number] if number < len(names) else f"type {number}"


_KINDS: dict[str, Callable[[Netlink, dict[int, str]], Iterator[str]]] = {
    "links": _links,
    "addresses": _addresses,
    "routes": _routes,
    "rules": _rules,
    "neighbours": _neighbours,
    "queueing": _queueing,
}
