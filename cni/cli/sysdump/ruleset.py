"""The nftables ruleset as text, read over netlink, without nft(8).

It includes the rules of iptables-nft. Rules are shown as the expressions of which they consist
(`nft --debug=netlink` shows them alike), not in nft's language: how they were written cannot be
known for certain, and a bug report needs what is in force.
"""

from __future__ import annotations

from collections.abc import Iterator

from cni.kernel import netlink as nl
from cni.kernel.errors import NetlinkError
from cni.netfilter import nft, uapi
from cni.netfilter.nft import FAMILIES, GENMSG_SIZE, comment_of
from cni.protocol.address import format_ip

_MOST = 20_000  # rules, and elements of a set
# In the kernel's list each GET follows its NEW.
_GETSET = uapi.NFT_MSG_NEWSET + 1
_FAMILY_NAMES = {number: name for name, number in FAMILIES.items()}
_HOOKS = ["prerouting", "input", "forward", "output", "postrouting"]
# (offset, length) in a network header: addresses of IPv4 and IPv6
_ADDRESSES = frozenset({(12, 4), (16, 4), (8, 16), (24, 16)})
_CODES = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return", -1: "continue"}
_OPERATORS = ["==", "!=", "<", "<=", ">", ">="]
# Types of keys as libnftables numbers them, with their size (0: what is left).
_TYPES = {7: ("ip", 4), 8: ("ip", 16), 9: ("mac", 6), 12: ("number", 1), 13: ("number", 2)}


def text() -> str:
    """The whole ruleset. Raises NetlinkError, OSError."""
    lines = []
    tables = nft.socket().dump(uapi.NFT_MSG_GETTABLE, bytes((0, 0, 0, 0)))
    for data in tables:
        family = _FAMILY_NAMES.get(data[0], str(data[0]))
        attributes = nl.attr_map(data, GENMSG_SIZE)
        name = nl.get_text(attributes.get(uapi.NFTA_TABLE_NAME))
        noted = comment_of(attributes.get(uapi.NFTA_TABLE_USERDATA, b""))
        lines.append(f"table {family} {name}{_quoted(noted)}")
        lines += _table(data[:1], name)
    return "".join(f"{line}\n" for line in lines)


def _table(family: bytes, table: str) -> Iterator[str]:
    head = family + bytes(3)
    for data in _of(head, _GETSET, uapi.NFTA_SET_TABLE, table):
        yield from _set(head, table, nl.attr_map(data, GENMSG_SIZE))
    # Rules are dumped by table, and shown below their chains.
    rules: dict[str, list[str]] = {}
    for data in _of(head, uapi.NFT_MSG_GETRULE, uapi.NFTA_RULE_TABLE, table)[:_MOST]:
        attributes = nl.attr_map(data, GENMSG_SIZE)
        chain = nl.get_text(attributes.get(uapi.NFTA_RULE_CHAIN))
        rules.setdefault(chain, []).append(_rule(attributes))
    for data in _of(head, uapi.NFT_MSG_GETCHAIN, uapi.NFTA_CHAIN_TABLE, table):
        attributes = nl.attr_map(data, GENMSG_SIZE)
        name = nl.get_text(attributes.get(uapi.NFTA_CHAIN_NAME))
        yield f"  chain {name}{_base(attributes)}"
        yield from (f"    {line}" for line in rules.pop(name, []))


def _of(head: bytes, kind: int, attribute: int, table: str) -> list[bytes]:
    """A dump's messages about one table; older kernels send those of all tables."""
    try:
        answers = nft.socket().dump(kind, head + nl.text(attribute, table))
    except NetlinkError:
        return []  # the table was just removed
    return [
        each
        for each in answers
        if nl.get_text(nl.attr_map(each, GENMSG_SIZE).get(attribute)) == table
    ]


