"""The attachments of this node, joined from all sources.

    result cache   what libcni kept: network, container, interface, CNI_ARGS, capabilities, result
    intent         what an ADD of ours asked of the packet filter (cni.intent)
    reservation    an address of host-local
    link           a link of the node whose alias names its owner (cni.owner)
    device note    a device that an ADD put into the container (plugins.shared.device_notes)

One Attached for each network, container and interface; `found` says which of these named it. The
namespace is the one whose identity an ADD noted, else what the path names now.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from cni import files, intent
from cni.intent import Intent
from cni.ipam.host_local import plugin as host_local
from cni.ipam.host_local import reservation
from cni.ipam.host_local.directory import scan
from cni.netns.namespace import Identity, Namespace
from cni.owner import Owner
from cni.plugins.shared.device_notes import Note
from cni.protocol import config
from cni.protocol.errors import CNIError

from .. import cache, conflist, errors
from .attached import Attached, Found, Places, Reserved
from .namespaces import opened

if TYPE_CHECKING:
    from cni.kernel.link import Link

_MAX_NOTE = 1 << 16  # bytes


def gather(
    places: Places, network: str | None = None, *, reservations: bool = True
) -> list[Attached]:
    """The attachments (of one network, if given), sorted by network, container and interface.

    Without `reservations` those are not read. Raises NotPermitted, CommandError if a source exists
    and cannot be read.
    """
    known = _Known(network)
    # In this order: the cache has most facts, and later sources fill in what is missing.
    for kept in places.results.kept():
        _add_cached(known, kept)
    for each in _intents(places.state_dir):
        _add_intent(known, *each)
    for name, directory in reservation_directories(places, network) if reservations else ():
        _add_reservations(known, name, directory)
    _add_links(known)
    for path, note in _notes(places.state_dir):
        _add_note(known, path, note)
    return sorted(known.attachments(), key=lambda each: each.name)


class _Known:
    """Attachments by owner, of the wanted network."""

    def __init__(self, network: str | None) -> None:
        self._network = network
        self._by_key: dict[tuple[str, str, str], Attached] = {}

    def get(self, network: str, container_id: str, ifname: str, found: Found) -> Attached | None:
        """The attachment, made if it is new; None for one of another network."""
        if self._network not in (None, network) or not container_id:
            return None
        key = (network, container_id, ifname)
        if key not in self._by_key:
            self._by_key[key] = Attached(*key)
        self._by_key[key].found.append(found)
        return self._by_key[key]

    def of_container(self, network: str, container_id: str) -> list[Attached]:
        """All that is known of a container in a network."""
        wanted = (network, container_id)
        return [each for key, each in self._by_key.items() if key[:2] == wanted]

    def of_key(self, key: str) -> Attached | None:
        """The attachment whose owner has that key."""
        return next((each for each in self._by_key.values() if each.owner.key == key), None)

    def attachments(self) -> Iterable[Attached]:
        return self._by_key.values()


def _add_cached(known: _Known, kept: cache.Kept) -> None:
    what = kept.attachment
    found = known.get(
        what.network, what.container_id, what.ifname, Found("result cache", kept.path)
    )
    if found is not None:
        found.netns, found.args = what.netns, what.args
        given = what.capability_args
        found.capability_args = given if isinstance(given, dict) else None
        found.since, found.config = kept.since, kept.config
        found.result = kept.result


def _intents(state_dir: str) -> Iterator[tuple[str, Intent, float]]:
    """Path, intent and time of each. Raises NotPermitted, CommandError."""
    env = {"CNI_STATE_DIR": state_dir}
    try:
        kept = intent.everything(env)
    except OSError as error:
        path = str(error.filename or intent.directory(env))
        raise errors.unreadable(path, error) from None
    for path, each in kept:
        yield path, each, file_time(path)


def _add_intent(known: _Known, path: str, kept: Intent, since: float) -> None:
    owner = kept.owner
    found = known.get(*owner, Found("intent", path))
    if found is None:
        return
    found.intents.append(kept)
    found.netns = found.netns or kept.env.get("CNI_NETNS", "")
    found.identity = Identity.parse(kept.netns) or found.identity
    found.since = found.since or since
    # The cache has them as pairs; a runtime without one passed them to the plugin only.
    if not found.args:
        pairs = (pair.partition("=") for pair in kept.env.get("CNI_ARGS", "").split(";"))
        found.args = tuple((key, value) for key, _, value in pairs if key)
    given = config.lookup(kept.config, "runtimeConfig")
    if isinstance(given, dict) and found.capability_args is None:
        found.capability_args = given
    found.result = found.result or kept.result


def reservation_directories(places: Places, network: str | None) -> list[tuple[str, str]]:
    """Network and directory, of all reservations of host-local: of configured networks, and those
    in the usual place.
    """
    found: dict[str, str] = {}
    for network_list in conflist.all_of(places.net_d):
        for data_dir in data_dirs(network_list):
            found[os.path.join(data_dir, network_list.name)] = network_list.name
    try:
        for name in os.listdir(host_local.DATA_DIR):
            found.setdefault(os.path.join(host_local.DATA_DIR, name), name)
    except OSError:
        pass  # none is there, or what is configured is all that can be known
    return sorted(
        (name, path)
        for path, name in found.items()
        if network in (None, name) and not name.startswith(".") and os.path.isdir(path)
    )


def data_dirs(network: conflist.NetworkList) -> Iterator[str]:
    """Where host-local keeps the reservations of a network."""
    for plugin in network.plugins:
        ipam = config.lookup(plugin.raw, "ipam")
        if isinstance(ipam, dict) and config.means(str(config.lookup(ipam, "type")), "host-local"):
            yield str(config.lookup(ipam, "dataDir") or host_local.DATA_DIR)


def _add_reservations(known: _Known, network: str, directory: str) -> None:
    """Raises NotPermitted, CommandError."""
    try:
        for name, content in scan(directory):
            if reservation.is_address(name) and content and content != reservation.UNREADABLE:
                _add_reservation(known, network, os.path.join(directory, name), content)
    except CNIError as error:
        if not os.access(directory, os.R_OK | os.X_OK):
            raise errors.NotPermitted(error.msg, "run it as root") from None
        raise


def _add_reservation(known: _Known, network: str, file: str, content: bytes) -> None:
    text = content.decode("utf-8", "surrogateescape")
    container_id, _, ifname = text.partition("\r\n")
    note = Found("reservation", file)
    holders = [] if ifname else known.of_container(network, container_id)
    if len(holders) == 1:  # of old versions, which did not write the interface
        found: Attached | None = holders[0]
        holders[0].found.append(note)
    else:
        found = known.get(network, container_id, ifname or "eth0", note)
    if found is None:
        return
    found.since = found.since or file_time(file)
    found.reserved.append(Reserved(os.path.basename(file), file))
    if found.identity is None:
        found.identity = reservation.namespace_of(None, file)
    if not found.intents:  # those are of this boot
        found.earlier_boot |= reservation.boot_of(file) not in (None, reservation.this_boot())


def _add_links(known: _Known) -> None:
    """Add the node's links by their aliases; if an alias is cut, its hashes are compared."""
    from cni.kernel import link

    with Namespace.current() as node:
        # One dump for all attachments, however many.
        every = link.list_all(node.netlink())
    _add_pairs(known, every)
    marked = [each for each in every if each.alias.startswith("cni:")]
    by_key = {each.owner.alias_key: each for each in known.attachments()}
    for each in marked:
        key, _, rest = each.alias.partition(" ")
        found = by_key.get(key)
        note = Found("link", each.name)
        if found is not None:
            found.found.append(note)
            _add_link(found, each)
            continue
        # A network's name has no slash, nor has an interface's or a container's.
        parts = rest.split("/")
        if len(parts) == 3 and Owner(*parts).alias_key == key:
            found = known.get(parts[0], parts[1], parts[2], note)
            if found is not None:
                _add_link(found, each)


