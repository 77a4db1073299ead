"""Ranges of addresses: canonical form, errors, and the order in which they are tried.

Beyond the reference: `exclude`, in a range or in `ipam`, a list of addresses that are never
allocated; each entry is an address, a prefix, or two addresses with a hyphen.

Contract: docs/spec/host-local.md, "Range canonicalisation" and "Iterator". Nothing here enumerates
a range: an IPv6 /64 takes no longer than a /24. Addresses are packed bytes, bounds of spans are
ints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from ...protocol.config import Folded
from ...protocol.errors import CNIError

_MAPPED = b"\0" * 10 + b"\xff\xff"

# A span of adjacent addresses: the first and the last, as numbers.
Span = tuple[int, int]


class ConflictCheck(Folded):
    """Probing whether other hosts on the link have an address: probes, and milliseconds after each.

    With `gateway`, gateways must answer.
    """

    probes: int = 3
    interval: int = 100
    gateway: bool = False

    def __post_init__(self) -> None:
        for key, value, most in (("probes", self.probes, 10), ("interval", self.interval, 5000)):
            if not 1 <= value <= most:
                raise CNIError(f"invalid conflictCheck.{key} {value} (must be 1 to {most})")


class RangeConf(Folded):
    """A range as configured. As in Go, decoding fails for texts that are no addresses."""

    subnet: str | None = None
    range_start: str | None = None
    range_end: str | None = None
    gateway: str | None = None
    exclude: list[str] = []

    def __post_init__(self) -> None:
        for entry in self.exclude:
            excluded(entry)
        for key, text in (
            ("subnet", self.subnet),
            ("rangeStart", self.range_start),
            ("rangeEnd", self.range_end),
            ("gateway", self.gateway),
        ):
            try:
                # as in Go: an empty subnet is an error, an empty address counts as not given
                if key == "subnet" and text is not None:
                    Prefix.parse(text)
                elif text:
                    parse_ip(text)
            except InvalidAddress as error:
                form = "10.1.2.0/24" if key == "subnet" else "10.1.2.3"
                raise InvalidAddress(error.msg, f"`{key}` of a range is like {form}") from None


class Range(NamedTuple):
    """The addresses from `start` to `end`, inclusive, of one subnet. `gateway` may be b""."""

    subnet: Prefix
    start: int
    end: int
    gateway: bytes
    holes: tuple[Span, ...] = ()

    def contains(self, packed: bytes) -> bool:
        """Is the address between start and end? False for the other family."""
        return len(packed) == self.width and self.start <= _number(packed) <= self.end

    def overlaps(self, other: Range) -> bool:
        """Do the two spans share an address?"""
        return self.width == other.width and self.start <= other.end and other.start <= self.end

    @property
    def width(self) -> int:
        """Bytes of an address: 4 or 16."""
        return len(self.subnet.ip)

    def packed(self, number: int) -> bytes:
        """An address of this family, from its number."""
        return number.to_bytes(self.width, "big")

    def __str__(self) -> str:
        return f"{format_ip(self.packed(self.start))}-{format_ip(self.packed(self.end))}"


class RangeSet(NamedTuple):
    """Ranges of one family; an ADD takes one address out of each set."""

    ranges: tuple[Range, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))

    @property
    def is_v4(self) -> bool:
        """Are these ranges of IPv4 addresses?"""
        return self.ranges[0].subnet.is_v4

    def range_for(self, packed: bytes) -> Range | None:
        """The range that contains the address; None if none does."""
        for each in self.ranges:
            if each.contains(packed):
                return each
        return None

    def contains(self, packed: bytes) -> bool:
        """Is the address in one of the ranges?"""
        return self.range_for(packed) is not None

    def overlaps(self, other: RangeSet) -> bool:
        """Is any address in ranges of both sets?"""
        return any(a.overlaps(b) for a in self.ranges for b in other.ranges)

    @property
    def gateways(self) -> frozenset[bytes]:
        """The gateways, which are never allocated."""
        return frozenset(each.gateway for each in self.ranges if each.gateway)

    @property
    def size(self) -> int:
        """The number of addresses that can be allocated."""
        return sum(high - low + 1 for _, low, high in self.spans())

    def is_excluded(self, packed: bytes) -> bool:
        """Is it a gateway, or excluded by the configuration?"""
        number = _number(packed)
        return any(low <= number <= high for low, high in self.holes())

    def spans(self, last: bytes | None = None) -> Iterator[tuple[Range, int, int]]:
        """The spans that can be allocated, in the order of trial: round robin, after `last`.

        So an address that was just released is tried last. If `last` is not in the set, it begins
        at the first range. A span is (range, first number, last number).
        """
        holes = self.holes()
        for each, start, high in self._rotated(last):
            low = start
            for hole_low, hole_high in holes:
                if hole_high < low or hole_low > high:
                    continue
                if low < hole_low:
                    yield each, low, hole_low - 1
                low = hole_high + 1
            if low <= high:
                yield each, low, high

    def _rotated(self, last: bytes | None) -> list[tuple[Range, int, int]]:
        full_ranges = [(each, each.start, each.end) for each in self.ranges]
        if last is None:
            return full_ranges
        for index, each in enumerate(self.ranges):
            if each.contains(last):
                number = _number(last)
                after, upto = (each, number + 1, each.end), (each, each.start, number)
                return [after, *full_ranges[index + 1 :], *full_ranges[:index], upto]
        return full_ranges

    def holes(self) -> list[Span]:
        """The spans that are never allocated, sorted: gateways and excluded ones; may overlap."""
        width = self.ranges[0].width
        gateways = [_number(each) for each in self.gateways if len(each) == width]
        holes = [(number, number) for number in gateways]
        for each in self.ranges:
            holes.extend(each.holes)
        return sorted(holes)


class NoRoom(CNIError):
    """A result of this version has no room for the addresses."""


def canonical_sets(
    configured: list[list[RangeConf]], version: str, multiple: bool, exclude: Sequence[str] = ()
) -> list[RangeSet]:
    """The range sets, checked, in the given order: the index of a set is its id on disk.

    `exclude` applies to all of them. `multiple`: does cniVersion `version` allow more than one
    address of a family? Raises CNIError in the reference's words; NoRoom if it does not.
    """
    if not configured:
        raise CNIError(
            "no IP ranges specified", "give ipam.ranges, ipam.subnet or runtimeConfig.ipRanges"
        )
    sets = []
    for index, ranges in enumerate(configured):
        try:
            sets.append(_canonical_set(ranges, exclude))
        except CNIError as error:
            raise error.wrapped(f"invalid range set {index}: ") from None
    v4 = sum(each.is_v4 for each in sets)
    if max(v4, len(sets) - v4) > 1 and not multiple:
        raise NoRoom(
            f"CNI version {version} does not support more than 1 address per family",
            "use cniVersion 0.3.0 or later, or one range set with several ranges",
        )
    for i, one in enumerate(sets):
        for j in range(i + 1, len(sets)):
            if one.overlaps(sets[j]):
                raise CNIError(
                    f"range set {i} overlaps with {j}", f"{one} and {sets[j]} share addresses"
                )
    return sets


def _canonical_set(configured: list[RangeConf], exclude: Sequence[str]) -> RangeSet:
    if not configured:
        raise CNIError("empty range set", "each entry of ipam.ranges is a list of ranges")
    ranges: list[Range] = []
    for conf in configured:
        ranges.append(canonical(conf, exclude))
        if ranges[0].width != ranges[-1].width:
            raise CNIError(
                "mixed address families", "give IPv4 and IPv6 ranges in range sets of their own"
            )
    for i, one in enumerate(ranges):
        for other in ranges[i + 1 :]:
            if one.overlaps(other):
                raise CNIError(
                    f"subnets {one} and {other} overlap", "set rangeStart and rangeEnd apart"
                )
    return RangeSet(tuple(ranges))


def canonical(conf: RangeConf, exclude: Sequence[str] = ()) -> Range:
    """A range with its defaults filled in; `exclude` is in addition to its own. Raises CNIError."""
    subnet = _subnet(conf.subnet)
    gateway = parse_ip(conf.gateway) if conf.gateway else subnet.nth(1)
    end = parse_ip(conf.range_end) if conf.range_end else None
    # The reference checks a start only against a given end, and so allocates the broadcast
    # address if the range starts there.
    last = _default_end(subnet) if end is None else end
    start = subnet.nth(1)
    if conf.range_start:
        start = parse_ip(conf.range_start)
        if not subnet.contains(start) or _number(start) > _number(last):
            raise CNIError(
                f"RangeStart {format_ip(start)} not in network {subnet}",
                f"the range ends at {format_ip(last)}",
            )
    if not subnet.contains(last) or _number(last) < _number(start):
        raise CNIError(
            f"RangeEnd {format_ip(last)} not in network {subnet}",
            f"the range starts at {format_ip(start)}",
        )
    spans = [excluded(entry) for entry in (*conf.exclude, *exclude)]
    holes = tuple((low, high) for width, low, high in spans if width == len(subnet.ip))
    return Range(subnet, _number(start), _number(last), gateway, holes)


def excluded(entry: str) -> tuple[int, int, int]:
    """``10.0.0.5``, ``10.0.0.8/29`` or ``10.0.0.8-10.0.0.11``: bytes of an address, first, last.

    Raises InvalidAddress.
    """
    advice = "an entry of `exclude` is like 10.0.0.5, 10.0.0.8/29 or 10.0.0.8-10.0.0.11"
    try:
        if "/" in entry:
            prefix = Prefix.parse(entry)
            return len(prefix.ip), _number(prefix.network.ip), _number(prefix.broadcast)
        first, hyphen, last = entry.partition("-")
        low = parse_ip(first.strip())
        high = parse_ip(last.strip()) if hyphen else low
    except InvalidAddress as error:
        raise InvalidAddress(error.msg, advice) from None
    if len(low) != len(high) or low > high:
        raise InvalidAddress(f"invalid IP range: {entry}", advice)
    return len(low), _number(low), _number(high)


def _subnet(text: str | None) -> Prefix:
    if text is None:
        raise CNIError("IP <nil> not v4 nor v6", "a range needs a `subnet`")
    subnet = Prefix.parse(text)
    if subnet.length > subnet.bits - 2:
        raise CNIError(
            f"Network {subnet} too small to allocate from",
            f"a /{subnet.bits - 2} is the smallest subnet with addresses to hand out",
        )
    if ":" in text and (subnet.is_v4 or subnet.ip.startswith(_MAPPED)):
        raise CNIError(
            "IPNet IP and Mask version mismatch",
            f"write {text} as an IPv4 subnet, like 10.0.0.0/24",
        )
    if subnet != subnet.network:
        raise CNIError(
            f"Network has host bits set. For a subnet mask of length {subnet.length} the network "
            f"address is {format_ip(subnet.network.ip)}",
            f"write the subnet as {subnet.network}",
        )
    return subnet


def _default_end(subnet: Prefix) -> bytes:
    """The last address of the subnet; in IPv4 the one before the broadcast address."""
    size = 1 << (subnet.bits - subnet.length)
    return subnet.nth(size - 2 if subnet.is_v4 else size - 1)


def _number(packed: bytes) -> int:
    return int.from_bytes(packed, "big")
