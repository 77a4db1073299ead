"""host-local's ADD: reserves one address of each range set, or none at all.

Requested addresses come first, then addresses that the attachment or its pod had before, then the
next free one (docs/spec/host-local.md, "ADD" and "Iterator").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ...protocol.address import format_ip, parse_ip
from ...protocol.errors import CNIError
from ...protocol.result import IPConfig
from .directory import Location, explain_in
from .ranges import Range, RangeSet
from .reservation import CONFLICT, LAST_RESERVED, content_of, is_address, namespace_note
from .store import Store

if TYPE_CHECKING:
    from . import sticky


class Wish(NamedTuple):
    """The addresses that an attachment may have: `requested` ones (packed), and the range sets.

    `memory` knows the pod's earlier addresses, if `sticky` is set.
    """

    sets: list[RangeSet]
    requested: list[bytes]
    memory: sticky.Memory | None = None


class Exhausted(Exception):
    """A range set has no free address."""

    def __init__(self, ranges: RangeSet, index: int) -> None:
        super().__init__()
        self.ranges = ranges
        self.index = index


class Allocation:
    """The addresses that one ADD reserves for one attachment.

    `netns` is the CNI_NETNS of the request; `log` writes a line for the operator.
    """

    def __init__(
        self,
        location: Location,
        attachment: tuple[str, str],
        netns: str,
        log: Callable[[str], None],
    ) -> None:
        self._location = location
        self._attachment = attachment
        self._content = content_of(*attachment)
        self._netns = netns
        self._namespace = namespace_note(netns)
        self._log = log
        self._names: list[str] = []  # names of files that were made, or are about to be made
        self._earlier: list[bytes] = []  # addresses of the attachment in a namespace that is gone
        self._held: list[str] = []  # names of its addresses in a namespace that may exist

    def reserve(self, wish: Wish) -> list[IPConfig]:
        """Reserve one address of each set, and return them in the order of the sets.

        Raises CNIError; then nothing stays reserved.

        Before a range counts as full, its files are counted, without the lock. If there are too
        few, addresses were just released, or the index is wrong, and the files are read instead.
        """
        for trust in (True, True, False):
            try:
                return self._reserve_locked(wish, trust)
            except Exhausted as full:
                from . import usage  # only errors and STATUS need it

                path = self._location.path
                held = usage.held(path, full.ranges)
                if not trust or len(held) >= full.ranges.size:
                    raise CNIError(
                        f"failed to allocate for range {full.index}: no IP addresses available in "
                        f"range set: {full.ranges}",
                        usage.describe(path, full.ranges, held),
                    ) from None
        raise AssertionError  # the last round raises

    def is_new(self, name: str) -> bool:
        """Has this ADD reserved the address, which was not reserved before?"""
        return name in self._names

    def set_aside(self, taken: dict[str, str]) -> None:
        """Reserve new addresses that others have (address → MAC), so that nobody gets them.

        After that `reserve` keeps the other addresses of this ADD. Raises CNIError.
        """
        with self._location.open() as store:
            for name, mac in taken.items():
                store.release(name, self._content)
                store.reserve(name, self._content_aside(mac))
                self._names.remove(name)

    def _content_aside(self, mac: str) -> bytes:
        return content_of(CONFLICT, mac)

    def undo(self) -> None:
        """Release all addresses that `reserve` has reserved, even after a failure."""
        if self._names:
            with self._location.open() as store:
                self._release(store)

    def _release(self, store: Store) -> None:
        """Release those files that are this attachment's."""
        while self._names:
            name = self._names.pop()
            try:
                # in the meantime another program may have given it to somebody else
                if store.content(name) == self._content:
                    store.release(name, self._content)
            except OSError as error:
                self._log(f"host-local: cannot release {name}: {error.strerror}")

    def _reserve_locked(self, wish: Wish, trust: bool) -> list[IPConfig]:
        with self._location.open() as store:
            if not trust:
                store.distrust()
            try:
                return self._reserve_all(store, wish)
            except BaseException:
                self._release(store)
                raise

    def _reserve_all(self, store: Store, wish: Wish) -> list[IPConfig]:
        """Reserve one address of each set. Raises CNIError, Exhausted."""
        left = list(wish.requested)
        addresses = []
        for index, ranges in enumerate(wish.sets):
            requested = next((ip for ip in left if ranges.contains(ip)), None)
            try:
                # once, before the first address: then those of all range sets are released
                if not index:
                    self._release_earlier(store)
                if requested is not None:
                    left.remove(requested)
                    addresses.append(self._take_requested(store, ranges, index, requested))
                else:
                    addresses.append(self._take_free(store, ranges, index, wish.memory))
            except CNIError as error:
                raise error.wrapped(f"failed to allocate for range {index}: ") from None
            except OSError as error:
                failure = explain_in("open", store.path, error)
                raise failure.wrapped(f"failed to allocate for range {index}: ") from None
        if left:
            sets = "; ".join(map(str, wish.sets))
            raise CNIError(
                "failed to allocate all requested IPs: " + " ".join(map(format_ip, left)),
                f"each range set gives one address; the range sets are: {sets}",
            )
        return addresses

    def _release_earlier(self, store: Store) -> None:
        """Release the attachment's addresses in a namespace that is gone, without a DEL before.

        A runtime that recreates a sandbox with the same id gets the same addresses again. Addresses
        in a namespace that still exists stay, and make this ADD fail later.
        """
        self._held = []
        for name in filter(is_address, store.owned_by(*self._attachment)):
            if store.is_of_gone_namespace(name, self._netns):
                store.release(name)
                self._earlier.append(parse_ip(name))
            else:
                self._held.append(name)

    def _take_requested(
        self, store: Store, ranges: RangeSet, index: int, packed: bytes
    ) -> IPConfig:
        name = format_ip(packed)
        its_range = ranges.range_for(packed)
        assert its_range is not None
        if self._is_kept(name):
            return ip_config(name, its_range)
        if packed == its_range.gateway:
            raise CNIError(
                f"requested ip {name} is subnet's gateway", f"request another address of {ranges}"
            )
        why = "`exclude` of the configuration has it"
        # The reference gives out another range's gateway if it is requested.
        if packed in ranges.gateways or not ranges.is_excluded(packed):
            if self._take(store, name):
                store.set_last_reserved(index, name)
                return ip_config(name, its_range)
            from . import usage

            taken = store.name_of(packed) or name
            holder = usage.holder(store.content(taken) or b"")
            why = f"{holder} holds it: {store.path}/{taken}"
        raise CNIError(f"requested IP address {name} is not available in range set {ranges}", why)

    def _take_free(
        self, store: Store, ranges: RangeSet, index: int, memory: sticky.Memory | None
    ) -> IPConfig:
        """Reserve the earlier address of the attachment or its pod, or the next free one.

        Raises CNIError if the attachment has an address of this set, Exhausted if none is free.
        """
        for name in self._held:
            own_range = ranges.range_for(parse_ip(name))
            if own_range is not None and self._is_kept(name):
                return ip_config(name, own_range)
            if own_range is not None:
                raise CNIError(
                    f"{name} has been allocated to {self._attachment[0]}, "
                    "duplicate allocation is not allowed",
                    f"{self._attachment[1]} of this container was added before: DEL it first",
                )
        recalled = memory.recall(index) if memory is not None else None
        for packed in (*self._earlier, *((recalled,) if recalled is not None else ())):
            its_range = ranges.range_for(packed)
            if (
                its_range is not None
                and not ranges.is_excluded(packed)
                and self._take(store, format_ip(packed))
            ):
                return ip_config(format_ip(packed), its_range)  # round robin continues where it was
        name, its_range = self._take_next(store, ranges, index)
        store.set_last_reserved(index, name)
        if memory is not None:
            memory.keep(index, parse_ip(name))
        return ip_config(name, its_range)

    def _is_kept(self, name: str) -> bool:
        """Has this ADD reserved the address already, before another one was set aside?"""
        return name in self._held and name in self._names

    def _take_next(self, store: Store, ranges: RangeSet, index: int) -> tuple[str, Range]:
        """Reserve the next free address, round robin. Raises Exhausted."""
        last = self._last_reserved(store, index)
        while True:
            for its_range, low, high in ranges.spans(last):
                number = store.first_free(its_range.width, low, high)
                if number is not None:
                    break
            else:
                raise Exhausted(ranges, index)
            name = format_ip(its_range.packed(number))
            if self._take(store, name):
                return name, its_range
            store.distrust()  # another program has made this file without the lock

    def _take(self, store: Store, name: str) -> bool:
        """Reserve an address; False if it is taken.

        The address is noted before, so that a signal in between leaves nothing behind.
        """
        self._names.append(name)
        if store.reserve(name, self._content, self._namespace):
            return True
        self._names.pop()
        return False

    def _last_reserved(self, store: Store, index: int) -> bytes | None:
        try:
            return store.last_reserved(index)
        except OSError as error:  # only round robin suffers, once
            text = f"{LAST_RESERVED}{index}: {error.strerror}"
            self._log(f"Error retrieving last reserved ip: {text}")
            return None


def ip_config(name: str, its_range: Range) -> IPConfig:
    """An address of a range, as a result has it."""
    gateway = format_ip(its_range.gateway) if its_range.gateway else None
    return IPConfig(address=f"{name}/{its_range.subnet.length}", gateway=gateway)
