"""Stand-ins for addresses: the same original has the same one, and subnets keep their structure.

Two addresses that share their first n bits have stand-ins that share exactly n bits (as in
Crypto-PAn, http://dx.doi.org/10.1109/ICNP.2002.1181415): a hash of the bits before a bit decides
whether it is flipped. Each dump has a new salt. The bits that tell the kind of an address stay:
private, shared, loopback, link-local, multicast, unique local. So do the last eight bits of IPv4,
and small numbers at the end of IPv6, by which gateways and ranges are recognised.
"""

from __future__ import annotations

import hashlib

from cni.protocol.address import InvalidAddress, Prefix, format_ip, parse_ip

# Blocks that stay where they are (IANA's special-purpose registries).
_BLOCKS4 = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"),
)
_BLOCKS6 = ("::/8", "64:ff9b::/96", "2000::/3", "fc00::/8", "fd00::/8", "fe80::/10", "ff00::/8")
_WHOLE4 = (b"\x00", b"\x7f", b"\xff")  # first bytes of addresses that are no secret
_TRANSLATED = parse_ip("64:ff9b::")[:12]  # IPv4 addresses in IPv6 (RFC 6052)


class Anonymiser:
    """Addresses and MACs of one dump."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._turned: dict[str, bool] = {}
        self._known: dict[bytes, bytes] = {}
        self._blocks = {
            4: [_bits(Prefix.parse(text).ip)[: Prefix.parse(text).length] for text in _BLOCKS4],
            16: [_bits(Prefix.parse(text).ip)[: Prefix.parse(text).length] for text in _BLOCKS6],
        }

    def hashed(self, text: bytes) -> bytes:
        """32 bytes that stand for `text`."""
        return hashlib.sha256(self._salt + text).digest()

    def name(self, kind: str, text: str) -> str:
        """``<kind>-<8 digits>``."""
        raw = text.encode("utf-8", "surrogateescape")
        return f"{kind}-{self.hashed(kind.encode() + b' ' + raw).hex()[:8]}"

    def text(self, text: str, length: int | None = None) -> str | None:
        """The stand-in for an address, with `length` that of its subnet; None for no address.

        A subnet, whose host bits are all zero, stays one.
        """
        try:
            ip = parse_ip(text)
        except InvalidAddress:
            return None
        made = self.address(ip)
        if length is not None and length <= len(ip) * 8:
            mask = (1 << len(ip) * 8) - (1 << len(ip) * 8 - length)
            number = int.from_bytes(ip, "big")
            if number & mask == number:
                made = (int.from_bytes(made, "big") & mask).to_bytes(len(ip), "big")
        # an IPv4-mapped address is packed as IPv4
        return ("::ffff:" if ":" in text and len(made) == 4 else "") + format_ip(made)

    def address(self, ip: bytes) -> bytes:
        """The stand-in for a packed address."""
        return self._four(ip) if len(ip) == 4 else self._six(ip)

    def _four(self, ip: bytes) -> bytes:
        # 0.0.0.0, loopback, masks and multicast say nothing about the node, and are needed to read
        # rules.
        if ip[:1] in _WHOLE4 or _is_netmask(ip) or ip[0] >= 224:
            return ip
        return self._network(ip[:3], 4) + ip[3:]

    def _six(self, ip: bytes) -> bytes:
        if ip[:12] == _TRANSLATED:
            return ip[:12] + self.address(ip[12:])
        if ip[0] == 0xFF or not any(ip[:15]):
            return ip
        network = ip[:8] if ip[:2] == b"\xfe\x80" else self._network(ip[:8], 16)
        host = ip[8:]
        if not any(host[:6]):
            return network + host
        if host[3:5] == b"\xff\xfe":  # of a MAC (RFC 4291, appendix A)
            mac = self.mac(bytes((host[0] ^ 2,)) + host[1:3] + host[5:])
            return network + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
        return network + self._scrambled(ip, 128)[8:]

    def _network(self, first: bytes, size: int) -> bytes:
        """The stand-in for the first bytes of addresses of that size; many have the same."""
        if first not in self._known:
            whole = first + bytes(size - len(first))
            self._known[first] = self._scrambled(whole, len(first) * 8)[: len(first)]
        return self._known[first]

    def _scrambled(self, ip: bytes, length: int) -> bytes:
        """Bits up to `length` turned, the others as they are."""
        bits = _bits(ip)
        made = "".join(
            str(int(bit) ^ self._is_turned(len(ip), bits[:at]))
            for at, bit in enumerate(bits[:length])
        )
        return int(made + bits[length:], 2).to_bytes(len(ip), "big")

    def _is_turned(self, size: int, before: str) -> bool:
        key = f"{size} {before}"
        if key not in self._turned:
            leads_to_block = any(block.startswith(before) for block in self._blocks[size])
            inside = any(before == block for block in self._blocks[size])
            # The bits that lead to a special block stay, so that its addresses remain in it.
            fixed = leads_to_block and not inside
            self._turned[key] = not fixed and bool(self.hashed(key.encode())[0] & 1)
        return self._turned[key]

    def mac(self, mac: bytes) -> bytes:
        """The stand-in for a hardware address; that of a group, and of nobody, stays."""
        if mac[0] & 1 or not any(mac):
            return mac
        made = self.hashed(b"mac " + mac)[: len(mac)].ljust(len(mac), b"\0")
        # The two bits for groups and for local administration stay.
        return bytes((made[0] & 0xFC | mac[0] & 0x03,)) + made[1:]


def _bits(ip: bytes) -> str:
    return f"{int.from_bytes(ip, 'big'):0{len(ip) * 8}b}"


def _is_netmask(ip: bytes) -> bool:
    return ip[0] == 0xFF and "01" not in _bits(ip)
