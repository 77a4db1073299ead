"""State files that are damaged, foreign, or writable by others, and what to do about them.

All readers of state skip such files, so that none of them can stop a DEL. That is right for
plugins, but hides the fault from people. Each directory of state has a judge here:

    results      libcni's cache            devices      notes of devices in containers
    intent       what ADDs asked for       tuning       values from before an ADD
    networks     reservations              flannel      configurations of delegates
    dhcp-leases  leases of the daemon
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from cni import files, intent
from cni.cli.cache import KIND
from cni.ipam.host_local import reservation
from cni.plugins.shared.device_notes import Note
from cni.plugins.tuning.backup import Backup
from cni.plugins.tuning.shared import Uses
from cni.protocol.errors import CNIError

from .. import gojson
from ..conflist import NetworkList
from . import state_dirs
from .attached import Places
from .attachments import reservation_directories

# bytes of a file
_MAX_SIZE = 32 << 20
_FRESH, _SETTLED = 60.0, 2.0  # seconds: of a file that is being made; of one that is being written
_KEY = r"[0-9a-f]{16}-[0-9a-f]{16}"
_REMOVE_RESULT = "its container cannot be checked, and a runtime may fail to delete it"


class Damaged(NamedTuple):
    """A damaged file or directory of state: its fault (`what`), and a remedy, a command (`mend`).

    `harms`: it affects containers (an address that cannot be used, a DEL that fails).
    """

    path: str
    what: str
    mend: str
    harms: bool = False

    @property
    def text(self) -> str:
        return f"{self.path}: {self.what}"

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"path": self.path, "what": self.what, "mend": self.mend, "harms": self.harms}


class _Wrong(Exception):
    """The fault of a file's content."""

    def __init__(self, what: str, *, harms: bool = False) -> None:
        super().__init__(what)
        self.harms = harms


Judge = Callable[[str, str], None]  # path, name; raises _Wrong, OSError


def of_attachments(places: Places) -> Iterator[Damaged]:
    """In the sources of `cni ps`, without the reservations."""
    yield from _in(places.results.results, _result)
    yield from _in(os.path.join(places.state_dir, "intent"), _intent)
    yield from _in(os.path.join(places.state_dir, "devices"), _device)


def of_addresses(places: Places, network: str | None = None) -> Iterator[Damaged]:
    """In the reservations of host-local (of one network, if given)."""
    for _, directory in reservation_directories(places, network):
        yield from of_directory(directory)


def of_directory(directory: str) -> Iterator[Damaged]:
    """In a network's directory of reservations."""
    return _in(directory, _reservation)


def of_plugins(networks: Iterable[NetworkList], state_dir: str) -> Iterator[Damaged]:
    """In what tuning, flannel and the DHCP daemon keep."""
    judges: dict[str, Judge] = {
        state_dirs.TUNED: _tuned,
        state_dirs.FLANNEL: _delegate,
        state_dirs.DHCP: _lease,
    }
    for kind, path in state_dirs.named(networks, state_dir):
        if kind in judges:
            yield from _in(path, judges[kind])


def everywhere(places: Places, networks: Iterable[NetworkList]) -> Iterator[Damaged]:
    """In every directory of state."""
    yield from of_attachments(places)
    yield from of_addresses(places)
    yield from of_plugins(networks, places.state_dir)


def _in(directory: str, judge: Judge) -> Iterator[Damaged]:
    """The faults of a directory and its files; unreadable files are faults, too."""
    try:
        status = os.stat(directory)
        names = sorted(os.listdir(directory), key=os.fsencode)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        yield Damaged(directory, "no directory, so nothing is kept there", _look(directory), True)
        return
    except PermissionError:
        return  # who reads state says that
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        yield Damaged(directory, f"cannot be read: {reason}", _look(directory), True)
        return
    yield from _open_to_others(directory, status)
    # What a link leads to may be somebody else's: no advice to remove anything there.
    is_elsewhere = os.path.islink(directory)
    for name in names:
        yield from _judged(os.path.join(directory, name), name, judge, is_elsewhere)


