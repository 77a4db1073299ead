"""The interface of a lease, in a container's namespace, and the daemon's operations on it.

No descriptor of the namespace is kept between two visits: it would keep a dead container's
namespace, and its links, alive. A visit opens the path, and verifies that it is the same interface
in the same namespace.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import EAGAIN

import msgspec

from ...kernel import address, link, route, syscalls, sysctl
from ...kernel.errors import (
    ExecutorDied,
    LinkNotFound,
    NetlinkError,
    NetnsError,
    NetnsMissing,
    NetnsUnknown,
)
from ...kernel.link import Link
from ...kernel.netlink import Netlink, ignoring_exists
from ...netns import Namespace
from ...protocol.address import Prefix, parse_ip
from ...protocol.config import Route
from ...protocol.errors import CNIError

_ETH_P_IP = 0x0800
_BUFFER = 256 << 10  # bytes: a flood on one link must not take the machine's memory


class Gone(Exception):
    """The namespace or the interface does not exist any more, or is another one."""


class Interface(msgspec.Struct, frozen=True):
    """An interface: the namespace's path and identity (device, inode), name and MAC."""

    path: str
    device: int
    inode: int
    ifname: str
    mac: str

    @property
    def hardware(self) -> bytes:
        return link.parse_mac(self.mac)

    @contextmanager
    def visit(self) -> Iterator[Inside]:
        """Open the namespace during a `with` block.

        Raises Gone, or OSError for a passing problem: this process lacks descriptors or memory.
        """
        with self.visit_namespace() as namespace:
            device = link.find(namespace.netlink(), self.ifname)
            if device is None or device.mac != self.mac:
                raise Gone(f"interface {self.ifname} in {self.path} is gone")
            yield Inside(namespace, device)

    @contextmanager
    def visit_namespace(self) -> Iterator[Namespace]:
        """As `visit`, but the interface may be gone. Raises Gone, OSError."""
        try:
            with Namespace.open(self.path) as namespace:
                if namespace.identity != (self.device, self.inode):
                    raise Gone(f"{self.path} is another namespace now")
                yield namespace
        except NetnsMissing:
            raise Gone(f"namespace {self.path} is gone") from None
        except NetnsUnknown as error:
            raise OSError(EAGAIN, str(error)) from None
        except NetnsError as error:
            raise Gone(str(error)) from None
        except ExecutorDied as error:
            raise OSError(EAGAIN, str(error)) from None


def find(path: str, ifname: str) -> Interface:
    """The interface of an ADD: `ifname` in the namespace at `path`. Raises CNIError."""
    try:
        namespace = Namespace.open(path)
    except NetnsError as error:
        raise CNIError(f"error opening netns: {error}") from None
    with namespace:
        try:
            device = link.get(namespace.netlink(), ifname)
            link.parse_mac(device.mac)
        except LinkNotFound as error:
            raise CNIError(
                f'error looking up "{ifname}": {error}', f"in the namespace {path}"
            ) from None
        except ValueError:
            raise CNIError(
                f'error looking up "{ifname}": it has no Ethernet address',
                "DHCP works on Ethernet interfaces",
            ) from None
        return Interface(path, *namespace.identity, ifname, device.mac)


