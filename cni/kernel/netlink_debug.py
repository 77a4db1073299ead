"""CNI_DEBUG=netlink: what goes over the netlink sockets of this process, decoded, on stderr.

    > RTM_NEWLINK #7 REQUEST|ACK|EXCL|CREATE 0000000000000000
        IFLA_IFNAME "veth1a2b3c4d"
        IFLA_LINKINFO
            IFLA_INFO_KIND "veth"
    < error #7 EEXIST

``>`` is sent and ``<`` received, ``#`` is the sequence number; behind the flags stands the fixed
part of the message (ifinfomsg(7) and the like) in hexadecimal, then the attributes: by name where
it is known, with their numbers otherwise. Loaded only when the variable is set. Sockets that a
server's worker had made before, and those of executors, are not shown. Of generic netlink only the
sizes are, for private keys of WireGuard go that way.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from errno import errorcode
from typing import TYPE_CHECKING, Any, cast

from .. import stderr
from . import netlink as nl
from . import uapi  # its names are looked up, too

if TYPE_CHECKING:
    from _socket import socket

_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_MOST_SHOWN = 64  # bytes of a value

# For a range of message types: the size of the fixed part, and the prefix of its attributes' names.
_ROUTING = (
    (16, 20, 16, "IFLA_"),  # struct ifinfomsg
    (20, 24, 8, "IFA_"),  # struct ifaddrmsg
    (24, 28, 12, "RTA_"),  # struct rtmsg
    (32, 36, 12, "FRA_"),  # struct fib_rule_hdr
    (36, 48, 20, "TCA_"),  # struct tcmsg
    (108, 112, 16, "IFLA_"),
)
_NFNL_SUBSYS_CTNETLINK = 1
_NFNL_SUBSYS_NFTABLES = 10
_NFTABLES = (  # by the message's number: what it is about
    *(("TABLE",) * 3 + ("CHAIN",) * 3 + ("RULE",) * 3 + ("SET",) * 3 + ("SET_ELEM_LIST",) * 3),
    "GEN",
    "GEN",
)
# What is inside of an attribute: the prefix of the names there.
_INSIDE = {
    "IFLA_LINKINFO": "IFLA_INFO_",
    "IFLA_PROP_LIST": "IFLA_",
    "IFLA_PROTINFO": "IFLA_BRPORT_",
    "NFTA_CHAIN_HOOK": "NFTA_HOOK_",
    "NFTA_RULE_EXPRESSIONS": "NFTA_LIST_",
    "NFTA_SET_ELEM_LIST_ELEMENTS": "NFTA_SET_ELEM_LIST_",
    "NFTA_SET_ELEM_KEY": "NFTA_DATA_",
    "NFTA_SET_ELEM_DATA": "NFTA_DATA_",
    "NFTA_DATA_VERDICT": "NFTA_VERDICT_",
    "NFTA_IMMEDIATE_DATA": "NFTA_DATA_",
    "NFTA_CMP_DATA": "NFTA_DATA_",
    "NFTA_BITWISE_MASK": "NFTA_DATA_",
    "NFTA_BITWISE_XOR": "NFTA_DATA_",
    "CTA_TUPLE_ORIG": "CTA_TUPLE_",
    "CTA_TUPLE_REPLY": "CTA_TUPLE_",
    "CTA_TUPLE_IP": "CTA_IP_",
    "CTA_TUPLE_PROTO": "CTA_PROTO_",
    "CTA_FILTER": "CTA_FILTER_",
}
# In a list every element has the same number; what is inside depends on the list.
_ELEMENTS = {"NFTA_LIST_": "NFTA_EXPR_", "NFTA_SET_ELEM_LIST_": "NFTA_SET_ELEM_"}
# Names that share a prefix with attributes of the level above, but belong inside of those, or
# are no attributes.
_DEEPER = (
    *("IFLA_INFO_", "IFLA_BR_", "IFLA_BRPORT_", "IFLA_BRIDGE_", "IFLA_IPVLAN_", "IFLA_MACVLAN_"),
    *("IFLA_NETKIT_", "IFLA_VLAN_", "IFLA_VRF_", "IFA_F_", "TCA_TBF_", "TCA_HTB_", "TCA_U32_"),
    *("TCA_FQ_", "TCA_MATCHALL_", "TCA_FLOWER_", "TCA_ACT_", "TCA_MIRRED_", "TCA_EGRESS_"),
    *("NFTA_SET_ELEM_", "NFTA_SET_DESC_", "NFTA_SET_ELEM_LIST_", "NFTA_RULE_COMPAT_", "NFTA_FIB_F"),
    *("CTA_IP_", "CTA_PROTO_", "CTA_FILTER_"),
)
_TUPLES = {
    ("CTA_", 1): "CTA_TUPLE_ORIG",
    ("CTA_", 2): "CTA_TUPLE_REPLY",
    ("CTA_TUPLE_", 1): "CTA_TUPLE_IP",
    ("CTA_TUPLE_", 2): "CTA_TUPLE_PROTO",
}


def watched(sock: socket) -> socket:
    """A socket that also tells on stderr what is sent and received over it."""
    return cast("socket", Watched(sock))


def install(wanted: bool) -> None:
    """Watch the netlink sockets that are made from now on (`wanted`), or stop watching new ones."""
    nl.watch = watched if wanted else None


class Watched:
    """A netlink socket that tells on stderr what is sent and received."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        self._tell(">", data)
        return int(self._sock.send(data))

    def recv(self, *args: int) -> bytes:
        data = bytes(self._sock.recv(*args))
        self._tell("<", data)
        return data

    def _tell(self, direction: str, data: bytes) -> None:
        told = describe(self._sock.proto, direction, data)
        stderr.lines("".join(f"{stderr.printable(line, keep='')}\n" for line in told))


