"""Short visits of another network namespace, in the self-contained file without a server.

A child made as by vfork(2) shares this process's memory. It makes a socket in the other namespace,
or reads and writes kernel parameters there, and ends; meanwhile this process stands still, in its
own namespace. Nothing is copied, where the executor's fork(2) copies the interpreter's page tables.
The child runs no Python (tools/interpreter/src/native.c). If it cannot do the work, the result is
None: then the executor does it, whose errors say why.
"""

from __future__ import annotations

import struct
from _socket import AF_NETLINK
from collections.abc import Sequence

from _cni_embedded import visit_socket, visit_steps

from ..kernel.netlink import OPTIONS
from ..kernel.sysctl import Outcome, Step
from . import jobs

_OPTION = struct.Struct("=iii")
_NETLINK_OPTIONS = b"".join(_OPTION.pack(*option) for option in OPTIONS)


def open_socket(netns: int, family: int, kind: int, protocol: int) -> int | None:
    """The descriptor of a socket in the namespace `netns`; as Executor.open_socket."""
    options = _NETLINK_OPTIONS if family == AF_NETLINK else b""
    fd: int | None = visit_socket(netns, family, kind, protocol, options)
    return fd


def sysctls(netns: int, steps: Sequence[Step], stop: bool) -> list[Outcome] | None:
    """As kernel.sysctl.perform, in the namespace `netns`. Raises ValueError."""
    job = jobs.packed(steps, stop)
    answer = None if job is None else visit_steps(netns, job)
    return None if answer is None else jobs.outcomes(answer, len(steps), stop)
