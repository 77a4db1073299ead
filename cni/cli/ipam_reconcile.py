"""`cni ipam reconcile`: blocks of nodes that are gone become free. One round, or many."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from . import formats, output
from .table import Column, Table

if TYPE_CHECKING:
    from cni.ipam.cluster.reconcile import Report

_COLUMNS = (
    Column("NODE", cut="end"),
    Column("STATE"),
    Column("WHAT NOW", cut="end", least=20),
)
_NEXT = {
    "gone": "its blocks are free",
    "suspect": "another round will see whether it stays so",
    "silent": "its containers may run: `cni ipam forget` if it is gone",
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
    help="Delete at most this many blocks.",
)
@click.option(
    "--every",
    type=click.FloatRange(min=1),
    help="Run rounds until the command is ended, with this many seconds between two.",
)
def reconcile(settle: float, limit: int, every: float | None) -> None:
    """Free the blocks of nodes that the cluster no longer has. Run it every minute, on one node.

    With the store kubernetes, a node is gone when its Node object is gone; a node that is NotReady
    is not gone. With another store, a node is gone if it had no containers when it last renewed its
    promise, and has not renewed it for twice its nodeTimeout; a node that may have containers keeps
    its blocks. Two rounds have to find it gone. The store is that of /etc/cni/cluster.json. With
    --every, the command also logs pods whose addresses are in no block of their node.
    """
    # Loaded here: `cni ipam` adds this command to its group each time, and mostly runs another.
    from cni.ipam.cluster import reconciling
    from cni.store import engines, settings
    from cni.store.interface import StoreError

    store = engines.connect(settings.read({}, os.environ).store)
    try:
        if every is not None:
            reconciling.forever(store, every, settle, limit, _log)
            return
        report = reconciling.Reconciling().round(store, settle=settle, limit=limit).report
    except StoreError as error:
        raise engines.explain(error) from None
    finally:
        store.close()
    # The lock is in the store, because a process of another node may reconcile, too.
    if report is None:
        formats.done({"locked": True}, "another process reconciles: nothing was done")
        return
    _present(report)


def _log(text: str) -> None:
    output.line(text, err=True)


def _present(report: Report) -> None:
    states = [("gone", report.gone), ("suspect", report.suspects), ("silent", report.silent),
              ("unknown", report.unknown)]  # fmt: skip
    found = [(name, state) for state, names in states for name in names]
    value = {
        "gone": report.gone,
        "freed": report.freed,
        "suspects": report.suspects,
        "silent": report.silent,
        "unknown": report.unknown,
        "complete": report.is_complete,
    }
    rows = [(name, state, _NEXT[state]) for name, state in found]
    formats.present(value, rows=Table(_COLUMNS, rows), names=report.freed)
