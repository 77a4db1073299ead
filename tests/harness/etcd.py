"""A real etcd for tests: members in network namespaces of their own, which can be cut off.

cluster = EtcdCluster(netns, tmp_path, members=3)
store = cluster.store()                 # as a node sees it, in the node's namespace
cluster.members[0].kill(); cluster.members[1].cut_off(...); …
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from cni.store.config import open_store

from .certificates import Authority, Pair
from .netns import BARE_ENV
from .wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni.store.interface import Change, Item, Listing, Store, Value

    from .netns import Netns

T = TypeVar("T")

NETWORK = "10.99.0"


def require_etcd() -> None:
    for program in ("etcd", "etcdctl"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing: make setup (packages etcd-server, etcd-client)")


class Member:
    """One process of etcd. `address` is its own, on the network of all members and nodes."""

    def __init__(self, cluster: EtcdCluster, number: int, ns: Netns) -> None:
        self.cluster, self.number, self.ns = cluster, number, ns
        self.name = f"m{number}"
        self.address = f"{NETWORK}.{number + 1}"
        self.data = cluster.data / self.name
        self.log = cluster.directory / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.cluster.scheme}://{self.address}:2379"

    @property
    def peer(self) -> str:
        return f"http://{self.address}:2380"

    def start(self, *more: str) -> None:
        """Start it, also again with the data that it had."""
        argv = ["etcd", "--name", self.name, "--data-dir", str(self.data), "--logger=zap",
                "--listen-client-urls", f"{self.url},http://127.0.0.1:2379",
                "--advertise-client-urls", self.url, "--listen-peer-urls", self.peer,
                "--initial-advertise-peer-urls", self.peer, "--enable-pprof=false",
                "--initial-cluster", self.cluster.initial,
                # Members share two processors with other tests: no elections because of that.
                "--heartbeat-interval=200", "--election-timeout=2000",
                *self.cluster.arguments, *more]  # fmt: skip
        with open(self.log, "ab") as log:
            self._process = self.ns.popen(argv, stdout=log, stderr=log, env=BARE_ENV)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(60)
            self._process = None

    def signal(self, number: int) -> None:
        """SIGSTOP: it hangs, with its connections open."""
        assert self._process is not None
        self._process.send_signal(number)

    def cut_off(self, *addresses: str) -> None:
        """Drop all packets from and to these addresses; from everybody, if there is none."""
        rules = "".join(
            f"add rule inet cut in ip saddr {address} drop\n"
            f"add rule inet cut out ip daddr {address} drop\n"
            for address in addresses or [f"{NETWORK}.0/24"]
        )
        self.ns.exec(["nft", "-f", "-"], stdin=CHAINS + rules)

    def join(self) -> None:
        """End what `cut_off` has done."""
        self.ns.exec(["nft", "delete", "table", "inet", "cut"])

    def ctl(self, *arguments: str, check: bool = True) -> str:
        """Run etcdctl on the member."""
        # etcdctl before 3.4 speaks version 2 of the API otherwise.
        env = {**BARE_ENV, "ETCDCTL_API": "3"}
        argv = ["etcdctl", "--endpoints=http://127.0.0.1:2379", "--command-timeout=20s", *arguments]
        return self.ns.exec(argv, env=env, check=check).stdout

    def status(self) -> dict[str, Any]:
        """What it says of itself; empty if it says nothing."""
        out = self.ctl("endpoint", "status", "-w", "json", check=False)
        try:
            status: dict[str, Any] = json.loads(out)[0]["Status"]
        except (ValueError, IndexError, KeyError):
            return {}
        return status

    def is_leader(self) -> bool:
        status = self.status()
        return bool(status) and status.get("leader") == status["header"]["member_id"]

    def has_leader(self) -> bool:
        return bool(self.status().get("leader"))


CHAINS = """add table inet cut
add chain inet cut in { type filter hook input priority 0; }
add chain inet cut out { type filter hook output priority 0; }
"""


class EtcdCluster:
    """Members, a network, and a node. `arguments` go to each member."""

    def __init__(
        self,
        netns: Callable[..., Netns],
        directory: Path,
        members: int = 1,
        *arguments: str,
        authority: Authority | None = None,
    ) -> None:
        require_etcd()
        self.directory, self.arguments = directory, arguments
        # In memory: etcd writes each change to the disk, which other tests use, too.
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.data = Path(tempfile.mkdtemp(prefix="etcd-", dir=memory))
        self.scheme = "http" if authority is None else "https"
        self._netns = netns
        self._lan = netns("lan")
        self._lan.ip_batch("link add lan type bridge", "link set lan up")
        self._ends = 0
        self.members = [
            Member(self, number, self._host(f"{NETWORK}.{number + 1}")) for number in range(members)
        ]
        self.initial = ",".join(f"{member.name}={member.peer}" for member in self.members)
        if authority is not None:
            names = ",".join(f"IP:{member.address}" for member in self.members)
            pair = authority.issue("etcd", names)
            self.arguments = (*arguments, f"--trusted-ca-file={authority.cert}",
                              "--client-cert-auth", f"--cert-file={pair.cert}",
                              f"--key-file={pair.key}")  # fmt: skip
        self.node = self._host(f"{NETWORK}.100")
        self.node_address = f"{NETWORK}.100"
        for member in self.members:
            member.start()
        for member in self.members:
            wait_until(member.has_leader, f"a leader of {member.name}", timeout=90)

    def another_node(self) -> Netns:
        return self._host(f"{NETWORK}.{100 + self._ends}")

    def _host(self, address: str) -> Netns:
        ns = self._netns("host")
        self._ends += 1
        end, index = f"p{self._ends}", str(100 + self._ends)
        peer = ("peer", "name", "eth0", "index", str(1000 + self._ends), "netns", ns.name)
        # Indices that differ, for the reason given in tests/conftest.py:make_host.
        self._lan.ip("link", "add", end, "index", index, "type", "veth", *peer)
        self._lan.ip_batch(f"link set {end} master lan", f"link set {end} up")
        ns.ip_batch("link set lo up", f"address add {address}/24 dev eth0", "link set eth0 up")
        return ns

    def close(self) -> None:
        for member in self.members:
            member.kill()
        shutil.rmtree(self.data, ignore_errors=True)

    @property
    def leader(self) -> Member:
        found: list[Member] = []

        def look() -> bool:
            found[:] = [m for m in self.members if m._process is not None and m.is_leader()]
            return bool(found)

        wait_until(look, "a leader", timeout=90)
        return found[0]

    def options(self, **more: Any) -> dict[str, Any]:
        return {
            "type": "etcd",
            "endpoints": [member.url for member in self.members],
            "stateDir": str(self.directory / "state"),
            "timeout": 30,
            **more,
        }

    def store(self, ns: Netns | None = None, **more: Any) -> NetnsStore:
        """A client in the node's namespace, or another."""
        return NetnsStore(open_store(self.options(**more)), ns or self.node)

    def empty(self) -> None:
        """Delete everything."""
        self.members[0].ctl("del", "", "--from-key=true")

    def restore(self, backup: Path) -> None:
        """Stop all members, and start them with the data of a snapshot."""
        for member in self.members:
            member.kill()
            shutil.rmtree(member.data)
            argv = ["etcdctl", "snapshot", "restore", str(backup), "--name", member.name,
                    "--data-dir", str(member.data), "--initial-cluster", self.initial,
                    "--initial-advertise-peer-urls", member.peer]  # fmt: skip
            member.ns.exec(argv, env={**BARE_ENV, "ETCDCTL_API": "3"})
        for member in self.members:
            member.start()
        for member in self.members:
            wait_until(member.has_leader, f"a leader of {member.name}", timeout=90)


