"""A cluster of many nodes in one process: claims, churn, partitions, reboots and lost nodes.

The nodes are real: ledgers and reservations are files, ADD and DEL are the code of the plugin, and
they talk to a store as its engine does. Only time is made: a clock that all of them have, and the
boots of their machines. `run` ends with the oracle, which reads the nodes' files and the store:
every address of every container is there exactly once, and nothing is stranded.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from cni.ipam.cluster import allocation, blocks, holding, session, tend
from cni.ipam.cluster.allocation import FromBlocks, NeedBlock
from cni.ipam.cluster.claim import Claims, Full
from cni.ipam.cluster.node import OWN, Node, Space
from cni.ipam.cluster.reconcile import Reconciler
from cni.ipam.host_local import reservation
from cni.ipam.host_local.allocation import Wish
from cni.protocol.address import parse_ip
from cni.store.interface import Unavailable
from cni.store.settings import Settings

from .cluster_store import FATES, OK, Unreliable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cni.ipam.cluster.pool import Pool
    from cni.store.interface import Store

SETTLE = 60.0  # seconds
MARK = "eth0\r\nnet"

# What happens to a node in a step, and how often.
EVENTS = {"add": 40, "delete": 25, "tend": 25, "reboot": 2, "lose": 1, "back": 1, "cut": 2}


class Host:
    """A node. `up`: it runs; `cut` is the time until which it cannot reach the store."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.name = name
        self.node = Node(str(simulation.directory / name), name)
        self.settings = Settings(
            self.node.data_dir, name, {"type": "simulated"}, simulation.timeout
        )
        self.space = Space(self.node, simulation.pool.space)
        self.way = Unreliable(simulation.store, lambda: simulation.fate(self))  # type: ignore[arg-type]
        self.boots = 1
        self.up = True
        self.for_ever = False  # it never comes back
        self.cut = 0.0
        self.pods: dict[str, list[str]] = {}  # with their addresses


