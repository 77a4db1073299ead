"""A node on which containers publish ports: bridge and portmap, as a runtime uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .kernel import iptables_save
from .variants import DUAL, Family

if TYPE_CHECKING:
    from pathlib import Path

    from .netns import Netns
    from .runtime import Runtime

Json = dict[str, Any]

BACKENDS = ("nftables", "iptables")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
TABLE = "cni_hostport"
NET = "net1"
# Addresses of the node: towards outside, and the gateway's.
NODE4, NODE6 = "198.51.100.1", "2001:db8:ffff::1"
OUTSIDE4, OUTSIDE6 = "198.51.100.2", "2001:db8:ffff::2"
GATEWAYS = {"4": "10.22.0.1", "6": "fd00:22::1"}


def tcp(host_port: int, container_port: int = 80, **keys: Any) -> Json:
    return {"hostPort": host_port, "containerPort": container_port, "protocol": "tcp", **keys}


def udp(host_port: int, container_port: int = 53, **keys: Any) -> Json:
    return {**tcp(host_port, container_port), "protocol": "udp", **keys}


class Node:
    """Bridge and portmap on a node with a neighbour outside, as a runtime uses them."""

    def __init__(self, runtime: Runtime, data_dir: Path) -> None:
        self.runtime, self.host, self.data_dir = runtime, runtime.host, data_dir
        self.bridges: dict[str, Json] = {}

    def conf(self, ports: list[Json] | None, version: str = "1.0.0", **keys: Any) -> Json:
        conf = {"cniVersion": version, "name": NET, "type": "portmap", **keys}
        return conf if ports is None else {**conf, "runtimeConfig": {"portMappings": ports}}

    def attach(self, ns: Netns, cid: str = "c1", family: Family = DUAL, **keys: Any) -> Json:
        """The result of the bridge plugin."""
        conf = {
            "cniVersion": "1.0.0",
            "name": NET,
            "isGateway": True,
            # A container that uses its own published port is answered through the port it came
            # from.
            "hairpinMode": True,
            "ipam": family.host_local(self.data_dir),
            **keys,
        }
        result = self.runtime.add("bridge", conf, ns, container_id=cid).result
        ns.ip("link", "set", "lo", "up")
        return result

    def publish(
        self, ns: Netns, ports: list[Json], cid: str = "c1", family: Family = DUAL, **keys: Any
    ) -> Json:
        """Attach a container and publish its ports; what prevResult is for CHECK and DEL."""
        result = self.attach(ns, cid, family)
        conf = self.conf(ports, **keys)
        added = self.runtime.add("portmap", conf, ns, container_id=cid, prev_result=result)
        assert added.result == result
        return result

    def rules(self) -> list[str]:
        """Every rule of a container, of either backend."""
        lines = [line for v in (4, 6) for line in iptables_save(self.host, v) if "CNI-DN-" in line]
        text = self.host.exec(["nft", "list", "ruleset"]).stdout
        return lines + [line.strip() for line in text.splitlines() if " id: c" in line]

    def elements(self, family: str = "ip", name: str = "targets") -> list[str]:
        """The elements of a map, without comments."""
        text = self.host.exec(["nft", "list", "map", family, TABLE, name]).stdout
        words = text.partition("elements = {")[2].partition("}")[0].split(",")
        lines = [" ".join(line.split()) for line in ",".join(words).splitlines()]
        found = []
        for line in lines:
            head, _, rest = line.partition(" comment ")
            if head:
                found.append(f"{head} : {rest.rpartition(' : ')[2].rstrip(', ')}")
        return found
