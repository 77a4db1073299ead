"""WireGuard links: keys, peers and their allowed addresses (linux/wireguard.h).

A link has a private key, and encrypts for peers, which it knows by their public keys. A packet goes
to the peer whose allowed addresses contain its destination; one that arrives from a peer is dropped
unless they contain its source.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..protocol.address import Prefix
from . import genl, uapi
from . import netlink as nl
from .errors import NetlinkError
from .netlink import Netlink

KIND = "wireguard"
PORT = 51820  # the customary one
KEY_SIZE = 32
# Bytes added to a packet: WireGuard 32, UDP 8, and IP 20 or 40.
OVERHEAD_V4, OVERHEAD_V6 = 60, 80

_U16 = struct.Struct("=H")
_IN4 = struct.Struct("=H2s4s8x")  # struct sockaddr_in; the port is big endian
_IN6 = struct.Struct("=H2s4x16sI")  # struct sockaddr_in6
_PORT = struct.Struct(">H")


class Endpoint(NamedTuple):
    """Where a peer is reached: a packed address, and a UDP port."""

    ip: bytes
    port: int


class Peer(NamedTuple):
    """A peer; keys are 32 bytes. Without `endpoint` it has to begin.

    `keepalive` is in seconds, 0: never. An empty `preshared` means that there is none.
    """

    public: bytes
    endpoint: Endpoint | None = None
    allowed: tuple[Prefix, ...] = ()
    keepalive: int = 0
    preshared: bytes = b""

    def __repr__(self) -> str:
        """Without the preshared key, which must be in no log."""
        return f"Peer({self.public.hex()}, {self.endpoint}, {self.allowed}, {self.keepalive})"


class Device:
    """What the kernel says of a link. `public` is empty while it has no private key."""

    def __init__(self, public: bytes, private: bytes, port: int, peers: dict[bytes, Peer]) -> None:
        self.public = public
        self.port = port
        self.peers = peers  # by public key
        self.private = private  # in no message, log or result

    def has_key(self, private: bytes) -> bool:
        """Is that its private key? Bits that X25519 ignores do not count."""
        return self.private == clamped(private)

    def is_same(self, other: Device) -> bool:
        """Have both the same private key and port?"""
        return (self.private, self.port) == (other.private, other.port)


def clamped(private: bytes) -> bytes:
    """A private key without the bits that X25519 ignores (RFC 7748, 5), as the kernel keeps it."""
    return bytes((private[0] & 248, *private[1:31], private[31] & 127 | 64))


class Control:
    """Requests about WireGuard links, over a generic netlink socket of their namespace.

    Raises NetlinkError; ENOENT when the kernel has no WireGuard.
    """

    def __init__(self, sock: Netlink) -> None:
        self._sock = sock
        self._family = genl.family(sock, KIND)

    def get(self, index: int) -> Device:
        """The link of that index. Raises NetlinkError (ENODEV, EOPNOTSUPP for another kind)."""
        public = private = b""
        port = 0
        peers: dict[bytes, Peer] = {}
        for data in self._sock.dump(self._family, _request(uapi.WG_CMD_GET_DEVICE, index)):
            device = nl.attr_map(data, genl.HEADER.size)
            public = device.get(uapi.WGDEVICE_A_PUBLIC_KEY, public)
            private = device.get(uapi.WGDEVICE_A_PRIVATE_KEY, private)
            port = _number(device.get(uapi.WGDEVICE_A_LISTEN_PORT)) or port
            for _, nested in nl.attrs(device.get(uapi.WGDEVICE_A_PEERS, b"")):
                peer = _peer(nested)
                before = peers.get(peer.public)
                if before is not None:  # a peer that is too long for a message goes on in the next
                    peer = before._replace(allowed=before.allowed + peer.allowed)
                peers[peer.public] = peer
        return Device(public, private, port, peers)

    def set_device(self, index: int, private: bytes, port: int) -> None:
        """Set private key and UDP port. The port is taken while the link is up."""
        request = _request(uapi.WG_CMD_SET_DEVICE, index)
        request += nl.attr(uapi.WGDEVICE_A_PRIVATE_KEY, private)
        self._sock.request(self._family, request + nl.u16(uapi.WGDEVICE_A_LISTEN_PORT, port))

    def put_back(self, index: int, former: Device, *, peers: bool) -> None:
        """Give the link the key and the port that it had, and its peers, too, if `peers`.

        Raises NetlinkError.
        """
        present = self.get(index)
        if not former.is_same(present):
            self.set_device(index, former.private or bytes(KEY_SIZE), former.port)
        if peers:
            self.agree(index, present.peers, former.peers.values())

    def agree(self, index: int, present: Mapping[bytes, Peer], wanted: Iterable[Peer]) -> None:
        """Make the peers `present`, by public key, the `wanted` ones; only differences are sent.

        A peer that is present, and wanted without an endpoint, keeps the one that it has. Raises
        NetlinkError, after all have been tried.
        """
        every = {each.public: each for each in wanted}
        changed = []
        for key, peer in every.items():
            known = present.get(key)
            if known is None or not _is_as_wanted(known, peer):
                changed.append(peer)
        self.set_peers(index, changed, present.keys() - every.keys(), present)

    def set_peers(
        self,
        index: int,
        peers: Iterable[Peer],
        remove: Iterable[bytes] = (),
        present: Mapping[bytes, Peer] = MappingProxyType({}),
    ) -> None:
        """Remove the peers with these public keys, and add or change others.

        A changed peer keeps its session, and no other allowed addresses than the given ones. An
        address that another peer has moves to the one that is named last. If it is `present` with a
        part of the addresses, no packet is lost to these meanwhile. Raises NetlinkError, after all
        have been tried.
        """
        head = _request(uapi.WG_CMD_SET_DEVICE, index)
        nests = [
            nl.attr(uapi.WGPEER_A_PUBLIC_KEY, key)
            + nl.u32(uapi.WGPEER_A_FLAGS, uapi.WGPEER_F_REMOVE_ME)
            for key in remove
        ]
        nests += [_attributes(each, present.get(each.public)) for each in peers]
        requests: list[nl.Message] = [
            (self._family, head + nl.nest(uapi.WGDEVICE_A_PEERS, nl.nest(0, nested)), 0)
            for nested in nests
        ]
        for error in self._sock.batch(requests) if requests else ():
            if error is not None:
                raise NetlinkError(error.errno or 0, error.explanation)


def _request(command: int, index: int) -> bytes:
    return genl.HEADER.pack(command, 1, 0) + nl.u32(uapi.WGDEVICE_A_IFINDEX, index)


def _is_as_wanted(known: Peer, wanted: Peer) -> bool:
    return (
        set(known.allowed) == set(wanted.allowed)
        and (known.keepalive, known.preshared) == (wanted.keepalive, wanted.preshared)
        and wanted.endpoint in (None, known.endpoint)
    )


def _attributes(peer: Peer, known: Peer | None) -> bytes:
    # the kernel removes all addresses before it adds the given ones
    loses = known is None or not set(known.allowed) <= set(peer.allowed)
    parts = [
        nl.attr(uapi.WGPEER_A_PUBLIC_KEY, peer.public),
        nl.u32(uapi.WGPEER_A_FLAGS, uapi.WGPEER_F_REPLACE_ALLOWEDIPS if loses else 0),
        nl.attr(uapi.WGPEER_A_PRESHARED_KEY, peer.preshared or bytes(KEY_SIZE)),
        nl.u16(uapi.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, peer.keepalive),
    ]
    if peer.endpoint is not None:
        parts.append(nl.attr(uapi.WGPEER_A_ENDPOINT, _sockaddr(peer.endpoint)))
    nests = [
        nl.nest(
            0,
            nl.u16(uapi.WGALLOWEDIP_A_FAMILY, each.family),
            nl.attr(uapi.WGALLOWEDIP_A_IPADDR, each.network.ip),
            nl.u8(uapi.WGALLOWEDIP_A_CIDR_MASK, each.length),
        )
        for each in peer.allowed
    ]
    parts.append(nl.nest(uapi.WGPEER_A_ALLOWEDIPS, *nests))
    return b"".join(parts)


def _sockaddr(endpoint: Endpoint) -> bytes:
    port = _PORT.pack(endpoint.port)
    if len(endpoint.ip) == 4:
        return _IN4.pack(AF_INET, port, endpoint.ip)
    return _IN6.pack(AF_INET6, port, endpoint.ip, 0)


def _peer(data: bytes) -> Peer:
    attributes = nl.attr_map(data)
    preshared = attributes.get(uapi.WGPEER_A_PRESHARED_KEY, b"")
    allowed = []
    for _, nested in nl.attrs(attributes.get(uapi.WGPEER_A_ALLOWEDIPS, b"")):
        parts = nl.attr_map(nested)
        ip = parts.get(uapi.WGALLOWEDIP_A_IPADDR, b"")
        allowed.append(Prefix(ip, nl.get_byte(parts.get(uapi.WGALLOWEDIP_A_CIDR_MASK))))
    return Peer(
        attributes.get(uapi.WGPEER_A_PUBLIC_KEY, b""),
        _endpoint(attributes.get(uapi.WGPEER_A_ENDPOINT, b"")),
        tuple(allowed),
        _number(attributes.get(uapi.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL)),
        preshared if any(preshared) else b"",
    )


def _endpoint(raw: bytes) -> Endpoint | None:
    for layout, family in ((_IN4, AF_INET), (_IN6, AF_INET6)):
        if len(raw) == layout.size and _number(raw[:2]) == family:
            _, port, ip = layout.unpack(raw)[:3]
            return Endpoint(ip, int(_PORT.unpack(port)[0]))
    return None


def _number(raw: bytes | None) -> int:
    return int(_U16.unpack_from(raw)[0]) if raw and len(raw) >= 2 else 0