def _add_link(found: Attached, each: Link) -> None:
    found.links.append(each.name)
    _add_peer(found, each)


def _add_peer(found: Attached, each: Link) -> None:
    """Note the namespace of the other end of a pair."""
    if each.peer_nsid is not None and each.peer_nsid >= 0:
        found.nsids.append(each.peer_nsid)


def _add_pairs(known: _Known, every: list[Link]) -> None:
    """Add the other ends of the Go plugins' pairs, which have no alias, and no noted namespace.

    Their result names the pair's end on the node. While that exists, the container's namespace
    exists, even if this process sees nothing at its path, as in another mount namespace.
    """
    # By MAC, too: the name may have been given to another pair since.
    by_name = {(each.name, each.mac): each for each in every}
    for attached in known.attachments():
        if attached.identity is not None:
            continue
        for each in attached.entries("interfaces"):
            pair = by_name.get((str(each.get("name")), str(each.get("mac")).lower()))
            if pair is not None and not each.get("sandbox"):
                _add_peer(attached, pair)


def _notes(state_dir: str) -> Iterator[tuple[str, Note]]:
    """Path and note of each device. Raises NotPermitted, CommandError."""
    directory = os.path.join(state_dir, "devices")
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise errors.unreadable(directory, error) from None
    for name in names:
        path = os.path.join(directory, name)
        try:
            yield path, msgspec.json.decode(files.read(path, _MAX_NOTE), type=Note)
        except PermissionError as error:
            raise errors.unreadable(path, error) from None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            continue  # none of ours, or just removed