def _base(attributes: dict[int, bytes]) -> str:
    hook = nl.attr_map(attributes.get(uapi.NFTA_CHAIN_HOOK, b""))
    if not hook:
        return ""
    number = _number(hook.get(uapi.NFTA_HOOK_HOOKNUM))
    priority = _number(hook.get(uapi.NFTA_HOOK_PRIORITY), signed=True)
    policy = _CODES.get(_number(attributes.get(uapi.NFTA_CHAIN_POLICY)), "?")
    kind = nl.get_text(attributes.get(uapi.NFTA_CHAIN_TYPE))
    name = _HOOKS[number] if number < len(_HOOKS) else str(number)
    return f" type {kind} hook {name} priority {priority} policy {policy}"


def _set(head: bytes, table: str, attributes: dict[int, bytes]) -> Iterator[str]:
    name = nl.get_text(attributes.get(uapi.NFTA_SET_NAME))
    key = _number(attributes.get(uapi.NFTA_SET_KEY_TYPE))
    value = _number(attributes.get(uapi.NFTA_SET_DATA_TYPE))
    flags = _number(attributes.get(uapi.NFTA_SET_FLAGS))
    yield (
        f"  set {name} key type {key:#x}"
        + (f" value type {value:#x}" if value else "")
        + (f" flags {flags:#x}")
    )
    names = nl.text(uapi.NFTA_SET_ELEM_LIST_TABLE, table)
    names += nl.text(uapi.NFTA_SET_ELEM_LIST_SET, name)
    shown = 0
    for data in nft.socket().dump(uapi.NFT_MSG_GETSETELEM, head + names):
        listed = nl.attr_map(data, GENMSG_SIZE).get(uapi.NFTA_SET_ELEM_LIST_ELEMENTS, b"")
        for _, element in nl.attrs(listed):
            shown += 1
            if shown > _MOST:
                yield f"    … more than {_MOST} are not shown"
                return
            yield f"    {_element(nl.attr_map(element), key, value)}"


def _element(element: dict[int, bytes], key: int, value: int) -> str:
    noted = comment_of(element.get(uapi.NFTA_SET_ELEM_USERDATA, b""))
    text = _typed(_value(element.get(uapi.NFTA_SET_ELEM_KEY, b"")), key)
    data = element.get(uapi.NFTA_SET_ELEM_DATA)
    if data:
        verdict = _verdict(data)
        text += f" : {verdict or _typed(_value(data), value)}"
    return text + _quoted(noted)


def _typed(raw: bytes, kind: int) -> str:
    """A key or value, whose type may be a concatenation: six bits for each part."""
    kinds: list[int] = []
    while kind:
        kinds.insert(0, kind & 0x3F)
        kind >>= 6
    parts = []
    for each in kinds:
        name, size = _TYPES.get(each, ("", 0))
        size = size or len(raw)
        parts.append(_part(raw[:size], name))
        # Each part of a concatenation fills whole registers of four bytes.
        raw = raw[size + -size % 4 :]
    return " . ".join(parts)


def _part(raw: bytes, kind: str) -> str:
    if kind == "ip" and len(raw) in (4, 16):
        return format_ip(raw)
    if kind == "mac":
        return raw.hex(":")
    return str(int.from_bytes(raw, "big")) if kind == "number" else _bytes(raw)


def _rule(attributes: dict[int, bytes]) -> str:
    pieces = []
    loads_address = False
    for _, item in nl.attrs(attributes.get(uapi.NFTA_RULE_EXPRESSIONS, b"")):
        each = nl.attr_map(item)
        name = nl.get_text(each.get(uapi.NFTA_EXPR_NAME))
        data = nl.attr_map(each.get(uapi.NFTA_EXPR_DATA, b""))
        pieces.append(_expression(name, data, loads_address))
        if name == "payload":
            place = (
                _number(data.get(uapi.NFTA_PAYLOAD_OFFSET)),
                _number(data.get(uapi.NFTA_PAYLOAD_LEN)),
            )
            loads_address = (
                _number(data.get(uapi.NFTA_PAYLOAD_BASE)) == uapi.NFT_PAYLOAD_NETWORK_HEADER
                and place in _ADDRESSES
            )
        # A mask between loading and comparing leaves an address an address.
        elif name != "bitwise":
            loads_address = False
    noted = comment_of(attributes.get(uapi.NFTA_RULE_USERDATA, b""))
    handle = int.from_bytes(attributes.get(uapi.NFTA_RULE_HANDLE, b""), "big")
    return f"{' '.join(f'[{piece}]' for piece in pieces)}{_quoted(noted)} handle {handle}"


