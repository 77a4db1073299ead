"""Making tables, chains, sets and rules of nftables: changes for `nft.transact`.

Compiling nft(8)'s language costs more than everything else: libnftables takes 3 ms to load and
reads all tables and links first (0.6 ms). These functions write what libnftables 1.0.6 writes, byte
for byte, and `nft list` shows it in the same words: tests/netns/test_expressions.py compares both.

Expressions are the instructions of a small machine with registers (linux/netfilter/nf_tables.h):
they load a value, change it or compare it; the last one decides what becomes of the packet.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from ..kernel import netlink as nl
from . import nft, uapi

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..protocol.address import Prefix
    from .nft import Change
    from .table import Table

_ANONYMOUS_SET = "__set%d"  # the kernel fills in the number
_U32 = Struct("!I")
_NATIVE32 = Struct("=I")

# Operators: how `compare` and others test the register.
EQ = uapi.NFT_CMP_EQ
NEQ = uapi.NFT_CMP_NEQ
HOOKS = {
    "prerouting": uapi.NF_INET_PRE_ROUTING,
    "input": uapi.NF_INET_LOCAL_IN,
    "forward": uapi.NF_INET_FORWARD,
    "output": uapi.NF_INET_LOCAL_OUT,
    "postrouting": uapi.NF_INET_POST_ROUTING,
}


def native(value: int) -> bytes:
    """A number as a register holds it."""
    return _NATIVE32.pack(value)


def _number(kind: int, value: int) -> bytes:
    return nl.attr(kind, _U32.pack(value & 0xFFFFFFFF))


def _data(kind: int, value: bytes) -> bytes:
    return nl.nest(kind, nl.attr(uapi.NFTA_DATA_VALUE, value))


def _expression(name: str, *attributes: bytes) -> bytes:
    parts = nl.text(uapi.NFTA_EXPR_NAME, name), nl.nest(uapi.NFTA_EXPR_DATA, *attributes)
    return nl.nest(uapi.NFTA_LIST_ELEM, *parts)


# --- expressions ----------------------------------------------------------------------------------


def payload(header: int, offset: int, size: int, register: int = uapi.NFT_REG_1) -> bytes:
    """Load bytes of the packet."""
    return _expression(
        "payload",
        _number(uapi.NFTA_PAYLOAD_DREG, register),
        _number(uapi.NFTA_PAYLOAD_BASE, header),
        _number(uapi.NFTA_PAYLOAD_OFFSET, offset),
        _number(uapi.NFTA_PAYLOAD_LEN, size),
    )


def meta(key: int, register: int = uapi.NFT_REG_1) -> bytes:
    """Load what the kernel knows of the packet; `key` is an NFT_META_*."""
    numbers = _number(uapi.NFTA_META_KEY, key), _number(uapi.NFTA_META_DREG, register)
    return _expression("meta", *numbers)


def set_meta(key: int) -> bytes:
    numbers = _number(uapi.NFTA_META_KEY, key), _number(uapi.NFTA_META_SREG, uapi.NFT_REG_1)
    return _expression("meta", *numbers)


def ct(key: int) -> bytes:
    """Load a property of the packet's tracked flow; `key` is an NFT_CT_*."""
    numbers = _number(uapi.NFTA_CT_KEY, key), _number(uapi.NFTA_CT_DREG, uapi.NFT_REG_1)
    return _expression("ct", *numbers)


def fib(flags: int, result: int) -> bytes:
    """Look the packet up in the routing tables, and load the result (NFT_FIB_RESULT_*)."""
    return _expression(
        "fib",
        _number(uapi.NFTA_FIB_FLAGS, flags),
        _number(uapi.NFTA_FIB_RESULT, result),
        _number(uapi.NFTA_FIB_DREG, uapi.NFT_REG_1),
    )


def compare(value: bytes, operator: int = uapi.NFT_CMP_EQ) -> bytes:
    """End the rule here unless the register is (NEQ: is not) `value`."""
    numbers = _number(uapi.NFTA_CMP_SREG, uapi.NFT_REG_1), _number(uapi.NFTA_CMP_OP, operator)
    return _expression("cmp", *numbers, _data(uapi.NFTA_CMP_DATA, value))


def bitwise(mask: bytes, xor: bytes, register: int = uapi.NFT_REG_1) -> bytes:
    """Keep the bits of the mask, then flip those of `xor`; both as long as the register's value."""
    return _expression(
        "bitwise",
        _number(uapi.NFTA_BITWISE_SREG, register),
        _number(uapi.NFTA_BITWISE_DREG, register),
        _number(uapi.NFTA_BITWISE_OP, uapi.NFT_BITWISE_BOOL),
        _number(uapi.NFTA_BITWISE_LEN, len(mask)),
        _data(uapi.NFTA_BITWISE_MASK, mask),
        _data(uapi.NFTA_BITWISE_XOR, xor),
    )


