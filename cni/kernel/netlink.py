"""A thin, blocking netlink socket and the attribute codec (RFC 3549, linux/netlink.h).

pyroute2's message classes cannot be imported without logging and multiprocessing and cost 0.3 ms a
request; this costs 2 ms to import and 0.03 ms a request. `_socket` is the C core of the standard
socket module, which alone would take 5 ms of every request.

Longer than 400 lines: a second module would be one more file for each request to load.
"""

from __future__ import annotations

import struct
from _socket import AF_NETLINK, MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_RAW, socket
from collections.abc import Callable, Collection, Iterator
from errno import EBADMSG, EBUSY, EEXIST, EINTR, ENOBUFS, ENOENT, ENOMEM
from typing import Any

from .errors import NetlinkError

# linux/netlink.h
NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLM_F_ECHO = 0x08
NLM_F_DUMP_INTR = 0x10
# of requests to get
NLM_F_DUMP = 0x300
# of requests to make
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
# of acknowledgements
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1
NLMSGERR_ATTR_OFFS = 2

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
_SOL_NETLINK = 270  # linux/socket.h

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTR = struct.Struct("=HH")  # length, type
_U16, _U32, _S32 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=i")

# Options that `Netlink` sets; without them (older kernels) acknowledgements are longer, and the
# kernel does not explain errors.
OPTIONS = tuple(
    (_SOL_NETLINK, option, 1)
    for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK)
)

Message = tuple[int, bytes, int]  # type, payload, flags

_BUFFER = 65536  # the kernel fills dumps up to 32 KiB at a time
# as the reference (docs/spec/common.md §1)
_DUMP_RETRIES = 5
_READ_AGAIN = 3  # how often an answer is read again after an error
_BATCH = 64  # messages: their acknowledgements have to fit into the socket's buffer


# --- attributes -----------------------------------------------------------------------------------


