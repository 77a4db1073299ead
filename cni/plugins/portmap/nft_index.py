"""Finding a container's elements by key, so that one of a thousand takes no longer than the first.

Two more sets in the table, changed in the same transactions as the elements that they index:

    map by_owner     owner's key . number : host IP . protocol . port   (0.0.0.0, ::: every address)
    set by_address   network's key . address; the comment names the owner

An owner's ports are numbered from 0 without gaps, so that they can be read one after the other. The
keys are those at the beginning of every comment (owner.py). An element of by_owner under the key of
zeros marks the index as complete. Tables of earlier builds have no index until the next ADD;
without the mark all elements are read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from ...netfilter import elements
from ...netfilter.elements import Element
from ...netfilter.expressions import native
from ...netfilter.table import Table
from ...owner import Owner, network_key
from ...protocol.address import Prefix
from .nft_chains import BY_ADDRESS, BY_OWNER, INDEX, KEY, MAPS, NAMES, TABLE, family_of

Elements = dict[str, list[Element]]  # by the name of their map or set

_WORDS = 4  # in an owner's key; the first half is the network's key
_NOBODY = bytes(4 * (_WORDS + 1))
_RUN = 15  # an owner's ports asked for at once


# --- the index as it has to be --------------------------------------------------------------------


def complete(family: str) -> Element:
    """The element that marks the index as complete."""
    return Element(_NOBODY, bytes(_address_size(family) + 8), "", "all that is published is here")


def of(family: str, maps: Elements) -> Elements:
    """The elements of the index for these elements of the maps, which may be of several owners."""
    ports: dict[str, dict[bytes, str]] = {}
    by_address: dict[bytes, Element] = {}
    everywhere = bytes(_address_size(family))
    for name in NAMES:
        for element in maps[name]:
            owner = element.comment[:KEY]
            if not _is_key(owner):
                continue  # an administrator's element
            host_ip = b"" if name in MAPS[True] else everywhere
            ports.setdefault(owner, {})[host_ip + element.key] = element.comment
            if element.value:
                key = _words(owner)[: 2 * _WORDS] + element.value[:-4]
                by_address[key] = Element(key, b"", "", element.comment)
    by_owner = [
        Element(_words(owner) + native(number), port, "", comment)
        for owner, keys in ports.items()
        for number, (port, comment) in enumerate(sorted(keys.items()))
    ]
    return {BY_OWNER: by_owner, BY_ADDRESS: list(by_address.values())}


def _is_key(text: str) -> bool:
    first, _, second = text.partition("-")
    return len(first) == len(second) == 16 and set(first + second) <= set("0123456789abcdef")


def _words(owner: str) -> bytes:
    """An owner's key as four numbers, which nft(8) shows with the same digits."""
    digits = owner.replace("-", "")
    words = (digits[at : at + 8] for at in range(0, len(digits), 8))
    return b"".join(native(int(word, 16)) for word in words)


def _address_size(family: str) -> int:
    return 4 if family == "ip" else 16


# --- the index as it is ---------------------------------------------------------------------------


def ports_of(family: str, owner: str) -> list[Element] | None:
    """The elements of by_owner for an owner, by its key; None if the index is not complete."""
    listed: list[Element] = []
    first, words = [_NOBODY], _words(owner)
    while True:
        keys = [words + native(number) for number in range(len(listed), len(listed) + _RUN)]
        run = elements.find_run(Table(family, TABLE), BY_OWNER, [*first, *keys])
        if first and not run:
            return None
        listed += run[len(first) :]
        if len(run) < len(first) + len(keys):
            return listed
        first = []


def held(family: str, owner: str, listed: list[Element], keys: Collection[bytes] = ()) -> Elements:
    """All elements of an owner, found through `listed` (its elements of by_owner) or `keys`.

    Keys are as in by_owner: with the host IP.
    """
    size = _address_size(family)
    asked = {element.value for element in listed} | set(keys)
    by_name: Elements = {BY_OWNER: listed}
    for at, names in MAPS.items():
        some = sorted(key if at else key[size:] for key in asked if any(key[:size]) is at)
        for name in names:
            have = elements.find_all(Table(family, TABLE), name, some)
            by_name[name] = [element for element in have if element.comment.startswith(owner)]
    addresses = {element.value[:-4] for name in NAMES for element in by_name[name] if element.value}
    holders = [_words(owner)[: 2 * _WORDS] + address for address in sorted(addresses)]
    have = elements.find_all(Table(family, TABLE), BY_ADDRESS, holders)
    by_name[BY_ADDRESS] = [element for element in have if element.comment.startswith(owner)]
    return by_name


def holder(owner: Owner, address: Prefix) -> Element | None:
    """The element that says which owner has the address in the network."""
    network = _words(network_key(owner.network))
    return elements.find(Table(family_of(address), TABLE), BY_ADDRESS, network + address.ip)


def dumped(family: str) -> Elements:
    """All elements of the family, by map."""
    return {name: elements.elements(Table(family, TABLE), name) for name in (*NAMES, *INDEX)}


def matching(family: str, mark: str, unwanted: Callable[[str], bool]) -> Elements:
    """The unwanted elements. `mark` is in the comments of all of them, and of few others."""
    per_map: Elements = {}
    for name in (*NAMES, *INDEX):
        dump = elements.dump(Table(family, TABLE), name)
        have = elements.matching(dump, [mark.encode()])
        per_map[name] = [element for element in have if unwanted(element.comment)]
    return per_map


def unwanted(family: str, network: str, keep: Collection[str]) -> Elements:
    """The elements of a network's owners whose keys are not in `keep`; `network` is its key."""
    return {
        name: elements.unwanted(elements.dump(Table(family, TABLE), name), f"{network}-", keep)
        for name in (*NAMES, *INDEX)
    }


def merged(parts: Iterable[Elements]) -> Elements:
    """The union of these, each element once."""
    together: dict[str, dict[Element, None]] = {name: {} for name in (*NAMES, *INDEX)}
    for part in parts:
        for name, items in part.items():
            together[name].update(dict.fromkeys(items))
    return {name: list(items) for name, items in together.items()}
