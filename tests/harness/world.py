"""A node with one attachment, for tests that break a plugin at any moment of a verb.

`CASES` has a configuration for each plugin, `World` runs them, and tells what is left of them. The
moments are the system calls of a run, as strace lists them: `Point`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.ipam.cluster import blocks, rounds
from cni.ipam.cluster.node import Node, Space
from cni.store.config import open_store

from .kernel import (
    iptables_save,
    kind,
    links,
    links_and_addresses,
    nft,
    routes_and_rules,
    tree,
)
from .netns import Netns
from .requires import requires_kernel
from .runtime import Reply, Runtime
from .server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

# Which points are tried: all that change something, "every" one, or (empty) a sample.
EVERY = os.environ.get("CNI_CRASH_ALL", "")

CHANGING = frozenset(
    """
    sendto sendmsg sendmmsg write pwrite64 writev ftruncate link linkat symlink symlinkat
    rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir flock fsync utimensat
    clone clone3 fork vfork kill setns exit_group
    """.split()  # noqa: SIM905
)

OPENING = ("openat", "open")  # of glibc, of musl

HOST_LOCAL = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
}
STATIC = {"type": "static", "addresses": [{"address": "10.88.0.2/24"}]}
SUBNET_ENV = """FLANNEL_NETWORK=10.88.0.0/16
FLANNEL_SUBNET=10.88.0.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""
PORTS = {
    "prevResult": {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.88.0.2/24"}, {"address": "fd88::2/64"}],
    },
    "runtimeConfig": {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8053, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
        ]
    },
}
# For plugins that come after another: what that one returned.
AFTER: dict[str, Any] = {
    "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lan0"}],
        "ips": [{"address": "10.88.0.2/24"}, {"address": "fd88::2/64"}],
    }
}
# `after` is the plugin before it in the list, which is not killed. With `claiming` an ADD begins
# without blocks, so that it claims some.
CASES: dict[str, dict[str, Any]] = {
    "bandwidth": {
        "type": "bandwidth",
        "ingressRate": 8_000_000,
        "egressRate": 8_000_000,
        "latency": 25,
        "after": {"type": "ptp"},
    },
    "bond": {
        "type": "bond",
        "mode": "active-backup",
        "miimon": "100",
        "links": [{"name": "lan0"}, {"name": "lan2"}],
    },
    "cluster": {"type": "cluster"},
    "cluster-claiming": {"type": "cluster", "claiming": True},
    "host-local": {"type": "host-local"},
    "bridge": {"type": "bridge", "bridge": "br88", "isGateway": True},
    "bridge-filtered": {
        "type": "bridge",
        "bridge": "br88",
        "isGateway": True,
        "ipMasq": True,
        "ipMasqBackend": "nftables",
        "macspoofchk": True,
    },
    "dummy": {"type": "dummy"},
    "flannel": {"type": "flannel", "delegate": {"bridge": "br88"}},
    "firewall-default": {"type": "firewall", "after": {"type": "ptp"}},
    "firewall-iptables": {"type": "firewall", "backend": "iptables", **AFTER},
    "firewall-nftables": {"type": "firewall", "backend": "nftables", **AFTER},
    "host-device": {"type": "host-device", "device": "lan0"},
    "ipvlan": {"type": "ipvlan", "master": "lan0"},
    "loopback": {"type": "loopback"},
    "macvlan": {"type": "macvlan", "master": "lan0"},
    "macvtap": {"type": "macvtap", "master": "lan0", "owner": 1000},
    "macvlan-shim": {"type": "macvlan", "master": "lan0", "hostShim": True},
    "portmap": {"type": "portmap", **PORTS},
    "portmap-iptables": {"type": "portmap", "backend": "iptables", **PORTS},
    # with a link to the container, whose sysctl is set
    "portmap-localhost": {"type": "portmap", **PORTS, "after": {"type": "ptp"}},
    "ptp": {"type": "ptp"},
    "ptp-filtered": {"type": "ptp", "ipMasq": True, "ipMasqBackend": "nftables"},
    "route-override": {
        "type": "route-override",
        "flushgateway": True,
        "addroutes": [{"dst": "10.89.0.0/16", "gw": "10.88.0.1"}, {"dst": "fd89::/64"}],
    },
    "sample": {"type": "sample", "anotherAwesomeArg": "x", **AFTER},
    "sbr": {"type": "sbr"},
    "static": {"type": "static", "ipam": STATIC},
    "tap": {"type": "tap"},
    "tc-redirect-tap": {"type": "tc-redirect-tap"},
    "tuning": {
        "type": "tuning",
        "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0"}]},
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "500"},
        "mac": "c2:11:00:00:00:01",
        "mtu": 1400,
        "promisc": True,
        "ethtool": {"tso": False},
    },
    "vlan": {"type": "vlan", "master": "lan0", "vlanId": 7},
    "vrf": {"type": "vrf", "vrfname": "blue"},
    "wireguard": {
        "type": "wireguard",
        "privateKeyFile": "/run/cni-test-wireguard/key",
        "peers": [
            {
                "publicKey": "XsR1bUUmlqAUQpQNqNKAoMgUg7WgsadKJnNmCa72H2U=",
                "endpoint": "192.0.2.1:51820",
                "subnets": ["10.89.0.0/16", "fd89::/64"],
            }
        ],
    },
    "vxlan": {
        "type": "vxlan",
        "vni": 88,
        "peers": ["192.0.2.1", "192.0.2.2"],
        "isGateway": True,
    },
}
# What they do is in the container alone and ends with its namespace, or comes back from there: only
# a DEL that can enter it clears up.
IN_CONTAINER = frozenset(
    {"dummy", "host-device", "ipvlan", "loopback", "macvlan", "sbr", "tap", "vlan", "vrf"}
    | {"bond", "macvtap", "route-override", "tc-redirect-tap"}
)
# Kinds of links that a kernel may lack.
OPTIONAL = frozenset({"bond", "dummy", "ipvlan", "macvlan", "tap", "vlan", "vrf"}) | {
    "macvtap",
    "tc-redirect-tap",
    "vxlan",
    "wireguard",
}
CHANGE_NOTHING = frozenset({"sample", "static"})
# What they change is in the container and goes with its interface: their DEL has nothing to do.
DELETE_NOTHING = frozenset({"route-override"})
# They change an interface that is there already; only a DEL that can enter the namespace can put it
# back, also if another ADD was tried before.
CHANGING_EXISTING = frozenset({"tuning"})
# They work on an interface of the container, which is made before ADD and deleted after DEL; its
# addresses.
WORK_ON_INTERFACE = {
    "route-override": ("10.88.0.2/24", "fd88::2/64"),
    "sbr": ("10.88.0.2/24", "fd88::2/64"),
    "tc-redirect-tap": ("10.88.0.2/24", "fd88::2/64"),
    "vrf": ("10.88.0.2/24", "fd88::2/64"),
}


