"""Real packets: ping, TCP and UDP exchanges, and a capture.

Servers are threads of the test process whose sockets belong to a namespace. They are listening
when the `with` block starts and gone when it ends; there is no process to wait for or to leave
behind.
"""

from __future__ import annotations

import ipaddress
import re
import select
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .wait import last_seen, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .netns import Netns

ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD


# -- ping -----------------------------------------------------------------------------------------


def ping(
    ns: Netns,
    address: str,
    *,
    count: int = 1,
    expect: bool = True,
    timeout: float = 10,
    wait: float = 0.5,
    size: int | None = None,
    source: str | None = None,
) -> None:
    """Assert that echo requests to an address are answered, or that not one is.

    With expect=True, `count` answers in a row must come within `timeout` (a first attempt may be
    lost while a port starts forwarding or an address is still tentative). With expect=False, one
    round of `count` requests gets no answer within `wait`. `size` is the payload, sent with
    fragmentation forbidden.
    """
    command = ["ping", "-n", "-c", str(count), "-i", "0.05", "-W", str(wait)]
    if size is not None:
        command += ["-M", "do", "-s", str(size)]
    if source is not None:
        command += ["-I", source]

    def attempt() -> tuple[int, str]:
        done = ns.exec([*command, address], check=False, timeout=timeout + count + 60)
        received = re.search(r"(\d+) received", done.stdout)
        return int(received[1]) if received else 0, done.stdout + done.stderr

    if not expect:
        answers, shown = attempt()
        assert answers == 0, f"{address} answers in {ns!r}:\n{shown}"
        return
    answers, shown = last_seen(attempt, wanted=lambda seen: seen[0] == count, timeout=timeout)
    if answers != count:
        state = (
            ns.exec(["ip", *what]).stdout for what in (["address"], ["route"], ["-6", "route"])
        )
        raise AssertionError(f"{address} does not answer in {ns!r}:\n{shown}\n{''.join(state)}")


# -- servers --------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running server, and what it saw."""

    address: str
    port: int
    # The address and port of every client, as the server saw them.
    clients: list[tuple[str, int]] = field(default_factory=list)


def _family(address: str) -> int:
    return socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6


