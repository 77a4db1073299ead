"""One block in the ledger and in the store: claiming, releasing, and recovery after a lost answer.

Every change in the store is of one item, and conditional. The ledger (node.py) names the block
before the request is sent, so it knows the block whatever happens to the request:

    pending    → create → own                an answer that was lost: read who made the item
    own, empty → releasing → delete → gone   only the version that was read, so no block that
                                             somebody has claimed meanwhile (no ABA)

A create request that arrives after its sender gave up makes an item that is in no ledger. The item
names its author, so compare.py finds it.
"""

from __future__ import annotations

from collections.abc import Callable

from ...protocol.address import InvalidAddress, Prefix
from ...store.interface import Conflict, Exists, Item, Refused, Store, Unavailable
from ...store.node_files import boot_time
from ...store.settings import Settings
from . import blocks, rest
from .node import OWN, PENDING, RELEASING, Block, Node, Space
from .session import Session


class Holding(Session):
    """Operations on single blocks. Used under `Node.claiming`.

    Methods raise StoreError, CNIError.
    """

    def __init__(
        self, store: Store, settings: Settings, node: Node, log: Callable[[str], None]
    ) -> None:
        super().__init__(store, settings, node, log)
        self.unsettled: frozenset[str] = frozenset()  # claims whose outcome is not known

    def create(self, space: Space, block: Prefix) -> bool:
        """Claim one block; False if another node has it."""
        with space.changing() as (ledger, _):
            entry = ledger.find(block)
            if entry is not None and entry.state != PENDING:
                return False
            if entry is None:
                ledger.seq += 1
                entry = Block(str(block), ledger.seq, PENDING)
                ledger.blocks.append(entry)
        try:
            owned = self.make_item(space, entry)
        except Refused:
            self.forget(space, entry)
            raise
        if owned:
            self.set_state(space, entry, OWN)
        else:
            self.lose(space, entry)
        return owned

    def make_item(self, space: Space, entry: Block) -> bool:
        """Make the block's item; False if another node has it.

        Raises Unavailable if it is not known whether the item was made.
        """
        key = key_of(space, entry.prefix)
        for attempt in range(2):
            try:
                self.ask(self.store.create, key, self.author(entry))
                return True
            except Exists:
                # somebody else's, unless an earlier request of ours got through without an answer
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
        """Was an earlier request for this block sent whose outcome is not known?"""
        return entry.cidr in self.unsettled

    def settle(self, space: Space) -> None:
        """Settle claims whose answers were lost, and finish releases, in their order."""
        ledger = space.ledger()
        unsettled = [] if self.is_restored(ledger) else ledger.of_state(PENDING)
        self.unsettled = frozenset(each.cidr for each in unsettled)
        for entry in unsettled:
            self.create(space, entry.prefix)
        self.unsettled = frozenset()
        for entry in sorted(ledger.of_state(RELEASING), key=lambda each: each.seq):
            self.give_back(space, entry)

    # --- releasing ---

    def release(
        self, space: Space, chosen: Callable[[Block], bool], cooldown: int = 0
    ) -> list[str]:
        """Release those of this node's blocks that are `chosen` and have no reserved address.

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
            self.give_back(space, entry)
        return [each.cidr for each in given]

    def give_back(self, space: Space, entry: Block) -> None:
        """Delete the item of a block that is being released; on an error it stays in that state."""
        key = key_of(space, entry.prefix)
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
        self.forget(space, entry)

    # --- reading ---

    def items_of(self, space: Space) -> dict[Prefix, Item]:
        """All blocks of the space in the store."""
        found = {}
        for item in self.ask(self.store.list, f"blocks/{space.name}/").items:
            try:
                found[blocks.block_of_key(item.key.rpartition("/")[2])] = item
            except InvalidAddress:
                self.log(f"cluster: {item.key} in {self.store.name} is no block: passed over")
        return found

    def set_state(self, space: Space, entry: Block, state: str) -> None:
        with space.changing() as (ledger, _):
            known = ledger.find(entry.prefix)
            if known is not None:
                known.state = state

    def lose(self, space: Space, entry: Block) -> bool:
        """Take a block that another node has out of the ledger.

        If containers here have addresses of it, that is logged and noted for CHECK and STATUS;
        returns whether it is so.
        """
        with space.changing() as (ledger, reservations):
            known = ledger.find(entry.prefix)
            if known is not None and known.seq == entry.seq:
                ledger.remove(known)
            used = any(map(entry.prefix.contains, space.reserved(reservations)))
        if not used:
            return False
        item = self.ask(self.store.read, key_of(space, entry.prefix))
        holder = str(item.value.get("node")) if item is not None else ""
        with space.changing() as (ledger, _):
            ledger.lost[entry.cidr] = holder
        self.log(
            f"cluster: block {entry.cidr} belongs to {holder or 'another node'} by now, and "
            "containers here have addresses of it: recreate them"
        )
        return True

    def forget(self, space: Space, entry: Block) -> None:
        with space.changing() as (ledger, _):
            known = ledger.find(entry.prefix)
            # a later claim of the same block has another number, and stays
            if known is not None and known.seq == entry.seq:
                ledger.remove(known)


def key_of(space: Space, block: Prefix) -> str:
    return f"blocks/{space.name}/{blocks.key_of(block)}"
