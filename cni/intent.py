"""Intents: the rules that an ADD wanted, kept as data, so that `cni reload` can make them again.

Other programs remove rules: `nft flush ruleset`, `firewall-cmd --reload`, a restarted iptables
service. A plugin that makes rules calls `call.remember()` in its ADD, and has a function
`reload(call)`, which makes them again. The dispatcher keeps request and result in a file for each
attachment and plugin, until DEL or GC:

    <state>/intent/<owner's key>.<plugin>    JSON: plugin, env (CNI_*), config, result (1.1.0),
                                             netns (its device, inode, time of mount),
                                             handles, guard (of rules, by which DEL finds them)

State is `/run/cni`, which a boot empties as it does the packet filter; or what CNI_STATE_DIR names.
A file is there whole or not at all, and locked while its rules are made: a DEL waits for that, or
it would remove them too early. An ADD that cannot write one, because the disk is full, fails.

Longer than 400 lines: a second module would be one more file for each request to load.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from . import files
from .netns import identify
from .owner import Owner, network_key
from .protocol.address import Prefix
from .protocol.errors import CNIError
from .protocol.request import Request
from .protocol.result import Result

STATE_DIR = "/run/cni"
# The version in which results are kept: it can express everything.
VERSION = "1.1.0"
_MAX_SIZE = 32 << 20  # bytes; a configuration has at most half of that
# Suffixes of a file's name while it is written, and while its rules are removed.
_PARTIAL, _GOING = "~", "-"


class Intent(msgspec.Struct):
    """The intent of an ADD. `env` has its CNI_* variables; `config` and `result` are JSON objects.

    `netns` is str(Identity) of its namespace; "" if that is not known. `handles` are those of its
    nftables rules: only a hint, since rules that `reload` makes have others. So is `guard`, that of
    the rule of `macspoofchk`, which is in a table of its own; 0 without one.
    """

    plugin: str
    env: dict[str, str]
    config: dict[str, Any]
    result: dict[str, Any]
    netns: str = ""
    handles: list[int] = []
    guard: int = 0

    def is_of_gone_namespace(self, seen_from: str = "") -> bool:
        """Has the namespace of this ADD certainly ceased to exist? See liveness.exists."""
        return self.namespace_exists(seen_from) is False

    def namespace_exists(self, seen_from: str = "") -> bool | None:
        """Does the namespace of this ADD still exist? None if that cannot be known."""
        from .netns import liveness
        from .netns.namespace import Identity

        path = self.env.get("CNI_NETNS", "")
        return liveness.exists(Identity.parse(self.netns), path, seen_from)

    @property
    def owner(self) -> Owner:
        """The attachment."""
        name = next((v for k, v in self.config.items() if k.lower() == "name"), "")
        return Owner(str(name), self.env["CNI_CONTAINERID"], self.env["CNI_IFNAME"])

    @property
    def addresses(self) -> list[Prefix]:
        """The result's addresses as hosts, /32 or /128; [] if the result cannot be read."""
        try:
            return [ip.prefix.host for ip in Result.parse(self.result, VERSION).ips]
        except CNIError:
            return []


def directory(env: Mapping[str, str]) -> str:
    """The directory of intents."""
    return f"{env.get('CNI_STATE_DIR') or STATE_DIR}/intent"


def save(
    plugin: str, owner: Owner, request: Request, result: Result, **hints: int | Sequence[int]
) -> None:
    """Write the intent of an ADD in place of an earlier one. Raises OSError.

    `hints` are `handles` and `guard` of the intent, as far as known.
    """
    env = {k: _text(value) for k, value in request.env.items() if k.startswith("CNI_")}
    kept = {"plugin": plugin, "env": env, "config": msgspec.Raw(request.stdin)}
    # now, while the path certainly leads to the namespace of this ADD
    identity = identify(request.netns) if request.netns else None
    noted = {"result": result.as_dict(VERSION), "netns": str(identity or "")}
    known = {name: hint for name, hint in hints.items() if hint}
    data = msgspec.json.encode({**kept, **noted, **known})
    path = _path(plugin, owner, request.env)
    try:
        # not synced to the disk: a power failure empties the packet filter, too
        files.replace(path, data, temporary=f"{path}{_PARTIAL}")
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        files.replace(path, data, temporary=f"{path}{_PARTIAL}")


def _text(value: str) -> str:
    """A variable's value for JSON: bytes that are no UTF-8 become U+FFFD."""
    return value.encode("utf-8", "surrogateescape").decode(errors="replace")


