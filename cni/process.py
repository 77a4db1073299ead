"""Running another program to its end, without the subprocess module (10 ms of a request)."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from errno import EPERM
from typing import NamedTuple, NoReturn

from . import interrupts
from .files import write_all

_MAX_OUTPUT = 64 << 20


class Finished(NamedTuple):
    """How a program ended: exit code (negative: by a signal), and all that it wrote."""

    code: int
    stdout: bytes
    stderr: bytes


def run(
    program: str, argv: list[str], stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> Finished:
    """Run the file `program` with `argv` (argv[0] included) and wait. Raises OSError.

    Uses memory files instead of pipes: no write blocks on a full one, and none has to be polled.
    """
    if sys.platform == "win32":
        return _run_on_windows(program, argv, stdin, env)
    files = [os.memfd_create(f"cni-{what}") for what in ("stdin", "stdout", "stderr")]
    try:
        write_all(files[0], stdin)
        os.lseek(files[0], 0, os.SEEK_SET)
        pid = _start(program, argv, os.environ if env is None else env, files)
        return Finished(_wait(pid), _content(files[1]), _content(files[2]))
    finally:
        for fd in files:
            os.close(fd)


def _start(program: str, argv: list[str], env: Mapping[str, str], files: list[int]) -> int:
    """Start the program with `files` as descriptors 0, 1 and 2: its pid. Raises OSError."""
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)]
    try:
        return os.posix_spawn(program, argv, env, file_actions=actions)
    except PermissionError as error:
        if error.errno != EPERM:  # EACCES: it may not be executed
            raise
        # EPERM: old seccomp profiles refuse clone3(2), which the C library uses
        return _fork(program, argv, env, files)


def _fork(program: str, argv: list[str], env: Mapping[str, str], files: list[int]) -> int:
    """As `_start`, by fork(2), which takes longer."""
    receiving, sending = os.pipe()  # closed by a successful exec
    try:
        pid = os.fork()
        if pid == 0:
            _become(program, argv, env, files, sending)
        os.close(sending)
        sending = -1
        failure = os.read(receiving, 16)
    finally:
        os.close(receiving)
        if sending >= 0:
            os.close(sending)
    if failure:
        os.waitpid(pid, 0)
        raise OSError(int(failure), os.strerror(int(failure)), program)
    return pid


def _become(
    program: str, argv: list[str], env: Mapping[str, str], files: list[int], sending: int
) -> NoReturn:
    """The forked child: execute the program, or send the errno of what failed, and end."""
    try:
        for number, fd in enumerate(files):
            os.dup2(fd, number)
        os.execve(program, argv, env)
    except OSError as error:
        os.write(sending, str(error.errno or EPERM).encode())
    finally:
        # not sys.exit(): this is a copy of the parent, whose
        # buffers and handlers must not run twice
        os._exit(127)


def _run_on_windows(
    program: str, argv: list[str], stdin: bytes, env: Mapping[str, str] | None
) -> Finished:
    import subprocess

    done = subprocess.run(
        argv,
        executable=program,
        input=stdin,
        env=None if env is None else dict(env),
        capture_output=True,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def _wait(pid: int) -> int:
    """The exit code of a child. Terminated ends the wait, and the child with it."""
    try:
        with interrupts.waiting():
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # not reaped: its pid stays
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:  # nobody would wait for the child, or use its output
        _end(pid)
        raise


def _end(pid: int) -> None:
    """End a child, at the latest after a second, and wait for it."""
    try:
        # first a signal that it can answer: a plugin undoes its ADD
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except OSError:
        pass  # it has ended already; or seccomp refuses the signal, and it ends by itself


def _content(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    chunks = []
    left = _MAX_OUTPUT
    while left > 0 and (chunk := os.read(fd, min(left, 1 << 20))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)
