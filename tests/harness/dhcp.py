"""The DHCP daemon under test, and real servers to lease from: dnsmasq and Kea.

Servers run in a namespace of their own; what passes on the wire is captured there, and read by
scapy.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .netns import BARE_ENV, Netns, stop
from .packets import ETH_P_IP, ETH_P_IPV6, Capture
from .wait import wait_until

Json = dict[str, Any]

# How fast things happen in tests: the reference's own flags for its test of an exhausted pool.
FAST = ("-timeout", "500ms", "-resendmax", "2s", "--resendtimeout=20s")


class Daemon:
    """`dhcp daemon` on a node."""

    def __init__(
        self, bin_dir: Path, host: Netns, directory: Path, flags: Sequence[str] = FAST
    ) -> None:
        self.host = host
        self.directory = directory
        self.socket = directory / "dhcp.sock"
        self.log = directory / "dhcp.log"
        self.state = directory / "dhcp-leases"
        self._argv = [bin_dir / "dhcp", "daemon", "-socketpath", self.socket, *flags]
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> Daemon:
        """Start it and wait until it answers."""
        with open(self.log, "ab") as log:
            child = self.host.popen(self._argv, stdout=log, stderr=log)
        self.process = child

        def answers() -> bool:
            try:
                return isinstance(self.leases(), list)
            except OSError:
                return False

        wait_until(answers, "the daemon answers", process=child, tell=self.log.read_text)
        return self

    def kill(self) -> None:
        """End it without a chance to clean up."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """End it in good order; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def call(self, method: str, **params: Any) -> Json:
        """One request on the socket, written by hand."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(20)
            sock.connect(str(self.socket))
            sock.sendall(json.dumps({"method": method, "params": params}).encode() + b"\n")
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
        answer: Json = json.loads(data)
        return answer

    def leases(self) -> list[Json]:
        rows: list[Json] = self.call("DHCP.Leases")["result"]
        return rows

    def lease(self) -> Json:
        """The only lease."""
        (row,) = self.leases()
        return row

    def await_state(self, state: str) -> Json:
        """Wait until the only lease is in this state."""

        def there() -> Json | None:
            rows = self.leases()
            return rows[0] if len(rows) == 1 and rows[0]["state"] == state else None

        found = wait_until(
            there,
            f"the lease is {state}",
            tell=lambda: f"{self.leases()}\n{self.log.read_text()}",
        )
        assert found is not None
        return found

    def logged(self, text: str) -> None:
        """Wait for a text in the log."""
        wait_until(
            lambda: text in self.log.read_text(), f"the log has {text!r}", tell=self.log.read_text
        )

    @property
    def files(self) -> list[str]:
        return sorted(p.name for p in self.state.iterdir() if p.suffix == ".json")


class Server:
    """A DHCP server's process in a namespace."""

    def __init__(
        self,
        ns: Netns,
        argv: Sequence[str | Path],
        log: Path,
        ready: str,
        env: dict[str, str] | None = None,
    ) -> None:
        self.ns, self._argv, self._log, self._ready = ns, argv, log, ready
        self._env = {**BARE_ENV, **(env or {})}
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> Server:
        self._log.write_text("")
        with open(self._log, "ab") as log:
            self.process = self.ns.popen(self._argv, stdout=log, stderr=log, env=self._env)
        wait_until(
            lambda: self._ready in self.text,
            f"{self._argv[0]} is ready",
            process=self.process,
            tell=lambda: self.text,
        )
        return self

    @property
    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        assert self.process is not None
        stop(self.process)


def dnsmasq(ns: Netns, directory: Path, ifname: str, *options: str) -> Server:
    """dnsmasq, serving DHCP only; leases last at least two minutes."""
    directory.mkdir(exist_ok=True)
    argv = [
        # --no-ping: else dnsmasq pings an address before it offers it, and waits for an answer.
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--no-ping",
        "--log-facility=-", "--log-dhcp", "--leasefile-ro", f"--interface={ifname}",
        "--bind-dynamic", "--user=root", f"--pid-file={directory}/dnsmasq.pid", *options,
    ]  # fmt: skip
    return Server(ns, argv, directory / "dnsmasq.log", "DHCP, ").start()