def _expression(name: str, data: dict[int, bytes], is_address: bool) -> str:
    shown = ""
    if name == "cmp":
        shown = _comparison(data, is_address)
    elif name == "bitwise":
        mask, xor = data.get(uapi.NFTA_BITWISE_MASK, b""), data.get(uapi.NFTA_BITWISE_XOR, b"")
        shown = f"& {_value(mask).hex()} ^ {_value(xor).hex()}"
    elif name == "immediate":
        inside = data.get(uapi.NFTA_IMMEDIATE_DATA, b"")
        shown = _verdict(inside) or _address(_value(inside))
    elif name == "lookup":
        shown = nl.get_text(data.get(uapi.NFTA_LOOKUP_SET))
    elif name in ("match", "target"):
        what = nl.get_text(data.get(uapi.NFTA_MATCH_NAME))
        shown = f"{what} {_bytes(data.get(uapi.NFTA_MATCH_INFO, b''))}"
    elif name in _NUMBERS:
        shown = " ".join(str(_number(data.get(each))) for each in _NUMBERS[name])
    return f"{name} {shown}".rstrip()


_NUMBERS = {  # what is shown of an expression
    "payload": (uapi.NFTA_PAYLOAD_BASE, uapi.NFTA_PAYLOAD_OFFSET, uapi.NFTA_PAYLOAD_LEN),
    "meta": (uapi.NFTA_META_KEY,),
    "ct": (uapi.NFTA_CT_KEY,),
    "fib": (uapi.NFTA_FIB_FLAGS, uapi.NFTA_FIB_RESULT),
    "counter": (uapi.NFTA_COUNTER_PACKETS, uapi.NFTA_COUNTER_BYTES),
}


def _comparison(data: dict[int, bytes], is_address: bool) -> str:
    operator = _number(data.get(uapi.NFTA_CMP_OP))
    value = _value(data.get(uapi.NFTA_CMP_DATA, b""))
    shown = _address(value) if is_address else _bytes(value)
    return f"{_OPERATORS[operator] if operator < len(_OPERATORS) else operator} {shown}"


def _address(raw: bytes) -> str:
    return format_ip(raw) if len(raw) in (4, 16) else _bytes(raw)


def _verdict(data: bytes) -> str:
    verdict = nl.attr_map(nl.attr_map(data).get(uapi.NFTA_DATA_VERDICT, b""))
    if not verdict:
        return ""
    code = _number(verdict.get(uapi.NFTA_VERDICT_CODE), signed=True)
    chain = nl.get_text(verdict.get(uapi.NFTA_VERDICT_CHAIN))
    return f"{_CODES.get(code, str(code))} {chain}".rstrip()


def _value(data: bytes) -> bytes:
    return nl.attr_map(data).get(uapi.NFTA_DATA_VALUE, b"")


def _bytes(raw: bytes) -> str:
    """Text as text (names of links), numbers as numbers, and what is longer by its length: it may
    hold addresses.
    """
    plain = raw.rstrip(b"\0")
    if len(plain) > 2 and plain.isascii() and plain.decode().isprintable():
        return f'"{plain.decode()}"'
    return f"0x{raw.hex()}" if len(raw) <= 2 or not any(raw[:2]) else f"({len(raw)} bytes)"


def _number(raw: bytes | None, *, signed: bool = False) -> int:
    return int.from_bytes(raw or b"", "big", signed=signed)


def _quoted(text: str) -> str:
    return f' comment "{text}"' if text else ""
