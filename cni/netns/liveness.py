"""Does a namespace that was noted earlier still exist?

The namespace's identity decides, never its path alone: by now the path may name another namespace,
or a plain file (left of a bind mount after its namespace is gone), and the namespace may have
another path. Since Linux 6.18 the kernel finds a namespace by its number (`handle`), and tells for
certain that it is gone. Before, all processes, and the mounts of each mount namespace, are searched
(proc(5), mountinfo). That takes time in proportion to the node's processes. It is only done if
something is in the way of an ADD, and in a DEL whose path is gone.

A namespace that only a descriptor holds has no process in it. For `exists` it is gone, so that
others may have its ports; but `reopen` finds it for a DEL, since its links are still connected.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from ..kernel.errors import TRANSIENT, NetnsError, NetnsUnknown
from . import handle
from .namespace import Identity, Namespace, cookie, identify, sees

Look = Callable[[str], Iterable[str]]  # name ``net:[<inode>]`` -> paths


def is_gone(noted: Identity | None, path: str, seen_from: str = "") -> bool:
    """Has the namespace certainly ceased to exist? False if in doubt; parameters as `exists`."""
    return exists(noted, path, seen_from) is False


def exists(
    noted: Identity | None, path: str, seen_from: str = "", look: Look | None = None
) -> bool | None:
    """Does the namespace still exist that `path` named when `noted` was taken?

    If nothing was noted: does the path name any namespace? Returns None if that cannot be known.
    One such case: `seen_from`, the CNI_NETNS of the request, is another file to this process than
    to the client (a server in a container), so paths say nothing. `look` finds the places of a
    namespace; a caller with many questions makes it once, of `places`.
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

    Before Linux 6.18 it is found only if a mount, or a process in it, holds it.

    `number` is its cookie (namespace.cookie); 0 if that is not known: then the inode alone decides.
    Returns None if it is not found, and for the node's own namespace.
    Raises NetnsUnknown, OSError when this process could not look.
    """
    try:
        fd = handle.reopen(noted)
    except handle.Unknown:
        return _reopen_where_held(noted, number)
    if fd is None:
        return None
    namespace = Namespace(fd, f"the namespace number {noted.number}")
    if namespace.is_own:
        namespace.close()
        return None
    return namespace


def _reopen_where_held(noted: Identity, number: int) -> Namespace | None:
    for path in _paths_of(f"net:[{noted.inode}]"):
        try:
            found = Namespace.open(path)
        except NetnsUnknown:
            raise
        except NetnsError:
            continue  # the process has just ended, or a later mount hides this one
        try:
            if _is_noted(found, noted, number):
                return found
        except BaseException:
            found.close()
            raise
        found.close()
    return None


def _is_noted(found: Namespace, noted: Identity, number: int) -> bool:
    """Is it the noted namespace? As long as it is open, no other namespace gets its inode."""
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

    Threads in another namespace than their process are not searched; our server has none.
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
        # By now another namespace may have that inode; a later mount may hide this one.
        if now is None or now.inode != noted.inode or not now.differs(noted):
            return True
    return False


def _is_hidden(path: str) -> bool:
    """Does a later mount hide the namespace at this path, which names none, in a process's view?"""
    process, root, _ = path.partition("/root/")
    return bool(root) and os.path.exists(f"{process}/root")


def _paths_of(name: str) -> Iterator[str]:
    """Paths of the namespace ``net:[<inode>]``: its mounts, and /proc/PID/ns/net of its processes.

    Raises OSError if this process lacks descriptors or memory.
    """
    return (path for found, path in places() if found == name)


def places() -> Iterator[tuple[str, str]]:
    """The name ``net:[<inode>]`` of each network namespace with each of its paths (`_paths_of`).

    Raises OSError if this process lacks descriptors or memory.
    """
    # our own mounts first: `ip netns` and most runtimes mount namespaces there
    yield from _mounts_of("/proc/self")
    others: dict[str, str] = {}  # mount namespace -> a process in it
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            process = f"/proc/{pid}"
            yield _link(f"{process}/ns/net"), f"{process}/ns/net"
            # one process of each mount namespace is enough, since all of them see the same mounts
            others.setdefault(_link(f"{process}/ns/mnt"), process)
    for known in ("", _link("/proc/self/ns/mnt")):
        others.pop(known, None)
    for process in others.values():
        for name, path in _mounts_of(process):
            yield name, f"{process}/root{path}"


def _link(path: str) -> str:
    """The target of a link in /proc; "" if the process has ended, or we may not look at it.

    A process with more capabilities than this one is in no container of ours.
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
    """A path of mountinfo with its octal escapes replaced (proc_pid_mountinfo(5))."""
    for number, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        path = path.replace(f"\\{number}", character)
    return path
