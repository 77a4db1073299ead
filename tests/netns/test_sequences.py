"""Random sequences of ADD, DEL, CHECK and GC, with kills, renamed links, decoys and reused paths.

A model says which attachments there are. After each step the node has what belongs to those, and
nothing of others; at the end everything is as at the beginning. What a killed verb leaves is not
known until a DEL or GC has cleared it up: such an attachment may have a part of everything.

A failure prints the steps; hypothesis makes them as few as it can. CNI_CRASH_ALL=1 tries hundreds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from cni.netns import identify, liveness
from cni.owner import Owner
from tests.harness import Netns, Runtime, difference, iptables_save, links, nft, tree
from tests.harness.contract import leases
from tests.harness.pinned import Pinned
from tests.harness.requires import ensure
from tests.harness.server import serving
from tests.harness.wait import wait_until
from tests.harness.world import EVERY, network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni.netns.namespace import Identity

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]

Json = dict[str, Any]

CONTAINERS = ("a", "b", "c")
# network -> its interface
NETWORKS = {"nb": "eth0", "np": "eth1", "nm": "eth2", "nh": "eth3"}
# What they make is in the container: DEL has to get there.
INSIDE = ("nm", "nh")
PORTS = {"a": 9001, "b": 9002, "c": 9003}

NONE, UP, UNKNOWN, DEAD = "none", "up", "unknown", "dead"
ACTIONS = (
    *("add", "add", "add", "delete", "delete elsewhere", "check", "collect"),
    *("kill add", "kill add", "kill delete", "rename", "restart"),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(ACTIONS),
        st.sampled_from(sorted(NETWORKS)),
        st.sampled_from(CONTAINERS),
        st.integers(0, 3),
        st.integers(1, 30),
    ),
    min_size=3,
    max_size=14,
)


def lists(directory: Path) -> dict[str, list[Json]]:
    """The plugins of each network, as a runtime gives them their configuration."""

    def ipam(number: int) -> Json:
        subnet = f"10.9{number}.0.0/24"
        return {"type": "host-local", "subnet": subnet, "dataDir": str(directory / "leases")}

    masquerade = {"ipMasq": True, "ipMasqBackend": "nftables"}
    portmap = {"type": "portmap", "backend": "nftables"}
    firewall = {"type": "firewall", "backend": "nftables"}
    tuning = {
        "type": "tuning",
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
        "dataDir": str(directory / "tuning"),
    }
    return {
        "nb": [
            {"type": "bridge", "bridge": "br9", "isGateway": True, "ipam": ipam(1), **masquerade},
            portmap,
            firewall,
            tuning,
        ],
        "np": [{"type": "ptp", "ipam": ipam(2), **masquerade}, firewall],
        "nm": [{"type": "macvlan", "master": "lan0", "ipam": ipam(3)}, tuning],
        "nh": [{"type": "host-device", "ipam": ipam(4)}],
    }


class Node:
    """The node with its containers, and what should be attached."""

    def __init__(self, bin_dir: Path, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.lists = lists(directory)
        self.stack = contextlib.ExitStack()
        self.host = Netns("sequence")
        self.stack.callback(self.host.close)
        self.host.ip_batch(
            "link set lo up",
            "link add lan0 type veth peer name lan1",
            "link set lan0 up",
            "link set lan1 up",
        )
        self.state_dir = directory / "state"
        env = {"CNI_STATE_DIR": str(self.state_dir), "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/none"}
        self.runtime = Runtime(bin_dir, self.host, env=env)
        self.stack.enter_context(serving(self.runtime, directory / "s", "--workers", "1"))
        self.pinned = {name: Pinned(directory / f"netns-{name}") for name in CONTAINERS}
        self.stack.callback(self._unmount)
        self.state = {(net, c): NONE for net in NETWORKS for c in CONTAINERS}
        self.results: dict[tuple[str, str], Json] = {}
        self.decoys: set[tuple[str, str]] = set()
        for net in NETWORKS:
            for name in CONTAINERS:
                self.add(net, name, 0, 0)
                self.delete(net, name, 0, 0)
        self.clean = self.seen()

    def _unmount(self) -> None:
        for each in self.pinned.values():
            subprocess.run(["umount", "-l", each.path], check=False, capture_output=True)

    # -- what there is ------------------------------------------------------------------------

    def seen(self) -> Json:
        self.devices()
        return {
            "host": network(self.host),
            "nft": {str(number): item for number, item in enumerate(nft(self.host))},
            "iptables": iptables_save(self.host),
            "leases": dict.fromkeys(tree(self.directory / "leases", contents=False), ""),
            "tuning": dict.fromkeys(tree(self.directory / "tuning", contents=False), ""),
            "state": dict.fromkeys(tree(self.state_dir, contents=False), ""),
            "inside": {name: sorted(self.inside(name)) for name in CONTAINERS},
        }

    def devices(self) -> None:
        """Make the devices of host-device that went with a container."""
        away = {c for c in CONTAINERS if self.state["nh", c] != NONE}
        for number, name in enumerate(CONTAINERS):
            if f"dev{name}" not in links(self.host) and name not in away:
                self._await_end_of(f"wire{name}")
                self.host.ip_batch(
                    f"link add dev{name} address 02:00:00:00:00:0{number} type veth "
                    f"peer name wire{name} address 02:00:00:00:01:0{number}",
                    f"link set wire{name} up",
                )

    def _await_end_of(self, wire: str) -> None:
        """The kernel deletes a pair some time after the namespace of one end has ended."""
        wait_until(lambda: wire not in links(self.host), f"the end of {wire}")

    def ip(self, name: str, *args: str) -> str:
        command = ["nsenter", f"--net={self.pinned[name].path}", "ip", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def inside(self, name: str) -> set[str]:
        return {one["ifname"] for one in json.loads(self.ip(name, "-j", "link", "show"))}

    # -- one plugin ---------------------------------------------------------------------------

    def confs(self, net: str, name: str) -> list[Json]:
        confs = []
        for each in self.lists[net]:
            conf = {"cniVersion": "1.1.0", "name": net, **each}
            if each["type"] == "portmap":
                ports = [{"hostPort": PORTS[name], "containerPort": 80, "protocol": "tcp"}]
                conf["runtimeConfig"] = {"portMappings": ports}
            if each["type"] == "host-device":
                conf["device"] = f"dev{name}"
            confs.append(conf)
        return confs

    def call(self, verb: str, net: str, name: str, conf: Json, path: str, kill: int = 0) -> Any:
        """One verb of a plugin, by exec and killed at a netlink request or write if `kill`."""
        if not kill:
            who = {"container_id": name, "ifname": NETWORKS[net]}
            return self.runtime.call(verb, conf["type"], conf, path, **who)
        what, ordinal = (("sendto", kill), ("write", kill), ("open,openat", 20 * kill))[kill % 3]
        inject = f"inject={what}:signal=KILL:when={ordinal}"
        env = self.runtime.environment(verb, path, container_id=name, ifname=NETWORKS[net])
        return self.host.run(
            subprocess.run,
            [
                *("strace", "-qq", "-o", "/dev/null", "-e", f"trace={what}", "-e", inject),
                str(self.runtime.bin_dir / conf["type"]),
            ],
            input=json.dumps(conf).encode(),
            capture_output=True,
            env={**env, "CNI_SERVER": "off"},
            cwd="/",
            timeout=120,
        )

    # -- the actions --------------------------------------------------------------------------

    def add(self, net: str, name: str, which: int, kill: int) -> None:
        """ADD of a list; the plugin number `which` is killed at `kill`, if that is not 0."""
        before = self.state[net, name]
        if net == "nh" and before in (NONE, DEAD):
            self.state[net, name] = NONE
            self.devices()
        result: Json | None = None
        confs = self.confs(net, name)
        for number, conf in enumerate(confs):
            document = conf if result is None else {**conf, "prevResult": result}
            killed = kill if number == which % len(confs) else 0
            done = self.call("ADD", net, name, document, self.pinned[name].path, killed)
            code = done.returncode if killed else done.rc
            if code:
                if code == 1 and before in (NONE, DEAD) and (net, name) not in self.decoys:
                    raise AssertionError(f"ADD of {net} for {name}, which was {before}: {done}")
                if before == DEAD or (before != UP and not (code == 1 and number == 0)):
                    self.state[net, name] = UNKNOWN
                return
            if before == UP and number == 0:
                raise AssertionError(f"a second ADD of {net} for {name} worked: {done}")
            result = json.loads(done.stdout)
        assert result is not None
        self.state[net, name], self.results[net, name] = UP, result

    def kill_add(self, net: str, name: str, which: int, kill: int) -> None:
        self.add(net, name, which, kill)

    def delete(self, net: str, name: str, which: int, kill: int, path: str | None = None) -> None:
        where = self.pinned[name].path if path is None else path
        result = self.results.get((net, name))
        confs = self.confs(net, name)
        for number, conf in reversed(list(enumerate(confs))):
            document = conf if result is None else {**conf, "prevResult": result}
            killed = kill if number == which % len(confs) else 0
            done = self.call("DEL", net, name, document, where, killed)
            if killed and done.returncode < 0:
                if self.state[net, name] != NONE:
                    self.state[net, name] = UNKNOWN
                return
            assert not (done.returncode if killed else done.rc), str(done)
        self.state[net, name] = NONE
        self.results.pop((net, name), None)
        if (net, name) in self.decoys:
            self.decoys.discard((net, name))
            self.ip(name, "link", "delete", NETWORKS[net])  # it is there still

    def kill_delete(self, net: str, name: str, which: int, kill: int) -> None:
        self.delete(net, name, which, kill)

    def delete_elsewhere(self, net: str, name: str, which: int, _: int) -> None:
        """DEL with a path that is empty, missing, a file, or another container's."""
        if self.state[net, name] == UNKNOWN and net in INSIDE:
            return
        other = CONTAINERS[(CONTAINERS.index(name) + 1) % 3]
        paths = ("", "/run/netns/none", "/etc/hostname", self.pinned[other].path)
        self.delete(net, name, 0, 0, paths[which])

    def check(self, net: str, name: str, _which: int, _kill: int) -> None:
        if self.state[net, name] != UP or (net, name) in self.decoys:
            return
        for conf in self.confs(net, name):
            document = {**conf, "prevResult": self.results[net, name]}
            self.call("CHECK", net, name, document, self.pinned[name].path).succeeded()

    def collect(self, net: str, _name: str, _which: int, _kill: int) -> None:
        """GC of a network, which keeps what is attached."""
        keep = [(c, NETWORKS[net]) for c in CONTAINERS if self.state[net, c] == UP]
        for conf in self.confs(net, "a"):
            self.runtime.gc(conf["type"], conf, keep).succeeded()
        for c in CONTAINERS:
            if self.state[net, c] == DEAD or (self.state[net, c] == UNKNOWN and net not in INSIDE):
                self.state[net, c] = NONE
                self.results.pop((net, c), None)

    def rename(self, net: str, name: str, _which: int, _kill: int) -> None:
        """The container renames its interface, and puts another in its place."""
        ifname = NETWORKS[net]
        if self.state[net, name] != UP or (net, name) in self.decoys:
            return
        self.ip(name, "link", "set", ifname, "down")
        self.ip(name, "link", "set", ifname, "name", f"mine{ifname}")
        self.ip(name, "link", "set", f"mine{ifname}", "up")
        self.ip(name, "link", "add", ifname, "type", "veth", "peer", "name", f"p{ifname}")
        self.decoys.add((net, name))

    def restart(self, _net: str, name: str, _which: int, _kill: int) -> None:
        """The namespace ends without a DEL, and its path names a new one."""
        before = identify(self.pinned[name].path)
        assert before is not None
        self.pinned[name].unmount()
        wait_until(
            lambda: self._has_ended(before),
            "the end of the namespace",
            tell=lambda: holders(before.inode),
        )
        self.pinned[name] = Pinned(self.directory / f"netns-{name}")
        for net in NETWORKS:
            if self.state[net, name] != NONE:
                self.state[net, name] = DEAD
            self.decoys.discard((net, name))

    def _has_ended(self, noted: Identity) -> bool:
        """A process of the last verb may hold a socket of it for a moment."""
        found = liveness.reopen(noted, 0)
        if found is not None:
            found.close()
        return found is None

    # -- the judge ----------------------------------------------------------------------------

    def judge(self) -> None:
        """Attached is what is up, and nothing of what is not there."""
        rules = nft(self.host, "table", "inet", "cni_plugins_masquerade")
        comments = {each["rule"].get("comment") for each in rules if "rule" in each}
        ends = links(self.host)
        for (net, name), state in self.state.items():
            owner = Owner(net, name, NETWORKS[net])
            held = f"{name} {NETWORKS[net]}" in leases(self.directory / "leases", net).values()
            facts = {"lease": held}
            if net not in INSIDE:
                facts["link"] = owner.veth() in ends
                facts["masquerading"] = owner.comment in comments
            if state == UP:
                assert all(facts.values()), (net, name, facts)
            elif state == NONE:
                assert not any(facts.values()), (net, name, facts)

    def finish(self, how: str) -> None:
        """Clear up everything: the node is as at the beginning."""
        for net, ifname in NETWORKS.items():
            if how == "GC" and net not in INSIDE:
                for conf in self.confs(net, "a"):
                    self.runtime.gc(conf["type"], conf, []).succeeded()
                for name in CONTAINERS:
                    self.state[net, name] = NONE
                    if (net, name) in self.decoys:
                        self.decoys.discard((net, name))
                        self.ip(name, "link", "delete", ifname)
                continue
            for name in CONTAINERS:
                self.delete(net, name, 0, 0)
                self.delete(net, name, 0, 0)
        found = difference(self.clean, self.seen())
        assert not found, "\n".join(found)


