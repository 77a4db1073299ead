"""vxlan: peers out of the store of the cluster's nodes (docs/spec/vxlan.md, "Peers from a store").

    <dataDir>/.cni/endpoints/<network>    what this node knows of the network's nodes (`Note`)
    <dataDir>/.cni/endpoints.lock         held from a look at the store until the entries are made
    <dataDir>/.cni/endpoints.watched      held by the server's process that follows the store

An ADD publishes this node's addresses, and takes those of others, when it makes the VXLAN link, and
whenever no server does it (vxlan_watch.py). When the store cannot be asked, it goes on with the
peers of the note.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from ... import files, interrupts
from ...call import Call
from ...kernel import address, link, route, uapi
from ...kernel.netlink import Netlink
from ...protocol import config
from ...protocol.address import format_ip, parse_ip
from ...protocol.errors import CNIError, LimitedConnectivity, NotAvailable
from ...store import endpoints, engines, node_files, settings
from ...store.endpoints import Endpoint
from ...store.interface import Item, Refused, Store, StoreError
from ...store.node_files import boot_time
from . import vxlan_link
from .vxlan_settings import Conf
from .vxlan_settings import Settings as Want

_LOCK_PATIENCE = 60.0  # seconds: who has the lock may be waiting for a store
PATIENCE = 30.0  # seconds in which a store that gave no answer is not asked again by ADDs
_OF_CLUSTER = ("cluster", "whereabouts")  # IPAM plugins that name a store, too
# of IPv4 the first one means: a secondary address
_PASSING = uapi.IFA_F_TEMPORARY | uapi.IFA_F_DEPRECATED


class Note(msgspec.Struct, omit_defaults=True):
    """A network of this node, and what is known of its other nodes.

    `store` is the object of the configuration, `published` what the store has of this node; `peers`
    are the others' addresses, by node. `problem` is why the store could not be asked last, at
    `since`, a time of the boot's clock.
    """

    node: str
    vni: int
    port: int
    dev: str = ""
    local: str = ""
    v6: bool = False
    store: dict[str, Any] = {}
    published: list[str] = []
    peers: dict[str, list[str]] = {}
    problem: str = ""
    remedy: str = ""
    since: float = 0.0

    def is_same(self, other: Note) -> bool:
        """Do both stand for the same configuration?"""
        ours = (self.node, self.vni, self.port, self.dev, self.local, self.store)
        return ours == (other.node, other.vni, other.port, other.dev, other.local, other.store)

    def addresses(self) -> list[bytes]:
        """Those of all nodes, this one first, of the link's family."""
        texts = [*self.published, *(each for every in self.peers.values() for each in every)]
        packed = [parse_ip(text) for text in texts]
        return [each for each in dict.fromkeys(packed) if (len(each) == 16) == self.v6]

    def told(self, error: StoreError) -> Note:
        """This note, after the store's `error` was noted in it."""
        self.problem, self.remedy, self.since = str(error), error.remedy, boot_time()
        return self


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

    def remove(self, network: str) -> None:
        """Remove a note, which may be gone."""
        try:
            os.unlink(f"{self._path}/{network}")
        except OSError:
            pass

    def locked(self) -> Any:
        """A lock for a `with` statement: its holder alone asks the store, and changes entries."""
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
def current(call: Call[Conf], host: Netlink, want: Want) -> Iterator[None]:
    """Give `want` the peers as they are now, and keep others from changing entries meanwhile.

    With nothing to do, since a server follows the store, `want` stays without. Raises CNIError.
    """
    its = store_settings(call.raw, call.conf, call.request.env)
    place = Place(its.data_dir)
    made = vxlan_link.find(host, want.network)
    wanted = _new_note(its, want)
    before = place.note(want.network)
    is_known = before is not None and before.is_same(wanted)
    # the usual case with a server: no lock is taken, and the store is not asked
    if is_known and vxlan_link.is_settled(made, want) and place.is_watched():
        yield
        return
    with place.locked():
        before = place.note(want.network)
        note = before if before is not None and before.is_same(wanted) else wanted
        own, want.uplink = own_addresses(host, note)
        if not own and not note.published:
            raise CNIError(
                "vxlan: this node has no address to publish for the others",
                "give its address as `local`, or its link to the other nodes as `dev`; without "
                "both it is that of the default route's link",
            )
        if made is None:
            note.v6 = want.v6 if want.local else not any(len(parse_ip(each)) == 4 for each in own)
        _ask(call, place, its, want.network, note, own)
        place.write(want.network, note)
        want.peers, want.v6, want.are_peers_new = note.addresses(), note.v6, True
        yield


def _new_note(its: settings.Settings, want: Want) -> Note:
    conf = want.conf
    store = its.store or {}
    return Note(its.node, conf.vni, conf.port, conf.dev, conf.local, want.v6, dict(store))


