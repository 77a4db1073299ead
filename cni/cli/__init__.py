"""The command line. Importing this package costs nothing; click is loaded by `main`."""

from __future__ import annotations

import os
import sys

from cni.files import open_null

# Command -> the place of its function, its section of `cni --help`, and its text in the help and in
# tab completion. The module is loaded when the command is used.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "add": ("commands:add", "Attach", "Attach a namespace to a network."),
    "check": ("commands:check", "Attach", "Check that an attachment is as `add` left it."),
    "del": ("commands:delete", "Attach", "Detach a namespace or container."),
    "gc": ("gc:gc", "Attach", "Delete attachments whose namespace is gone."),
    "ipam": ("ipam:ipam", "See", "Show, check and release addresses of host-local."),
    "ls": ("show:ls", "See", "Show the networks of this node, their ranges and use."),
    "ps": ("show:ps", "See", "Show what is attached: containers, addresses, ports."),
    "inspect": ("inspection:inspect", "See", "Show all that a container or network has."),
    "ports": ("show:ports", "See", "Show which ports of the node lead where."),
    "rules": ("show:rules", "See", "Show the packet filter's rules by container."),
    "graph": ("graph:graph", "See", "Draw the node, its bridges and containers."),
    "metrics": ("metrics:metrics", "See", "Print what is in use, for Prometheus."),
    "plugins": ("plugins:plugins", "See", "Show the plugins in this file."),
    "validate": ("validate:validate", "Judge", "Find what is wrong with configurations."),
    "plan": ("plan:plan", "Judge", "Say what an ADD would do, without doing it."),
    "doctor": ("doctor:doctor", "Judge", "Find faults of this node, and how to repair them."),
    "test": ("probe.command:test", "Judge", "Attach two containers, and send packets."),
    "conform": ("conform.command:conform", "Judge", "Run plugins against the specification."),
    "sysdump": ("sysdump.command:sysdump", "Judge", "Write all that a bug report needs to a file."),
    "trace": ("trace.command:trace", "Judge", "Time each step of an ADD, CHECK or DEL."),
    "explain": ("explain:explain", "Judge", "Explain a plugin's keys, or one of them."),
    "schema": ("schema:schema_command", "Judge", "Print the JSON Schema of configurations."),
    "status": ("status:status", "Judge", "Ask whether a container could be attached now."),
    "network": ("network:network", "Node", "Make, list and remove networks."),
    "dhcp": ("dhcp:dhcp", "Node", "Run the DHCP daemon, or show its leases."),
    "install": ("install:install", "Node", "Install the plugins."),
    "migrate": ("migrate:migrate", "Node", "Prepare a return to the Go plugins."),
    "reload": ("reload:reload", "Node", "Make flushed packet filter rules again."),
    "serve": ("serve:serve", "Node", "Answer plugin requests without starting Python."),
    "uninstall": ("install:uninstall", "Node", "Remove what `install` made."),
    "completion": ("completion:completion", "Node", "Print a shell's completion script."),
}


_NO_READER = 141  # exit code of programs that SIGPIPE ends, which Python ignores


def main(argv: list[str]) -> int:
    """Run the command line with the arguments after the program's name; return the exit code.

    errors.EXIT_CODES lists the codes. Raises nothing.
    """
    try:
        _open_standard_files()
        return _run(argv)
    except KeyboardInterrupt:  # while modules were loaded
        return 130
    except Exception as error:  # noqa: BLE001 a defect, whose text may contain anything
        from . import output

        output.exception(error)
        return 1


def _run(argv: list[str]) -> int:
    import click

    from . import formats, output
    from .completion import VARIABLE
    from .group import cli

    stdout = sys.stdout
    try:
        # Not standalone: click would print errors itself, and not in the form that -o asks for.
        code = cli.main(argv, prog_name="cni", complete_var=VARIABLE, standalone_mode=False)
        if sys.stdout is not None:
            # A full disk is reported here; at the interpreter's exit it could not be any more.
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.Abort:
        return 130
    except click.ClickException as error:
        output.click_exception(error, formats.asked_for(argv))
        return error.exit_code
    except OSError as error:
        return _without_stdout(error)
    except SystemExit as end:  # click ends completion, and a broken pipe, in this way
        # click replaces stdout, and exits with 1, if the reader of the pipe has ended.
        if sys.stdout is not stdout:
            return _discard_stdout(_NO_READER)
        return _discard_stdout(1) if end.code == 1 else int(end.code or 0)


def _without_stdout(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        return _discard_stdout(_NO_READER)
    from . import errors, output

    output.error(errors.of_stdout(error))
    return _discard_stdout(1)


def _open_standard_files() -> None:
    """Open /dev/null for each closed standard descriptor, so that no other file gets its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            open_null()  # gets the lowest free number, which is `number`


def _discard_stdout(code: int) -> int:
    """Let the interpreter flush the rest of a broken stdout to /dev/null. Returns `code`."""
    null = open_null()
    os.dup2(null, 1)
    os.close(null)
    return code
