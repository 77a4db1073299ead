"""nftables without libnftables: tables, chains, sets and rules in the kernel's own terms.

For `nft.transaction`. Where a rule is always the same but for an address or a mark, compiling its
text is most of what it costs: libnftables reads all tables and links first (0.6 ms, and 3 ms to
load). What is written here is what libnftables 1.0.6 writes, byte for byte, and `nft list` shows it
alike: tests/netns/test_expressions.py compares both. Anything else is `libnftables.Nft`'s.

Expressions work on registers, as in a small machine (linux/netfilter/nf_tables.h): a value is
loaded, changed or compared; the last one says what becomes of the packet.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from ..kernel import netlink as nl
from . import nft

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..protocol.address import Prefix
    from .elements import Change

_NEWTABLE, _NEWCHAIN, _NEWRULE, _DELRULE = (nft.SUBSYSTEM | n for n in (0, 3, 6, 8))
_NEWSET, _NEWSETELEM = nft.SUBSYSTEM | 9, nft.SUBSYSTEM | 12
_TABLE_NAME, _TABLE_FLAGS, _TABLE_USERDATA = 1, 2, 6
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_TYPE = 1, 3, 4, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 4, 7
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LEN = 1, 2, 3, 4, 5
_SET_DATA_TYPE, _SET_DATA_LEN, _SET_DESC, _SET_ID, _SET_USERDATA = 6, 7, 9, 10, 13
_DESC_SIZE = 1
_ANONYMOUS, _CONSTANT, _MAP = 1, 2, 8
_ANONYMOUS_NAME = "__set%d"  # the kernel fills in the number
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_SET_ID, _ELEMENT_KEY = 1, 2, 3, 4, 1
_LIST_ELEM, _EXPR_NAME, _EXPR_DATA, _VALUE = 1, 1, 2, 1
_U32 = Struct("!I")
_NATIVE32 = Struct("=I")
NF_DROP = 0
_JUMP = -3
_DNAT = 1
_DATA_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 2, 1, 2

# Registers: four of 16 bytes, and the same memory as sixteen of 4 (8 is the first quarter of 1).
REG1, REG2, REG_SECOND_WORD, REG_THIRD_WORD, REG_SIXTH_WORD = 1, 2, 9, 10, 13
NETWORK, TRANSPORT = 1, 2  # the headers that `payload` reads from
META_MARK, META_IIF, META_NFPROTO, META_L4PROTO = 3, 4, 15, 16
CT_STATUS, CT_DNAT = 2, 0x20
FIB_DADDR, FIB_TYPE, LOCAL = 2, 3, 2
EQ, NEQ = 0, 1
HOOKS = {"prerouting": 0, "output": 3, "postrouting": 4}


def native(value: int) -> bytes:
    """A number as a register holds it."""
    return _NATIVE32.pack(value)


def _number(kind: int, value: int) -> bytes:
    return nl.attr(kind, _U32.pack(value & 0xFFFFFFFF))


def _data(kind: int, value: bytes) -> bytes:
    return nl.nest(kind, nl.attr(_VALUE, value))


def _expression(name: str, *attributes: bytes) -> bytes:
    parts = nl.text(_EXPR_NAME, name), nl.nest(_EXPR_DATA, *attributes)
    return nl.nest(_LIST_ELEM, *parts)


# --- expressions ----------------------------------------------------------------------------------


def payload(header: int, offset: int, size: int, register: int = REG1) -> bytes:
    """Load bytes of the packet."""
    values = (1, register), (2, header), (3, offset), (4, size)
    return _expression("payload", *(_number(*value) for value in values))


def meta(key: int, register: int = REG1) -> bytes:
    """Load what the kernel knows of the packet."""
    return _expression("meta", _number(2, key), _number(1, register))


def set_meta(key: int) -> bytes:
    return _expression("meta", _number(2, key), _number(3, REG1))


def ct(key: int) -> bytes:
    """Load what is tracked of the packet's flow."""
    return _expression("ct", _number(2, key), _number(1, REG1))


def fib(flags: int, result: int) -> bytes:
    """Load what the routing tables say."""
    return _expression("fib", _number(3, flags), _number(2, result), _number(1, REG1))


def compare(value: bytes, operator: int = EQ) -> bytes:
    """Go on only if the register is (or is not) this."""
    return _expression("cmp", _number(1, REG1), _number(2, operator), _data(3, value))


