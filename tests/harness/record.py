"""Reading what was written down of requests, by exec and through a server."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .runtime import Runtime

PATHS = ("exec", "served")  # the ways that a request may go, as the log names them


@contextmanager
def answering(via: str, runtime: Runtime, tmp_path: Path, *options: str) -> Iterator[None]:
    """Requests of the runtime are answered `via` one of PATHS; `options` are a server's."""
    if via == "exec":
        runtime.env["CNI_SERVER"] = "off"
        try:
            yield
        finally:
            del runtime.env["CNI_SERVER"]
        return
    with serving(runtime, tmp_path / "sock", "--workers", "2", *options):
        yield


def recorded(file: Path, level: str = "all", **more: str) -> dict[str, str | None]:
    """Variables with which requests are written down."""
    return {"CNI_LOG_LEVEL": level, "CNI_LOG_FILE": str(file), **more}


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a log, each of which is a whole line."""
    data = path.read_bytes() if path.exists() else b""
    assert not data or data.endswith(b"\n"), data[-200:]
    return [json.loads(line) for line in data.splitlines()]


def journal_entry(message: bytes) -> dict[str, str]:
    """The fields of a datagram in the journal's own protocol."""
    fields = {}
    while message:
        name, equals, rest = message.partition(b"\n")[0].partition(b"=")
        if equals:
            fields[name.decode()] = rest.decode()
            message = message.partition(b"\n")[2]
            continue
        # A value with line breaks: the name, a line break, the size in 8 bytes, the value.
        start = len(name) + 9
        (size,) = struct.unpack_from("<Q", message, len(name) + 1)
        fields[name.decode()] = message[start : start + size].decode()
        assert message[start + size : start + size + 1] == b"\n"
        message = message[start + size + 1 :]
    return fields


@contextmanager
def journal_at(path: Path) -> Iterator[socket.socket]:
    """A socket that receives what the journal would."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(20)
        yield receiver
