"""DHCPv4 messages and the IP packets that carry them (RFC 2131, 2132, 3396, 3442).

pyroute2.dhcp has a codec, too. It does not know options outside of its table (33, 121), long
options, or overloaded ones, and its import takes 200 ms and 15 MB.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ...protocol.address import Prefix

DISCOVER, OFFER, REQUEST, ACK, NAK, RELEASE = 1, 2, 3, 5, 6, 7

REQUESTED_IP, LEASE_TIME, OVERLOAD, MESSAGE_TYPE, SERVER_ID = 50, 51, 52, 53, 54
PARAMETERS, MESSAGE, MAX_SIZE, T1, T2 = 55, 56, 57, 58, 59

CLIENT_PORT, SERVER_PORT = 68, 67
ANY, BROADCAST = b"\0\0\0\0", b"\xff\xff\xff\xff"
BROADCAST_FLAG = 0x8000
INFINITE = 0xFFFFFFFF

_HEAD = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = b"\x63\x82\x53\x63"
_REQUEST_OP, _REPLY_OP, _ETHERNET = 1, 2, 1
_PAD, _END = 0, 255
_MINIMUM = 300  # bytes of a BOOTP message: some relays drop shorter ones
_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_UDP_PROTOCOL, _TTL = 17, 64
_FRAGMENT = 0x3FFF  # more fragments, or an offset


class Malformed(ValueError):
    """Not a DHCP message."""


class Message(NamedTuple):
    """The parts of a server's message that are used; addresses are packed."""

    xid: int
    yiaddr: bytes
    chaddr: bytes
    options: dict[int, bytes]

    @property
    def kind(self) -> int:
        """ACK, NAK, …; 0 without a valid option 53."""
        value = self.options.get(MESSAGE_TYPE, b"")
        return value[0] if len(value) == 1 else 0

    @property
    def server(self) -> bytes:
        """The server identifier, or empty."""
        value = self.options.get(SERVER_ID, b"")
        return value if len(value) == 4 else b""

    def seconds(self, code: int) -> int | None:
        """A duration; None when it is missing or no duration."""
        value = self.options.get(code, b"")
        return int.from_bytes(value, "big") if len(value) == 4 else None


def encode(
    kind: int,
    xid: int,
    mac: bytes,
    options: dict[int, bytes],
    *,
    ciaddr: bytes = ANY,
    flags: int = 0,
) -> bytes:
    """A client's message; `options` (each at most 255 bytes) are sent in ascending order."""
    head = _HEAD.pack(
        _REQUEST_OP, _ETHERNET, len(mac), 0, xid, 0, flags, ciaddr, ANY, ANY, ANY, mac, b"", b"",
        _COOKIE,
    )  # fmt: skip
    fields = {**options, MESSAGE_TYPE: bytes((kind,))}
    body = b"".join(bytes((code, len(fields[code]))) + fields[code] for code in sorted(fields))
    return (head + body + bytes((_END,))).ljust(_MINIMUM, b"\0")


def decode(data: bytes) -> Message:
    """A server's message to an Ethernet client. Raises Malformed."""
    if len(data) < _HEAD.size:
        raise Malformed("truncated")
    op, kind, size, _, xid, _, _, _, yiaddr, _, _, chaddr, sname, file, cookie = _HEAD.unpack_from(
        data
    )
    if op != _REPLY_OP or kind != _ETHERNET or size != 6 or cookie != _COOKIE:
        raise Malformed("not a reply to an Ethernet client")
    options: dict[int, bytes] = {}
    _read_options(data[_HEAD.size :], options)
    overload = options.get(OVERLOAD, b"\0")
    if len(overload) != 1:
        raise Malformed("option 52")
    # RFC 3396: file comes before sname
    for bit, field in ((1, file), (2, sname)):
        if overload[0] & bit:
            _read_options(field, options)
    return Message(xid, yiaddr, chaddr[:size], options)


def _read_options(data: bytes, into: dict[int, bytes]) -> None:
    """Add options to `into`; parts of one option are joined, wherever they are (RFC 3396)."""
    offset, end = 0, len(data)
    while offset < end:
        code = data[offset]
        offset += 1
        if code == _END:
            return
        if code == _PAD:
            continue
        if offset >= end or offset + 1 + data[offset] > end:
            raise Malformed(f"option {code} runs over the end")
        size = data[offset]
        into[code] = into.get(code, b"") + data[offset + 1 : offset + 1 + size]
        offset += 1 + size


# --- routes ---------------------------------------------------------------------------------------


