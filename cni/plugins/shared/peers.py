"""Peers of an overlay network out of the store of the cluster's nodes (docs/spec/cluster.md).

    <dataDir>/.cni/endpoints/<network>    what this node knows of the network's nodes (`Note`)
    <dataDir>/.cni/endpoints.lock         held from a look at the store until the kernel knows them
    <dataDir>/.cni/endpoints.watched      held by the server's process that follows the store

An ADD publishes how this node is reached, and takes what others have published, when it makes the
network's link, and whenever no server does it (peers_watch.py). When the store cannot be asked, it
goes on with the peers of the note. What a plugin publishes, which records it accepts, and what the
kernel is told of them: its `Overlay`.

Longer than 400 lines: all verbs of both plugins read and write one note, whose rules are here.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from ... import files, interrupts
from ...call import Call
from ...kernel import address, link, route, uapi
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...protocol import config
from ...protocol.address import format_ip
from ...protocol.errors import CNIError, LimitedConnectivity, NotAvailable
from ...store import endpoints, engines, node_files, settings
from ...store.interface import Item, Refused, Store, StoreError
from ...store.node_files import boot_time

FROM_CLUSTER = "cluster"  # the value of peersFrom
PATIENCE = 30.0  # seconds in which a store that gave no answer is not asked again by ADDs
_LOCK_PATIENCE = 60.0  # seconds: who has the lock may be waiting for a store
_OF_CLUSTER = ("cluster", "whereabouts")  # IPAM plugins that name a store, too
# of IPv4 the first one means: a secondary address
_PASSING = uapi.IFA_F_TEMPORARY | uapi.IFA_F_DEPRECATED


class Note(msgspec.Struct, omit_defaults=True):
    """A network of this node, and what is known of its other nodes.

    `kind` is the plugin. `keys` are those of the configuration that tell what is published, and
    what is accepted; `store` is the configuration's object. `published` is what the store has of
    this node, `peers` what was accepted of the others, by node, and `refused` a sentence for each
    part that was not. With `v6` nodes reach each other by IPv6. `fresh` are nodes whose changes the
    kernel may not know yet. `problem` is why the store could not be asked last, at `since`, a time
    of the boot's clock.
    """

    node: str
    kind: str
    keys: dict[str, Any]
    store: dict[str, Any] = {}
    v6: bool = False
    published: dict[str, Any] = {}
    peers: dict[str, dict[str, Any]] = {}
    fresh: list[str] = []
    refused: list[str] = []
    problem: str = ""
    remedy: str = ""
    since: float = 0.0

    def is_same(self, other: Note) -> bool:
        """Do both stand for the same configuration?"""
        ours = (self.node, self.kind, self.keys, self.store)
        return ours == (other.node, other.kind, other.keys, other.store)

    def told(self, error: StoreError) -> Note:
        """This note, after the store's `error` was noted in it."""
        self.problem, self.remedy, self.since = str(error), error.remedy, boot_time()
        return self


class Overlay(Protocol):
    """What distinguishes the networks of one plugin. Methods raise CNIError, NetlinkError."""

    kind: str
    """The plugin's name."""
    advice: str
    """What to do on a node that has no address to publish."""

    def find(self, host: Netlink, network: str) -> Link | None:
        """The network's link. Raises CNIError if something else has its name."""

    def own(self, host: Netlink, place: Place, note: Note, made: Link | None) -> dict[str, Any]:
        """What this node publishes by now; empty if that is not known. `made` is the link.

        Sets `note.v6`, as long as that can be chosen.
        """

    def is_published(self, place: Place, note: Note) -> bool:
        """Has the node nothing to publish that it can know without a look at the kernel?"""

    def accept(self, network: str, note: Note, said: Mapping[str, dict[str, Any]]) -> None:
        """Set `note.peers` and `note.refused` from what other nodes say, by node."""

    def settle(self, host: Netlink, made: Link, note: Note) -> None:
        """Make the kernel know the note's peers and no others."""


