"""Elements of nftables sets and maps: read, added and deleted without libnftables.

The comment of an element names its owner, so a DEL needs neither addresses nor ports. An element is
read by its key and written as one small message: publishing a port neither loads the library (3 ms)
nor reads the other thousand elements.
"""

from __future__ import annotations

from errno import ENOENT
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ..kernel import netlink as nl
from ..kernel.errors import NetlinkError
from . import nft, uapi

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from .nft import Change
    from .table import Table

_JUMP = uapi.NFT_JUMP.to_bytes(4, "big", signed=True)
_KEYS_A_REQUEST = 16  # the kernel answers each with a message; all have to fit into the buffer
_ELEMENTS_A_MESSAGE = 200  # they are one attribute, whose limit is 64 KiB


class Element(NamedTuple):
    """An element of a set or map.

    `key` and `value` are packed as in packets; if they have several parts, each is padded to four
    bytes. A map has either a value for each key (`chain` is empty) or a jump to `chain` (`value` is
    empty); a set has neither.
    """

    key: bytes
    value: bytes
    chain: str
    comment: str


def dump(table: Table, name: str) -> list[bytes]:
    """The kernel's messages about the elements of a set or map, for `matching`; [] without it.

    Raises NetlinkError: Unusable if the kernel has no nf_tables.
    """
    try:
        return nft.socket().dump(uapi.NFT_MSG_GETSETELEM, _set(table, name))
    except NetlinkError as error:
        if error.errno == ENOENT:
            return []
        raise nft.judged(error) from None


def matching(messages: list[bytes], marks: Sequence[bytes]) -> list[Element]:
    """The elements of a dump whose message contains one of these byte strings.

    Only those are parsed, since few elements of a large map belong to one attachment.
    """
    matches: list[Element] = []
    for data in messages:
        # one message has many elements: a search in all of it sorts out most messages
        first, *others = [mark for mark in marks if mark in data] or [b""]
        if first:
            matches += [
                parse(raw)
                for raw in _listed(data)
                if first in raw or (others and any(mark in raw for mark in others))
            ]
    return matches


def unwanted(messages: list[bytes], prefix: str, keep: Collection[str]) -> list[Element]:
    """The elements of a dump whose comment begins with `prefix`, but with none of `keep`.

    All of `keep` have one length, and begin with `prefix`. A message is not parsed if each
    `prefix` in it begins one of `keep`.
    """
    mark = prefix.encode()
    size = max(map(len, keep), default=0)
    rest = {each[len(prefix) :].encode() for each in keep}
    end = size - len(prefix)
    doubtful = [
        data for data in messages if any(part[:end] not in rest for part in data.split(mark)[1:])
    ]
    return [
        element
        for element in matching(doubtful, [mark])
        if element.comment.startswith(prefix) and element.comment[:size] not in keep
    ]


def has_more_than(messages: list[bytes], number: int) -> bool:
    """Has a dump more than `number` elements? Stops counting there."""
    listed = (raw for data in messages for raw in _listed(data))
    return sum(1 for _ in islice(listed, number + 1)) > number


def parse(raw: bytes) -> Element:
    """An element as the kernel describes it."""
    attributes = nl.attr_map(raw)
    data = nl.attr_map(attributes.get(uapi.NFTA_SET_ELEM_DATA, b""))
    verdict = nl.attr_map(data.get(uapi.NFTA_DATA_VERDICT, b""))
    return Element(
        nl.attr_map(attributes.get(uapi.NFTA_SET_ELEM_KEY, b"")).get(uapi.NFTA_DATA_VALUE, b""),
        data.get(uapi.NFTA_DATA_VALUE, b""),
        nl.get_text(verdict.get(uapi.NFTA_VERDICT_CHAIN)),
        nft.comment_of(attributes.get(uapi.NFTA_SET_ELEM_USERDATA, b"")),
    )


def elements(table: Table, name: str) -> list[Element]:
    """All elements of a set or map; [] if it is missing. Raises as `dump`."""
    return [parse(raw) for data in dump(table, name) for raw in _listed(data)]


