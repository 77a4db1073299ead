"""A store of blocks in memory that does to its callers whatever a network and a server can do.

`Memory` is the store, strict as the interface has it. `Unreliable` stands between it and a node: a
request may fail before it is done, its answer may be lost after it was done, or it may be done
much later, when its sender has given up; `deliver` does what is under way.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec

from cni.store.interface import (
    Change,
    Conflict,
    Exists,
    Item,
    Listing,
    StoreError,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni.store.interface import Value

OK, LOST_BEFORE, LOST_AFTER, LATE = "ok", "lost before", "lost after", "late"
FATES = (OK, LOST_BEFORE, LOST_AFTER, LATE)


class Memory:
    """Every item with its value as JSON, so that nobody shares an object with the store."""

    name = "memory"

    def __init__(self) -> None:
        self.items: dict[str, tuple[bytes, str]] = {}
        self.requests: list[str] = []
        self.generation = 0
        self._versions = itertools.count(1)

    def create(self, key: str, value: Value) -> Item:
        self.requests.append(f"create {key}")
        if key in self.items:
            raise Exists(key)
        return self._set(key, value)

    def read(self, key: str) -> Item | None:
        self.requests.append(f"read {key}")
        return self._item(key) if key in self.items else None

    def update(self, item: Item, value: Value) -> Item:
        self.requests.append(f"update {item.key}")
        self._check(item)
        return self._set(item.key, value)

    def delete(self, item: Item) -> None:
        self.requests.append(f"delete {item.key}")
        self._check(item)
        del self.items[item.key]

    def list(self, prefix: str) -> Listing:
        assert not prefix or prefix.endswith("/"), prefix
        self.requests.append(f"list {prefix}")
        keys = sorted(key for key in self.items if key.startswith(prefix))
        return Listing([self._item(key) for key in keys], str(next(self._versions)))

    def watch(self, prefix: str, revision: str, seconds: float) -> Iterator[Change]:
        raise NotImplementedError

    def clock(self) -> float | None:
        return None

    def identity(self) -> str:
        return f"memory {self.generation}"

    def close(self) -> None:
        """Nothing is open."""

    # --- for tests ---

    def backup(self) -> dict[str, tuple[bytes, str]]:
        """What `restore` takes."""
        return dict(self.items)

    def restore(self, items: dict[str, tuple[bytes, str]]) -> None:
        """The store as it was, with another identity."""
        self.items = dict(items)
        self.generation += 1

    def _check(self, item: Item) -> None:
        if item.key not in self.items or self.items[item.key][1] != item.version:
            raise Conflict(item.key)

    def _set(self, key: str, value: Value) -> Item:
        for word in key.split("/"):
            assert word, key
            assert all(each.isalnum() or each in "._-" for each in word), key
        self.items[key] = msgspec.json.encode(value), str(next(self._versions))
        return self._item(key)

    def _item(self, key: str) -> Item:
        data, version = self.items[key]
        return Item(key, msgspec.json.decode(data), version)


class Unreliable:
    """A way to a store; `fate` says of each request what becomes of it, one of FATES."""

    def __init__(self, store: Memory, fate: Callable[[], str]) -> None:
        self.store = store
        self.name = "an unreliable store"
        self._fate = fate
        self._under_way: list[Callable[[], object]] = []

    def create(self, key: str, value: Value) -> Item:
        # A late request has the value of now, whatever the caller does with its object meanwhile.
        data = msgspec.json.encode(value)
        return self._send(lambda: self.store.create(key, msgspec.json.decode(data)), changes=True)

    def read(self, key: str) -> Item | None:
        return self._send(lambda: self.store.read(key))

    def update(self, item: Item, value: Value) -> Item:
        return self._send(lambda: self.store.update(item, value), changes=True)

    def delete(self, item: Item) -> None:
        self._send(lambda: self.store.delete(item), changes=True)

    def list(self, prefix: str) -> Listing:
        return self._send(lambda: self.store.list(prefix))

    def watch(self, prefix: str, revision: str, seconds: float) -> Iterator[Change]:
        return self.store.watch(prefix, revision, seconds)

    def clock(self) -> float | None:
        return self.store.clock()

    def identity(self) -> str:
        return self._send(self.store.identity)

    def close(self) -> None:
        """What is under way stays so."""

    def deliver(self, last_first: bool = False) -> None:
        """Do what is under way, in the order in which it was sent, or the other way round."""
        late, self._under_way = self._under_way, []
        for request in reversed(late) if last_first else late:
            try:
                request()
            except StoreError:
                pass  # nobody waits for the answer

    def _send(self, request: Callable[[], Any], changes: bool = False) -> Any:
        fate = self._fate()
        if fate == OK:
            return request()
        if fate == LOST_AFTER:
            try:
                request()
            except StoreError:
                pass
        # Nobody waits for the answer of a late read, and it changes nothing.
        elif fate == LATE and changes:
            self._under_way.append(request)
        raise Unavailable(f"no answer ({fate})")
