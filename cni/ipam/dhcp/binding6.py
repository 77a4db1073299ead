"""One address from a DHCPv6 server (RFC 8415), and routes from router advertisements.

DHCPv6 has neither routes nor prefix lengths: both come from routers (RFC 4861, 4191). Their
advertisements are read here, because the kernel would also add addresses that the result of the ADD
does not have.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from ...owner import digest
from ...protocol.address import Prefix, is_global_unicast
from . import message6 as m
from .exchange import Closer, Lease, NoAnswer, Refused, Settings, ask, now
from .interface import Interface
from .message4 import Malformed

_ADDRESS_WAIT = 5.0  # seconds for duplicate address detection of the link's own address
_LOOK = 0.05
_ROUTER_WAIT = 4.0  # seconds for a router's answer (RFC 4861: at most 0.5, unless it is lost)
_RELEASE_WAIT = 1.0
_IDENTITY = 1  # id of the one IA; each attachment has a DUID
# as RFC 8415 §21.4 recommends to servers
_LIFETIME_SHARE = (0.5, 0.8)  # T1 and T2 as shares of the preferred lifetime


class Router(msgspec.Struct):
    """A router on the link, by its link-local address; prefixes as text."""

    address: bytes
    is_default: bool
    routes: list[str]


class Lease6(Lease):
    """A lease, with the routers that answered when it was acquired."""

    routers: list[Router] = []


class Binding6:
    """The DHCPv6 client of one interface. `lease` is the last one, which may have expired."""

    family = "IPv6"

    def __init__(
        self, interface: Interface, client_id: bytes, settings: Settings, closer: Closer
    ) -> None:
        self.interface = interface
        self.lease: Lease6 | None = None
        self._settings = settings
        self._closer = closer
        # type 4: a UUID (RFC 6355), always the same for this attachment
        name = client_id.decode("utf-8", "surrogateescape")
        self._duid = b"\0\x04" + bytes.fromhex(digest(name)[:32])

    # --- the life of a lease ---

    async def acquire(self, until: float) -> None:
        """SOLICIT, and REQUEST unless the server commits at once: one attempt.

        Raises NoAnswer, Refused, Gone.
        """
        async with self._port(until, prepare=True) as port:
            looking = asyncio.create_task(self._routers())
            try:
                reply = await self._solicit(port)
                lease = self._keep(reply, 128, [])
                lease.routers, on_link = await looking
                fitting = [p.length for p in on_link if p.contains(lease.address)]
                lease.length = max(fitting, default=128)
            finally:
                looking.cancel()

    async def _solicit(self, port: _Port) -> m.Message:
        hint = self.lease.address if self.lease is not None else b""
        offer = await port.ask(m.SOLICIT, m.option(m.RAPID_COMMIT), m.ia(_IDENTITY, hint))
        if offer.kind == m.REPLY:
            return offer
        return await port.ask(
            m.REQUEST,
            m.option(m.SERVER_ID, offer.server),
            m.ia(_IDENTITY, offer.grants[0].address),
            server=offer.server,
        )

    async def confirm(self, until: float) -> None:
        """After a restart: a renewal, which the server answers if the address is still leased."""
        await self.renew(until)

    async def renew(self, until: float) -> None:
        """Renew at the server that granted the lease. Raises NoAnswer, Refused, Gone."""
        assert self.lease is not None
        await self._extend(m.RENEW, until, self.lease.server)

    async def rebind(self, until: float) -> None:
        """Renew at any server. Raises NoAnswer, Refused, Gone."""
        await self._extend(m.REBIND, until, b"")

    async def _extend(self, kind: int, until: float, server: bytes) -> None:
        assert self.lease is not None
        address = self.lease.address
        named = m.option(m.SERVER_ID, server) if server else b""
        async with self._port(until) as port:
            reply = await port.ask(
                kind, named, m.ia(_IDENTITY, address), server=server, address=address
            )
            self._keep(reply, self.lease.length, self.lease.routers)

    async def release(self) -> None:
        """Release the address. Raises Gone, OSError."""
        lease = self.lease
        if lease is None:
            return
        async with self._port(now() + _RELEASE_WAIT) as port:
            named = m.option(m.SERVER_ID, lease.server)
            try:
                await port.ask(m.RELEASE, named, m.ia(_IDENTITY, lease.address))
            except (NoAnswer, Refused):
                pass  # it was sent

    # --- exchanges ---

    def _keep(self, reply: m.Message, length: int, routers: list[Router]) -> Lease6:
        grant = reply.grants[0]
        base = grant.preferred or grant.valid
        t1, t2 = grant.t1, grant.t2
        if not 0 < t1 <= t2 <= grant.valid:
            t1, t2 = (int(base * share) for share in _LIFETIME_SHARE)
        start, endless = now(), grant.valid == m.INFINITE
        before = self.lease if self.lease and self.lease.address == grant.address else None
        old = before.options if before is not None else {}
        self.lease = Lease6(
            grant.address,
            length,
            reply.server,
            None if endless or base == m.INFINITE else start + t1,
            None if endless or base == m.INFINITE else start + t2,
            None if endless else start + grant.valid,
            reply.options or old,
            routers,
        )
        return self.lease

    @asynccontextmanager
    async def _port(self, until: float, *, prepare: bool = False) -> AsyncIterator[_Port]:
        with self.interface.visit() as inside:
            if prepare:
                inside.prepare_ipv6()
            inside.set_up()
            index = inside.link.index
        sock = await self._socket()
        try:
            yield _Port(sock, self._duid, index, until, self._settings)
        finally:
            self._closer.close(sock)

    async def _socket(self) -> socket.socket:
        """A socket on the link-local address, once the link has one. Raises OSError."""
        deadline = now() + _ADDRESS_WAIT
        while True:
            with self.interface.visit() as inside:
                local = inside.link_local()
                if local is not None:
                    return inside.udp6_socket(local, m.CLIENT_PORT)
            if now() >= deadline:
                # 99 is EADDRNOTAVAIL
                raise OSError(99, f"{self.interface.ifname} has no IPv6 link-local address")
            await asyncio.sleep(_LOOK)

    async def _routers(self) -> tuple[list[Router], list[Prefix]]:
        """The router that answers, and the prefixes that it advertises as on the link.

        Both are empty if no router answers.
        """
        with self.interface.visit() as inside:
            sock = inside.icmp6_socket((m.ROUTER_ADVERTISEMENT,))
            data, index = m.solicitation(self.interface.hardware), inside.link.index
        try:
            return await _ask_router(sock, data, index)
        except NoAnswer:
            return [], []
        finally:
            self._closer.close(sock)


async def _ask_router(
    sock: socket.socket, data: bytes, index: int
) -> tuple[list[Router], list[Prefix]]:
    def accept(packet: bytes, source: tuple[str, int]) -> tuple[bytes, m.Advertisement] | None:
        packed = socket.inet_pton(socket.AF_INET6, source[0].partition("%")[0])
        # routers do not forward packets from link-local addresses: it comes from this link
        if packed[0] != 0xFE or packed[1] & 0xC0 != 0x80:
            return None
        try:
            return packed, m.advertisement(packet)
        except Malformed:
            return None

    address, advertised = await ask(
        sock, lambda: sock.sendto(data, (m.ROUTERS, 0, 0, index)), accept, now() + _ROUTER_WAIT
    )
    router = Router(address, advertised.is_default, [str(p) for p in advertised.routes])
    return [router], advertised.on_link


class _Port:
    """An open socket on the interface, for one exchange."""

    def __init__(
        self, sock: socket.socket, duid: bytes, index: int, until: float, settings: Settings
    ) -> None:
        self._sock = sock
        self._duid = duid
        self._index = index
        self._until = until
        self._settings = settings

    async def ask(
        self, kind: int, *options: bytes, server: bytes = b"", address: bytes = b""
    ) -> m.Message:
        """Send a message; return the answer. Raises NoAnswer, Refused."""
        xid = os.urandom(3)
        begun = now()
        wanted = struct.pack("!3H", m.DNS_SERVERS, m.DOMAINS, m.SOL_MAX_RT)

        def send() -> None:
            elapsed = min(int((now() - begun) * 100), 0xFFFF).to_bytes(2, "big")
            data = m.encode(
                kind,
                xid,
                m.option(m.CLIENT_ID, self._duid),
                *options,
                m.option(m.ORO, wanted),
                m.option(m.ELAPSED, elapsed),
            )
            self._sock.sendto(data, (m.SERVERS, m.SERVER_PORT, 0, self._index))

        def accept(packet: bytes, source: tuple[object, ...]) -> m.Message | None:
            if source[1] != m.SERVER_PORT:
                return None
            try:
                message = m.decode(packet, _IDENTITY)
            except Malformed:
                return None
            if (message.xid, message.client) != (xid, self._duid) or not message.server:
                return None
            if server not in (b"", message.server):
                return None
            return message if _is_answer(kind, message, address) else None

        until = min(self._until, now() + self._settings.patience)
        answer = await ask(self._sock, send, accept, until)
        if kind != m.RELEASE and not answer.grants:
            raise Refused(f"status {answer.status}: {answer.reason!r}")
        return answer


def _is_answer(kind: int, message: m.Message, address: bytes) -> bool:
    """Does a server's message answer a message of this kind?"""
    if kind == m.SOLICIT:
        rapid = message.kind == m.REPLY and message.rapid
        if not rapid and message.kind != m.ADVERTISE:
            return False
    elif message.kind != m.REPLY:
        return False
    if kind == m.RELEASE:
        return True
    if address:  # a renewal's answer is for this address, or refuses
        return any(g.address == address for g in message.grants) or message.status == m.NO_BINDING
    return bool(message.status) or any(is_global_unicast(g.address) for g in message.grants)
