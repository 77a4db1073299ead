"""What a request costs when a container or its clients have made much: flows, routes, addresses.

Each figure of ours, through the server, is compared with one of the same run: that of the Go
plugins, or of a tool that does the same, or the plain case times the number of things.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness.wait import wait_until

from . import limits
from .cases import chained, portmap, ports, simple
from .measure import VERSION, Json, Node, PluginFailedError, Sample

FLOWS, QUICK_FLOWS = 30_000, 3_000
ROUTES, QUICK_ROUTES = 200_000, 20_000
ADDRESSES, QUICK_ADDRESSES = 500, 50
ROUNDS = 3

_PORT = 8080
_NODE, _POD = "10.99.0.1", "10.66.0.9"


@dataclass
class Attack:
    """Medians in ms of ours and of what it is compared with; `reference` says what that is.

    `limit` is the highest ratio that counts as good.
    """

    what: str
    ours: float
    reference: str
    theirs: float
    limit: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def measure(nodes: list[Node], *, quick: bool) -> list[Attack]:
    """All that can be measured here; says on stderr what cannot."""
    by_name = {node.name: node for node in nodes}
    found: list[Attack] = []
    for each in (_flows, _routes, _addresses):
        try:
            found += each(by_name, quick)
        except PluginFailedError as error:
            print(f"  under attack: {error}", file=sys.stderr)
    return found


def _median(samples: list[Sample]) -> float:
    return statistics.median(sample.wall for sample in samples)


# --- flows to a published port --------------------------------------------------------------------


def _flows(nodes: dict[str, Node], quick: bool) -> Iterator[Attack]:
    """DEL of a published UDP port ends the flows to it, as the tool conntrack would."""
    node, count = nodes["warm"], QUICK_FLOWS if quick else FLOWS
    tool = shutil.which("conntrack")
    if tool is None:
        print("bench: no conntrack (package conntrack)", file=sys.stderr)
        return
    mapping = {"hostPort": _PORT, "containerPort": _PORT, "protocol": "udp"}
    conf = {
        **portmap(node),
        **ports(address=f"{_POD}/16"),
        "runtimeConfig": {"portMappings": [mapping]},
    }
    other = {**portmap(node), **ports(9090, address="10.66.0.8/16")}
    node.host.ip_batch(
        f"address add {_NODE}/24 dev lan0",
        f"route add {_POD}/32 dev lan0",
        f"neighbour add {_POD} lladdr 02:00:00:00:00:09 dev lan0",
    )
    node.plugin("ADD", other, "other")  # so the kernel goes on tracking after the DEL
    try:
        ours, theirs = [], []
        for _ in range(ROUNDS):
            node.plugin("ADD", conf)
            _send(node, count)
            ours.append(node.plugin("DEL", conf)[0])
            _send(node, count)
            wanted = ["-D", "-p", "udp", "--orig-port-dst", str(_PORT)]
            theirs.append(node.command([tool, *wanted]))
    finally:
        node.plugin("DEL", other, "other")
        node.host.ip_batch(
            f"route delete {_POD}/32 dev lan0", f"address delete {_NODE}/24 dev lan0"
        )
    what = f"portmap DEL of a port with {count:,} UDP flows"
    yield Attack(what, _median(ours), "conntrack -D", _median(theirs), limits.FLOWS)


def _send(node: Node, count: int) -> None:
    """A datagram to the published port from each of so many ports of the node: a flow each."""
    before = node.host.run(_tracked)

    def send() -> None:
        for port in range(2000, 2000 + count):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((_NODE, port))
                sock.sendto(b"x", (_NODE, _PORT))

    node.host.run(send)
    wait_until(lambda: node.host.run(_tracked) >= before + count, "every flow is tracked")


def _tracked() -> int:
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


# --- routes of a container ------------------------------------------------------------------------


def _routes(nodes: dict[str, Node], quick: bool) -> Iterator[Attack]:
    """CHECK of a container that has made many routes, with the Go plugin's time."""
    if "go" not in nodes:
        return
    count = QUICK_ROUTES if quick else ROUTES
    times = {}
    for name in ("warm", "go"):
        node = nodes[name]
        conf = simple("bridge", bridge="brroutes")(node)
        _, result = node.plugin("ADD", conf)
        prefixes = (f"172.{16 + n // 65536}.{n // 256 % 256}.{n % 256}" for n in range(count))
        node.container.ip_batch(*(f"route add {each}/32 dev eth0" for each in prefixes))
        full = {**conf, "prevResult": {**result, "cniVersion": VERSION}}
        times[name] = _median([node.plugin("CHECK", full)[0] for _ in range(ROUNDS)])
        node.plugin("DEL", full)
    what = f"bridge CHECK of a container with {count:,} routes"
    yield Attack(what, times["warm"], "Go plugins", times["go"], limits.ROUTES)


# --- addresses in a prevResult --------------------------------------------------------------------


def _addresses(nodes: dict[str, Node], quick: bool) -> Iterator[Attack]:
    """firewall's DEL of a result with many addresses, with as many times that of one."""
    node, count = nodes["warm"], QUICK_ADDRESSES if quick else ADDRESSES
    many, one = _median(_removals(node, count)), _median(_removals(node, 1))
    what = f"firewall (iptables) DEL of {count} addresses"
    yield Attack(what, many, f"{count} times one", one * count, limits.ADDRESSES)


def _removals(node: Node, count: int) -> list[Sample]:
    conf: Json = chained("firewall", backend="iptables")(node)
    ips = [{"address": f"10.66.{1 + n // 250}.{1 + n % 250}/16"} for n in range(count)]
    conf["prevResult"] = {**conf["prevResult"], "ips": ips}
    taken = []
    for _ in range(ROUNDS):
        node.plugin("ADD", conf)
        taken.append(node.plugin("DEL", conf)[0])
    return taken