class Simulation:
    """`pods` are those of a node that is full; `losses` is the share of requests without answer.

    Idle nodes may count as gone after `timeout` seconds, and renew more often; a step takes `step`.
    `meter` counts the requests that were sent to the store so far: `requests` has them by purpose.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        directory: Path,
        *,
        nodes: int,
        pods: int,
        seed: int,
        losses: float = 0.0,
        timeout: int = 60,
        step: float = 1.0,
        meter: Callable[[], int] = lambda: 0,
    ) -> None:
        self.store, self.pool, self.directory = store, pool, directory
        self.pods, self.losses, self.timeout, self.step = pods, losses, timeout, step
        self.random = random.Random(seed)
        self.now = 1_000_000.0
        self.hosts = [Host(self, f"n{number}") for number in range(nodes)]
        self.current = self.hosts[0]
        self.held: dict[str, tuple[str, str]] = {}  # address -> node and pod
        self.counts: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.meter = meter
        self.quiet = False
        self._names = 0

    def fate(self, host: Host) -> str:
        if not self.quiet and self.now < host.cut:
            return FATES[1]
        return (
            OK if self.quiet or self.random.random() >= self.losses else self.random.choice(FATES)
        )

    @contextmanager
    def made_time(self) -> Iterator[None]:
        """Within it, clocks and boots are those of the simulation, and no power fails."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            for module in (allocation, holding, session):
                patch.setattr(module, "boot_time", lambda: self.now)
            for name in ("this_boot", "told_boot"):
                patch.setattr(reservation, name, lambda: self.current.boots.to_bytes(16, "big"))
            yield

    def run(self, steps: int, *, fill: bool = False) -> None:
        """Let `steps` things happen, each to some node; with `fill` all nodes are filled first.

        Raises AssertionError.
        """
        with self.made_time():
            if fill:
                for host in self.random.sample(self.hosts, len(self.hosts)):
                    self.add(host, self.pods)
            names, weights = list(EVENTS), list(EVENTS.values())
            renewed = reconciled = self.now
            for number in range(steps):
                if number == steps // 3:
                    self.lose(self.hosts[-1])
                    self.hosts[-1].for_ever = True
                host = self.random.choice(self.hosts)
                getattr(self, self.random.choices(names, weights)[0])(host)
                self.now += self.step
                if self.now - renewed >= self.timeout / 6:
                    renewed = self.now
                    self.renew()
                if self.now - reconciled >= SETTLE / 2:
                    reconciled = self.now
                    self.reconcile()
            self.rest()
            self.check()

    @contextmanager
    def asking(self, purpose: str) -> Iterator[None]:
        """Count the requests that are sent within it."""
        before = self.meter()
        try:
            yield
        finally:
            self.requests[purpose] += self.meter() - before

    # --- events ---

    def add(self, host: Host, count: int = 0) -> None:
        """Start pods, until the node is full."""
        if not host.up:
            return
        for _ in range(min(count or self.random.randint(1, 8), self.pods - len(host.pods))):
            self._names += 1
            self._add(host, f"p{self._names}")

    def _add(self, host: Host, pod: str) -> None:
        """What the verb does (plugin.add, shortage.reserve)."""
        self.current = host
        attempt = FromBlocks(host.space, (pod, MARK), "", lambda _: None)
        wish = Wish(self.pool.sets, [])
        try:
            for _ in range(20):
                try:
                    ips = attempt.reserve(wish)
                    break
                except NeedBlock as need:
                    self._get_more(host, need.index)
            else:
                raise AssertionError("no address after twenty claims")
        except (Unavailable, Full):
            attempt.undo()
            self.counts["failed adds"] += 1
            return
        addresses = [str(each.address).partition("/")[0] for each in ips]
        for address in addresses:
            assert address not in self.held, f"{host.name}: {address} is {self.held[address]}'s"
            self.held[address] = (host.name, pod)
        host.pods[pod] = addresses
        self.counts["adds"] += 1

    def _get_more(self, host: Host, index: int) -> None:
        """What an ADD asks the store for."""
        if host.space.ledger().idle:
            self.counts["idle nodes woken"] += 1
            with self.asking("waking"):
                self.claims(host).register()
            return
        with self.asking("claims"):
            self.claims(host).claim(host.space, self.pool, index)
        self.counts["claims"] += 1

    def delete(self, host: Host, everything: bool = False) -> None:
        """End pods: the oldest, the youngest, or some."""
        if not host.up:
            return
        self.current = host
        number = len(host.pods) if everything else self.random.randint(0, len(host.pods))
        for pod in self.random.sample(sorted(host.pods), number):
            with host.space.location.open() as store:
                for name in store.releasable(pod, MARK).names:
                    store.release(name)
            self._gone(host, pod)
            self.counts["deletes"] += 1

    def _gone(self, host: Host, pod: str) -> None:
        for address in host.pods.pop(pod):
            del self.held[address]

    def tend(self, host: Host, compare: bool | None = None) -> None:
        """What its server does; it compares ledger and store in every tenth round."""
        if not host.up:
            return
        self.current = host
        try:
            compare = self.random.random() < 0.1 if compare is None else compare
            with self.asking("comparing" if compare else "tending"):
                tend.space(self.claims(host, renews=True), host.space, [self.pool], compare)
        except Unavailable:
            self.counts["failed rounds"] += 1

    def reboot(self, host: Host) -> None:
        """Its containers are gone."""
        if host.up:
            self.lose(host)
            self.back(host)

    def lose(self, host: Host) -> None:
        """The machine stops, for ever perhaps."""
        if host.up:
            host.up = False
            for pod in list(host.pods):
                self._gone(host, pod)
            self.counts["stops"] += 1

    def back(self, host: Host) -> None:
        """It is booted, with what it had on its disk."""
        if host.up or host.for_ever:
            return
        host.way.deliver()
        host.boots += 1
        host.up = True

    def cut(self, host: Host) -> None:
        """It does not reach the store, for less time than that after which its blocks are taken."""
        if host.up and self.now > host.cut + self.timeout:
            host.cut = self.now + self.random.uniform(0, 1.4 * self.timeout)
            self.counts["cuts"] += 1

    def renew(self) -> None:
        """What the servers of all nodes do, also when answers are lost, again and again."""
        for host in self.hosts:
            self.current = host
            for _ in range(20 if host.up and self.now >= host.cut else 0):
                with suppress(Unavailable), self.asking("renewing"):
                    self.claims(host, renews=True).register()
                    break

    def reconcile(self) -> None:
        """Some node's server frees what lost nodes had, if they were idle.

        An operator looks after the others that were reported, and forgets those that are lost for
        ever.
        """
        with self.asking("reconciling"):
            report = Reconciler(self.store, None, self.now, settle=SETTLE, limit=10_000).run()
        self.counts["lost nodes"] += len(report.gone)
        self.counts["freed blocks"] += len(report.freed)
        for host in (each for each in self.hosts if each.name in report.silent):
            self.counts["silent nodes"] += 1
            if host.for_ever:
                self.forget(host)

    def forget(self, host: Host) -> None:
        """What `cni ipam forget --force` does."""
        item = self.store.read(f"nodes/{host.name}")
        assert item is not None
        self.store.update(item, {**item.value, "lost": True})
        self.counts["forgotten nodes"] += 1

    def claims(self, host: Host, *, renews: bool = False) -> Claims:
        """Those of an ADD; `renews`: of the node's server."""
        made = Claims(host.way, host.settings, host.node, lambda _: None)
        made.renews = renews
        return made

    # --- the end ---

    def rest(self) -> None:
        """All requests arrive, nodes are booted and tended, lost ones are cleared up after."""
        self.quiet = True
        for host in self.hosts:
            self.back(host)
        for host in self.hosts:
            host.way.deliver()  # also what dead machines have sent
        for number in range(6):
            differing = set() if number else self.differing()
            for host in self.hosts:
                self.tend(host, compare=host.name in differing)
            self.reconcile()
            self.now += self.timeout / 2

    def differing(self) -> set[str]:
        """The nodes for which a comparison finds something, and some others.

        Each node compares in the end; what one lists, all list, and it takes a fifth of a second
        with 10,000 blocks.
        """
        there: dict[str, set[str]] = {}
        for item in self.store.list(f"blocks/{self.pool.space}/").items:
            block = str(blocks.block_of_key(item.key.rpartition("/")[2]))
            there.setdefault(item.value["uid"], set()).add(block)
        found = {host.name for host in self.random.sample(self.hosts, min(len(self.hosts), 100))}
        for host in self.hosts:
            uid, ledger = host.node.identity().uid, host.space.ledger()
            if {each.cidr for each in ledger.blocks} != there.get(uid, set()):
                found.add(host.name)
        return found

    def check(self) -> None:
        """Raises AssertionError."""
        found: Counter[str] = Counter()
        owners: dict[Any, str] = {}
        for host in self.hosts:
            if not host.up:
                continue
            self.current = host
            ledger = host.space.ledger()
            assert all(each.state == OWN for each in ledger.blocks), (host.name, ledger)
            own = [each.prefix for each in ledger.blocks]
            for block in own:
                assert block not in owners, f"{block} is two nodes'"
                owners[block] = host.node.identity().uid
            names = self.on_disk(host)
            assert names == {a for each in host.pods.values() for a in each}, host.name
            for name in names:
                packed = parse_ip(name)
                assert any(block.contains(packed) for block in own), (host.name, name)
            found.update(names)
        assert set(found) == set(self.held), "the files and the containers differ"
        assert all(count == 1 for count in found.values())
        there = {}
        for item in self.store.list(f"blocks/{self.pool.space}/").items:
            there[blocks.block_of_key(item.key.rpartition("/")[2])] = item.value["uid"]
        assert there == owners, "the store and the ledgers differ"

    def on_disk(self, host: Host) -> set[str]:
        """The addresses of this boot that have a file on the node."""
        path = host.space.location.path
        boot = reservation.this_boot()
        names = os.listdir(path) if os.path.isdir(path) else []
        return {
            name
            for name in names
            if reservation.is_address(name) and reservation.boot_of(f"{path}/{name}") == boot
        }

    def empty(self) -> None:
        """End every pod, and give everything back: the store must have no block then."""
        with self.made_time():
            for host in self.hosts:
                self.delete(host, everything=True)
            for host in self.hosts:
                if host.up:
                    self.current = host
                    tend.give_back(self.claims(host), host.space, [self.pool], everything=True)
            left = self.store.list("blocks/").items
        assert not left, f"{len(left)} blocks are stranded, such as {left[0]}"

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
