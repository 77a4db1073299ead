"""One address from a DHCPv4 server: the messages of RFC 2131, §4.4, as the reference sends them."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ...protocol.address import format_ip, is_global_unicast
from ...protocol.errors import CNIError
from ...stderr import line as log
from . import message4 as m
from .conf import (
    CLASSLESS_ROUTES,
    CLIENT_ID,
    MTU,
    ROUTER,
    STATIC_ROUTES,
    SUBNET_MASK,
    Options,
)
from .exchange import Closer, Lease, Refused, Settings, ask, now
from .interface import Interface

_ETH_P_IP = 0x0800
_ETHER_BROADCAST = b"\xff" * 6
_LEASE_TIME = 3600  # seconds, if the server names none
_MAX_SIZE = (1500).to_bytes(2, "big")
_SMALLEST_MTU = 576
_SHORTEST_PREFIX = 8  # no subnet is larger; 0.0.0.0 as the mask would lead all traffic to the link


class Lease4(Lease):
    """A lease with the MAC of its server."""

    server_mac: bytes


class Binding4:
    """The DHCPv4 client of one interface. `lease` is the last one, which may have expired."""

    family = "IPv4"

    def __init__(
        self,
        interface: Interface,
        client_id: bytes,
        options: Options,
        settings: Settings,
        closer: Closer,
    ) -> None:
        self.interface = interface
        self.lease: Lease4 | None = None
        self._settings = settings
        self._closer = closer
        self._options = {
            m.PARAMETERS: options.requested,
            m.MAX_SIZE: _MAX_SIZE,
            CLIENT_ID: b"\0" + client_id,
            **options.provided,
        }
        # Routes are accepted even if they were not requested; other such options are ignored.
        self._wanted = frozenset((*options.requested, ROUTER, STATIC_ROUTES, CLASSLESS_ROUTES))

    # --- the life of a lease ---

    async def acquire(self, until: float) -> None:
        """DISCOVER, OFFER, REQUEST, ACK: one attempt. Raises NoAnswer, Refused, CNIError, Gone."""
        hint = {m.REQUESTED_IP: self.lease.address} if self.lease is not None else {}
        async with self._port(until) as port:
            offer, _ = await port.ask(m.DISCOVER, hint, wanted=(m.OFFER,))
            wanted = {m.REQUESTED_IP: offer.yiaddr, m.SERVER_ID: offer.server}
            ack, mac = await port.ask(m.REQUEST, wanted, wanted=(m.ACK, m.NAK), server=offer.server)
            # the address cannot be used, so the server gets it back before its lease ends
            if SUBNET_MASK not in ack.options:
                self._send_release(port, ack.yiaddr, ack.server, mac)
                raise CNIError(
                    "DHCP option Subnet Mask not found in DHCPACK",
                    f"the server {format_ip(ack.server)} must send option 1 when it is asked for: "
                    "see `request` and skipDefault in the configuration",
                )
            try:
                self._keep(ack, mac)
            except CNIError:
                self._send_release(port, ack.yiaddr, ack.server, mac)
                raise

    async def confirm(self, until: float) -> None:
        """INIT-REBOOT: is the leased address still valid? Raises NoAnswer, Refused, Gone."""
        assert self.lease is not None
        async with self._port(until) as port:
            await self._extend(port, {m.REQUESTED_IP: self.lease.address}, m.ANY)

    async def renew(self, until: float) -> None:
        """Renew at the granting server, by unicast. Raises NoAnswer, Refused, Gone."""
        assert self.lease is not None
        async with self._port(until) as port:
            port.direct = (self.lease.address, self.lease.server, self.lease.server_mac)
            await self._extend(port, {}, self.lease.address, self.lease.server)

    async def rebind(self, until: float) -> None:
        """Renew at any server. Raises NoAnswer, Refused, Gone."""
        assert self.lease is not None
        async with self._port(until) as port:
            port.direct = (self.lease.address, m.BROADCAST, _ETHER_BROADCAST)
            await self._extend(port, {}, self.lease.address)

    async def release(self) -> None:
        """Release the address; servers do not answer that. Raises Gone, OSError."""
        lease = self.lease
        if lease is not None:
            async with self._port(now()) as port:
                self._send_release(port, lease.address, lease.server, lease.server_mac)

    # --- exchanges ---

    @asynccontextmanager
    async def _port(self, until: float) -> AsyncIterator[_Port]:
        with self.interface.visit() as inside:
            inside.set_up()
            sock = inside.packet_socket()
            # ipvlan links share a MAC: without an address only a broadcast reaches the right one
            broadcast = self._settings.broadcast or inside.link.kind == "ipvlan"
        try:
            flags = m.BROADCAST_FLAG if broadcast else 0
            yield _Port(sock, self.interface, self._options, flags, until, self._settings)
        finally:
            self._closer.close(sock)

    async def _extend(
        self, port: _Port, extra: dict[int, bytes], ciaddr: bytes, server: bytes = b""
    ) -> None:
        assert self.lease is not None
        ack, mac = await port.ask(
            m.REQUEST,
            extra,
            wanted=(m.ACK, m.NAK),
            server=server,
            ciaddr=ciaddr,
            address=self.lease.address,
        )
        self._keep(ack, mac)

    def _keep(self, ack: m.Message, mac: bytes) -> None:
        """Note the lease of an ACK; values that a renewal omits are kept. Raises CNIError."""
        old = self.lease if self.lease and self.lease.address == ack.yiaddr else None
        granted = ack.seconds(m.LEASE_TIME)
        duration = _LEASE_TIME if granted is None else granted
        t1, t2 = ack.seconds(m.T1), ack.seconds(m.T2)
        if t1 is None or t2 is None or not 0 < t1 < t2 < duration:
            # as the reference (docs/spec/dhcp.md); RFC 2131 recommends 0.875 for T2
            t1, t2 = duration // 2, int(duration * 0.85)
        try:
            length = m.mask_length(ack.options[SUBNET_MASK])
        except (KeyError, m.Malformed):
            length = 0
        if length < _SHORTEST_PREFIX:
            if old is None:
                raise CNIError(
                    "DHCP option Subnet Mask not found in DHCPACK",
                    f"option 1 of the server {format_ip(ack.server)} is no mask of a subnet: "
                    f"/{_SHORTEST_PREFIX} is the largest that is accepted",
                )
            length = old.length
        kept = {code: value for code, value in ack.options.items() if code in self._wanted}
        start, endless = now(), duration == m.INFINITE
        self.lease = Lease4(
            ack.yiaddr,
            length,
            ack.server,
            None if endless else start + t1,
            None if endless else start + t2,
            None if endless else start + duration,
            kept or (old.options if old is not None else {}),
            mac,
        )
        self._report_routers(old)
        self._limit_mtu()

    def _report_routers(self, old: Lease4 | None) -> None:
        """Log once which routers are ignored."""
        assert self.lease is not None
        offered = self.lease.options.get(ROUTER, b"")
        if old is None or offered != old.options.get(ROUTER, b""):
            for router in m.addresses(offered):
                if not m.is_router(router, self.lease.prefix):
                    text = f"router {format_ip(router)} of {self.lease.prefix} is ignored"
                    where = f"{self.interface.path}: {self.interface.ifname}"
                    log(f"{where}: {text}: it cannot be a router's address")

    def _limit_mtu(self) -> None:
        value = self.lease.options.get(MTU, b"") if self.lease is not None else b""
        mtu = int.from_bytes(value, "big")
        if len(value) == 2 and mtu >= _SMALLEST_MTU:
            with self.interface.visit() as inside:
                inside.limit_mtu(mtu)

    def _send_release(self, port: _Port, address: bytes, server: bytes, mac: bytes) -> None:
        port.direct = (address, server, mac)
        kept = {CLIENT_ID: self._options[CLIENT_ID], m.SERVER_ID: server}
        port.send(m.encode(m.RELEASE, _xid(), self.interface.hardware, kept, ciaddr=address))


class _Port:
    """An open socket on the interface, for one exchange: all its messages have one xid."""

    def __init__(
        self,
        sock: socket.socket,
        interface: Interface,
        options: dict[int, bytes],
        flags: int,
        until: float,
        settings: Settings,
    ) -> None:
        self.direct = (m.ANY, m.BROADCAST, _ETHER_BROADCAST)  # source, destination, destination MAC
        self._sock = sock
        self._interface = interface
        self._options = options
        self._flags = flags
        self._until = until
        self._settings = settings
        self._xid = _xid()

    async def ask(
        self,
        kind: int,
        extra: dict[int, bytes],
        *,
        wanted: tuple[int, ...],
        server: bytes = b"",
        ciaddr: bytes = m.ANY,
        address: bytes = b"",
    ) -> tuple[m.Message, bytes]:
        """Send a message; return the answer and its source MAC. Raises NoAnswer, Refused (NAK)."""
        mac = self._interface.hardware
        data = m.encode(
            kind, self._xid, mac, {**self._options, **extra}, ciaddr=ciaddr, flags=self._flags
        )

        def accept(packet: bytes, source: tuple[object, ...]) -> tuple[m.Message, bytes] | None:
            try:
                message = m.decode(m.unwrap(packet))
            except m.Malformed:
                return None
            if (message.xid, message.chaddr) != (self._xid, mac) or message.kind not in wanted:
                return None
            if not message.server or server not in (b"", message.server):
                return None
            if message.kind != m.NAK and not _is_for(message, address):
                return None
            sender = source[4]
            return message, sender if isinstance(sender, bytes) else _ETHER_BROADCAST

        until = min(self._until, now() + self._settings.patience)
        answer, sender = await ask(self._sock, lambda: self.send(data), accept, until)
        if answer.kind == m.NAK:
            reason = answer.options.get(m.MESSAGE, b"").decode("ascii", "replace")
            raise Refused(f"NAK from {format_ip(answer.server)}: {reason[:200]!r}")
        return answer, sender

    def send(self, data: bytes) -> None:
        """Send a DHCP message in an IP packet. Raises OSError."""
        source, destination, mac = self.direct
        packet = m.wrap(data, source, destination)
        self._sock.sendto(packet, (self._interface.ifname, _ETH_P_IP, 0, 0, mac))


def _is_for(message: m.Message, address: bytes) -> bool:
    if address:
        return message.yiaddr == address
    return is_global_unicast(message.yiaddr)


def _xid() -> int:
    return int.from_bytes(os.urandom(4), "big")
