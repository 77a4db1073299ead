"""The messages of etcd's JSON gateway, as far as they are read. int64 are strings there."""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import Any, TypeVar

import msgspec

from .http import Response
from .interface import Unavailable

T = TypeVar("T")


def base64(data: bytes) -> str:
    """As keys and values are sent."""
    return b2a_base64(data, newline=False).decode("ascii")


def raw(text: str) -> bytes:
    """The bytes of base64; none, if it is not that."""
    try:
        return a2b_base64(text)
    except Base64Error:
        return b""


def _check_numbers(*texts: str) -> None:
    """Raises ValueError, of which the decoder makes an error of its own."""
    for text in texts:
        if not text.isdecimal():
            raise ValueError(f"{text!r} is no number")


class Header(msgspec.Struct):
    """Of each answer: the cluster, and how far it is. No revision is told with some messages."""

    cluster_id: str = "0"
    revision: str = "0"

    def __post_init__(self) -> None:
        _check_numbers(self.cluster_id, self.revision)


def _check_has_revision(header: Header) -> None:
    # etcd counts from 1: the field was missing, so something else has answered
    if header.revision == "0":
        raise ValueError("no revision")


class KeyValue(msgspec.Struct):
    """Key and value are base64."""

    key: str
    value: str = ""
    mod_revision: str = "0"


class Ranged(msgspec.Struct):
    header: Header
    kvs: list[KeyValue] = []
    more: bool = False

    def __post_init__(self) -> None:
        _check_has_revision(self.header)


class Changed(msgspec.Struct):
    header: Header
    succeeded: bool = False

    def __post_init__(self) -> None:
        _check_has_revision(self.header)


class Event(msgspec.Struct):
    kv: KeyValue
    type: str = "PUT"


class Watched(msgspec.Struct):
    header: Header
    created: bool = False
    canceled: bool = False
    compact_revision: str = "0"
    cancel_reason: str = ""
    events: list[Event] = []

    def __post_init__(self) -> None:
        _check_numbers(self.compact_revision)


class _Line(msgspec.Struct):
    # the gateway puts each message of a stream into an object; an error's has no `result`
    result: Watched | None = None


class Token(msgspec.Struct):
    token: str


class Failed(msgspec.Struct):
    """An error's answer."""

    message: str = ""
    error: str = ""
    code: int = 0


class Memory(msgspec.Struct, frozen=True):
    """The highest revision of the store that was seen.

    The raft term would not do: a member that stands for election is ahead of the others for a
    while.
    """

    revision: int = 0

    def after(self, header: Header) -> Memory:
        """This, or the revision in an answer's header if that is higher."""
        return self.furthest(Memory(int(header.revision)))

    def furthest(self, other: Memory) -> Memory:
        """The later of both."""
        return max(self, other, key=lambda each: each.revision)

    def is_ahead_of(self, header: Header) -> bool:
        """Whether the store was further than it is, which never happens to one that lives on."""
        return self.revision > int(header.revision)


_decode_line = msgspec.json.Decoder(_Line).decode
decode_value = msgspec.json.Decoder(dict[str, Any]).decode


def watched(line: bytes) -> Watched | None:
    """A message of a watch; None for an error's."""
    try:
        return _decode_line(line).result
    except msgspec.MsgspecError:
        return None


def decode(response: Response, kind: type[T], name: str) -> T:
    """An answer. Raises Unavailable if it is another one."""
    try:
        return msgspec.json.decode(response.body, type=kind)
    except msgspec.MsgspecError as error:
        raise Unavailable(
            f"{name}: {response.endpoint} gave no answer of etcd: {error}",
            "look whether it is etcd, 3.4 or later, that listens there",
        ) from None
