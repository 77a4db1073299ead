"""A request as it travels from the client (launcher/client.c) to a worker.

    header    magic, size of the strings, size of stdin, umask
    strings   NUL-terminated: path it was called by, environment
    stdin

The client sends that at once. When it has our `hello` and finds that we are of its build, in its
network namespace, and see its files, it sends `go` with descriptors: stderr, working directory, and
if there are such CNI_NETNS and a routing socket of that namespace. Otherwise it closes the
connection, and nothing has happened.
The answer is the exit code and what belongs on stdout, which the client writes when it has all of
it. Instead of a request, STATUS asks how the server does; the answer is a JSON object.
"""

from __future__ import annotations

import array
import os
import struct
from _socket import (
    AF_NETLINK,
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SOCK_RAW,
    SOCK_STREAM,
    SOL_SOCKET,
)
from _socket import socket as Socket
from typing import NamedTuple

from ..netns import namespace
from ..protocol.config import MAX_STDIN

# As launcher/client.c has it.
_HEADER = struct.Struct("=IIII")
_HELLO = struct.Struct("=I12s6Q")
_MAGIC = 0x31494E43
_MAX_STRINGS = 4 << 20
_ANSWER = struct.Struct("=cBI")  # 'X', exit code, size of the output
_NETNS, _ROUTING = 1, 2  # bits of go: which of the optional descriptors are there
_FD_SIZE = array.array("i").itemsize

UNKNOWN = b"N"
STATUS = b"status\n"
HELLO_SIZE = _HELLO.size


class BadRequest(Exception):
    """Not what the client sends; the connection is closed."""


class Refused(BadRequest):
    """The client left before `go`: it is of another build, or in other namespaces."""


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
        netns = namespace.own_identity()
        mounts = 0 if any_mounts else os.stat("/proc/self/ns/mnt").st_ino
        return cls(*netns, _own_cookie(), mounts, _root_mount(), os.stat("/").st_ino)


def _own_cookie() -> int:
    sock = Socket(AF_UNIX, SOCK_STREAM)
    try:
        return namespace.cookie(sock)
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
    """What a client asks."""

    called_as: str
    env: dict[str, str]
    stdin: bytes
    umask: int


class Belongings:
    """The descriptors that come with a request; `close` closes those that nobody took.

    `routing` is a netlink socket of the namespace `netns`, with kernel.netlink.OPTIONS.
    """

    def __init__(self, which: int, fds: list[int]) -> None:
        """Raises BadRequest, and closes them, if they are not those that `which` says."""
        self._fds = fds
        if len(fds) != 2 + which.bit_count() or which & ~(_NETNS | _ROUTING):
            self.close()
            raise BadRequest("wrong number of descriptors")
        self.stderr, self.cwd = fds[:2]
        self.netns = fds[2] if which & _NETNS else None
        self._routing = which & _ROUTING

    def take_routing(self) -> Socket | None:
        """The routing socket, from now on the caller's; None if there is none."""
        if not self._routing:
            return None
        self._routing = 0
        return Socket(AF_NETLINK, SOCK_RAW, 0, self._fds.pop())

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def hello(build: str, place: Place) -> bytes:
    """What a free worker says first."""
    return _HELLO.pack(_MAGIC, build.encode(), *place)


def answer(code: int, output: bytes) -> bytes:
    """A verb's exit code and its output."""
    return _ANSWER.pack(b"X", code, len(output)) + output


def receive(conn: Socket) -> Request:
    """Read a request. Raises BadRequest, Refused, StatusAsked, OSError (time-out)."""
    head = conn.recv(_HEADER.size)
    if head == STATUS:
        raise StatusAsked
    if not head:
        raise Refused
    head += _exactly(conn, _HEADER.size - len(head))
    magic, size, stdin_size, umask = _HEADER.unpack(head)
    if magic != _MAGIC or size > _MAX_STRINGS or stdin_size > MAX_STDIN:
        raise BadRequest("not a request")
    data = _exactly(conn, size + stdin_size)
    strings = data[:size].split(b"\0")
    if len(strings) < 2 or strings.pop():
        raise BadRequest("unterminated strings")
    called_as, *env = map(os.fsdecode, strings)
    pairs = (text.partition("=") for text in env)
    return Request(
        called_as=called_as,
        env={key: value for key, found, value in pairs if found and key},
        stdin=data[size:],
        umask=umask & 0o777,
    )


def receive_go(conn: Socket) -> Belongings:
    """Wait for `go`. Raises BadRequest, Refused, OSError (time-out)."""
    data, ancillary, _, _ = conn.recvmsg(2, CMSG_SPACE(16 * _FD_SIZE), MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    if data:
        return Belongings(data[0], fds)
    raise Refused


def _exactly(conn: Socket, size: int) -> bytes:
    """So many bytes; not one more, since descriptors may come with that."""
    chunks = []
    while size:
        chunks.append(conn.recv(size))
        if not chunks[-1]:
            raise BadRequest("the client is gone")
        size -= len(chunks[-1])
    return b"".join(chunks)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            fds += array.array("i", content[: len(content) // _FD_SIZE * _FD_SIZE])
    return fds
