"""Runs many command lines of `cni` in one process, which forks for each: a start costs nothing.

    python -m tests.harness.many_commands <requests.json

Each request is [arguments, terminal]: with a terminal of 80 columns, or with pipes. The answer is a
list of [exit code, stdout or what the terminal shows, stderr].
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from typing import TextIO

COLUMNS = 80
_DEADLINE = 240  # seconds for one command

Answer = tuple[int, str, str]


def run(arguments: list[str], terminal: bool, program: str = "cni", typed: bytes = b"") -> Answer:
    """Run one command, which is called as `program`; `typed` is what a person types."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if terminal:
            pid, fd = pty.fork()
            if pid == 0:
                _become(arguments, program)
            os.write(fd, typed)
            fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
            shown = _read(fd, pid)
            os.close(fd)
            return _code(pid), shown.decode(errors="replace").replace("\r\n", "\n"), ""
        pid = os.fork()
        if pid == 0:
            null = os.open(os.devnull, os.O_RDONLY)
            for number, file in enumerate((null, out.fileno(), err.fileno())):
                os.dup2(file, number)
            _become(arguments, program)
        deadline = time.monotonic() + _DEADLINE
        # WNOWAIT leaves the zombie for _code, which takes the exit code from it.
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        code = _code(pid)
        out.seek(0)
        err.seek(0)
        return code, out.read().decode(errors="replace"), err.read().decode(errors="replace")


BROKEN = ("full", "no reader", "read-only", "closed", "no directory")


def run_broken(arguments: list[str], how: str) -> Answer:
    """Run one command whose stdout or current directory is of no use, in one of the ways BROKEN."""
    with tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            null = os.open(os.devnull, os.O_RDONLY)
            if how == "no directory":
                os.chdir(tempfile.mkdtemp())
                os.rmdir(os.getcwd())
            out = _broken_stdout(how)
            for number, fd in enumerate((null, out, err.fileno())):
                os.dup2(fd, number)
            if how == "closed":
                os.close(1)
            _become(arguments, "cni")
        code = _code(pid)
        err.seek(0)
        return code, "", err.read().decode(errors="replace")


def _broken_stdout(how: str) -> int:
    if how == "no reader":
        reader, writer = os.pipe()
        os.close(reader)
        return writer
    paths = {"full": ("/dev/full", os.O_WRONLY), "read-only": (os.devnull, os.O_RDONLY)}
    return os.open(*paths.get(how, (os.devnull, os.O_WRONLY)))


def _become(arguments: list[str], program: str) -> None:
    # It stays if the import fails or main() raises: that must not look like success.
    code = 99
    try:
        from cni.cli import main

        sys.argv = [program, *arguments]
        for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            setattr(sys, name, _stream(number))
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # Not sys.exit: the child must not go on with what the parent has left to do.
        os._exit(code)


def _stream(number: int) -> TextIO | None:
    """As the interpreter makes it: None where the caller has closed the file."""
    try:
        os.fstat(number)
    except OSError:
        return None
    mode = "r" if number == 0 else "w"
    return open(number, mode, buffering=1, closefd=False)


def _read(fd: int, pid: int) -> bytes:
    shown, deadline = b"", time.monotonic() + _DEADLINE
    while select.select([fd], [], [], max(deadline - time.monotonic(), 0))[0]:
        try:
            chunk = os.read(fd, 65536)
        except OSError:  # how the end of a terminal reads
            return shown
        if not chunk:
            return shown
        shown += chunk
    os.kill(pid, signal.SIGKILL)
    return shown + b"\n(it was killed)"


def _code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    import cni.cli.group  # noqa: F401 loaded once for all

    json.dump(
        [
            run_broken(arguments, how) if isinstance(how, str) else run(arguments, how)
            for arguments, how in json.load(sys.stdin)
        ],
        sys.stdout,
    )


if __name__ == "__main__":
    main()
