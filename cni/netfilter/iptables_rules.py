"""A rule of iptables as nftables expressions, as iptables-nft 1.8.9 writes it.

iptables-nft writes rules as expressions. What expressions cannot say it writes as the structures of
xtables' matches and targets (`match`, `target`: the kernel's nft_compat). This module makes both
from a rule in iptables-save's words (after iptables/nft.c, nft-shared.c, nft-ipv4.c, nft-ipv6.c),
in the form and order of the kernel's dump, so existing rules can be compared with it.

It knows only the words that this package uses in its rules; others raise Unwritable.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from ..kernel import netlink as nl
from ..kernel.errors import Unwritable
from ..protocol.address import InvalidAddress, Prefix, parse_ip
from . import uapi
from .nft import GENMSG_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PROTOCOLS = {"tcp": uapi.IPPROTO_TCP, "udp": uapi.IPPROTO_UDP, "sctp": uapi.IPPROTO_SCTP}
# Offsets of source and destination in the IP header; the key says whether it is IPv6.
_SOURCE, _DESTINATION = {False: 12, True: 8}, {False: 16, True: 24}


_UNKNOWN = (ValueError, KeyError, StopIteration, OverflowError, struct.error, InvalidAddress)


# --- a rule ---------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """A rule's expressions before and after its counter, as the kernel shows them.

    `leads_to` is the chain to which the rule jumps; "" if it does not jump.
    """

    chain: str
    head: bytes
    tail: bytes
    protocol: int
    leads_to: str

    @property
    def attributes(self) -> bytes:
        """The attributes of NFT_MSG_NEWRULE, without table and chain."""
        compat = _number(uapi.NFTA_RULE_COMPAT_PROTO, self.protocol) + _number(
            uapi.NFTA_RULE_COMPAT_FLAGS, 0
        )
        expressions = nl.attr(uapi.NFTA_RULE_EXPRESSIONS, self.head + _COUNTER + self.tail)
        return expressions + nl.attr(uapi.NFTA_RULE_COMPAT, compat)

    def is_in(self, data: bytes) -> bool:
        """Is a message of the kernel about this rule? Its counters are not compared."""
        listed = nl.attr_map(data, GENMSG_SIZE).get(uapi.NFTA_RULE_EXPRESSIONS, b"")
        if not (listed.startswith(self.head) and listed.endswith(self.tail)):
            return False
        between = [
            nl.get_text(nl.attr_map(expression).get(uapi.NFTA_EXPR_NAME))
            for _, expression in nl.attrs(listed[: len(listed) - len(self.tail)], len(self.head))
        ]
        return between == ["counter"]


class _Parts:
    """The parts of a rule, in the order in which iptables-nft writes them."""

    def __init__(self) -> None:
        self.interfaces = self.layer4 = self.addresses = self.matches = self.target = b""
        self.protocol = self.leads_to = ""


def encode(v6: bool, rule: str) -> Encoded:
    """A rule (`-A chain …`, `-I chain [1] …`) in iptables-save's words. Raises Unwritable.

    In a REPL: ``encode(False, "-A CNI-FORWARD -s 10.0.0.2/32 -j ACCEPT")``.
    """
    words = _words(rule)
    parts, negated = _Parts(), False
    try:
        command, chain = next(words), next(words)
        for word in words:
            if word == "!":
                negated = True
                continue
            if not (command == "-I" and word == "1"):
                _option(v6, parts, word, words, negated)
            negated = False
    except _UNKNOWN as error:
        raise Unwritable(f"{rule}: {error}") from None
    if not parts.target or negated:
        raise Unwritable(rule)
    head = parts.interfaces + parts.layer4 + parts.addresses + parts.matches
    number = _PROTOCOLS.get(parts.protocol, 0)
    return Encoded(chain, head, parts.target, number, parts.leads_to)


def _option(v6: bool, parts: _Parts, word: str, words: Iterator[str], negated: bool) -> None:
    value = next(words)
    if parts.target:
        raise Unwritable(word)  # the comment is always the last match
    if word in ("-i", "-o"):
        parts.interfaces += _interface(word, value, negated)
    elif word == "-s":
        # always before the destination
        parts.addresses = _address(_SOURCE[v6], v6, value, negated) + parts.addresses
    elif word == "-d":
        parts.addresses += _address(_DESTINATION[v6], v6, value, negated)
    elif negated:
        raise Unwritable(word)
    elif word == "-p":
        parts.protocol = value
        parts.layer4 = _meta(uapi.NFT_META_L4PROTO) + _compare(bytes((_PROTOCOLS[value],)))
    elif word == "-m":
        option, make = _MATCHES[value]
        if next(words) != option or (value in _PROTOCOLS and value != parts.protocol):
            raise Unwritable(value)
        parts.matches += make(next(words))
    elif word == "-j":
        parts.leads_to, parts.target = _target(v6, value, words)
    else:
        raise Unwritable(word)


def _words(rule: str) -> Iterator[str]:
    """The words of a line, split as by iptables-restore. Raises Unwritable."""
    if any(character < " " for character in rule):
        raise Unwritable(rule)  # a newline would end the line, not a word
    if '"' not in rule:
        return iter(rule.split())
    pieces = rule.replace("\\\\", "\0").replace('\\"', "\1").split('"')
    if len(pieces) % 2 == 0:
        raise Unwritable(rule)
    words: list[str] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            words.append(piece.replace("\0", "\\").replace("\1", '"'))
        else:
            words += piece.split()
    return iter(words)


# --- nftables expressions -------------------------------------------------------------------------


def _be32(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "big")


def _expression(name: str, *attributes: bytes) -> bytes:
    # without NLA_F_NESTED: so the kernel dumps it, and it also accepts it
    data = nl.attr(uapi.NFTA_EXPR_DATA, b"".join(attributes))
    return nl.attr(uapi.NFTA_LIST_ELEM, nl.text(uapi.NFTA_EXPR_NAME, name) + data)


def _number(kind: int, value: int) -> bytes:
    return nl.attr(kind, _be32(value))


def _value(kind: int, value: bytes) -> bytes:
    return nl.attr(kind, nl.attr(uapi.NFTA_DATA_VALUE, value))


_COUNTER = _expression(
    "counter",
    nl.attr(uapi.NFTA_COUNTER_BYTES, bytes(8)),
    nl.attr(uapi.NFTA_COUNTER_PACKETS, bytes(8)),
)


def _meta(key: int) -> bytes:
    numbers = _number(uapi.NFTA_META_KEY, key), _number(uapi.NFTA_META_DREG, uapi.NFT_REG_1)
    return _expression("meta", *numbers)


def _payload(base: int, offset: int, size: int) -> bytes:
    return _expression(
        "payload",
        _number(uapi.NFTA_PAYLOAD_DREG, uapi.NFT_REG_1),
        _number(uapi.NFTA_PAYLOAD_BASE, base),
        _number(uapi.NFTA_PAYLOAD_OFFSET, offset),
        _number(uapi.NFTA_PAYLOAD_LEN, size),
    )


def _masked(mask: bytes) -> bytes:
    return _expression(
        "bitwise",
        _number(uapi.NFTA_BITWISE_SREG, uapi.NFT_REG_1),
        _number(uapi.NFTA_BITWISE_DREG, uapi.NFT_REG_1),
        _number(uapi.NFTA_BITWISE_LEN, len(mask)),
        _number(uapi.NFTA_BITWISE_OP, uapi.NFT_BITWISE_BOOL),
        _value(uapi.NFTA_BITWISE_MASK, mask),
        _value(uapi.NFTA_BITWISE_XOR, bytes(len(mask))),
    )


def _compare(value: bytes, negated: bool = False) -> bytes:
    operator = _number(uapi.NFTA_CMP_OP, uapi.NFT_CMP_NEQ if negated else uapi.NFT_CMP_EQ)
    register = _number(uapi.NFTA_CMP_SREG, uapi.NFT_REG_1)
    return _expression("cmp", register, operator, _value(uapi.NFTA_CMP_DATA, value))


def _verdict(code: int, chain: str = "") -> bytes:
    verdict = _number(uapi.NFTA_VERDICT_CODE, code)
    if chain:
        verdict += nl.text(uapi.NFTA_VERDICT_CHAIN, chain)
    data = nl.attr(uapi.NFTA_IMMEDIATE_DATA, nl.attr(uapi.NFTA_DATA_VERDICT, verdict))
    register = _number(uapi.NFTA_IMMEDIATE_DREG, uapi.NFT_REG_VERDICT)
    return _expression("immediate", register, data)


def _interface(option: str, name: str, negated: bool) -> bytes:
    raw = name.encode("utf-8", "surrogateescape") + b"\0"
    if name.endswith("+") or len(raw) > 16:
        raise Unwritable(name)  # "eth+" means any name that begins with eth
    key = uapi.NFT_META_IIFNAME if option == "-i" else uapi.NFT_META_OIFNAME
    return _meta(key) + _compare(raw, negated)


def _address(offset: int, v6: bool, text: str, negated: bool) -> bytes:
    """Compare the prefix's bytes; if its length is no multiple of 8, all bytes under a mask."""
    prefix = Prefix.parse(text).network
    if prefix.is_v4 == v6 or not prefix.length:
        raise Unwritable(text)
    whole, bits = divmod(prefix.length, 8)
    if not bits:
        return _payload(uapi.NFT_PAYLOAD_NETWORK_HEADER, offset, whole) + _compare(
            prefix.ip[:whole], negated
        )
    size = len(prefix.ip)
    mask = (-1 << size * 8 - prefix.length & (1 << size * 8) - 1).to_bytes(size, "big")
    read = _payload(uapi.NFT_PAYLOAD_NETWORK_HEADER, offset, size)
    return read + _masked(mask) + _compare(prefix.ip, negated)


