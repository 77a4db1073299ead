"""The messages between the client (launcher/client.c) and a worker.

    request   header: magic, size of the strings, size of the other variables, size of stdin, umask;
              strings: path that the client was called by, and the protocol's variables (CNI_…),
              name and value each; the other variables likewise (all NUL-terminated); stdin
    hello     from the worker, when it has read the request: magic, build id
    go        from the client: one byte, which says which optional descriptors come with it; the
              descriptors stderr, working directory and root directory, and if there are such
              CNI_NETNS, a routing socket of that namespace, and one that takes jobs for it
              (cni.netns.jobs); credentials that name the server's process (cni.server.peer)
    reply     'X', exit code, size of the output, output; or 'N': this worker does not serve that;
              or 'W', the same as 'X', with an ADD's result
    report    after a 'W': 'w' and 0, if stdout has the result; else 'f' and the errno (both bytes),
              then the ADD is undone, and an 'X' follows with the error

    busy      instead of the hello, from the supervisor: 'B', no worker is to be had for long
              (cni.server.farewell); the client runs the plugin itself, or asks again if it cannot

A client leaves after the hello if the worker is of another build. Before the go, and before an 'N',
the worker changes nothing, so the client can run the plugin itself.
Instead of a request, STATUS asks for the server's state; the answer is a hello and a JSON object.
"""

from __future__ import annotations

import array
import os
import struct
from _socket import AF_NETLINK, CMSG_SPACE, SCM_CREDENTIALS, SCM_RIGHTS, SOCK_RAW, SOL_SOCKET
from _socket import socket as Socket
from typing import NamedTuple

from ..netns.jobs import ClientJobs
from ..protocol.config import MAX_STDIN

# The same values as in launcher/client.c.
_HEADER = struct.Struct("=IIIII")
_HELLO = struct.Struct("=I12s")
_MAGIC = 0x32494E43
_MAX_STRINGS = 4 << 20
_REPLY = struct.Struct("=cBI")  # 'X' or 'W', exit code, size of the output
_NETNS, _ROUTING, _JOBS = 1, 2, 4  # bits of go: which of the optional descriptors are there
_OPTIONAL = frozenset((0, _NETNS, _NETNS | _ROUTING, _NETNS | _ROUTING | _JOBS))
_ALWAYS = 3  # descriptors that always come with go
_FD_SIZE = array.array("i").itemsize
_PID = struct.Struct("=i")  # the first field of struct ucred

DECLINED = b"N"
BUSY = b"B"
_WRITTEN, _FAILED = b"wf"  # in a report; no signal that may come before it has these numbers
STATUS = b"status\n"
HELLO_SIZE = _HELLO.size
ANCILLARY_SIZE = CMSG_SPACE(16 * _FD_SIZE) + CMSG_SPACE(12)


class BadRequest(Exception):
    """The peer does not follow the protocol; the connection is closed."""


class StatusRequested(Exception):
    """The client sent STATUS instead of a request."""


class Request(NamedTuple):
    """A client's request: the plugin's path, environment, stdin and umask.

    `inherited` is what of the environment is not of the protocol: the client has it of its runtime.
    """

    called_as: str
    env: dict[str, str]
    inherited: dict[str, str]
    stdin: bytes
    umask: int


class Descriptors:
    """The descriptors that come with go; `close` closes those that `take` has not given away.

    `netns` is None if there is none.
    """

    def __init__(self, which: int, fds: list[int]) -> None:
        """Raise BadRequest, and close them, if they are not those that `which` announces."""
        self._fds = fds
        if which not in _OPTIONAL or len(fds) != _ALWAYS + which.bit_count():
            self.close()
            raise BadRequest("wrong number of descriptors")
        self.stderr, self.cwd, self.root = fds[:_ALWAYS]
        self._which = which
        self.netns = fds[_ALWAYS] if which & _NETNS else None

    def take(self) -> tuple[Socket | None, ClientJobs | None]:
        """The routing netlink socket of `netns`, with kernel.netlink.OPTIONS, and the connection
        for jobs there; None for one that did not come. The caller closes them. Raises OSError; then
        it has taken none.
        """
        at = _ALWAYS + 1
        routing = None
        if self._which & _ROUTING:
            routing = Socket(AF_NETLINK, SOCK_RAW, 0, self._fds[at])
        jobs = ClientJobs(self._fds[at + 1]) if self._which & _JOBS else None
        del self._fds[at:]
        return routing, jobs

    def close_mounts(self) -> None:
        """Close the descriptors that keep a mount busy: all but stderr."""
        while len(self._fds) > 1:
            os.close(self._fds.pop())

    def close(self) -> None:
        """Close the remaining descriptors; may be repeated."""
        while self._fds:
            os.close(self._fds.pop())


