"""The group of all commands: loads the module of a command when the command is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import click
from click.core import ParameterSource

from cni.protocol.errors import CNIError

from . import COMMANDS, errors, formats, output

# A dict, because it keeps the order of the table.
_SECTIONS = dict.fromkeys(section for _, section, _ in COMMANDS.values())


class LazyGroup(click.Group):
    """Commands by the table in cni/cli/__init__.py."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        place, _, summary = COMMANDS[name]
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(import_module(f".{module}", __package__), attribute)
        command.short_help = summary
        _refuse_empty(command)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, which knows no near names of commands that are loaded when used."""
        name = args[0]
        is_known = name.startswith("-") or self.get_command(context, name) is not None
        # Resilient: tab completion parses a line that is not finished yet.
        if not is_known and not context.resilient_parsing:
            raise click.UsageError(f"there is no command {name}{_near(name)}", context)
        return super().resolve_command(context, args)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except errors.Failed as failure:
            output.error(failure.problem, failure.hint, formats.current())
            context.exit(errors.exit_code(failure.problem))
        except CNIError as problem:
            output.error(problem, "", formats.current())
            context.exit(errors.exit_code(problem))
        except OSError as error:
            # An error without a file name is about stdout (reported by main), or about the current
            # directory, if that was removed.
            is_about_stdout = not error.filename and not errors.is_lost_directory(error)
            if is_about_stdout or isinstance(error, BrokenPipeError):
                raise
            failed = errors.of_system(error)
            output.error(failed, "", formats.current())
            context.exit(errors.exit_code(failed))

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """The summaries by section, without loading any command."""
        width = max(map(len, COMMANDS))
        for section in _SECTIONS:
            rows = [
                (name.ljust(width), summary)
                for name, (_, where, summary) in COMMANDS.items()
                if where == section
            ]
            with formatter.section(section):
                formatter.write_dl(rows)

    def shell_complete(
        self, context: click.Context, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Names and summaries, without loading any command."""
        items = [
            click.shell_completion.CompletionItem(name, help=COMMANDS[name][2])
            for name in sorted(COMMANDS)
            if name.startswith(incomplete)
        ]
        # Not the Group's method: it would load every command for its summary.
        return items + click.Command.shell_complete(self, context, incomplete)


def _near(name: str) -> str:
    # Only a mistyped command needs it.
    from difflib import get_close_matches

    found = get_close_matches(name, COMMANDS, 1, 0.6)
    return f"; did you mean {found[0]}?" if found else ""


_Callback = Callable[[click.Context, click.Parameter, Any], Any]


def _refuse_empty(command: click.Command) -> None:
    """Have empty arguments refused: no name is empty, and a script's variable may not be set."""
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        _refuse_empty(each)
    for param in command.params:
        # click asks for a command twice; its arguments get the check once.
        if isinstance(param, click.Argument) and not isinstance(param.callback, _NotEmpty):
            param.callback = _NotEmpty(param.callback)


class _NotEmpty:
    """The callback of an argument, before its own. One that is left out may be ``""``."""

    def __init__(self, then: _Callback | None) -> None:
        self._then = then

    def __call__(self, context: click.Context, param: click.Parameter, value: Any) -> Any:
        # An optional argument may have "" as its default.
        is_given = context.get_parameter_source(param.name or "") is not ParameterSource.DEFAULT
        if is_given and (value == "" or (isinstance(value, tuple) and "" in value)):
            raise click.BadParameter("it is empty", context, param)
        return self._then(context, param, value) if self._then else value


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from . import version

    if not formats.data(version.facts()):
        output.line(version.text())
    context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@formats.options
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    callback=_version,
    help="Print version, build, interpreter and machine, and exit.",
)
def cli() -> None:
    """Attach network namespaces to networks, show what is attached, and look after the plugins.

    \b
    NETWORK  name of a network that is configured in NETCONFPATH (/etc/cni/net.d)
    NETNS    path of a network namespace, for example /run/netns/blue

    \b
    Environment, as for cnitool:
      NETCONFPATH  directory with network configurations
      CNI_PATH     directories with plugins, separated by colons
      CNI_ARGS     K=V;K2=V2 for the plugins
      CAP_ARGS     JSON object: capability -> value
      CNI_IFNAME   the interface's name in the namespace (eth0)
    """  # noqa: D301 - click wants the control character
