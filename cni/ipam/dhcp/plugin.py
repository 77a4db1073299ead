"""The plugin's side of dhcp: calls the daemon, and prints its answer (docs/spec/dhcp.md)."""

from __future__ import annotations

import os
from typing import Any

from ...call import Call
from ...protocol import config
from ...protocol.errors import CNIError, NotAvailable, Terminated
from ...protocol.request import Attachment
from ...protocol.result import Result
from . import rpc
from .conf import Conf

__all__ = ["Conf", "add", "check", "delete", "gc", "status"]

_QUICK = 5.0  # seconds for calls that need no exchange with a server


def add(call: Call[Conf]) -> Result:
    """Lease the addresses. Raises CNIError ``error calling DHCP.Allocate: …``."""
    try:
        reply = _ask(call, "DHCP.Allocate", _attachment(call))
    except Terminated:  # the daemon may have leased the address just then
        call.undo.callback(delete, call)
        raise
    call.undo.callback(delete, call)
    return Result.parse(reply, "1.1.0")


def check(call: Call[Conf]) -> None:
    """The daemon must hold a lease on prevResult's address; nothing is acquired."""
    params = _attachment(call)
    previous = call.prev_result()
    if previous is not None:
        params["addresses"] = [ip.address for ip in previous.ips]
    _ask(call, "DHCP.Check", params)


def delete(call: Call[Conf]) -> None:
    """Release the lease. Without a daemon it is not released, and expires.

    A daemon that starts later finds the interface gone, and forgets the lease.
    """
    try:
        _ask(call, "DHCP.Release", _attachment(call))
    except rpc.Unreachable as error:
        call.log(f"dhcp: {error.msg}: the lease is not released, it runs out at the server")


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Release the leases of the network's attachments that are not in `keep`."""
    params = {"network": call.network, "keep": [list(entry) for entry in sorted(keep)]}
    _ask(call, "DHCP.GC", params)


def status(call: Call[Conf]) -> None:
    """Ready if the daemon answers. Raises NotAvailable (code 50)."""
    try:
        _ask(call, "DHCP.Status", {}, _QUICK)
    except CNIError as error:
        raise NotAvailable(error.msg, error.details) from None


def _attachment(call: Call[Conf]) -> dict[str, Any]:
    return {
        "container_id": call.container_id,
        "network": call.network,
        "ifname": call.ifname,
        "netns": os.path.abspath(call.netns) if call.netns else "",
        "args": call.args,
        "config": {"name": call.network, "ipam": config.lookup(call.raw, "ipam")},
    }


def _ask(
    call: Call[Conf], method: str, params: dict[str, Any], timeout: float | None = None
) -> Any:
    """The daemon's answer; needs only the socket's path of the configuration."""
    if call.request.command in ("DEL", "GC"):
        ipam = config.lookup(call.raw, "ipam")
        path = config.lookup(ipam, "daemonSocketPath") if isinstance(ipam, dict) else None
    else:
        path = call.conf.ipam.daemon_socket_path
    return rpc.call(path if isinstance(path, str) else "", method, params, timeout)
