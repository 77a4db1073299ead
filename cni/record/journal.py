"""Entries of systemd's journal, in its own protocol: systemd.io/JOURNAL_NATIVE_PROTOCOL."""

from __future__ import annotations

import struct
from _socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_DGRAM
from _socket import socket as Socket
from collections.abc import Mapping
from typing import Any

SOCKET = "/run/systemd/journal/socket"
_PRIORITY_ERROR, _PRIORITY_INFO = 3, 6  # syslog(3)
NAMES = {
    "plugin": "CNI_PLUGIN",
    "verb": "CNI_VERB",
    "network": "CNI_NETWORK",
    "containerID": "CNI_CONTAINERID",
    "ifname": "CNI_IFNAME",
    "netns": "CNI_NETNS",
    "labels": "CNI_LABELS",
    "ms": "CNI_MS",
    "code": "CNI_CODE",
    "msg": "CNI_MSG",
    "details": "CNI_DETAILS",
    "traceID": "CNI_TRACE_ID",
    "via": "CNI_VIA",
    "build": "CNI_BUILD",
}


def message(fields: Mapping[str, Any]) -> bytes:
    """The datagram for an entry with these fields."""
    what = f"{fields['plugin']} {fields.get('verb', '?')} {fields.get('network', '')}".rstrip()
    code = fields["code"]
    said = f"failed with {code}: {fields.get('msg', '')}" if code else "ok"
    out = [
        _field("MESSAGE", f"{what} {said} ({fields['ms']} ms)"),
        _field("PRIORITY", _PRIORITY_ERROR if code else _PRIORITY_INFO),
        _field("SYSLOG_IDENTIFIER", "cni"),
    ]
    for key, name in NAMES.items():
        if key in fields:
            out.append(_field(name, fields[key]))
    return b"".join(out)


def _field(name: str, value: object) -> bytes:
    data = str(value).encode(errors="replace")
    if b"\n" in data:  # such a value is preceded by its length
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return f"{name}=".encode() + data + b"\n"


class Journal:
    """A connection to the journal; sending never waits."""

    def __init__(self) -> None:
        self._socket = Socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)

    def send(self, fields: Mapping[str, Any]) -> None:
        """Send an entry. Raises OSError, but not if no journal runs.

        The path is looked up each time: a restarted journal has another socket there.
        """
        try:
            self._socket.sendto(message(fields), MSG_DONTWAIT | MSG_NOSIGNAL, SOCKET)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            pass

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
