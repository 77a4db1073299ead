"""A node's session with a store: the node's registration, and the store's identity.

Longer than 400 lines: each step relies on what the steps before have found out about the node's
record and the store, and a change of one needs the others in view.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from ... import interrupts
from ...store.interface import Conflict, Exists, Item, Refused, Store, Unavailable
from ...store.node_files import boot_time
from ...store.settings import Settings
from .node import OWN, PENDING, Block, Ledger, Node, Registration, Space
from .pool import Pool, check_apart

T = TypeVar("T")
_LOOKED_FOR = 60.0  # seconds for which what the store has said of this node is believed
_UPDATES = 8  # attempts to update an item that others change, too


class Session:
    """A session with one store, used under `Node.claiming`. Methods raise StoreError, CNIError.

    `renews` is set by a process that keeps renewing, that is, by the server. Only then does the
    store get a `nodeTimeout`, after which a silent node that is idle (idle.py) counts as gone.
    `observes` is set by a process that allocates nothing, and leaves an idle node idle.
    """

    renews = False
    observes = False

    def __init__(
        self, store: Store, settings: Settings, node: Node, log: Callable[[str], None]
    ) -> None:
        self.store = store
        self.node = node
        self.timeout = settings.timeout
        self.log = log
        self._settings = settings.digest
        self._identity = ""

    @property
    def uid(self) -> str:
        return self.node.identity().uid

    # --- the node ---

    def register(self, force: bool = False) -> None:
        """Register this node in the store: once a boot, again before it would count as gone, and
        before an idle node allocates.

        With `force` the store is asked in any case, but `beat` is counted only when it is time:
        otherwise a server would change the store in each of its rounds.

        Raises Refused if another node has this name.
        """
        before = self.node.registration(self._settings)
        now = boot_time()
        if before is not None and not force and self._is_fresh(before, now):
            return
        self.node.identity()  # raises if the node had another name
        key, is_same = f"nodes/{self.node.name}", True
        was_idle = before is None or before.idle
        idle = self._becomes_idle(before)
        is_beaten = False

        def renewed(old: Item | None) -> dict[str, Any]:
            nonlocal is_same, is_beaten
            is_same = is_same and old is not None
            if self._is_given_up(old, before):
                is_same = False
                self.disown()
            elif old is not None:
                self._check_alone(old, before)
            beat = number(old.value.get("beat")) if old is not None else 0
            timeout = self._timeout_of(old)
            # No timeout, no change to write. But a node that wakes changes the item in any case:
            # then a late request, sent when it was idle, fails.
            is_beaten = (was_idle and not idle) or (
                timeout > 0 and not self._was_told(old, before, timeout, idle, now)
            )
            return {
                "uid": self.uid,
                "boot": self.node.boot,
                "beat": beat + is_beaten,
                "timeout": timeout,
                "cordoned": old is not None and bool(old.value.get("cordoned")),
                "idle": idle,
                # random, because a late request must not make a record that passes for another
                "made": old.value.get("made", "") if old is not None else os.urandom(8).hex(),
            }

        item = self.put(key, renewed, is_new=before is None)
        cordoned, timeout = bool(item.get("cordoned")), number(item.get("timeout"))
        # counted from before the request: the store, and so the others, got it later
        until = now + timeout if is_beaten or before is None else before.until
        made = Registration(
            self.node.name, self.node.boot, self.identity(), timeout, until, cordoned, idle, now,
            str(item.get("made") or ""),
        )  # fmt: skip
        known = {self.identity()} | ({before.store} if before is not None else set())
        self.node.set_registration(self._settings, made)
        if not idle:
            self._wake(known)
        if before is not None and not is_same:
            self.verify()

    def _is_given_up(self, old: Item | None, before: Registration | None) -> bool:
        """Have others given up this node since it registered, so that they may have its blocks?

        They mark its record, and delete it when the blocks are free. Then a request of this node
        that was on its way for long may make the record again.
        """
        registered = before is not None and before.store == self.identity()
        if old is None:
            return registered
        if old.value.get("lost"):
            return True
        return (
            registered
            and before is not None
            and self.is_mine(old)
            and bool(before.made)
            and old.value.get("made") != before.made
        )

    def _was_told(
        self, old: Item | None, before: Registration | None, timeout: int, idle: bool, now: float
    ) -> bool:
        """Does the store know all of this from a renewal of ours that is not due again yet?"""
        if old is None or before is None or (before.boot, before.store) != (
            self.node.boot, self.identity(),
        ):  # fmt: skip
            return False
        if before.timeout != timeout or before.is_due(now):
            return False
        said = [old.value.get(key) for key in ("uid", "boot", "timeout", "idle")]
        return said == [self.uid, self.node.boot, timeout, idle]

    def look(self) -> None:
        """Register if the store says something new of this node: that it is cordoned or not any
        more, or given up. One request a minute, so that a burst of claims does not ask each time.
        """
        known, now = self.node.registration(self._settings), boot_time()
        if known is None or (not known.cordoned and 0 <= now - known.looked < _LOOKED_FOR):
            return
        item = self.ask(self.store.read, f"nodes/{self.node.name}")
        if self._is_given_up(item, known) or item is None or self._differs(item):
            self.register(force=True)
        else:
            looked = msgspec.structs.replace(known, looked=now)
            self.node.set_registration(self._settings, looked)

    def _differs(self, item: Item) -> bool:
        # Another uid or boot: a second machine has this node's name, or a copy of its disk.
        author = item.value.get("uid"), item.value.get("boot")
        if author != (self.uid, self.node.boot):
            return True
        return bool(item.value.get("cordoned")) != self.is_cordoned()

    def _becomes_idle(self, before: Registration | None) -> bool:
        """Will the store be told that the node is idle? Then ADDs know it already."""
        if self.observes:
            return before is not None and before.idle
        is_new_store = before is not None and before.store != self.identity()
        if not (self.renews and self.timeout) or is_new_store:
            return False
        from . import idle as idleness  # of servers

        idle = idleness.begin(self.node, self.identity())
        if idle and before is not None and not before.idle:
            noted = msgspec.structs.replace(before, idle=True)
            self.node.set_registration(self._settings, noted)
        return idle

    def _wake(self, stores: set[str]) -> None:
        """Let ADDs allocate again from the blocks of these stores, which know that the node is not
        idle (idle.py).
        """
        for name in self.node.spaces():
            space = Space(self.node, name)
            before = space.ledger()
            if before.idle and before.store in stores:
                with space.changing() as (ledger, _):
                    ledger.idle = False

    def _timeout_of(self, old: Item | None) -> int:
        """The seconds after which the node counts as gone, if it is idle and silent; 0: never."""
        if self.renews or old is None:
            return self.timeout if self.renews else 0
        ours = (old.value.get("uid"), old.value.get("boot")) == (self.uid, self.node.boot)
        return min(number(old.value.get("timeout")), self.timeout) if ours else 0

    def _is_fresh(self, before: Registration, now: float) -> bool:
        """Is there no need to renew yet?"""
        if (before.boot, before.name) != (self.node.boot, self.node.name):
            return False
        if before.timeout != self.timeout and (self.renews or before.timeout > self.timeout):
            return False
        if before.idle and not (self.renews or self.observes):
            return False
        return not before.is_due(now)

    def disown(self) -> None:
        """The store has given up this node, so others may have its blocks: become another node.

        With a new uid nothing in the store is ours, and others may remove the old node's items. The
        blocks in our ledger are claimed again, if they are free. The order matters: however this
        ends, no address is allocated from a block that is not claimed.
        """
        for name in self.node.spaces():
            space = Space(self.node, name)
            if space.ledger().store == self.identity():
                with space.changing() as (ledger, _):
                    for entry in ledger.of_state(OWN):
                        entry.state = PENDING
        self.node.renew_identity()
        self.log(f"cluster: {self.store.name} gave up node {self.node.name}: it begins anew")

    def verify(self) -> None:
        """Compare the node's blocks with the store's. Subclasses override this."""
        raise NotImplementedError

    def _check_alone(self, old: Item, before: Registration | None) -> None:
        """Raise Refused if another machine has this node's name or identity."""
        key = old.key
        if old.value.get("uid") != self.uid:
            raise self._namesake(old, key)
        if before is None or before.boot != self.node.boot or before.store != self.identity():
            return
        if old.value.get("boot") != self.node.boot:
            raise self._twin(old, key)

    def is_cordoned(self) -> bool:
        """Has an administrator decided that this node gets no more blocks?"""
        found = self.node.registration(self._settings)
        return found is not None and found.cordoned

    def _namesake(self, item: Item, key: str) -> Refused:
        return Refused(
            f"another node is called {self.node.name} in {self.store.name}",
            f"it has the uid {item.value.get('uid')}, this one {self.uid}: give one of them another"
            f" nodeName. If it is this node before it was installed anew, and its containers are "
            f"gone: `cni ipam forget {self.node.name}`, which frees the blocks of {key}",
        )

    def _twin(self, item: Item, key: str) -> Refused:
        return Refused(
            f"another machine uses the identity of node {self.node.name}",
            f"{key} was written in boot {item.value.get('boot')}, this is {self.node.boot}: a disk "
            f"was copied with {self.node.path('node')}, which has to be removed on the copy, with "
            "all of its containers' addresses, and nodeName has to differ",
        )

    # --- the store ---

    def identity(self) -> str:
        """The store's identity; read once."""
        if not self._identity:
            self._identity = self.ask(self.store.identity)
        return self._identity

    def read_pool(self, name: str) -> dict[str, Any] | None:
        """The definition of a pool; None if the store has no pool of that name."""
        item = self.ask(self.store.read, f"pools/{name}")
        return item.value if item is not None else None

    def is_restored(self, ledger: Ledger) -> bool:
        """Is the store another one, or restored, since the node's blocks were claimed?"""
        return ledger.store not in ("", self.identity())

    def agree(self, space: Space, pool: Pool) -> None:
        """Make sure that the space in the store has the pool's subnets, and is the one we know.

        Raises Refused.
        """
        ledger = space.ledger()
        restored = self.is_restored(ledger)
        if not restored and ledger.store and pool.layout.items() <= ledger.layout.items():
            return
        if restored:
            self.verify()  # in any case, our own blocks are put back first

        def joined(old: Item | None) -> dict[str, Any]:
            if old is None and not restored:
                return {"layout": pool.layout, "store": self.identity()}
            if old is None or old.value.get("store") != self.identity():
                raise self._restored(space)
            layout = old.value.get("layout") or {}
            check_apart(list(pool.layout.items()), layout)
            return {**old.value, "layout": {**layout, **pool.layout}}

        value = self.put(f"spaces/{space.name}", joined)
        self._believe(space, value["layout"])

    def keep_layout(self, space: Space) -> None:
        """Write how this node knows the space to be divided into a restored store, which may lack
        that.

        Else a pool with blocks of another size could claim addresses that nodes have. The item
        keeps the identity of the store as it was, so that nothing is accepted by this.
        """
        ledger = space.ledger()

        def kept(old: Item | None) -> dict[str, Any]:
            if old is None:
                return {"layout": ledger.layout, "store": ledger.store}
            if old.value.get("store") == self.identity():
                return old.value
            return {**old.value, "layout": {**ledger.layout, **(old.value.get("layout") or {})}}

        if ledger.layout:
            self.put(f"spaces/{space.name}", kept)

    def check_agreement(self, space: Space, pool: Pool) -> None:
        """Require that a claim would find the space as the pool has it. Changes nothing.

        Raises Refused for a restored store that nobody has accepted, and CNIError for subnets that
        do not fit.
        """
        item = self.ask(self.store.read, f"spaces/{space.name}")
        if item is None:
            if self.is_restored(space.ledger()):
                raise self._restored(space)
            return
        if item.value.get("store") != self.identity():
            raise self._restored(space)
        check_apart(list(pool.layout.items()), item.value.get("layout") or {})

    def acknowledge(self, space: Space) -> bool:
        """Trust a restored store if an administrator has accepted it; return whether it is so."""
        if not self.is_restored(space.ledger()):
            return True
        item = self.ask(self.store.read, f"spaces/{space.name}")
        if item is None or item.value.get("store") != self.identity():
            return False
        self._believe(space, item.value.get("layout") or {})
        return True

    def agreed_identity(self, space: Space) -> str:
        """The store's identity when the space was agreed on; else its present one."""
        item = self.ask(self.store.read, f"spaces/{space.name}")
        return str(item.value.get("store")) if item is not None else self.identity()

    def accept(self, space: str) -> None:
        """Declare that every node has put its blocks back, after the store was restored."""

        def accepted(old: Item | None) -> dict[str, Any]:
            own = Space(self.node, space).ledger().layout
            before = old.value if old is not None else {"layout": dict(own)}
            return {**before, "store": self.identity()}

        self.put(f"spaces/{space}", accepted)

    def _believe(self, space: Space, layout: dict[str, int]) -> None:
        with space.changing() as (ledger, _):
            ledger.store = self.identity()
            ledger.layout = dict(layout)

    def _restored(self, space: Space) -> Refused:
        return Refused(
            f"{self.store.name} was restored from a backup, or is another store than before",
            f"it may not know of blocks that nodes of space {space.name} have. No block is claimed "
            "until every node has put its own back (`cni ipam sync` on each, or its server does) "
            f"and somebody has said so: `cni ipam accept {space.name}`",
        )

    def put(
        self, key: str, change: Callable[[Item | None], dict[str, Any]], *, is_new: bool = False
    ) -> dict[str, Any]:
        """Create or update an item with the value of `change(old item)`; return that value.

        `is_new`: the item probably does not exist, so create it without reading first. Raises
        Unavailable for a lost answer; then the call may be repeated.
        """
        for attempt in range(_UPDATES):
            old = None if is_new and not attempt else self.ask(self.store.read, key)
            new = change(old)
            if old is not None and old.value == new:
                return new
            try:
                if old is None:
                    return self.ask(self.store.create, key, new).value
                return self.ask(self.store.update, old, new).value
            except (Exists, Conflict):
                continue
        raise Unavailable(f"{self.store.name}: {key} changes all the time", "try again")

    # --- requests ---

    def author(self, entry: Block) -> dict[str, Any]:
        identity = self.node.identity()
        return {
            "node": identity.name,
            "uid": identity.uid,
            "boot": self.node.boot,
            "seq": entry.seq,
        }

    def is_mine(self, item: Item) -> bool:
        return item.value.get("uid") == self.uid

    def ask(self, function: Callable[..., T], *args: Any) -> T:
        """Send a request; a signal ends the wait for its answer."""
        with interrupts.waiting():
            return function(*args)


def number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