class Dropped(NamedTuple):
    """Intents of attachments that are being removed; call `finish` after the removal.

    Until then their files have another name, under which `cni reload` ignores them, but a DEL or GC
    after a killed or failed one finds them. `errors` are those of files that could not be read or
    renamed: their content is unknown, which does not mean that there is none.
    """

    intents: list[Intent]
    paths: list[str]
    errors: list[OSError]

    def finish(self) -> None:
        """Delete the files that were read.

        After that, raises CNIError for the others: the DEL or GC has to be repeated.
        """
        errors = list(self.errors)
        unread = {error.filename for error in errors}
        for path in self.paths:
            if not unread.isdisjoint({path, f"{path}{_GOING}"}):
                continue
            # the second is left if an ADD was killed while it wrote
            for name in (f"{path}{_GOING}", f"{path}{_PARTIAL}"):
                try:
                    os.unlink(name)
                except (FileNotFoundError, IsADirectoryError):
                    pass
                except OSError as error:
                    errors.append(error)
        if errors:
            texts = "; ".join(f"{e.filename}: {(e.strerror or str(e)).lower()}" for e in errors)
            raise CNIError(
                f"cannot read or remove {texts}",
                "it says which rules were made for `cni reload`; what could be removed is: repeat "
                "this when the file can be read",
            )


def drop(plugin: str, owner: Owner, env: Mapping[str, str]) -> Dropped:
    """Put an attachment's intent aside; none is no error. Raises nothing."""
    return _put_aside([_path(plugin, owner, env)])


def drop_others(
    plugin: str, network: str, keep: Collection[Owner], env: Mapping[str, str]
) -> Dropped:
    """Put aside the intents of the network's attachments not in `keep`. Raises nothing."""
    kept = {f"{owner.key}.{plugin}" for owner in keep}
    start, where = f"{network_key(network)}-", directory(env)
    try:
        others = set(_names(where)).difference(kept)
    except OSError as error:
        return Dropped([], [], [error])
    ours = [name for name in others if plugin in name and name.startswith(start)]
    # what was left by a kill, or put aside, has the owner of the name without the suffix
    names = {name.rstrip(_PARTIAL + _GOING) for name in ours} - kept
    return _put_aside(
        f"{where}/{name}" for name in sorted(names) if name.partition(".")[2] == plugin
    )


def _put_aside(paths: Iterable[str]) -> Dropped:
    """The intents in these files, and those that an earlier, unfinished removal had put aside."""
    dropped = Dropped([], [], [])
    for path in paths:
        dropped.paths.append(path)
        # in this order: _move_aside overwrites what an earlier removal has put aside
        for read in (_read_aside, _move_aside):
            try:
                intent = read(path)
            except OSError as error:
                error.filename = path  # `finish` does not delete this file
                dropped.errors.append(error)
                break  # renaming would overwrite an intent put aside before
            if intent is not None:
                dropped.intents.append(intent)
    return dropped


def _read_aside(path: str) -> Intent | None:
    return _read(f"{path}{_GOING}")


def _move_aside(path: str) -> Intent | None:
    """Rename a file, and read it. Raises OSError; an unreadable file is renamed, too, so that a
    repeated removal finds it.
    """
    from . import lockfile  # an ADD only writes

    try:
        fd = _open_locked(path)
    except files.Unusable:
        fd = None  # not written by us; it is removed nevertheless
    try:
        try:
            os.rename(path, f"{path}{_GOING}")
        except FileNotFoundError:
            return None
        return None if fd is None else parse(files.read_open(fd, _MAX_SIZE, path))
    except files.Unusable:
        return None
    except OSError as error:
        error.filename = path
        raise
    finally:
        if fd is not None:
            lockfile.release(fd)


def _read(path: str) -> Intent | None:
    """The intent in a file; None without one, or if the file is not ours. Raises OSError."""
    try:
        return parse(files.read(path, _MAX_SIZE))
    except (FileNotFoundError, NotADirectoryError, files.Unusable):
        return None
    except OSError as error:
        error.filename = path
        raise


def find(plugin: str, owner: Owner, env: Mapping[str, str]) -> Intent | None:
    """The intent of an attachment; None if there is none. Raises OSError."""
    return find_by_key(plugin, owner.key, env)


def find_by_key(plugin: str, key: str, env: Mapping[str, str]) -> Intent | None:
    """As `find`, by Owner.key, which is whole even where names are cut (a rule's comment)."""
    return _read(f"{directory(env)}/{key}.{plugin}")


