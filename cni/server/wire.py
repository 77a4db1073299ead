"""A request as it travels from the client (launcher/client.c) to a worker.

    header    magic, size of the strings, size of stdin, umask, the client's network namespace
    strings   NUL-terminated: build id, path it was called by, environment
    stdin
    descriptors: stdout, stderr, working directory, token, and CNI_NETNS if it could be opened

The token is an eventfd with one count: who reads it does the work (`Request.claim`).
Instead of a request, STATUS asks how the server does; the answer is a JSON object.
"""

from __future__ import annotations

import array
import os
import struct
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET
from _socket import socket as Socket
from typing import NamedTuple

from ..protocol.config import MAX_STDIN

# As launcher/client.c has it.
_HEADER = struct.Struct("=IIIIQQ")
_MAGIC = 0x31494E43
_MAX_STRINGS = 4 << 20
_FDS, _MAX_FDS = 4, 5
_FD_SIZE = array.array("i").itemsize

DECLINED, WRITING, EXIT = b"D", b"W", b"X"
STATUS = b"status\n"


class BadRequest(Exception):
    """Not what the client sends; the connection is closed."""


class StatusAsked(Exception):
    """It was STATUS."""


class Request(NamedTuple):
    """What a client asks. Descriptors belong to it; `close` closes them."""

    build: str
    called_as: str
    env: dict[str, str]
    stdin: bytes
    umask: int
    own_netns: tuple[int, int]  # the client's: device and inode
    fds: list[int]

    @property
    def stdout(self) -> int:
        return self.fds[0]

    @property
    def stderr(self) -> int:
        return self.fds[1]

    @property
    def cwd(self) -> int:
        return self.fds[2]

    @property
    def container_netns(self) -> int | None:
        """The descriptor of CNI_NETNS."""
        return self.fds[4] if len(self.fds) > _FDS else None

    def claim(self) -> bool:
        """Take the work; False if the client has lost patience and does it itself."""
        try:
            return len(os.read(self.fds[3], 8)) == 8
        except BlockingIOError:
            return False

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def receive(conn: Socket) -> Request:
    """Read a request. Raises BadRequest, StatusAsked, OSError (time-out)."""
    data, ancillary, _, _ = conn.recvmsg(1 << 16, CMSG_SPACE(16 * _FD_SIZE), MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    try:
        if data == STATUS:
            raise StatusAsked
        if not _FDS <= len(fds) <= _MAX_FDS:
            raise BadRequest("wrong number of descriptors")
        while len(data) < _HEADER.size:
            data += _more(conn)
        magic, size, stdin_size, umask, dev, ino = _HEADER.unpack_from(data)
        if magic != _MAGIC or size > _MAX_STRINGS or stdin_size > MAX_STDIN:
            raise BadRequest("not a request")
        data = _rest(conn, data, _HEADER.size + size + stdin_size)
        strings = data[_HEADER.size : _HEADER.size + size].split(b"\0")
        if len(strings) < 3 or strings.pop():
            raise BadRequest("unterminated strings")
        build, called_as, *env = map(os.fsdecode, strings)
        pairs = (text.partition("=") for text in env)
        return Request(
            build=build,
            called_as=called_as,
            env={key: value for key, found, value in pairs if found and key},
            stdin=data[_HEADER.size + size :],
            umask=umask & 0o777,
            own_netns=(dev, ino),
            fds=fds,
        )
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _rest(conn: Socket, data: bytes, size: int) -> bytes:
    if len(data) > size:
        raise BadRequest("more than a request")
    if len(data) == size:
        return data
    chunks, have = [data], len(data)
    while have < size:
        chunks.append(_more(conn))
        have += len(chunks[-1])
    if have > size:
        raise BadRequest("more than a request")
    return b"".join(chunks)


def _more(conn: Socket) -> bytes:
    data = conn.recv(1 << 20)
    if not data:
        raise BadRequest("the client is gone")
    return data


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            fds += array.array("i", content[: len(content) // _FD_SIZE * _FD_SIZE])
    return fds
