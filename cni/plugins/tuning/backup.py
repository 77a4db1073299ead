"""tuning's backup file: the values from before ADD, kept on disk for DEL
(docs/spec/tuning.md, "Backup file").

    <dataDir>/<container id>_<ifname>.json
      {"mac": …, "promisc": …, "mtu": …, "allmulti": …, "txQLen": …,  the reference's keys
       "sysctl": …, "shared": …, "ethtool": …, "owner": …}            ours, which it ignores

Each implementation restores from the other's file. The file is written before the first change, and
has the values from before *any* change: a second ADD for the same interface (another tuning in the
chain, or a retry after a kill) adds values and overwrites none. A new file is renamed into place,
so ours is never torn. A torn one is the reference's, which was killed before its first change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

from ... import files
from ...netns import Namespace
from ...netns.namespace import cookie
from ...owner import Owner, file_name, network_key
from ...protocol.errors import CNIError

DIRECTORY = "/run/cni/tuning"

_MAX_SIZE = 1 << 20


class Holder(msgspec.Struct):
    """The attachment of a file; `netns` identifies the namespace whose values it holds."""

    network: str
    container_id: str = msgspec.field(name="containerID")
    ifname: str
    netns: str


class Backup(msgspec.Struct, omit_defaults=True):
    """The former values of everything that ADD changed."""

    mac: str = ""
    promisc: bool | None = None
    mtu: int = 0
    allmulti: bool | None = None
    txqlen: int | None = msgspec.field(default=None, name="txQLen")
    sysctl: dict[str, tuple[str, str]] = {}  # name -> value before, value set
    shared: list[str] = []  # sysctls whose values are in shared.py's file
    ethtool: dict[str, bool] = {}
    owner: Holder | None = None

    @property
    def link(self) -> dict[str, Any]:
        """The known attributes of the link as keywords of link.change; the MAC as text."""
        known = {
            "mac": self.mac or None,
            "promisc": self.promisc,
            "mtu": self.mtu or None,
            "allmulti": self.allmulti,
            "txqlen": self.txqlen,
        }
        return {key: value for key, value in known.items() if value is not None}

    def over(self, newer: Backup) -> Backup:
        """This backup, with values of a `newer` one added where it has none."""
        values = dict(self.sysctl)
        # the oldest value is put back, and only in place of what was set last
        for name, (before, ours) in newer.sysctl.items():
            values[name] = (self.sysctl.get(name, (before,))[0], ours)
        return Backup(
            **{**newer.link, **self.link},
            sysctl=values,
            shared=sorted({*self.shared, *newer.shared}),
            ethtool={**newer.ethtool, **self.ethtool},
            owner=newer.owner,
        )

    @property
    def empty(self) -> bool:
        """Has it no value to restore?"""
        return not (self.sysctl or self.shared or self.ethtool or self.link)

    def is_of(self, netns: Namespace) -> bool:
        """Are these values of this namespace? True for the reference's files, which do not tell."""
        return self.owner is None or self.owner.netns == identity(netns)


def identity(netns: Namespace) -> str:
    """A text, unique among this boot's namespaces; before Linux 5.14, among existing ones."""
    number = cookie(netns.netlink().sock)
    return f"cookie {number:x}" if number else "inode {}:{}".format(*netns.identity)


def directory_of(data_dir: str) -> str:
    """The directory of the backup files. Raises CNIError."""
    if "\0" in data_dir:
        raise CNIError("invalid dataDir", f"{data_dir!r} is not a path")
    return data_dir or DIRECTORY


class File:
    """The backup file of one attachment. Raises CNIError."""

    def __init__(self, directory: str, owner: Owner) -> None:
        self.directory = directory_of(directory)
        self._path = os.path.join(self.directory, _name(owner))
        self._new = os.path.join(self.directory, f".{owner.key}")

    def read(self) -> Backup | None:
        """The contents of the file; None if it is missing or torn. Raises CNIError."""
        try:
            return _read(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _explain("open", self._path, error) from None

    def write(self, backup: Backup) -> None:
        """Replace the file atomically. Raises CNIError."""
        data = msgspec.json.format(msgspec.json.encode(backup), indent=1)
        try:
            try:
                files.replace(self._path, data, temporary=self._new)
            except FileNotFoundError:
                # only the first ADD after a boot finds it missing
                os.makedirs(self.directory, 0o700, exist_ok=True)
                files.replace(self._path, data, temporary=self._new)
        except OSError as error:
            raise _explain("write", self._path, error) from None

    def remove(self) -> None:
        """Remove the file and a half-written one; missing ones are success. Raises CNIError."""
        for path in (self._path, self._new):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise _explain("remove", path, error) from None


def _name(owner: Owner) -> str:
    return file_name(f"{owner.container_id}_{owner.ifname}", ".json")


def collect(directory: str, network: str, keep: Iterable[Owner]) -> None:
    """Remove the files of a network's attachments that are not in `keep`.

    Files of the reference stay, since they do not name their network. Raises OSError, after all
    others were removed, for the first file that cannot be read or removed.
    """
    directory = directory_of(directory)
    kept = list(keep)
    names = {_name(owner) for owner in kept}
    begins, unfinished = f".{network_key(network)}-", {f".{owner.key}" for owner in kept}
    try:
        entries = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    errors = []
    for entry in entries:
        path = os.path.join(directory, entry)
        try:
            # half-written by an ADD that was killed: the name tells
            # the network, the content cannot
            if entry.startswith(begins):
                doomed = entry not in unfinished
            else:
                ours = entry.endswith(".json") and entry not in names
                doomed = ours and _network(path) == network
            if doomed:
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _network(path: str) -> str | None:
    """The network that a file names; None for the reference's files. Raises OSError."""
    try:
        saved = _read(path)
    except files.Unusable:
        return None
    return saved.owner.network if saved is not None and saved.owner is not None else None


def _read(path: str) -> Backup | None:
    """The backup in a file; None if the file is torn. Raises OSError."""
    try:
        return msgspec.json.decode(files.read(path, _MAX_SIZE), type=Backup)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _explain(operation: str, path: str, error: OSError) -> CNIError:
    return CNIError(
        f"{operation} {path}: {(error.strerror or '').lower()}",
        "tuning keeps there (dataDir) what was before, so that DEL can put it back",
    )