def lookup(
    name: str, *, number: int | None = None, into: int | None = None, inverted: bool = False
) -> bytes:
    """End the rule here unless the register is in the set `name` (`inverted`: is not).

    With `into`, load the map's value into that register; into NFT_REG_VERDICT, take its verdict.
    `number` is that of a set made in the same transaction.
    """
    parts = [nl.text(uapi.NFTA_LOOKUP_SET, name), _number(uapi.NFTA_LOOKUP_SREG, uapi.NFT_REG_1)]
    if into is not None:
        parts.append(_number(uapi.NFTA_LOOKUP_DREG, into))
    if number is not None:
        parts.append(_number(uapi.NFTA_LOOKUP_SET_ID, number))
    if inverted:
        parts.append(_number(uapi.NFTA_LOOKUP_FLAGS, uapi.NFT_LOOKUP_F_INV))
    return _expression("lookup", *parts)


def masquerade() -> bytes:
    return _expression("masq")


def load(value: bytes) -> bytes:
    """Load these bytes."""
    register = _number(uapi.NFTA_IMMEDIATE_DREG, uapi.NFT_REG_1)
    return _expression("immediate", register, _data(uapi.NFTA_IMMEDIATE_DATA, value))


def snat(is_v4: bool) -> bytes:
    """Translate the source to the address in the register."""
    return _expression(
        "nat",
        _number(uapi.NFTA_NAT_TYPE, uapi.NFT_NAT_SNAT),
        _number(uapi.NFTA_NAT_FAMILY, uapi.NFPROTO_IPV4 if is_v4 else uapi.NFPROTO_IPV6),
        _number(uapi.NFTA_NAT_REG_ADDR_MIN, uapi.NFT_REG_1),
    )


def dnat(family: str, address: int, port: int) -> bytes:
    """Translate the destination to the address and port in these registers."""
    return _expression(
        "nat",
        _number(uapi.NFTA_NAT_TYPE, uapi.NFT_NAT_DNAT),
        _number(uapi.NFTA_NAT_FAMILY, nft.FAMILIES[family]),
        _number(uapi.NFTA_NAT_REG_ADDR_MIN, address),
        _number(uapi.NFTA_NAT_REG_PROTO_MIN, port),
    )


def jump(chain: str) -> bytes:
    return _verdict(uapi.NFT_JUMP, nl.text(uapi.NFTA_VERDICT_CHAIN, chain))


def goto(chain: str) -> bytes:
    """As `jump`, but packets do not return from `chain` to this one."""
    return _verdict(uapi.NFT_GOTO, nl.text(uapi.NFTA_VERDICT_CHAIN, chain))


def verdict(code: int) -> bytes:
    return _verdict(code)


def _verdict(code: int, *chain: bytes) -> bytes:
    inner = nl.nest(uapi.NFTA_DATA_VERDICT, _number(uapi.NFTA_VERDICT_CODE, code), *chain)
    register = _number(uapi.NFTA_IMMEDIATE_DREG, uapi.NFT_REG_VERDICT)
    return _expression("immediate", register, nl.nest(uapi.NFTA_IMMEDIATE_DATA, inner))


def nfproto(is_v4: bool) -> bytes:
    """In a table of both families: end the rule here for packets of the other one."""
    return meta(uapi.NFT_META_NFPROTO) + compare(
        bytes((uapi.NFPROTO_IPV4 if is_v4 else uapi.NFPROTO_IPV6,))
    )


def ct_state(bits: int) -> bytes:
    """End the rule here unless the flow has one of these states (NF_CT_STATE_BIT_*)."""
    masked = bitwise(native(bits), bytes(4))
    return ct(uapi.NFT_CT_STATE) + masked + compare(bytes(4), NEQ)


def source(prefix: Prefix, operator: int = uapi.NFT_CMP_EQ) -> bytes:
    """End the rule here unless the packet comes (NEQ: does not come) from the prefix."""
    return _address(12 if prefix.is_v4 else 8, prefix, operator)


def destination(prefix: Prefix, operator: int = uapi.NFT_CMP_EQ) -> bytes:
    """End the rule here unless the packet goes (NEQ: does not go) to the prefix."""
    return _address(16 if prefix.is_v4 else 24, prefix, operator)