def everything(env: Mapping[str, str]) -> list[tuple[str, Intent]]:
    """Path and intent of all files, also of those that a DEL has put aside; takes no lock.

    Raises OSError if any cannot be read.
    """
    where = directory(env)
    paths = [f"{where}/{name}" for name in sorted(_names(where)) if not name.endswith(_PARTIAL)]
    return [(path, kept) for path in paths if (kept := _read(path)) is not None]


def all_of(plugin: str, env: Mapping[str, str], network: str | None = None) -> list[Intent]:
    """The intents of a plugin (in one network, if given); takes no lock.

    Raises OSError if any cannot be read.
    """
    where, start = directory(env), "" if network is None else f"{network_key(network)}-"
    names = [n for n in _names(where) if n.partition(".")[2] == plugin and n.startswith(start)]
    kept = (_read(f"{where}/{name}") for name in names)
    return [intent for intent in kept if intent is not None]


def for_each(
    env: Mapping[str, str],
    work: Callable[[Intent], None],
    unreadable: Callable[[OSError], None] | None = None,
) -> None:
    """Do `work` for every intent; skips files that are not ours.

    Meanwhile the intent's DEL waits. If the file was removed or replaced, `work` is repeated.
    `unreadable` is called with the error of an unreadable file; without it, such files are skipped.
    """
    where = directory(env)
    try:
        for name in sorted(_names(where)):
            if not name.endswith((_PARTIAL, _GOING)):
                _work_on(f"{where}/{name}", work, unreadable)
    except OSError as error:
        if unreadable is not None:
            unreadable(error)


def work_on(plugin: str, key: str, env: Mapping[str, str], work: Callable[[Intent], None]) -> None:
    """As `for_each`, for one attachment by its Owner.key; does nothing without an intent.

    Raises OSError if it cannot be read.
    """
    problems: list[OSError] = []
    _work_on(f"{directory(env)}/{key}.{plugin}", work, problems.append)
    if problems:
        raise problems[0]


def _work_on(
    path: str,
    work: Callable[[Intent], None],
    unreadable: Callable[[OSError], None] | None,
) -> None:
    """Do the work; repeat it if the file was replaced meanwhile."""
    from . import lockfile  # an ADD only writes

    again = True
    while again:
        try:
            fd = _open_locked(path)
            if fd is None:
                return
        except OSError as error:
            if unreadable is not None:
                unreadable(error)
            return
        try:
            intent, problem = _contents(fd, path)
            if intent is not None:
                work(intent)
            if problem is not None and unreadable is not None:
                unreadable(problem)
            again = not _is_still(path, fd)
        finally:
            lockfile.release(fd)


def _contents(fd: int, path: str) -> tuple[Intent | None, OSError | None]:
    try:
        return parse(files.read_open(fd, _MAX_SIZE, path)), None
    except OSError as error:
        error.filename = path
        return None, error


def _open_locked(path: str) -> int | None:
    """A descriptor of the file, locked if that was possible in time; None without a file.

    Raises Unusable, OSError.
    """
    from . import lockfile  # an ADD only writes

    while True:
        try:
            fd = files.open_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            lockfile.acquire(fd, path, time.monotonic() + lockfile.TIMEOUT)
        except CNIError:
            return fd  # without the lock: waiting for a DEL that never ends would be worse
        # while this process waited for the lock, the file may have been replaced by a newer one
        if _is_still(path, fd, gone=False):
            return fd
        lockfile.release(fd)


def _is_still(path: str, fd: int, *, gone: bool = True) -> bool:
    """Is the open file the one with that name? `gone` is the answer if there is no such file.

    True if that is not known: callers would repeat their work without end.
    """
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError):
        return gone
    except OSError:
        return True


def parse(data: bytes) -> Intent | None:
    """The intent in a file's data; None if it is not ours, or torn."""
    try:
        intent = _decode(data)
    except (msgspec.MsgspecError, CNIError):
        return None
    return intent if {"CNI_CONTAINERID", "CNI_IFNAME"} <= intent.env.keys() else None


def _decode(data: bytes) -> Intent:
    """The intent in `data`. Raises MsgspecError, CNIError.

    The configuration is kept as given: it may be JSON for Go only (for instance Latin-1), and give
    a key twice.
    """
    from .protocol import config

    return msgspec.convert(config.decode_object(data), Intent)


def _path(plugin: str, owner: Owner, env: Mapping[str, str]) -> str:
    return f"{directory(env)}/{owner.key}.{plugin}"


def _names(where: str) -> list[str]:
    """The files in a directory; [] without the directory. Raises OSError."""
    try:
        return os.listdir(where)
    except (FileNotFoundError, NotADirectoryError):
        return []
