"""DHCPv6 messages (RFC 8415) and router advertisements (RFC 4861, 4191, 8106)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ...protocol.address import Prefix
from .message4 import Malformed, text

SOLICIT, ADVERTISE, REQUEST, RENEW, REBIND, REPLY, RELEASE = 1, 2, 3, 5, 6, 7, 8
CLIENT_ID, SERVER_ID, IA_NA, IA_ADDRESS, ORO, ELAPSED = 1, 2, 3, 5, 6, 8
STATUS, RAPID_COMMIT, DNS_SERVERS, DOMAINS, SOL_MAX_RT = 13, 14, 23, 24, 82
NO_BINDING = 3

CLIENT_PORT, SERVER_PORT = 546, 547
SERVERS = "ff02::1:2"
INFINITE = 0xFFFFFFFF

ROUTERS = "ff02::2"
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
_SOURCE_LINK, _PREFIX, _ROUTE = 1, 3, 24
_ON_LINK = 0x80

_OPTION = struct.Struct("!HH")
_IA = struct.Struct("!III")  # id, T1, T2
_ADDRESS = struct.Struct("!16sII")  # address, preferred, valid
_MAX_DUID = 130


class Grant(NamedTuple):
    """An address that a server grants or offers; times in seconds, T1 and T2 may be 0."""

    address: bytes
    preferred: int
    valid: int
    t1: int
    t2: int


class Message(NamedTuple):
    """The parts of a server's message that are used."""

    kind: int
    xid: bytes
    client: bytes
    server: bytes
    grants: list[Grant]
    status: int
    reason: str
    rapid: bool
    options: dict[int, bytes]


def option(code: int, value: bytes = b"") -> bytes:
    return _OPTION.pack(code, len(value)) + value


def encode(kind: int, xid: bytes, *options: bytes) -> bytes:
    return bytes((kind,)) + xid + b"".join(options)


def ia(identity: int, address: bytes = b"") -> bytes:
    """An IA_NA option, with the requested address, if any."""
    inner = option(IA_ADDRESS, _ADDRESS.pack(address, 0, 0)) if address else b""
    return option(IA_NA, _IA.pack(identity, 0, 0) + inner)


def decode(data: bytes, identity: int) -> Message:
    """A server's message to the client with this IA. Raises Malformed."""
    if len(data) < 4:
        raise Malformed("truncated")
    options: dict[int, bytes] = {}
    grants: list[Grant] = []
    status, reason = 0, ""
    for code, value in _options(data, 4):
        options.setdefault(code, value)
        if code == STATUS:
            status, reason = _status(value)
        elif code == IA_NA and value[:4] == identity.to_bytes(4, "big"):
            granted, inner, why = _read_ia(value)
            grants += granted
            if inner:
                status, reason = inner, why
    server = options.get(SERVER_ID, b"")
    if len(server) > _MAX_DUID:
        raise Malformed("server identifier")
    return Message(
        data[0],
        data[1:4],
        options.get(CLIENT_ID, b""),
        server,
        grants,
        status,
        reason,
        RAPID_COMMIT in options,
        {code: options[code] for code in (DNS_SERVERS, DOMAINS) if code in options},
    )


def _read_ia(value: bytes) -> tuple[list[Grant], int, str]:
    """The addresses in an IA_NA that are valid, and its status."""
    if len(value) < _IA.size:
        raise Malformed("IA_NA")
    _, t1, t2 = _IA.unpack_from(value)
    grants = []
    status, reason = 0, ""
    for code, inner in _options(value, _IA.size):
        if code == STATUS:
            status, reason = _status(inner)
        elif code == IA_ADDRESS:
            if len(inner) < _ADDRESS.size:
                raise Malformed("IA address")
            address, preferred, valid = _ADDRESS.unpack_from(inner)
            # others have to be ignored (RFC 8415 §21.6); without a valid
            # lifetime the server takes it back
            if valid and preferred <= valid:
                grants.append(Grant(address, preferred, valid, t1, t2))
    return grants, status, reason


def _status(value: bytes) -> tuple[int, str]:
    if len(value) < 2:
        raise Malformed("status")
    return int.from_bytes(value[:2], "big"), value[2:202].decode("utf-8", "replace")


def _options(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    end = len(data)
    while offset < end:
        if offset + _OPTION.size > end:
            raise Malformed("option header")
        code, size = _OPTION.unpack_from(data, offset)
        offset += _OPTION.size
        if offset + size > end:
            raise Malformed(f"option {code} runs over the end")
        yield code, data[offset : offset + size]
        offset += size


def addresses(value: bytes) -> list[bytes]:
    """The addresses an option lists."""
    return [value[i : i + 16] for i in range(0, len(value) - 15, 16)]


def domains(value: bytes) -> list[str]:
    """The uncompressed names of option 24. Raises Malformed."""
    names: list[str] = []
    labels: list[str] = []
    offset = 0
    while offset < len(value):
        size = value[offset]
        label = value[offset + 1 : offset + 1 + size]
        if size > 63 or len(label) < size:
            raise Malformed("domain name")
        offset += 1 + size
        if size:
            labels.append(text(label))
        elif labels:
            names.append(".".join(labels))
            labels = []
    return names


# --- router advertisements ------------------------------------------------------------------------


class Advertisement(NamedTuple):
    """A router: is it a default router, which prefixes are on the link, which routes it has."""

    is_default: bool
    on_link: list[Prefix]
    routes: list[Prefix]


def solicitation(mac: bytes) -> bytes:
    """A router solicitation; the kernel fills in the checksum."""
    return struct.pack("!BBHI", ROUTER_SOLICITATION, 0, 0, 0) + bytes((_SOURCE_LINK, 1)) + mac


def advertisement(data: bytes) -> Advertisement:
    """A router advertisement. Raises Malformed."""
    if len(data) < 16 or data[0] != ROUTER_ADVERTISEMENT or data[1] != 0:
        raise Malformed("no router advertisement")
    on_link: list[Prefix] = []
    routes: list[Prefix] = []
    offset = 16
    while offset < len(data):
        size = data[offset + 1] * 8 if offset + 1 < len(data) else 0
        if not size or offset + size > len(data):
            raise Malformed("option runs over the end")
        value = data[offset : offset + size]
        offset += size
        if value[0] == _PREFIX and size == 32:
            _add(on_link, value[16:32], value[2], value[3] & _ON_LINK and value[4:8] != bytes(4))
        elif value[0] == _ROUTE and size <= 24:
            # prefix length, preference, lifetime, and the significant bytes of the prefix
            _add(routes, value[8:].ljust(16, b"\0"), value[2], value[4:8] != bytes(4))
    return Advertisement(data[6:8] != b"\0\0", on_link, routes)


def _add(into: list[Prefix], packed: bytes, length: int, counts: int) -> None:
    if length > 128:
        raise Malformed("prefix length")
    prefix = Prefix(packed, length).network
    local = packed[0] == 0xFF or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80)
    if counts and not local and prefix not in into:
        into.append(prefix)