class Place:
    """Where a node notes what it knows of its networks. Methods raise CNIError."""

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir
        self._path = os.path.join(data_dir, node_files.SIDECARS, "endpoints")

    def networks(self) -> list[str]:
        """The networks with a note."""
        try:
            return sorted(name for name in os.listdir(self._path) if not name.endswith("~"))
        except OSError:
            return []

    def note(self, network: str) -> Note | None:
        """What was noted; None without a note, or with one that cannot be read any more."""
        try:
            note: Note | None = node_files.read(f"{self._path}/{network}", Note)
        except CNIError:
            return None
        return note

    def write(self, network: str, note: Note) -> None:
        node_files.write(f"{self._path}/{network}", note)

    def settled(self, network: str, note: Note) -> None:
        """Note that the kernel knows all of the note's peers."""
        if note.fresh:
            note.fresh = []
            self.write(network, note)

    def remove(self, network: str) -> None:
        """Remove a note, which may be gone."""
        try:
            os.unlink(f"{self._path}/{network}")
        except OSError:
            pass

    def locked(self) -> Any:
        """A lock for a `with` statement: its holder alone asks the store, and changes peers."""
        return node_files.locked(f"{self._path}.lock", _LOCK_PATIENCE)

    def watched(self, timeout: float) -> Any:
        """A lock for a `with` statement, which tells ADDs that a process follows the store.

        Raises TryAgainLater if another process does.
        """
        return node_files.locked(f"{self._path}.watched", timeout)

    def is_watched(self) -> bool:
        """Does a process follow the store for this node?"""
        try:
            fd = files.open_regular(f"{self._path}.watched")
        except OSError:
            return False
        try:
            # shared, so that several ADDs may look at the same time
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(fd)
        return False


# --- ADD ------------------------------------------------------------------------------------------


@contextmanager
def current(
    call: Call[Any],
    host: Netlink,
    overlay: Overlay,
    wanted: Note,
    place: Place,
    *,
    is_settled: bool,
) -> Iterator[tuple[Note, bool]]:
    """The note of the network, and whether the kernel has to be compared with it.

    Not if the link `is_settled` and a server follows the store; else the note is as the store is
    now, and nobody else changes peers until the `with` statement ends. `wanted` is the note of this
    configuration before anything is known. Raises CNIError.
    """
    network = call.network
    before = place.note(network)
    # the usual case with a server: no lock is taken, and the store is not asked
    if (
        is_settled
        and before is not None
        and before.is_same(wanted)
        and place.is_watched()
        and overlay.is_published(place, before)
    ):
        yield before, False
        return
    with place.locked():
        before = place.note(network)
        note = before if before is not None and before.is_same(wanted) else wanted
        own = overlay.own(host, place, note, overlay.find(host, network))
        if not own and not note.published:
            raise CNIError(
                f"{note.kind}: this node has no address to publish for the others", overlay.advice
            )
        known = set(note.refused)
        _ask(call, overlay, place, note, own)
        place.write(network, note)
        for each in note.refused:
            if each not in known:
                call.log(f"{note.kind}: {each}")
        yield note, True
        place.settled(network, note)


def _ask(call: Call[Any], overlay: Overlay, place: Place, note: Note, own: dict[str, Any]) -> None:
    """Publish, and note the others, if the store can be asked. Raises CNIError."""
    # the store gave no answer just now: this ADD need not wait for it as well
    if note.problem and 0 <= boot_time() - note.since < PATIENCE and note.published == own:
        return
    network = call.network
    try:
        store = connect(note.store, note.kind)
        try:
            with interrupts.waiting():
                uid = identity(place.data_dir, note.node)
                items = endpoints.of_network(
                    store.list(f"{endpoints.PREFIX}{network}/").items, network
                )
                agree(overlay, store, network, note, uid, own, items)
        finally:
            store.close()
    except StoreError as error:
        if isinstance(error, Refused) and not note.published:
            raise engines.explain(error, note.kind) from None
        note.told(error)
        call.log(
            f"{note.kind}: {error}: going on with the {len(note.peers)} peers that are known; the "
            "next ADD, or the server, asks again"
        )


def agree(
    overlay: Overlay,
    store: Store,
    network: str,
    note: Note,
    uid: str,
    own: dict[str, Any],
    items: dict[str, Item],
) -> None:
    """Publish `own` if `items` do not say so yet, and note the others.

    Raises StoreError.
    """
    if own:
        value = {"node": note.node, "uid": uid, **own}
        present = items.get(note.node)
        if present is None or present.value != value:
            endpoints.publish(store, network, value, present)
        note.published = own
    accept(overlay, network, note, items)
    note.problem, note.remedy, note.since = "", "", 0.0


def accept(overlay: Overlay, network: str, note: Note, items: Mapping[str, Item]) -> None:
    """Note what other nodes say, and whose changes the kernel does not know yet."""
    before = dict(note.peers)
    overlay.accept(
        network, note, {node: item.value for node, item in items.items() if node != note.node}
    )
    changed = {node for node, peer in note.peers.items() if before.get(node) != peer}
    note.fresh = sorted(changed.union(note.fresh).intersection(note.peers))


