"""The findings of checks, and what the checks are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cni.cli.conflist import NetworkList
from cni.cli.view import bridges

OK, NOTE, UNKNOWN, WARNING, ERROR = "ok", "note", "unknown", "warning", "error"


class Unseen(Exception):
    """A check cannot be made; the text says why."""


class Finding(NamedTuple):
    """`mend` is a command that puts it right, or shows more; a person may run it as it is.

    The level UNKNOWN is that of a check that cannot be made: nobody knows whether all is well.
    """

    level: str
    area: str
    text: str
    mend: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``-o json``."""
        return self._asdict()


@dataclass
class Situation:
    """What the checks need to know: the networks of this node, and the directories in use."""

    networks: list[NetworkList] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    state_dir: str = "/run/cni"
    cache_dir: str = "/var/lib/cni"
    net_d: str = "/etc/cni/net.d"
    socket: str = "/run/cni/cni.sock"

    def types(self) -> set[str]:
        """The plugins that the networks name, IPAM plugins too."""
        found: set[str] = set()
        for network in self.networks:
            for plugin in network.plugins:
                found.add(plugin.type)
                ipam = plugin.raw.get("ipam")
                if isinstance(ipam, dict) and isinstance(ipam.get("type"), str):
                    found.add(ipam["type"])
        return found - {""}

    def networks_with(self, *names: str) -> list[str]:
        """The networks that have one of these plugins."""
        return [
            network.name
            for network in self.networks
            if any(bridges.plugin_of(plugin.raw) in names for plugin in network.plugins)
        ]

    def paired(self, *, on_bridge: bool = False) -> list[str]:
        """The networks that connect containers to the node by a pair, or by a port of a bridge."""
        confs = {
            network.name: bridges.conf_in(plugin.raw for plugin in network.plugins)
            for network in self.networks
        }
        return [
            name
            for name, conf in confs.items()
            if (bridges.is_on_bridge(conf) if on_bridge else conf)
        ]
