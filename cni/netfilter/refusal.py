"""Why nf_tables refused a change, in words; loaded only after a refusal.

The kernel's acknowledgement names the message, an errno and, since Linux 4.12, the attribute that
it rejects (NLMSGERR_ATTR_OFFS). Which errno means what: net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

from errno import (
    EAFNOSUPPORT,
    EBUSY,
    EEXIST,
    EINVAL,
    ELOOP,
    EMLINK,
    ENFILE,
    ENOENT,
    EOPNOTSUPP,
    EPERM,
)
from typing import TYPE_CHECKING, NamedTuple

from ..kernel import netlink as nl
from ..kernel.errors import NetlinkError, Refused
from . import nft, uapi
from .expressions import HOOKS

if TYPE_CHECKING:
    from .nft import Change

_NAME = 2  # the attribute of a rule's chain, of a set and of the set of elements; a chain has 3
_TABLE = 1  # the attribute that names the table, of every kind of message

# The object exists and differs: EEXIST, or EBUSY before Linux 5.8.
_CLASHING = (uapi.NFT_MSG_NEWCHAIN, uapi.NFT_MSG_NEWSETELEM)
_TABLES = (uapi.NFT_MSG_NEWTABLE, uapi.NFT_MSG_DELTABLE)
_CHAINS = (uapi.NFT_MSG_NEWCHAIN, uapi.NFT_MSG_DELCHAIN)
_DOING = {
    uapi.NFT_MSG_NEWTABLE: "making",
    uapi.NFT_MSG_DELTABLE: "deleting",
    uapi.NFT_MSG_NEWCHAIN: "making chain",
    uapi.NFT_MSG_DELCHAIN: "deleting chain",
    uapi.NFT_MSG_NEWRULE: "adding a rule to chain",
    uapi.NFT_MSG_DELRULE: "deleting rules of chain",
    uapi.NFT_MSG_NEWSET: "making set",
    uapi.NFT_MSG_DELSET: "deleting set",
    uapi.NFT_MSG_NEWSETELEM: "adding elements to set",
    uapi.NFT_MSG_DELSETELEM: "deleting elements of set",
}


class _Failure(NamedTuple):
    """A refused message: its kind and family, the names in it, and the part that the kernel blames.

    `attribute` is the number of the blamed attribute (0 if it is not known), `expression` the name
    of the blamed expression and `operand` the set or chain that this expression names.
    """

    kind: int
    family: str
    table: str
    name: str
    attributes: dict[int, bytes]
    attribute: int = 0
    expression: str = ""
    operand: str = ""


def refused(change: Change, errno: int, flags: int, answer: bytes) -> Refused:
    """The error for a change that was answered by this acknowledgement (flags, payload)."""
    kind, payload, _ = change
    if errno == EBUSY and kind in _CLASHING:
        errno = EEXIST
    said = nl.acknowledged(flags, answer)
    words = nl.get_text(said.get(nl.NLMSGERR_ATTR_MSG))
    if kind not in _DOING:  # not one change, but the transaction as a whole
        return Refused(errno, words, nft.UNUSABLE)
    failure = _look_at(kind, payload, nl.get_u32(said.get(nl.NLMSGERR_ATTR_OFFS)))
    reason = words or _reason(failure, errno)
    what = f"{_DOING[kind]} {failure.name} in" if failure.name else _DOING[kind]
    text = f"{what} table {failure.family} {failure.table}"
    return Refused(errno, f"{text}: {reason}" if reason else text, _hint(failure, errno))


def _look_at(kind: int, payload: bytes, offset: int) -> _Failure:
    """Find the blamed attribute by its `offset` from the message's header; 0 if there is none."""
    attributes = nl.attr_map(payload, nft.GENMSG_SIZE)
    family = next((name for name, number in nft.FAMILIES.items() if number == payload[0]), "?")
    number = uapi.NFTA_CHAIN_NAME if kind in _CHAINS else _NAME
    name = "" if kind in _TABLES else nl.get_text(attributes.get(number))
    failure = _Failure(kind, family, nl.get_text(attributes.get(_TABLE)), name, attributes)
    blamed, inside = _at(payload, nft.GENMSG_SIZE, offset - _NLMSGHDR)
    if kind == uapi.NFT_MSG_NEWRULE and blamed == uapi.NFTA_RULE_EXPRESSIONS:
        expressions = attributes[blamed]
        return _at_expression(failure._replace(attribute=blamed), expressions, inside)
    return failure._replace(attribute=blamed)


_NLMSGHDR = 16


def _at(data: bytes, start: int, offset: int) -> tuple[int, int]:
    """The type of the attribute at `offset` of `data`, and the offset within its payload.

    (0, 0) if there is none.
    """
    end = start
    for kind, value in nl.attrs(data, start):
        begin, end = end, end + (4 + len(value) + 3 & ~3)
        if begin <= offset < end:
            return kind, offset - begin - 4
    return 0, 0


def _at_expression(failure: _Failure, expressions: bytes, offset: int) -> _Failure:
    end = 0
    for _, item in nl.attrs(expressions):
        end += 4 + len(item) + 3 & ~3
        if 0 <= offset < end:
            parts = nl.attr_map(item)
            data = nl.attr_map(parts.get(uapi.NFTA_EXPR_DATA, b""))
            name = nl.get_text(parts.get(uapi.NFTA_EXPR_NAME))
            operand = data.get(uapi.NFTA_LOOKUP_SET) if name == "lookup" else None
            if name == "immediate":
                verdict = nl.attr_map(data.get(uapi.NFTA_IMMEDIATE_DATA, b""))
                verdict = nl.attr_map(verdict.get(uapi.NFTA_DATA_VERDICT, b""))
                operand = verdict.get(uapi.NFTA_VERDICT_CHAIN)
            return failure._replace(expression=name, operand=nl.get_text(operand))
    return failure


