"""The floor: what the kernel takes for the same, in a loop of one process.

Run by bench.py as `python -I -S floor.py TREE NETNS ROUNDS [BRIDGE]` in a node's namespace; TREE
is an installed tree, BRIDGE one that may be there. The netlink messages and transactions are those
of the plugins, made by the same functions; decoding, IPAM, looking for what is there already and
all that makes a plugin are left out. Prints one JSON object: "case verb" -> median milliseconds.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from time import perf_counter

sys.path.insert(0, sys.argv[1])

from cni.kernel import address, link, route, sysctl
from cni.kernel.netlink import Netlink
from cni.netfilter import elements, expressions, nft
from cni.netfilter.elements import Element
from cni.netfilter.table import Table
from cni.netns import Namespace
from cni.owner import Owner, network_group
from cni.plugins.shared import masquerade
from cni.protocol.address import Prefix

OWNER = Owner("floor", "c1", "eth0")
ADDRESS = Prefix.parse("10.77.0.9/16")
GATEWAY = bytes((10, 77, 0, 1))
CONF = "net/ipv6/conf/eth0"
SETTINGS = [
    (f"{CONF}/accept_dad", "0"),
    ("net/ipv4/conf/eth0/arp_notify", "1"),
    (f"{CONF}/ndisc_notify", "1"),
]
Step = Callable[[], None]


class Pair:
    """A container on a bridge, as the bridge plugin attaches it."""

    def __init__(self, host: Netlink, netns: Namespace, bridge: str) -> None:
        self.host = host
        self.netns = netns
        self.made = 0  # the bridge, if it was not there
        if link.find(host, bridge) is None:
            link.create_bridge(host, bridge)
            self.made = link.get(host, bridge).index
            link.change(host, self.made, up=True)
            address.add(host, self.made, Prefix(GATEWAY, 16))
        self.bridge = link.get(host, bridge).index
        self.inner = 0

    def add(self) -> None:
        name, inside = OWNER.veth(), self.netns.netlink()
        group = network_group(OWNER.network)
        link.create_veth(
            self.host, name, "eth0", peer_netns=self.netns.fd, master=self.bridge, group=group
        )
        outer = link.get(self.host, name).index
        conf = f"net/ipv6/conf/{name}"
        sysctl.write_each([(f"{conf}/accept_ra", "0"), (f"{conf}/accept_dad", "0")])
        link.change(self.host, outer, up=True, alias=OWNER.alias, group=0, link_local=False)
        link.set_port(self.host, outer, hairpin=False, isolated=False)
        found = link.get(inside, "eth0")
        self.netns.run(sysctl.write_each, SETTINGS)
        address.add(inside, found.index, ADDRESS)
        link.change(inside, found.index, up=True)
        route.add(inside, route.Route(Prefix(bytes(4), 0), found.index, GATEWAY))
        link.change(inside, found.index, mac=link.parse_mac(found.mac))
        self.inner = found.index

    def delete(self) -> None:
        link.delete(self.netns.netlink(), self.inner)


_handles: list[int] = []


def masq_add() -> None:
    _handles[:] = masquerade.setup(OWNER, [ADDRESS], "nftables", first=True)


def masq_delete() -> None:
    rules = [("masq_checks", handle) for handle in _handles]
    Table("inet", "cni_plugins_masquerade").delete(rules)


class Maps:
    """Portmap's two elements in one transaction."""

    place = Table("ip", "floor_hostport")

    def __init__(self) -> None:
        key = "inet_proto . inet_service"
        nft.transact(
            [
                expressions.new_table(self.place),
                expressions.new_chain(self.place, "net"),
                expressions.new_set(self.place, "published", 1, key, "verdict"),
                expressions.new_set(self.place, "targets", 2, key, "ipv4_addr . inet_service"),
            ]
        )
        port = bytes((6, 0, 0, 0)) + (8080).to_bytes(2, "big") + bytes(2)
        self.items = {
            "published": [Element(port, b"", "net", OWNER.comment)],
            "targets": [Element(port, ADDRESS.ip + port[4:], "", OWNER.comment)],
        }

    def add(self) -> None:
        self._change(elements.insert)

    def delete(self) -> None:
        self._change(elements.remove)

    def _change(self, how: Callable[..., object]) -> None:
        changes: list[nft.Change] = []
        for name, items in self.items.items():
            changes += how(self.place, name, items)
        nft.transact(changes)


class Allowed:
    """Firewall's element."""

    place = Table("inet", "floor_firewall")

    def __init__(self) -> None:
        key = "ipv4_addr"
        nft.transact(
            [
                expressions.new_table(self.place),
                expressions.new_set(self.place, "allowed4", 1, key, None),
            ]
        )
        self.items = [Element(ADDRESS.ip, b"", "", OWNER.comment)]

    def add(self) -> None:
        nft.transact([*elements.insert(self.place, "allowed4", self.items)])

    def delete(self) -> None:
        nft.transact([*elements.remove(self.place, "allowed4", self.items)])


def measure(steps: dict[str, tuple[list[Step], list[Step]]], rounds: int) -> dict[str, float]:
    """All in every round; each is a list of steps for ADD and one for DEL."""
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, verbs in steps.items():
            for verb, work in zip(("ADD", "DEL"), verbs, strict=True):
                start = perf_counter()
                for step in work:
                    step()
                if number:
                    times.setdefault(f"{name} {verb}", []).append(perf_counter() - start)
    return {name: sorted(taken)[rounds // 2] * 1000 for name, taken in times.items()}


def main(path: str, rounds: int, bridge: str = "brfloor") -> None:
    with Namespace.open(path) as netns, Netlink() as host:
        netns.run(os.getpid)
        pair, maps, allowed = Pair(host, netns, bridge), Maps(), Allowed()
        found = measure(
            {
                "bridge": ([pair.add], [pair.delete]),
                "bridge, ipMasq (nftables)": (
                    [pair.add, masq_add],
                    [pair.delete, masq_delete],
                ),
                "portmap (nftables)": ([maps.add], [maps.delete]),
                "firewall (nftables)": ([allowed.add], [allowed.delete]),
            },
            rounds,
        )
        if pair.made:
            link.delete(host, pair.made)
    lines = ", ".join(f'"{name}": {value:.4f}' for name, value in found.items())
    sys.stdout.write(f"{{{lines}}}\n")


if __name__ == "__main__":
    gc.disable()
    main(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