@contextmanager
def tcp_server(
    ns: Netns, address: str = "::", port: int = 0, protocol: int = 0
) -> Iterator[Server]:
    """A TCP server that first tells each client the client's address as it sees it, then echoes.

    With `protocol` it is a server of that stream protocol, such as IPPROTO_SCTP.
    """
    with ns.socket(_family(address), socket.SOCK_STREAM, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(listener, address, port)
        listener.listen(64)
        server = Server(address, listener.getsockname()[1])

        def echo(connection: socket.socket, client: str) -> None:
            with connection, suppress(OSError):  # OSError: the client has gone
                connection.settimeout(10)
                connection.sendall(f"{client}\n".encode())
                while data := connection.recv(65536):
                    connection.sendall(data)

        def accept() -> None:
            connection, peer = listener.accept()
            client = _plain(peer[0])
            server.clients.append((client, peer[1]))
            threading.Thread(target=echo, args=(connection, client), daemon=True).start()

        with _in_background(listener, accept):
            yield server


@contextmanager
def udp_server(ns: Netns, address: str = "::", port: int = 0) -> Iterator[Server]:
    """A UDP server: each datagram comes back after a line with the client's address."""
    with ns.socket(_family(address), socket.SOCK_DGRAM) as sock:
        _bind(sock, address, port)
        server = Server(address, sock.getsockname()[1])

        def answer() -> None:
            data, peer = sock.recvfrom(65536)
            client = _plain(peer[0])
            server.clients.append((client, peer[1]))
            with suppress(OSError):  # no way back; the client will say so
                sock.sendto(f"{client}\n".encode() + data, peer)

        with _in_background(sock, answer):
            yield server


def tcp_exchange(
    ns: Netns,
    address: str,
    port: int,
    data: bytes = b"hello",
    *,
    timeout: float = 3,
    source: str | None = None,
    protocol: int = 0,
) -> str:
    """Send data to a `tcp_server` and have it back; the client's address as the server saw it.

    Raises OSError when there is no connection, so that a test may expect that, too.
    """
    with ns.socket(_family(address), socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(timeout)
        if source is not None:
            sock.bind((source, 0))
        sock.connect((address, port))
        with sock.makefile("rb") as stream:
            client = stream.readline()
            sock.sendall(data)
            echoed = stream.read(len(data))
    assert echoed == data, f"sent {data!r}, got {echoed!r}"
    return client.decode().strip()


def reach(ns: Netns, address: str, port: int, **options: Any) -> str:
    """`tcp_exchange`, again while it is in vain: on a busy machine neighbours answer late."""

    def attempt() -> str:
        try:
            return tcp_exchange(ns, address, port, **options)
        except OSError:
            return ""

    return wait_until(attempt, f"{address} port {port} answers in {ns!r}")


def udp_exchange(
    ns: Netns, address: str, port: int, data: bytes = b"hello", *, timeout: float = 3
) -> str:
    """As `tcp_exchange`, with one datagram, repeated every half second; TimeoutError if in vain."""
    with ns.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        deadline = time.monotonic() + timeout
        while True:
            sock.send(data)
            readable, _, _ = select.select([sock], [], [], min(0.5, timeout))
            if readable:
                client, _, echoed = sock.recv(65536).partition(b"\n")
                assert echoed == data, f"sent {data!r}, got {echoed!r}"
                return client.decode()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer from {address}:{port} in {ns!r}")


def _bind(sock: socket.socket, address: str, port: int) -> None:
    if sock.family == socket.AF_INET6:
        # "::" is for both families.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
    sock.bind((address, port))


def _plain(address: str) -> str:
    """Without the ::ffff: of an IPv4 client and without a scope."""
    return address.removeprefix("::ffff:").partition("%")[0]


@contextmanager
def _in_background(sock: socket.socket, handle: Callable[[], None]) -> Iterator[None]:
    """During the block, a thread calls `handle` whenever the socket is readable."""
    stop, stopped = socket.socketpair()
    failures: list[BaseException] = []

    def body() -> None:
        try:
            while stopped not in (ready := select.select([sock, stopped], [], [])[0]):
                assert sock in ready
                handle()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body, name="packets", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # The other end becomes readable, which ends the select.
        stop.close()
        thread.join()
        stopped.close()
    if failures:
        raise failures[0]


# -- addresses between namespaces -----------------------------------------------------------------


def connect(
    host: Netns,
    other: Netns,
    *,
    name: str = "uplink",
    other_name: str = "node",
    host_addresses: tuple[str, ...] = ("198.51.100.1/24", "2001:db8:ffff::1/64"),
    other_addresses: tuple[str, ...] = ("198.51.100.2/24", "2001:db8:ffff::2/64"),
    index: int = 1001,
) -> None:
    """Join two namespaces by a veth pair that works, e.g. a node and a host outside.

    The other one gets no route back: it answers only what comes from the node's own address, so
    that it shows whether masquerading works.
    """
    # Indices that differ, for the reason given in tests/conftest.py:make_host.
    peer = ("peer", "name", other_name, "index", str(index + 1000), "netns", other.name)
    host.ip("link", "add", name, "index", str(index), "type", "veth", *peer)
    for ns, dev, cidrs in ((host, name, host_addresses), (other, other_name, other_addresses)):
        lines = [
            f"address add {cidr} dev {dev}" + (" nodad" if ":" in cidr else "") for cidr in cidrs
        ]
        # Ask a neighbour again soon: the first question comes before the other end listens.
        for version in (4, 6):
            ns.set_sysctl(f"net/ipv{version}/neigh/{dev}/retrans_time_ms", 50)
        ns.ip_batch(*lines, f"link set {dev} up", "link set lo up")
    for cidr in other_addresses:
        ping(host, cidr.partition("/")[0], wait=0.2, timeout=10)
    for ns, dev in ((host, name), (other, other_name)):
        ns.ip("neighbour", "flush", "dev", dev)


# -- capture --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One captured frame."""

    ifname: str
    outgoing: bool
    dst: str
    src: str
    vlan: int | None
    ethertype: int
    payload: bytes = field(repr=False)

    @property
    def arp(self) -> Arp | None:
        """The ARP message in it, if that is what it is."""
        if self.ethertype != ETH_P_ARP or len(self.payload) < 28:
            return None
        operation = int.from_bytes(self.payload[6:8], "big")
        sha, spa, tha, tpa = struct.unpack("!6s4s6s4s", self.payload[8:28])
        return Arp(operation, _mac(sha), _ip(spa), _mac(tha), _ip(tpa))

    @property
    def advertisement(self) -> Advertisement | None:
        """The neighbour advertisement in it, if that is what it is."""
        p = self.payload
        if self.ethertype != ETH_P_IPV6 or len(p) < 64 or p[6] != 58 or p[40] != 136:
            return None
        mac = _mac(p[66:72]) if len(p) >= 72 and p[64] == 2 else ""
        flags = p[44]
        return Advertisement(
            target=_ip(p[48:64]),
            mac=mac,
            destination=_ip(p[24:40]),
            solicited=bool(flags & 0x40),
            override=bool(flags & 0x20),
        )

    @property
    def solicitation(self) -> str | None:
        """The target of a neighbour solicitation (a DAD probe comes from the address ::)."""
        p = self.payload
        if self.ethertype != ETH_P_IPV6 or len(p) < 64 or p[6] != 58 or p[40] != 135:
            return None
        return _ip(p[48:64])


@dataclass(frozen=True)
class Arp:
    """An ARP message; operation 1 asks, 2 answers. Gratuitous: both IP addresses are the same."""

    operation: int
    sender_mac: str
    sender_ip: str
    target_mac: str
    target_ip: str

    @property
    def gratuitous(self) -> bool:
        return self.sender_ip == self.target_ip


@dataclass(frozen=True)
class Advertisement:
    """An IPv6 neighbour advertisement."""

    target: str
    mac: str
    destination: str
    solicited: bool
    override: bool


class Capture:
    """The frames collected so far; complete once the `capture` block has ended."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def arps(self, sender_ip: str | None = None) -> list[Arp]:
        """ARP messages, of one sender or all."""
        found = [frame.arp for frame in self.frames]
        return [a for a in found if a is not None and sender_ip in (None, a.sender_ip)]

    def gratuitous(self, address: str) -> list[Arp]:
        """Gratuitous ARPs for an address."""
        return [arp for arp in self.arps(address) if arp.gratuitous]

    def advertisements(self, target: str | None = None) -> list[Advertisement]:
        """Neighbour advertisements, for one address or all."""
        found = [frame.advertisement for frame in self.frames]
        return [a for a in found if a is not None and target in (None, a.target)]


@contextmanager
def capture(ns: Netns, ifname: str | None = None, *, linger: float = 0.05) -> Iterator[Capture]:
    """Collect every frame seen in a namespace (on one interface) during the block.

    Without `ifname` also the frames of interfaces that appear only later, which is what a plugin
    run needs. After the block, frames on their way are waited for until none has come for `linger`
    seconds.
    """
    captured = Capture()
    with ns.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
        # PACKET_AUXDATA: the kernel takes VLAN tags out of the frame.
        sock.setsockopt(263, 8, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        if ifname is not None:
            sock.bind((ifname, ETH_P_ALL))

        with _in_background(sock, lambda: captured.frames.append(_receive(sock))):
            yield captured
        while select.select([sock], [], [], linger)[0]:
            captured.frames.append(_receive(sock))


def _receive(sock: socket.socket) -> Frame:
    data, ancillary, _, origin = sock.recvmsg(65536, 256)
    vlan = None
    for _level, _type, aux in ancillary:
        status, _, _, _, _, tci, _ = struct.unpack("=IIIHHHH", aux[:20])
        if status & 0x10:  # TP_STATUS_VLAN_VALID
            vlan = tci & 0xFFF
    return Frame(
        ifname=origin[0],
        outgoing=origin[2] == socket.PACKET_OUTGOING,
        dst=_mac(data[:6]),
        src=_mac(data[6:12]),
        vlan=vlan,
        ethertype=int.from_bytes(data[12:14], "big"),
        payload=data[14:],
    )


def _mac(data: bytes) -> str:
    return data.hex(":")


def _ip(data: bytes) -> str:
    return str(ipaddress.ip_address(data))
