"""Rounds of reconcile.py, again and again: in a node's server, and by `cni ipam reconcile`.

Every server with the setting tries. The lock admits one at a time, and notes when the last round
was. So there is one round a minute, however many nodes there are; the other nodes read one item.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ...store import engines, settings
from ...store.interface import Store, StoreError, Unavailable
from . import reconcile as rounds
from .reconcile import Misplaced, Presence, Report

EVERY = 60.0  # seconds between two rounds
_SETTLE = 60.0  # seconds for which a node has to be seen gone
_LIMIT = 100  # blocks that a round frees
_NODES = 20  # nodes whose pods a round checks


class Outcome(NamedTuple):
    """The outcome of a round; `report` is None if another process has done it, or is doing it.

    `silent` are nodes of report.silent that the round before did not have.
    """

    report: Report | None
    misplaced: list[Misplaced]
    silent: tuple[str, ...] = ()


class Reconciling:
    """The state that is kept from one round to the next."""

    def __init__(self) -> None:
        self._after = ""  # the last node whose pods were checked
        self._seen: set[Misplaced] = set()  # those of the round before
        self._told: set[Misplaced] = set()
        self._silent: set[str] = set()

    def round(
        self, store: Store, *, settle: float = _SETTLE, limit: int = _LIMIT, every: float = 0.0
    ) -> Outcome:
        """One round, unless another process works, or has ended one less than `every` seconds ago.

        Raises StoreError.
        """
        clock = store.clock()
        now = time.time() if clock is None else clock
        held = rounds.lock(store, now, every)
        if held is None:
            return Outcome(None, [])
        done: float | None = None
        try:
            presence = presence_of(store)
            made = rounds.Reconciler(store, presence, now, settle=settle, limit=limit)
            report = made.run()
            strays = self._misplaced(store, presence, sorted(made.nodes)) if every else []
            done = now if every else None
        finally:
            rounds.unlock(store, held, done)
        news = tuple(name for name in report.silent if name not in self._silent)
        self._silent = set(report.silent)
        return Outcome(report, strays, news)

    def _misplaced(
        self, store: Store, presence: Presence | None, nodes: list[str]
    ) -> list[Misplaced]:
        """Addresses of pods outside of their node's blocks; checks some nodes in each round.

        Returns those that the round before has seen, too, and that were not reported yet.
        """
        if presence is None:
            return []
        later = [each for each in nodes if each > self._after] or nodes
        chosen = [*later[:_NODES], *sorted({each.node for each in self._seen})]
        self._after = chosen[-1] if len(later) > _NODES else ""
        pods = [pod for name in dict.fromkeys(chosen) for pod in presence.pods(name)]
        subnets = {
            subnet
            for item in store.list("spaces/").items
            for subnet in item.value.get("layout") or {}
        }
        # Read after the pods: a node claims a block before a pod gets an address of it.
        strays = set(rounds.misplaced(pods, store.list("blocks/").items, subnets))
        news = strays & self._seen - self._told
        self._told = {each for each in self._told if each.node not in chosen or each in strays}
        self._told |= news
        self._seen = strays - self._told
        return sorted(news)


def presence_of(store: Store) -> Presence | None:
    """The source of existing nodes; None if only the nodes themselves tell."""
    api = getattr(store, "api", None)
    if api is None:
        return None
    from .kubernetes_nodes import Nodes

    return Nodes(api)


def attempt(memory: Reconciling, env: Mapping[str, str], log: Callable[[str], None]) -> None:
    """A round of this node's server, if the settings say so; logs what it does.

    Raises CNIError, for StoreError, too.
    """
    if not settings.reconciles(env):
        return
    try:
        store = engines.connect(settings.read({}, env).store)
        try:
            tell(memory.round(store, every=EVERY), log)
        finally:
            store.close()
    except StoreError as error:
        raise engines.explain(error) from None


def forever(
    store: Store, every: float, settle: float, limit: int, log: Callable[[str], None]
) -> None:
    """Rounds until the process is ended. Raises StoreError if the store refuses."""
    memory, said = Reconciling(), ""
    while True:
        try:
            tell(memory.round(store, settle=settle, limit=limit, every=every), log)
            said = ""
        except Unavailable as error:
            if str(error) != said:
                log(str(engines.explain(error)))
            said = str(error)
        time.sleep(every)


def tell(outcome: Outcome, log: Callable[[str], None]) -> None:
    """Log the parts of an outcome that concern the operator."""
    if outcome.report is not None:
        if outcome.report.freed:
            log(f"cluster: {len(outcome.report.freed)} blocks of nodes that are gone are free")
        for name in outcome.report.gone:
            log(f"cluster: node {name} is gone, and has no block any more")
    for name in outcome.silent:
        log(
            f"cluster: node {name} does not renew any more, and may have containers, so its blocks "
            f"stay its own. If the machine is gone: `cni ipam forget {name} --force`"
        )
    for each in outcome.misplaced:
        holder = f"node {each.holder}'s block" if each.holder else "no node's block"
        log(
            f"cluster: pod {each.pod} on node {each.node} has {each.address}, which is of {holder}:"
            " another pod may have it, too. Delete the pod, so that it is made anew"
        )
