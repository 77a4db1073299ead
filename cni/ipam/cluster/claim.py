"""Claiming blocks in the store: which one to try, and the error when none is free.

Keys and values:

    spaces/<space>           {"layout": {"10.64.0.0/16": 26}, "store": identity}
    blocks/<space>/<block>   {"node", "uid", "boot", "seq"}: its author
    nodes/<node>             {"uid", "boot", "beat", "timeout", "cordoned"}
    wanted/<space>/<node>    {"uid", "since"}: this node found no free block
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ...protocol.address import Prefix
from ...store.interface import Conflict, Item, Refused, Store, StoreError, Unavailable
from ...store.settings import Settings
from . import blocks
from .compare import Comparing
from .holding import key_of
from .node import Block, Node, Space
from .pool import Pool
from .session import number

_ATTEMPTS = 32  # claims that fail because others took the block since our look
_LOOK_AGAIN = 4  # attempts before the store is read again
_PAGE = 4096  # for so many blocks in a pool, a claim tries one more block before it lists all
_MOST_BLIND = 8  # attempts without a list: after so many refusals most blocks are taken
_WANTED_FOR = 3600  # seconds for which a mark counts: its node may be gone


class Full(StoreError):
    """Every block of the range set belongs to some node."""


class Taken(StoreError):
    """The block of a requested address belongs to another node."""


class Claims(Comparing):
    """A node's requests to a store about its blocks. Used under `Node.claiming`.

    Methods raise StoreError, CNIError.
    """

    def __init__(
        self, store: Store, settings: Settings, node: Node, log: Callable[[str], None]
    ) -> None:
        super().__init__(store, settings, node, log)
        self._others: dict[str, set[Prefix]] = {}  # by space: other nodes' blocks at the last look

    # --- claiming ---

    def claim(self, space: Space, pool: Pool, index: int, packed: bytes | None = None) -> Prefix:
        """Claim a block of the pool's range set `index`: any, or that with the address `packed`.

        Raises Full, Taken.
        """
        self.register()
        self.check_allowed()
        self.settle(space)
        self.agree(space, pool)
        areas = pool.areas[index]
        if packed is not None:
            return self._claim_of(space, areas, packed)
        blind, looked = min(1 + blocks.count(areas) // _PAGE, _MOST_BLIND), False
        for attempt in range(_ATTEMPTS):
            if attempt >= blind and (attempt - blind) % _LOOK_AGAIN == 0:
                looked = True
                before = set(space.own())
                self._others[space.name] = self.taken(space)
                for own in space.own():
                    if own not in before and blocks.contains(areas, own):
                        return own  # an earlier claim of ours succeeded, though its answer was lost
            block = self._choose(space, areas, attempt)
            if block is None:
                if not looked:
                    blind = attempt + 1  # the last look is outdated: read the store
                    continue
                self._want(space)
                raise self._full(space, pool, areas)
            if self.create(space, block):
                self._unwant(space)
                return block
            self._others.setdefault(space.name, set()).add(block)
        raise Unavailable(f"{self.store.name}: other nodes take every block first", "try again")

    def _choose(self, space: Space, areas: blocks.Areas, attempt: int) -> Prefix | None:
        """A block that was free at the last look; None if there is none."""
        ledger = space.ledger()
        others = self._others.get(space.name, set())
        taken = others | {each.prefix for each in ledger.blocks}
        name, choice = self.node.name, ledger.seq * _ATTEMPTS + attempt
        if not attempt:
            # First the block behind our last one: adjacent blocks are one range for ADDs, and the
            # rows of two nodes seldom meet.
            latest = next((e for e in reversed(ledger.blocks) if _is_of(areas, e)), None)
            block = blocks.next_free(areas, taken, latest.prefix) if latest is not None else None
            if block is not None:
                return block
        return blocks.any_free(areas, taken, name, choice)

    def check_allowed(self) -> None:
        """Raise Refused if the node is cordoned, of which the store may know more than we do."""
        self.look()
        if self.is_cordoned():
            raise Refused(
                f"node {self.node.name} is cordoned: it claims no more blocks",
                f"`cni ipam cordon --undo {self.node.name}` lets it claim again",
            )

    def _claim_of(self, space: Space, areas: blocks.Areas, packed: bytes) -> Prefix:
        block = blocks.block_at(areas, packed)
        if block is None:
            raise Refused("the address is none that is handed out")
        if not self.create(space, block):
            item = self.ask(self.store.read, key_of(space, block))
            holder = item.value.get("node") if item is not None else None
            raise Taken(
                f"block {block} belongs to node {holder or 'unknown'}",
                "request an address of another block, or run the container on that node",
            )
        return block

    def taken(self, space: Space) -> set[Prefix]:
        """All nodes' blocks. Puts our own blocks in order that are not in the ledger."""
        items, uid = self.items_of(space), self.uid
        mine = {block for block, item in items.items() if item.value.get("uid") == uid}
        if not mine <= {each.prefix for each in space.ledger().blocks}:
            self.sync(space)
        return set(items)

    def _full(self, space: Space, pool: Pool, areas: blocks.Areas) -> Full:
        what = f"pool {pool.name}" if pool.name else f"the ranges in space {space.name}"
        resting = ""
        if pool.conf.cooldown:
            resting = f"; a released address rests for {pool.conf.cooldown} s (`cooldown`)"
        return Full(
            f"all {blocks.count(areas)} blocks of {what} are taken",
            "nodes are asked for empty blocks, which their servers give back within a minute, as "
            "does `cni ipam sync` there; `cni ipam blocks` shows who has which. Add a range, or "
            "make the blocks of a new pool smaller (blockSize)" + resting,
        )

    def _want(self, space: Space) -> None:
        """Ask the other nodes for their empty blocks."""
        now = 0

        def renewed(old: Item | None) -> dict[str, Any]:
            if old is not None and now - number(old.value.get("since")) < _WANTED_FOR / 4:
                return old.value
            return {"uid": self.uid, "since": now}

        is_new = space.name not in self._wanting()
        try:
            now = self._now()
            self.put(f"wanted/{space.name}/{self.node.name}", renewed, is_new=is_new)
        except (Unavailable, Refused):
            pass  # the next attempt will make it
        self._set_wanting(space, True)

    def _unwant(self, space: Space) -> None:
        if space.name not in self._wanting():
            return
        try:
            item = self.ask(self.store.read, f"wanted/{space.name}/{self.node.name}")
            if item is not None:
                self.ask(self.store.delete, item)
        except Conflict:
            pass
        except StoreError:
            return  # a later ADD repeats it
        self._set_wanting(space, False)

    def is_wanted(self, space: Space) -> bool:
        """Has another node found no free block?"""
        prefix = f"wanted/{space.name}/"
        marks = self.ask(self.store.list, prefix).items
        others = [item for item in marks if item.key != prefix + self.node.name]
        if not others:
            return False
        now = self._now()
        return any(abs(now - number(item.value.get("since"))) < _WANTED_FOR for item in others)

    def _now(self) -> int:
        """Seconds since 1970, by the store's clock if it has one: nodes' clocks may differ."""
        clock = self.ask(self.store.clock)
        return int(time.time() if clock is None else clock)

    def _wanting(self) -> list[str]:
        return self.node.wanting()

    def _set_wanting(self, space: Space, wanted: bool) -> None:
        others = [each for each in self._wanting() if each != space.name]
        self.node.set_wanting([*others, space.name] if wanted else others)


def _is_of(areas: blocks.Areas, entry: Block) -> bool:
    return blocks.contains(areas, entry.prefix)
