"""Freeing the blocks of nodes that are gone: one round, by the process that holds the lock.

A node's blocks are valid until it is proven that the node is gone:

    Kubernetes   there was a Node object of the name, and now there is none. NotReady is alive.
    otherwise    the node said that it is idle (idle.py), and has not renewed for twice the time
                 that it gave (`timeout`). A node that gave none is never gone, nor is one that may
                 have containers: its server may have stopped, and they may run. It is `silent`:
                 only an operator knows (`cni ipam forget`).

Two rounds have to see the node gone, at least `settle` seconds apart, and a last look just before
the decision. Then the node's record is marked `lost`: if the node comes back, it becomes another
node, and gives up its blocks. Only after that its blocks are deleted, each in the version that was
read, at most `limit` in a round. Every change is conditional, so two simultaneous rounds would do
no harm; the lock saves work.

    nodes/<node>     its `lost` mark is ours
    lost/<uid>       {"node", "since"}: what that node claims late, or left when it came back as
                     another one, is freed, too; for a day
    seen/<node>      {"object": uid of the Node, "uid", "boot", "beat", "since": first seen so}
    reconcile/lock   {"holder": random, "until": seconds since 1970}, or {"done": when a round was}
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from ...protocol.address import InvalidAddress, Prefix, parse_ip
from ...store import endpoints
from ...store.interface import Conflict, Exists, Item, Store
from . import blocks

LOCK = "reconcile/lock"
_LOCKED_FOR = 120.0  # seconds
_REMEMBERED = 86400.0  # seconds
_SIGNS = ("uid", "boot", "beat")


class Presence(Protocol):
    """A source of the existing nodes, such as kubernetes_nodes.Nodes."""

    def find(self, name: str) -> Any: ...

    def all(self) -> Mapping[str, Any]: ...

    def pods(self, node: str) -> Iterable[Any]: ...


class Report(NamedTuple):
    """The report of a round: names of nodes, and keys of blocks.

    `suspects` were seen gone for the first time, or not for long enough. `unknown` have blocks, but
    no Node of that name was ever seen: their nodeName may differ from the Node's name. `silent`
    have not renewed for long, and keep their blocks, since their containers may run.
    """

    freed: list[str]
    gone: list[str]
    suspects: list[str]
    unknown: list[str]
    is_complete: bool = True
    silent: tuple[str, ...] = ()


class Reconciler:
    """One round: `run`. `now` is the time in seconds since 1970, of one clock in all rounds."""

    def __init__(
        self,
        store: Store,
        presence: Presence | None,
        now: float,
        *,
        settle: float = 60.0,
        limit: int = 100,
    ) -> None:
        self.store = store
        self.presence = presence
        self.now = now
        self.settle = settle
        self.left = limit
        self._silent: list[str] = []
        self._lost: dict[str, Item] = {}  # by uid: nodes that were given up before this round
        self._trusted: bool | None = None
        self.places: list[Item] = []  # where nodes are reached in overlay networks
        self.nodes = presence.all() if presence is not None else {}

    def run(self) -> Report:
        """Look at every node that has blocks or a record. Raises StoreError."""
        report = Report([], [], [], [])
        held = self._blocks()
        records = {_last(item): item for item in self.store.list("nodes/").items}
        seen = {_last(item): item for item in self.store.list("seen/").items}
        self._lost = {_last(item): item for item in self.store.list("lost/").items}
        self.places = self.store.list(endpoints.PREFIX).items
        published = {endpoints.place_of(item.key)[1] for item in self.places} - {""}
        for name in sorted({*held, *records, *published}):
            record = records.get(name)
            if self._is_alive(name, record, seen.get(name), report):
                continue
            if self.left <= 0:
                return report._replace(is_complete=False, silent=tuple(self._silent))
            self._free(name, record, seen.get(name), held.get(name, []), report)
        self._free_left(held, records, report)
        return report._replace(silent=tuple(self._silent))

    def _blocks(self) -> dict[str, list[Item]]:
        held: dict[str, list[Item]] = {}
        for item in self.store.list("blocks/").items:
            name = item.value.get("node")
            if isinstance(name, str) and name:
                held.setdefault(name, []).append(item)
        return held

    # --- is a node gone? ---

    def _is_alive(self, name: str, record: Item | None, seen: Item | None, report: Report) -> bool:
        """Is the node alive, or not yet proven to be gone? Notes the sighting."""
        known = seen.value if seen is not None else {}
        if record is not None and record.value.get("lost"):
            return False  # decided by an earlier round, which has left blocks to free
        node = self.nodes.get(name)
        if node is not None:
            # The sighting of a living node has no time, so that nothing has to be written.
            self._note(name, seen, {"object": node.uid})
            return True
        if self.presence is not None and not known.get("object"):
            report.unknown.append(name)
            return True
        wait = self._wait(record)
        if wait is None:
            if record is not None and record.value.get("uid") in self._lost:
                # Requests that were delayed for long made it again, perhaps with a block.
                self._silent.append(name)
            return True
        since = self._unchanged_since(name, record, seen)
        if since is not None and self.now - since >= wait:
            if self.presence is not None or (_is_idle(record) and self._is_trusted()):
                return False
            self._silent.append(name)
        elif since is not None or self.presence is not None:
            report.suspects.append(name)
        return True

    def _unchanged_since(self, name: str, record: Item | None, seen: Item | None) -> float | None:
        """The time since when the node has given no sign of life; None if it has since the last
        round: then its state is noted.

        A node that has talked to the store meanwhile is not gone, whatever else is known of it. A
        time that is still to come was written by a wrong clock, and is replaced.
        """
        known = seen.value if seen is not None else {}
        signs, since = _signs(record), known.get("since")
        if since and since <= self.now and all(known.get(key) == signs[key] for key in _SIGNS):
            return float(since)
        if self._is_noted_later(record, known, signs):
            return None
        self._note(name, seen, {**_object(known), **signs, "since": self.now})
        return None

    def _is_noted_later(
        self, record: Item | None, known: Mapping[str, Any], signs: Mapping[str, Any]
    ) -> bool:
        """Is it not worth a change of the store that this node has renewed?

        A node that may have containers is never freed by time, only reported as silent. So its
        sighting may be as old as the time after which it is reported: the report comes later, and
        the store has a quarter of the changes.
        """
        if self.presence is not None or record is None or _is_idle(record):
            return False
        wait, since = self._wait(record), known.get("since")
        if wait is None or not since or known.get("uid") != signs["uid"]:
            return False
        return 0 <= self.now - float(since) < wait

    def _wait(self, record: Item | None) -> float | None:
        """The seconds for which a node has to be seen gone; None: no time is enough."""
        if self.presence is not None:
            return self.settle
        timeout = record.value.get("timeout") if record is not None else 0
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
            return None
        return max(self.settle, 2.0 * timeout)

    def _is_trusted(self) -> bool:
        """Is the store as nodes have left it? A restored one has what they said long ago."""
        if self._trusted is None:
            identity = self.store.identity()
            spaces = self.store.list("spaces/").items
            self._trusted = all(item.value.get("store") == identity for item in spaces)
        return self._trusted

    def _note(self, name: str, seen: Item | None, value: dict[str, Any]) -> None:
        if seen is not None and seen.value == value:
            return
        try:
            if seen is None:
                self.store.create(f"seen/{name}", value)
            else:
                self.store.update(seen, value)
        except (Exists, Conflict):
            pass  # another process works, too; the next round continues from there

    # --- a node is gone ---

    def _free(
        self, name: str, record: Item | None, seen: Item | None, held: list[Item], report: Report
    ) -> None:
        if self.presence is not None and self.presence.find(name) is not None:
            return  # the last look: the node has come back
        if record is not None and not record.value.get("lost"):
            try:
                # In the version from before the last look: a node that has renewed since is alive.
                record = self.store.update(record, {**record.value, "lost": True})
            except Conflict:
                return
        uid = record.value.get("uid") if record is not None else None
        mine = [item for item in held if uid is None or item.value.get("uid") == uid]
        self._remember(name, {uid, *(item.value.get("uid") for item in mine)})
        report.freed.extend(item.key for item in mine[: self.left] if self._delete(item))
        self.left -= len(mine)
        if self.left < 0:
            return
        report.gone.append(name)
        marks = [item for item in self.store.list("wanted/").items if _last(item) == name]
        places = [
            item
            for item in endpoints.of_node(self.places, name)
            if uid is None or item.value.get("uid") == uid
        ]
        for item in (*marks, *places, record, seen):
            if item is not None:
                self._delete(item)

    def _remember(self, name: str, uids: set[Any]) -> None:
        for uid in uids:
            if isinstance(uid, str) and uid:
                with suppress(Exists):
                    self.store.create(f"lost/{uid}", {"node": name, "since": self.now})

    def _free_left(
        self, held: dict[str, list[Item]], records: dict[str, Item], report: Report
    ) -> None:
        """Delete blocks that were claimed by nodes which were given up before this round."""
        lost = self._lost
        present = {record.value.get("uid") for record in records.values()}
        for item in (each for items in held.values() for each in items):
            uid = item.value.get("uid")
            if uid not in lost or uid in present:
                continue
            if lost[uid].value.get("since") != self.now and self.left > 0:  # lost before
                self.left -= 1
                if self._delete(item):
                    report.freed.append(item.key)
        for item in lost.values():
            since = item.value.get("since")
            if not isinstance(since, int | float) or not 0 <= self.now - since < _REMEMBERED:
                self._delete(item)

    def _delete(self, item: Item) -> bool:
        try:
            self.store.delete(item)
        except Conflict:
            return False  # another node has it by now, or it is gone
        return True


def lock(store: Store, now: float, every: float = 0.0) -> Item | None:
    """Take the lock; None while another process has it, or has worked within `every` seconds.

    Raises StoreError.
    """
    value = {"holder": os.urandom(8).hex(), "until": now + _LOCKED_FOR}
    item = store.read(LOCK)
    try:
        if item is None:
            return store.create(LOCK, value)
        until, done = item.value.get("until"), item.value.get("done")
        # a time further ahead was written by a wrong clock: it must not lock everybody out
        if isinstance(until, int | float) and now < until <= now + _LOCKED_FOR:
            return None
        if isinstance(done, int | float) and now - every < done <= now:
            return None
        return store.update(item, value)
    except (Exists, Conflict):
        return None


def unlock(store: Store, item: Item, done: float | None = None) -> None:
    """Release the lock; `done` is the time of this round. Raises StoreError."""
    try:
        if done is None:
            store.delete(item)
        else:
            store.update(item, {"done": done})
    except Conflict:
        pass  # the round took too long, and another process has the lock


class Misplaced(NamedTuple):
    """A pod's address outside of its node's blocks. `holder` is the node that has the block, or "".

    Spaces may have the same addresses; it suffices if the node has the block in one of them.
    """

    pod: str
    node: str
    address: str
    holder: str


def misplaced(
    pods: Iterable[Any], items: Iterable[Item], subnets: Iterable[str]
) -> list[Misplaced]:
    """Compare pods (kubernetes_nodes.Pod) with all blocks of a space.

    `subnets` are those of the space; addresses outside of them are ignored.
    """
    nets = [Prefix.parse(each) for each in subnets]
    held: dict[Prefix, set[str]] = {}
    for item in items:
        try:
            block = blocks.block_of_key(_last(item))
        except InvalidAddress:
            continue
        held.setdefault(block, set()).add(str(item.value.get("node", "")))
    lengths = sorted({(block.is_v4, block.length) for block in held})
    found = []
    for pod in pods:
        for address in pod.addresses:
            packed = parse_ip(address)
            if any(net.contains(packed) for net in nets):
                holders = _holders(packed, held, lengths)
                if pod.node not in holders:
                    name, holder = f"{pod.namespace}/{pod.name}", ", ".join(sorted(holders))
                    found.append(Misplaced(name, pod.node, address, holder))
    return found


def _holders(
    packed: bytes, held: dict[Prefix, set[str]], lengths: list[tuple[bool, int]]
) -> set[str]:
    bits = len(packed) * 8
    number = int.from_bytes(packed, "big")
    found: set[str] = set()
    for is_v4, length in lengths:
        if is_v4 == (bits == 32):
            first = number >> (bits - length) << (bits - length)
            found |= held.get(Prefix(first.to_bytes(len(packed), "big"), length), set())
    return found


def _is_idle(record: Item | None) -> bool:
    return record is not None and record.value.get("idle") is True


def _last(item: Item) -> str:
    return item.key.rpartition("/")[2]


def _signs(record: Item | None) -> dict[str, Any]:
    value = record.value if record is not None else {}
    return {key: value.get(key) for key in _SIGNS}


def _object(known: Mapping[str, Any]) -> dict[str, Any]:
    return {"object": known["object"]} if known.get("object") else {}
