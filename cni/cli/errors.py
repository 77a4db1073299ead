"""How a command can fail, and with which exit code (docs/cli.md, "Exit codes").

    CNIError ── CommandError ─┬─ NotFound 3       ├─ Refused 5
                              ├─ Ambiguous 4      └─ NotPermitted 6

A plugin's error is a CNIError; its own code decides the exit code only where scripts care: 11, 50
and 51.
"""

from __future__ import annotations

import os
from errno import ENOENT

from cni.protocol.errors import CNIError

# Exit code -> what it means: the table of docs/cli.md, which a test compares.
EXIT_CODES = {
    0: "done",
    1: "failed: a plugin or the kernel refused, or what was checked is not as it should be",
    2: "wrong usage",
    3: "not found: no such network, container, pod, address or namespace, or nothing is attached",
    4: "ambiguous: several containers, attachments or pods fit; the error lists them",
    5: "refused, because it would harm what is in use: `--force` or `--yes` allows it",
    6: "not permitted: run it as root",
    7: "unknown: nothing wrong was found, but not all could be looked at",
    11: "try again later: another process holds a lock for too long",
    50: "STATUS: no new container can be attached now",
    51: "STATUS: no new container can be attached now, and those that run may be cut off",
    129: "interrupted by SIGHUP, as 130",
    130: "interrupted (Ctrl-C, SIGINT): the running plugin finished, no other was started. A "
    "second Ctrl-C does not wait",
    141: "the reader of stdout has ended, as `head` does behind a pipe: nothing is said",
    143: "interrupted by SIGTERM, as 130",
}
_KEPT = frozenset({11, 50, 51})


class CommandError(CNIError):
    """A command cannot do what its command line asks for."""

    exit_code = 1


class NotFound(CommandError):
    """What the command line names does not exist."""

    exit_code = 3


class Ambiguous(CommandError):
    """What the command line names may be one of several things; the details list them."""

    exit_code = 4


class Refused(CommandError):
    """The command would harm what is in use, and no option (--force, --yes) allows that."""

    exit_code = 5


class NotPermitted(CommandError):
    """The process lacks the right to read or to change something: usually it is not root."""

    exit_code = 6


class Failed(Exception):
    """An error, and a hint: what to do next."""

    def __init__(self, problem: CNIError, hint: str = "") -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.hint = hint


def exit_code(problem: CNIError) -> int:
    """The exit code for an error."""
    if isinstance(problem, CommandError):
        return problem.exit_code
    return problem.code if problem.code in _KEPT else 1


def require_root(what: str) -> None:
    """Raises NotPermitted unless the process is root (in its user namespace)."""
    if os.geteuid() != 0:
        raise NotPermitted(f"only root can {what}", "run it as root, for example with sudo")


def unreadable(path: str, error: OSError) -> CommandError:
    """The error for a file or directory that cannot be read."""
    return _impossible("read", path, error)


def unwritable(path: str, error: OSError) -> CommandError:
    """The error for a file that cannot be written."""
    return _impossible("write", path, error)


def _impossible(verb: str, path: str, error: OSError) -> CommandError:
    message = f"cannot {verb} {path}: {(error.strerror or str(error)).lower()}"
    if isinstance(error, PermissionError):
        return NotPermitted(message, "run it as root" if os.geteuid() != 0 else "")
    return CommandError(message)


def is_lost_directory(error: OSError) -> bool:
    """Did a system call fail because the current directory has been removed?"""
    if error.errno != ENOENT or error.filename:
        return False
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def of_stdout(error: OSError) -> CommandError:
    """The error for a system call that failed, and names no file: usually a write to stdout."""
    if is_lost_directory(error) or error.filename:
        return of_system(error)
    return CommandError(f"cannot write to stdout: {(error.strerror or str(error)).lower()}")


def of_system(error: OSError) -> CommandError:
    """The error for a system call that failed with a file, or in a directory that is gone."""
    if is_lost_directory(error):
        return CommandError("the current directory has been removed", "change to another: cd /")
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
    message = f"{where}: {(error.strerror or str(error)).lower()}"
    if isinstance(error, PermissionError):
        return NotPermitted(message, "run it as root" if os.geteuid() != 0 else "")
    return CommandError(message)