@dataclass(frozen=True)
class Point:
    """The `ordinal`-th call of `name` in a run; `text` is how strace shows it."""

    name: str
    ordinal: int
    text: str

    def __str__(self) -> str:
        return f"{self.name} number {self.ordinal}: {self.text[:120]}"


def network(ns: Netns) -> dict[str, Any]:
    """Links, addresses and routes of a namespace, without what happens by itself."""
    found, found_addresses = links_and_addresses(ns)
    found_routes, found_rules = routes_and_rules(ns, "main")
    return {
        "links": {name: _settings(one) for name, one in found.items()},
        "addresses": found_addresses,
        "routes": [[one.get(key) for key in ("dst", "dev", "gateway")] for one in found_routes],
        # those for VRFs stay once the kernel has made them
        "rules": [one for one in found_rules if "l3mdev" not in one],
        "sysctls": {name: ns.sysctl(f"net/ipv4/conf/{name}/route_localnet") for name in found},
    }


def _settings(one: dict[str, Any]) -> list[Any]:
    flags = [flag for flag in ("UP", "PROMISC", "ALLMULTI") if flag in one["flags"]]
    names = [one.get("ifalias"), *one.get("altnames", ())]
    return [kind(one), one.get("master"), one["mtu"], one["address"], flags, names]


