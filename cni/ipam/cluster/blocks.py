"""Blocks of addresses: pure arithmetic. Their names, and the order in which nodes try them.

A subnet is divided into blocks of one prefix length. Blocks without an address to give out (outside
of the ranges, or wholly excluded) do not count. Nothing here enumerates blocks: a /64 of /122
blocks takes no longer than a /24.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from ...protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from ..host_local.ranges import Range, RangeSet, Span

_GROUPS = 8  # groups of an IPv6 address
_GUESSES = 8  # random attempts before all blocks are searched: then most are taken


class Area(NamedTuple):
    """The blocks of one subnet: their prefix length, and their numbers, from and to, inclusive.

    A block's number is its first address without the bits that count within the block.
    """

    subnet: Prefix
    length: int
    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """How many blocks there are."""
        return sum(last - first + 1 for first, last in self.spans)

    def block(self, index: int) -> Prefix:
        """The block at a place, from 0 to `size`."""
        for first, last in self.spans:
            if index <= last - first:
                return self._of_number(first + index)
            index -= last - first + 1
        raise IndexError(index)

    def place(self, block: Prefix) -> int:
        """The place of one of these blocks, from 0 to `size`."""
        number = int.from_bytes(block.ip, "big") >> self._shift
        before = 0
        for first, last in self.spans:
            if number <= last:
                return before + number - first
            before += last - first + 1
        raise ValueError(block)

    def block_of(self, packed: bytes) -> Prefix | None:
        """The block with the address; None if it is in none of these."""
        if not self.subnet.contains(packed):
            return None
        number = int.from_bytes(packed, "big") >> self._shift
        if any(first <= number <= last for first, last in self.spans):
            return self._of_number(number)
        return None

    @property
    def _shift(self) -> int:
        return self.subnet.bits - self.length

    def _of_number(self, number: int) -> Prefix:
        packed = (number << self._shift).to_bytes(self.subnet.bits // 8, "big")
        return Prefix(packed, self.length)


Areas = tuple[Area, ...]


def areas_of(ranges: RangeSet, length_of: dict[Prefix, int]) -> Areas:
    """The blocks of a range set; `length_of` is the prefix length of each subnet's blocks."""
    spans: dict[Prefix, list[Span]] = {}
    for each, low, high in ranges.spans():
        shift = each.subnet.bits - length_of[each.subnet]
        spans.setdefault(each.subnet, []).append((low >> shift, high >> shift))
    return tuple(Area(subnet, length_of[subnet], _joined(of)) for subnet, of in spans.items())


def _joined(spans: list[Span]) -> tuple[Span, ...]:
    """The spans in order; spans that touch or overlap are joined."""
    joined: list[Span] = []
    for low, high in sorted(spans):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return tuple(joined)


# --- names ---


def key_of(block: Prefix) -> str:
    """A block as a word of a key: ``10.64.3.0-26``; of IPv6 all groups: ``fd00-0022-…-0040-122``.

    Each block has only this name, so two claims of the same addresses conflict in the store.
    """
    if block.is_v4:
        return f"{format_ip(block.ip)}-{block.length}"
    digits = block.ip.hex()
    groups = [digits[i : i + 4] for i in range(0, 32, 4)]
    return "-".join((*groups, str(block.length)))


def block_of_key(word: str) -> Prefix:
    """The block that `key_of` gave this name. Raises InvalidAddress."""
    *groups, length = word.split("-")
    text = ":".join(groups) if len(groups) == _GROUPS else "".join(groups)
    block = Prefix.parse(f"{text}/{length}")
    if key_of(block) != word:
        raise InvalidAddress(f"invalid name of a block: {word}")
    return block


# --- choosing ---


def count(areas: Areas) -> int:
    """How many blocks there are."""
    return sum(each.size for each in areas)


