"""Network configurations for the node, as files in /etc/cni/net.d."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.harness import Family

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONF_DIR = "/etc/cni/net.d"
DATA_DIR = "/var/lib/cni/networks"  # host-local's default


@dataclass(frozen=True)
class Network:
    """One network: a main plugin (bridge or ptp) with host-local, and what is chained to it."""

    name: str
    family: Family
    plugin: str = "bridge"
    cni_version: str = "1.0.0"
    # Keys added to the main plugin's configuration, or replaced in it.
    options: Mapping[str, Any] = field(default_factory=dict)
    ipam: Mapping[str, Any] = field(default_factory=dict)
    # Complete configurations of further plugins (portmap, firewall, tuning, …).
    chained: Sequence[Mapping[str, Any]] = ()
    data_dir: str = DATA_DIR

    @property
    def bridge(self) -> str:
        """The bridge's name; for other plugins "", which no link is called."""
        return f"br-{self.name}" if self.plugin == "bridge" else ""

    @property
    def file(self) -> str:
        return f"{CONF_DIR}/10-{self.name}.conflist"

    @property
    def plugins(self) -> set[str]:
        """The types of all plugins that it needs."""
        return {self.plugin, "host-local", *(one["type"] for one in self.chained)}

    def conflist(self) -> str:
        main: dict[str, Any] = {
            "type": self.plugin,
            "ipMasq": True,
            # podman hands over several static addresses by this capability.
            "capabilities": {"ips": True},
            "ipam": {**self.family.host_local(self.data_dir), **self.ipam},
        }
        if self.plugin == "bridge":
            main |= {"bridge": self.bridge, "isGateway": True}
        plugins = [{**main, **self.options}, *self.chained]
        document = {"cniVersion": self.cni_version, "name": self.name, "plugins": plugins}
        return json.dumps(document, indent=2)
