"""DHCPv6 messages (RFC 8415) and router advertisements (RFC 4861, 4191, 8106)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ...protocol.address import Prefix, is_global_unicast
from .conf import LONGEST_PREFIX, SHORTEST_PREFIX
from .message4 import Malformed, text

SOLICIT, ADVERTISE, REQUEST, RENEW, REBIND, REPLY, RELEASE = 1, 2, 3, 5, 6, 7, 8
CLIENT_ID, SERVER_ID, IA_NA, IA_ADDRESS, ORO, ELAPSED = 1, 2, 3, 5, 6, 8
STATUS, RAPID_COMMIT, DNS_SERVERS, DOMAINS, SOL_MAX_RT = 13, 14, 23, 24, 82
IA_PD, IA_PREFIX = 25, 26
NO_BINDING = 3
# of status codes (RFC 8415 §21.13)
_STATUS_NAMES = {
    1: "UnspecFail",
    2: "NoAddrsAvail",
    3: "NoBinding",
    4: "NotOnLink",
    5: "UseMulticast",
    6: "NoPrefixAvail",
}

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
_IA_PREFIX = struct.Struct("!IIB16s")  # preferred, valid, length, prefix
_MAX_DUID = 130


class Grant(NamedTuple):
    """An address (`length` 128) or a prefix that a server grants or offers.

    Times are in seconds; T1 and T2, those of the IA, may be 0. With `valid` 0 the server takes the
    lease back.
    """

    address: bytes
    length: int
    preferred: int
    valid: int
    t1: int
    t2: int


class Association(NamedTuple):
    """An IA_NA or IA_PD of a server's message: what it grants, and its status (0: success)."""

    grants: list[Grant]
    status: int = 0
    reason: str = ""

    @property
    def usable(self) -> Grant | None:
        """The first lease that is granted, and not taken back."""
        return next((grant for grant in self.grants if grant.valid), None)


class Message(NamedTuple):
    """The parts of a server's message that are used; None for an IA that it does not have."""

    kind: int
    xid: bytes
    client: bytes
    server: bytes
    address: Association | None
    prefix: Association | None
    status: int
    reason: str
    rapid: bool
    options: dict[int, bytes]


def status_text(status: int, reason: str) -> str:
    """A status as text: ``NoPrefixAvail: 'all prefixes are leased'``."""
    name = _STATUS_NAMES.get(status, f"status {status}")
    return f"{name}: {reason!r}" if reason else name


def option(code: int, value: bytes = b"") -> bytes:
    return _OPTION.pack(code, len(value)) + value


def encode(kind: int, xid: bytes, *options: bytes) -> bytes:
    return bytes((kind,)) + xid + b"".join(options)


def ia_na(identity: int, address: bytes = b"") -> bytes:
    """An IA_NA option, with the requested address, if any."""
    inner = option(IA_ADDRESS, _ADDRESS.pack(address, 0, 0)) if address else b""
    return option(IA_NA, _IA.pack(identity, 0, 0) + inner)


def ia_pd(identity: int, prefix: Prefix) -> bytes:
    """An IA_PD option that requests this prefix; with ``::/64`` any prefix of this length."""
    inner = option(IA_PREFIX, _IA_PREFIX.pack(0, 0, prefix.length, prefix.ip))
    return option(IA_PD, _IA.pack(identity, 0, 0) + inner)


def decode(data: bytes, identity: int) -> Message:
    """A server's message to the client whose IAs have this id. Raises Malformed."""
    if len(data) < 4:
        raise Malformed("truncated")
    options: dict[int, bytes] = {}
    associations: dict[int, Association] = {}
    for code, value in _options(data, 4):
        options.setdefault(code, value)
        if code in _READERS and value[:4] == identity.to_bytes(4, "big"):
            association = _association(code, value)
            if association is not None:
                associations.setdefault(code, association)
    status, reason = _status(options[STATUS]) if STATUS in options else (0, "")
    server = options.get(SERVER_ID, b"")
    if len(server) > _MAX_DUID:
        raise Malformed("server identifier")
    return Message(
        data[0],
        data[1:4],
        options.get(CLIENT_ID, b""),
        server,
        associations.get(IA_NA),
        associations.get(IA_PD),
        status,
        reason,
        RAPID_COMMIT in options,
        {code: options[code] for code in (DNS_SERVERS, DOMAINS) if code in options},
    )


def _association(code: int, value: bytes) -> Association | None:
    """An IA_NA or IA_PD; None if its T1 and T2 contradict each other (RFC 8415 §21.4, §21.21)."""
    if len(value) < _IA.size:
        raise Malformed("IA")
    _, t1, t2 = _IA.unpack_from(value)
    if 0 < t2 < t1:
        return None
    inner_code, read = _READERS[code]
    grants = []
    status, reason = 0, ""
    for option_code, inner in _options(value, _IA.size):
        if option_code == STATUS:
            status, reason = _status(inner)
        elif option_code == inner_code:
            address, length, preferred, valid = read(inner)
            # others have to be ignored (RFC 8415 §21.6, §21.22)
            if preferred <= valid and SHORTEST_PREFIX <= length <= LONGEST_PREFIX:
                network = Prefix(address, length).network.ip
                if _is_usable(network):
                    grants.append(Grant(network, length, preferred, valid, t1, t2))
    return Association(grants, status, reason)


def _read_address(inner: bytes) -> tuple[bytes, int, int, int]:
    if len(inner) < _ADDRESS.size:
        raise Malformed("IA address")
    address, preferred, valid = _ADDRESS.unpack_from(inner)
    return address, 128, preferred, valid


def _read_prefix(inner: bytes) -> tuple[bytes, int, int, int]:
    if len(inner) < _IA_PREFIX.size:
        raise Malformed("IA prefix")
    preferred, valid, length, prefix = _IA_PREFIX.unpack_from(inner)
    return prefix, length, preferred, valid


# for each IA, the option with its lease, and what reads it: address, length, preferred, valid
_READERS = {IA_NA: (IA_ADDRESS, _read_address), IA_PD: (IA_PREFIX, _read_prefix)}


def _is_usable(address: bytes) -> bool:
    """Can a host have it? 0000::/8 is reserved: IPv4 addresses in IPv6 form, for example."""
    return address[0] != 0 and is_global_unicast(address)


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
