"""Does a namespace that was noted earlier still exist?

Decided by its identity, never by its path alone: a path may name another namespace by now, or a
plain file (what is left of a bind mount after its namespace is gone), and a namespace may have
another path. Since Linux 6.18 the kernel finds a namespace by its number (`handle`), whatever holds
it. Before, no call does that, so in doubt all processes and mounts are looked at (proc(5),
mountinfo), which takes time in proportion to the node's processes. One that is held by nothing but
a descriptor, or by a mount in another mount namespace, is taken for gone then. All this is only
done where something is in the way of an ADD, and in a DEL whose path is gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..kernel.errors import NetnsError, NetnsUnknown
from . import handle
from .namespace import Identity, Namespace, cookie, identify, sees


def is_gone(noted: Identity | None, path: str, seen_from: str = "") -> bool:
    """Has the namespace certainly ceased to exist? As `exists`; False in any doubt."""
    return exists(noted, path, seen_from) is False


def exists(noted: Identity | None, path: str, seen_from: str = "") -> bool | None:
    """Does the namespace still exist that `path` named when `noted` was taken?

    If nothing was noted, it does if the path names any namespace. None if that cannot be known; so
    also if `seen_from`, the CNI_NETNS of the request that asks, is another file to this process
    than to the client (a server in a container): then nothing can be known of paths.
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
        return _exists(noted)
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


def _exists(noted: Identity) -> bool:
    """Does the namespace exist? Raises OSError.

    Before Linux 6.18: is it mounted anywhere, or any process in it? A thread may be in another
    namespace than its process; those of a server of ours never are.
    """
    try:
        fd = handle.reopen(noted)
    except handle.Unknown:
        return _is_held(noted)
    if fd is not None:
        os.close(fd)
    return fd is not None


def _is_held(noted: Identity) -> bool:
    for path in _paths_of(f"net:[{noted.inode}]"):
        now = identify(path)
        if now is None and path.startswith("/proc/"):
            continue  # the process has just ended
        # Another namespace may have the inode's number by now; a mount may be hidden by another.
        if now is None or now.inode != noted.inode or not now.differs(noted):
            return True
    return False


def _paths_of(name: str) -> Iterator[str]:
    """Where a namespace ``net:[<inode>]`` is mounted, and links to it of processes in it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            # 36 35 0:4 net:[4026532000] /run/netns/a rw - nsfs nsfs rw
            fields = line.split(" ", 5)
            if fields[3] == name:
                yield fields[4]
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            path = f"/proc/{pid}/ns/net"
            try:
                if os.readlink(path) == name:
                    yield path
            except FileNotFoundError:
                continue  # the process has just ended
            except PermissionError:
                continue  # more capable than this process, so it is in no container of ours