def kea4(ns: Netns, directory: Path, ifname: str, **subnet: Any) -> Server:
    """Kea, whose leases may last seconds: `subnet` are keys of its only subnet."""
    subnet.setdefault("subnet", "10.55.0.0/24")
    subnet.setdefault("pools", [{"pool": "10.55.0.50-10.55.0.99"}])
    router = [{"name": "routers", "data": "10.55.0.1"}]
    config = {
        "interfaces-config": {"interfaces": [ifname], "dhcp-socket-type": "raw"},
        "lease-database": {
            "type": "memfile", "persist": True, "name": str(directory / "kea4.csv"),
        },
        "authoritative": True,
        "subnet4": [{"id": 1, "option-data": router, **subnet}],
    }  # fmt: skip
    return _kea(ns, directory, 4, config)


def kea6(ns: Netns, directory: Path, ifname: str, **subnet: Any) -> Server:
    """Kea for IPv6."""
    subnet.setdefault("subnet", "fd55::/64")
    subnet.setdefault("pools", [{"pool": "fd55::50-fd55::99"}])
    config = {
        "interfaces-config": {"interfaces": [ifname]},
        "lease-database": {
            "type": "memfile", "persist": True, "name": str(directory / "kea6.csv"),
        },
        # else it would be written to a directory of the machine
        "server-id": {"type": "LL", "htype": 1, "identifier": "020000005501", "persist": False},
        "subnet6": [{"id": 1, "interface": ifname, **subnet}],
    }  # fmt: skip
    # Kea listens on that address only, and does not wait for it.
    wait_until(lambda: link_local(ns, ifname), f"{ifname} has a link-local address")
    return _kea(ns, directory, 6, config)


def link_local(ns: Netns, ifname: str) -> str:
    """The link's own IPv6 address; empty before duplicate address detection is done."""
    for shown in ns.ip_json("-6", "address", "show", "dev", ifname, "scope", "link", "-tentative"):
        for entry in filter(None, shown["addr_info"]):  # `ip` shows others as empty objects
            return str(entry["local"])
    return ""


def radvd(ns: Netns, directory: Path, ifname: str, body: str) -> Server:
    """A router that advertises what `body` (radvd.conf, within the interface) says."""
    directory.mkdir(exist_ok=True)
    ns.set_sysctl("net/ipv6/conf/all/forwarding", 1)
    path = directory / "radvd.conf"
    path.write_text(f"interface {ifname} {{ AdvSendAdvert on; MinDelayBetweenRAs 3; {body} }};\n")
    argv = ["radvd", "-n", "-m", "stderr", "-d", "1", "-C", path, "-p", directory / "radvd.pid"]
    return Server(ns, argv, directory / "radvd.log", "started").start()


def _kea(ns: Netns, directory: Path, family: int, config: Json) -> Server:
    directory.mkdir(exist_ok=True)
    logger = {
        "name": f"kea-dhcp{family}",
        "output_options": [{"output": "stdout", "flush": True}],
        "severity": "INFO",
    }
    path = directory / f"kea{family}.conf"
    path.write_text(json.dumps({f"Dhcp{family}": {**config, "loggers": [logger]}}))
    return Server(
        ns,
        [f"kea-dhcp{family}", "-c", path],
        directory / f"kea{family}.log",
        f"DHCP{family}_STARTED",
        {"KEA_PIDFILE_DIR": str(directory), "KEA_LOCKFILE_DIR": str(directory)},
    ).start()


# -- the wire -------------------------------------------------------------------------------------


