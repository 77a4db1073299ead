"""Options of the commands and what the documentation says of them: neither has one more.

`CNI_GOLDEN=write` before pytest (as `make golden` does) writes the table of docs/cli.md anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cni.cli.group import cli

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/cli.md"
HEADING = "## Every option\n"
# What every command has; the text above the table names it.
COMMON = {"-o", "--output", "--json", "-h", "--help", "--version"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A command line: in backticks, or a line of a block, up to a comment.
LINES = re.compile(r"`(?:\S*/)?(cni [^`\n]+)`|^[ #$]*(?:\S*/)?(cni [a-z][^#\n]*)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*(?![\w-])")
# The daemon has the reference's flags, which it reads itself.
FOREIGN = ("dhcp daemon",)


def commands(
    group: click.Group = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands())


def options_of(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if isinstance(each, click.Option) and not each.hidden]


def names_of(command: click.Command) -> set[str]:
    return {name for each in options_of(command) for name in (*each.opts, *each.secondary_opts)}


def shown(option: click.Option, command: click.Command) -> str:
    """As a person types it: ``--keep ID/IFNAME``."""
    names = ", ".join((*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else option.make_metavar(click.Context(command)).strip("[]")
    value = {"TEXT": "NAME", "INTEGER RANGE": "N", "FLOAT RANGE": "N"}.get(value, value)
    text = f"{names} {value}".strip().replace("|", "\\|")
    return f"`{text}`" + ("…" if option.multiple else "")


def table() -> str:
    rows = ["| command | options |", "|---|---|"]
    for name, command in sorted(COMMANDS.items()):
        own = [each for each in options_of(command) if not COMMON & set(each.opts)]
        if own:
            rows.append(f"| `{name}` | {' '.join(shown(each, command) for each in own)} |")
    return "\n".join(rows) + "\n"


def command_of(line: str) -> str:
    """The longest command that a line names; empty if it names none."""
    words = line.split()[1:3]
    names = [" ".join(words[:count]) for count in (2, 1)]
    return next((name for name in names if name in COMMANDS), "")


def documented() -> Iterator[tuple[str, str, str]]:
    """Page, command, option: of every command line in the documentation."""
    for page in PAGES:
        for match in LINES.finditer(page.read_text().replace("\\|", "|")):
            for line in re.split(r"\s{3,}(?=cni )|(?<=\s)(?:&&|\||;) ", match[1] or match[2]):
                # `cni check|del NETWORK …` are two commands
                first = line.split()[1] if len(line.split()) > 1 else ""
                for each in first.split("|"):
                    name = command_of(line.replace(first, each, 1))
                    for option in OPTION.findall(line) if name and name not in FOREIGN else ():
                        yield str(page.relative_to(ROOT)), name, option


def test_every_option_is_in_the_table() -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(HEADING)
    text, _, old = rest.partition("\n| command")
    old, end, after = f"| command{old}".partition("\n\n")
    if os.environ.get("CNI_GOLDEN") == "write":
        PAGE.write_text(f"{before}{HEADING}{text}\n{table().rstrip()}{end}{after}")
    else:
        assert old.rstrip() == table().rstrip(), "`make golden` writes the table anew"
    for name in sorted(COMMON):
        assert f"`{name}" in text or f", {name}" in text, f"{name}, which every command has"


DOCUMENTED = sorted(set(documented()))


@pytest.mark.parametrize(("page", "name", "option"), DOCUMENTED)
def test_a_documented_option_exists(page: str, name: str, option: str) -> None:
    command = COMMANDS[name]
    known = names_of(command) | COMMON
    if isinstance(command, click.Group):  # `cni ipam …` in a sentence about its commands
        for below in (each for each in COMMANDS if each.startswith(name)):
            known |= names_of(COMMANDS[below])
    assert option in known, f"{page}: cni {name} has no option {option}"


def test_enough_is_documented() -> None:
    assert len(DOCUMENTED) > 60
    found = {name for _, name, _ in DOCUMENTED}
    assert found > {"del", "gc", "test", "network create", "ipam sync"}
