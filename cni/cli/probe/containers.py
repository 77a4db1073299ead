"""Containers of the test: namespaces that are attached and detached as a runtime does it.

Their ids begin with PREFIX, by which `sweep` finds what a test that was killed has left.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, NamedTuple

from cni.describe import catalogue
from cni.kernel import link, uapi
from cni.kernel import netlink as nl
from cni.kernel.errors import KernelError
from cni.kernel.route import show as routes_of
from cni.netns.namespace import Namespace
from cni.netns.throwaway import ThrowAway
from cni.protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from cni.protocol.address import family as family_of
from cni.protocol.errors import CNIError

from .. import session
from ..cache import Attachment, Outcome, outcome
from ..conflist import NetworkList
from ..runtime import Runtime
from ..view import attachments, published
from ..view.attached import Attached, Places
from ..view.namespaces import Live, number_of

PREFIX = "cni-test-"
# The kernel gives lo this index in each namespace.
_LO = 1
# struct rtmsg: family, lengths, tos, table, protocol, scope, type, flags
_RTMSG = struct.Struct("=BBBBBBBBI")
_ATTEMPTS = 2  # of a DEL: a second Ctrl-C interrupts the first


class Address(NamedTuple):
    """An address of a container, and its gateway ("" without one)."""

    address: str
    length: int
    gateway: str


class Container:
    """A namespace with an id; `outcome` is the result of its ADD, None before and after."""

    def __init__(self, network: str, ifname: str, args: tuple[tuple[str, str], ...]) -> None:
        self.space = ThrowAway()
        self.ifname = ifname
        self.outcome: Outcome | None = None
        self.touched = False  # has an ADD begun?
        self.last: Outcome | None = None
        self.attachment = Attachment(
            # Random, so that tests at the same time, and leftovers of a killed one, are told apart.
            container_id=PREFIX + os.urandom(8).hex(),
            network=network,
            ifname=ifname,
            netns=self.space.path,
            args=args,
        )
        link.change(self.namespace.netlink(), _LO, up=True)  # as runtimes do, before the first ADD
        self.links_before = self.links()

    @property
    def namespace(self) -> Namespace:
        return self.space.namespace

    def links(self) -> set[str]:
        return {each.name for each in link.list_all(self.namespace.netlink())}

    def address(self, family: int) -> Address | None:
        """The first address of a family on the container's interface, or None."""
        for each in self.outcome.result.ips if self.outcome is not None else ():
            try:
                prefix = Prefix.parse(each.address)
            except InvalidAddress:
                continue
            if prefix.is_v4 == (family == 4):
                return Address(format_ip(prefix.ip), prefix.length, each.gateway or "")
        return None

    @property
    def families(self) -> list[int]:
        return [family for family in (4, 6) if self.address(family) is not None]

    def link(self) -> link.Link | None:
        """The container's interface; None if it has none of that name."""
        return link.find(self.namespace.netlink(), self.ifname)

    def mtu(self) -> int:
        found = self.link()
        return found.mtu if found is not None else 0

    def next_hop(self, address: str) -> str | None:
        """The gateway of packets to an address: "" if the address is on the link, None without a
        route.
        """
        wanted = parse_ip(address)
        # The kernel answers as it would route: rules and tables of the container count.
        request = _RTMSG.pack(family_of(wanted), 8 * len(wanted), *[0] * 7)
        try:
            sock = self.namespace.netlink()
            answer = sock.get(uapi.RTM_GETROUTE, request + nl.attr(uapi.RTA_DST, wanted))
        except (KernelError, OSError):
            return None
        # Such as blackhole, or the container's own address.
        if nl.unpack(_RTMSG, answer)[7] != uapi.RTN_UNICAST:
            return None
        gateway = nl.attr_map(answer, _RTMSG.size).get(uapi.RTA_GATEWAY, b"")
        return format_ip(gateway) if gateway else ""

    def gateway(self, family: int) -> str:
        """The gateway of the result, else of the default route; "" without one."""
        own = self.address(family)
        if own is not None and own.gateway:
            return own.gateway
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        for each in routes_of(self.namespace.netlink(), kind):
            if each.dst.length == 0 and each.gateway:
                return format_ip(each.gateway)
        return ""

    def attach(self, runtime: Runtime, network: NetworkList, capabilities: dict[str, Any]) -> None:
        """Run ADD. Raises CNIError; then `detach` removes the rest."""
        self.attachment = self.attachment._replace(capability_args=capabilities or None)
        self.touched = True
        self.outcome = self.last = runtime.add(network, self.attachment)

    def detach(self, runtime: Runtime, network: NetworkList) -> None:
        """Run DEL, if there was an ADD. Raises CNIError."""
        if not self.touched:
            return
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                # The last result also if the cache has lost it.
                runtime.delete(network, self.attachment, self.last)
                break
            except CNIError:
                if attempt == _ATTEMPTS:
                    raise
        self.touched, self.outcome = False, None

    def close(self) -> None:
        self.space.close()

    def known(self) -> Attached:
        """The attachment in the form of other commands."""
        what = self.attachment
        result = self.last.as_dict() if self.last is not None else None
        return Attached(
            what.network, what.container_id, what.ifname, netns=what.netns, result=result
        )

    def number(self) -> int | None:
        """The node's number of the namespace."""
        return number_of(self.space.path)


def plugin_of(kind: str) -> str:
    """The plugin of this project that a `type` means, or the type itself."""
    return catalogue.known_as(kind) or kind


def declared(network: NetworkList, capability: str) -> bool:
    """Does any plugin of the network want that capability from the runtime?"""
    return any(capability in plugin.capabilities for plugin in network.plugins)


def mappings(host_port: int, container_port: int) -> dict[str, Any]:
    """What a runtime gives for a published port."""
    return {
        "portMappings": [
            {"hostPort": host_port, "containerPort": container_port, "protocol": protocol}
            for protocol in ("tcp", "udp")
        ]
    }


def free_port(everything: list[Attached]) -> int:
    """A port of the node that no program and no container uses, for TCP and UDP."""
    # Published ports are rules, not sockets, so the kernel may give them to a bind.
    published_now = {port.port for each in everything for port in published.wanted(each)}
    for _ in range(100):
        family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
        with socket.socket(socket.AF_INET) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            # Port 0: the kernel chooses one that no TCP socket uses.
            tcp.bind(("", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("", port))
            except OSError:
                continue
        if port not in published_now:
            return port
    raise CNIError("no port of the node is free", "`cni ports` shows what is published")


def left_by_others(network: NetworkList, places: Places) -> list[Attached]:
    """Attachments of tests that were killed: their namespaces are gone."""
    live = Live()
    return [
        each
        for each in attachments.gather(places, network.name)
        if each.container_id.startswith(PREFIX) and each.is_dead(live)
    ]


def sweep(network: NetworkList, places: Places, runtime: Runtime) -> list[str]:
    """Detach attachments of killed tests; return their ids. Raises CNIError."""
    ids = []
    for each in left_by_others(network, places):
        result = None
        if each.result is not None:
            try:
                result = outcome(each.result, "")
            except CNIError:
                pass
        runtime.delete(network, session.given(each), result)
        ids.append(each.container_id)
    return ids
