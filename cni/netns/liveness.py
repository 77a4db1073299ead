"""Does a namespace that was noted earlier still exist?

Decided by its identity, never by its path alone: a path may name another namespace by now, or a
plain file (what is left of a bind mount after its namespace is gone), and a namespace may have
another path. Since Linux 6.18 the kernel finds a namespace by its number (`handle`), and says for
certain that one is gone. Otherwise all processes and mounts are looked at, of each mount namespace
(proc(5), mountinfo). That takes time in proportion to the node's processes, and is only done where
something is in the way of an ADD, and in a DEL whose path is gone.

A namespace that nothing but a descriptor holds has nobody in it. So it does not exist for those who
want its ports, but `reopen` finds it for a DEL, since the links in it are still connected.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from ..kernel.errors import TRANSIENT, NetnsError, NetnsUnknown
from . import handle
from .namespace import Identity, Namespace, cookie, identify, sees

Look = Callable[[str], Iterable[str]]  # name ``net:[<inode>]`` -> paths


def is_gone(noted: Identity | None, path: str, seen_from: str = "") -> bool:
    """Has the namespace certainly ceased to exist? As `exists`; False in any doubt."""
    return exists(noted, path, seen_from) is False


def exists(
    noted: Identity | None, path: str, seen_from: str = "", look: Look | None = None
) -> bool | None:
    """Does the namespace still exist that `path` named when `noted` was taken?

    If nothing was noted, it does if the path names any namespace. None if that cannot be known; so
    also if `seen_from`, the CNI_NETNS of the request that asks, is another file to this process
    than to the client (a server in a container): then nothing can be known of paths. `look` says
    where namespaces can be found, to those who ask for many: it is made of `places`.
    """
    if not sees(seen_from):
        return None
    if noted is None:
        return _names_one(path) if path else None
    for candidate in (path, seen_from):
        now = identify(candidate) if candidate else None
        if now is not None and now.inode == noted.inode:
            return not now.differs(noted)
    try:
        return _exists(noted, look or _paths_of)
    except OSError:
        return None


def reopen(noted: Identity, number: int) -> Namespace | None:
    """Open the namespace if it still exists.

    Before Linux 6.18: where it is held by a mount, or by a process in it.

    `number` is its cookie (namespace.cookie), 0 if that is not known: then the inode alone decides.
    None if it is held nowhere, or only where this process may not look; never the node's own.
    Raises NetnsUnknown, OSError when this process could not look.
    """
    try:
        fd = handle.reopen(noted)
    except handle.Unknown:
        return _reopen_where_held(noted, number)
    if fd is None:
        return None
    found = Namespace(fd, f"the namespace number {noted.number}")
    if found.is_own:
        found.close()
        return None
    return found


def _reopen_where_held(noted: Identity, number: int) -> Namespace | None:
    for path in _paths_of(f"net:[{noted.inode}]"):
        try:
            found = Namespace.open(path)
        except NetnsUnknown:
            raise
        except NetnsError:
            continue  # the process has just ended, or another mount hides this one
        try:
            if _is_noted(found, noted, number):
                return found
        except BaseException:
            found.close()
            raise
        found.close()
    return None


def _is_noted(found: Namespace, noted: Identity, number: int) -> bool:
    """Is it the noted namespace? Its inode has no other number as long as it is open."""
    if found.identity != (noted.device, noted.inode) or found.is_own:
        return False
    return not number or cookie(found.netlink().sock) == number


def _names_one(path: str) -> bool | None:
    """Does the path name a network namespace? None if it cannot be looked at."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return None
    return identify(path) is not None


def _exists(noted: Identity, look: Look) -> bool:
    """Is the namespace mounted anywhere, or any process in it? Raises OSError.

    A thread may be in another namespace than its process; those of a server of ours never are.
    """
    try:
        fd = handle.reopen(noted)
        if fd is None:
            return False
        os.close(fd)
    except handle.Unknown:
        pass
    for path in look(f"net:[{noted.inode}]"):
        now = identify(path)
        if now is None and path.startswith("/proc/") and not _is_hidden(path):
            continue  # the process has just ended
        # Another namespace may have the inode's number by now; a mount may be hidden by another.
        if now is None or now.inode != noted.inode or not now.differs(noted):
            return True
    return False


def _is_hidden(path: str) -> bool:
    """Of a path that names no namespace: is it a mount that a process has, under another one?"""
    process, root, _ = path.partition("/root/")
    return bool(root) and os.path.exists(f"{process}/root")


def _paths_of(name: str) -> Iterator[str]:
    """Where a namespace ``net:[<inode>]`` is mounted, and links to it of processes in it.

    Raises OSError when this process is short of something.
    """
    return (path for found, path in places() if found == name)


def places() -> Iterator[tuple[str, str]]:
    """The name ``net:[<inode>]`` of each network namespace, and a path, as of `_paths_of`.

    Raises OSError when this process is short of something.
    """
    yield from _mounts_of("/proc/self")
    others: dict[str, str] = {}  # mount namespace -> a process in it
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            process = f"/proc/{pid}"
            yield _link(f"{process}/ns/net"), f"{process}/ns/net"
            others.setdefault(_link(f"{process}/ns/mnt"), process)
    for known in ("", _link("/proc/self/ns/mnt")):
        others.pop(known, None)
    for process in others.values():
        for name, path in _mounts_of(process):
            yield name, f"{process}/root{path}"


def _link(path: str) -> str:
    """What a link in /proc leads to; empty if the process has ended, or may not be looked at.

    One that is more capable than this process is in no container of ours.
    """
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        return ""


def _mounts_of(process: str) -> list[tuple[str, str]]:
    try:
        with open(f"{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            # 36 35 0:4 net:[4026532000] /run/netns/a rw - nsfs nsfs rw
            fields = (line.split(" ", 5) for line in mounts)
            ours = (each for each in fields if each[3].startswith("net:["))
            return [(each[3], _unescaped(each[4])) for each in ours]
    except OSError as error:
        if error.errno in TRANSIENT or process == "/proc/self":
            raise
        return []  # the process has just ended


def _unescaped(path: str) -> str:
    """A path of mountinfo, where some characters are octal numbers (proc_pid_mountinfo(5))."""
    for number, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        path = path.replace(f"\\{number}", character)
    return path
