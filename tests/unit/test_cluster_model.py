"""Several nodes of `cluster` over a store that loses answers, delays requests and fails: a model.

The nodes are real: their ledgers and reservations are files, and ADD and DEL are the code that the
plugin runs. The oracle: at every moment each address has one container at most, and each block
from which a node allocates is that node's in the store. At rest nothing is stranded: each block in
the store is in the ledger of the node that it names.

Time passes, nodes are silent, and whoever is silent for long is reconciled: no container's address
may become another one's by that.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cni.ipam.cluster import blocks, holding, session, tend
from cni.ipam.cluster.allocation import FromBlocks, NeedBlock
from cni.ipam.cluster.claim import Claims, Full
from cni.ipam.cluster.node import OWN, Node, Space
from cni.ipam.cluster.pool import Pool, PoolConf
from cni.ipam.cluster.reconcile import Reconciler
from cni.ipam.host_local import reservation
from cni.ipam.host_local.allocation import Wish
from cni.ipam.host_local.ranges import RangeConf
from cni.protocol.address import Prefix
from cni.store.interface import StoreError
from cni.store.settings import Settings
from tests.harness.cluster_store import FATES, OK, Memory, Unreliable

NODES = ("n1", "n2", "n3")
TIMEOUT = 60  # seconds
CONTAINERS = ("a", "b", "c", "d", "e", "f")

# One block more than nodes, so that they have to give blocks back; single addresses; dual stack.
POOLS = {
    "tight": PoolConf(ranges=[[RangeConf(subnet="10.0.0.0/28")]], block_size=30, reserve=1),
    "single": PoolConf(ranges=[[RangeConf(subnet="10.0.0.0/28")]], block_size=32, reserve=1),
    "dual": PoolConf(
        ranges=[
            [RangeConf(subnet="10.0.0.0/27", exclude=["10.0.0.8-10.0.0.15"])],
            [RangeConf(subnet="fd00::/64", range_start="fd00::10", range_end="fd00::2f")],
        ],
        block_size=29,
        block_size_v6=125,
        reserve=2,
    ),
}


class Cluster(RuleBasedStateMachine):
    """`held` is the truth: address -> (node, container)."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="cni-cluster-"))
        self.store = Memory()
        self.fates: list[str] = []
        self.ways = {name: Unreliable(self.store, self.fate) for name in NODES}
        self.held: dict[str, tuple[str, str]] = {}
        self.saved = self.store.backup()
        self.restored = False
        self.boots = dict.fromkeys(NODES, 1)
        self.now = NODES[0]
        self.patch = pytest.MonkeyPatch()
        self.clock = 1_000_000.0
        self.patch.setattr(os, "fsync", lambda _: None)  # no power fails here
        for module in (holding, session):
            self.patch.setattr(module, "boot_time", lambda: self.clock)
        for name in ("this_boot", "told_boot"):
            self.patch.setattr(reservation, name, self.boot)

    def teardown(self) -> None:
        try:
            self.at_rest()
        finally:
            self.patch.undo()
            shutil.rmtree(self.directory)

    def boot(self) -> bytes:
        return self.boots[self.now].to_bytes(16, "big")

    def fate(self) -> str:
        return self.fates.pop() if self.fates else OK

    @initialize(which=st.sampled_from(sorted(POOLS)))
    def choose(self, which: str) -> None:
        self.pool = Pool.of(POOLS[which], "", "1.1.0")

    def node(self, name: str) -> Node:
        self.now = name
        return Node(str(self.directory / name), name)

    def claims(self, name: str, renews: bool = False) -> Claims:
        node = self.node(name)
        its = Settings(node.data_dir, name, {"type": "memory"}, TIMEOUT)
        made = Claims(self.ways[name], its, node, lambda _: None)
        made.renews = renews
        return made

    def allocation(self, name: str, container: str) -> FromBlocks:
        space = Space(self.node(name), self.pool.space)
        return FromBlocks(space, (container, "eth0\r\nnet"), "", lambda _: None)

    @rule(
        name=st.sampled_from(NODES),
        container=st.sampled_from(CONTAINERS),
        fates=st.lists(st.sampled_from(FATES), max_size=8),
    )
    def add(self, name: str, container: str, fates: list[str]) -> None:
        self.fates = list(fates)
        mine = {address for address, who in self.held.items() if who == (name, container)}
        allocation = self.allocation(name, container)
        wish = Wish(self.pool.sets, [])
        ips = None
        try:
            for _ in range(20):
                try:
                    ips = allocation.reserve(wish)
                    break
                except NeedBlock as need:
                    claims = self.claims(name)
                    space = Space(claims.node, self.pool.space)
                    idle = space.ledger().idle
                    claims.register()
                    if not idle:
                        claims.claim(space, self.pool, need.index)
        except StoreError as error:
            if not (fates or self.restored):
                assert isinstance(error, Full)  # noqa: PT017 other errors are faults
        self.fates = []
        if ips is None:
            allocation.undo()
            return
        got = {str(each.address).partition("/")[0] for each in ips}
        assert len(got) == len(self.pool.sets)
        if mine:
            assert got == mine  # the same again
        for address in got - mine:
            assert address not in self.held, f"{address} is {self.held[address]}'s"
            self.held[address] = (name, container)

    @rule(name=st.sampled_from(NODES), container=st.sampled_from(CONTAINERS))
    def delete(self, name: str, container: str) -> None:
        space = Space(self.node(name), self.pool.space)
        with space.location.open() as store:
            for each in store.releasable(container, "eth0\r\nnet").names:
                store.release(each)
        self.held = {a: who for a, who in self.held.items() if who != (name, container)}

    @rule(name=st.sampled_from(NODES), fates=st.lists(st.sampled_from(FATES), max_size=10))
    def tend(self, name: str, fates: list[str]) -> None:
        """What the server does in the background."""
        self.fates = list(fates)
        try:
            claims = self.claims(name, renews=True)
            tend.space(claims, Space(claims.node, self.pool.space), [self.pool])
        except StoreError:
            if not (fates or self.restored):
                raise
        self.fates = []

    @rule(seconds=st.sampled_from([1, TIMEOUT, 2 * TIMEOUT, 10 * TIMEOUT]))
    def wait(self, seconds: int) -> None:
        self.clock += seconds

    @rule(gone=st.booleans())
    def reconcile(self, gone: bool) -> None:
        """A round; with `gone` so late that all nodes were silent for long."""
        for _ in range(1 + gone):
            Reconciler(self.store, None, self.clock, settle=1).run()
            self.clock += 3 * TIMEOUT * gone

    @rule(name=st.sampled_from(NODES))
    def reboot(self, name: str) -> None:
        """Its containers are gone."""
        self.boots[name] += 1
        self.held = {a: who for a, who in self.held.items() if who[0] != name}

    @rule(name=st.sampled_from(NODES), last_first=st.booleans())
    def deliver(self, name: str, last_first: bool) -> None:
        self.ways[name].deliver(last_first)

    @rule()
    def back_up(self) -> None:
        if not self.restored:
            self.saved = self.store.backup()

    @precondition(lambda self: self.saved)
    @rule()
    def restore(self) -> None:
        """The store is as it was some time ago, and nobody has said that this is right."""
        self.store.restore(self.saved)
        self.restored = True

    @precondition(lambda self: self.restored)
    @rule()
    def accept(self) -> None:
        """Every node has compared; somebody accepts the store."""
        for _ in range(3):
            for name in NODES:
                self.tend(name, [])
        self.claims(NODES[0]).accept(self.pool.space)
        self.saved = {}
        self.restored = False

    @precondition(lambda self: not self.restored)
    @rule(name=st.sampled_from(NODES))
    def ledger_lost(self, name: str) -> None:
        """Somebody removed the file; the node asks the store before it goes on."""
        path = Path(self.node(name).path(f"{self.pool.space}.blocks"))
        if path.exists():
            path.unlink()
            claims = self.claims(name)
            claims.sync(Space(claims.node, self.pool.space))

    @invariant()
    def own_blocks_are_own(self) -> None:
        if not hasattr(self, "pool"):
            return
        seen: dict[Prefix, str] = {}
        for name in NODES:
            node = self.node(name)
            uid_file = Path(node.path("node"))
            if not uid_file.exists():
                continue
            for block in Space(node, self.pool.space).own():
                assert block not in seen, f"{block} is {seen[block]}'s and {name}'s"
                seen[block] = name
                if self.restored:
                    continue
                key = f"blocks/{self.pool.space}/{blocks.key_of(block)}"
                item = self.store._item(key) if key in self.store.items else None
                assert item is not None, f"{name} allocates from {block}, which nobody has"
                assert item.value["uid"] == node.identity().uid

    def at_rest(self) -> None:
        """Everything arrives, every node is tended twice: nothing is stranded, all can be used."""
        if not hasattr(self, "pool"):
            return
        self.fates = []
        for way in self.ways.values():
            way.deliver()
        if self.restored:
            self.accept()
        for _ in range(3):
            for name in NODES:
                claims = self.claims(name)
                tend.space(claims, Space(claims.node, self.pool.space), [self.pool])
        owners = {}
        for name in NODES:
            node = self.node(name)
            ledger = Space(node, self.pool.space).ledger()
            assert all(each.state == OWN for each in ledger.blocks), ledger
            owners.update({each.prefix: node.identity().uid for each in ledger.blocks})
        there = {}
        for item in self.store.list(f"blocks/{self.pool.space}/").items:
            there[blocks.block_of_key(item.key.rpartition("/")[2])] = item.value["uid"]
        assert owners == there
        for name in NODES:
            directory = self.directory / name / self.pool.space
            names = os.listdir(directory) if directory.exists() else []
            self.now = name
            on_disk = {
                each
                for each in names
                if reservation.is_address(each)
                and reservation.boot_of(str(directory / each)) == reservation.this_boot()
            }
            assert on_disk == {a for a, who in self.held.items() if who[0] == name}


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=12,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
