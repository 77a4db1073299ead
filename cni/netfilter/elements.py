"""Elements of nftables sets and maps: looked at, added and deleted without libnftables.

An element's comment says whose it is, so that a DEL needs neither addresses nor ports. All that is
asked for here is small and of a known form, so that a publication of a port costs neither the
library (3 ms to load) nor a look at the other thousand (netfilter/nft.py, whose socket and
transactions these use).
"""

from __future__ import annotations

from errno import ENOENT
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ..kernel import netlink as nl
from ..kernel.errors import NetlinkError, Unusable
from . import nft, uapi

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from .nft import Change
    from .table import Table

_JUMP = uapi.NFT_JUMP.to_bytes(4, "big", signed=True)
_ASKED = 16  # keys a request: each is answered by a message, and all have to fit the buffer
_CHUNK = 200  # elements a message: their list is an attribute, at most 64 KiB


class Element(NamedTuple):
    """An element: its key as the kernel keeps it; in a map, either a value or a chain.

    A key or value of several parts has each padded to four bytes.
    """

    key: bytes
    value: bytes
    chain: str
    comment: str


def dump(table: Table, name: str) -> list[bytes]:
    """The kernel's messages about a set or map; none if there is none. Raises Unusable."""
    try:
        return nft.socket().dump(uapi.NFT_MSG_GETSETELEM, _set(table, name))
    except NetlinkError as error:
        if error.errno == ENOENT:
            return []
        raise Unusable(error.errno or 0, error.explanation) from None


def matching(messages: list[bytes], marks: Sequence[bytes]) -> list[Element]:
    """Of a dump, the elements with one of these bytes anywhere in them.

    Of a large map few elements are ours: only those are taken apart.
    """
    found: list[Element] = []
    for data in messages:
        first, *others = [mark for mark in marks if mark in data] or [b""]
        if first:
            found += [
                parse(raw)
                for raw in _listed(data)
                if first in raw or (others and any(mark in raw for mark in others))
            ]
    return found


def has_more_than(messages: list[bytes], number: int) -> bool:
    """Has a dump more elements than that? Of a large one only so many are looked at."""
    listed = (raw for data in messages for raw in _listed(data))
    return sum(1 for _ in islice(listed, number + 1)) > number


def parse(raw: bytes) -> Element:
    """An element as the kernel describes it."""
    found = nl.attr_map(raw)
    data = nl.attr_map(found.get(uapi.NFTA_SET_ELEM_DATA, b""))
    verdict = nl.attr_map(data.get(uapi.NFTA_DATA_VERDICT, b""))
    return Element(
        nl.attr_map(found.get(uapi.NFTA_SET_ELEM_KEY, b"")).get(uapi.NFTA_DATA_VALUE, b""),
        data.get(uapi.NFTA_DATA_VALUE, b""),
        nl.get_text(verdict.get(uapi.NFTA_VERDICT_CHAIN)),
        nft.comment_of(found.get(uapi.NFTA_SET_ELEM_USERDATA, b"")),
    )


def elements(table: Table, name: str) -> list[Element]:
    """All that is in the set; nothing if there is no such set. Raises Unusable."""
    return [parse(raw) for data in dump(table, name) for raw in _listed(data)]


def find(table: Table, name: str, key: bytes) -> Element | None:
    """The element under a key. Raises NetlinkError."""
    return next(iter(find_run(table, name, [key])), None)


def find_run(table: Table, name: str, keys: Sequence[bytes]) -> list[Element]:
    """The elements under the keys, up to the first that has none. Raises NetlinkError."""
    found: list[Element] = []
    head = _set(table, name)
    for start in range(0, len(keys), _ASKED):
        asked = keys[start : start + _ASKED]
        payload = head + _list([_key(key) for key in asked])
        answers = nft.socket().get_each(uapi.NFT_MSG_GETSETELEM, payload)
        found += [parse(raw) for data in answers for raw in _listed(data)]
        if len(answers) < len(asked):
            break
    return found


