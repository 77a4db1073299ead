"""What the firewall plugin lets through, seen with real packets, for every backend and family.

The node's firewall forwards nothing: iptables' FORWARD has the policy drop; nftables' table of the
plugin has (the administrator gave it that); firewalld rejects what no zone allows.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    DUAL,
    Netns,
    Runtime,
    connect,
    link,
    ping,
    port,
    reach,
    tcp_exchange,
    tcp_server,
)
from tests.harness.firewalld import Firewalld

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Json = dict[str, Any]
OUTSIDE = ("198.51.100.2", "2001:db8:ffff::2")
BACKENDS = ("iptables", "nftables", "firewalld")
QUICK = 0.5  # seconds after which a connection that is dropped is given up


@dataclass
class Node:
    """A node whose firewall forwards nothing, and the backend that opens it."""

    runtime: Runtime
    backend: str
    data_dir: Path

    @property
    def host(self) -> Netns:
        return self.runtime.host

    def close_forwarding(self) -> None:
        """Nothing passes that nobody accepts."""
        if self.backend == "nftables":
            hook = "{ type filter hook forward priority filter; policy drop; }"
            self.host.exec(["nft", "add table inet cni_firewall"])
            self.host.exec(["nft", f"add chain inet cni_firewall forward {hook}"])
        elif self.backend == "iptables":
            for tool in ("iptables", "ip6tables"):
                self.host.exec([tool, "-P", "FORWARD", "DROP"])

    def network(self, number: int = 1, **keys: Any) -> Json:
        """A conflist: a bridge, and the firewall with `keys`."""
        subnets = [f"10.{number}.0.0/24", f"fd00:{number}::/64"]
        ipam = {**DUAL.host_local(self.data_dir), "ranges": [[{"subnet": s}] for s in subnets]}
        bridge = {"type": "bridge", "bridge": f"br{number}", "isGateway": True, "ipam": ipam}
        return {
            "cniVersion": "1.1.0",
            "name": f"net{number}",
            "plugins": [bridge, {"type": "firewall", "backend": self.backend, **keys}],
        }

    def add(self, container: Netns, conflist: Json, cid: str = "c1") -> tuple[str, ...]:
        """Attach a container; its addresses."""
        without_dad(container)
        result = self.runtime.add_list(conflist, container, container_id=cid)
        return tuple(ip["address"].partition("/")[0] for ip in result["ips"])

    def delete(self, container: Netns, conflist: Json, cid: str = "c1") -> None:
        self.runtime.delete_list(conflist, container, container_id=cid)


def without_dad(container: Netns) -> None:
    container.set_sysctl("net/ipv6/conf/default/accept_dad", 0)


@pytest.fixture(params=BACKENDS)
def node(request: pytest.FixtureRequest, runtime: Runtime, tmp_path: Path) -> Node:
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    node = Node(runtime, request.param, tmp_path / "networks")
    if request.param == "firewalld":
        firewalld: Firewalld = request.getfixturevalue("firewalld")
        # Another than the bridge's, which is the default one: a zone forwards within itself.
        firewalld.cmd("--zone=work", "--add-interface=uplink")
    else:
        runtime.env["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={tmp_path}/none"
        node.close_forwarding()
    return node


def join(host: Netns, outside: Netns, *numbers: int) -> None:
    """The world outside knows the way to the containers."""
    connect(host, outside)
    for number in numbers:
        outside.ip("route", "add", f"10.{number}.0.0/24", "via", "198.51.100.1")
        outside.ip("-6", "route", "add", f"fd00:{number}::/64", "via", "2001:db8:ffff::1")


def reaches(source: Netns, address: str, port: int) -> bool:
    try:
        tcp_exchange(source, address, port, timeout=QUICK)
    except OSError:
        return False
    return True


def test_only_with_the_plugin(
    node: Node, container: Netns, container2: Netns, outside: Netns
) -> None:
    join(node.host, outside, 1)
    conflist = node.network()
    plain = {**conflist, "plugins": conflist["plugins"][:1]}
    node.add(container2, plain, "c2")
    own = node.add(container, conflist)
    with tcp_server(outside) as server, tcp_server(container) as inner:
        for address, mine in zip(OUTSIDE, own, strict=True):
            assert reach(container, address, server.port) == mine
            assert not reaches(container2, address, server.port)
            if node.backend != "firewalld":  # its zone `trusted` lets everything in
                assert not reaches(outside, mine, inner.port)
        # It ends: so does what it may.
        firewall = {**conflist, "plugins": conflist["plugins"][1:]}
        node.delete(container, firewall)
        for address in OUTSIDE:
            assert not reaches(container, address, server.port)


@pytest.mark.parametrize("node", ["iptables", "nftables"], indirect=True)
def test_the_administrators_chain_comes_first(node: Node, container: Netns, outside: Netns) -> None:
    join(node.host, outside, 1)
    node.add(container, node.network())
    with tcp_server(outside) as server:
        for address, tool in zip(OUTSIDE, ("iptables", "ip6tables"), strict=True):
            reach(container, address, server.port)
            if node.backend == "nftables":
                family = "ip6" if ":" in address else "ip"
                rule = f"add rule inet cni_firewall CNI-ADMIN {family} daddr {address} drop"
                node.host.exec(["nft", rule])
            else:
                node.host.exec([tool, "-A", "CNI-ADMIN", "-d", address, "-j", "DROP"])
            assert not reaches(container, address, server.port)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
def test_ingress_policies(
    node: Node, netns: Callable[..., Netns], outside: Netns, policy: str
) -> None:
    """Two containers on one bridge, one on another; all reach the outside."""
    join(node.host, outside, 1, 2)
    first, second, other = netns("first"), netns("second"), netns("other")
    one, two = (node.network(n, ingressPolicy=policy) for n in (1, 2))
    places = {
        first: node.add(first, one, "c1"),
        second: node.add(second, one, "c2"),
        other: node.add(other, two, "c3"),
    }
    with tcp_server(outside) as server:
        for container in places:
            for address in OUTSIDE:
                reach(container, address, server.port)

    def look(source: Netns, target: Netns, address: str) -> None:
        same = other not in (source, target)
        expected = {"open": True, "same-bridge": same, "isolated": False}[policy]
        ping(source, address, expect=expected, timeout=10 if expected else 1)

    ways = itertools.permutations(places, 2)
    jobs = [(*way, address) for way in ways for address in places[way[1]]]
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(lambda job: look(*job), jobs))


@pytest.mark.parametrize("node", ["iptables", "nftables"], indirect=True)
def test_isolated_without_br_netfilter(node: Node, container: Netns, container2: Netns) -> None:
    """Where no rule sees what a bridge forwards, its ports are isolated."""
    for version in ("ip", "ip6"):
        node.host.set_sysctl(f"net/bridge/bridge-nf-call-{version}tables", 0)
    conflist = node.network(ingressPolicy="isolated")
    conflist["plugins"][0]["hairpinMode"] = True
    node.add(container, conflist, "c1")
    addresses = node.add(container2, conflist, "c2")
    for address in addresses:
        ping(container, address, expect=False, timeout=1)
    for address in ("10.1.0.1", "fd00:1::1"):
        ping(container, address)
    ports = [one for one in node.host.ip_json("link") if one.get("master") == "br1"]
    assert [(port(one)["isolated"], port(one)["hairpin"]) for one in ports] == [(True, True)] * 2
    # CHECK looks at it, and `cni reload` puts it back.
    result = node.runtime.add(
        "firewall",
        {"cniVersion": "1.1.0", "name": "net1", **conflist["plugins"][1]},
        container,
        prev_result={
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "br1"}, {"name": ports[0]["ifname"]}],
            "ips": [{"address": "10.1.0.9/24"}],
        },
        container_id="c9",
    ).result
    name = ports[0]["ifname"]
    node.host.ip("link", "set", name, "type", "bridge_slave", "isolated", "off")
    reply = node.runtime.check(
        "firewall",
        {"cniVersion": "1.1.0", "name": "net1", **conflist["plugins"][1]},
        container,
        prev_result=result,
        container_id="c9",
    )
    reply.failed(999, f"bridge port {name} is not isolated")
    node.host.exec([node.runtime.bin_dir / "cni", "reload"], env=node.runtime.env)
    assert port(link(node.host, name))["isolated"]