def bitwise(mask: bytes, xor: bytes) -> bytes:
    numbers = _number(1, REG1), _number(2, REG1), _number(6, 0), _number(3, len(mask))
    return _expression("bitwise", *numbers, _data(4, mask), _data(5, xor))


def lookup(
    name: str, *, number: int | None = None, into: int | None = None, inverted: bool = False
) -> bytes:
    """Go on only if the register is in a set; or load what a map has for it, a verdict with 0.

    `number` is that of a set made in the same transaction.
    """
    parts = [nl.text(1, name), _number(2, REG1)]
    if into is not None:
        parts.append(_number(3, into))
    if number is not None:
        parts.append(_number(4, number))
    if inverted:
        parts.append(_number(5, 1))
    return _expression("lookup", *parts)


def masquerade() -> bytes:
    return _expression("masq")


def dnat(family: str, address: int, port: int) -> bytes:
    """Send it to the address and port in these registers."""
    numbers = (1, _DNAT), (2, 2 if family == "ip" else 10), (3, address), (5, port)
    return _expression("nat", *(_number(*value) for value in numbers))


def jump(chain: str) -> bytes:
    return _verdict(_JUMP, nl.text(_VERDICT_CHAIN, chain))


def verdict(code: int) -> bytes:
    return _verdict(code)


def _verdict(code: int, *chain: bytes) -> bytes:
    inner = nl.nest(_DATA_VERDICT, _number(_VERDICT_CODE, code), *chain)
    return _expression("immediate", _number(1, 0), nl.nest(2, inner))


def nfproto(is_v4: bool) -> bytes:
    """In a table of both families: go on only with packets of one."""
    return meta(META_NFPROTO) + compare(b"\2" if is_v4 else b"\x0a")


def source(prefix: Prefix, operator: int = EQ) -> bytes:
    """Go on only if the packet comes (or does not come) from here."""
    return _address(12 if prefix.is_v4 else 8, prefix, operator)


def destination(prefix: Prefix, operator: int = EQ) -> bytes:
    """Go on only if the packet goes (or does not go) there."""
    return _address(16 if prefix.is_v4 else 24, prefix, operator)


def _address(offset: int, prefix: Prefix, operator: int) -> bytes:
    size, length = len(prefix.ip), prefix.length
    network = prefix.network.ip
    if length and length % 8 == 0:
        size = length // 8
        return payload(NETWORK, offset, size) + compare(network[:size], operator)
    ones = (1 << length) - 1 << size * 8 - length
    masked = bitwise(ones.to_bytes(size, "big"), bytes(size))
    return payload(NETWORK, offset, size) + masked + compare(network, operator)


# --- what a transaction makes ---------------------------------------------------------------------


def new_table(family: str, table: str, comment: str) -> Change:
    """Have the table."""
    parts = nl.text(_TABLE_NAME, table), _number(_TABLE_FLAGS, 0)
    noted = nl.attr(_TABLE_USERDATA, nft.userdata(comment))
    return _NEWTABLE, nft.message(family, *parts, noted), nl.NLM_F_CREATE


def new_chain(
    family: str, table: str, chain: str, hook: str = "", kind: str = "", priority: int = 0
) -> Change:
    """Have the chain; one with a hook has a kind and a priority."""
    parts = [nl.text(_CHAIN_TABLE, table), nl.text(_CHAIN_NAME, chain)]
    if hook:
        numbers = _number(_HOOK_NUMBER, HOOKS[hook]), _number(_HOOK_PRIORITY, priority)
        parts += [nl.nest(_CHAIN_HOOK, *numbers), nl.text(_CHAIN_TYPE, kind)]
    return _NEWCHAIN, nft.message(family, *parts), nl.NLM_F_CREATE


def without_rules(family: str, table: str, chain: str) -> Change:
    """Delete all rules of the chain."""
    parts = nl.text(_RULE_TABLE, table), nl.text(_RULE_CHAIN, chain)
    return _DELRULE, nft.message(family, *parts), 0


def new_rule(
    family: str, table: str, chain: str, expressions: Iterable[bytes], comment: str = ""
) -> Change:
    """Append a rule."""
    parts = [nl.text(_RULE_TABLE, table), nl.text(_RULE_CHAIN, chain)]
    parts.append(nl.nest(_RULE_EXPRESSIONS, *expressions))
    if comment:
        parts.append(nl.attr(_RULE_USERDATA, nft.userdata(comment)))
    return _NEWRULE, nft.message(family, *parts), nl.NLM_F_CREATE | nl.NLM_F_APPEND