def _add_note(known: _Known, path: str, note: Note) -> None:
    """Add a device note. It has only the owner's key; the owner's name is in the device's alias.

    The container may change the alias, but cannot make it match another owner's key.
    """
    key = os.path.basename(path).partition(".")[0]
    identity = Identity.parse(note.netns)
    found = known.of_key(key)
    if found is None:
        owner = _owner_by_device(key, note)
        if owner is None:
            return
        found = known.get(*owner, Found("device note", path))
    else:
        found.found.append(Found("device note", path))
    if found is not None:
        found.identity = found.identity or identity
        found.since = found.since or file_time(path)


def _owner_by_device(key: str, note: Note) -> Owner | None:
    from cni.kernel import link
    from cni.kernel.errors import KernelError

    identity = Identity.parse(note.netns)
    # Not by its path, which the note does not have and which proves nothing.
    namespace = opened(identity, "", note.cookie) if identity else None
    if namespace is None:
        return None
    with namespace:
        try:
            device = link.find(namespace.netlink(), note.index)
        except (KernelError, OSError):
            return None
    head, _, rest = device.alias.partition(" ") if device else ("", "", "")
    parts = rest.split("/")
    if head == f"cni:{key}" and len(parts) == 3 and Owner(*parts).key == key:
        return Owner(*parts)
    return None


def still_there(what: Attached) -> list[Found]:
    """The sources that still have an attachment."""
    return [each for each in what.found if _STILL_THERE[each.kind](what, each.where)]


def _is_still_reserved(what: Attached, file: str) -> bool:
    content = reservation.content(None, file) or b""
    container_id, _, ifname = content.decode("utf-8", "surrogateescape").partition("\r\n")
    # The address may have been given to another container since.
    return container_id == what.container_id and ifname in ("", what.ifname)


def _is_still_linked(what: Attached, name: str) -> bool:
    from cni.kernel import link

    with Namespace.current() as node:
        found = link.find(node.netlink(), name)
    return found is not None and found.alias.startswith(what.owner.alias_key)


_STILL_THERE: dict[str, Callable[[Attached, str], bool]] = {
    "result cache": lambda _, path: os.path.exists(path),
    "intent": lambda _, path: os.path.exists(path),
    "reservation": _is_still_reserved,
    "link": _is_still_linked,
    "device note": lambda _, path: os.path.exists(path),
}


def file_time(path: str) -> float:
    """When a file was last written, in seconds since 1970; 0 if it is gone."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0
