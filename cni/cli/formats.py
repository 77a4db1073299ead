"""The options `-o` and `--json`, which every command has: in which form a command prints.

A command gives its result once, as a JSON value, with the table or lines for a person:

    @formats.options
    def ls() -> None:
        formats.present(value, table=rows, names=[…])

Without the options a person gets the table or the lines. Errors come in the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from . import output, table

F = TypeVar("F", bound=Callable[..., Any])
FORMATS = ("json", "yaml", "name", "wide")
_KEY = "cni.cli.format"


def options(function: F) -> F:
    """Give a command the options ``-o/--output FORMAT`` and ``--json``."""
    return options_with(click.Choice(FORMATS))(function)


def options_with(kind: click.ParamType[Any], more: str = "") -> Callable[[F], F]:
    """As `options`, with the type `kind` for ``-o``; `more` is the help for further formats."""
    return lambda function: _with_options(function, kind, more)


def _with_options(function: F, kind: click.ParamType[Any], more: str) -> F:
    for option in (
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_choose_json,
            help="The same as -o json.",
        ),
        click.option(
            "-o",
            "--output",
            metavar="FORMAT",
            type=kind,
            expose_value=False,
            is_eager=True,
            callback=_choose,
            help="json, yaml, name (one name a line) or wide (nothing is left out); errors, too."
            + more,
        ),
    ):
        function = option(function)
    return function


def file_options(kind: click.ParamType[Any], text: str) -> Callable[[F], F]:
    """As `options`, for a command that writes a file: ``-o`` takes FORMAT, or the file's name,
    which becomes the parameter `target` ("" if none is given).
    """

    def target(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> str:
        targets = [value for value in values if value not in FORMATS]
        # `-o json -o FILE` is possible: a form for the report, and a file for the content.
        for value in values:
            if value in FORMATS:
                context.meta[_KEY] = value
        return targets[-1] if targets else ""

    def decorate(function: F) -> F:
        function = click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            callback=_choose_json,
            help="The same as -o json.",
        )(function)
        return click.option(
            "-o",
            "--output",
            "target",
            metavar="FILE|FORMAT",
            type=kind,
            multiple=True,
            is_eager=True,
            callback=target,
            help=text,
        )(function)

    return decorate


def _choose(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        context.meta[_KEY] = value


def _choose_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    _choose(context, parameter, "json" if value else None)


def current() -> str:
    """The requested form: one of FORMATS, or "" for a person."""
    context = click.get_current_context(silent=True)
    # meta is shared by a context and those of its subcommands.
    return context.meta.get(_KEY, "") if context is not None else ""


def is_data() -> bool:
    """Is the requested form JSON or YAML?"""
    return current() in ("json", "yaml")


def asked_for(arguments: list[str]) -> str:
    """The form that a command line requests, even if click cannot parse it."""
    # Not parsed with click: this is for the error that click could not parse the line.
    for at, argument in enumerate(arguments):
        # What follows are arguments, even if it looks like an option.
        if argument == "--":
            break
        if argument == "--json":
            return "json"
        for option in ("--output=", "-o"):
            value = argument.removeprefix(option)
            if value != argument and value in FORMATS:
                return value
        if argument in ("-o", "--output") and arguments[at + 1 : at + 2] != []:
            value = arguments[at + 1]
            if value in FORMATS:  # else it may name a file
                return value
    return ""


def data(value: Any) -> bool:
    """Print `value` if the requested form is JSON or YAML; else return False."""
    if not is_data():
        return False
    output.document(value, current())
    return True


def present(
    value: Any,
    *,
    lines: Iterable[str] = (),
    rows: table.Table | None = None,
    names: Iterable[str] = (),
) -> None:
    """Print a result in the requested form: `value` as data, `names` one a line, or for a person
    `lines` and the table `rows`.
    """
    if data(value):
        return
    if current() == "name":
        for name in names:
            output.line(name)
        return
    for line in lines:
        if current() == "wide":
            output.line(line)
        else:
            output.paragraph(line)
    if rows is not None:
        output.table(rows, wide=current() == "wide")


def done(value: Any, text: str, names: Iterable[str] = (), *, always: bool = False) -> None:
    """Report that a command has done its work: as data if requested, else a line on a terminal.

    `always`: also if stdout is no terminal, because the text is the result, as in a dry run.
    """
    if data(value):
        return
    if current() == "name":
        for name in names:
            output.line(name)
        return
    if always:
        output.line(text)
    else:
        output.done(text)