def _judged(path: str, name: str, judge: Judge, is_elsewhere: bool) -> Iterator[Damaged]:
    with suppress(FileNotFoundError):  # just removed
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            yield from _open_to_others(path, status)
        try:
            _settled(path, name, judge)
        except _Wrong as wrong:
            is_kept = is_elsewhere or stat.S_ISDIR(status.st_mode)
            mend = _look(path) if is_kept else f"rm {shlex.quote(path)}"
            yield Damaged(path, str(wrong), mend, wrong.harms)
        except PermissionError:
            return
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            yield Damaged(path, f"cannot be read: {reason}", _look(path), True)


def _settled(path: str, name: str, judge: Judge) -> None:
    """Judge a file; twice, if somebody may be writing it at the moment (the reference writes in
    place). Raises _Wrong, OSError.
    """
    try:
        judge(path, name)
    except _Wrong:
        if _age(path) > _SETTLED:
            raise
        # Whoever writes a few kB is done by then; a file that is still torn stays so.
        time.sleep(0.1)
        judge(path, name)


def _open_to_others(path: str, status: os.stat_result) -> Iterator[Damaged]:
    quoted = shlex.quote(path)
    # In a sticky directory others cannot remove or rename files of root.
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        yield Damaged(path, "can be written by anybody", f"chmod o-w {quoted}", True)
    elif status.st_mode & stat.S_IWGRP and status.st_gid != os.getegid():
        what = f"can be written by the group {status.st_gid}"
        yield Damaged(path, what, f"chmod g-w {quoted}", True)
    if os.geteuid() == 0 and status.st_uid != 0:
        what = f"belongs to the user {status.st_uid}, who can change it"
        yield Damaged(path, what, f"chown root: {quoted}", True)


def _look(path: str) -> str:
    return f"ls -la {shlex.quote(path)}"


def _age(path: str) -> float:
    """Seconds since a file was changed; much if it is of the future."""
    # A clock that was set back leaves times of the future.
    return abs(time.time() - os.lstat(path).st_mtime)


def _content(path: str, *, harms: bool = False, kind: str = "state file") -> bytes:
    """Raises _Wrong for what is no regular file, OSError."""
    try:
        return files.read(path, _MAX_SIZE)
    except files.Unusable as error:
        text = (error.strerror or "").lower().replace("is a directory", "a directory, no file")
        raise _Wrong(f"no {kind}: {text.removeprefix('is ')}", harms=harms) from None


def _left_over(path: str, what: str) -> None:
    """Of what a killed process was writing. Raises _Wrong."""
    if _age(path) > _FRESH:
        raise _Wrong(f"{what}, left by a process that was killed")


def _decoded(path: str, what: str, kind: type[Any], *, lost: str) -> None:
    data = _content(path)
    try:
        msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _Wrong(f"no {what} can be read from it ({_shape(data)}): {lost}") from None


def _shape(data: bytes) -> str:
    """Why a text is not a JSON file of ours."""
    if not data:
        return "empty"
    try:
        value = gojson.decode(data)
    except CNIError:
        return "torn" if data[:1] in b"{[" else "no JSON"
    return "other JSON" if isinstance(value, dict) else f"{gojson.json_type(value)}, no object"


# --- the judges ---


def _result(path: str, name: str) -> None:
    if name.startswith("."):
        return _left_over(path, "half a result") if name.endswith(".tmp") else None
    # libcni follows links there
    data = (
        files.read(path, _MAX_SIZE, follow=True)
        if os.path.islink(path)
        else _content(path, harms=True, kind="result")
    )
    try:
        record = gojson.decode_object(data)
    except CNIError:
        raise _Wrong(f"no result ({_shape(data)}): {_REMOVE_RESULT}", harms=True) from None
    lower = {key.lower(): value for key, value in record.items()}
    if lower.get("kind") != KIND:
        if not lower.keys() & {"cniversion", "ips", "ip4", "ip6", "interfaces"}:
            raise _Wrong("no result: not of libcni")
        return None  # of libcni before 0.8: the result itself
    for key in ("containerId", "networkName", "ifName"):
        if not isinstance(lower.get(key.lower()), str) or not lower[key.lower()]:
            raise _Wrong(f"a result without {key}: {_REMOVE_RESULT}", harms=True)
    return None


