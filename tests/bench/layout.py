"""What the pods of bench-node are attached to."""

from __future__ import annotations

from dataclasses import dataclass

from . import chain
from .measure import Json, Node

FIRST_PORT = 10000


@dataclass(frozen=True)
class Layout:
    """Dual stack, and with nftables: bridge with masquerading, portmap, firewall, tuning.

    Pods are given to the networks in turn. Each network has a bridge, and each pod publishes
    `ports`; with `bandwidth` both of its directions are limited.
    """

    name: str
    pods: tuple[int, ...]
    networks: int = 1
    ports: int = 1
    bandwidth: bool = False

    def bridge(self, number: int) -> str:
        """The bridge of a pod."""
        return f"brlist{number % self.networks}"

    def plugins(self, node: Node, number: int) -> list[Json]:
        """The list of plugins of a pod's network."""
        network = number % self.networks
        plugins = chain.conflist(node, nftables=True)
        bridge, ipam = plugins[0], plugins[0]["ipam"]
        bridge["bridge"] = self.bridge(number)
        v4 = (
            "10.66.0.0/16"
            if self.networks == 1
            else f"10.{80 + network // 256}.{network % 256}.0/24"
        )
        ipam["ranges"] = [[{"subnet": v4}], [{"subnet": f"fd66:0:0:{network:x}::/64"}]]
        ipam["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        if self.bandwidth:
            rates = {"ingressRate": 10**9, "ingressBurst": 10**8}
            rates |= {"egressRate": 10**9, "egressBurst": 10**8}
            plugins.append({"type": "bandwidth", **rates})
        return plugins

    def completed(self, plugin: Json, number: int, result: Json) -> Json:
        """As libcni inserts, for a pod."""
        conf = chain.completed(plugin, 0, result) | {"name": f"list{number % self.networks}"}
        if plugin["type"] == "portmap":
            first = FIRST_PORT + number * self.ports
            conf["runtimeConfig"]["portMappings"] = [
                {"hostPort": port, "containerPort": 80 + port - first, "protocol": "tcp"}
                for port in range(first, first + self.ports)
            ]
        return conf


MANY_PODS = Layout("one network", (10, 225, 450, 900))
MANY_NETWORKS = Layout("200 networks, 5 ports a pod, bandwidth", (10, 1000), 200, 5, bandwidth=True)
QUICK = (
    Layout("one network", (10, 60)),
    Layout("5 networks, 5 ports a pod, bandwidth", (10, 30), 5, 5, bandwidth=True),
)
