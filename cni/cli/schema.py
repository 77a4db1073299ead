"""`cni schema`: the JSON Schema of configurations."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from cni.describe import catalogue, schema

from . import errors, formats, output


class Plugin(click.ParamType[str]):
    """A plugin that has a schema; completes its name."""

    name = "plugin"

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in catalogue.NAMES if name.startswith(incomplete)]


@click.command("schema")
@click.argument("plugin", type=Plugin(), metavar="[PLUGIN]", default="")
@formats.options
def schema_command(plugin: str) -> None:
    """Print the JSON Schema (2020-12) of configuration lists, or of one plugin's object.

    The schema of an IPAM plugin is that of the object `ipam`. Editors and admission webhooks can
    use it. -o name lists the plugins that have a schema.
    """
    described = None
    if plugin:
        try:
            described, _, key = catalogue.find(plugin)
        except catalogue.Unknown as error:
            raise errors.NotFound(error.msg, error.details) from None
        if key is not None:
            raise errors.NotFound(f"no plugin {plugin}", f"`cni explain {plugin}` is about a key")
    if formats.current() == "name":
        for name in [described.name] if described else catalogue.NAMES:
            output.line(name)
        return
    value = schema.of_list() if described is None else schema.of_plugin(described)
    output.document(value, "yaml" if formats.current() == "yaml" else "json")