# --- the reason -----------------------------------------------------------------------------------


def _reason(failure: _Failure, errno: int) -> str:
    """Why the kernel refused it; "" if the errno says everything."""
    if failure.kind == uapi.NFT_MSG_NEWCHAIN and errno in (EEXIST, EOPNOTSUPP):
        return _other_chain(failure)
    if errno in (ELOOP, EMLINK):
        return "the chains would lead in a circle, or too deep"
    if failure.expression:
        return _about_expression(failure, errno)
    if errno == ENOENT:
        return _missing(failure)
    if errno in (EAFNOSUPPORT, EOPNOTSUPP) and failure.kind == uapi.NFT_MSG_NEWTABLE:
        return f"this kernel has no nftables for the family {failure.family}"
    is_set = failure.kind == uapi.NFT_MSG_NEWSET
    return {
        EINVAL: "somebody has made that table dormant" if _is_asleep(failure, errno) else "",
        EEXIST: "there is one with other types or flags" if is_set else "one of them is there",
        EPERM: "another program owns that table",
        EBUSY: "something still refers to it",
        ENFILE: "it is full",
    }.get(errno, "")


def _missing(failure: _Failure) -> str:
    if failure.kind == uapi.NFT_MSG_NEWCHAIN and failure.attribute == uapi.NFTA_CHAIN_TYPE:
        kind = nl.get_text(failure.attributes.get(uapi.NFTA_CHAIN_TYPE))
        return f"this kernel has no chains of type {kind} for the family {failure.family}"
    if failure.attribute == _TABLE:
        return "there is no such table"
    if failure.kind in (uapi.NFT_MSG_NEWSETELEM, uapi.NFT_MSG_DELSETELEM):
        has_set = failure.attribute != _NAME
        return (
            "one of them, or what it leads to, is not there" if has_set else "there is no such set"
        )
    return "there is no such thing"


def _about_expression(failure: _Failure, errno: int) -> str:
    name, operand = failure.expression, failure.operand
    if errno == ENOENT and operand:
        return f"there is no {'set' if name == 'lookup' else 'chain'} {operand}"
    if errno == ENOENT:
        return f"this kernel does not have the expression {name}"
    if errno == EOPNOTSUPP and operand and name == "immediate":
        there = _chain(failure._replace(name=operand))
        return f"chain {operand} cannot be jumped to" + (f": it is {there}" if there else "")
    return f"at the expression {name}" + (f" ({operand})" if operand else "")


def _other_chain(failure: _Failure) -> str:
    there, wanted = _chain(failure), _form(failure.attributes)
    if not there:
        return f"this kernel has no such hook or type for it: {wanted}"
    return f"there is one of {there}, and this one is of {wanted}"


def _chain(failure: _Failure) -> str:
    """The form of the chain that has this name now; "" if there is none, or it cannot be read."""
    names = (
        nl.text(uapi.NFTA_CHAIN_TABLE, failure.table),
        nl.text(uapi.NFTA_CHAIN_NAME, failure.name),
    )
    try:
        data = nft.socket().get(uapi.NFT_MSG_GETCHAIN, nft.message(failure.family, *names))
    except (NetlinkError, KeyError):
        return ""
    return _form(nl.attr_map(data, nft.GENMSG_SIZE))


def _is_asleep(failure: _Failure, errno: int) -> bool:
    """Was a chain refused because its table was dormant until this transaction?"""
    if failure.kind != uapi.NFT_MSG_NEWCHAIN or errno != EINVAL:
        return False
    name = nl.text(uapi.NFTA_TABLE_NAME, failure.table)
    try:
        data = nft.socket().get(uapi.NFT_MSG_GETTABLE, nft.message(failure.family, name))
    except (NetlinkError, KeyError):
        return False
    flags = nl.attr_map(data, nft.GENMSG_SIZE).get(uapi.NFTA_TABLE_FLAGS, b"")
    return bool(int.from_bytes(flags, "big") & uapi.NFT_TABLE_F_DORMANT)


def _form(attributes: dict[int, bytes]) -> str:
    """A chain's type, hook and priority, as nft(8) lists them."""
    hook = nl.attr_map(attributes.get(uapi.NFTA_CHAIN_HOOK, b""))
    if not hook:
        return "no hook"
    number = int.from_bytes(hook.get(uapi.NFTA_HOOK_HOOKNUM, b""), "big")
    priority = int.from_bytes(hook.get(uapi.NFTA_HOOK_PRIORITY, b""), "big", signed=True)
    name = next((name for name, value in HOOKS.items() if value == number), str(number))
    kind = nl.get_text(attributes.get(uapi.NFTA_CHAIN_TYPE))
    return f"type {kind} hook {name} priority {priority}"


def _hint(failure: _Failure, errno: int) -> str:
    place = f"{failure.family} {failure.table}"
    if failure.kind == uapi.NFT_MSG_NEWCHAIN and errno in (EEXIST, EOPNOTSUPP):
        if not _chain(failure):
            return nft.UNUSABLE
        return (
            f"look at it: `nft list chain {place} {failure.name}`; "
            "the program that made it has to use another table"
        )
    if _is_asleep(failure, errno):
        return f"`nft add table {place}` wakes it"
    if errno in (EPERM, EOPNOTSUPP, EAFNOSUPPORT) and failure.kind in _TABLES:
        return nft.UNUSABLE
    return f"look at it: `nft list table {place}`"
