"""checkHostListeners: refuses to publish a port on which a process of the node listens.

Without the key such a process silently gets no more packets. Loaded only for a configuration with
the key. The kernel is asked for the wanted ports alone; only an ADD that fails searches all
processes, to name the one that listens.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from errno import ENOENT

from ...kernel import sockets
from ...kernel.errors import NetlinkError
from ...kernel.netlink import Netlink
from ...kernel.sockets import Listener
from ...protocol.address import format_ip
from ...protocol.errors import CNIError
from .want import PROTOCOLS, Port, Want

_LONGEST_LOOK = 1.0  # seconds
_AT_ONCE = 64  # processes


def require_none(want: Want) -> None:
    """Raise CNIError if a process of this namespace listens on one of the ports."""
    with sockets.open_socket() as sock:
        for address in want.addresses:
            for port in want.ports_of(address):
                for listener in _listening(sock, port):
                    if listener.takes(port.host_ip, len(address.ip)):
                        raise _in_use(port, listener)


def _listening(sock: Netlink, port: Port) -> list[Listener]:
    try:
        return sockets.listening(sock, PROTOCOLS[port.protocol], port.host_port)
    except NetlinkError as error:
        module = "inet_diag, tcp_diag and udp_diag"
        advice = f"load the kernel's modules {module}" if error.errno == ENOENT else "try again"
        raise CNIError(
            f"failed to look who listens on host port {port}: {error}",
            f"{advice}, or remove checkHostListeners from the network",
        ) from None


def _in_use(port: Port, listener: Listener) -> CNIError:
    who = ", ".join(_who(listener)) or f"a process of user {listener.user}"
    where = format_ip(listener.address)
    where = f"[{where}]" if ":" in where else where
    return CNIError(
        f"host port {port} is in use: {who} listens on {where}:{listener.port}",
        "published, the port would lead to the container, and that process would get nothing more: "
        "stop it, or publish another port (`ss -ltunp` shows who listens)",
    )


def _who(listener: Listener) -> Iterator[str]:
    """The processes that have the socket open, as far as a second suffices to find them."""
    processes = sorted(filter(str.isdigit, os.listdir("/proc")), key=int)
    end = time.monotonic() + _LONGEST_LOOK
    for start in range(0, len(processes), _AT_ONCE):
        for pid in sockets.processes_of(listener.inode, processes[start : start + _AT_ONCE]):
            yield f"{_name(pid)} (process {pid})"
        if time.monotonic() > end:
            return


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            text = file.read(64).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    return "".join(each if each.isprintable() else "?" for each in text) or "a program"