def _ask(
    call: Call[Conf],
    place: Place,
    its: settings.Settings,
    network: str,
    note: Note,
    own: list[str],
) -> None:
    """Publish, and note the others, if the store can be asked. Raises CNIError."""
    # the store gave no answer just now: this ADD need not wait for it as well
    if note.problem and 0 <= boot_time() - note.since < PATIENCE and note.published == own:
        return
    try:
        store = connect(its.store)
        try:
            with interrupts.waiting():
                uid = identity(place.data_dir, note.node)
                items = endpoints.of_network(
                    store.list(f"{endpoints.PREFIX}{network}/").items, network
                )
                agree(store, network, note, uid, own, items)
        finally:
            store.close()
    except StoreError as error:
        if isinstance(error, Refused) and not note.published:
            raise engines.explain(error, "vxlan") from None
        note.told(error)
        call.log(
            f"vxlan: {error}: going on with the {len(note.peers)} peers that are known; the next "
            "ADD, or the server, asks again"
        )


def agree(
    store: Store, network: str, note: Note, uid: str, own: list[str], items: dict[str, Item]
) -> None:
    """Publish `own` if `items` do not say so yet, and note the others' addresses.

    Raises StoreError.
    """
    if own:
        endpoint = Endpoint(note.node, uid, note.vni, note.port, tuple(own))
        present = items.get(note.node)
        if present is None or present.value != endpoint.value:
            endpoints.publish(store, network, endpoint, present)
        note.published = own
    note.peers = {
        node: addresses
        for node, item in items.items()
        if node != note.node
        and (addresses := endpoints.addresses_of(item.value, node, note.vni, note.port))
    }
    note.problem, note.remedy, note.since = "", "", 0.0


def own_addresses(host: Netlink, note: Note) -> tuple[list[str], int]:
    """The addresses by which others reach this node: one of each family, or `local` alone; and the
    index of their link, 0 if that is not known.
    """
    links = route.default_links(host)
    if note.dev:
        dev = link.find(host, note.dev)
        links = [dev.index] if dev is not None else []
    if note.local:
        packed = parse_ip(note.local)
        every = address.show(host)
        return [note.local], next((each.index for each in every if each.prefix.ip == packed), 0)
    found: dict[bool, str] = {}
    for index in links:
        for each in address.show(host, index):
            usable = each.usable and each.scope == address.SCOPE_UNIVERSE
            if usable and not each.flags & _PASSING:
                found.setdefault(not each.prefix.is_v4, format_ip(each.prefix.ip))
    return [found[v6] for v6 in sorted(found)], links[0] if links else 0


# --- the other verbs ------------------------------------------------------------------------------


def look(call: Call[Conf], host: Netlink, want: Want) -> list[str]:
    """For CHECK: give `want` the peers of the note; asks no store. A sentence for each problem."""
    its = store_settings(call.raw, call.conf, call.request.env)
    place = Place(its.data_dir)
    note = place.note(want.network)
    if note is None:
        return [
            f"this node knows no peers of {want.network}: an ADD of any container asks the store"
        ]
    own, want.uplink = own_addresses(host, note)
    want.peers, want.v6 = note.addresses(), note.v6
    if own != note.published:
        now, there = ", ".join(own) or "without an address", ", ".join(note.published)
        return [
            f"this node is {now}, and {there or 'not'} in the store: an ADD of any container, or "
            "the server, publishes it"
        ]
    return []


def require_store(call: Call[Conf], want: Want) -> None:
    """For STATUS: can changes of nodes be seen? Raises NotAvailable, LimitedConnectivity, CNIError.

    Asks the store, unless a process follows it.
    """
    its = store_settings(call.raw, call.conf, call.request.env)
    place = Place(its.data_dir)
    note = place.note(want.network)
    problem = remedy = ""
    if note is not None and place.is_watched():
        problem, remedy = note.problem, note.remedy
    else:
        try:
            store = connect(its.store)
            try:
                with interrupts.waiting():
                    store.list(f"{endpoints.PREFIX}{want.network}/")
            finally:
                store.close()
        except StoreError as error:
            problem, remedy = str(error), error.remedy
    if not problem:
        return
    if note is None or not note.published:
        raise NotAvailable(f"vxlan: {problem}", remedy)
    raise LimitedConnectivity(
        f"vxlan: {problem}",
        f"containers reach those of the {len(note.peers)} nodes that are known; changes of nodes "
        f"are not seen. {remedy}".strip(),
    )


# --- settings -------------------------------------------------------------------------------------


def store_settings(raw: Mapping[str, Any], conf: Conf, env: Mapping[str, str]) -> settings.Settings:
    """Store, node and directory: of the network, of its IPAM plugin `cluster`, or of the node."""
    given: dict[str, Any] = {}
    ipam = config.lookup(dict(raw), "ipam")
    if isinstance(ipam, dict) and config.lookup(ipam, "type") in _OF_CLUSTER:
        given.update({key: config.lookup(ipam, key) for key in ("store", "dataDir", "nodeName")})
    if conf.store is not None:
        given["store"] = conf.store
    return settings.read(given, env)


def connect(options: dict[str, Any] | None) -> Store:
    """The store of the nodes. Raises StoreError, CNIError."""
    if not options:
        raise CNIError(
            "vxlan: no `store` is configured",
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