# --- matches --------------------------------------------------------------------------------------

_ALIGN = struct.calcsize("@cQ") - 8  # XT_ALIGN


def _extension(kind: str, name: str, revision: int, info: bytes) -> bytes:
    """A match or target of xtables; `info` is its structure."""
    aligned = info + bytes(-len(info) % _ALIGN)
    named = nl.text(uapi.NFTA_MATCH_NAME, name), _number(uapi.NFTA_MATCH_REV, revision)
    return _expression(kind, *named, nl.attr(uapi.NFTA_MATCH_INFO, aligned))


def _comment(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) > 255:
        raise Unwritable(text)
    return _extension("match", "comment", 0, raw.ljust(256, b"\0"))  # struct xt_comment_info


def _state(states: str) -> bytes:
    """struct xt_conntrack_mtinfo3: addresses, expiry, protocol, ports; then flags and states."""
    bits = {"ESTABLISHED": 1 << 1, "RELATED": 1 << 2}
    mask = sum(bits[state] for state in set(states.split(",")))
    info = struct.pack("=128x8x2x8xHHHH8x", 1, 0, mask, 0)  # XT_CONNTRACK_STATE
    return _extension("match", "conntrack", 3, info)


# struct xt_multiport_v1: XT_MULTIPORT_DESTINATION, the number of ports, ports, ranges, inverted
_PORTS = struct.Struct("=BB15H15sB")


