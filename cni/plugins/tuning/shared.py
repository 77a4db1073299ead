"""tuning's sysctls that all attachments of a namespace share, and who has set them.

    <dataDir>/:<namespace>    JSON: {sysctl: {"before": value, "users": {owner's key: value set}}}

`net.core.somaxconn` or `net.ipv4.conf.all.arp_announce` belong to the namespace, not to a link. The
last attachment that set one restores the value from before the first. Each change of the file, with
the reading or restoring of values that belongs to it, is done under a lock on the namespace.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from time import monotonic

import msgspec

from ... import files, lockfile
from ...kernel import sysctl
from ...netns import Namespace
from ...owner import Owner, network_key
from ...protocol.errors import CNIError

_PER_LINK = ("conf", "neigh")  # net/<family>/conf/<link>/<parameter>
_ALL_LINKS = ("all", "default")
_MAX_SIZE = 1 << 20


class Unreadable(CNIError):
    """The file may be there, but cannot be read: who uses the sysctls is not known."""


class Use(msgspec.Struct):
    """A sysctl's value before the first attachment set it, and what each of them has set."""

    before: str
    users: dict[str, str]


Uses = dict[str, Use]


def is_shared(name: str) -> bool:
    """Does this name below /proc/sys belong to the namespace, rather than to one link?"""
    parts = name.split("/")
    return len(parts) < 5 or parts[2] not in _PER_LINK or parts[3] in _ALL_LINKS


def lock(netns: Namespace) -> None:
    """Lock the shared sysctls of a namespace until the request ends. Raises TryAgainLater."""
    lockfile.acquire(netns.fd, netns.path, monotonic() + lockfile.TIMEOUT)


class File:
    """The file of one namespace, `identity` (backup.identity). Raises CNIError."""

    def __init__(self, directory: str, identity: str) -> None:
        self._path = _path(directory, identity)

    def add(self, owner: Owner, values: dict[str, tuple[str, str]]) -> bool:
        """Note that the owner sets sysctls: name -> (value now, value to set); was it noted before?

        The caller has locked the namespace.
        """
        uses = self._read()
        known = any(owner.key in use.users for use in uses.values())
        for name, (now, wanted) in values.items():
            use = uses.setdefault(name, Use(now, {}))
            use.users[owner.key] = wanted
        self._write(uses)
        return known

    def release(self, netns: Namespace, owner: Owner) -> list[tuple[str, int]]:
        """Restore what the owner has set, as far as nobody else has; (name, errno) of failures.

        Where others have, the latest of them gets its value back. A value that neither tuning has
        set stays. The caller has locked the namespace.
        """
        uses = self._read()
        todo: list[tuple[str, str, str]] = []
        for name, use in uses.items():
            mine = use.users.pop(owner.key, None)
            if mine is not None:
                value = [use.before, *use.users.values()][-1]
                todo.append((name, value, mine))
        failed = sysctl.put_back(netns.sysctls, todo) if todo else []
        self._write(uses)
        return failed

    def forget(self, owner: Owner) -> None:
        """Drop the owner, whose namespace is gone."""
        uses = self._read()
        for use in uses.values():
            use.users.pop(owner.key, None)
        self._write(uses)

    def _read(self) -> Uses:
        try:
            return msgspec.json.decode(files.read(self._path, _MAX_SIZE), type=Uses)
        except FileNotFoundError:
            return {}
        except OSError as error:
            explained = _explain("read", self._path, error)
            raise Unreadable(explained.msg, explained.details) from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return {}  # none of ours: files.replace leaves no torn file

    def _write(self, uses: Uses) -> None:
        used = {name: use for name, use in uses.items() if use.users}
        try:
            if not used:
                _unlink(self._path)
                return
            data = msgspec.json.encode(used)
            try:
                files.replace(self._path, data)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
                files.replace(self._path, data)
        except OSError as error:
            raise _explain("write", self._path, error) from None


def collect(directory: str, network: str, keep: Iterable[Owner]) -> None:
    """Remove the files that only attachments of this network use that are not in `keep`.

    Raises OSError, CNIError.
    """
    kept = {owner.key for owner in keep}
    prefix = f"{network_key(network)}-"
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name.startswith(":") and not name.endswith("~"):
            uses = File(directory, name[1:])._read()
            users = {user for use in uses.values() for user in use.users}
            if all(user.startswith(prefix) and user not in kept for user in users):
                _unlink(_path(directory, name[1:]))


def _path(directory: str, identity: str) -> str:
    return os.path.join(directory, ":" + identity.replace(" ", "-"))


def _unlink(path: str) -> None:
    for each in (path, f"{path}~"):
        try:
            os.unlink(each)
        except FileNotFoundError:
            pass


def _explain(operation: str, path: str, error: OSError) -> CNIError:
    return CNIError(
        f"{operation} {path}: {(error.strerror or str(error)).lower()}",
        "tuning keeps there (dataDir) which attachments have set a sysctl of the namespace",
    )