class Inside:
    """An open namespace, and the interface in it."""

    def __init__(self, namespace: Namespace, device: Link) -> None:
        self.namespace = namespace
        self.link = device

    @property
    def sock(self) -> Netlink:
        return self.namespace.netlink()

    def set_up(self) -> None:
        """Set the link up if it is down. Raises OSError."""
        if not self.link.up:
            link.change(self.sock, self.link.index, up=True)

    def set_down(self) -> None:
        link.change(self.sock, self.link.index, up=False)

    def limit_mtu(self, mtu: int) -> None:
        """Lower the link's MTU, never raise it. Raises OSError."""
        if mtu < self.link.mtu:
            link.change(self.sock, self.link.index, mtu=mtu)

    def take_away(self, prefix: Prefix) -> None:
        """Remove an address; its routes go with it."""
        address.delete(self.sock, self.link.index, prefix)

    def add_address(self, prefix: Prefix) -> None:
        """Add an address, unless the link has it. Raises NetlinkError."""
        try:
            address.add(self.sock, self.link.index, prefix)
        except NetlinkError as error:
            ignoring_exists(error)

    def give(
        self, prefixes: Sequence[Prefix], gateway: str | None, routes: list[Route]
    ) -> list[str]:
        """Set the link up, and add addresses and their routes; return the failures."""
        problems = []
        for prefix in prefixes:
            try:
                self.add_address(prefix)
            except NetlinkError as error:
                problems.append(f"address {prefix}: {error}")
        link.change(self.sock, self.link.index, up=True)
        for wanted in routes:
            via = parse_ip(wanted.gw or gateway or "0.0.0.0")
            entry = route.Route(
                Prefix.parse(wanted.dst),
                self.link.index,
                via if any(via) else b"",
                priority=wanted.priority,
                scope=wanted.scope or route.SCOPE_UNIVERSE,
            )
            try:
                route.add(self.sock, entry, exist_ok=True)
            except NetlinkError as error:
                problems.append(f"route {entry}: {error}")
        return problems

    def packet_socket(self) -> socket.socket:
        """A socket for IP packets on the link that receives only UDP to port 68. Raises OSError."""
        sock = self._socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        try:
            _attach(sock)
            sock.bind((self.link.name, _ETH_P_IP))
        except OSError:
            sock.close()
            raise
        return sock

    def prepare_ipv6(self) -> None:
        """Switch IPv6 on, and the kernel's reading of router advertisements off.

        The kernel would add addresses and routes of its own beside those of the result.
        """
        self.namespace.run(_prepare_ipv6, self.link.name)

    def link_local(self) -> bytes | None:
        """The link's own IPv6 address once duplicate address detection is done."""
        for entry in address.show(self.sock, self.link.index, socket.AF_INET6):
            local = entry.prefix.ip[0] == 0xFE and entry.prefix.ip[1] & 0xC0 == 0x80
            if local and not entry.flags & address.IFA_F_TENTATIVE:
                return entry.prefix.ip
        return None

    def udp6_socket(self, local: bytes, port: int) -> socket.socket:
        """A UDP socket on the link-local address. Raises OSError."""
        sock = self._socket(socket.AF_INET6, socket.SOCK_DGRAM)
        try:
            # the socket of an earlier exchange may still be bound: a
            # thread closes it (exchange.Closer)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            text = socket.inet_ntop(socket.AF_INET6, local)
            sock.bind((text, port, 0, self.link.index))
        except OSError:
            sock.close()
            raise
        return sock

    def icmp6_socket(self, kinds: tuple[int, ...]) -> socket.socket:
        """An ICMPv6 socket on the link that receives only these types. Raises OSError."""
        sock = self._socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        try:
            # a set bit blocks a type (ICMP6_FILTER, RFC 3542 §3.2)
            blocked = [0xFFFFFFFF] * 8
            for kind in kinds:
                blocked[kind >> 5] &= ~(1 << (kind & 31))
            sock.setsockopt(socket.IPPROTO_ICMPV6, 1, struct.pack("=8I", *blocked))
            name = self.link.name.encode("utf-8", "surrogateescape") + b"\0"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            # routers ignore a solicitation with any other hop limit (RFC 4861 §6.1.1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        except OSError:
            sock.close()
            raise
        return sock

    def _socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        inner = self.namespace.socket(family, kind, protocol)
        sock = socket.socket(fileno=inner.detach())
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        return sock


def _prepare_ipv6(ifname: str) -> None:
    sysctl.ensure(f"net/ipv6/conf/{ifname}/accept_ra", "0")
    sysctl.enable_ipv6(ifname)


# udp[dst port] == 68 in an unfragmented IPv4 packet (linux/filter.h: code, jt, jf, k)
_PROGRAM = (
    (0x30, 0, 0, 9),  # ldb protocol
    (0x15, 0, 6, 17),  # UDP?
    (0x28, 0, 0, 6),  # ldh fragment
    (0x45, 4, 0, 0x1FFF),  # a later fragment?
    (0xB1, 0, 0, 0),  # ldxb header length
    (0x48, 0, 0, 2),  # ldh destination port
    (0x15, 0, 1, 68),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)


def _attach(sock: socket.socket) -> None:
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _PROGRAM)
    syscalls.attach_filter(sock.fileno(), program)
