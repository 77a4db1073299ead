"""Containers that are cut off, since their link is no port of a bridge any more.

Whoever deletes a bridge leaves its ports: each is a link of the node, with the container at its
other end, and leads nowhere. A new ADD makes the bridge again, and not the ports of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from cni.describe import catalogue, pairs
from cni.kernel import link
from cni.kernel.link import Link
from cni.kernel.netlink import Netlink
from cni.protocol import config
from cni.protocol.errors import CNIError

from .. import gojson
from ..conflist import NetworkList
from .attached import Attached
from .namespaces import Live

# What a person has to do: the bridge had addresses and options that only an ADD makes.
MEND = "restart these containers, so that they are attached again"
PORTS = frozenset({"veth", "netkit"})  # kinds of links


class CutOff(NamedTuple):
    """An attachment, its link on the node, and the bridge, which may not exist any more."""

    attached: Attached
    port: str
    bridge: str
    is_gone: bool

    @property
    def text(self) -> str:
        """What is wrong, for people."""
        if self.is_gone:
            return f"the bridge {self.bridge} is gone"
        return f"{self.port} is no port of the bridge {self.bridge}"


def cut_off(known: Iterable[Attached], live: Live) -> Iterator[CutOff]:
    """Those of the attachments that are alive and cut off. Raises NetlinkError.

    A link is found by its owner, or by the name and MAC in the result of a plugin that marks none.
    """
    alive = [(each, bridge_of(each)) for each in known if not each.is_dead(live)]
    candidates = [(each, bridge) for each, bridge in alive if bridge]
    if not candidates:
        return
    with Netlink() as host:
        devices = {device.name: device for device in link.list_all(host)}
    for each, bridge in candidates:
        loose = [
            device
            for device in links_of(each, devices)
            if device.kind in PORTS and not device.master
        ]
        if loose:
            yield CutOff(each, loose[0].name, bridge, bridge not in devices)


def links_of(each: Attached, devices: dict[str, Link]) -> Iterator[Link]:
    """The attachment's links on the node."""
    for name in dict.fromkeys(each.links):
        if name in devices:
            yield devices[name]
    for entry in each.entries("interfaces"):
        device = devices.get(str(entry.get("name")))
        if device is None or entry.get("sandbox") or device.name in each.links:
            continue
        if device.mac == str(entry.get("mac")).lower():
            yield device


def bridge_of(each: Attached) -> str:
    """The name of the bridge that the attachment's configuration says; "" if it has none."""
    conf = main_conf(each)
    return name_in(conf) if is_on_bridge(conf) else ""


def is_on_bridge(conf: dict[str, Any]) -> bool:
    """Is this an object of a plugin that attaches to a bridge?"""
    return plugin_of(conf) in pairs.ON_BRIDGE


def name_in(conf: dict[str, Any]) -> str:
    """The name of the bridge in an object of the plugin bridge or vxlan."""
    keys = (config.lookup(conf, key) for key in ("bridge", "vni"))
    return pairs.bridge_name(plugin_of(conf), *keys)


def plugin_of(conf: dict[str, Any]) -> str:
    """The plugin of this project that an object is of; "" if it is of none."""
    name = config.lookup(conf, "type")
    return (catalogue.known_as(name) or "") if isinstance(name, str) else ""


def main_conf(each: Attached, configured: Iterable[NetworkList] = ()) -> dict[str, Any]:
    """The object of bridge, vxlan or ptp by which the container was attached; {} without one.

    If nothing was noted at its ADD, that of the `configured` network.
    """
    for text in (each.config, *(kept.config for kept in each.intents)):
        try:
            conf = gojson.decode(text) if isinstance(text, bytes) else text
        except CNIError:
            continue
        plugins = conf.get("plugins") if isinstance(conf, dict) else None
        found = conf_in(plugins if isinstance(plugins, list) else [conf])
        if found:
            return found
    for network in configured:
        if network.name == each.network and not each.config and not each.intents:
            return conf_in([plugin.raw for plugin in network.plugins])
    return {}


def conf_in(plugins: Iterable[Any]) -> dict[str, Any]:
    """The first object of bridge, vxlan or ptp, also one that flannel calls; {} without one."""
    for plugin in plugins:
        one = _delegated(plugin) if isinstance(plugin, dict) else {}
        if plugin_of(one) in pairs.ALL:
            return one
    return {}


def _delegated(plugin: dict[str, Any]) -> dict[str, Any]:
    """What flannel calls, which is bridge if nothing else is said; any other plugin as it is."""
    if plugin_of(plugin) != "flannel":
        return plugin
    delegate = config.lookup(plugin, "delegate")
    # flannel's defaults.
    return {"type": "bridge", "isGateway": True, **(delegate if isinstance(delegate, dict) else {})}


def in_words(found: Iterable[CutOff]) -> list[str]:
    """A sentence for each network and what is wrong in it."""
    counts: dict[tuple[str, str], int] = {}
    for each in found:
        key = (each.attached.network, each.text)
        counts[key] = counts.get(key, 0) + 1
    sentences = []
    for (network, text), count in counts.items():
        who = "1 container is" if count == 1 else f"{count} containers are"
        sentences.append(f"{network}: {who} cut off: {text}")
    return sentences