def find_all(table: Table, name: str, keys: Sequence[bytes]) -> list[Element]:
    """The elements under those of the keys that have one. Raises NetlinkError."""
    found: list[Element] = []
    start = 0
    while start < len(keys):
        run = find_run(table, name, keys[start:])
        found += run
        start += len(run) + 1
    return found


def insert(table: Table, name: str, items: Sequence[Element]) -> Iterator[Change]:
    """For `nft.transact`: add elements; EEXIST if a key is taken."""
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    return _changes(uapi.NFT_MSG_NEWSETELEM, _set(table, name), map(_element, items), flags)


def put(table: Table, name: str, items: Sequence[Element]) -> Iterator[Change]:
    """For `nft.transact`: have elements as they are here, whatever is under their keys."""
    head = _set(table, name)
    # an element that is there would stay as it is: a comment is not changed by adding it again
    yield from _changes(
        uapi.NFT_MSG_NEWSETELEM, head, (_key(e.key) for e in items), nl.NLM_F_CREATE
    )
    yield from remove(table, name, items)
    yield from _changes(uapi.NFT_MSG_NEWSETELEM, head, map(_element, items), nl.NLM_F_CREATE)


def remove(table: Table, name: str, items: Sequence[Element]) -> Iterator[Change]:
    """For `nft.transact`: delete elements; ENOENT if one is not there."""
    keys = (_key(element.key) for element in items)
    return _changes(uapi.NFT_MSG_DELSETELEM, _set(table, name), keys, 0)


def delete_matching(table: Table, name: str, prefix: str, keep: Collection[str] = ()) -> None:
    """Delete the elements whose comment starts with `prefix` and is not in `keep`.

    Also while others delete the same. Raises NetlinkError.
    """
    for last in (False, False, False, True):
        stale = [
            element
            for element in matching(dump(table, name), [prefix.encode()])
            if element.comment.startswith(prefix) and element.comment not in keep
        ]
        try:
            return nft.transact([*remove(table, name, stale)]) if stale else None
        except NetlinkError as error:
            if error.errno != ENOENT or last:
                raise
    return None


def _changes(kind: int, head: bytes, items: Iterable[bytes], flags: int) -> Iterator[Change]:
    rest = list(items)
    for start in range(0, len(rest), _CHUNK):
        yield kind, head + _list(rest[start : start + _CHUNK]), flags


def _element(element: Element) -> bytes:
    parts = _key(element.key)
    if element.chain:
        chain = nl.text(uapi.NFTA_VERDICT_CHAIN, element.chain)
        verdict = nl.nest(uapi.NFTA_DATA_VERDICT, nl.attr(uapi.NFTA_VERDICT_CODE, _JUMP), chain)
        parts += nl.nest(uapi.NFTA_SET_ELEM_DATA, verdict)
    elif element.value:
        parts += nl.nest(uapi.NFTA_SET_ELEM_DATA, nl.attr(uapi.NFTA_DATA_VALUE, element.value))
    if element.comment:
        parts += nl.attr(uapi.NFTA_SET_ELEM_USERDATA, nft.userdata(element.comment))
    return parts


def _key(key: bytes) -> bytes:
    return nl.nest(uapi.NFTA_SET_ELEM_KEY, nl.attr(uapi.NFTA_DATA_VALUE, key))


def _list(items: Sequence[bytes]) -> bytes:
    return nl.nest(
        uapi.NFTA_SET_ELEM_LIST_ELEMENTS, *(nl.nest(uapi.NFTA_LIST_ELEM, item) for item in items)
    )


def _listed(payload: bytes) -> list[bytes]:
    listed = nl.attr_map(payload, nft.GENMSG_SIZE).get(uapi.NFTA_SET_ELEM_LIST_ELEMENTS, b"")
    return [raw for _, raw in nl.attrs(listed)]


def _set(table: Table, name: str) -> bytes:
    return table.message(
        nl.text(uapi.NFTA_SET_ELEM_LIST_TABLE, table.name),
        nl.text(uapi.NFTA_SET_ELEM_LIST_SET, name),
    )
