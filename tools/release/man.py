"""Manual pages of a built file: cni(1), cni-conflist(5), and cni-<plugin>(8) for each plugin.

    python3 tools/release/man.py dist/cni dist/man

They say what `cni explain` and `cni COMMAND --help` say, because they are made of the same
descriptions (cni/describe) and commands (cni/cli), which are imported from the file itself. Its
modules need no installed package, so any Python runs this.
"""

from __future__ import annotations

import gzip
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

    from cni.describe.model import Key, Plugin

Pages = dict[str, str]

HOME = "/usr/share/doc/cni-plugins-python"
_COMMON = "The keys that every plugin has are in\n.BR cni-conflist (5).\n"


def import_from(file: Path) -> None:
    """Have `import cni` take the modules of a built file; click and msgspec, too."""
    sys.path.insert(0, str(file.resolve()))
    import cni
    from cni.zip_extensions import enable

    enable(cni.__loader__)  # msgspec's extension module is in the archive as well


def pages() -> Pages:
    """All pages: ``man8/cni-bridge.8`` -> text. Needs import_from."""
    from cni.describe import catalogue

    made = {"man1/cni.1": _command_page(), "man5/cni-conflist.5": _conflist_page()}
    for described in catalogue.plugins():
        if described.system == "linux":
            made[f"man8/cni-{described.name}.8"] = _plugin_page(described)
    return made


def compressed(texts: Pages) -> dict[str, bytes]:
    """The pages as packages carry them: ``man8/cni-bridge.8.gz`` -> content."""
    return {f"{name}.gz": gzip.compress(text.encode(), mtime=0) for name, text in texts.items()}


# --- the language of man(7) ----------------------------------------------------------------------

_SPECIAL = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga"})


def escape(text: str) -> str:
    """Text for a line of roff: every character means itself, also those beyond ASCII."""
    plain = text.translate(_SPECIAL)
    return "".join(each if each.isascii() else f"\\[u{ord(each):04X}]" for each in plain)


def prose(text: str) -> str:
    """A paragraph: what is between backticks is bold, and no line begins with a request."""
    parts = re.split(r"`([^`]+)`", text)
    marked = [
        f"\\fB{escape(each)}\\fP" if number % 2 else escape(each)
        for number, each in enumerate(parts)
    ]
    joined = "".join(marked)
    return f"\\&{joined}" if joined.startswith((".", "\\(aq")) else joined


def verbatim(lines: Iterable[str]) -> str:
    """Lines as they are, indented."""
    body = "".join(f"\\&{escape(line)}\n" for line in lines)
    return f".PP\n.in +4n\n.nf\n{body}.fi\n.in\n"


def item(term: str, text: str) -> str:
    """A tagged paragraph; `term` is bold."""
    return f".TP\n\\fB{escape(term)}\\fP\n{text}\n"


def _head(name: str, section: int, about: str) -> str:
    from cni import __version__

    manual = {1: "User Commands", 5: "File Formats", 8: "System Administration"}[section]
    title = f'.TH {escape(name.upper())} {section} "" "cni-plugins {__version__}" "{manual}"\n'
    return f'.\\" Made by tools/release/man.py.\n{title}.SH NAME\n{name} \\- {escape(about)}\n'


def _see_also(*names: tuple[str, int]) -> str:
    lines = [f".BR {escape(name)} ({section})" for name, section in names]
    return ".SH SEE ALSO\n" + ",\n".join(lines) + f"\n.PP\n{escape(HOME)}\n"


# --- plugins -------------------------------------------------------------------------------------

_PLACES = {
    "main": "It makes the interface, so it is the first plugin of a list.",
    "chained": "It follows the plugin that makes the interface.",
    "ipam": "It gives addresses: the `ipam` of another plugin names it.",
}


def _plugin_page(described: Plugin) -> str:
    from cni.describe import catalogue, tables

    name = f"cni-{described.name}"
    rows = [each for each in catalogue.entries(described) if tables.is_row(*each)]
    arguments = [(f"CNI_ARGS.{key.name}", key) for key in described.args]
    text = _head(name, 8, f"CNI plugin that {described.about}".replace("`", ""))
    text += f".SH DESCRIPTION\nThe plugin\n.B {escape(described.name)}\n"
    text += f"{prose(described.about)}.\n{prose(_PLACES[described.place])}\n"
    if rows:
        text += f".SH KEYS\n{_COMMON}" + "".join(_key(path, key) for path, key in rows)
    else:
        text += f".SH KEYS\nIt has no keys of its own.\n{_COMMON}"
    if arguments:
        text += ".SH ARGUMENTS\nA runtime may pass these in the variable CNI_ARGS.\n"
        text += "".join(_key(path, key) for path, key in arguments)
    capabilities = sorted(catalogue.capabilities(described))
    if capabilities:
        text += ".SH CAPABILITIES\nDeclared in\n.BR capabilities ,\nso that a runtime fills\n"
        text += ".BR runtimeConfig :\n" + prose(", ".join(capabilities)) + ".\n"
    text += ".SH EXAMPLE\n" + verbatim(_json_lines(described.example))
    return text + _see_also(("cni", 1), ("cni-conflist", 5))


