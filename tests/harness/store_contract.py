"""What every engine of a store of blocks has to do: tests that an engine's module inherits.

    class TestMine(StoreContract):
        @pytest.fixture
        def opened(self): return lambda: MyStore(…)

`opened()` gives a store, each time by a client of its own, and always of the same items.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from cni.store.interface import (
    Change,
    Conflict,
    Exists,
    Expired,
    Item,
    Refused,
    Store,
    StoreError,
)

from .wait import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable


# Each is another key than all others, also where an engine writes some characters differently.
ODD_KEYS = [
    "a",
    "A",
    "a/b",
    "a/b/c",
    "a.b",
    "a-b",
    "a_b",
    "a--b",
    "a..b",
    "a.json",
    "a/b.json",
    "a/.",
    "a/..",
    ".",
    "..",
    ".making",
    "-",
    "_",
    "0",
    "a/-",
    "x-2e-y",
    "x.y",
    "x_2fy",
    "x/y",
    "blocks/default/10.64.3.0-26",
    "blocks/default/fd00--3-122",
    "blocks/Default/10.64.3.0-26",
    "l" * 250,
    "l" * 251,
    "/".join(["w" * 60] * 5),
    "/".join(["w" * 60] * 6),
]

ODD_VALUES: list[dict[str, Any]] = [
    {},
    {"": ""},
    {"node": "n1", "seq": 2**53, "state": None, "on": True, "list": [], "nested": {"a": [{}]}},
    {"text": 'ünïcödé \U0001f40d \x00 \n \u2028 " \\ </script>'},
    {"large": "x" * 100_000},
    {"negative": -1, "apiVersion": "v9", "metadata": {"name": "mine"}},
]


def together(count: int, function: Callable[[int], Any]) -> list[Any]:
    """Run `function` in that many threads at the same time; what each returned or raised."""
    start = threading.Barrier(count)
    outcomes: list[Any] = [None] * count

    def body(number: int) -> None:
        start.wait(TIMEOUT)
        try:
            outcomes[number] = function(number)
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def changes(store: Store, prefix: str, revision: str, count: int) -> list[tuple[str, Any]]:
    """The next `count` changes, bookmarks left out: keys, and values or None."""
    found: list[tuple[str, Any]] = []
    for change in store.watch(prefix, revision, TIMEOUT):
        if change.key:
            found.append((change.key, change.item.value if change.item else None))
            if len(found) == count:
                break
    return found


def fill(opened: Callable[[], Store], keys: list[str], threads: int = 8) -> None:
    """Create items with the value ``{"key": …}``."""

    def part(number: int) -> None:
        store = opened()
        for key in keys[number::threads]:
            store.create(key, {"key": key})
        store.close()

    for outcome in together(threads, part):
        assert outcome is None, outcome


class StoreContract:
    """Tests of the interface; `opened` comes from the engine's class."""

    many = 10_000
    """Items of the large listing."""

    @pytest.fixture
    def store(self, opened: Callable[[], Store]) -> Store:
        return opened()

    # --- create and read ---

    def test_an_item_that_was_created_is_read_by_everybody(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        created = store.create("blocks/a", {"node": "n1"})
        assert created.key == "blocks/a"
        assert created.value == {"node": "n1"}
        assert created.version
        assert store.read("blocks/a") == opened().read("blocks/a") == created

    def test_what_is_not_there_is_none(self, store: Store) -> None:
        assert store.read("blocks/nothing") is None

    def test_creating_it_twice_is_an_error_and_changes_nothing(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        created = store.create("blocks/a", {"node": "n1"})
        with pytest.raises(Exists, match="blocks/a"):
            opened().create("blocks/a", {"node": "n2"})
        assert store.read("blocks/a") == created

    @pytest.mark.parametrize("value", ODD_VALUES, ids=range(len(ODD_VALUES)))
    def test_values_come_back_as_they_were(self, store: Store, value: dict[str, Any]) -> None:
        item = store.create("a", value)
        assert store.read("a") == item
        assert item.value == value
        assert store.list("").items == [item]
        changed = store.update(item, {"before": value})
        assert store.read("a") == changed
        assert changed.value == {"before": value}

    def test_odd_keys_are_kept_apart(self, store: Store) -> None:
        items = [store.create(key, {"key": key}) for key in ODD_KEYS]
        assert store.list("").items == sorted(items)
        for item in items:
            assert store.read(item.key) == item
        for item in items:
            store.delete(item)
            assert store.read(item.key) is None
        assert store.list("").items == []

    @pytest.mark.parametrize("key", ["", "/", "/a", "a/", "a//b", "a b", "a,b", "ä", "a\n", "a\0b"])
    def test_what_is_no_key_is_refused_by_name(self, store: Store, key: str) -> None:
        for verb in (
            lambda: store.create(key, {}),
            lambda: store.read(key),
            lambda: store.update(Item(key, {}, "1"), {}),
            lambda: store.delete(Item(key, {}, "1")),
        ):
            with pytest.raises(Refused, match="key"):
                verb()

    def test_what_is_no_prefix_is_refused(self, store: Store) -> None:
        for prefix in ("a", "/", "a//", "a b/"):
            with pytest.raises(Refused, match=r"prefix|key"):
                store.list(prefix)
            with pytest.raises(Refused, match=r"prefix|key"):
                next(iter(store.watch(prefix, "1", 0.1)))

    def test_too_large_a_value_is_refused_by_name(self, store: Store) -> None:
        with pytest.raises(Refused, match="blocks/a"):
            store.create("blocks/a", {"large": "x" * (2 << 20)})
        assert store.read("blocks/a") is None

    # --- update and delete ---

    def test_an_update_replaces_the_value_and_the_version(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        first = store.create("a", {"n": 1, "old": True})
        second = store.update(first, {"n": 2})
        assert (second.key, second.value) == ("a", {"n": 2})
        assert second.version != first.version
        assert opened().read("a") == second

    def test_an_update_to_the_same_value_is_an_update(self, store: Store) -> None:
        first = store.create("a", {"n": 1})
        second = store.update(first, {"n": 1})
        assert second.version
        assert store.read("a") == second

    def test_an_update_of_an_old_version_is_a_conflict(self, store: Store) -> None:
        first = store.create("a", {"n": 1})
        second = store.update(first, {"n": 2})
        with pytest.raises(Conflict, match="a"):
            store.update(first, {"n": 3})
        assert store.read("a") == second

    def test_an_update_of_what_is_gone_is_a_conflict_and_does_not_create(
        self, store: Store
    ) -> None:
        item = store.create("a", {"n": 1})
        store.delete(item)
        with pytest.raises(Conflict, match="a"):
            store.update(item, {"n": 2})
        assert store.read("a") is None

    def test_a_deleted_item_is_gone_for_everybody(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        item = store.create("a/b", {})
        store.delete(item)
        assert opened().read("a/b") is None
        assert store.list("").items == []

    def test_deleting_an_old_version_is_a_conflict(self, store: Store) -> None:
        first = store.create("a", {"n": 1})
        second = store.update(first, {"n": 2})
        with pytest.raises(Conflict, match="a"):
            store.delete(first)
        assert store.read("a") == second

    def test_deleting_twice_is_a_conflict(self, store: Store) -> None:
        item = store.create("a", {})
        store.delete(item)
        with pytest.raises(Conflict, match="a"):
            store.delete(item)

    def test_the_version_of_an_item_made_anew_is_another(self, store: Store) -> None:
        """Else somebody who has slept could delete it: ABA."""
        versions = set()
        for _ in range(3):
            item = store.create("a", {"same": True})
            versions.add(item.version)
            store.delete(item)
        assert len(versions) == 3
        present = store.create("a", {"same": True})
        with pytest.raises(Conflict):
            store.delete(item)
        with pytest.raises(Conflict):
            store.update(item, {})
        assert store.read("a") == present

    # --- list ---

    def test_a_listing_has_what_is_below_its_prefix_sorted(self, store: Store) -> None:
        for key in ("b/2", "b/10", "b/1", "bb/1", "a/1", "b", "c", "b/1/x"):
            store.create(key, {"key": key})
        assert [item.key for item in store.list("b/").items] == ["b/1", "b/1/x", "b/10", "b/2"]
        assert [item.key for item in store.list("b/1/").items] == ["b/1/x"]
        assert store.list("nothing/").items == []
        everything = ["a/1", "b", "b/1", "b/1/x", "b/10", "b/2", "bb/1", "c"]
        assert [item.key for item in store.list("").items] == everything

    def test_a_listed_item_can_be_changed(self, store: Store) -> None:
        store.create("b/1", {"n": 1})
        [item] = store.list("b/").items
        store.delete(store.update(item, {"n": 2}))
        assert store.list("b/").items == []

    def test_a_large_listing_is_complete_and_of_one_moment(
        self, opened: Callable[[], Store]
    ) -> None:
        keys = [f"blocks/default/10.{n >> 8}.{n & 255}.0-24" for n in range(self.many)]
        fill(opened, keys)
        store = opened()
        store.create("pools/default", {})
        listing = store.list("blocks/default/")
        assert [item.key for item in listing.items] == sorted(keys)
        assert all(item.value == {"key": item.key} for item in listing.items)
        store.create("blocks/default/last", {})
        assert changes(store, "blocks/", listing.revision, 1) == [("blocks/default/last", {})]

    def test_a_listing_beside_writers_is_of_one_moment(self, opened: Callable[[], Store]) -> None:
        """A writer creates 0, 1, 2 …: a listing without a number, but with a later one, is torn."""
        written = 600
        done = threading.Event()

        def write() -> None:
            store = opened()
            for number in range(written):
                store.create(f"w/{hash(str(number)) & 0xFFFF:05}-{number:04}", {})
            done.set()

        def look() -> int:
            store = opened()
            looks = 0
            while not done.is_set():
                numbers = {int(item.key[-4:]) for item in store.list("w/").items}
                assert numbers == set(range(len(numbers)))
                looks += 1
            return looks

        outcomes = together(2, lambda number: (write, look)[number]())
        assert outcomes[0] is None, outcomes[0]
        assert isinstance(outcomes[1], int), outcomes[1]
        assert outcomes[1] > 0

    # --- many at once ---

    def test_of_many_creators_exactly_one_wins(self, opened: Callable[[], Store]) -> None:
        def create(number: int) -> list[str]:
            store = opened()
            won = []
            for block in range(12):
                key = f"blocks/{(block + number) % 12}"
                try:
                    store.create(key, {"node": str(number)})
                    won.append(key)
                except Exists:
                    pass
            store.close()
            return won

        outcomes = together(8, create)
        winners = {key: number for number, won in enumerate(outcomes) for key in won}
        assert sum(len(won) for won in outcomes) == len(winners) == 12
        for item in opened().list("blocks/").items:
            assert item.value == {"node": str(winners[item.key])}

    def test_no_update_is_lost(self, opened: Callable[[], Store]) -> None:
        opened().create("counter", {"n": 0})

        def count(_: int) -> None:
            store = opened()
            for _ in range(10):
                while True:
                    item = store.read("counter")
                    assert item is not None
                    try:
                        store.update(item, {"n": item.value["n"] + 1})
                        break
                    except Conflict:
                        pass
            store.close()

        assert together(6, count) == [None] * 6
        item = opened().read("counter")
        assert item is not None
        assert item.value == {"n": 60}

    def test_of_many_who_delete_exactly_one_succeeds(self, opened: Callable[[], Store]) -> None:
        item = opened().create("a", {})
        outcomes = together(6, lambda _: opened().delete(item))
        assert outcomes.count(None) == 1
        assert all(isinstance(error, Conflict) for error in outcomes if error is not None)

    # --- watch ---

    def test_a_watch_tells_every_change_in_its_order(self, store: Store) -> None:
        revision = store.list("w/").revision
        item = store.create("w/a", {"n": 1})
        store.create("other/x", {})
        item = store.update(item, {"n": 2})
        store.create("w/b", {})
        store.delete(item)
        assert changes(store, "w/", revision, 4) == [
            ("w/a", {"n": 1}),
            ("w/a", {"n": 2}),
            ("w/b", {}),
            ("w/a", None),
        ]

    def test_a_watch_tells_items_that_can_be_changed(self, store: Store) -> None:
        revision = store.list("").revision
        created = store.create("a", {"n": 1})
        [change] = _some(store, "", revision, 1)
        assert change.item == created
        store.delete(store.update(change.item, {"n": 2}))

    def test_a_watch_goes_on_where_another_ended(self, store: Store) -> None:
        revision = store.list("").revision
        for number in range(6):
            store.create(f"k/{number}", {})
        seen = []
        for _ in range(3):
            for change in _some(store, "", revision, 2):
                seen.append(change.key)
                revision = change.revision
        assert seen == [f"k/{number}" for number in range(6)]

    def test_a_watch_wakes_up_for_the_change_of_another(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        listing = store.list("")
        begun = threading.Event()

        def watch(_: int) -> Any:
            begun.set()
            return changes(opened(), "", listing.revision, 3)

        def write(_: int) -> None:
            begun.wait(TIMEOUT)
            for number in range(3):
                store.create(f"k/{number}", {})

        outcomes = together(2, lambda number: (watch, write)[number](number))
        assert outcomes[0] == [("k/0", {}), ("k/1", {}), ("k/2", {})]

    def test_a_watch_without_changes_ends_when_its_time_is_up(self, store: Store) -> None:
        store.create("a", {})
        revision = store.list("").revision
        assert [c for c in store.watch("", revision, 0.3) if c.key] == []

    def test_a_bookmark_is_a_place_to_go_on_from(self, store: Store) -> None:
        revision = store.list("w/").revision
        store.create("w/a", {})
        store.create("other/a", {})
        seen = set[str]()
        while "w/a" not in seen:  # then there has been time for a bookmark, too
            for change in store.watch("w/", revision, 0.5):
                revision = change.revision
                seen.add(change.key)
        store.create("w/b", {})
        assert changes(store, "w/", revision, 1) == [("w/b", {})]

    def test_a_watch_from_what_the_store_has_forgotten_is_expired(self, store: Store) -> None:
        revision = store.list("").revision
        store.create("a", {})
        self.forget(store)
        store.create("b", {})
        with pytest.raises(Expired):
            changes(store, "", revision, 1)
        revision = store.list("").revision
        store.create("c", {})
        assert changes(store, "", revision, 1) == [("c", {})]

    def forget(self, store: Store) -> None:
        """Have the store forget all changes until now."""
        raise NotImplementedError

    # --- the store itself ---

    def test_everybody_sees_the_same_identity(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        identity = store.identity()
        assert identity
        store.create("a", {})
        assert store.identity() == opened().identity() == identity
        assert store.list("").items == [store.read("a")], "the store's own items are not listed"

    def test_the_clock_is_none_or_of_this_century(self, store: Store) -> None:
        clock = store.clock()
        assert clock is None or 1.6e9 < clock < 4.2e9

    def test_a_closed_store_opens_again(self, store: Store) -> None:
        item = store.create("a", {})
        store.close()
        store.close()
        assert store.read("a") == item

    def test_its_name_is_for_messages(self, store: Store) -> None:
        assert store.name
        item = store.create("a", {})
        with pytest.raises(StoreError, match="a") as raised:
            store.create("a", {})
        assert "Traceback" not in str(raised.value)
        assert item.version not in ("", None)


def _some(store: Store, prefix: str, revision: str, count: int) -> list[Change]:
    found = []
    for change in store.watch(prefix, revision, TIMEOUT):
        if change.key:
            found.append(change)
            if len(found) == count:
                break
    return found
