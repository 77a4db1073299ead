"""Elements of nftables sets and maps by owner: found in the kernel's dump, deleted over netlink.

An element's comment says whose it is, so that a DEL needs neither addresses nor libnftables
(kernel/nft.py, whose socket and transactions these use).
"""

from __future__ import annotations

from errno import ENOENT
from typing import TYPE_CHECKING, NamedTuple

from . import netlink as nl
from . import nft
from .netlink import NetlinkError

if TYPE_CHECKING:
    from collections.abc import Collection

# linux/netfilter/nf_tables.h
_GETSETELEM, _DELSETELEM = (nft.SUBSYSTEM | n for n in (13, 14))
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM = 1
_ELEM_KEY, _ELEM_USERDATA = 1, 6
_DATA_VALUE = 1


class Element(NamedTuple):
    """A set's element: its key as the kernel keeps it, and its comment."""

    key: bytes
    comment: str


def elements(family: str, table: str, name: str) -> list[Element]:
    """What is in the set; nothing if there is no such set. Raises nft.Unusable."""
    try:
        dump = nft.socket().dump(_GETSETELEM, _set(family, table, name))
    except NetlinkError as error:
        if error.errno == ENOENT:
            return []
        raise nft.Unusable(error.errno or 0, error.detail) from None
    found = []
    for message in dump:
        listed = nl.attr_map(message, nft.GENMSG_SIZE).get(_LIST_ELEMENTS, b"")
        for _, data in nl.attrs(listed):
            element = nl.attr_map(data)
            key = nl.attr_map(element.get(_ELEM_KEY, b"")).get(_DATA_VALUE, b"")
            found.append(Element(key, nft.comment_of(element.get(_ELEM_USERDATA, b""))))
    return found


def delete_matching(
    family: str, table: str, name: str, prefix: str, keep: Collection[str] = ()
) -> None:
    """Delete the elements whose comment starts with `prefix` and is not in `keep`.

    Also while others delete the same. Raises NetlinkError.
    """
    for last in (False, False, False, True):
        stale = [
            element.key
            for element in elements(family, table, name)
            if element.comment.startswith(prefix) and element.comment not in keep
        ]
        try:
            return nft.transact([_delete(family, table, name, key) for key in stale])
        except NetlinkError as error:
            if error.errno != ENOENT or last:
                raise
    return None


def _delete(family: str, table: str, name: str, key: bytes) -> tuple[int, bytes]:
    element = nl.nest(_LIST_ELEM, nl.nest(_ELEM_KEY, nl.attr(_DATA_VALUE, key)))
    return _DELSETELEM, _set(family, table, name) + nl.nest(_LIST_ELEMENTS, element)


def _set(family: str, table: str, name: str) -> bytes:
    return nft.message(family, nl.text(_LIST_TABLE, table), nl.text(_LIST_SET, name))
