"""A request as it travels from the client (launcher/client.c) to a worker.

    header    magic, size of the strings, size of stdin, umask
    strings   NUL-terminated: path it was called by, environment
    stdin

The client sends that at once, and a worker answers with its `hello`. When the client finds that we
are of its build, in its network namespace, and see its files, it sends `go` with descriptors:
stderr, working directory, and if there are such CNI_NETNS, a routing socket of that namespace, and
one that takes jobs for it (cni.netns.jobs). Otherwise it closes the connection, and nothing has
happened.
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
    MSG_DONTWAIT,
    SCM_RIGHTS,
    SO_RCVTIMEO,
    SOCK_RAW,
    SOCK_STREAM,
    SOL_SOCKET,
)
from _socket import socket as Socket
from typing import NamedTuple

from ..netns import namespace
from ..netns.jobs import Envoy
from ..protocol.config import MAX_STDIN

# As launcher/client.c has it.
_HEADER = struct.Struct("=IIII")
_HELLO = struct.Struct("=I12s6Q")
_MAGIC = 0x31494E43
_MAX_STRINGS = 4 << 20
_ANSWER = struct.Struct("=cBI")  # 'X', exit code, size of the output
_NETNS, _ROUTING, _JOBS = 1, 2, 4  # bits of go: which of the optional descriptors are there
_ROOM = 16384  # most requests are smaller; descriptors come only after our hello
_TIMEOUT = struct.pack("ll", 10, 0)
_FD_SIZE = array.array("i").itemsize
_ANCILLARY = CMSG_SPACE(16 * _FD_SIZE)

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

    `netns` is None if there is none; with it may come a routing netlink socket of that namespace,
    with kernel.netlink.OPTIONS, and an envoy (`take`).
    """

    def __init__(self, which: int, fds: list[int]) -> None:
        """Raises BadRequest, and closes them, if they are not those that `which` says."""
        self._fds = fds
        known = which in (0, _NETNS, _NETNS | _ROUTING, _NETNS | _ROUTING | _JOBS)
        if not known or len(fds) != 2 + which.bit_count():
            self.close()
            raise BadRequest("wrong number of descriptors")
        self.stderr, self.cwd = fds[:2]
        self._which = which
        self.netns = fds[2] if which & _NETNS else None

    def take(self) -> tuple[Socket | None, Envoy | None]:
        """The routing socket and the envoy, from now on the caller's."""
        jobs = self._taken(_JOBS)
        routing = self._taken(_ROUTING)
        return (
            None if routing is None else Socket(AF_NETLINK, SOCK_RAW, 0, routing),
            None if jobs is None else Envoy(jobs),
        )

    def _taken(self, bit: int) -> int | None:
        """The last one, if it is there."""
        if not self._which & bit:
            return None
        self._which ^= bit
        return self._fds.pop()

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def hello(build: str, place: Place) -> bytes:
    """What a worker says that has a request."""
    return _HELLO.pack(_MAGIC, build.encode(), *place)


def answer(code: int, output: bytes) -> bytes:
    """A verb's exit code and its output."""
    return _ANSWER.pack(b"X", code, len(output)) + output


def receive(conn: Socket) -> Request:
    """Read a request. Raises BadRequest, Refused, StatusAsked, OSError (time-out)."""
    try:
        data = conn.recv(_ROOM, MSG_DONTWAIT)
    except BlockingIOError:
        data = _patient(conn).recv(_ROOM)
    if data == STATUS:
        raise StatusAsked
    if not data:
        raise Refused
    data = _at_least(conn, data, _HEADER.size)
    magic, size, stdin_size, umask = _HEADER.unpack_from(data)
    if magic != _MAGIC or size > _MAX_STRINGS or stdin_size > MAX_STDIN:
        raise BadRequest("not a request")
    middle = _HEADER.size + size
    data = _at_least(conn, data, middle + stdin_size)
    if len(data) > middle + stdin_size:
        raise BadRequest("more than a request")
    strings = os.fsdecode(data[_HEADER.size : middle]).split("\0")
    if len(strings) < 2 or strings.pop():
        raise BadRequest("unterminated strings")
    called_as, *variables = strings
    pairs = [text.partition("=") for text in variables]
    env = {key: value for key, equals, value in pairs if equals and key}
    return Request(called_as, env, data[middle:], umask & 0o777)


def receive_go(conn: Socket) -> Belongings:
    """Wait for `go`. Raises BadRequest, Refused, OSError (time-out)."""
    try:
        data, ancillary, _, _ = conn.recvmsg(2, _ANCILLARY, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)
    except BlockingIOError:
        data, ancillary, _, _ = _patient(conn).recvmsg(2, _ANCILLARY, MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    if data:
        return Belongings(data[0], fds)
    raise Refused


def _patient(conn: Socket) -> Socket:
    """For when something is not there yet: who connects and says nothing is not waited for."""
    conn.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _TIMEOUT)
    return conn


def _at_least(conn: Socket, data: bytes, size: int) -> bytes:
    """`data`, continued to so many bytes."""
    have = len(data)
    if have >= size:
        return data
    _patient(conn)
    chunks = [data]
    while have < size:
        chunks.append(conn.recv(size - have))
        if not chunks[-1]:
            raise BadRequest("the client is gone")
        have += len(chunks[-1])
    return b"".join(chunks)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            fds += array.array("i", content[: len(content) // _FD_SIZE * _FD_SIZE])
    return fds
