"""What attached containers need of the node, and the node has not any more.

An ADD sets bridges up, puts gateways on them, and switches on forwarding. Whatever takes that back
later cuts off the containers that run; the next ADD makes most of it again, without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from shlex import quote
from typing import Any, NamedTuple

from cni.describe import pairs
from cni.kernel import address, link, sysctl
from cni.kernel.link import Link
from cni.kernel.netlink import Netlink
from cni.protocol import config
from cni.protocol.address import InvalidAddress, Prefix, parse_ip

from ..conflist import NetworkList
from . import bridges
from .attached import Attached
from .namespaces import ALIVE, UNKNOWN, Live

_FIRST = "the containers' gateway"


class Lack(NamedTuple):
    """What is not as an ADD made it, for how many containers of a network; `mend` is a command."""

    network: str
    text: str
    mend: str
    containers: int = 0

    def in_words(self) -> str:
        """A sentence."""
        who = "1 container" if self.containers == 1 else f"{self.containers} containers"
        return f"{self.network}: {who}: {self.text}"


class Need(NamedTuple):
    """An attachment that lives, with the object of the plugin that attached it."""

    attached: Attached
    conf: dict[str, Any]

    @property
    def is_on_bridge(self) -> bool:
        return bridges.is_on_bridge(self.conf)

    @property
    def gateway_link(self) -> str:
        """The bridge, or the interface of its VLAN, on which the gateways' addresses are."""
        name, vlan = bridges.name_in(self.conf), config.lookup(self.conf, "vlan")
        return f"{name}.{vlan}" if vlan else name


def is_routed(conf: dict[str, Any]) -> bool:
    """Is the node the gateway of containers by this object of bridge or ptp?"""
    keys = (config.lookup(conf, key) for key in ("isGateway", "isDefaultGateway"))
    return pairs.is_gateway(bridges.plugin_of(conf), *keys)


def of_living(
    known: Iterable[Attached], live: Live, configured: Iterable[NetworkList] = ()
) -> list[Need]:
    """The attachments of bridge and ptp that live; `configured` are the node's networks.

    Of what the Go plugins attached for a runtime without a cache only the reservation is known: it
    counts if the bridge has a port whose other end is in a namespace. Raises NetlinkError.
    """
    networks = list(configured)
    found = [Need(each, bridges.main_conf(each, networks)) for each in known]
    states = [(each, each.attached.state(live)) for each in found if each.conf]
    living = [each for each, state in states if state == ALIVE]
    doubtful = [each for each, state in states if state == UNKNOWN]
    return living + _with_ports(doubtful) if doubtful else living


def _with_ports(needs: list[Need]) -> list[Need]:
    with Netlink() as host:
        every = link.list_all(host)
    # A port whose peer has no number is not in another namespace.
    used = {each.master for each in every if each.peer_nsid is not None and each.peer_nsid >= 0}
    in_use = {each.name for each in every if each.index in used}
    return [each for each in needs if each.is_on_bridge and bridges.name_in(each.conf) in in_use]


def forwarding(needs: Iterable[Need]) -> list[Lack]:
    """What is not forwarded: by the node, or from a link. Raises OSError other than ENOENT."""
    return _counted((each, lack) for each in needs for lack in _forwarding(each))


def _forwarding(need: Need) -> Iterator[tuple[str, str]]:
    if not is_routed(need.conf):
        return
    for v6 in sorted({":" in each for each in need.attached.addresses}):
        through = need.gateway_link if need.is_on_bridge else ""
        for name, who in sysctl.forwarding(v6, through):
            try:
                is_off = sysctl.read(name) == "0"
            except FileNotFoundError:
                continue
            if is_off:
                key = sysctl.shown(name)
                what = "attached containers reach nothing beyond"
                beyond = "the node" if name.count("/") == 2 or "/all/" in name else who
                yield f"{key} is 0: {what} {beyond}", f"sysctl -w {quote(key)}=1"
                break


def links(needs: Iterable[Need]) -> list[Lack]:
    """Bridges and pairs that carry nothing, and gateways that are gone. Raises NetlinkError."""
    needs = list(needs)
    if not needs:
        return []
    with Netlink() as host:
        node = _Node(host)
        return _counted((each, lack) for each in needs for lack in node.lacks_of(each))


class _Node:
    """The links of the node, and the addresses of those that were asked for."""

    def __init__(self, host: Netlink) -> None:
        self._host = host
        self._devices = {device.name: device for device in link.list_all(host)}
        self._addresses: dict[int, set[Prefix]] = {}

    def lacks_of(self, need: Need) -> Iterator[tuple[str, str]]:
        """What is wrong, and what mends it. A bridge that does not exist is another matter."""
        own = bridges.links_of(need.attached, self._devices)
        ports = [each for each in own if each.kind in bridges.PORTS]  # a result names the bridge
        bridge = None
        if need.is_on_bridge:
            bridge = self._devices.get(bridges.name_in(need.conf))
            if bridge is None:
                return
            if not bridge.up:
                yield f"the bridge {bridge.name} is down", f"ip link set {quote(bridge.name)} up"
        for port in ports:
            yield from _port_lacks(port, bridge)
        holder = self._gateway_holder(need, ports)
        if is_routed(need.conf) and holder is not None:
            yield from self._gateway_lacks(need, holder)

    def _gateway_holder(self, need: Need, ports: list[Link]) -> Link | None:
        if need.is_on_bridge:
            return self._devices.get(need.gateway_link)
        return ports[0] if ports else None

    def _gateway_lacks(self, need: Need, holder: Link) -> Iterator[tuple[str, str]]:
        if holder.index not in self._addresses:
            found = address.show(self._host, holder.index)
            self._addresses[holder.index] = {each.prefix for each in found}
        for wanted in _gateways(need):
            if wanted not in self._addresses[holder.index]:
                mend = f"ip address add {wanted} dev {quote(holder.name)}"
                yield f"{holder.name} lacks the address {wanted}, {_FIRST}", mend


def _port_lacks(port: Link, bridge: Link | None) -> Iterator[tuple[str, str]]:
    if not port.up:
        yield f"{port.name}, its link on the node, is down", f"ip link set {quote(port.name)} up"
    elif bridge is not None and bridge.up and port.master == bridge.index and port.blocked:
        # 3: BR_STATE_FORWARDING
        mend = f"bridge link set dev {port.name} state 3"
        yield f"the bridge {bridge.name} forwards nothing through its port {port.name}", mend


def _gateways(need: Need) -> Iterator[Prefix]:
    """The gateways of its result, as addresses of the node."""
    attached = need.attached
    interfaces = (attached.result or {}).get("interfaces")
    for each in attached.entries("ips"):
        index = each.get("interface")
        if isinstance(interfaces, list) and isinstance(index, int) and 0 <= index < len(interfaces):
            entry = interfaces[index]
            # An address of another interface of the result has another gateway.
            if isinstance(entry, dict) and entry.get("name") != attached.ifname:
                continue
        try:
            gateway = parse_ip(str(each.get("gateway") or ""))
            own = Prefix.parse(str(each.get("address")))
        except InvalidAddress:
            continue
        # ptp puts a single address on the node's end, bridge the whole subnet.
        yield Prefix(gateway, own.length if need.is_on_bridge else own.bits)


def _counted(found: Iterable[tuple[Need, tuple[str, str]]]) -> list[Lack]:
    """The same lack of several containers in one."""
    counts: dict[Lack, int] = {}
    for need, (text, mend) in found:
        key = Lack(need.attached.network, text, mend)
        counts[key] = counts.get(key, 0) + 1
    return [each._replace(containers=count) for each, count in counts.items()]
