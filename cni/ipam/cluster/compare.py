"""Ledger and store compared: after a lost answer, a lost file, or a restored store they differ."""

from __future__ import annotations

from typing import NamedTuple

from ...protocol.address import Prefix
from ...store.interface import Item, Refused
from .holding import Holding
from .node import OWN, PENDING, RELEASING, Block, Ledger, Space
from .session import number


class Synced(NamedTuple):
    """What a comparison of ledger and store found: blocks as texts."""

    adopted: list[str]
    restored: list[str]
    lost: list[str]
    conflicts: list[str]


class Comparing(Holding):
    """Makes a node's ledgers and its stores agree. Used under `Node.claiming`.

    Methods raise StoreError, CNIError.
    """

    listed = 0  # blocks that all nodes list when each of them compares once, as this one did

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
        if self.is_restored(space.ledger()):
            self.keep_layout(space)
        items = self.items_of(space)
        self.listed = len(items) * len({str(item.value.get("node")) for item in items.values()})
        synced = Synced([], [], [], [])
        with space.changing() as (ledger, reservations):
            is_new = not ledger.store
            ledger.store = ledger.store or agreed
            restored = self.is_restored(ledger)
            missing = self._compare(items, ledger, synced, restored)
            held = space.reserved(reservations)
            strays = self._strays(items, ledger, synced, held, is_new and not restored)
            # What was lost before, and does not concern a container any more, is forgotten.
            own = {entry.cidr for entry in ledger.blocks}
            ledger.lost = {
                cidr: holder
                for cidr, holder in ledger.lost.items()
                if cidr not in own and any(map(Prefix.parse(cidr).contains, held))
            }
        for text in synced.lost:
            self._note_lost(space, Block(text, 0), synced)
        # not under the directory's lock: ADD needs that, and the store may be slow
        for entry in strays:
            self.give_back(space, entry)
        self.unsettled = frozenset(each.cidr for each in missing)
        for entry in missing:
            self._put_back(space, entry, synced, restored)
        self.unsettled = frozenset()
        return synced

    def _compare(
        self, items: dict[Prefix, Item], ledger: Ledger, found: Synced, restored: bool
    ) -> list[Block]:
        """Change the ledger; returns the blocks that the store lacks, which are pending again."""
        missing = []
        # a copy: entries are removed from the ledger meanwhile
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
        uid = self.uid  # once: it is in a file, and there may be thousands of items
        strays = []
        for block, item in items.items():
            if block in known or item.value.get("uid") != uid:
                continue
            seq = number(item.value.get("seq"))
            # no later claim may get a number that is in the store
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
            if self.make_item(space, entry):
                self.set_state(space, entry, OWN)
                found.restored.append(entry.cidr)
                return
        except Refused:
            if not restored:
                self.forget(space, entry)
            raise
        if not restored:
            found.lost.append(entry.cidr)
            self._note_lost(space, entry, found)

    def _note_lost(self, space: Space, entry: Block, found: Synced) -> None:
        if self.lose(space, entry):
            found.conflicts.append(entry.cidr)
