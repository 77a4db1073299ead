"""Nodes at a store at the same time, one request after the other, in an order that a seed decides.

Each node is a thread with code that blocks. A request waits until every node that is at work waits
with one; then one of them is chosen. So any order that a store could see is possible, and each run
with the same seed is the same, on however busy a machine.
"""

from __future__ import annotations

import collections
import random
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from cni.store.interface import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cni.store.interface import Change, Item, Listing, Store, Value

T = TypeVar("T")


class Turns:
    """`requests` counts them, by verb, the key's first word, and whether it failed."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.requests: collections.Counter[str] = collections.Counter()
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._at_work: set[str] = set()
        self._waiting: set[str] = set()
        self._turn = ""

    def run(self, nodes: Mapping[str, Callable[[Store], T]]) -> dict[str, T]:
        """Have each node do its work, with its way to the store. Raises what one of them raises."""
        results: dict[str, T] = {}
        errors: list[BaseException] = []
        self._at_work = set(nodes)

        def work(name: str, function: Callable[[Store], T]) -> None:
            try:
                results[name] = function(_Way(self, name))
            except BaseException as error:
                errors.append(error)
            finally:
                with self._changed:
                    self._at_work.discard(name)
                    self._choose()

        threads = [threading.Thread(target=work, args=each, daemon=True) for each in nodes.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results

    def _choose(self) -> None:
        if not self._turn and self._at_work and self._waiting == self._at_work:
            # Sorted: the order of a set of strings is another in each process, whatever the seed.
            self._turn = self._random.choice(sorted(self._waiting))
            self._changed.notify_all()

    def take(self, name: str, what: str, request: Callable[[], T]) -> T:
        """Do the node's request when it is its turn."""
        with self._changed:
            self._waiting.add(name)
            self._choose()
            self._changed.wait_for(lambda: self._turn == name)
            self._waiting.discard(name)
            self._turn = ""
            try:
                answer = request()
            except StoreError:
                self.requests[f"{what} failed"] += 1
                raise
            self.requests[what] += 1
            return answer


class _Way:
    """A node's way to the store (interface.Store)."""

    def __init__(self, turns: Turns, node: str) -> None:
        self.name = "a store with many nodes"
        self._turns = turns
        self._node = node
        self._store = turns.store

    def create(self, key: str, value: Value) -> Item:
        return self._take("create", key, lambda: self._store.create(key, value))

    def read(self, key: str) -> Item | None:
        return self._take("read", key, lambda: self._store.read(key))

    def update(self, item: Item, value: Value) -> Item:
        return self._take("update", item.key, lambda: self._store.update(item, value))

    def delete(self, item: Item) -> None:
        self._take("delete", item.key, lambda: self._store.delete(item))

    def list(self, prefix: str) -> Listing:
        return self._take("list", prefix, lambda: self._store.list(prefix))

    def watch(self, prefix: str, revision: str, seconds: float) -> Iterator[Change]:
        return self._store.watch(prefix, revision, seconds)

    def clock(self) -> float | None:
        return self._store.clock()

    def identity(self) -> str:
        return self._take("identity", "", self._store.identity)

    def close(self) -> None:
        """Nothing is open."""

    def _take(self, verb: str, key: str, request: Callable[[], Any]) -> Any:
        return self._turns.take(self._node, f"{verb} {key.partition('/')[0]}".strip(), request)
