"""vxlan: follow the store of the cluster's nodes, for the server (vxlan_peers.py has the rest).

One process of a node watches the endpoints in each store that its networks name. A change becomes
forwarding entries at once; every few seconds all is compared: with the kernel, with the addresses
that this node has by now, and with the VXLAN links that are still there. A network without a link
for a minute is withdrawn from the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from ...kernel import address, fdb
from ...kernel.errors import KernelError
from ...kernel.netlink import Netlink
from ...protocol.errors import CNIError
from ...store import endpoints, settings
from ...store.interface import Change, Expired, Item, Store, StoreError
from ...store.node_files import boot_time
from . import vxlan_link
from .vxlan_peers import PATIENCE, Note, Place, agree, connect, identity, own_addresses

TURN = 5.0  # seconds between two comparisons
_WITHOUT_LINK = 60.0  # seconds after which this node leaves a network
_LOCK_PATIENCE = 3600.0  # for another server's process to end

Log = Callable[[str], None]


def forever(
    env: Mapping[str, str], log: Log, register: Callable[[settings.Settings], None]
) -> None:
    """Follow the stores of all noted networks, as long as the process lives.

    `register` renews the node's registration in a store, so that others know that it lives. What
    goes wrong is logged once, as long as it lasts.
    """
    place = Place(settings.data_dir({}, env))
    with place.watched(_LOCK_PATIENCE):
        watch = Watch(place, env, log, register)
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
    ) -> None:
        self.place = place
        self._env = env
        self._log = log
        self._register = register
        self._followers: dict[str, Follower] = {}
        self._without_link: dict[str, float] = {}  # by network: since when, time.monotonic()
        self._said: set[str] = set()

    def turn(self, seconds: float = TURN) -> None:
        """Follow each store for a while, and compare. Raises CNIError for wrong settings."""
        networks = self._networks()
        if not networks:
            time.sleep(seconds)
        problems: set[str] = set()
        for digest, notes in networks.items():
            follower = self._followers.setdefault(digest, Follower(self.place))
            began = time.monotonic()
            try:
                self._register(self._settings_of(next(iter(notes.values()))))
                self._compare(follower, notes)
                follower.follow(notes, seconds / len(networks))
            except StoreError as error:
                # a new connection and a new listing: after an error it is not known what was missed
                follower.reset()
                self._note_problem(notes, error)
                problems.add(str(error))
            except (CNIError, KernelError) as error:
                problems.add(str(error))
            if problems:
                # a store that fails at once must not be asked more often for that
                time.sleep(max(0.0, seconds / len(networks) - (time.monotonic() - began)))
        for gone in self._followers.keys() - networks.keys():
            self._followers.pop(gone).reset()
        self.tell(problems)

    def tell(self, problems: set[str]) -> None:
        """Log the problems that were not there in the turn before."""
        for text in sorted(problems - self._said):
            self._log(f"vxlan: {text}")
        self._said = problems

    def _networks(self) -> dict[str, dict[str, Note]]:
        """The notes, by store and network."""
        found: dict[str, dict[str, Note]] = {}
        for network in self.place.networks():
            note = self.place.note(network)
            if note is not None:
                found.setdefault(self._settings_of(note).digest, {})[network] = note
        return found

    def _settings_of(self, note: Note) -> settings.Settings:
        return settings.read({"store": note.store, "nodeName": note.node}, self._env)._replace(
            data_dir=self.place.data_dir
        )

    def _note_problem(self, notes: dict[str, Note], error: StoreError) -> None:
        for network in notes:
            with self.place.locked():
                note = self.place.note(network)
                if note is not None and _is_news(note, error):
                    self.place.write(network, note.told(error))

    def _compare(self, follower: Follower, notes: dict[str, Note]) -> None:
        """Make store and kernel say the same. Raises StoreError, CNIError, KernelError."""
        first = next(iter(notes.values()))
        store, items = follower.connected(first.store)
        for network in list(notes):
            with self.place.locked(), Netlink() as host:
                note = self.place.note(network)
                if note is None:
                    notes.pop(network)
                    continue
                made = vxlan_link.find(host, network)
                if made is None and self._is_left(network):
                    uid = identity(self.place.data_dir, note.node)
                    endpoints.withdraw(store, network, note.node, uid)
                    self.place.remove(network)
                    notes.pop(network)
                    continue
                if made is not None:
                    self._without_link.pop(network, None)
                before = msgspec.json.encode(note)
                own, _ = own_addresses(host, note)
                uid = identity(self.place.data_dir, note.node)
                agree(store, network, note, uid, own, endpoints.of_network(items.values(), network))
                if msgspec.json.encode(note) != before:
                    self.place.write(network, note)
                if made is not None:
                    vxlan_link.forward(host, made.index, set(note.addresses()) - _own(host))
                notes[network] = note

    def _is_left(self, network: str) -> bool:
        """Has the network had no link for long?"""
        now = time.monotonic()
        return now - self._without_link.setdefault(network, now) > _WITHOUT_LINK


class Follower:
    """One store, its endpoints as they were seen last, and where a watch goes on."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._store: Store | None = None
        self._items: dict[str, Item] = {}
        self._revision = ""

    def connected(self, options: dict[str, Any]) -> tuple[Store, dict[str, Item]]:
        """The store, and its endpoints by key. Raises StoreError, CNIError."""
        if self._store is None:
            self._store = connect(options)
        if not self._revision:
            listing = self._store.list(endpoints.PREFIX)
            self._items = {item.key: item for item in listing.items}
            self._revision = listing.revision
        return self._store, self._items

    def follow(self, notes: dict[str, Note], seconds: float) -> None:
        """Make entries of what changes within so many seconds. Raises StoreError, KernelError."""
        try:
            for change in self._changes(seconds):
                network, node = endpoints.place_of(change.key)
                # what this node has written itself needs no entry
                if network in notes and node != notes[network].node:
                    self._apply(network, node, change.item)
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

    def _apply(self, network: str, node: str, item: Item | None) -> None:
        """Apply the change of one node's addresses. Raises CNIError, KernelError."""
        with self._place.locked(), Netlink() as host:
            note = self._place.note(network)
            if note is None:
                return
            before = set(note.addresses())
            value = item.value if item is not None else {}
            addresses = endpoints.addresses_of(value, node, note.vni, note.port)
            if addresses == note.peers.pop(node, []):
                return  # an ADD has seen it first
            if addresses:
                note.peers[node] = addresses
            self._place.write(network, note)
            made = vxlan_link.find(host, network)
            if made is not None:
                after = set(note.addresses())
                fdb.change(host, made.index, sorted(after - before - _own(host)), before - after)
                if before - after:
                    fdb.forget(host, made.index, before - after)

    def reset(self) -> None:
        """Begin anew, with a listing and a connection."""
        if self._store is not None:
            self._store.close()
        self._store, self._items, self._revision = None, {}, ""


def _own(host: Netlink) -> set[bytes]:
    """This node's addresses: a frame that it sends to itself comes back at once."""
    return {each.prefix.ip for each in address.show(host)}


def _is_news(note: Note, error: StoreError) -> bool:
    """Is that problem not noted, or so long ago that ADDs would ask the store again?"""
    return note.problem != str(error) or not 0 <= boot_time() - note.since < PATIENCE / 2
