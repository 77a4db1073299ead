"""Notes on the host about the devices that ADD has put into containers.

    <state>/devices/<owner's key>.<plugin>    JSON, see `Note`

A container may rename its devices, and change their aliases, alternative names and MACs. It cannot
change a file on the host. So DEL finds the device by its noted index in the namespace of its ADD,
and no property that the container can set decides what is deleted or moved.

<state> is `/run/cni`, which a reboot empties, as it resets devices; or CNI_STATE_DIR.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from errno import EACCES, EPERM, EROFS
from typing import Any

import msgspec

from ... import files
from ...call import Call
from ...netns import Namespace, identify
from ...netns.namespace import Identity
from ...owner import network_key
from ...protocol.errors import CNIError
from ...protocol.request import Attachment

STATE_DIR = "/run/cni"

_MAX_SIZE = 1 << 16
_NO_PLACE = frozenset({EACCES, EPERM, EROFS})  # errors of a node without a place for state


class Note(msgspec.Struct, omit_defaults=True):
    """A device in the namespace `netns` (an Identity's text), where it has this index and kind.

    `cookie` is that namespace's cookie, unique in this boot; 0 before Linux 5.14. The other fields
    are the device's settings on the host, noted by host-device or bond; docs/spec/host-device.md,
    "Note". sriov also notes the PCI address of its `function`, and the settings that the card had
    for it `before` (kernel/vf.py); of a function without a link it notes only these. macvlan notes
    the `routes` through its hostShim, by their addresses; None: it is not known which there are.
    """

    netns: str
    index: int
    kind: str
    cookie: int = 0
    name: str = ""
    alias: str = ""
    mac: str = ""
    mtu: int = 0
    promisc: bool = False
    allmulti: bool = False
    altnames: list[str] = []
    permanent_mac: str = ""
    parent: str = ""
    peer: int = 0
    peer_nsid: int | None = None
    moved: bool = False  # the device is known to be in `netns`
    returned: bool = False  # DEL has moved it back, and left a link that looks like it
    links: list[Note] = []  # for a bond: the devices that were moved to be its ports
    function: str = ""
    before: dict[str, Any] = {}
    routes: list[str] | None = None

    def is_of(self, path: str) -> bool:
        """Does `path` name the namespace of this note, as far as is known?"""
        noted, now = Identity.parse(self.netns), identify(path)
        return noted is None or now is None or not noted.differs(now)


def namespace_of(call: Call[Any], note: Note, netns: Namespace | None) -> Namespace | None:
    """The namespace in which ADD has put the device of the note; None if it has ended.

    `netns` is the namespace at CNI_NETNS, if any. That path may be gone, or name another namespace,
    while a process or another mount still holds the noted one. Without the cookie (before Linux
    5.14) a later namespace with the same inode cannot be told apart: then the noted one counts as
    ended. Raises NetnsUnknown, OSError if this process could not look.
    """
    if netns is not None and note.is_of(call.netns):
        return netns
    noted = Identity.parse(note.netns)
    if noted is None or not note.cookie:
        return None
    from ...netns import liveness

    namespace = liveness.reopen(noted, note.cookie)
    return None if namespace is None else call.close_later(namespace)


def is_namespace_gone(note: Note) -> bool:
    """Has the namespace of the note ceased to exist, or does only a descriptor hold it?"""
    from ...netns import liveness

    return liveness.is_gone(Identity.parse(note.netns), "")


def identity_of(path: str) -> str:
    """The text for Note.netns; empty if the namespace cannot be identified."""
    identity = identify(path)
    return "" if identity is None else str(identity)


def save(call: Call[Any], note: Note) -> None:
    """Write the note of this attachment; removed again if the ADD fails. Raises as write()."""
    call.undo.callback(remove, call)
    write(call, note)


def write(call: Call[Any], note: Note) -> None:
    """Write the note of this attachment in place of an older one.

    On a node without a place for state nothing is written, which is logged. Raises CNIError.
    """
    write_at(call, _path(call), note)


def write_at(call: Call[Any], path: str, note: Note) -> None:
    """As write(), for the note at `path`, which may be another attachment's."""
    data = msgspec.json.encode(note)
    try:
        try:
            files.replace(path, data)
        # the directory is missing once a boot only, so it is not looked for first
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            files.replace(path, data)
    except OSError as error:
        text = f"cannot write {path}: {(error.strerror or str(error)).lower()}"
        if error.errno not in _NO_PLACE:
            raise CNIError(text, "make room there, then try again") from None
        call.log(f"{call.plugin}: {text}: DEL has to believe the container's names")


def load(call: Call[Any]) -> Note | None:
    """The note of this attachment; None if there is none. Raises CNIError."""
    return _read(call, _path(call))


def remove(call: Call[Any]) -> None:
    """Remove the note of this attachment; success if there is none. Raises CNIError."""
    _unlink(_path(call))
    remove_unfinished(call)


def remove_unfinished(call: Call[Any]) -> None:
    """Remove what a killed files.replace has left of a note of this attachment. Raises CNIError."""
    _unlink(f"{_path(call)}~")


def collect(call: Call[Any], keep: frozenset[Attachment]) -> Iterator[Note]:
    """Remove the notes of this plugin's and network's attachments not in `keep`, and yield them.

    A note that cannot be read or removed becomes a problem of the call; the others are yielded.
    """
    directory = _directory(call)
    kept = {f"{owner.key}.{call.plugin}" for owner in call.owners(keep)}
    prefix, suffix = f"{network_key(call.network)}-", f".{call.plugin}"
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in sorted(names):
        if name.startswith(prefix) and name.removesuffix("~").endswith(suffix):
            path = f"{directory}/{name}"
            if name in kept:
                continue
            try:
                note = None if name.endswith("~") else _read(call, path)
                if note is not None:
                    # removed only when the caller has dealt with it: after a
                    # kill the next GC reads it again
                    yield note
                _unlink(path)
            except CNIError as error:
                call.note_problem(error)


def of_others(call: Call[Any]) -> Iterator[tuple[str, Note]]:
    """The notes of this plugin's other attachments on the node, of all networks: (path, note).

    Raises CNIError if one cannot be read.
    """
    directory, own = _directory(call), _path(call)
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in sorted(names):
        path = f"{directory}/{name}"
        if name.endswith(f".{call.plugin}") and path != own:
            note = _read(call, path)
            if note is not None:
                yield path, note


def _directory(call: Call[Any]) -> str:
    return f"{call.request.env.get('CNI_STATE_DIR') or STATE_DIR}/devices"


def _path(call: Call[Any]) -> str:
    return f"{_directory(call)}/{call.owner.key}.{call.plugin}"


def _read(call: Call[Any], path: str) -> Note | None:
    """The note at `path`; None if there is none, or something else, which is logged.

    Raises CNIError.
    """
    try:
        return msgspec.json.decode(files.read(path, _MAX_SIZE), type=Note)
    except FileNotFoundError:
        return None
    except files.Unusable as error:
        reason = str(error.strerror).lower()
    except OSError as error:
        raise CNIError(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}",
            "it says which device belongs to this attachment: try again",
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        reason = "has no note in it"  # files.replace never leaves a torn file
    # No error: a DEL would fail until somebody removed the file.
    call.log(f"{call.plugin}: ignoring {path}, which is not ours: {reason}")
    return None


def _unlink(path: str) -> None:
    try:
        with suppress(FileNotFoundError, IsADirectoryError):  # a directory is not a note
            os.unlink(path)
    except OSError as error:
        raise CNIError(f"cannot remove {path}: {(error.strerror or '').lower()}") from None