def messages(captured: Capture, kind: str | None = None) -> list[Any]:
    """The captured DHCPv4 messages as scapy packets (of one kind: "discover", "request", …)."""
    from scapy.layers.dhcp import DHCP, DHCPTypes
    from scapy.layers.inet import IP
    from scapy.layers.l2 import Ether

    found = [
        Ether(dst=frame.dst, src=frame.src) / IP(frame.payload)
        for frame in captured.frames
        if frame.ethertype == ETH_P_IP
    ]
    found = [packet for packet in found if DHCP in packet]
    if kind is None:
        return found
    return [p for p in found if DHCPTypes.get(options(p)["message-type"]) == kind]


def messages6(captured: Capture, layer: str) -> list[Any]:
    """The captured DHCPv6 messages of one of scapy's classes: "DHCP6_Solicit", …"""
    from scapy.layers import dhcp6
    from scapy.layers.inet6 import IPv6

    found = [IPv6(frame.payload) for frame in captured.frames if frame.ethertype == ETH_P_IPV6]
    kind = getattr(dhcp6, layer)
    return [packet for packet in found if kind in packet]


def options(packet: Any) -> Json:
    """A message's options by scapy's name (or number)."""
    from scapy.layers.dhcp import DHCP

    fields = [o for o in packet[DHCP].options if isinstance(o, tuple)]
    return {o[0]: o[1] if len(o) == 2 else list(o[1:]) for o in fields}


@contextmanager
def no_server(server: Server) -> Iterator[None]:
    """A time without the server."""
    server.stop()
    yield
    server.start()


# -- a server that does what a test says -----------------------------------------------------------

SERVER_MAC = "02:00:00:00:55:01"


class FakeServer:
    """Answers each message on an interface with what `answers(kind, request)` returns.

    Without a name it answers on all interfaces, also those that are made later. `kind` is scapy's
    name ("discover", "request", …); the answers are frames.
    """

    def __init__(self, ns: Netns, ifname: str, answers: Callable[[str, Any], list[bytes]]) -> None:
        self._sock = ns.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        if ifname:
            self._sock.bind((ifname, ETH_P_IP))
        # So that the thread sees soon that it is to end.
        self._sock.settimeout(0.1)
        self._answers = answers
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        from scapy.layers.dhcp import DHCP, DHCPTypes
        from scapy.layers.l2 import Ether

        while not self._end.is_set():
            try:
                frame, source = self._sock.recvfrom(65536)
                packet = Ether(frame)
            except TimeoutError:
                continue
            if DHCP in packet and packet["BOOTP"].op == 1:
                kind = DHCPTypes[options(packet)["message-type"]]
                for reply in self._answers(kind, packet):
                    self._sock.sendto(reply, (source[0], 0))


def answer(
    request: Any, kind: str, address: str, *, server: str = "10.55.0.2", **more: Any
) -> bytes:
    """A well-formed answer, broadcast: one hour, 255.255.255.0, and scapy's options `more`.

    An option that is None is left out; `xid` and `chaddr` replace the request's.
    """
    from scapy.layers.dhcp import BOOTP, DHCP
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    fields: Json = {"server_id": server, "lease_time": 3600, "subnet_mask": "255.255.255.0"}
    xid = more.pop("xid", request["BOOTP"].xid)
    chaddr = more.pop("chaddr", request["BOOTP"].chaddr)
    fields.update(more)
    chosen = [(name, value) for name, value in fields.items() if value is not None]
    packet = (
        Ether(src=SERVER_MAC, dst="ff:ff:ff:ff:ff:ff")
        / IP(src=server, dst="255.255.255.255")
        / UDP(sport=67, dport=68)
        / BOOTP(op=2, yiaddr=address, xid=xid, chaddr=chaddr)
        / DHCP(options=[("message-type", kind), *chosen, "end"])
    )
    return bytes(packet)


