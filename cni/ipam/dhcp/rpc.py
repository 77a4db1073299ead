"""The protocol between plugin and daemon: a line of JSON each way on a Unix socket.

    {"method": "DHCP.Allocate", "params": {…}}  ->  {"result": …}  or
                                                    {"error": {"code", "msg", "details"}}

It is not the reference's Go net/rpc with gob; each side recognises that one, and reports it.
"""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket
from typing import Any

import msgspec

from ... import interrupts
from ...protocol.config import MAX_STDIN
from ...protocol.errors import CNIError

DEFAULT_SOCKET = "/run/cni/dhcp.sock"
MAX_MESSAGE = MAX_STDIN + (1 << 20)

START = (
    "start the daemon: systemctl start cni-dhcp.socket, or run `dhcp daemon` "
    "from the plugin directory"
)


class Unreachable(CNIError):
    """No process listens on the socket."""


class _Error(msgspec.Struct):
    code: int = 999
    msg: str = ""
    details: str = ""


class _Reply(msgspec.Struct):
    result: Any = None
    error: _Error | None = None


def call(path: str, method: str, params: dict[str, Any], timeout: float | None = None) -> Any:
    """The daemon's answer; `timeout` (seconds) applies to each step.

    Raises Unreachable (``error dialing DHCP daemon: …``), CNIError ``error calling <method>: …``
    and Terminated.
    """
    path = path or DEFAULT_SOCKET
    request = msgspec.json.encode({"method": method, "params": params}) + b"\n"
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        _connect(sock, path)
        try:
            sock.sendall(request)
            with interrupts.waiting():
                data = _receive(sock)
        except TimeoutError:
            raise CNIError(
                f"error calling {method}: no answer within {timeout:g} seconds",
                f"the DHCP daemon at {path} hangs: look at its log, restart it",
            ) from None
        except OSError as error:
            raise CNIError(
                f"error calling {method}: {(error.strerror or str(error)).lower()}",
                f"the connection to the DHCP daemon at {path} was lost; try again",
            ) from None
    finally:
        sock.close()
    return _decode(data, path, method)


def _connect(sock: socket, path: str) -> None:
    try:
        sock.connect(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Unreachable(
            f"error dialing DHCP daemon: dial unix {path}: connect: {reason}", START
        ) from None


def _receive(sock: socket) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while size <= MAX_MESSAGE:
        chunk = sock.recv(1 << 16)
        chunks.append(chunk)
        size += len(chunk)
        # the line feed ends the answer: JSON escapes those in texts
        if not chunk or chunk.endswith(b"\n"):
            break
    return b"".join(chunks)


def _decode(data: bytes, path: str, method: str) -> Any:
    if not data:
        raise CNIError(
            f"error calling {method}: unexpected EOF",
            f"the DHCP daemon at {path} ended or refused the connection (it serves root only)",
        )
    try:
        reply = msgspec.json.decode(data, type=_Reply)
    except msgspec.MsgspecError:
        raise CNIError(
            f"error calling {method}: the answer is not understood",
            f"another program listens at {path}, perhaps the daemon of the Go plugins: stop it, "
            f"then {START}",
        ) from None
    if reply.error is not None:
        error = CNIError(f"error calling {method}: {reply.error.msg}", reply.error.details)
        # the runtime judges by it whether to try again
        error.code = reply.error.code
        raise error
    return reply.result