def _ports(numbers: str) -> bytes:
    ports = [int(number) for number in numbers.split(",")]
    info = _PORTS.pack(1, len(ports), *ports, *[0] * (15 - len(ports)), b"", 0)
    return _extension("match", "multiport", 1, info)


_PORTS_HEAD = (
    nl.text(uapi.NFTA_MATCH_NAME, "multiport")
    + _number(uapi.NFTA_MATCH_REV, 1)
    + nl.attr(uapi.NFTA_MATCH_INFO, bytes(_PORTS.size))[:4]
)


def ports_of(data: bytes) -> list[int] | None:
    """The ports of a rule's multiport match, in a message of the kernel.

    None if the rule has no such match, or the match is negated or has ranges.
    """
    start = data.find(_PORTS_HEAD) + len(_PORTS_HEAD)
    info = data[start : start + _PORTS.size] if start >= len(_PORTS_HEAD) else b""
    if len(info) < _PORTS.size:
        return None
    _, count, *ports, ranges, invert = _PORTS.unpack(info)
    return None if any(ranges) or invert else ports[:count]


def _port(number: str) -> bytes:
    value = int(number).to_bytes(2, "big")
    return _payload(uapi.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2) + _compare(value)


def _sctp_port(number: str) -> bytes:
    """struct xt_sctp_info: a range, and no chunk types (-1); XT_SCTP_DEST_PORTS."""
    port = int(number)
    chunks = struct.pack("=256xI", 0) + b"\xff\0\0" * 4 + struct.pack("=i", 0)
    info = struct.pack("=HHHH", port, port, 0, 0) + chunks + struct.pack("=II", 2, 0)
    return _extension("match", "sctp", 0, info)