class IdleRouter:
    """Answers each router solicitation on a link at once, with neither a route nor a prefix.

    Without a router the daemon waits for some seconds whether one answers.
    """

    def __init__(self, ns: Netns, ifname: str) -> None:
        self._index = ns.run(socket.if_nametoindex, ifname)
        self._sock = ns.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        group = socket.inet_pton(socket.AF_INET6, "ff02::2") + self._index.to_bytes(4, "little")
        self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        self._sock.settimeout(0.1)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> IdleRouter:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        # hop limit 64, no flags, no lifetimes; the kernel fills in the checksum
        advertisement = bytes((134, 0, 0, 0, 64)) + bytes(11)
        while not self._end.is_set():
            try:
                packet = self._sock.recv(65536)
            except TimeoutError:
                continue
            if packet[0] == 133:
                self._sock.sendto(advertisement, ("ff02::1", 0, 0, self._index))


class FakeServer6:
    """Answers each DHCPv6 message on a link with what `answers(kind, request)` returns.

    `kind` is the message's type as in RFC 8415 (1: SOLICIT), `request` is scapy's; the answers are
    DHCPv6 messages, which go to the client that has asked.
    """

    def __init__(self, ns: Netns, ifname: str, answers: Callable[[int, Any], list[bytes]]) -> None:
        index = ns.run(socket.if_nametoindex, ifname)
        self._sock = ns.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind(("::", 547))
        group = socket.inet_pton(socket.AF_INET6, "ff02::1:2") + index.to_bytes(4, "little")
        self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        # So that the thread sees soon that it is to end.
        self._sock.settimeout(0.1)
        self._answers = answers
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeServer6:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        from scapy.layers.dhcp6 import DHCP6_Solicit

        while not self._end.is_set():
            try:
                data, source = self._sock.recvfrom(65536)
            except TimeoutError:
                continue
            # all client messages have the form of this one
            for reply in self._answers(data[0], DHCP6_Solicit(data)):
                self._sock.sendto(reply, source)


SERVER_DUID = b"\0\x03\0\x01\x02\0\0\0\x55\x01"


def option6(code: int, value: bytes = b"") -> bytes:
    """A DHCPv6 option."""
    return code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


def answer6(
    request: Any, kind: int, *options: bytes, server: bytes = SERVER_DUID, xid: int | None = None
) -> bytes:
    """A server's DHCPv6 message (2: ADVERTISE, 7: REPLY) to the client of a request."""
    number = request.trid if xid is None else xid
    client = bytes(request["DHCP6OptClientId"].duid)
    head = bytes((kind,)) + number.to_bytes(3, "big") + option6(1, client) + option6(2, server)
    return head + b"".join(options)


def ia_na(
    address: str,
    preferred: int = 1800,
    valid: int = 3600,
    *,
    t1: int = 1000,
    t2: int = 1500,
    inner: bytes = b"",
) -> bytes:
    """An IA_NA with an address."""
    packed = socket.inet_pton(socket.AF_INET6, address)
    times = preferred.to_bytes(4, "big") + valid.to_bytes(4, "big")
    return option6(3, _association(t1, t2) + option6(5, packed + times) + inner)


def ia_pd(
    prefix: str,
    preferred: int = 1800,
    valid: int = 3600,
    *,
    t1: int = 1000,
    t2: int = 1500,
    inner: bytes = b"",
) -> bytes:
    """An IA_PD with a prefix (``fd77::/64``)."""
    network, _, length = prefix.partition("/")
    packed = bytes((int(length),)) + socket.inet_pton(socket.AF_INET6, network)
    times = preferred.to_bytes(4, "big") + valid.to_bytes(4, "big")
    return option6(25, _association(t1, t2) + option6(26, times + packed) + inner)


def status6(code: int, text: str = "") -> bytes:
    """A status option, which stands in a message or in an IA."""
    return option6(13, code.to_bytes(2, "big") + text.encode())


def refusal6(ia: int, code: int, text: str = "") -> bytes:
    """An IA (3: IA_NA, 25: IA_PD) without a lease, and why."""
    return option6(ia, _association(0, 0) + status6(code, text))


def _association(t1: int, t2: int) -> bytes:
    return (1).to_bytes(4, "big") + t1.to_bytes(4, "big") + t2.to_bytes(4, "big")
