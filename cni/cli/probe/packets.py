"""ICMP, TCP and UDP between namespaces, from this process: over sockets that were made there.

No program is needed on the node. Raises OSError only where a socket cannot be made; what happens
to packets is told as a value.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from time import monotonic
from typing import NamedTuple

from cni.netns.namespace import Namespace

_ECHO_REQUEST, _ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_HEADERS = {4: 28, 6: 48}  # of IP and ICMP
_LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
# linux/in.h, linux/in6.h: the option that sets DF, its value, and the one that tells of errors
_MTU_DISCOVER, _DO, _RECVERR = {4: 10, 6: 23}, 2, {4: 11, 6: 25}
_TOKEN = 16  # bytes that tell our packets from others
_SOCKET = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Answer(NamedTuple):
    """The answer to packets. `reason` says why there was none; `source` is the client's address in
    the server's view.

    `lost` is the number of unanswered packets, `seconds` the time until the first answer.
    """

    arrived: bool
    reason: str = ""
    source: str = ""
    lost: int = 0
    seconds: float = 0.0


def family_of(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def made_in(
    namespace: Namespace | None, family: int, kind: int, protocol: int = 0
) -> socket.socket:
    """A socket of a namespace; None is the node's, which this process is in. Raises OSError."""
    if namespace is None:
        return socket.socket(_AF[family], kind, protocol)
    made = namespace.socket(_AF[family], kind, protocol)
    return socket.socket(_AF[family], kind, protocol, made.detach())


def ping(
    namespace: Namespace | None,
    address: str,
    *,
    size: int = 84,
    whole: bool = False,
    timeout: float = 3.0,
    interval: float = 0.2,
) -> Answer:
    """Send echo requests, until one is answered or `timeout` (seconds) has passed.

    `size` is that of the whole packet in bytes; `whole` forbids to fragment it.
    """
    family = family_of(address)
    with made_in(namespace, family, socket.SOCK_RAW, _ICMP[family]) as sock:
        return _Ping(sock, family, address, size, whole).run(timeout, interval)


class _Ping:
    def __init__(
        self, sock: socket.socket, family: int, address: str, size: int, whole: bool
    ) -> None:
        self._sock, self._family = sock, family
        self._identifier = int.from_bytes(os.urandom(2), "big")
        self._payload = os.urandom(max(size - _HEADERS[family], _TOKEN))
        sock.setblocking(False)
        # ICMP errors (too large, unreachable, prohibited) then become errors of this socket.
        sock.setsockopt(_LEVEL[family], _RECVERR[family], 1)
        # 0: fragment what is too large
        sock.setsockopt(_LEVEL[family], _MTU_DISCOVER[family], _DO if whole else 0)
        # Room for packets of the largest MTU (64 KiB).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        self._address = address
        self._reason = ""

    def run(self, timeout: float, interval: float) -> Answer:
        start = monotonic()
        sent = 0
        while monotonic() < start + timeout:
            if self._send(sent):
                sent += 1
            elif self._reason == "too large":
                return Answer(False, self._reason)
            if self._is_answered(min(monotonic() + interval, start + timeout)):
                return Answer(True, "", "", max(sent - 1, 0), monotonic() - start)
            if self._reason == "too large":
                return Answer(False, self._reason)
        return Answer(False, self._reason or "no answer", "", sent, monotonic() - start)

    def _send(self, number: int) -> bool:
        kind = _ECHO_REQUEST[self._family]
        head = struct.pack("!BBHHH", kind, 0, 0, self._identifier, number & 0xFFFF)
        if self._family == 4:  # of IPv6 the kernel computes it
            checksum = _checksum(head + self._payload)
            head = struct.pack("!BBHHH", kind, 0, checksum, self._identifier, number & 0xFFFF)
        try:
            self._sock.sendto(head + self._payload, (self._address, 0))
        except OSError as error:
            self._note(error)
            return False
        return True

    def _note(self, error: OSError) -> None:
        self._reason = why(error)

    def _is_answered(self, until: float) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while (left := until - monotonic()) > 0:
            if not poll.poll(left * 1000):
                return False
            try:
                data = self._sock.recv(1 << 17)
            except BlockingIOError:
                self._drain_errors()
                continue
            except OSError as error:
                self._note(error)
                self._drain_errors()
                if self._reason == "too large":
                    return False
                continue
            if self._is_ours(data):
                return True
        return False

    def _drain_errors(self) -> None:
        """Else poll(2) reports them for ever."""
        try:
            while True:
                self._sock.recvmsg(1 << 17, 512, socket.MSG_ERRQUEUE)
        except OSError:
            pass

    def _is_ours(self, data: bytes) -> bool:
        if self._family == 4:
            # With IPv4 a raw socket gets the IP header as well, with IPv6 it does not.
            data = data[(data[0] & 15) * 4 :] if data else b""
        if len(data) < 8:
            return False
        kind, _, _, identifier, _ = struct.unpack_from("!BBHHH", data)
        return (
            kind == _ECHO_REPLY[self._family]
            and identifier == self._identifier
            and data[8:] == self._payload
        )


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def why(error: OSError) -> str:
    """The meaning of an error for a packet's path, in words."""
    from errno import EACCES, ECONNREFUSED, EHOSTUNREACH, EMSGSIZE, ENETUNREACH, EPERM

    texts = {
        EMSGSIZE: "too large",
        ECONNREFUSED: "refused",
        EHOSTUNREACH: "the host is unreachable",
        ENETUNREACH: "there is no route",
        EACCES: "prohibited by a packet filter",
        EPERM: "dropped by a packet filter here",
    }
    return texts.get(error.errno or 0, (error.strerror or str(error)).lower())