def find(table: Table, name: str, key: bytes) -> Element | None:
    """The element with that key; None if there is none. Raises NetlinkError."""
    return next(iter(find_run(table, name, [key])), None)


def find_run(table: Table, name: str, keys: Sequence[bytes]) -> list[Element]:
    """The elements with these keys, up to the first key that has none. Raises NetlinkError."""
    present: list[Element] = []
    head = _set(table, name)
    for start in range(0, len(keys), _KEYS_A_REQUEST):
        asked = keys[start : start + _KEYS_A_REQUEST]
        payload = head + _list([_key(key) for key in asked])
        answers = nft.socket().get_each(uapi.NFT_MSG_GETSETELEM, payload)
        present += [parse(raw) for data in answers for raw in _listed(data)]
        if len(answers) < len(asked):
            break
    return present


def find_all(table: Table, name: str, keys: Sequence[bytes]) -> list[Element]:
    """The elements with these keys, without those that do not exist. Raises NetlinkError."""
    present: list[Element] = []
    start = 0
    while start < len(keys):
        run = find_run(table, name, keys[start:])
        present += run
        start += len(run) + 1
    return present


def insert(table: Table, name: str, items: Sequence[Element]) -> Iterator[Change]:
    """Changes for `nft.transact`: create elements; they fail with EEXIST if a key is taken."""
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    return _changes(uapi.NFT_MSG_NEWSETELEM, _set(table, name), map(_element, items), flags)


def put(table: Table, name: str, items: Sequence[Element]) -> list[Change]:
    """Changes for `nft.settle`: create elements, or replace those with the same keys.

    Reads which of them exist. One that is as wanted stays, and only another's is deleted: whatever
    a transaction deletes keeps the closing of the socket waiting (`nft`). Raises NetlinkError.
    """
    wanted = {item.key: item for item in items}
    return replace(table, name, find_all(table, name, list(wanted)), list(wanted.values()))


def replace(
    table: Table, name: str, have: Iterable[Element], wanted: Iterable[Element]
) -> list[Change]:
    """Changes for `nft.transact` that turn the elements of `have` into those of `wanted`."""
    before, after = dict.fromkeys(have), dict.fromkeys(wanted)
    # adding an element that exists would keep its old comment, so it is deleted before
    stale = [element for element in before if element not in after]
    new = [element for element in after if element not in before]
    return [*remove(table, name, stale), *insert(table, name, new)]


def without(table: Table, name: str, keys: Sequence[bytes]) -> list[Change]:
    """Changes for `nft.settle`: delete the elements with these keys that exist.

    Raises NetlinkError.
    """
    return [*remove(table, name, find_all(table, name, keys))]


def remove(table: Table, name: str, items: Sequence[Element]) -> Iterator[Change]:
    """Changes for `nft.transact`: delete elements; they fail with ENOENT if one does not exist."""
    keys = (_key(element.key) for element in items)
    return _changes(uapi.NFT_MSG_DELSETELEM, _set(table, name), keys, 0)


def delete_matching(table: Table, name: str, prefix: str, keep: Collection[str] = ()) -> None:
    """Delete the elements that are `unwanted`.

    Repeats the dump if another process has deleted one of them meanwhile. Raises NetlinkError.
    """
    for last in (False, False, False, True):
        stale = unwanted(dump(table, name), prefix, keep)
        try:
            nft.transact([*remove(table, name, stale)])
            return
        except NetlinkError as error:
            # ENOENT: one of them is gone by now, and with it the whole transaction was refused
            if error.errno != ENOENT or last:
                raise


def _changes(kind: int, head: bytes, items: Iterable[bytes], flags: int) -> Iterator[Change]:
    rest = list(items)
    for start in range(0, len(rest), _ELEMENTS_A_MESSAGE):
        yield kind, head + _list(rest[start : start + _ELEMENTS_A_MESSAGE]), flags


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