def holders(inode: int) -> list[str]:
    """Who is in a namespace, or has a descriptor of it."""
    wanted, found = f"net:[{inode}]", []
    for process in Path("/proc").glob("[0-9]*"):
        for place in (process / "ns/net", *(process / "fd").glob("*")):
            with contextlib.suppress(OSError):
                if os.readlink(place) == wanted:
                    found.append(f"{place}: {(process / 'cmdline').read_text()}")
    return found


def play(node: Node, steps: list[tuple[str, str, str, int, int]]) -> None:
    for action, net, name, which, number in steps:
        note(f"{action} {net} {name} {which} {number}: was {node.state[net, name]}")
        kill = number if action.startswith("kill") else 0
        getattr(node, action.replace(" ", "_"))(net, name, which, kill)
        node.judge()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, _namespaces: None) -> Iterator[Path]:
    ensure(["nft", "macvlan"])
    return tmp_path_factory.mktemp("sequences")


counted = iter(range(1_000_000))


@settings(
    max_examples=int(EVERY) * 300 if EVERY.isdigit() else 12,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    print_blob=True,
)
@given(steps=STEPS, how=st.sampled_from(["DEL", "GC"]))
def test_sequences(
    bin_dir: Path, place: Path, steps: list[tuple[str, str, str, int, int]], how: str
) -> None:
    node = Node(bin_dir, place / str(next(counted)))
    try:
        play(node, steps)
        note(f"everything is removed by {how}")
        node.finish(how)
    finally:
        node.stack.close()
