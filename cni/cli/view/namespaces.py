"""Which network namespaces exist: looked up once for a whole node.

cni.netns.liveness decides for one namespace, and has to look through all mounts and processes when
its path does not say it. Here the same is done once for all attachments of a node.
"""

from __future__ import annotations

import os
import struct
import sys
from functools import cached_property

from cni.kernel import netlink as nl
from cni.kernel.errors import KernelError
from cni.netns.namespace import Identity, Namespace, identify

# linux/rtnetlink.h, linux/net_namespace.h
_RTM_GETNSID = 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
ALIVE, GONE, UNKNOWN = "alive", "gone", "unknown"
EARLIER_BOOT = "of an earlier boot"


def number_of(path: str) -> int | None:
    """The number that this node gives the namespace at `path` (RTM_GETNSID); None without one."""
    try:
        with Namespace.current() as node, Namespace.open(path) as there:
            request = struct.pack("=Bxxx", 0) + nl.u32(_NETNSA_FD, there.fd)
            answer = nl.attr_map(node.netlink().get(_RTM_GETNSID, request), 4)
    except (KernelError, OSError):
        return None
    data = answer.get(_NETNSA_NSID, b"")
    number = int.from_bytes(data, sys.byteorder, signed=True) if data else -1
    return number if number >= 0 else None


class Live:
    """The network namespaces of this moment."""

    def state(self, noted: Identity | None, path: str) -> str:
        """ALIVE, GONE or UNKNOWN: the namespace that `path` named when `noted` was taken.

        If nothing was noted, the path alone decides, as in cni.netns.liveness.
        """
        if noted is None:
            return self._state_of_path(path)
        now = identify(path) if path else None
        if now is not None and now.inode == noted.inode:
            return GONE if now.differs(noted) else ALIVE
        return ALIVE if self._is_held(noted) else self._absent

    def _is_held(self, noted: Identity) -> bool:
        """Is it mounted anywhere, or any process in it? As cni.netns.liveness decides it."""
        for path in self._places.get(noted.inode, ()):
            now = identify(path)
            if now is None and path.startswith("/proc/"):
                continue  # the process has just ended
            # Another namespace may have the inode's number by now; a mount may hide another.
            if now is None or now.inode != noted.inode or not now.differs(noted):
                return True
        return False

    def _state_of_path(self, path: str) -> str:
        if not path:
            return UNKNOWN
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return GONE
        except (OSError, ValueError):
            return UNKNOWN
        return GONE if identify(path) is None else ALIVE

    def paths(self, noted: Identity) -> list[str]:
        """Where the namespace can be opened: its mounts, and links to it of processes in it."""
        found = []
        for path in self._places.get(noted.inode, ()):
            now = identify(path)
            if now is not None and now.inode == noted.inode and not now.differs(noted):
                found.append(path)
        return found

    def paths_first(self, noted: Identity, path: str) -> list[str]:
        """The same, `path` alone if that names the namespace."""
        now = identify(path) if path else None
        if now is not None and now.inode == noted.inode and not now.differs(noted):
            return [path]
        return self.paths(noted)

    @property
    def _absent(self) -> str:
        """What a namespace is that was found nowhere."""
        return GONE if self._complete else UNKNOWN

    @cached_property
    def _places(self) -> dict[int, list[str]]:
        """Inode of each network namespace -> paths that lead to it (proc(5), mountinfo)."""
        places: dict[int, list[str]] = {}
        self._complete = True
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
                for line in mounts:
                    # 36 35 0:4 net:[4026532000] /run/netns/a rw - nsfs nsfs rw
                    fields = line.split(" ", 5)
                    _note(places, fields[3], fields[4])
            processes = os.listdir("/proc")
        except OSError:
            self._complete = False
            return places
        for pid in processes:
            if pid.isdigit():
                path = f"/proc/{pid}/ns/net"
                try:
                    _note(places, os.readlink(path), path)
                except FileNotFoundError:
                    continue  # the process has just ended
                except OSError:
                    self._complete &= os.geteuid() == 0  # a more capable one is in no container
        return places

    _complete = True


def _note(places: dict[int, list[str]], name: str, path: str) -> None:
    inode = name.removeprefix("net:[").removesuffix("]")
    if inode != name and inode.isdigit():
        places.setdefault(int(inode), []).append(path)