def describe(protocol: int, direction: str, data: bytes) -> Iterator[str]:
    """The lines about the messages in a datagram of a netlink protocol (NETLINK_*)."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        payload = data[offset + _HEADER.size : offset + max(size, _HEADER.size)]
        yield from _message(protocol, direction, kind, flags, sequence, payload)
        offset += max(size, _HEADER.size) + 3 & ~3


def _message(
    protocol: int, direction: str, kind: int, flags: int, sequence: int, payload: bytes
) -> Iterator[str]:
    if kind == nl.NLMSG_ERROR and len(payload) >= 4:
        code = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
        yield f"{direction} {_error(code)} #{sequence}{_explanation(flags, payload)}"
        return
    if kind == nl.NLMSG_DONE:
        yield f"{direction} done #{sequence}"
        return
    name, fixed, prefix = _kind(protocol, kind)
    shown = payload[:fixed].hex()
    yield f"{direction} {name} #{sequence} {_flags(direction, flags)} {shown}".rstrip()
    if protocol == uapi.NETLINK_GENERIC:  # a family's number does not tell if these are keys
        yield f"    {len(payload) - fixed} bytes, which may be secret"
        return
    yield from _attributes(payload[fixed:], prefix, 1)


def _kind(protocol: int, kind: int) -> tuple[str, int, str]:
    """The name of a message type, the size of its fixed part, the prefix of its attributes."""
    if protocol == nl.NETLINK_ROUTE:
        for first, end, fixed, prefix in _ROUTING:
            if first <= kind < end:
                return _name("RTM_", kind), fixed, prefix
    elif protocol == nl.NETLINK_NETFILTER:
        subsystem, number = kind >> 8, kind & 0xFF
        if subsystem == _NFNL_SUBSYS_NFTABLES and number < len(_NFTABLES):
            return _name("NFT_MSG_", kind), 4, f"NFTA_{_NFTABLES[number]}_"
        if subsystem == _NFNL_SUBSYS_CTNETLINK:
            return _name("IPCTNL_MSG_", kind), 4, "CTA_"
        return _name("NFNL_MSG_", kind), 4, "NFNL_BATCH_"
    return f"message {kind}", 4, ""


def _attributes(data: bytes, prefix: str, depth: int) -> Iterator[str]:
    offset, indent, expression = 0, "    " * depth, ""
    while offset + 4 <= len(data):
        size, kind = _ATTR.unpack_from(data, offset)
        if size < 4 or offset + size > len(data):
            break
        value = data[offset + 4 : offset + size]
        name = "element" if prefix in _ELEMENTS else _name(prefix, kind & nl.NLA_TYPE_MASK)
        if name == "NFTA_EXPR_NAME":
            expression = f"NFTA_{nl.get_text(value).upper()}_"
        inside = _ELEMENTS.get(prefix) or _INSIDE.get(name)
        if name == "NFTA_EXPR_DATA":
            inside = expression
        if inside is not None or kind & nl.NLA_F_NESTED:
            yield f"{indent}{name}"
            yield from _attributes(value, inside or "", depth + 1)
        else:
            yield f"{indent}{name} {_value(value)}"
        offset += size + 3 & ~3


def _value(value: bytes) -> str:
    text = value.rstrip(b"\0")
    if text and value.endswith(b"\0") and text.isascii() and text.decode().isprintable():
        return f'"{text.decode()}"'
    rest = f"… ({len(value)} bytes)" if len(value) > _MOST_SHOWN else ""
    return value[:_MOST_SHOWN].hex() + rest


def _flags(direction: str, flags: int) -> str:
    bits = ["REQUEST", "MULTI", "ACK", "ECHO", "DUMP_INTR", "DUMP_FILTERED"]
    names = [name for bit, name in enumerate(bits) if flags >> bit & 1]
    if direction == ">":
        if flags & nl.NLM_F_DUMP == nl.NLM_F_DUMP:
            names.append("DUMP")
        else:
            kinds = {"REPLACE": nl.NLM_F_REPLACE, "EXCL": nl.NLM_F_EXCL}
            kinds |= {"CREATE": nl.NLM_F_CREATE, "APPEND": nl.NLM_F_APPEND}
            names += [name for name, bit in kinds.items() if flags & bit]
    return "|".join(names)


def _error(code: int) -> str:
    return f"error {errorcode.get(code, code)}" if code else "ack"


def _explanation(flags: int, payload: bytes) -> str:
    text = nl.explanation_of(flags, payload)
    return f" ({text})" if text else ""


def _name(prefix: str, number: int) -> str:
    """The name with that prefix and number, or what can be said without one."""
    if (prefix, number) in _TUPLES:
        return _TUPLES[prefix, number]
    if prefix:
        deeper = tuple(p for p in _DEEPER if p.startswith(prefix) and p != prefix)
        for module in ("cni.kernel.uapi", "cni.netfilter.uapi"):
            # kernel must not import netfilter; a process that sends its messages has loaded it
            for name, value in vars(sys.modules.get(module, sys)).items():
                if value == number and name.startswith(prefix) and not name.startswith(deeper):
                    return name
    return f"{prefix or 'attribute '}{number}"
