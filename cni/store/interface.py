"""What a store does: the interface of its engines, and its errors.

A store holds items, each a key with a JSON object. Keys are paths of words with `/` between them,
such as `blocks/default/10.64.3.0-26`; a word consists of letters, digits, `.`, `_` and `-`. Every
change is of one item and conditional, so that no engine needs transactions of several items, and
no two nodes can both succeed with the same change.

    StoreError
    ├── Unavailable   no answer, or "not now": the change may have happened or not
    ├── Refused       the store answered: not with these credentials, or not this object
    ├── Exists        create: there is an item already
    ├── Conflict      update, delete: the item is another version by now, or is gone
    └── Expired       watch: the store does not know that revision any more; list again
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

Value = dict[str, Any]
"""A JSON object: null, booleans, integers, strings, arrays and objects."""


class StoreError(Exception):
    """The text says what failed, with the endpoint's or object's name; `remedy` what to do next."""

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


class Unavailable(StoreError):
    """No endpoint gave an answer in time: whether a change happened is not known.

    A caller that sent `create` reads the item to learn whether it was its own request that made
    it; values therefore name their author. `retry_after` is in seconds, where the store told it.
    """

    def __init__(self, text: str, remedy: str = "", retry_after: float | None = None) -> None:
        super().__init__(text, remedy)
        self.retry_after = retry_after


class Refused(StoreError):
    """Credentials, permissions, or an object that the store does not accept; retrying is no use."""


class Exists(StoreError):
    """There is an item of this key."""


class Conflict(StoreError):
    """The item has another version than the caller has seen, or there is none."""


class Expired(StoreError):
    """A watch from a revision that the store has forgotten."""


class Item(NamedTuple):
    """One item. `version` is opaque: it changes with each change of the item."""

    key: str
    value: Value
    version: str


class Listing(NamedTuple):
    """The items of one moment, sorted by key. `revision` is opaque: where a watch goes on."""

    items: list[Item]
    revision: str


class Change(NamedTuple):
    """What a watch tells: `item` is None when the item was deleted.

    With an empty `key` nothing changed: a later `revision` to go on from is known (a bookmark).
    """

    key: str
    item: Item | None
    revision: str


class Store(Protocol):
    """An engine. Every method raises StoreError, never OSError, and returns within `timeout`."""

    name: str
    """For messages, such as `etcd at https://10.0.0.1:2379`."""

    def create(self, key: str, value: Value) -> Item:
        """Make an item. Raises Exists, too."""

    def read(self, key: str) -> Item | None:
        """The item as it is now (linearizable), or None."""

    def update(self, item: Item, value: Value) -> Item:
        """Replace the value of `item`, if its version is the present one. Raises Conflict, too."""

    def delete(self, item: Item) -> None:
        """Delete `item`, if its version is the present one. Raises Conflict, too."""

    def list(self, prefix: str) -> Listing:
        """The items whose keys begin with `prefix`, which is empty or ends with `/`."""

    def watch(self, prefix: str, revision: str, seconds: float) -> Iterator[Change]:
        """Each change after `revision`, for so many seconds at most. Raises Expired, too."""

    def clock(self) -> float | None:
        """The store's time, in seconds since 1970; None where the store tells none."""

    def identity(self) -> str:
        """What another store, or this one restored from a backup, does not have."""

    def close(self) -> None:
        """Close connections. The next call opens them again."""
