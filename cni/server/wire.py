"""A request as it travels from the client (launcher/client.c) to a worker.

    header    magic, size of the strings, size of stdin, umask
    strings   NUL-terminated: path it was called by, environment
    stdin
    descriptors: stderr, working directory, and CNI_NETNS if it could be opened

The client sends it when it has our `hello` and finds that we are of its build, in its network
namespace, and see its files; otherwise it closes the connection, and nothing has happened.
The answer is the exit code and what belongs on stdout, which the client writes when it has all of
it. Instead of a request, STATUS asks how the server does; the answer is a JSON object.
"""

from __future__ import annotations

import array
import os
import struct
import sys
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SOCK_STREAM,
    SOL_SOCKET,
)
from _socket import socket as Socket
from typing import NamedTuple

from ..protocol.config import MAX_STDIN

# As launcher/client.c has it.
_HEADER = struct.Struct("=IIII")
_HELLO = struct.Struct("=I12s6Q")
_MAGIC = 0x31494E43
_MAX_STRINGS = 4 << 20
_ANSWER = struct.Struct("=cBI")  # 'X', exit code, size of the output
_FDS, _MAX_FDS = 2, 3
_SO_NETNS_COOKIE = 71
_FD_SIZE = array.array("i").itemsize

UNKNOWN = b"N"
STATUS = b"status\n"
HELLO_SIZE = _HELLO.size


class BadRequest(Exception):
    """Not what the client sends; the connection is closed."""


class Refused(BadRequest):
    """The client left without a word: it is of another build, or in other namespaces."""


class StatusAsked(Exception):
    """It was STATUS."""


class Place(NamedTuple):
    """Where this process is; what the kernel does not tell is 0.

    Device and inode, and cookie of its network namespace; inode of the mount namespace that clients
    must be in, 0 for any; mount id and inode of the root directory. Raises OSError.
    """

    netns_dev: int
    netns_ino: int
    netns_cookie: int
    mounts: int
    root_mount: int
    root_ino: int

    @classmethod
    def here(cls, *, any_mounts: bool) -> Place:
        """This process's."""
        netns = os.stat("/proc/self/ns/net")
        mounts = 0 if any_mounts else os.stat("/proc/self/ns/mnt").st_ino
        return cls(
            netns.st_dev, netns.st_ino, _cookie(), mounts, _root_mount(), os.stat("/").st_ino
        )


def _cookie() -> int:
    sock = Socket(AF_UNIX, SOCK_STREAM)
    try:
        return int.from_bytes(sock.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        return 0  # before Linux 5.14
    finally:
        sock.close()


def _root_mount() -> int:
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as lines:
            return next((int(line[7:]) for line in lines if line.startswith("mnt_id:")), 0)
    finally:
        os.close(fd)


class Request(NamedTuple):
    """What a client asks. Descriptors belong to it; `close` closes them."""

    called_as: str
    env: dict[str, str]
    stdin: bytes
    umask: int
    fds: list[int]

    @property
    def stderr(self) -> int:
        return self.fds[0]

    @property
    def cwd(self) -> int:
        return self.fds[1]

    @property
    def container_netns(self) -> int | None:
        """The descriptor of CNI_NETNS."""
        return self.fds[_FDS] if len(self.fds) > _FDS else None

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def hello(build: str, place: Place) -> bytes:
    """What a free worker says first."""
    return _HELLO.pack(_MAGIC, build.encode(), *place)


def answer(code: int, output: bytes) -> bytes:
    """A verb's exit code and its output."""
    return _ANSWER.pack(b"X", code, len(output)) + output


def receive(conn: Socket) -> Request:
    """Read a request. Raises BadRequest, Refused, StatusAsked, OSError (time-out)."""
    data, ancillary, _, _ = conn.recvmsg(1 << 16, CMSG_SPACE(16 * _FD_SIZE), MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    try:
        if data == STATUS:
            raise StatusAsked
        if not data:
            raise Refused
        if not _FDS <= len(fds) <= _MAX_FDS:
            raise BadRequest("wrong number of descriptors")
        while len(data) < _HEADER.size:
            data += _more(conn)
        magic, size, stdin_size, umask = _HEADER.unpack_from(data)
        if magic != _MAGIC or size > _MAX_STRINGS or stdin_size > MAX_STDIN:
            raise BadRequest("not a request")
        data = _rest(conn, data, _HEADER.size + size + stdin_size)
        strings = data[_HEADER.size : _HEADER.size + size].split(b"\0")
        if len(strings) < 2 or strings.pop():
            raise BadRequest("unterminated strings")
        called_as, *env = map(os.fsdecode, strings)
        pairs = (text.partition("=") for text in env)
        return Request(
            called_as=called_as,
            env={key: value for key, found, value in pairs if found and key},
            stdin=data[_HEADER.size + size :],
            umask=umask & 0o777,
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
