"""Claiming blocks in the store, and giving them back.

Every change in the store is of one item and conditional. Whatever becomes of a request, the ledger
(node.py) names the block before it is sent:

    pending    → create → own                an answer that was lost: read who made the item
    own, empty → releasing → delete → gone   only the version that was read, so no block that
                                             somebody has claimed meanwhile (no ABA)

A create that arrives after its sender gave up makes a block that is in no ledger, and names its
author: `sync` adopts it. Keys and values:

    spaces/<space>           {"layout": {"10.64.0.0/16": 26}, "store": identity}
    blocks/<space>/<block>   {"node", "uid", "boot", "seq"}: its author
    nodes/<node>             {"uid", "boot", "beat", "timeout", "cordoned"}
    wanted/<space>/<node>    {"uid", "since"}: this node found no free block
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ...protocol.address import InvalidAddress, Prefix
from . import blocks, rest
from .node import OWN, PENDING, RELEASING, Block, Ledger, Node, Space, boot_time
from .pool import Pool
from .session import Session, number
from .settings import Settings
from .store.interface import Conflict, Exists, Item, Refused, Store, StoreError, Unavailable

_ATTEMPTS = 32  # blocks that others took between our look and our claim
_LOOK_AGAIN = 4  # attempts
_WANTED_FOR = 3600  # seconds that a mark counts: its node may be gone


class Full(StoreError):
    """Every block of the range set belongs to some node."""


class Taken(StoreError):
    """The block of a requested address belongs to another node."""


class Synced(NamedTuple):
    """What a comparison of ledger and store found: blocks as texts."""

    adopted: list[str]
    restored: list[str]
    lost: list[str]
    conflicts: list[str]


class Claims(Session):
    """What a node asks of a store for its blocks. Used under `Node.claiming`.

    Methods raise StoreError, CNIError.
    """

    def __init__(
        self, store: Store, settings: Settings, node: Node, log: Callable[[str], None]
    ) -> None:
        super().__init__(store, settings, node, log)
        self._unsettled: frozenset[str] = frozenset()  # claims of which nothing is known

    # --- claiming ---

    def claim(self, space: Space, pool: Pool, index: int, packed: bytes | None = None) -> Prefix:
        """Claim a block of the pool's range set `index`: any, or that with the address `packed`.

        Raises Full, Taken.
        """
        self.register()
        self._check_allowed()
        self.settle(space)
        self.agree(space, pool)
        areas = pool.areas[index]
        if packed is not None:
            return self._claim_of(space, areas, packed)
        taken = {each.prefix for each in space.ledger().blocks}
        for attempt in range(_ATTEMPTS):
            if attempt % _LOOK_AGAIN == 1:
                before, taken = set(space.own()), taken | self.taken(space)
                for own in space.own():
                    if own not in before and blocks.contains(areas, own):
                        return own  # an earlier claim that was given up, and came through
            first = blocks.start(self.node.name, attempt, blocks.count(areas))
            block = blocks.first_free(areas, taken, first)
            if block is None:
                if not attempt:
                    continue
                self._want(space)
                raise self._full(space, pool, areas)
            if self._create(space, block):
                self._unwant(space)
                return block
            taken.add(block)
        raise Unavailable(f"{self.store.name}: other nodes take every block first", "try again")

    def _check_allowed(self) -> None:
        """Raises Refused for a node that was cordoned; whether it still is, the store is asked."""
        if self.is_cordoned():
            self.register(force=True)
        if self.is_cordoned():
            raise Refused(
                f"node {self.node.name} is cordoned: it claims no more blocks",
                f"`cni ipam cordon --undo {self.node.name}` lets it claim again",
            )

    def _claim_of(self, space: Space, areas: blocks.Areas, packed: bytes) -> Prefix:
        block = blocks.block_at(areas, packed)
        if block is None:
            raise Refused("the address is none that is handed out")
        if not self._create(space, block):
            item = self.ask(self.store.read, _key(space, block))
            holder = item.value.get("node") if item is not None else None
            raise Taken(
                f"block {block} belongs to node {holder or 'unknown'}",
                "request an address of another block, or run the container on that node",
            )
        return block

    def _create(self, space: Space, block: Prefix) -> bool:
        """Claim one block; False if somebody has it."""
        with space.changing() as (ledger, _):
            entry = ledger.find(block)
            if entry is not None and entry.state != PENDING:
                return False
            if entry is None:
                ledger.seq += 1
                entry = Block(str(block), ledger.seq, PENDING)
                ledger.blocks.append(entry)
        try:
            owned = self._create_item(space, entry)
        except Refused:
            self._forget(space, entry)
            raise
        if owned:
            self._set_state(space, entry, OWN)
        else:
            self._forget(space, entry)
        return owned

    def _create_item(self, space: Space, entry: Block) -> bool:
        """Make the block's item; False if it is somebody else's.

        Raises Unavailable if it may be made or not.
        """
        key = _key(space, entry.prefix)
        for attempt in range(2):
            try:
                self.ask(self.store.create, key, self.author(entry))
                return True
            except Exists:
                if not attempt and not self._may_have_asked(entry):
                    return False
                item = self.ask(self.store.read, key)
                if item is not None:
                    return self.is_mine(item)
            except Unavailable:
                item = self.ask(self.store.read, key)
                if item is not None:
                    return self.is_mine(item)
        raise Unavailable(f"{self.store.name} does not say whether {entry.cidr} is claimed")

    def _may_have_asked(self, entry: Block) -> bool:
        """Was an earlier request for this block sent, of which nothing is known?"""
        return entry.cidr in self._unsettled

    def settle(self, space: Space) -> None:
        """Find out about claims whose answers were lost, and finish releases, in their order."""
        ledger = space.ledger()
        unsettled = [] if self.is_restored(ledger) else ledger.of_state(PENDING)
        self._unsettled = frozenset(each.cidr for each in unsettled)
        for entry in unsettled:
            self._create(space, entry.prefix)
        self._unsettled = frozenset()
        for entry in sorted(ledger.of_state(RELEASING), key=lambda each: each.seq):
            self._delete(space, entry)

    def taken(self, space: Space) -> set[Prefix]:
        """The blocks that any node has; ours that are not in the ledger are dealt with."""
        items = self._blocks(space)
        mine = {block for block, item in items.items() if self.is_mine(item)}
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
            "nodes with empty blocks are asked for them; `cni ipam blocks` shows who has which. "
            "Add a range, or make the blocks of a new pool smaller (blockSize)" + resting,
        )

    def _want(self, space: Space) -> None:
        """Ask the other nodes for their empty blocks."""
        now = int(time.time())

        def renewed(old: Item | None) -> dict[str, Any]:
            if old is not None and now - number(old.value.get("since")) < _WANTED_FOR / 4:
                return old.value
            return {"uid": self.uid, "since": now}

        try:
            self.put(f"wanted/{space.name}/{self.node.name}", renewed)
        except (Unavailable, Refused):
            pass  # the next attempt makes it
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
            return  # next time
        self._set_wanting(space, False)

    def is_wanted(self, space: Space) -> bool:
        """Has another node found no free block?"""
        prefix, now = f"wanted/{space.name}/", time.time()
        return any(
            item.key != prefix + self.node.name
            and abs(now - number(item.value.get("since"))) < _WANTED_FOR
            for item in self.ask(self.store.list, prefix).items
        )

    def _wanting(self) -> list[str]:
        return self.node.wanting()

    def _set_wanting(self, space: Space, wanted: bool) -> None:
        others = [each for each in self._wanting() if each != space.name]
        self.node.set_wanting([*others, space.name] if wanted else others)

    # --- releasing ---

    def release(
        self, space: Space, chosen: Callable[[Block], bool], cooldown: int = 0
    ) -> list[str]:
        """Give back the `chosen` ones of the own blocks in which no address is reserved.

        Addresses that were released within the last `cooldown` seconds count as reserved.
        """
        with space.changing() as (ledger, reservations):
            reserved = space.reserved(reservations)
            if cooldown:
                freed, now = rest.recent(space.freed), boot_time()
                reserved += [each for each, when in freed.items() if now - when < cooldown]
            given = []
            for entry in ledger.of_state(OWN):
                block = entry.prefix
                if chosen(entry) and not any(block.contains(each) for each in reserved):
                    entry.state = RELEASING
                    given.append(entry)
        for entry in given:
            self._delete(space, entry)
        return [each.cidr for each in given]

    def _delete(self, space: Space, entry: Block) -> None:
        """Delete the item of a block that is being released; it stays so if this raises."""
        key = _key(space, entry.prefix)
        for _ in range(2):
            item = self.ask(self.store.read, key)
            if item is None or not self.is_mine(item):
                break
            try:
                self.ask(self.store.delete, item)
                break
            except Conflict:
                continue
        else:
            raise Unavailable(f"{self.store.name}: {key} changes all the time", "try again")
        self._forget(space, entry)

    # --- comparing ---

    def verify(self) -> None:
        """Compare every space whose blocks were claimed in this store, or before its restore."""
        for name in self.node.spaces():
            space = Space(self.node, name)
            if space.ledger().store in self._known_identities():
                self.settle(space)
                self.sync(space)

    def _known_identities(self) -> set[str]:
        """The store's, and the one it had when this node registered by the same settings."""
        before = self.node.registration(self._settings)
        return {self.identity()} | ({before.store} if before is not None else set())

    def sync(self, space: Space) -> Synced:
        """Make ledger and store agree, and put back what the store has lost.

        A block that another node has is not used any more; a container that has an address of it
        is told of in the log. What is ours in the store and not in the ledger (a claim that came
        through after it was given up, or what a restored backup brought back) is deleted; only
        where the ledger is new, it is believed.

        As long as a restored store is not accepted, what it says of others' blocks is not believed
        either: the other node will delete what it had given back, and then ours is put back.
        """
        agreed = "" if space.ledger().store else self.agreed_identity(space)
        items = self._blocks(space)
        found = Synced([], [], [], [])
        with space.changing() as (ledger, reservations):
            is_new = not ledger.store
            ledger.store = ledger.store or agreed
            restored = self.is_restored(ledger)
            missing = self._compare(items, ledger, found, restored)
            held = space.reserved(reservations)
            strays = self._strays(items, ledger, found, held, is_new and not restored)
            if found.lost:
                gone = [Prefix.parse(each) for each in found.lost]
                texts = {str(block) for block in gone for each in held if block.contains(each)}
                found.conflicts.extend(sorted(texts))
        for text in found.conflicts:
            self.log(f"cluster: block {text} belongs to another node, and containers here use it")
        for entry in strays:
            self._delete(space, entry)
        self._unsettled = frozenset(each.cidr for each in missing)
        for entry in missing:
            self._put_back(space, entry, found, restored)
        self._unsettled = frozenset()
        return found

    def _compare(
        self, items: dict[Prefix, Item], ledger: Ledger, found: Synced, restored: bool
    ) -> list[Block]:
        """Change the ledger; returns the blocks that the store lacks, which are pending again."""
        missing = []
        for entry in list(ledger.blocks):
            item = items.get(entry.prefix)
            if item is not None and self.is_mine(item):
                if entry.state == PENDING:
                    entry.state = OWN
            elif entry.state != RELEASING and restored:
                entry.state = PENDING
                if item is None:
                    missing.append(entry)
            elif entry.state == OWN and item is None:
                entry.state = PENDING
                missing.append(entry)
            else:
                ledger.remove(entry)
                if entry.state == OWN:
                    found.lost.append(entry.cidr)
        return missing

    def _strays(
        self,
        items: dict[Prefix, Item],
        ledger: Ledger,
        found: Synced,
        held: list[bytes],
        is_new: bool,
    ) -> list[Block]:
        """Note what is ours and not in the ledger; returns what is to be deleted of it.

        A block of which a container here has an address (`held`) is never deleted.
        """
        known = {each.prefix for each in ledger.blocks}
        strays = []
        for block, item in items.items():
            if block in known or not self.is_mine(item):
                continue
            seq = number(item.value.get("seq"))
            ledger.seq = max(ledger.seq, seq)
            keep = is_new or any(map(block.contains, held))
            entry = Block(str(block), seq, OWN if keep else RELEASING)
            ledger.blocks.append(entry)
            if keep:
                found.adopted.append(entry.cidr)
            else:
                strays.append(entry)
        return strays

    def _put_back(self, space: Space, entry: Block, found: Synced, restored: bool) -> None:
        """Make a block's item again."""
        try:
            if self._create_item(space, entry):
                self._set_state(space, entry, OWN)
                found.restored.append(entry.cidr)
                return
        except Refused:
            if not restored:
                self._forget(space, entry)
            raise
        if not restored:
            self._forget(space, entry)
            found.lost.append(entry.cidr)

    def _blocks(self, space: Space) -> dict[Prefix, Item]:
        """All blocks of the space in the store."""
        found = {}
        for item in self.ask(self.store.list, f"blocks/{space.name}/").items:
            try:
                found[blocks.block_of_key(item.key.rpartition("/")[2])] = item
            except InvalidAddress:
                self.log(f"cluster: {item.key} in {self.store.name} is no block: passed over")
        return found

    def _set_state(self, space: Space, entry: Block, state: str) -> None:
        with space.changing() as (ledger, _):
            known = ledger.find(entry.prefix)
            if known is not None:
                known.state = state

    def _forget(self, space: Space, entry: Block) -> None:
        with space.changing() as (ledger, _):
            known = ledger.find(entry.prefix)
            if known is not None and known.seq == entry.seq:
                ledger.remove(known)


def _key(space: Space, block: Prefix) -> str:
    return f"blocks/{space.name}/{blocks.key_of(block)}"