def attr(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = 4 + len(data)
    return _ATTR.pack(size, kind) + data + b"\0" * (-size & 3)


def u8(kind: int, value: int) -> bytes:
    return attr(kind, bytes((value,)))


def u16(kind: int, value: int) -> bytes:
    return attr(kind, _U16.pack(value))


def u32(kind: int, value: int) -> bytes:
    return attr(kind, _U32.pack(value))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attr(kind, value.encode("utf-8", "surrogateescape") + b"\0")


def nest(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds the attributes `parts`."""
    return attr(kind | NLA_F_NESTED, b"".join(parts))


def attrs(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The (type, payload) pairs in `data` from `offset` on.

    Only this function and `attr_map` walk attributes. A length beyond the end of `data` ends it.
    """
    end = len(data)
    while offset + 4 <= end:
        size, kind = _ATTR.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            return
        # without the flags: the kernel sets NLA_F_NESTED on some attributes and not on others
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + size]
        offset += size + 3 & ~3


def attr_map(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes (type → payload); of several of one type the last."""
    # as attrs(), without its generator: no other function is called as often
    attributes: dict[int, bytes] = {}
    end = len(data)
    last = end - 4
    head = _ATTR.unpack_from
    while offset <= last:
        size, kind = head(data, offset)
        stop = offset + size
        if size < 4 or stop > end:
            break
        attributes[kind & NLA_TYPE_MASK] = data[offset + 4 : stop]
        offset += size + 3 & ~3
    return attributes


def unpack(layout: struct.Struct, data: bytes, offset: int = 0) -> tuple[Any, ...]:
    """The fixed part of a message. Raises NetlinkError (EBADMSG) when the message is too short."""
    try:
        return layout.unpack_from(data, offset)
    except struct.error:
        raise NetlinkError(EBADMSG, "the kernel's message is too short") from None


def get_byte(payload: bytes | None) -> int:
    return payload[0] if payload else 0


def get_u32(payload: bytes | None, default: int = 0) -> int:
    return _U32.unpack_from(payload)[0] if payload and len(payload) >= 4 else default


def get_text(payload: bytes | None) -> str:
    return payload.split(b"\0", 1)[0].decode("utf-8", "surrogateescape") if payload else ""


# --- the socket -----------------------------------------------------------------------------------


# Wraps the sockets that are made from now on: netlink_debug.install sets it.
watch: Callable[[socket], socket] | None = None


class Netlink:
    """A netlink socket of the namespace it was made in (or of `sock`, made elsewhere with OPTIONS).

    One request at a time; not for use from several threads. Raises NetlinkError.
    """

    def __init__(
        self,
        protocol: int = NETLINK_ROUTE,
        groups: Collection[int] = (),
        sock: socket | None = None,
    ) -> None:
        if sock is None:
            sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
            set_options(sock, OPTIONS)
        self.sock = sock if watch is None else watch(sock)
        self._sequence = 0
        if groups:
            self.sock.bind((0, 0))  # without an address of its own it would hear nothing
        for group in groups:
            self.sock.setsockopt(_SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def request(self, kind: int, payload: bytes, flags: int = 0) -> list[tuple[int, bytes]]:
        """Send a message, wait for its acknowledgement; return (type, payload) of each reply."""
        sequence = self._send(kind, payload, flags | NLM_F_REQUEST | NLM_F_ACK)
        return self._replies(sequence)[0]

    def batch(self, requests: list[Message]) -> list[NetlinkError | None]:
        """Send several messages at once, and wait; return the error of each, or None.

        The kernel handles them in their order, and goes on after one that it refuses.
        """
        errors: list[NetlinkError | None] = []
        for start in range(0, len(requests), _BATCH):
            errors += self._batch(requests[start : start + _BATCH])
        return errors

    def _batch(self, requests: list[Message]) -> list[NetlinkError | None]:
        """The kernel reports each error; of success only the last message asks for a report."""
        parts, places = [], {}
        final = len(requests) - 1
        for place, (kind, payload, flags) in enumerate(requests):
            sequence = self.next_sequence()
            places[sequence] = place
            size, whole = 16 + len(payload), flags | NLM_F_REQUEST
            # The kernel handles the messages in order: the answer to the last one says that all
            # are done. One acknowledgement each would fill the socket's buffer.
            if place == final:
                whole |= NLM_F_ACK
            parts.append(_HEADER.pack(size, kind, whole, sequence, 0))
            parts.append(payload + b"\0" * (-size & 3))
        self.sock.send(b"".join(parts))
        errors: list[NetlinkError | None] = [None] * len(requests)
        answered = False
        while not answered:
            for kind, flags, sequence, data in split(self._receive()):
                if kind != NLMSG_ERROR or sequence not in places:
                    continue  # left over from a request that was given up
                place = places[sequence]
                answered |= place == final
                try:
                    _raise_if_error(flags, data)
                except NetlinkError as error:
                    errors[place] = error
        return errors

    def get(self, kind: int, payload: bytes) -> bytes:
        """The payload of the single reply to a get request."""
        sequence = self._send(kind, payload, NLM_F_REQUEST)
        replies = self._replies(sequence, single=True)[0]
        return replies[0][1]

    def get_each(self, kind: int, payload: bytes) -> list[bytes]:
        """The replies to a get request about several objects, up to the first that is missing."""
        sequence = self._send(kind, payload, NLM_F_REQUEST | NLM_F_ACK)
        answers: list[bytes] = []
        while True:
            for answer, flags, seq, data in split(self._receive()):
                if seq != sequence:
                    continue
                if answer != NLMSG_ERROR:
                    answers.append(data)
                    continue
                try:
                    _raise_if_error(flags, data)
                except NetlinkError as error:
                    if error.errno != ENOENT:
                        raise
                return answers

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """All payloads of a dump; repeated, up to five times, if changes interrupted it."""
        messages: list[tuple[int, bytes]] = []
        for _ in range(_DUMP_RETRIES):
            sequence = self._send(kind, payload, NLM_F_REQUEST | NLM_F_DUMP)
            try:
                messages, interrupted = self._replies(sequence)
            except NetlinkError as error:
                # neither says anything of the objects, so the dump is asked for again
                if error.errno not in (EINTR, EBUSY):
                    raise
                interrupted = True
            if not interrupted:
                break
        return [data for _, data in messages]

    def search(self, kind: int, payload: bytes, wanted: Callable[[bytes], bool]) -> bool:
        """Is there a payload in a dump that is `wanted`? Reads no further than to the first.

        The unread rest stays in the socket: afterwards it can only be closed.
        """
        sequence = self._send(kind, payload, NLM_F_REQUEST | NLM_F_DUMP)
        interrupted = False
        while True:
            for answer, flags, seq, data in split(self._receive()):
                if seq != sequence:
                    continue
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if answer == NLMSG_ERROR:
                    _raise_if_error(flags, data)
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    # changes interrupted the dump: it may lack an object
                    return interrupted and any(map(wanted, self.dump(kind, payload)))
                if wanted(data):
                    return True

    def _send(self, kind: int, payload: bytes, flags: int) -> int:
        self.sock.send(self.message(kind, payload, flags))
        return self._sequence

    def message(self, kind: int, payload: bytes, flags: int = NLM_F_REQUEST) -> bytes:
        """The bytes of a request with the next sequence number, to be sent by somebody else."""
        sequence = self.next_sequence()
        return _HEADER.pack(16 + len(payload), kind, flags, sequence, 0) + payload

    def next_sequence(self) -> int:
        """A sequence number for a request's messages, which its answers repeat."""
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        return self._sequence

    def _receive(self) -> bytes:
        """One datagram of the kernel's answer.

        When send() returns, the kernel has handled the request, and the answer waits here. An
        error of reading it (ENOBUFS, ENOMEM) says nothing about the request. So it is read again:
        else a change that was made would be taken for a refused one.
        """
        try:
            return self.sock.recv(_BUFFER)
        except OSError as error:
            first = error
        for _ in range(_READ_AGAIN):
            try:
                return self.sock.recv(_BUFFER, MSG_DONTWAIT)
            except OSError:
                pass
        raise NetlinkError(
            first.errno or 0, "the kernel's answer was lost: the request may be done"
        )

    def _replies(self, sequence: int, single: bool = False) -> tuple[list[tuple[int, bytes]], bool]:
        """The replies to `sequence`, and whether a change interrupted the dump."""
        messages: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for kind, flags, seq, data in split(self._receive()):
                if seq != sequence:
                    continue  # left over from a request that was given up
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_ERROR:
                    _raise_if_error(flags, data)
                    return messages, interrupted
                if kind == NLMSG_DONE:
                    # a dump that fails after its first message ends with the errno in NLMSG_DONE
                    if len(data) >= 4 and _S32.unpack_from(data)[0] < 0:
                        raise NetlinkError(-_S32.unpack_from(data)[0])
                    return messages, interrupted
                messages.append((kind, data))
                if single:
                    return messages, interrupted

    def events(self, timeout: float) -> list[tuple[int, bytes]]:
        """Notifications that arrive within `timeout` seconds (at least one, else empty).

        Also empty after a buffer overrun or a shortage of memory, when notifications are lost:
        callers look at the state again after each call.
        """
        # 0 would mean a socket that never waits, and whose error is BlockingIOError
        self.sock.settimeout(max(timeout, 0.001))
        try:
            return [(kind, data) for kind, _, _, data in split(self.sock.recv(_BUFFER))]
        except TimeoutError:
            return []
        except OSError as error:
            if error.errno not in (ENOBUFS, ENOMEM):
                raise
            return []


def set_options(sock: socket, options: Collection[tuple[int, int, int]]) -> None:
    """Set socket options (level, option, value), without those that the kernel lacks."""
    for option in options:
        try:
            sock.setsockopt(*option)
        except OSError:
            pass


def split(buffer: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages in a datagram: (type, flags, sequence, payload)."""
    offset, end = 0, len(buffer)
    while offset + 16 <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(buffer, offset)
        if length < 16 or offset + length > end:
            return
        yield kind, flags, sequence, buffer[offset + 16 : offset + length]
        offset += length + 3 & ~3


def _raise_if_error(flags: int, data: bytes) -> None:
    code = unpack(_S32, data)[0]
    if code != 0:
        raise NetlinkError(-code, explanation_of(flags, data))


def explanation_of(flags: int, data: bytes) -> str:
    """The kernel's own words in an acknowledgement; empty if it gave none."""
    return get_text(acknowledged(flags, data).get(NLMSGERR_ATTR_MSG))


def acknowledged(flags: int, data: bytes) -> dict[int, bytes]:
    """The attributes of an acknowledgement (NLMSGERR_ATTR_*), which explain its errno."""
    if not flags & NLM_F_ACK_TLVS:
        return {}
    # error, the request's header, and the request itself unless it was capped
    request = 16 if flags & NLM_F_CAPPED else unpack(_U32, data, 4)[0]
    return attr_map(data, 4 + (request + 3 & ~3))


def ignoring_exists(error: OSError) -> None:
    """Re-raise `error` unless it says that the object is there already."""
    if error.errno != EEXIST:
        raise error
