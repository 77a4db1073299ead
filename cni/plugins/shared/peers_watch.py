"""Follow the store of the cluster's nodes, for the server (peers.py has the rest).

One process of a node watches the endpoints in each store that its networks name. The kernel knows a
change at once; every few seconds all is compared: with the kernel, with what this node publishes by
now, and with the networks' links that are still there. A network without a link for a minute is
withdrawn from the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from ...kernel.errors import KernelError
from ...kernel.netlink import Netlink
from ...protocol.errors import CNIError
from ...store import endpoints, settings
from ...store.interface import Change, Expired, Item, Store, StoreError
from ...store.node_files import boot_time
from . import peers
from .peers import PATIENCE, Note, Overlay, Place, connect, identity

TURN = 5.0  # seconds between two comparisons
_WITHOUT_LINK = 60.0  # seconds after which this node leaves a network
_LOCK_PATIENCE = 3600.0  # for another server's process to end

Log = Callable[[str], None]
Overlays = Mapping[str, Overlay]  # by the plugin's name
Networks = dict[str, Note]


def forever(
    env: Mapping[str, str],
    log: Log,
    register: Callable[[settings.Settings], None],
    overlays: Overlays,
) -> None:
    """Follow the stores of all noted networks, as long as the process lives.

    `register` renews the node's registration in a store, so that others know that it lives. What
    goes wrong is logged once, as long as it lasts.
    """
    place = Place(settings.data_dir({}, env))
    with place.watched(_LOCK_PATIENCE):
        watch = Watch(place, env, log, register, overlays)
        while True:
            try:
                watch.turn()
            except CNIError as error:
                watch.tell({str(error)})
                time.sleep(TURN)


class Watch:
    """What is followed. What stores and the kernel refuse is logged."""

    def __init__(
        self,
        place: Place,
        env: Mapping[str, str],
        log: Log,
        register: Callable[[settings.Settings], None],
        overlays: Overlays,
    ) -> None:
        self.place = place
        self._env = env
        self._log = log
        self._register = register
        self._overlays = overlays
        self._followers: dict[str, Follower] = {}
        self._without_link: dict[str, float] = {}  # by network: since when, time.monotonic()
        self._said: set[str] = set()

    def turn(self, seconds: float = TURN) -> None:
        """Follow each store for a while, and compare. Raises CNIError for wrong settings."""
        stores = self._networks()
        if not stores:
            time.sleep(seconds)
        problems: set[str] = set()
        for digest, notes in stores.items():
            follower = self._followers.setdefault(digest, Follower(self.place, self._overlays))
            began = time.monotonic()
            is_refused = self._follow(follower, notes, seconds / len(stores), problems)
            if is_refused:
                # a store that fails at once must not be asked more often for that
                time.sleep(max(0.0, seconds / len(stores) - (time.monotonic() - began)))
            for note in notes.values():
                problems |= {f"{note.kind}: {each}" for each in note.refused}
        for gone in self._followers.keys() - stores.keys():
            self._followers.pop(gone).reset()
        self.tell(problems)

    def tell(self, problems: set[str]) -> None:
        """Log the problems that were not there in the turn before."""
        for text in sorted(problems - self._said):
            self._log(text)
        self._said = problems

    def _follow(
        self, follower: Follower, notes: Networks, seconds: float, problems: set[str]
    ) -> bool:
        """Compare and follow one store; adds to `problems`, and says whether there was one."""
        first = next(iter(notes.values()))
        try:
            self._register(self._settings_of(first))
            self._compare(follower, notes, problems)
            follower.follow(notes, seconds)
        except StoreError as error:
            # a new connection and a new listing: after an error it is not known what was missed
            follower.reset()
            self._note_problem(notes, error)
            problems.add(f"{first.kind}: {error}")
        except (CNIError, KernelError) as error:
            problems.add(f"{first.kind}: {error}")
        else:
            return False
        return True

    def _networks(self) -> dict[str, Networks]:
        """The notes, by store and network."""
        found: dict[str, Networks] = {}
        for network in self.place.networks():
            note = self.place.note(network)
            if note is not None and note.kind in self._overlays:
                found.setdefault(self._settings_of(note).digest, {})[network] = note
        return found

    def _settings_of(self, note: Note) -> settings.Settings:
        return settings.read({"store": note.store, "nodeName": note.node}, self._env)._replace(
            data_dir=self.place.data_dir
        )

    def _note_problem(self, notes: Networks, error: StoreError) -> None:
        for network in notes:
            with self.place.locked():
                note = self.place.note(network)
                if note is not None and _is_news(note, error):
                    self.place.write(network, note.told(error))

    def _compare(self, follower: Follower, notes: Networks, problems: set[str]) -> None:
        """Make store and kernel say the same; what one network lacks is added to `problems`.

        Raises StoreError, CNIError.
        """
        store, items = follower.connected(next(iter(notes.values())))
        for network in list(notes):
            with self.place.locked(), Netlink() as host:
                note = self.place.note(network)
                if note is None or note.kind not in self._overlays:
                    notes.pop(network)
                    continue
                notes[network] = note
                try:
                    if not self._agree(host, store, items, network, note):
                        notes.pop(network)
                except (CNIError, KernelError) as error:
                    problems.add(f"{note.kind}: {error}")

    def _agree(
        self, host: Netlink, store: Store, items: dict[str, Item], network: str, note: Note
    ) -> bool:
        """Compare one network; False if this node has left it."""
        overlay = self._overlays[note.kind]
        made = overlay.find(host, network)
        uid = identity(self.place.data_dir, note.node)
        if made is not None:
            self._without_link.pop(network, None)
        elif self._is_left(network):
            endpoints.withdraw(store, network, note.node, uid)
            self.place.remove(network)
            return False
        before = msgspec.json.encode(note)
        own = overlay.own(host, self.place, note, made)
        others = endpoints.of_network(items.values(), network)
        peers.agree(overlay, store, network, note, uid, own, others)
        if msgspec.json.encode(note) != before:
            self.place.write(network, note)
        if made is not None:
            overlay.settle(host, made, note)
            self.place.settled(network, note)
        return True

    def _is_left(self, network: str) -> bool:
        """Has the network had no link for long?"""
        now = time.monotonic()
        return now - self._without_link.setdefault(network, now) > _WITHOUT_LINK


class Follower:
    """One store, its endpoints as they were seen last, and where a watch goes on."""

    def __init__(self, place: Place, overlays: Overlays) -> None:
        self._place = place
        self._overlays = overlays
        self._store: Store | None = None
        self._items: dict[str, Item] = {}
        self._revision = ""

    def connected(self, note: Note) -> tuple[Store, dict[str, Item]]:
        """The note's store, and its endpoints by key. Raises StoreError, CNIError."""
        if self._store is None:
            self._store = connect(note.store, note.kind)
        if not self._revision:
            listing = self._store.list(endpoints.PREFIX)
            self._items = {item.key: item for item in listing.items}
            self._revision = listing.revision
        return self._store, self._items

    def follow(self, notes: Networks, seconds: float) -> None:
        """Tell the kernel what changes within so many seconds. Raises StoreError, CNIError,
        KernelError.
        """
        try:
            for change in self._changes(seconds):
                network, node = endpoints.place_of(change.key)
                # what this node has written itself changes no peer
                if network in notes and node != notes[network].node:
                    self._apply(network, notes)
        except Expired:
            self._revision = ""

    def _changes(self, seconds: float) -> Iterator[Change]:
        if self._store is None:
            return
        for change in self._store.watch(endpoints.PREFIX, self._revision, seconds):
            self._revision = change.revision
            if change.key and change.item is None:
                self._items.pop(change.key, None)
            elif change.item is not None:
                self._items[change.key] = change.item
            if change.key:
                yield change

    def _apply(self, network: str, notes: Networks) -> None:
        """Apply a change of a network's endpoints. Raises CNIError, KernelError."""
        with self._place.locked(), Netlink() as host:
            note = self._place.note(network)
            if note is None or note.kind not in self._overlays:
                return
            overlay = self._overlays[note.kind]
            before = msgspec.json.encode(note)
            others = endpoints.of_network(self._items.values(), network)
            peers.accept(overlay, network, note, others)
            notes[network] = note
            if msgspec.json.encode(note) == before:
                return  # an ADD has seen it first
            self._place.write(network, note)
            made = overlay.find(host, network)
            if made is not None:
                overlay.settle(host, made, note)
                self._place.settled(network, note)

    def reset(self) -> None:
        """Begin anew, with a listing and a connection."""
        if self._store is not None:
            self._store.close()
        self._store, self._items, self._revision = None, {}, ""


def _is_news(note: Note, error: StoreError) -> bool:
    """Is that problem not noted, or so long ago that ADDs would ask the store again?"""
    return note.problem != str(error) or not 0 <= boot_time() - note.since < PATIENCE / 2