def hello(build: str) -> bytes:
    """The message of a worker that has read a request."""
    return _HELLO.pack(_MAGIC, build.encode())


def reply(code: int, output: bytes) -> bytes:
    """The reply with a verb's exit code and output."""
    return _REPLY.pack(b"X", code, len(output)) + output


def result(output: bytes) -> bytes:
    """The reply with an ADD's result, which the client answers with a report."""
    return _REPLY.pack(b"W", 0, len(output)) + output


def report(data: bytes) -> int | None:
    """0 or the errno in a report; None while it is incomplete. `data` may begin with signals."""
    at = next((i for i, byte in enumerate(data) if byte in (_WRITTEN, _FAILED)), len(data))
    return data[at + 1] if at + 1 < len(data) else None


def missing(data: bytes | bytearray) -> int:
    """The least number of bytes still to be read before `parse` can take the request.

    Raises BadRequest, StatusRequested.
    """
    if len(data) < _HEADER.size:
        if data == STATUS:
            raise StatusRequested
        return _HEADER.size - len(data)
    magic, size, inherited_size, stdin_size, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC or size + inherited_size > _MAX_STRINGS or stdin_size > MAX_STDIN:
        raise BadRequest("not a request")
    whole = _HEADER.size + size + inherited_size + stdin_size
    if len(data) > whole:
        raise BadRequest("more than a request")
    return int(whole) - len(data)


class Parser:
    """Parses requests. The requests of one runtime inherit the same variables: the last ones are
    kept, with their bytes, so that equal bytes need no parsing. Nobody may change `inherited`.
    """

    def __init__(self) -> None:
        self._block = b""
        self._inherited: dict[str, str] = {}

    def parse(self, data: bytes | bytearray) -> Request:
        """The request, of which nothing is `missing`. Raises BadRequest."""
        _, size, inherited_size, _, umask = _HEADER.unpack_from(data)
        inherited_at = _HEADER.size + size
        stdin_at = inherited_at + inherited_size
        texts = _texts(data[_HEADER.size : inherited_at])
        if not texts:
            raise BadRequest("no path")
        called_as, *own = texts
        block = bytes(data[inherited_at:stdin_at])
        if block != self._block:
            self._inherited = _variables(_texts(block))
            self._block = block
        inherited = self._inherited
        env = {**inherited, **_variables(own)}
        return Request(called_as, env, inherited, bytes(data[stdin_at:]), umask & 0o777)


def _texts(block: bytes | bytearray) -> list[str]:
    """The NUL-terminated texts in a block. Raises BadRequest."""
    texts = os.fsdecode(bytes(block)).split("\0")
    if texts.pop():
        raise BadRequest("unterminated strings")
    return texts


def _variables(texts: list[str]) -> dict[str, str]:
    """Names and values in turn as a dict. Raises BadRequest."""
    names = texts[::2]
    if len(texts) % 2 or "" in names or "=" in "".join(names):
        raise BadRequest("not names and values")
    return dict(zip(names, texts[1::2], strict=True))


def parse_go(data: bytes, ancillary: list[tuple[int, int, bytes]]) -> tuple[Descriptors, int]:
    """The contents of a go, which was received with ANCILLARY_SIZE. Raises BadRequest.

    Returns the descriptors, and the process that the credentials name: 0 without credentials, or
    if that process is not visible here.
    """
    fds: list[int] = []
    named_pid = 0
    for level, kind, content in ancillary:
        if level != SOL_SOCKET:
            continue
        if kind == SCM_RIGHTS:
            fds += array.array("i", content[: len(content) // _FD_SIZE * _FD_SIZE])
        elif kind == SCM_CREDENTIALS:
            (named_pid,) = _PID.unpack_from(content)
    # without data the client is gone: then no number of descriptors is right
    return Descriptors(data[0] if data else -1, fds), named_pid
