"""An address, a prefix or both from a DHCPv6 server (RFC 8415); routes from router advertisements.

DHCPv6 has neither routes nor prefix lengths: both come from routers (RFC 4861, 4191). Their
advertisements are read here, because the kernel would also add addresses that the result of the ADD
does not have.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ...owner import digest
from ...protocol.address import Prefix
from . import answers6, lease6
from . import message6 as m
from .conf import SHORTEST_PREFIX
from .exchange import Closer, NoAnswer, Refused, Settings, ask, now
from .interface import Interface
from .lease6 import Lease6, Router
from .message4 import Malformed

_ADDRESS_WAIT = 5.0  # seconds for duplicate address detection of the link's own address
_LOOK = 0.05
_ROUTER_WAIT = 4.0  # seconds for a router's answer (RFC 4861: at most 0.5, unless it is lost)
_RELEASE_WAIT = 1.0
_IDENTITY = 1  # id of the one IA_NA and of the one IA_PD; each attachment has a DUID
_MOST_REASONS = 4  # of servers whose answers lack something

Judge = Callable[[m.Message], answers6.Worth]


class Binding6:
    """The DHCPv6 client of one interface. `lease` is the last one, which may have expired."""

    family = "IPv6"

    def __init__(
        self,
        interface: Interface,
        client_id: bytes,
        wish: answers6.Wish,
        settings: Settings,
        closer: Closer,
    ) -> None:
        self.interface = interface
        self.lease: Lease6 | None = None
        self._wish = wish
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
                self.lease = lease = self._leased(reply)
                lease.routers, on_link = await looking
                fitting = [p.length for p in on_link if p.contains(lease.address)]
                lease.length = max((n for n in fitting if n >= SHORTEST_PREFIX), default=128)
            finally:
                looking.cancel()

    async def _solicit(self, port: _Port) -> m.Message:
        # With it, a server that has no prefix would lease the address all the same.
        rapid = self._wish.prefix is None
        hint = self.lease
        offer = await port.ask(
            m.SOLICIT,
            *((m.option(m.RAPID_COMMIT),) if rapid else ()),
            *self._request(hint.address if hint else b"", hint.delegated if hint else None),
            judge=lambda message: answers6.worth_of_offer(message, self._wish, rapid),
            explain=self._wish.explain,
        )
        if offer.kind == m.REPLY:
            return offer
        # The server may lease it also if the answer is lost; after a failure it is released.
        self.lease = self._leased(offer)
        reply = await port.ask(
            m.REQUEST,
            m.option(m.SERVER_ID, offer.server),
            *self._request(self.lease.address, self.lease.delegated),
            judge=lambda message: answers6.worth_of_reply(message, self._wish, offer),
            server=offer.server,
            explain=self._wish.explain,
        )
        if not self._wish.is_enough(reply):
            self.lease = hint
            await self._give_back(port, reply)
            raise Refused(self._wish.explain(reply))
        return reply

    async def _give_back(self, port: _Port, reply: m.Message) -> None:
        """Release what a server has granted beside what it has not."""
        address, prefix = self._granted(reply)
        if address is not None or prefix is not None:
            held = lease6.address_of(address), lease6.prefix_of(prefix)
            await port.release(reply.server, *held)

    async def confirm(self, until: float) -> None:
        """After a restart: a renewal, which the server answers if the lease is still valid."""
        await self.renew(until)

    async def renew(self, until: float) -> None:
        """Renew at the server that granted the lease. Raises NoAnswer, Refused, Gone."""
        assert self.lease is not None
        await self._extend(m.RENEW, until, self.lease.server)

    async def rebind(self, until: float) -> None:
        """Renew at any server. Raises NoAnswer, Refused, Gone."""
        await self._extend(m.REBIND, until, b"")

    async def _extend(self, kind: int, until: float, server: bytes) -> None:
        lease = self.lease
        assert lease is not None
        address = Prefix(lease.address, 128) if lease.address else None

        def news(message: m.Message) -> answers6.Renewals:
            return answers6.renewals(message, self._wish, address, lease.delegated)

        async with self._port(until) as port:
            reply = await port.ask(
                kind,
                m.option(m.SERVER_ID, server) if server else b"",
                *self._request(lease.address, lease.delegated),
                judge=lambda message: answers6.worth_of_renewal(message, news(message)),
                server=server,
            )
        if news(reply).lost:
            raise Refused(news(reply).lost)
        self._renewed(lease, reply, news(reply))

    def _renewed(self, old: Lease6, reply: m.Message, news: answers6.Renewals) -> None:
        """Note an extended lease. What the server says nothing of ends when it would have ended."""
        delegated, is_extended = old.delegated, news.address is None or news.address.grant
        if news.prefix is not None:
            if news.prefix.grant is None and not news.prefix.refused and delegated is not None:
                is_extended = None
            elif news.prefix.grant is None:
                delegated = lease6.prefix_of(news.prefix.other)
        bound = lease6.FOREVER if is_extended else old.times.expires
        self.lease = lease6.of_grants(
            reply,
            self._wish.prefix,
            old.address,
            delegated,
            news.grants,
            before=old,
            bound=bound,
        )
        self.lease.length, self.lease.routers = old.length, old.routers

    async def release(self) -> None:
        """Release the leases. Raises Gone, OSError."""
        lease = self.lease
        if lease is not None:
            async with self._port(now() + _RELEASE_WAIT) as port:
                await port.release(lease.server, lease.address, lease.delegated)

    def problems(self) -> list[str]:
        """What is not as requested, for CHECK, although there is a lease."""
        wish = self._wish.prefix
        if wish is None or not wish.required or self.lease is None or self.lease.delegated:
            return []
        return ["the server has taken the delegated prefix back"]

    # --- messages ---

    def _request(self, address: bytes, prefix: Prefix | None) -> list[bytes]:
        """The IA options of a request: of these leases, or of any."""
        options = []
        if self._wish.address:
            options.append(m.ia_na(_IDENTITY, address))
        if self._wish.prefix is not None:
            anything = Prefix(bytes(16), self._wish.prefix.length)
            options.append(m.ia_pd(_IDENTITY, prefix or anything))
        return options

    def _leased(self, message: m.Message) -> Lease6:
        """What a message grants of what was asked for, at least one part."""
        address, prefix = self._granted(message)
        return lease6.of_grants(
            message,
            self._wish.prefix,
            lease6.address_of(address),
            lease6.prefix_of(prefix),
            [grant for grant in (address, prefix) if grant is not None],
            before=self.lease,
        )

    def _granted(self, message: m.Message) -> tuple[m.Grant | None, m.Grant | None]:
        """The address and the prefix of a message that were asked for."""
        address = message.address if self._wish.address else None
        prefix = message.prefix if self._wish.prefix is not None else None
        return (
            address.usable if address is not None else None,
            prefix.usable if prefix is not None else None,
        )

    # --- sockets ---

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
        self,
        kind: int,
        *options: bytes,
        judge: Judge,
        server: bytes = b"",
        explain: Callable[[m.Message], str] | None = None,
    ) -> m.Message:
        """Send a message; return the answer, which `judge` recognises. Raises NoAnswer.

        `server` is the only one whose answer counts. `explain` says what any other message lacks,
        for the text of NoAnswer.
        """
        xid = os.urandom(3)
        begun = now()
        wanted = struct.pack("!3H", m.DNS_SERVERS, m.DOMAINS, m.SOL_MAX_RT)
        lacks: dict[str, None] = {}
        lesser: deque[m.Message] = deque(maxlen=1)

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
            message = self._read(packet, xid, server) if source[1] == m.SERVER_PORT else None
            if message is None:
                return None
            worth = judge(message)
            if worth is answers6.Worth.FULL:
                return message
            if worth is answers6.Worth.LESSER:
                lesser.append(message)
            if explain is not None and len(lacks) < _MOST_REASONS and explain(message):
                lacks[explain(message)] = None
            return None

        until = min(self._until, now() + self._settings.patience)
        try:
            return await ask(
                self._sock, send, accept, until, lesser=lambda: lesser[0] if lesser else None
            )
        except NoAnswer as nothing:
            raise NoAnswer("; ".join(lacks) or str(nothing)) from None

    def _read(self, packet: bytes, xid: bytes, server: bytes) -> m.Message | None:
        """A message of this transaction, from that server or from any (empty)."""
        try:
            message = m.decode(packet, _IDENTITY)
        except Malformed:
            return None
        if (message.xid, message.client) != (xid, self._duid) or not message.server:
            return None
        return message if server in (b"", message.server) else None

    async def release(self, server: bytes, address: bytes, prefix: Prefix | None) -> None:
        """Release an address (packed or empty) and a prefix; a server need not answer."""
        self._until = now() + _RELEASE_WAIT
        held = [m.ia_na(_IDENTITY, address)] if address else []
        if prefix is not None:
            held.append(m.ia_pd(_IDENTITY, prefix))
        named = m.option(m.SERVER_ID, server)
        try:
            await self.ask(m.RELEASE, named, *held, judge=_is_reply, server=server)
        except NoAnswer:
            pass  # it was sent


def _is_reply(message: m.Message) -> answers6.Worth:
    return answers6.Worth.FULL if message.kind == m.REPLY else answers6.Worth.NONE
