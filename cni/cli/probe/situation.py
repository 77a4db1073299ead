"""The objects of the checks: the network, the node, the test's containers, a host outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from cni.kernel import route
from cni.kernel.address import show as addresses_of
from cni.kernel.netlink import Netlink
from cni.protocol import config
from cni.protocol.address import parse_ip

from ..conflist import NetworkList, PluginConf
from ..runtime import Runtime
from ..view.attached import Places
from .containers import Container, plugin_of
from .outside import Outside, Uplink
from .row import Row

# These connect a container with links outside of the node, which does not see its packets.
_BESIDE_THE_NODE = {
    "macvlan": "a macvlan hands no packets to its own master",
    "ipvlan": "an ipvlan hands no packets to its own master",
    "vlan": "its packets go to the network behind the master",
    "host-device": "its packets go to the network behind the device",
    "sriov": "its packets go to the network behind the card",
    "tap": "a TAP device sends and receives nothing without its virtual machine",
    "dummy": "a dummy interface sends and receives nothing",
    "loopback": "loopback connects a container with itself only",
}
_SILENT = ("tap", "dummy", "loopback")


@dataclass
class Situation:
    """`first` is attached; `second` may be missing, and `alone` then says why.

    `beyond` are addresses to which the operator wants packets sent, `port` is the published one (0:
    none). In a `waiting` block a signal ends the work. `wrong` are the checks that have failed so
    far, and `not_forwarded` says for each family why the node forwards nothing.
    """

    network: NetworkList
    node: Netlink
    runtime: Runtime
    places: Places
    first: Container
    second: Container | None = None
    alone: str = ""
    outside: Outside | None = None
    uplink: Uplink | None = None
    beyond: tuple[str, ...] = ()
    port: int = 0
    target: int = 0
    capabilities: dict[str, Any] = field(default_factory=dict)
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    wrong: set[tuple[str, int]] = field(default_factory=set)
    not_forwarded: dict[int, str] = field(default_factory=dict)

    @property
    def main(self) -> PluginConf:
        """The plugin that makes the interface: the first; of flannel, the one it delegates to."""
        return main_of(self.network)

    @property
    def kind(self) -> str:
        return plugin_of(self.main.type)

    @property
    def beside_the_node(self) -> str:
        """Why the node has no part in the container's traffic; "" if it has."""
        if self.kind == "macvlan" and self.key("hostShim") is True:
            return ""
        return _BESIDE_THE_NODE.get(self.kind, "")

    @property
    def is_silent(self) -> bool:
        return self.kind in _SILENT

    @property
    def families(self) -> list[int]:
        return self.first.families

    def key(self, name: str, plugin: str = "") -> Any:
        """A key of the main plugin's configuration, or of the first plugin of that name."""
        for each in self.network.plugins:
            if plugin and plugin_of(each.type) == plugin:
                return config.lookup(each.raw, name)
        return None if plugin else config.lookup(self.main.raw, name)

    def has(self, plugin: str) -> bool:
        return any(plugin_of(each.type) == plugin for each in self.network.plugins)

    def is_of_node(self, address: str) -> bool:
        """Is it an address of this node?"""
        wanted = parse_ip(address)
        if wanted[:2] == b"\xfe\x80" and len(wanted) == 16:  # which no route names alone
            return any(each.prefix.ip == wanted for each in addresses_of(self.node))
        return route.is_local(self.node, wanted)

    def stays_here(self, address: str) -> bool:
        """Do packets of the first container to an address of this node go there at once?

        Not those that another host would have to send back.
        """
        hop = self.first.next_hop(address)
        # "": the address is on the container's own link. None: the container has no route.
        return hop == "" or (hop is not None and self.is_of_node(hop))

    def may_ask(self, address: str) -> bool:
        """May packets be sent to the address: has the operator named it, or is it the node's?"""
        wanted = parse_ip(address)
        return any(parse_ip(each) == wanted for each in self.beyond) or self.is_of_node(address)

    def node_address(self, family: int) -> str:
        """An address of the node that the container can send to; "" without one."""
        candidates = [self.first.gateway(family)]
        if self.uplink is not None:
            candidates.append(self.uplink.addresses.get(family, ""))
        if self.outside is not None:
            candidates.append(self.outside.node.get(family, ""))
        # The gateway first: it is the nearest, and has nothing to do with the way out.
        for each in candidates:
            if each and self.is_of_node(each) and self.stays_here(each):
                return each
        return ""


Check = Callable[[Situation], Iterator[Row]]


def main_of(network: NetworkList) -> PluginConf:
    """The plugin that makes the interface."""
    main = network.plugins[0]
    if plugin_of(main.type) == "flannel":
        delegate = config.lookup(main.raw, "delegate")
        conf = delegate if isinstance(delegate, dict) else {}
        kind = config.lookup(conf, "type")
        # flannel's default delegate.
        return main._replace(type=kind if isinstance(kind, str) else "bridge", raw=conf)
    return main


def one_only(network: NetworkList) -> str:
    """Why no second container can be attached on this node; "" if one can."""
    main = main_of(network)
    kind = plugin_of(main.type)
    if kind == "loopback":
        return "loopback connects a container with itself only"
    if kind in ("host-device", "sriov"):
        return "there is one device"
    if kind == "vlan":
        return "a link has one interface of a VLAN"
    if kind == "macvlan" and config.lookup(main.raw, "mode") == "passthru":
        return "in the mode passthru a link has one macvlan"
    ipam = config.lookup(main.raw, "ipam")
    name = config.lookup(ipam, "type") if isinstance(ipam, dict) else None
    if isinstance(name, str) and plugin_of(name) == "static":
        return "the configuration gives every container the same address (static)"
    return ""
