"""`cni ipam reconcile`: blocks of nodes that are gone become free. One round."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from . import formats
from .table import Column, Table

if TYPE_CHECKING:
    from cni.ipam.cluster.reconcile import Presence, Report
    from cni.ipam.cluster.store.interface import Store

_COLUMNS = (
    Column("NODE", cut="end"),
    Column("STATE"),
    Column("WHAT NOW", cut="end", least=20),
)
_NEXT = {
    "gone": "its blocks are free",
    "suspect": "another round will see whether it stays so",
    "unknown": "no Node of this name was ever seen: compare nodeName",
}


@click.command()
@formats.options
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds for which a node has to be seen as gone.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Delete so many blocks at most.",
)
def reconcile(settle: float, limit: int) -> None:
    """Free the blocks of nodes that the cluster has no more. Run it every minute, on one node.

    With the store kubernetes a node is gone when its Node object is; NotReady is not gone. With
    another store it is gone when it promised to stop (nodeTimeout) and has not renewed for twice
    that time. Two rounds have to see it. The store is that of /etc/cni/cluster.json.
    """
    from cni.ipam.cluster import engines, settings
    from cni.ipam.cluster.store.interface import StoreError

    store = engines.connect(settings.read({}, os.environ).store)
    try:
        report = _round(store, settle, limit)
    except StoreError as error:
        raise engines.explain(error) from None
    finally:
        store.close()
    if report is None:
        formats.done({"locked": True}, "another process reconciles: nothing was done")
        return
    _present(report)


def _round(store: Store, settle: float, limit: int) -> Report | None:
    from cni.ipam.cluster import reconcile as rounds

    clock = store.clock()
    now = time.time() if clock is None else clock
    held = rounds.lock(store, now)
    if held is None:
        return None
    try:
        made = rounds.Reconciler(store, _presence(store), now, settle=settle, limit=limit)
        return made.run()
    finally:
        rounds.unlock(store, held)


def _presence(store: Store) -> Presence | None:
    """Who knows which nodes there are; None: only the nodes themselves."""
    api = getattr(store, "api", None)
    if api is None:
        return None
    from cni.ipam.cluster.kubernetes_nodes import Nodes

    return Nodes(api)


def _present(report: Report) -> None:
    states = [("gone", report.gone), ("suspect", report.suspects), ("unknown", report.unknown)]
    found = [(name, state) for state, names in states for name in names]
    value = {
        "gone": report.gone,
        "freed": report.freed,
        "suspects": report.suspects,
        "unknown": report.unknown,
        "complete": report.is_complete,
    }
    rows = [(name, state, _NEXT[state]) for name, state in found]
    formats.present(value, rows=Table(_COLUMNS, rows), names=report.freed)