def _key(path: str, key: Key) -> str:
    """A key with its type, its default, and what it means."""
    from cni.describe import catalogue, words

    kind, default = words.kind(key.kind), words.default(key)
    text = f"{kind}; {_default(key, default)}" if default else kind
    sentences = [
        each for each in (key.text, catalogue.below(key.kind), *words.remarks(key)) if each
    ]
    joined = " ".join(f"{each[:1].upper()}{each[1:].rstrip('.')}." for each in sentences)
    return item(path, f"{prose(text)}\n.br\n{prose(joined)}")


def _default(key: Key, default: str) -> str:
    if key.required:
        return "required"
    return f"without it: {default}" if key.absent else f"default: {default}"


def _json_lines(value: object) -> list[str]:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False).splitlines()


def _conflist_page() -> str:
    from cni.describe import catalogue
    from cni.describe.common import COMMON, DNS, LIST, ROUTE

    text = _head("cni-conflist", 5, "network configuration lists of CNI")
    text += ".SH DESCRIPTION\n" + prose(
        "A network is a file `*.conflist` in `/etc/cni/net.d`: a JSON object with the network's "
        "name and version, and the list of its plugins. Each plugin gets its object of the list, "
        "with the network's name and version in it. A plugin ignores a key that it does not know; "
        "`cni validate` finds such keys."
    )
    text += "\n"
    sections = (
        ("KEYS OF A LIST", LIST),
        ("KEYS OF EVERY PLUGIN", COMMON),
        ("ROUTES", ROUTE.keys),
        ("DNS SETTINGS", DNS.keys),
    )
    for title, keys in sections:
        text += f".SH {title}\n"
        text += "".join(_key(key.name, key) for key in keys if key.text)
    text += ".SH PLUGINS\n"
    linux = [each for each in catalogue.plugins() if each.system == "linux"]
    for each in linux:
        text += item(each.name, prose(each.about))
    example = {
        "cniVersion": "1.0.0",
        "name": "mynet",
        "plugins": [_plugin(catalogue.plugin, "bridge"), _plugin(catalogue.plugin, "portmap")],
    }
    text += ".SH EXAMPLE\n" + verbatim(_json_lines(example))
    return text + _see_also(("cni", 1), *((f"cni-{each.name}", 8) for each in linux))


def _plugin(find: Callable[[str], Plugin | None], name: str) -> object:
    described = find(name)
    assert described is not None
    return described.example


# --- the command ---------------------------------------------------------------------------------


def _command_page() -> str:
    import click

    from cni.cli import COMMANDS, errors
    from cni.cli.group import cli

    text = _head("cni", 1, "attach network namespaces, show what is attached, check configurations")
    text += ".SH SYNOPSIS\n.B cni\n.I COMMAND\n.RI [ OPTION ]...\n.RI [ ARGUMENT ]...\n"
    text += ".SH DESCRIPTION\n" + _help(cli.help or "")
    context = click.Context(cli, info_name="cni")
    text += ".SH OPTIONS\nEvery command has these, except\n.BR \\-\\-version :\n"
    text += "".join(_options(cli, context))
    section = ""
    for name, (_, where, _) in COMMANDS.items():
        if where != section:
            section = where
            text += f".SH COMMANDS: {section.upper()}\n"
        command = cli.get_command(context, name)
        assert command is not None
        text += "".join(_command(command, click.Context(command, context, name)))
    text += ".SH EXIT STATUS\n"
    text += "".join(item(str(code), prose(said)) for code, said in errors.EXIT_CODES.items())
    text += ".SH FILES\n"
    text += "".join(item(path, prose(said)) for path, said in _FILES)
    return text + _see_also(("cni-conflist", 5), ("cni-bridge", 8), ("cni-host-local", 8))


_FILES = (
    ("/etc/cni/net.d", "network configurations"),
    ("/opt/cni/bin", "the plugins, and `cni`, which they need"),
    ("/var/lib/cni/results", "results of ADD, in the format of libcni"),
    ("/var/lib/cni/networks", "reservations of `host-local`"),
    ("/run/cni", "notes about ADDs, until the next boot; the server's socket"),
)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    """A command's synopsis, help and options; then those of its own commands."""
    import click

    pieces = [each for each in command.collect_usage_pieces(context) if each != "[OPTIONS]"]
    yield f".SS {escape(' '.join([context.command_path, *pieces]))}\n{_help(command.help or '')}"
    yield from _options(command, context, _EVERYWHERE)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from _command(below, click.Context(below, context, name))


_EVERYWHERE = ("--help", "--output", "--json")  # options of every command, which are shown once


def _options(
    command: click.Command, context: click.Context, without: tuple[str, ...] = ()
) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1] and not set(parameter.opts) & set(without):
            yield item(record[0], prose(re.sub(r"\s+", " ", record[1])))


def _help(text: str) -> str:
    """The help of a command, as click lays it out: a paragraph after a backspace is verbatim."""
    made = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = [line.rstrip() for line in paragraph.splitlines()]
        if lines[0] == "\b":
            made.append(verbatim(lines[1:]))
        else:
            made.append(f".PP\n{prose(' '.join(line.strip() for line in lines))}\n")
    return "".join(made)


# --- writing -------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Write the pages of the built file FILE below the directory DIR: the exit code."""
    if len(arguments) not in (2, 3) or arguments[2:] not in ([], ["--compressed"]):
        sys.stderr.write("man.py FILE DIR [--compressed]\n")
        return 2
    file, directory = map(Path, arguments[:2])
    import_from(file)
    texts = pages()
    contents = {name: text.encode() for name, text in texts.items()}
    if arguments[2:]:
        contents = compressed(texts)
    for name, data in contents.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
