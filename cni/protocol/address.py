"""IP addresses and prefixes, as Go's net package reads and prints them.

Not the standard ipaddress module: importing it costs 4 ms of each request, it accepts netmasks in
place of a prefix length, and prints IPv4-mapped addresses differently from Go. An address is its
packed form (4 or 16 bytes); a prefix keeps its host bits.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from .errors import CNIError

_MAPPED = b"\0" * 10 + b"\xff\xff"


class InvalidAddress(CNIError):
    """The text is no IP address or prefix."""


def parse_ip(text: str) -> bytes:
    """``"10.0.0.1"`` -> 4 bytes, ``"fd00::1"`` -> 16 bytes; an IPv4-mapped address -> 4 bytes.

    Raises InvalidAddress (``invalid IP address: x``).
    """
    try:
        if ":" not in text:
            return inet_pton(AF_INET, text)
        packed = inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        raise InvalidAddress(f"invalid IP address: {text}") from None
    return packed[12:] if packed.startswith(_MAPPED) else packed


def format_ip(packed: bytes) -> str:
    """The canonical text of a packed address, as Go writes it (RFC 5952)."""
    if len(packed) == 4:
        return inet_ntop(AF_INET, packed)
    text = inet_ntop(AF_INET6, packed)
    if "." in text and not packed.startswith(_MAPPED):
        # libc writes the addresses of ::/96 as ::0.1.0.2 (RFC 4291, 2.5.5.1, deprecated).
        return f"::{packed[12] << 8 | packed[13]:x}:{packed[14] << 8 | packed[15]:x}"
    return text


def canonical_ip(text: str) -> str:
    """`text` in canonical form. Raises InvalidAddress."""
    return format_ip(parse_ip(text))


def family(packed: bytes) -> int:
    """AF_INET or AF_INET6."""
    return AF_INET if len(packed) == 4 else AF_INET6


def is_global_unicast(packed: bytes) -> bool:
    """Go's IsGlobalUnicast: not unspecified, loopback, multicast, link-local or 255.255.255.255."""
    if len(packed) == 4:
        return not (
            packed in (b"\0\0\0\0", b"\xff\xff\xff\xff")
            or packed[0] == 127
            or 224 <= packed[0] <= 239
            or packed[:2] == b"\xa9\xfe"
        )
    return not (
        packed in (bytes(16), bytes(15) + b"\x01")
        or packed[0] == 0xFF
        or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80)
    )


def is_loopback(packed: bytes) -> bool:
    """127.0.0.0/8 or ::1."""
    return packed[0] == 127 if len(packed) == 4 else packed == bytes(15) + b"\x01"


class Prefix(NamedTuple):
    """An address with a prefix length: ``10.1.2.3/24``; host bits are kept."""

    ip: bytes
    length: int

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """``"10.1.2.3/24"``. Raises InvalidAddress (``invalid CIDR address: x``)."""
        address, slash, length = text.partition("/")
        try:
            packed = inet_pton(AF_INET6 if ":" in address else AF_INET, address)
        except (OSError, ValueError):
            raise InvalidAddress(f"invalid CIDR address: {text}") from None
        if not slash or not (length.isascii() and length.isdigit()) or len(length) > 3:
            raise InvalidAddress(f"invalid CIDR address: {text}")
        bits = int(length)
        if bits > len(packed) * 8:
            raise InvalidAddress(f"invalid CIDR address: {text}")
        if packed.startswith(_MAPPED) and bits >= 96:
            return cls(packed[12:], bits - 96)
        return cls(packed, bits)

    def __str__(self) -> str:
        return f"{format_ip(self.ip)}/{self.length}"

    @property
    def bits(self) -> int:
        """32 or 128."""
        return len(self.ip) * 8

    @property
    def family(self) -> int:
        return family(self.ip)

    @property
    def is_v4(self) -> bool:
        return len(self.ip) == 4

    @property
    def network(self) -> Prefix:
        """The same prefix with its host bits cleared."""
        return Prefix(_mask(self.ip, self.length), self.length)

    @property
    def host(self) -> Prefix:
        """This address alone: /32 or /128."""
        return Prefix(self.ip, self.bits)

    def contains(self, packed: bytes) -> bool:
        """Is the address in this prefix? False for the other family."""
        return len(packed) == len(self.ip) and _mask(packed, self.length) == _mask(
            self.ip, self.length
        )

    def overlaps(self, other: Prefix) -> bool:
        """Does either prefix contain the other's network?"""
        return self.contains(other.network.ip) or other.contains(self.network.ip)

    def nth(self, offset: int) -> bytes:
        """The network address plus `offset` (packed); the sum must lie in the address space."""
        value = int.from_bytes(self.network.ip, "big") + offset
        return value.to_bytes(len(self.ip), "big")

    @property
    def broadcast(self) -> bytes:
        """The last address of the prefix."""
        return self.nth((1 << (self.bits - self.length)) - 1)


def by_family(prefixes: list[Prefix]) -> list[tuple[bool, list[Prefix]]]:
    """The prefixes by family: (is IPv6, prefixes), IPv4 first; without families that have none."""
    both = ((v6, [p for p in prefixes if p.is_v4 != v6]) for v6 in (False, True))
    return [(v6, family) for v6, family in both if family]


def _mask(packed: bytes, length: int) -> bytes:
    bits = len(packed) * 8
    value = int.from_bytes(packed, "big") >> (bits - length) << (bits - length)
    return value.to_bytes(len(packed), "big")


DEFAULT_V4 = Prefix(bytes(4), 0)
DEFAULT_V6 = Prefix(bytes(16), 0)
