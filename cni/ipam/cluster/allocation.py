"""cluster's ADD: host-local's allocation from the node's own blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...protocol.address import Prefix, format_ip, parse_ip
from ...protocol.errors import CNIError
from ...protocol.result import IPConfig
from ...store.node_files import boot_time
from ..host_local.allocation import Allocation, Exhausted, Wish, ip_config
from ..host_local.ranges import Range, RangeSet
from ..host_local.reservation import CONFLICT, content_of
from . import blocks, rest

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..host_local import sticky
    from ..host_local.store import Store
    from .node import Space


class NeedBlock(Exception):
    """The node has no free address of a range set, or not the requested one (`packed`)."""

    def __init__(self, index: int, packed: bytes | None = None) -> None:
        super().__init__()
        self.index = index
        self.packed = packed


class FromBlocks(Allocation):
    """The addresses that one ADD reserves. An attachment that has addresses gets the same again."""

    def __init__(
        self,
        space: Space,
        attachment: tuple[str, str],
        netns: str,
        log: Callable[[str], None],
        cooldown: int = 0,
    ) -> None:
        super().__init__(space.location, attachment, netns, log)
        self._network = attachment[1].partition("\r\n")[2]
        self._space = space
        self._cooldown = cooldown  # seconds before a released address is given out again
        self._own: list[Prefix] = []

    def reserve(self, wish: Wish) -> list[IPConfig]:
        """Reserve one address of each set, and return them in the order of the sets.

        Raises NeedBlock, CNIError; then nothing of this stays reserved.
        """
        try:
            return self._reserve_locked(wish, trust=True)
        except NeedBlock:
            # Read the files before a block is claimed: the index may be wrong.
            return self._reserve_locked(wish, trust=False)

    def _content_aside(self, mac: str) -> bytes:
        return content_of(CONFLICT, f"{mac}\r\n{self._network}")

    def _take_next(self, store: Store, ranges: RangeSet, index: int) -> tuple[str, Range]:
        """Reserve the address that has been free for the longest time. Raises Exhausted."""
        freed = rest.recent(self._space.freed)
        # first the addresses without a record: they have been free for longer than all others
        for its_range, low, high in ranges.spans(self._last_reserved(store, index)):
            at = low
            while True:
                # One look-up in the index serves a whole row of such addresses.
                while at <= high and its_range.packed(at) in freed:
                    at += 1
                number = store.first_free(its_range.width, at, high) if at <= high else None
                if number is None:
                    break
                packed = its_range.packed(number)
                if packed not in freed and self._take(store, format_ip(packed)):
                    return format_ip(packed), its_range
                at = number + 1
        now = boot_time()
        for packed, when in freed.items():
            if now - when < self._cooldown:
                break  # all following addresses were released later
            range_of = ranges.range_for(packed)
            if range_of is None or ranges.is_excluded(packed):
                continue
            if self._take(store, format_ip(packed)):
                return format_ip(packed), range_of
        raise Exhausted(ranges, index)

    def _reserve_all(self, store: Store, wish: Wish) -> list[IPConfig]:
        self._own = self._space.own()
        return super()._reserve_all(store, wish)

    def _take_requested(
        self, store: Store, ranges: RangeSet, index: int, packed: bytes
    ) -> IPConfig:
        name = format_ip(packed)
        its_range = ranges.range_for(packed)
        if name in self._held and its_range is not None:
            return ip_config(name, its_range)
        if ranges.is_excluded(packed):
            is_gateway = packed in ranges.gateways
            raise CNIError(
                f"requested IP address {name} is not available in range set {ranges}",
                "it is a gateway" if is_gateway else "`exclude` of the configuration has it",
            )
        own = blocks.narrowed(ranges, self._own)
        if own is None or not own.contains(packed):
            raise NeedBlock(index, packed)
        return super()._take_requested(store, own, index, packed)

    def _take_free(
        self, store: Store, ranges: RangeSet, index: int, memory: sticky.Memory | None
    ) -> IPConfig:
        for name in self._held:
            its_range = ranges.range_for(parse_ip(name))
            if its_range is not None:
                return ip_config(name, its_range)
        own = blocks.narrowed(ranges, self._own)
        if own is None:
            raise NeedBlock(index)
        try:
            return super()._take_free(store, own, index, memory)
        except Exhausted:
            raise NeedBlock(index) from None


def unknown_request(packed: list[bytes], sets: list[RangeSet]) -> CNIError | None:
    """The error for requested addresses that no range set has, before a block is claimed."""
    left = [each for each in packed if not any(ranges.contains(each) for ranges in sets)]
    if not left:
        return None
    return CNIError(
        "failed to allocate all requested IPs: " + " ".join(map(format_ip, left)),
        f"the range sets are: {'; '.join(map(str, sets))}",
    )
