"""`cni schema`: the JSON Schema of configurations."""

from __future__ import annotations

import click

from cni.describe import catalogue, schema

from . import errors, formats, output


@click.command("schema")
@click.argument("plugin", type=click.Choice(catalogue.NAMES), metavar="[PLUGIN]", required=False)
@formats.options
def schema_command(plugin: str | None) -> None:
    """Print the JSON Schema (2020-12) of configuration lists, or of one plugin's object.

    Of an IPAM plugin: of the object `ipam`. Editors and admission webhooks can use it. -o name
    lists the plugins that have one.
    """
    if formats.current() == "name":
        for name in [plugin] if plugin else catalogue.NAMES:
            output.line(name)
        return
    described = catalogue.plugin(plugin) if plugin else None
    if plugin and described is None:
        raise errors.NotFound(f"no plugin {plugin}")
    value = schema.of_list() if described is None else schema.of_plugin(described)
    output.document(value, "yaml" if formats.current() == "yaml" else "json")
