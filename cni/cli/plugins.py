"""`cni plugins`: what is in this file."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import click

from cni import dispatch

from . import formats
from .table import Column, Table

VERBS = {"ADD": "add", "DEL": "delete", "CHECK": "check", "GC": "gc", "STATUS": "status"}
# Plugins that change an interface that another plugin has made.
META = frozenset(
    {"bandwidth", "firewall", "flannel", "portmap", "route-override", "sample", "sbr"}
    | {"tc-redirect-tap", "tuning", "vrf"}
)


_COLUMNS = (
    Column("NAME"),
    Column("KIND"),
    Column("VERBS", drop=2),
    Column("SPEC", drop=1),
    Column("ABOUT", cut="end", least=57),  # what a plugin does says more than the others
)


class Entry(NamedTuple):
    """A plugin of this file. `verbs` is None if its module cannot be loaded: see `problem`."""

    name: str
    kind: str
    verbs: list[str] | None
    versions: tuple[str, ...]
    about: str
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        body: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "verbs": self.verbs,
            "cniVersions": list(self.versions),
            "about": self.about,
        }
        if self.problem:
            body["problem"] = self.problem
        return body


def entries() -> list[Entry]:
    """Every plugin of the dispatch table, by kind and name."""
    listed = [_entry(name, plugin) for name, plugin in dispatch.TABLE.items()]
    return sorted(
        listed, key=lambda entry: (("main", "ipam", "meta").index(entry.kind), entry.name)
    )


def _entry(name: str, plugin: dispatch.Plugin) -> Entry:
    kind = "meta" if name in META else "main"
    if plugin.module.startswith("cni.ipam."):
        kind = "ipam"
    verbs, problem = None, ""
    try:
        module = import_module(plugin.module)
        verbs = [verb for verb, function in VERBS.items() if hasattr(module, function)]
    # One plugin that lacks a module of the system must not hide the others.
    except ImportError as error:
        problem = f"cannot be loaded: {error}"
    return Entry(name, kind, verbs, plugin.versions, plugin.about, problem)


@click.command()
@formats.options
def plugins() -> None:
    """Show the plugins in this file."""
    all_entries = entries()
    rows = []
    for entry in all_entries:
        verbs = "?" if entry.verbs is None else " ".join(entry.verbs)
        spec = f"{entry.versions[0]} - {entry.versions[-1]}"
        rows.append((entry.name, entry.kind, verbs, spec, entry.problem or entry.about))
    formats.present(
        [entry.as_dict() for entry in all_entries],
        rows=Table(_COLUMNS, rows),
        names=[entry.name for entry in all_entries],
    )