class NetnsStore:
    """A store whose sockets are in a namespace."""

    def __init__(self, store: Store, ns: Netns) -> None:
        self.inner, self.ns = store, ns
        self.name = store.name
        self._threads = threading.local()

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """In the namespace: by a thread of its own, or this one, if it is not the main thread."""
        if threading.current_thread() is threading.main_thread():
            return self.ns.run(function, *args)
        if not getattr(self._threads, "inside", False):
            self.ns.enter()
            self._threads.inside = True
        return function(*args)

    def create(self, key: str, value: Value) -> Item:
        return self.run(self.inner.create, key, value)

    def read(self, key: str) -> Item | None:
        return self.run(self.inner.read, key)

    def update(self, item: Item, value: Value) -> Item:
        return self.run(self.inner.update, item, value)

    def delete(self, item: Item) -> None:
        self.run(self.inner.delete, item)

    def list(self, prefix: str) -> Listing:
        return self.run(self.inner.list, prefix)

    def watch(self, prefix: str, revision: str, seconds: float) -> Iterator[Change]:
        changes = self.inner.watch(prefix, revision, seconds)
        with contextlib.closing(changes):  # type: ignore[type-var]
            # A generator's body runs in the thread that asks for the next item.
            while (change := self.run(next, changes, None)) is not None:
                yield change

    def clock(self) -> float | None:
        return self.run(self.inner.clock)

    def identity(self) -> str:
        return self.run(self.inner.identity)

    def close(self) -> None:
        self.inner.close()


def client_options(authority: Authority, pair: Pair) -> dict[str, Any]:
    return {"caFile": authority.cert, "certFile": pair.cert, "keyFile": pair.key}
