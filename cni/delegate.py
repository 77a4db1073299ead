"""Finding and running another plugin: IPAM, or the plugin that a meta plugin wraps
(docs/spec/protocol.md §4).
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Collection
from errno import ETXTBSY
from typing import TYPE_CHECKING, Any

import msgspec

from . import interrupts
from .protocol.config import decode_object, version_of
from .protocol.errors import CNIError, DelegateError
from .protocol.request import Request
from .protocol.result import Result

if TYPE_CHECKING:
    from .process import Finished

# as the reference (docs/spec/protocol.md §4)
_BUSY_RUNS = 6
_NOT_FOUND, _IN_PATH = 'failed to find plugin "', '" in path ['
_LONG_NAME = 64  # comparing names takes time that grows with their length
_HEAD_SIZE = 1 << 20  # where a built file has its build id, as in cni.artifact
_STUB_SIZE = 1 << 18  # the small file of a plugin (cni.artifact.stub_of) has no more
_BUILD_BEGINS, _BUILD_LINE = b"\ncni_build=", 24  # its last bytes, and how many: 12 digits, "\n"
_SUFFIXES = (".exe", "") if sys.platform == "win32" else ("",)

# Runs the plugin of that name in this process if the file at that path is this program: (True, its
# result), else (False, None). The dispatcher, which knows the plugins, provides it.
InProcess = Callable[[str, str, Request], "tuple[bool, Result | None]"]


# The limit for nested delegates in this process. flannel needs two: bridge and host-local. A main
# plugin that is configured as its own IPAM plugin would call itself without end.
_running: list[str] = []
_MAX_RUNNING = 2


def find(name: str, path: list[str]) -> str:
    """The file of the plugin `name`: the first regular file on CNI_PATH. Raises CNIError."""
    if not name:
        raise CNIError(
            "no plugin name provided", "the configuration needs a plugin `type` here (ipam.type)"
        )
    if "/" in name or os.sep in name or "\0" in name or name in (".", ".."):
        raise CNIError(f"invalid plugin name: {name}", "a type is a file name without directory")
    directories = [d for d in path if d]
    if not directories:
        raise CNIError("no paths provided", "CNI_PATH lists the directories with plugins")
    for directory in directories:
        for suffix in _SUFFIXES:
            candidate = os.path.join(directory, name + suffix)
            try:
                # the executable bit is not looked at, as in the
                # reference: running the file reports that
                if stat.S_ISREG(os.stat(candidate).st_mode):
                    return candidate
            except (OSError, ValueError):
                continue
    raise CNIError(
        f"{_NOT_FOUND}{name}{_IN_PATH}{' '.join(directories)}]", _advice(name, directories)
    )


def _advice(name: str, directories: list[str]) -> str:
    """What to do if the plugin `name` is in none of the directories."""
    from difflib import get_close_matches

    there: set[str] = set()
    for directory in directories:
        try:
            there.update(each for each in os.listdir(directory) if not each.startswith("."))
        except OSError:
            continue
    # `cni` is the command line, not a plugin
    like = get_close_matches(name[:_LONG_NAME], sorted(there - {"cni"}), 1, 0.75)
    advice = "install the plugin there, or name another directory in CNI_PATH"
    return f'did you mean "{like[0]}"? Else {advice}' if like else advice


def with_remedy(error: CNIError, names: Collection[str]) -> CNIError:
    """The error, with advice how to install, if it is about one of our plugins (`names`) missing.

    The error of `find` may have passed through others, which have added texts to it.
    """
    _, found, rest = error.msg.partition(_NOT_FOUND)
    name, _, rest = rest.partition(_IN_PATH)
    if found and name in names:
        directory = rest.partition("]")[0].partition(" ")[0]
        if not os.path.isdir(directory):  # it does not exist yet, or has a space in its name
            directory = "DIR"
        error.details = f"run `cni install --bin-dir {directory}`, which installs it"
    return error


def run(request: Request, name: str, in_process: InProcess) -> Result | None:
    """Run the plugin `name` with `request`; return an ADD's Result, else None.

    Raises DelegateError, with the plugin's own code and text, if it ran in another process; the
    plugin's exception if it ran in this one; CNIError if it cannot be run, or its answer is
    unintelligible; Terminated.
    """
    program = find(name, request.path)
    ours, result = run_in_process(in_process, name, program, request)
    return result if ours else run_program(program, request)


def run_in_process(
    in_process: InProcess, name: str, program: str, request: Request
) -> tuple[bool, Result | None]:
    """Call `in_process`. Raises CNIError when delegates call each other without end."""
    if len(_running) >= _MAX_RUNNING:
        raise CNIError(
            f"plugins call each other without end: {', '.join(_running)}",
            "ipam.type is the name of an IPAM plugin, such as host-local",
        )
    _running.append(name)
    try:
        return in_process(name, program, request)
    finally:
        _running.pop()


def run_program(program: str, request: Request) -> Result | None:
    """Run the plugin in the file `program` as a child process; returns and raises as `run`."""
    output = execute(program, request)
    return parse_output(output, request.stdin) if request.command == "ADD" else None


def is_ourselves(program: str) -> bool:
    """Is the file at this path the one of this process, or one of the same build?"""
    try:
        if sys.platform == "win32":
            from .windows.launcher import is_twin

            return is_twin(program, sys.argv[0])
        other, own = os.stat(program), os.stat(sys.argv[0])
        if os.path.samestat(other, own):
            return True
        # A plugin's file of an installation is small, and ends with its build id
        # (cni.artifact.stub_of): to compare that is cheaper than to search a file for ours.
        is_small, like_ours = other.st_size <= _STUB_SIZE, other.st_size == own.st_size
        if is_small and like_ours:
            end = _end_of(program, other.st_size)
            if end.startswith(_BUILD_BEGINS) and end == _end_of(sys.argv[0], own.st_size):
                return True
        return (is_small or like_ours) and _is_our_build(program)
    except (OSError, ValueError):
        return False


def _end_of(program: str, size: int) -> bytes:
    """The end of a file of `size` bytes, as long as a line with a build id is. Raises OSError."""
    fd = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, _BUILD_LINE, max(size - _BUILD_LINE, 0))
    finally:
        os.close(fd)


def _is_our_build(program: str) -> bool:
    """Has the file our build id? (`cni install` changes only the interpreter's name in a file.)

    Raises OSError.
    """
    from ._build import ID

    with open(program, "rb") as file:
        return f"\ncni_build={ID}\n".encode() in file.read(_HEAD_SIZE)


def parse_output(output: bytes, stdin: bytes) -> Result:
    """The Result that an ADD printed; a missing version means that of the configuration."""
    try:
        raw = _json(output)
    except ValueError as error:
        raise CNIError(f"failed to decode the plugin's result: {error}") from None
    version = version_of(decode_object(stdin))
    if isinstance(raw, dict):
        version = raw.get("cniVersion") or version
    return Result.parse(raw, version)


def _json(data: bytes) -> Any:
    """The document that another program printed. Raises ValueError, with Go's words."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):
        from .protocol import gojson

        return gojson.decode(data)


def pass_on(data: bytes) -> None:
    """Write a plugin's stderr to our own, escaped."""
    from . import stderr

    stderr.passed_on(data)


def execute(
    program: str, request: Request, show_stderr: Callable[[bytes], None] = pass_on
) -> bytes:
    """Run a program with the request's environment and stdin; return its stdout.

    If it succeeds, `show_stderr` is called with its stderr. Raises CNIError.
    """
    # the whole environment, as in the reference
    env = {**request.env, "CNI_COMMAND": request.command}
    code, stdout, stderr = _run_unless_busy(program, request.stdin, env)
    if code != 0:
        raise _failure(stdout, stderr, f"exit status {code}" if code > 0 else f"signal {-code}")
    if stderr:
        show_stderr(stderr)
    return stdout


def _run_unless_busy(program: str, stdin: bytes, env: dict[str, str]) -> Finished:
    from . import process

    for attempt in range(1, _BUSY_RUNS + 1):
        try:
            return process.run(program, [program], stdin, env)
        except OSError as error:
            if error.errno == ETXTBSY and attempt < _BUSY_RUNS:
                with interrupts.waiting():
                    time.sleep(1)  # an installation is writing the file
                continue
            raise CNIError(
                f"fork/exec {program}: {(error.strerror or '').lower()}",
                "is it an executable for this machine?",
            ) from None
    raise AssertionError("unreachable")


def _failure(stdout: bytes, stderr: bytes, how: str) -> CNIError:
    if not stdout:
        text = stderr.decode(errors="replace").strip()
        if text:
            return DelegateError(0, f'netplugin failed: "{text}"')
        return DelegateError(0, f"netplugin failed with no error message: {how}")
    try:
        raw = _json(stdout)
        if not isinstance(raw, dict):
            raise ValueError("it is no JSON object")
        code = raw.get("code")
        code = 0 if code is None else code
        # not isinstance(): in Python `true` would pass for a number
        if type(code) not in (int, float):
            raise ValueError("its code is no number")
        return DelegateError(int(code), str(raw.get("msg", "")), str(raw.get("details", "")))
    except (OverflowError, ValueError) as error:
        shown = stdout.decode(errors="replace")
        return DelegateError(
            0, f'netplugin failed but error parsing its diagnostic message "{shown}": {error}'
        )
