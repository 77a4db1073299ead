"""The existing network namespaces, searched once for the whole node.

cni.netns.liveness decides about one namespace. If the kernel cannot find it by its number, all
mounts and processes are searched; here that is done once for all attachments of a node.
"""

from __future__ import annotations

import struct
import sys
from functools import cached_property

from cni.kernel import netlink as nl
from cni.kernel.errors import KernelError
from cni.netns import liveness
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
            # struct rtgenmsg, padded to four bytes
            request = struct.pack("=Bxxx", 0) + nl.u32(_NETNSA_FD, there.fd)
            answer = nl.attr_map(node.netlink().get(_RTM_GETNSID, request), 4)
    except (KernelError, OSError):
        return None
    data = answer.get(_NETNSA_NSID, b"")
    number = int.from_bytes(data, sys.byteorder, signed=True) if data else -1
    # NETNSA_NSID_NOT_ASSIGNED is -1: no link leads there.
    return number if number >= 0 else None


class Live:
    """The network namespaces of this moment."""

    def state(self, noted: Identity | None, path: str) -> str:
        """ALIVE, GONE or UNKNOWN: the namespace that `path` named when `noted` was taken.

        As cni.netns.liveness decides it.
        """
        exists = liveness.exists(noted, path, look=self._look)
        return {True: ALIVE, False: GONE, None: UNKNOWN}[exists]

    def _look(self, name: str) -> list[str]:
        """Paths to a namespace. Raises OSError when this process is short of something."""
        return self._places.get(name, [])

    # Only when it is needed: since Linux 6.18 the kernel finds a namespace by its number.
    @cached_property
    def _places(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, path in liveness.places():
            found.setdefault(name, []).append(path)
        return found


def opened(noted: Identity | None, path: str, cookie: int = 0) -> Namespace | None:
    """The namespace that `path` named when `noted` was taken; None if it cannot be opened.

    If nothing was noted, what the path names now. The caller closes it.
    """
    now = identify(path) if path else None
    try:
        if now is not None and (noted is None or not now.differs(noted)):
            return Namespace.open(path)
        return liveness.reopen(noted, cookie) if noted is not None else None
    except (KernelError, OSError):
        return None