def classless_routes(value: bytes) -> list[tuple[Prefix, bytes]]:
    """Option 121 (RFC 3442): destinations and routers. Raises Malformed."""
    routes = []
    offset, end = 0, len(value)
    while offset < end:
        length = value[offset]
        octets = (length + 7) // 8
        after = offset + 1 + octets + 4
        if length > 32 or after > end:
            raise Malformed("option 121")
        network = value[offset + 1 : offset + 1 + octets].ljust(4, b"\0")
        routes.append((Prefix(network, length), value[after - 4 : after]))
        offset = after
    return routes


def static_routes(value: bytes) -> list[tuple[Prefix, bytes]]:
    """Option 33: pairs of a destination, with the mask of its class, and a router."""
    routes = []
    for offset in range(0, len(value) - 7, 8):
        network, router = value[offset : offset + 4], value[offset + 4 : offset + 8]
        length = 8 if network[0] < 128 else 16 if network[0] < 192 else 24
        routes.append((Prefix(network, length), router))
    return routes


def addresses(value: bytes) -> list[bytes]:
    """The addresses that an option lists; ignores an incomplete one at the end."""
    return [value[i : i + 4] for i in range(0, len(value) - 3, 4)]


def mask_length(value: bytes) -> int:
    """The prefix length of a subnet mask. Raises Malformed."""
    number = int.from_bytes(value, "big")
    length = number.bit_count()
    if len(value) != 4 or number != (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF:
        raise Malformed("option 1 is no subnet mask")
    return length


def is_router(packed: bytes, leased: Prefix) -> bool:
    """Can this be a router for the leased address? Any host on the network may be the DHCP server.

    False for the unspecified, loopback, multicast and broadcast addresses, for the leased address
    itself, and for the first and last address of its subnet.
    """
    if packed == ANY or packed[0] == 127 or packed[0] >= 224 or packed == leased.ip:
        return False
    ends = (leased.network.ip, leased.broadcast)
    return leased.length >= 31 or packed not in ends


def domains(value: bytes) -> list[str]:
    """The names of option 119, compressed as in DNS (RFC 3397). Raises Malformed."""
    names = []
    offset = 0
    while offset < len(value):
        name, offset = _domain(value, offset)
        if name:
            names.append(name)
    return names


def _domain(value: bytes, offset: int) -> tuple[str, int]:
    labels: list[str] = []
    after = 0
    while True:
        if offset >= len(value) or len(labels) > 127:
            raise Malformed("domain name")
        size = value[offset]
        if size == 0:
            return ".".join(labels), after or offset + 1
        if size >= 0xC0:
            if offset + 1 >= len(value):
                raise Malformed("domain name")
            target = (size & 0x3F) << 8 | value[offset + 1]
            if target >= offset:
                raise Malformed("domain name points forward")
            after = after or offset + 2
            offset = target
            continue
        label = value[offset + 1 : offset + 1 + size]
        if len(label) < size or size > 63:
            raise Malformed("domain name")
        labels.append(text(label))
        offset += 1 + size


def text(value: bytes) -> str:
    """A name from the network, of printable ASCII. Raises Malformed."""
    value = value.rstrip(b"\0")
    if not all(0x21 <= byte <= 0x7E for byte in value):
        raise Malformed("not a name")
    return value.decode("ascii")


# --- packets --------------------------------------------------------------------------------------


def wrap(payload: bytes, source: bytes, destination: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram from the client's to the server's port."""
    size = _UDP.size + len(payload)
    pseudo = source + destination + struct.pack("!HH", _UDP_PROTOCOL, size)
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, size, 0)
    # 0 would mean that there is no checksum (RFC 768)
    check = _checksum(pseudo + udp + payload) or 0xFFFF
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, size, check)
    # type of service 0x10 (low delay), as DHCP clients send it
    fields = [0x45, 0x10, _IP.size + size, 0, 0, _TTL, _UDP_PROTOCOL, 0, source, destination]
    fields[7] = _checksum(_IP.pack(*fields))
    return _IP.pack(*fields) + udp + payload


def unwrap(packet: bytes) -> bytes:
    """The payload of a UDP datagram from a server to the client's port. Raises Malformed.

    The checksum is not verified: between two links of one machine it is not computed.
    """
    if len(packet) < _IP.size:
        raise Malformed("truncated")
    first, _, total, _, fragment, _, protocol, _, _, _ = _IP.unpack_from(packet)
    head = (first & 0x0F) * 4
    if first >> 4 != 4 or head < _IP.size or protocol != _UDP_PROTOCOL or fragment & _FRAGMENT:
        raise Malformed("not a whole UDP datagram")
    if not head + _UDP.size <= total <= len(packet):
        raise Malformed("truncated")
    source, destination, size, _ = _UDP.unpack_from(packet, head)
    if (source, destination) != (SERVER_PORT, CLIENT_PORT) or not _UDP.size <= size <= total - head:
        raise Malformed("not from a server")
    return packet[head + _UDP.size : head + size]


def _checksum(data: bytes) -> int:
    if len(data) & 1:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