class World:
    """A node with a container, used and left clean once.

    `served`: what is not under test goes through a server, which takes less time.
    """

    def __init__(
        self, bin_dir: Path, conf: dict[str, Any], directory: Path, *, served: bool = False
    ) -> None:
        directory.mkdir(parents=True)
        self._stack = contextlib.ExitStack()
        self.trace = directory / "trace"
        self.data_dir = directory / "networks"
        ipam = {**HOST_LOCAL, "dataDir": str(self.data_dir)}
        # All workers have one /dev, in which a macvtap's device has a number made of its owner.
        name = f"crash{os.getpid()}"
        self.conf = {"cniVersion": "1.1.0", "name": name, "ipam": ipam, **conf}
        self.plugin = conf["type"]
        if self.plugin == "flannel":
            subnet_file = directory / "subnet.env"
            subnet_file.write_text(SUBNET_ENV)
            notes = str(self.data_dir / "flannel")
            self.conf |= {"subnetFile": str(subnet_file), "dataDir": notes}
        self.claiming = self.conf.pop("claiming", False)
        if self.plugin == "cluster":
            self.conf["ipam"] = self._cluster()
        after = self.conf.pop("after", None)
        self.after = after and {**self.conf, **after}
        self.host = Netns("crash-host")
        self._stack.callback(self.host.close)
        self.host.ip_batch(
            "link set lo up",
            "link add lan0 type veth peer name lan1",
            "link add lan2 type veth peer name lan3",
            *(f"link set lan{number} up" for number in range(4)),
        )
        self.container = Netns("crash-container")
        self._stack.callback(self.container.close)
        if self.plugin in CHANGING_EXISTING:
            self.conf["dataDir"] = str(self.data_dir)
            self.container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
        self.state_dir = directory / "state"
        # A machine's own bus (and a firewalld there) is none of this node's.
        env = {"CNI_STATE_DIR": str(self.state_dir), "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/none"}
        self.runtime = Runtime(bin_dir, self.host, env=env)
        try:
            if served:
                self._stack.enter_context(serving(self.runtime, directory / "s", "--workers", "1"))
            self.add()
            self.delete()
            self.clean = self.state()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def _cluster(self) -> dict[str, Any]:
        """The `ipam` of cluster, which needs as many blocks as there are range sets."""
        store = {"type": "directory", "path": str(self.data_dir / "store")}
        own = {"type": "cluster", "blockSize": 28, "nodeName": "n1", "store": store}
        return {**HOST_LOCAL, "dataDir": str(self.data_dir), **own}

    def give_back(self) -> None:
        """Have the node release its blocks, as its server does when another node wants them."""
        settings = self.data_dir.with_suffix(".json")
        settings.write_text(
            json.dumps({key: self.conf["ipam"][key] for key in ("store", "nodeName", "dataDir")})
        )
        env = {"CNI_CLUSTER_CONF": str(settings)}
        _, problems = self.host.run(rounds.once, env, print, give_back=True)
        assert not problems, problems

    def prepare(self) -> None:
        """What comes before an ADD in the list."""
        if self.claiming:
            self.give_back()
        if self.after:
            added = self.runtime.add(self.after["type"], self.after, self.container)
            self.conf["prevResult"] = added.result
        if self.plugin in WORK_ON_INTERFACE:
            self.interface(True)

    def interface(self, wanted: bool) -> None:
        """Make or delete the interface that a chained plugin works on."""
        have = "eth0" in links(self.container)
        if wanted and not have:
            addresses = WORK_ON_INTERFACE[self.plugin]
            self.container.ip_batch(
                "link add eth0 type veth peer name eth0p",
                *(f"link set {name} addrgenmode none up" for name in ("eth0", "eth0p")),
                *(f"address add {a} dev eth0" + " nodad" * (":" in a) for a in addresses),
                "route add default via 10.88.0.1",
            )
            ips = [{"address": address} for address in addresses]
            self.conf["prevResult"] = {"cniVersion": "1.1.0", "ips": ips}
        elif have and not wanted:
            self.container.ip("link", "delete", "eth0")

    def add(self) -> None:
        self.prepare()
        self.runtime.add(self.plugin, self.conf, self.container).succeeded()

    def delete(self) -> None:
        self.runtime.delete(self.plugin, self.conf, self.container).succeeded()
        self.finish()

    def finish(self) -> None:
        """What comes after a DEL in the list."""
        if self.after:
            self.runtime.delete(self.after["type"], self.after, self.container).succeeded()

    def recover(self, how: str) -> Reply:
        """Clear up the whole list; the first reply that is wrong, or the last."""
        if how == "ADD and DEL":
            self.runtime.add(self.plugin, self.conf, self.container).succeeded()
        conf = self.conf
        if not self.after:  # the runtime has no result of an ADD that was killed
            conf = {key: value for key, value in conf.items() if key != "prevResult"}
        reply = self._recover(how, self.plugin, conf)
        if self.after and reply.rc == 0 and not reply.stdout:
            reply = self._recover(how, self.after["type"], self.after)
        return reply

    def _recover(self, how: str, plugin: str, conf: dict[str, Any]) -> Reply:
        if how == "GC":
            return self.runtime.gc(plugin, conf, [])
        if how.endswith("DEL"):
            return self.runtime.delete(plugin, conf, self.container)
        return self.runtime.delete(plugin, conf, "/run/netns/gone")

    def state(self) -> dict[str, Any]:
        """What must be the same again; a bridge's carrier comes and goes with its ports."""
        if self.plugin in WORK_ON_INTERFACE:
            self.interface(False)
        if self.claiming:
            self.give_back()
        return {
            "blocks": self.blocks() if self.plugin == "cluster" else {},
            "host": network(self.host),
            "container": network(self.container),
            "nft": {str(number): item for number, item in enumerate(nft(self.host))},
            "iptables": iptables_save(self.host),
            "ip6tables": iptables_save(self.host, 6),
            # none where the kernel has no IPsec (the lab's)
            "policies": self.host.exec(["ip", "xfrm", "policy"], check=False).stdout,
            "files": dict.fromkeys(tree(self.data_dir, contents=False), ""),
            "tuned": self.tuned() if self.plugin in CHANGING_EXISTING else {},
            "state": dict.fromkeys(tree(self.state_dir, contents=False), ""),
        }

    def blocks(self) -> dict[str, Any]:
        """Those in the ledger, with their states. That the store has the same is compared."""
        ipam = self.conf["ipam"]
        own = Space(Node(ipam["dataDir"], ipam["nodeName"]), "default").ledger().blocks
        with contextlib.closing(open_store(ipam["store"])) as store:
            items = self.host.run(store.list, "blocks/").items
        found = {blocks.block_of_key(item.key.rpartition("/")[2]) for item in items}
        assert found == {each.prefix for each in own}, (found, own)
        return {each.cidr: each.state for each in own}

    def tuned(self) -> dict[str, Any]:
        """What tuning changes."""
        found: dict[str, Any] = dict(links(self.container)["eth0"])
        features = self.container.exec(["ethtool", "-k", "eth0"]).stdout
        found["features"] = dict(line.strip().split(": ", 1) for line in features.splitlines()[1:])
        for name in ("net/ipv4/conf/eth0/arp_filter", "net/core/somaxconn"):
            found[name] = self.container.sysctl(name)
        return found

    def processes(self) -> list[int]:
        """Pids in one of the two namespaces."""
        inodes = {self.host.inode, self.container.inode}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    if (entry / "ns/net").stat().st_ino in inodes:
                        found.append(int(entry.name))
        return found

    def strace(self, verb: str, *options: str) -> int:
        """Run a verb under strace; its exit status (-9 if it was killed)."""
        document = json.dumps(self.conf)
        done = self.host.run(
            subprocess.run,
            ["strace", "-qq", *options, str(self.runtime.bin_dir / self.plugin)],
            input=document.encode(),
            capture_output=True,
            # strace sees this process only: the work has to be done in it
            env={**self.runtime.environment(verb, self.container), "CNI_SERVER": "off"},
            cwd="/",
            timeout=120,
        )
        return int(done.returncode)

    def points(self, verb: str) -> list[Point]:
        """The calls of a clean run at which to kill it."""
        assert self.strace(verb, "-o", str(self.trace)) == 0
        return list(points_of(self.trace.read_text(errors="replace"), every=EVERY == "every"))

    def kill(self, verb: str, point: Point) -> bool:
        """Run a verb and kill it at a point; False if it ended without coming there."""
        status = self.strace(
            verb,
            *("-o", "/dev/null", "-e", f"trace={point.name}"),
            *("-e", f"inject={point.name}:signal=KILL:when={point.ordinal}"),
        )
        assert status in (-9, 0), f"{verb}: exit status {status}"
        return status != 0


def points_of(trace: str, *, every: bool) -> Iterator[Point]:
    counts: dict[str, int] = {}
    started = False
    for line in trace.splitlines():
        match = re.match(r"(\w+)\(", line)
        if match is None:
            continue
        name = match[1]
        counts[name] = counts.get(name, 0) + 1
        started = started or line.startswith("read(0,")  # the request
        if started and (every or name in CHANGING or (name in OPENING and "O_CREAT" in line)):
            yield Point(name, counts[name], line)


def needing(name: str, *before: str) -> Any:
    """Parameters of a test, of which the last is a case; marked with the kind of link it makes."""
    kind = CASES[name]["type"]
    return pytest.param(*before, name, marks=[requires_kernel(kind)] if kind in OPTIONAL else [])
