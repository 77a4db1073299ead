"""`cni explain`: what the keys of a plugin mean."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import click
from click.shell_completion import CompletionItem

from cni.describe import catalogue, tables, words
from cni.describe.model import Key, Plugin, Record

from . import errors, formats, output
from .table import Column, Table

_PLACES = {
    "main": "makes the interface: the first of a list",
    "chained": "follows the plugin that makes the interface",
    "ipam": "gives addresses: named in the `ipam` of another plugin",
}
_PLUGINS = (Column("PLUGIN"), Column("KIND"), Column("ABOUT", cut="end", least=24))


class Path(click.ParamType[str]):
    """A plugin, or a key of one; completes both."""

    name = "plugin[.key]"

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        name, dot, _ = incomplete.partition(".")
        described = catalogue.plugin(name) if dot else None
        paths = list(catalogue.NAMES)
        if described is not None:
            paths = [f"{name}.{path}" for path, _ in catalogue.entries(described)]
        return [CompletionItem(path) for path in paths if path.startswith(incomplete)]


@click.command()
@click.argument("what", metavar="[PLUGIN[.KEY]]", type=Path(), default="")
@formats.options
def explain(what: str) -> None:
    """Explain the keys of a plugin, or one key: its type, its default, an example.

    \b
    cni explain                        lists the plugins
    cni explain bridge                 lists the keys of bridge
    cni explain bridge.vlanTrunk.minID explains one key
    cni explain host-local.ranges      explains a key of an IPAM plugin
    """  # noqa: D301 - click wants the control character
    if not what:
        _explain_all()
        return
    try:
        described, path, key = catalogue.find(what)
    except catalogue.Unknown as error:
        raise errors.NotFound(error.msg, error.details) from None
    if key is None:
        _explain_plugin(described)
    else:
        _explain_key(described, path, key)


def _explain_all() -> None:
    plugins = catalogue.plugins()
    formats.present(
        [{"name": each.name, "kind": each.place, "about": each.about} for each in plugins],
        rows=Table(_PLUGINS, [(each.name, each.place, each.about) for each in plugins]),
        names=[each.name for each in plugins],
    )


def _explain_plugin(described: Plugin) -> None:
    keys = list(catalogue.entries(described))
    keys += [(f"CNI_ARGS.{key.name}", key) for key in described.args]
    formats.present(
        {
            "name": described.name,
            "kind": described.place,
            "about": described.about,
            "example": described.example,
            "capabilities": sorted(catalogue.capabilities(described)),
            "keys": [_facts(path, key) for path, key in keys],
        },
        lines=[
            f"{described.name} {described.about}",
            f"{_PLACES[described.place]}",
            "",
            *[line for path, key in keys if tables.is_row(path, key) for line in _lines(path, key)],
            *([""] if keys else ["it has no keys of its own"]),
            f"example  {json.dumps(described.example, ensure_ascii=False)}",
        ],
        names=[path for path, _ in keys],
    )


def _lines(path: str, key: Key) -> list[str]:
    """A key, its type and default on a line; what it means below."""
    width = output.terminal_width() if output.is_terminal() else 100
    default = words.default(key)
    without = f"; without it: {key.absent}" if key.absent else ""
    value = f" ({default})" if key.required else f" = {default}" if default and not without else ""
    text, indent = key.text + without, " " * 4
    return [
        f"{path}: {words.kind(key.kind).replace('`', '')}{value}",
        *textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent),
    ]


def _explain_key(described: Plugin, path: str, key: Key) -> None:
    below = catalogue.inner(key.kind)
    more = catalogue.below(key.kind)
    keys = ", ".join(each.name for each in below.keys) if isinstance(below, Record) else more
    kind, form = words.kind(key.kind), words.form(key.kind)
    reference = "; not in the reference plugins" if key.beyond else ""
    rows = [
        ("type", f"{kind}: {form}" if form else kind.replace("`", "")),
        ("default", words.default(key)),
        ("keys", keys),
        ("needs", f'"capabilities": {{"{key.capability}": true}}' if key.capability else ""),
        ("since", f"{key.since}{reference}"),
        ("example", words.example(key)),
    ]
    formats.present(
        _facts(path, key),
        lines=[
            f"{described.name}: {path}",
            f"  {key.text}",
            output.columns([row for row in rows if row[1]]),
        ],
        names=[path],
    )


def _facts(path: str, key: Key) -> dict[str, Any]:
    """A key for programs."""
    facts: dict[str, Any] = {
        "path": path,
        "type": words.kind(key.kind),
        "meaning": key.text,
        "required": key.required,
        "since": key.since,
        "beyondReference": key.beyond,
    }
    for name, value in (
        ("default", key.default),
        ("withoutIt", key.absent or None),
        ("example", key.example),
        ("capability", key.capability or None),
    ):
        if value is not None:
            facts[name] = value
    return facts