def _address(offset: int, prefix: Prefix, operator: int) -> bytes:
    size, length = len(prefix.ip), prefix.length
    network = prefix.network.ip
    if length and length % 8 == 0:
        size = length // 8
        return payload(uapi.NFT_PAYLOAD_NETWORK_HEADER, offset, size) + compare(
            network[:size], operator
        )
    ones = (1 << length) - 1 << size * 8 - length
    masked = bitwise(ones.to_bytes(size, "big"), bytes(size))
    return (
        payload(uapi.NFT_PAYLOAD_NETWORK_HEADER, offset, size) + masked + compare(network, operator)
    )


# --- changes of a transaction ---------------------------------------------------------------------


def new_table(table: Table, comment: str = "") -> Change:
    """Create the table, or leave it as it is."""
    parts = nl.text(uapi.NFTA_TABLE_NAME, table.name), _number(uapi.NFTA_TABLE_FLAGS, 0)
    noted = nl.attr(uapi.NFTA_TABLE_USERDATA, nft.userdata(comment)) if comment else b""
    return uapi.NFT_MSG_NEWTABLE, table.message(*parts, noted), nl.NLM_F_CREATE


def new_chain(table: Table, chain: str, comment: str = "") -> Change:
    """Create a chain without a hook, for jumps, or leave it as it is."""
    noted = nl.attr(uapi.NFTA_CHAIN_USERDATA, nft.userdata(comment)) if comment else b""
    return uapi.NFT_MSG_NEWCHAIN, table.message(*_chain(table, chain), noted), nl.NLM_F_CREATE


def new_base_chain(
    table: Table, chain: str, hook: str, kind: str, priority: int, policy: int | None = None
) -> Change:
    """Create the chain that the kernel enters at this hook, or leave it as it is.

    A `policy` (NF_ACCEPT or NF_DROP) is also set on a chain that exists. Fails with EEXIST or
    EOPNOTSUPP if a chain of that name has another hook, type or priority.
    """
    numbers = (
        _number(uapi.NFTA_HOOK_HOOKNUM, HOOKS[hook]),
        _number(uapi.NFTA_HOOK_PRIORITY, priority),
    )
    parts = [*_chain(table, chain), nl.nest(uapi.NFTA_CHAIN_HOOK, *numbers)]
    if policy is not None:
        parts.append(_number(uapi.NFTA_CHAIN_POLICY, policy))
    parts.append(nl.text(uapi.NFTA_CHAIN_TYPE, kind))
    return uapi.NFT_MSG_NEWCHAIN, table.message(*parts), nl.NLM_F_CREATE


def _chain(table: Table, chain: str) -> tuple[bytes, bytes]:
    return nl.text(uapi.NFTA_CHAIN_TABLE, table.name), nl.text(uapi.NFTA_CHAIN_NAME, chain)


def new_rule(table: Table, chain: str, expressions: Iterable[bytes], comment: str = "") -> Change:
    """Append a rule; fails with ENOENT without the chain."""
    parts = [nl.text(uapi.NFTA_RULE_TABLE, table.name), nl.text(uapi.NFTA_RULE_CHAIN, chain)]
    parts.append(nl.nest(uapi.NFTA_RULE_EXPRESSIONS, *expressions))
    if comment:
        parts.append(nl.attr(uapi.NFTA_RULE_USERDATA, nft.userdata(comment)))
    return uapi.NFT_MSG_NEWRULE, table.message(*parts), nl.NLM_F_CREATE | nl.NLM_F_APPEND


# Types of keys and values: the number in libnftables, the size in bytes, and the byte order (2 is
# the network's; a concatenation has none).
_TYPES = {
    "ipv4_addr": (7, 4, 2),
    "ipv6_addr": (8, 16, 2),
    "inet_proto": (12, 1, 0),
    "inet_service": (13, 2, 2),
    "mark": (19, 4, 1),
    "ifname": (41, uapi.IFNAMSIZ, 1),
    "verdict": (0xFFFFFF00, 0, 0),
}
# User data of a set, by which libnftables lists it as it was written (libnftnl/udata.h): the byte
# order of keys and values where their types leave it open, and the parts that they consist of.
_KEY_ORDER = bytes((uapi.NFTNL_UDATA_SET_KEYBYTEORDER, 4))
_VALUE_ORDER = bytes((uapi.NFTNL_UDATA_SET_DATABYTEORDER, 4))
_VALUE_INTERVAL = bytes((uapi.NFTNL_UDATA_SET_DATA_INTERVAL, 4))
_HOST_ORDER = 1
_CONCATENATION = b"\x08" + bytes((0, 4)) + native(13) + bytes((1, 0))
_KEY_IS = bytes((uapi.NFTNL_UDATA_SET_KEY_TYPEOF,))
_VALUE_IS = bytes((uapi.NFTNL_UDATA_SET_DATA_TYPEOF,))
_L4PROTO = (
    b"\3\x0e" + bytes((0, 4)) + native(9) + bytes((1, 6, 0, 4)) + native(uapi.NFT_META_L4PROTO)
)


