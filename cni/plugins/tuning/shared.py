"""tuning's sysctls that all attachments of a namespace share, and which attachments have set them.

    <dataDir>/:<namespace>    JSON: {sysctl: {"before": value, "users": {owner's key: value set},
                                              "netns": Identity of the namespace, for GC}}

`net.core.somaxconn` or `net.ipv4.conf.all.arp_announce` belong to the namespace, not to a link. The
last attachment that set one restores the value from before the first. A lock on the namespace
covers each change of the file together with the reading or restoring of values. But GC may not find
the namespace, and one that is gone cannot be locked. So each change of the file also takes a lock
on dataDir, as the second one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from time import monotonic

import msgspec

from ... import files, lockfile
from ...call import Steps
from ...kernel import sysctl
from ...netns import Namespace
from ...netns.namespace import Identity
from ...owner import Owner, network_key
from ...protocol.errors import CNIError

_PER_LINK = ("conf", "neigh")  # net/<family>/conf/<link>/<parameter>
_ALL_LINKS = ("all", "default")
_MAX_SIZE = 1 << 20


class Unreadable(CNIError):
    """The file cannot be read, so the users of the sysctls are not known."""


class Use(msgspec.Struct):
    """A sysctl's value before the first attachment set it, and what each of them has set."""

    before: str
    users: dict[str, str]
    netns: str = ""


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
        self._directory = directory
        self._path = _path(directory, identity)

    def add(
        self, owner: Owner, values: dict[str, tuple[str, str]], netns: Identity | None = None
    ) -> bool:
        """Note that the owner sets sysctls: name -> (value now, value to set).

        Returns whether it was noted before. `netns` lets GC find the namespace. The caller has
        locked the namespace.
        """
        lock = self._lock()
        try:
            uses = self._read()
            known = any(owner.key in use.users for use in uses.values())
            for name, (now, wanted) in values.items():
                use = uses.setdefault(name, Use(now, {}))
                use.users[owner.key] = wanted
                use.netns = str(netns) if netns is not None else use.netns
            self._write(uses)
        finally:
            lockfile.release(lock)
        return known

    def release(self, netns: Namespace, owner: Owner) -> list[tuple[str, int]]:
        """Restore the owner's sysctls that no other has set; return (name, errno) of failures.

        A sysctl that others have set gets the value of the latest of them. A value that no tuning
        has set stays. The caller has locked the namespace.
        """
        return self._drop(netns, lambda user: user == owner.key)

    def forget(self, owner: Owner) -> None:
        """Remove the owner, whose namespace is gone, from the file."""
        self._drop(None, lambda user: user == owner.key)

    def collect(self, is_gone: Callable[[str], bool]) -> list[tuple[str, int]]:
        """Remove users (keys of owners) that are gone; if the namespace exists, as `release`.

        Raises CNIError, NetnsUnknown, OSError.
        """
        uses = self._read()
        if uses and not any(is_gone(user) for use in uses.values() for user in use.users):
            return []
        netns = self._reopen(uses)
        if netns is None:
            return self._drop(None, is_gone)
        with netns:
            # a copy, because `release` closes it, and the namespace is still needed
            lock = os.dup(netns.fd)
            try:
                lockfile.acquire(lock, netns.path, monotonic() + lockfile.TIMEOUT)
                return self._drop(netns, is_gone)
            finally:
                lockfile.release(lock)

    def _drop(
        self, netns: Namespace | None, is_gone: Callable[[str], bool]
    ) -> list[tuple[str, int]]:
        """Remove users one by one, each as if it were alone; return (name, errno) of failures."""
        failed = []
        lock = self._lock()
        try:
            uses = self._read()
            for user in dict.fromkeys(user for use in uses.values() for user in use.users):
                if is_gone(user):
                    todo = _without(uses, user)
                    failed += sysctl.put_back(netns.sysctls, todo) if netns is not None else []
            self._write(uses)
        finally:
            lockfile.release(lock)
        return failed

    def _reopen(self, uses: Uses) -> Namespace | None:
        """The namespace of the file; None if it is not found."""
        from ...netns import liveness  # only GC needs it

        noted = next((one for use in uses.values() if (one := Identity.parse(use.netns))), None)
        return None if noted is None else liveness.reopen(noted, _cookie(self._path))

    def _lock(self) -> int:
        """Keep others from changing a file of this directory, until the descriptor is released."""
        try:
            os.makedirs(self._directory, 0o700, exist_ok=True)
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            explained = _explain("open", self._directory, error)
            raise Unreadable(explained.msg, explained.details) from None
        try:
            lockfile.acquire(fd, self._directory, monotonic() + lockfile.TIMEOUT)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _read(self) -> Uses:
        try:
            return msgspec.json.decode(files.read(self._path, _MAX_SIZE), type=Uses)
        except FileNotFoundError:
            return {}
        except OSError as error:
            explained = _explain("read", self._path, error)
            raise Unreadable(explained.msg, explained.details) from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return {}  # not ours: files.replace leaves no torn file

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


def _without(uses: Uses, user: str) -> list[tuple[str, str, str]]:
    """Remove a user; return (name, value to restore, value that the user set) of its sysctls."""
    todo = []
    for name, use in uses.items():
        mine = use.users.pop(user, None)
        if mine is not None:
            # the users are in the order of their ADDs, also in the file
            todo.append((name, [use.before, *use.users.values()][-1], mine))
    return todo


def collect(directory: str, network: str, keep: Iterable[Owner], steps: Steps) -> list[str]:
    """Remove the attachments of this network that are not in `keep`; each file is one of `steps`.

    Returns the names of sysctls that could not be restored.
    """
    kept = {owner.key for owner in keep}
    prefix = f"{network_key(network)}-"

    def is_gone(user: str) -> bool:
        return user.startswith(prefix) and user not in kept

    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    failed: list[tuple[str, int]] = []
    for name in names:
        # a name with ~ was left by a process that was killed in files.replace
        if name.startswith(":") and not name.endswith("~"):
            failed += steps.run(File(directory, name[1:]).collect, is_gone) or []
    return [f"{sysctl.ROOT}{name}: {os.strerror(errno).lower()}" for name, errno in failed]


def _path(directory: str, identity: str) -> str:
    return os.path.join(directory, ":" + identity.replace(" ", "-"))


def _cookie(path: str) -> int:
    """The cookie that the name of a file (backup.identity) has; 0 if it has an inode instead."""
    _, _, number = os.path.basename(path).partition(":cookie-")
    try:
        return int(number, 16)
    except ValueError:
        return 0


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