def reached_at(host: Netlink, dev: str, given: bytes) -> tuple[list[str], int]:
    """The addresses by which others reach this node: one of each family, or the one that is `given`
    in the configuration; and the index of their link, 0 if that is not known.

    They are addresses of the link `dev`; without it, of the default route's.
    """
    if given:
        every = address.show(host)
        index = next((each.index for each in every if each.prefix.ip == given), 0)
        return [format_ip(given)], index
    links = route.default_links(host)
    if dev:
        under = link.find(host, dev)
        links = [under.index] if under is not None else []
    found: dict[bool, str] = {}
    for index in links:
        for each in address.show(host, index):
            usable = each.usable and each.scope == address.SCOPE_UNIVERSE
            if usable and not each.flags & _PASSING:
                found.setdefault(not each.prefix.is_v4, format_ip(each.prefix.ip))
    return [found[v6] for v6 in sorted(found)], links[0] if links else 0


# --- the other verbs ------------------------------------------------------------------------------


def look(
    call: Call[Any], host: Netlink, overlay: Overlay, place: Place, later: tuple[str, ...] = ()
) -> tuple[Note | None, list[str]]:
    """For CHECK: the note, and a sentence for each problem; asks no store.

    The keys `later` of what is published may differ until the next ADD.
    """
    note = place.note(call.network)
    if note is None or note.kind != overlay.kind:
        return None, [
            f"this node knows no peers of {call.network}: an ADD of any container asks the store"
        ]
    own, published = (
        {key: each[key] for key in each if key not in later}
        for each in (
            overlay.own(host, place, note, overlay.find(host, call.network)),
            note.published,
        )
    )
    if own == published:
        return note, []
    return note, [
        f"this node is {_shown(own)}, and in the store {_shown(published)}: an ADD of any "
        "container, or the server, publishes it"
    ]


def _shown(value: Mapping[str, Any]) -> str:
    parts = [
        f"{key} {', '.join(map(str, each)) if isinstance(each, list) else each}"
        for key, each in value.items()
    ]
    return "; ".join(parts) or "not known"


def require_store(call: Call[Any]) -> None:
    """For STATUS: can changes of nodes be seen? Raises NotAvailable, LimitedConnectivity, CNIError.

    Asks the store, unless a process follows it.
    """
    its = store_settings(call)
    place = Place(its.data_dir)
    note = place.note(call.network)
    problem = remedy = ""
    if note is not None and place.is_watched():
        problem, remedy = note.problem, note.remedy
    else:
        try:
            store = connect(its.store, call.plugin)
            try:
                with interrupts.waiting():
                    store.list(f"{endpoints.PREFIX}{call.network}/")
            finally:
                store.close()
        except StoreError as error:
            problem, remedy = str(error), error.remedy
    if not problem:
        return
    if note is None or not note.published:
        raise NotAvailable(f"{call.plugin}: {problem}", remedy)
    raise LimitedConnectivity(
        f"{call.plugin}: {problem}",
        f"containers reach those of the {len(note.peers)} nodes that are known; changes of nodes "
        f"are not seen. {remedy}".strip(),
    )


# --- settings -------------------------------------------------------------------------------------


def store_settings(call: Call[Any]) -> settings.Settings:
    """Store, node and directory: of the network (`store`), of its IPAM plugin `cluster`, or of the
    node. Raises CNIError.
    """
    given: dict[str, Any] = {}
    ipam = config.lookup(call.raw, "ipam")
    if isinstance(ipam, dict) and config.lookup(ipam, "type") in _OF_CLUSTER:
        given.update({key: config.lookup(ipam, key) for key in ("store", "dataDir", "nodeName")})
    if call.conf.store is not None:
        given["store"] = call.conf.store
    return settings.read(given, call.request.env)


def connect(options: dict[str, Any] | None, plugin: str) -> Store:
    """The store of the nodes; `plugin` is for the message. Raises StoreError, CNIError."""
    if not options:
        raise CNIError(
            f"{plugin}: no `store` is configured",
            'peersFrom needs one, as `store` of the network or in /etc/cni/cluster.json: {"store": '
            '{"type": "etcd", "endpoints": ["https://…"]}}, or of type kubernetes, or directory',
        )
    return engines.connect(options)


def identity(data_dir: str, name: str) -> str:
    """This node's uid, which it gives itself once. Raises CNIError."""
    if os.path.exists(os.path.join(data_dir, node_files.SIDECARS, "node")):
        return node_files.identity(data_dir, name).uid
    with node_files.claiming(data_dir):
        return node_files.identity(data_dir, name).uid