def new_set(table: Table, name: str, number: int, key: str, value: str | None = None) -> Change:
    """Create a set, or a map if there is a `value`; or leave it as it is.

    Types are as nft(8) writes them (``inet_proto . inet_service``). `number` is one that no other
    set of the transaction has. Fails with EEXIST if the set exists with other types.
    """
    key_type, key_size, order = _kind(key)
    flags, parts, noted = 0, b"", _KEY_ORDER + native(order)
    if value is not None:
        value_type, value_size, order = _kind(value)
        flags = uapi.NFT_SET_MAP
        parts = _number(uapi.NFTA_SET_DATA_TYPE, value_type) + _number(
            uapi.NFTA_SET_DATA_LEN, value_size
        )
        noted += _VALUE_ORDER + native(order)
    noted += _KEY_IS + _CONCATENATION if " . " in key else b""
    if value is not None:
        noted += _VALUE_IS + _CONCATENATION if " . " in value else b""
        noted += _VALUE_INTERVAL + native(0)
    head = _set_head(table, name, number, flags)
    kind = _number(uapi.NFTA_SET_KEY_TYPE, key_type) + _number(uapi.NFTA_SET_KEY_LEN, key_size)
    return (
        uapi.NFT_MSG_NEWSET,
        head + kind + parts + nl.attr(uapi.NFTA_SET_USERDATA, noted),
        nl.NLM_F_CREATE,
    )


def protocol_set(table: Table, number: int, protocols: Sequence[int]) -> list[Change]:
    """Create an anonymous set of layer 4 protocols, for `protocols(number)`."""
    kind, size, _ = _kind("inet_proto")
    head = _set_head(table, _ANONYMOUS_SET, number, uapi.NFT_SET_ANONYMOUS | uapi.NFT_SET_CONSTANT)
    noted = _KEY_ORDER + native(_HOST_ORDER) + _L4PROTO
    parts = _number(uapi.NFTA_SET_KEY_TYPE, kind) + _number(uapi.NFTA_SET_KEY_LEN, size)
    parts += nl.nest(uapi.NFTA_SET_DESC, _number(uapi.NFTA_SET_DESC_SIZE, len(protocols)))
    new = (
        uapi.NFT_MSG_NEWSET,
        head + parts + nl.attr(uapi.NFTA_SET_USERDATA, noted),
        nl.NLM_F_CREATE,
    )
    keys = [_data(uapi.NFTA_SET_ELEM_KEY, bytes((protocol,))) for protocol in protocols]
    listed = nl.nest(
        uapi.NFTA_SET_ELEM_LIST_ELEMENTS, *(nl.nest(uapi.NFTA_LIST_ELEM, key) for key in keys)
    )
    names = (
        nl.text(uapi.NFTA_SET_ELEM_LIST_TABLE, table.name),
        nl.text(uapi.NFTA_SET_ELEM_LIST_SET, _ANONYMOUS_SET),
    )
    payload = table.message(*names, _number(uapi.NFTA_SET_ELEM_LIST_SET_ID, number), listed)
    return [new, (uapi.NFT_MSG_NEWSETELEM, payload, nl.NLM_F_CREATE)]


def protocols(number: int) -> bytes:
    """End the rule here unless the packet's protocol is in the `protocol_set` of that number."""
    return meta(uapi.NFT_META_L4PROTO) + lookup(_ANONYMOUS_SET, number=number)


def _set_head(table: Table, name: str, number: int, flags: int) -> bytes:
    names = nl.text(uapi.NFTA_SET_TABLE, table.name), nl.text(uapi.NFTA_SET_NAME, name)
    numbers = _number(uapi.NFTA_SET_FLAGS, flags), _number(uapi.NFTA_SET_ID, number)
    return table.message(*names, *numbers)


def _kind(text: str) -> tuple[int, int, int]:
    """Number, size and byte order of a type; in a concatenation each part fills whole words."""
    parts: Sequence[tuple[int, int, int]] = [_TYPES[name] for name in text.split(" . ")]
    if len(parts) == 1:
        return parts[0]
    number = 0
    for one, *_ in parts:
        number = number << 6 | one
    return number, sum(size + 3 & ~3 for _, size, _ in parts), 0