def _intent(path: str, name: str) -> None:
    if name.endswith("~"):
        return _left_over(path, "half a note for `cni reload`")
    if not re.fullmatch(rf"{_KEY}\.[\w-]+?-?", name):
        raise _Wrong("not a note of this project: it is not used")
    data = _content(path, kind="note")
    if intent.parse(data) is None:
        lost = "`cni reload` does not make the rules of its container again"
        raise _Wrong(f"no note can be read from it ({_shape(data)}): {lost}")
    return None


def _device(path: str, name: str) -> None:
    if name.endswith("~"):
        return _left_over(path, "half a note of a device")
    if not re.fullmatch(rf"{_KEY}\.[\w-]+", name):
        raise _Wrong("not a note of this project: it is not used")
    lost = "DEL has to find the device by its name in the container"
    return _decoded(path, "note of a device", Note, lost=lost)


def _tuned(path: str, name: str) -> None:
    if name.startswith("."):
        if re.fullmatch(rf"\.{_KEY}", name):
            _left_over(path, "half a backup")
        return None
    lost = "DEL cannot put back what tuning has changed"
    if name.startswith(":"):
        return _decoded(path, "shared sysctls", Uses, lost=lost)
    if not name.endswith(".json"):
        raise _Wrong("not a backup of tuning: it is not used")
    return _decoded(path, "backup", Backup, lost=lost)


def _delegate(path: str, name: str) -> None:
    if name.startswith(":"):
        return _left_over(path, "half a note")
    if os.path.islink(path):
        target = os.readlink(path)
        if "/" in target:
            raise _Wrong("a link out of the directory: flannel makes none")
        if not os.path.lexists(os.path.join(os.path.dirname(path), target)):
            raise _Wrong("a link to a note that is not there")
        return None
    data = _content(path, kind="note")
    try:
        gojson.decode_object(data)
    except CNIError:
        lost = "DEL of its container fails until the file is removed"
        raise _Wrong(f"no configuration ({_shape(data)}): {lost}", harms=True) from None
    return None


def _lease(path: str, name: str) -> None:
    if name == "lock":
        return None
    if name.endswith(".new"):
        return _left_over(path, "half a lease")
    if not name.endswith(".json"):
        raise _Wrong("not a lease: the daemon removes it when it starts")
    # Only on a node with leases.
    from cni.ipam.dhcp.state import Record

    lost = "the daemon does not renew this lease after a restart"
    return _decoded(path, "lease", Record, lost=lost)


def _reservation(path: str, name: str) -> None:
    if name == reservation.IN_MAKING:
        return _left_over(path, "half a reservation")
    if not reservation.may_be_reservation(name):
        return None
    if not reservation.is_address(reservation.name_of_file(name)):
        raise _Wrong("not a reservation: it is not used")
    content = reservation.content(None, path)
    if content == reservation.UNREADABLE:
        what = "no small regular file: the address cannot be used"
        raise _Wrong(what, harms=True)
    if not content and content is not None:
        _left_over(path, "an empty reservation, which counts as free")
    elif content is not None and not _is_holder(content):
        raise _Wrong("no holder can be read from it: the address cannot be used", harms=True)
    return None


def _is_holder(content: bytes) -> bool:
    """A container id, and on the next line perhaps an interface (of one word each)."""
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    words = [line.strip() for line in lines]
    return len(words) <= 2 and all(
        word and word.isprintable() and " " not in word for word in words
    )