def start(node: str, attempt: int, of: int, guess: int = 0) -> int:
    """The place, of `of` blocks, at which a node begins to look: a hash of name and attempt.

    So nodes that look at the same time begin at different places.
    """
    from _blake2 import blake2b  # not hashlib, which loads OpenSSL

    text = f"{attempt}\0{node}\0{guess}" if guess else f"{attempt}\0{node}"
    digest = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16)
    return int.from_bytes(digest.digest(), "big") % of


def in_order(areas: Areas, first: int) -> Iterator[Prefix]:
    """Every block once, from the place `first` to the end, then from the beginning."""
    total = count(areas)
    for step in range(total):
        yield block_in(areas, (first + step) % total)


def block_in(areas: Areas, place: int) -> Prefix:
    """The block at a place, from 0 to `count`. Raises IndexError."""
    for area in areas:
        if place < area.size:
            return area.block(place)
        place -= area.size
    raise IndexError(place)


def place_of(areas: Areas, block: Prefix) -> int | None:
    """The place of a block; None if it is none of these."""
    before = 0
    for area in areas:
        if area.length == block.length and area.block_of(block.ip) == block:
            return before + area.place(block)
        before += area.size
    return None


def next_free(areas: Areas, taken: Collection[Prefix], before: Prefix) -> Prefix | None:
    """The block behind the block `before`, in the same row; None if it is `taken`."""
    place = place_of(areas, before)
    if place is None or place + 1 >= count(areas):
        return None
    block = block_in(areas, place + 1)
    return None if block in taken else block


def any_free(areas: Areas, taken: Collection[Prefix], node: str, attempt: int) -> Prefix | None:
    """A block that is not `taken` (a set), all with the same chance; None if all are taken.

    It is not the next free one behind a hashed place: behind a long row of taken blocks most places
    would lead to the same block, and all nodes would try that one.
    """
    total = count(areas)
    for guess in range(_GUESSES):
        block = block_in(areas, start(node, attempt, total, guess))
        if block not in taken:
            return block
    free = [each for each in in_order(areas, 0) if each not in taken]  # most are taken
    return free[start(node, attempt, len(free))] if free else None


def first_free(areas: Areas, taken: Collection[Prefix], first: int) -> Prefix | None:
    """The first block from the place `first` on that is not `taken` (a set); None if all are."""
    for block in in_order(areas, first):
        if block not in taken:
            return block
    return None


def block_at(areas: Areas, packed: bytes) -> Prefix | None:
    """The block with this address; None if no address of it is handed out."""
    for area in areas:
        block = area.block_of(packed)
        if block is not None:
            return block
    return None


def contains(areas: Areas, block: Prefix) -> bool:
    """Is it one of these blocks?"""
    return place_of(areas, block) is not None


# --- the part of a range set in some blocks ---


def narrowed(ranges: RangeSet, blocks: Sequence[Prefix]) -> RangeSet | None:
    """The part of a range set that lies in these blocks, in their order; None if there is none.

    Excludes the gateways of the whole set; adjacent blocks become one range.
    """
    holes = ranges.holes()
    parts: list[Range] = []
    for block in blocks:
        low, high = _bounds(block)
        for each in ranges.ranges:
            first, last = max(low, each.start), min(high, each.end)
            if len(block.ip) != each.width or first > last:
                continue
            inside = tuple((a, b) for a, b in holes if a <= last and b >= first)
            part = each._replace(start=first, end=last, holes=inside)
            if parts and _is_next(parts[-1], part):
                before = parts.pop()
                joined = tuple(dict.fromkeys((*before.holes, *inside)))
                part = part._replace(start=before.start, holes=joined)
            parts.append(part)
    return RangeSet(tuple(parts)) if parts else None


def _is_next(one: Range, other: Range) -> bool:
    same = one.subnet == other.subnet and one.gateway == other.gateway
    return same and one.end + 1 == other.start


def _bounds(block: Prefix) -> Span:
    low = int.from_bytes(block.ip, "big")
    return low, low + (1 << (block.bits - block.length)) - 1


def has_inside(block: Prefix, address: str) -> bool:
    """Is the address (a text) in the block? False if the text is no address."""
    try:
        return block.contains(parse_ip(address))
    except InvalidAddress:
        return False
