"""Asking a running server for its state (`cni serve --status`), and finding its process."""

from __future__ import annotations

import json
import socket
import struct

from .wire import STATUS

_PEER = struct.Struct("=iII")  # SO_PEERCRED: pid, user, group
_LIMIT = 1 << 16  # bytes of an answer


def ask(path: str, timeout: float) -> str:
    """The JSON object with which the server at `path` answers. Raises OSError, ValueError."""
    with _connect(path, timeout) as sock:
        sock.sendall(STATUS)
        answer = b""
        while len(answer) <= _LIMIT and (more := sock.recv(1 << 12)):
            answer += more
    # The hello before the object has another length in other builds; the object is flat.
    text = answer[answer.rindex(b"{") :].decode()
    json.loads(text)
    return text


def describe(path: str) -> str:
    """Which process listens at `path`, in words for an error message. Raises nothing."""
    try:
        with _connect(path, 1) as sock:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            pid = _PEER.unpack(credentials)[0]
        process = f"process {pid}" if pid else "a process of another PID namespace"
    except OSError as error:
        return f"something that does not take connections ({error.strerror or error})"
    try:
        status = json.loads(ask(path, 2))
        return f"a server of build {status['build']}, process {status.get('pid', pid)}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{process}, which does not answer as a server"


def _connect(path: str, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