# Types of keys and values as libnftables numbers them, and how many bytes each takes.
_TYPES = {
    "ipv4_addr": (7, 4),
    "ipv6_addr": (8, 16),
    "inet_proto": (12, 1),
    "inet_service": (13, 2),
    "mark": (19, 4),
    "verdict": (0xFFFFFF00, 0),
}
# What libnftables notes with a set, to show it as it was written (libnftnl/udata.h): the byte order
# of keys and values, where types leave it open, and what they are made of.
_KEY_ORDER, _VALUE_ORDER, _VALUE_INTERVAL = (bytes((n, 4)) for n in (0, 1, 6))
_HOST_ORDER = 1
_CONCATENATION = b"\x08" + bytes((0, 4)) + native(13) + bytes((1, 0))
_KEY_IS, _VALUE_IS = b"\3", b"\4"
_L4PROTO = b"\3\x0e" + bytes((0, 4)) + native(9) + bytes((1, 6, 0, 4)) + native(META_L4PROTO)


def new_set(
    family: str, table: str, name: str, number: int, key: str, value: str | None = None
) -> Change:
    """Have a set, or a map if there is a `value`; types as nft(8) writes them, keys of several.

    `number` is any that no other set of the transaction has.
    """
    key_type, key_size = _kind(key)
    flags, parts, noted = 0, b"", _KEY_ORDER + native(0)
    if value is not None:
        value_type, value_size = _kind(value)
        flags = _MAP
        parts = _number(_SET_DATA_TYPE, value_type) + _number(_SET_DATA_LEN, value_size)
        noted += _VALUE_ORDER + native(0)
    noted += _KEY_IS + _CONCATENATION
    if value is not None:
        noted += _VALUE_IS + _CONCATENATION if " . " in value else b""
        noted += _VALUE_INTERVAL + native(0)
    head = _set_head(family, table, name, number, flags)
    kind = _number(_SET_KEY_TYPE, key_type) + _number(_SET_KEY_LEN, key_size)
    return _NEWSET, head + kind + parts + nl.attr(_SET_USERDATA, noted), nl.NLM_F_CREATE


def protocol_set(family: str, table: str, number: int, protocols: Sequence[int]) -> list[Change]:
    """An anonymous set of layer 4 protocols, for the same number in `protocols`."""
    kind, size = _kind("inet_proto")
    head = _set_head(family, table, _ANONYMOUS_NAME, number, _ANONYMOUS | _CONSTANT)
    noted = _KEY_ORDER + native(_HOST_ORDER) + _L4PROTO
    parts = _number(_SET_KEY_TYPE, kind) + _number(_SET_KEY_LEN, size)
    parts += nl.nest(_SET_DESC, _number(_DESC_SIZE, len(protocols)))
    new = _NEWSET, head + parts + nl.attr(_SET_USERDATA, noted), nl.NLM_F_CREATE
    keys = [_data(_ELEMENT_KEY, bytes((protocol,))) for protocol in protocols]
    listed = nl.nest(_LIST_ELEMENTS, *(nl.nest(_LIST_ELEM, key) for key in keys))
    names = nl.text(_LIST_TABLE, table), nl.text(_LIST_SET, _ANONYMOUS_NAME)
    payload = nft.message(family, *names, _number(_LIST_SET_ID, number), listed)
    return [new, (_NEWSETELEM, payload, nl.NLM_F_CREATE)]


def protocols(number: int) -> bytes:
    """Go on only with packets of a protocol in this `protocol_set`."""
    return meta(META_L4PROTO) + lookup(_ANONYMOUS_NAME, number=number)


def _set_head(family: str, table: str, name: str, number: int, flags: int) -> bytes:
    names = nl.text(_SET_TABLE, table), nl.text(_SET_NAME, name)
    numbers = _number(_SET_FLAGS, flags), _number(_SET_ID, number)
    return nft.message(family, *names, *numbers)


def _kind(text: str) -> tuple[int, int]:
    """The number and size of a type; of several, each takes whole words."""
    parts: Sequence[tuple[int, int]] = [_TYPES[name] for name in text.split(" . ")]
    if len(parts) == 1:
        return parts[0]
    number = 0
    for one, _ in parts:
        number = number << 6 | one
    return number, sum(size + 3 & ~3 for _, size in parts)