class Server:
    """A service for TCP or UDP in a namespace, which answers a token with the same."""

    def __init__(self, namespace: Namespace | None, family: int, protocol: str, port: int) -> None:
        self.protocol, self.family = protocol, family
        self.sock = made_in(namespace, family, _SOCKET[protocol])
        try:
            self.sock.setblocking(False)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == 6:
                # Otherwise it would also take the port for IPv4.
                self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.sock.bind(("", port))
            if protocol == "tcp":
                self.sock.listen()
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def asked(
        self, client: Namespace | None, address: str, port: int, timeout: float = 3.0
    ) -> Answer:
        """Send a request to this service, from a namespace, to that address and port.

        An answer of another service does not count as an arrival.
        """
        asking = _AskTcp if self.protocol == "tcp" else _AskUdp
        with made_in(client, self.family, _SOCKET[self.protocol]) as sock:
            sock.setblocking(False)
            return asking(self.sock, sock, (address, port)).run(timeout)


class _Ask:
    """One exchange: both ends are sockets of this process."""

    def __init__(self, server: socket.socket, client: socket.socket, to: tuple[str, int]) -> None:
        self.server, self.client, self.to = server, client, to
        self.token = os.urandom(_TOKEN)
        self.source = ""
        self.reason = ""

    def run(self, timeout: float) -> Answer:
        start = monotonic()
        try:
            self.begin()
            while monotonic() < start + timeout:
                if self.step(min(0.25, start + timeout - monotonic())):
                    return Answer(True, "", self.source, 0, monotonic() - start)
        except OSError as error:
            self.reason = why(error)
        finally:
            self.end()
        if self.source and not self.reason:
            return Answer(False, "the answer does not come back", self.source)
        return Answer(False, self.reason or "no answer", self.source)

    def begin(self) -> None:
        raise NotImplementedError

    def step(self, seconds: float) -> bool:
        """Wait for events, at most `seconds`; has the answer arrived?"""
        raise NotImplementedError

    def end(self) -> None:
        """Close what was made."""


class _AskUdp(_Ask):
    def begin(self) -> None:
        self.client.connect(self.to)

    def step(self, seconds: float) -> bool:
        self.client.send(self.token)  # again each time: one may be lost
        poll = select.poll()
        poll.register(self.server, select.POLLIN)
        poll.register(self.client, select.POLLIN)
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                if fd == self.client.fileno():
                    if self.client.recv(256) == self.token:
                        return True
                    continue
                data, peer = self.server.recvfrom(256)
                if data == self.token:
                    self.source = peer[0]
                    self.server.sendto(data, peer)
        return False


class _AskTcp(_Ask):
    def begin(self) -> None:
        self.accepted: list[socket.socket] = []
        error = self.client.connect_ex(self.to)
        from errno import EINPROGRESS

        if error not in (0, EINPROGRESS):
            raise OSError(error, os.strerror(error))
        self.sent = False

    def step(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.server, select.POLLIN)
        poll.register(self.client, select.POLLIN | (0 if self.sent else select.POLLOUT))
        for each in self.accepted:
            poll.register(each, select.POLLIN)
        for fd, events in poll.poll(seconds * 1000):
            if fd == self.server.fileno():
                made, peer = self.server.accept()
                # Anybody may connect to the port; a peer that sends nothing must not hold up the
                # test.
                made.setblocking(False)
                self.accepted.append(made)
                del peer
            elif fd == self.client.fileno():
                if self._client(events):
                    return True
            else:
                self._answer(next(each for each in self.accepted if each.fileno() == fd))
        return False

    def _client(self, events: int) -> bool:
        # The outcome of connect(2) on a socket that does not block.
        error = self.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        if events & select.POLLOUT and not self.sent:
            self.client.send(self.token)
            self.sent = True
        if events & select.POLLIN:
            data = self.client.recv(256)
            # Both: it is our token, and our server has seen it. An echo service would send it, too.
            if data == self.token and self.source:
                return True
            self.reason = "something else answers there"
            raise ConnectionError(self.reason)
        return False

    def _answer(self, each: socket.socket) -> None:
        try:
            data = each.recv(256)
            if data == self.token:
                self.source = each.getpeername()[0]
                each.send(data)
                return
        except OSError:
            pass  # a connection of somebody else, or an earlier one that ends
        self.accepted.remove(each)
        each.close()

    def end(self) -> None:
        for each in self.accepted:
            each.close()
