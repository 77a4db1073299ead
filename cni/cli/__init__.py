"""The command line. Importing this package costs nothing; click is loaded by `main`."""

from __future__ import annotations

import os
import sys


def main(argv: list[str]) -> int:
    """Run the command line with the arguments after the program's name: the exit code.

    0 done, 1 failed, 2 wrong usage, 130 interrupted. Raises nothing.
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

    from . import output
    from .commands import cli
    from .completion import VARIABLE

    try:
        code = cli.main(argv, prog_name="cni", complete_var=VARIABLE, standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.Abort:
        return 130
    except click.ClickException as error:
        output.click_exception(error)
        return error.exit_code
    except BrokenPipeError:
        return _discard_stdout()
    except OSError as error:
        output.line(f"cni: {error}", err=True)
        return _discard_stdout()
    except SystemExit as end:  # how click ends completion, and answers a broken pipe
        return _discard_stdout() if end.code == 1 else int(end.code or 0)


def _open_standard_files() -> None:
    """Put /dev/null where the caller closed a standard file: no other file may get its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `number`


def _discard_stdout() -> int:
    """Let the interpreter flush the rest of a broken stdout to /dev/null. Returns exit code 1."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    return 1