def _destination_type(kind: str) -> bytes:
    """struct xt_addrtype_info_v1: bits of RTN_LOCAL and the like."""
    if kind != "LOCAL":
        raise Unwritable(kind)
    return _extension("match", "addrtype", 1, struct.pack("=HHI", 0, 1 << uapi.RTN_LOCAL, 0))


def _mark_is(value: str) -> bytes:
    mark, mask = _mark(value)
    return _meta(uapi.NFT_META_MARK) + _masked(mask) + _compare(mark)


def _mark(text: str) -> tuple[bytes, bytes]:
    """Value and mask, in the byte order of the machine."""
    value, _, mask = text.partition("/")
    if not mask or value != mask or int(mask, 16) == 0xFFFFFFFF:
        raise Unwritable(text)
    packed = struct.pack("=I", int(mask, 16))
    return packed, packed


# Matches, each with the one option that this package uses.
_MATCHES: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "addrtype": ("--dst-type", _destination_type),
    "comment": ("--comment", _comment),
    "conntrack": ("--ctstate", _state),
    "mark": ("--mark", _mark_is),
    "multiport": ("--dports", _ports),
    "sctp": ("--dport", _sctp_port),
    "tcp": ("--dport", _port),
    "udp": ("--dport", _port),
}


# --- targets --------------------------------------------------------------------------------------

_VERDICTS = {"ACCEPT": uapi.NF_ACCEPT, "DROP": uapi.NF_DROP, "RETURN": uapi.NFT_RETURN}


def _target(v6: bool, name: str, words: Iterator[str]) -> tuple[str, bytes]:
    """A verdict, a target of xtables, or else a jump to the chain of that name."""
    if name in _VERDICTS:
        return "", _verdict(_VERDICTS[name])
    if name not in _TARGETS:
        return name, _verdict(uapi.NFT_JUMP, name)
    option, revision, make = _TARGETS[name]
    if option and next(words) != option:
        raise Unwritable(name)
    revision = int(v6) if revision < 0 else revision
    return "", _extension("target", name, revision, make(v6, next(words) if option else ""))


def _masquerade(v6: bool, _: str) -> bytes:
    """struct nf_nat_range; for IPv4 nf_nat_ipv4_multi_range_compat with one range."""
    return bytes(40) if v6 else struct.pack("=I16x", 1)


def _set_mark(_: bool, text: str) -> bytes:
    """struct xt_mark_tginfo2"""
    return b"".join(_mark(text))


def _destination(v6: bool, text: str) -> bytes:
    """struct nf_nat_range2: NF_NAT_RANGE_MAP_IPS and _PROTO_SPECIFIED, a range of one each."""
    address, _, port = text.rpartition(":")
    ip, number = parse_ip(address.strip("[]")), int(port).to_bytes(2, "big")
    if (len(ip) == 16) != v6:
        raise Unwritable(text)
    address_union = ip.ljust(16, b"\0")
    return struct.pack("=I16s16s2s2sH", 3, address_union, address_union, number, number, 0)


def _source(v6: bool, text: str) -> bytes:
    """struct nf_nat_range; for IPv4 nf_nat_ipv4_multi_range_compat: NF_NAT_RANGE_MAP_IPS."""
    ip = parse_ip(text)
    if (len(ip) == 16) != v6:
        raise Unwritable(text)
    return struct.pack("=I16s16s4x", 1, ip, ip) if v6 else struct.pack("=II4s4s4x", 1, 1, ip, ip)


# Targets, each with the one option that this package uses, or "", and the revision.
_TARGETS: dict[str, tuple[str, int, Callable[[bool, str], bytes]]] = {
    "DNAT": ("--to-destination", 2, _destination),
    "MARK": ("--set-xmark", 2, _set_mark),
    "MASQUERADE": ("", 0, _masquerade),
    "SNAT": ("--to-source", -1, _source),  # the revision goes by the family
}
