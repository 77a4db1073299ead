"""A pool: its addresses, and their division into blocks.

Its definition is in the configuration itself, or in the store under a name, with the same keys.
Every error names the pool, if it has a name, and the field.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...protocol import config
from ...protocol.address import Prefix
from ...protocol.config import DNS, Route
from ...protocol.errors import CNIError
from ...store.settings import check_word
from ..host_local.ranges import ConflictCheck, RangeConf, RangeSet, canonical_sets
from . import blocks

DEFAULT_SPACE = "default"
# A directory in the data directory that is no space: a directory store's default place.
NOT_SPACES = frozenset({"store"})
LONGEST_COOLDOWN = 1200  # seconds
_MOST = {True: 32, False: 128}  # bits, by "is it IPv4"
_USUAL = {True: 26, False: 122}  # default prefix lengths: 64 addresses a block
_LEAST_BLOCKS = 4  # bits: even a small subnet is divided into at least sixteen blocks


class PoolConf(RangeConf):
    """A pool as defined; a subnet and its companions directly in it are a range set of their own.

    `block_size` is the prefix length of IPv4 blocks, `block_size_v6` of IPv6 ones; 0: as usual.
    `reserve` addresses are kept free on each node by claiming blocks ahead. A released address is
    not given out for `cooldown` seconds. With `no_gateway` a subnet without `gateway` has none, and
    its first address may be given out.
    """

    ranges: list[list[RangeConf]] = []
    routes: list[Route] = []
    dns: DNS | None = None
    block_size: int = 0
    block_size_v6: int = 0
    space: str = ""
    reserve: int = 8
    cooldown: int = 0
    no_gateway: bool = False
    conflict_check: ConflictCheck | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value, most in (
            ("blockSize", self.block_size, 32),
            ("blockSizeV6", self.block_size_v6, 128),
        ):
            if not 0 <= value <= most:
                raise CNIError(
                    f"invalid {key} {value} (must be between 1 and {most})",
                    f"it is the prefix length of a block: {most} means single addresses",
                )
        for key, value in (("reserve", self.reserve), ("cooldown", self.cooldown)):
            if value < 0:
                raise CNIError(f"invalid {key} {value} (must not be negative)")
        if self.cooldown > LONGEST_COOLDOWN:
            raise CNIError(
                f"invalid cooldown {self.cooldown} (must be at most {LONGEST_COOLDOWN})",
                "it is in seconds; a node remembers releases for so long",
            )
        if self.space:
            check_word(self.space, "space")
            if self.space in NOT_SPACES:
                raise CNIError(f"invalid space {self.space!r}", "the node's store is called so")


class Pool(NamedTuple):
    """A pool, checked. `sets` are the range sets; `areas` has the blocks of each."""

    name: str
    space: str
    sets: list[RangeSet]
    areas: list[blocks.Areas]
    conf: PoolConf

    @property
    def layout(self) -> dict[str, int]:
        """The prefix length of the blocks of each subnet."""
        return {str(area.subnet): area.length for areas in self.areas for area in areas}

    @classmethod
    def of(cls, conf: PoolConf, name: str, version: str) -> Pool:
        """The pool of a definition; `name` is "" if the configuration (of `version`) defines it.

        Raises CNIError, NoRoom.
        """
        try:
            return cls._of(conf, name, version)
        except CNIError as error:
            if not name:
                raise
            error.msg = f"pool {name}: {error.msg}"
            raise

    @classmethod
    def _of(cls, conf: PoolConf, name: str, version: str) -> Pool:
        multiple = not version or config.is_at_least(version, "0.3.0")
        own: list[list[RangeConf]] = [[conf]] if conf.subnet is not None else []
        configured = [*own, *conf.ranges]
        if not configured:
            raise CNIError(
                "no IP ranges specified", "give `ranges`, `subnet` or the name of a pool"
            )
        sets = canonical_sets(configured, version, multiple, conf.exclude)
        if conf.no_gateway:
            sets = [_as_given(*each) for each in zip(sets, configured, strict=True)]
        lengths = {each.subnet: _length(conf, each.subnet) for of in sets for each in of.ranges}
        check_apart([(str(subnet), length) for subnet, length in lengths.items()])
        areas = [blocks.areas_of(each, lengths) for each in sets]
        for index, each in enumerate(areas):
            if not each:
                raise CNIError(
                    f"range set {index} has no address to hand out",
                    "the gateway and `exclude` take all of it",
                )
        return cls(name, conf.space or DEFAULT_SPACE, sets, areas, conf)


def _as_given(ranges: RangeSet, configured: list[RangeConf]) -> RangeSet:
    """The range set without gateways that are not configured."""
    pairs = zip(ranges.ranges, configured, strict=True)
    return RangeSet(
        tuple(each if given.gateway else each._replace(gateway=b"") for each, given in pairs)
    )


def _length(conf: PoolConf, subnet: Prefix) -> int:
    """The prefix length of a subnet's blocks. Raises CNIError if one would not fit into it."""
    key = "blockSize" if subnet.is_v4 else "blockSizeV6"
    length = conf.block_size if subnet.is_v4 else conf.block_size_v6
    if not length:
        small = subnet.length + _LEAST_BLOCKS
        return min(_MOST[subnet.is_v4], max(_USUAL[subnet.is_v4], small))
    if length < subnet.length:
        raise CNIError(
            f"{key} {length} does not divide {subnet}",
            f"a block /{length} is larger than the subnet: give {subnet.length} to {subnet.bits}",
        )
    return length


def check_apart(layout: list[tuple[str, int]], known: dict[str, int] | None = None) -> None:
    """Require that subnets of one space are equal, with blocks of one size, or do not overlap.

    They may overlap only if blocks are single addresses.

    `layout` are subnets with the prefix length of their blocks, `known` the space's earlier ones.
    Raises CNIError.
    """
    there = [(Prefix.parse(subnet), length) for subnet, length in (known or {}).items()]
    for text, length in layout:
        subnet = Prefix.parse(text)
        for other, its_length in there:
            if length == its_length == subnet.bits:
                continue  # each address is a block, the same one in both subnets
            if subnet == other:
                if length == its_length:
                    continue
                raise CNIError(
                    f"subnet {subnet} is divided into /{its_length} blocks already, not /{length}",
                    f"set the pool's blockSize to {its_length} as the other pools of the space, "
                    "or another `space`",
                )
            if subnet.is_v4 == other.is_v4 and subnet.overlaps(other):
                raise CNIError(
                    f"subnet {subnet} overlaps {other} in the same space",
                    f"pools of one space share a whole subnet or nothing: write {other} with "
                    "rangeStart and rangeEnd, set another `space`, or claim single addresses "
                    "(blockSize) in both",
                )
        there.append((subnet, length))


def convert(value: Any, name: str) -> PoolConf:
    """The definition in the store's object `value` of the pool `name`. Raises CNIError."""
    return config.convert(value, PoolConf, f"pool {name}: ")
