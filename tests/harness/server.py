"""`cni serve` in a node's namespace, for tests of the warm path."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni.server.trace import VARIABLE
from cni.server.wire import HELLO_SIZE

from .netns import stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .runtime import Runtime


class Server:
    """A running server; `socket` is its path."""

    def __init__(self, child: subprocess.Popen[bytes], path: Path) -> None:
        self.child = child
        self.socket = path

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self.child.pid

    def workers(self) -> list[int]:
        """The workers' process ids."""
        return children(self.pid)

    def status(self) -> dict[str, Any]:
        """What `cni serve --status` prints."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.socket))
            sock.sendall(b"status\n")
            answer = b""
            while more := sock.recv(1 << 16):
                answer += more
            found: dict[str, Any] = json.loads(answer[HELLO_SIZE:])
            return found

    def signal_workers(self, number: signal.Signals) -> None:
        for pid in self.workers():
            os.kill(pid, number)

    def end(self, timeout: float = 20) -> int:
        """SIGTERM; the exit code."""
        self.child.terminate()
        return self.child.wait(timeout)


@contextmanager
def serving(
    runtime: Runtime,
    path: Path,
    *options: str,
    bin_dir: Path | None = None,
    mounts: str = "",
    trace: Path | None = None,
) -> Iterator[Server]:
    """A server on the node, which the runtime's plugins find; ended afterwards.

    It may be another file than theirs, and have mounts of its own, which a shell command makes.
    `trace` is where it writes when what happened (cni/server/trace.py).
    """
    command = ["unshare", "-m", "/bin/sh", "-ec", f'{mounts}; exec "$@"', "sh"] if mounts else []
    program = str((bin_dir or runtime.bin_dir) / "cni")
    child = runtime.host.popen(
        [*command, program, "serve", "--socket", str(path), *options],
        env={"PATH": runtime.env["PATH"]} | ({VARIABLE: str(trace)} if trace else {}),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        server = Server(child, path)
        _await_ready(child)
        until(lambda: all(map(children, server.workers())), "every worker is rehearsed")
        runtime.env["CNI_SERVER_SOCKET"] = str(path)
        yield server
    finally:
        stop(child)


def _await_ready(child: subprocess.Popen[bytes]) -> None:
    """Wait for the line that a server prints when it serves."""
    assert child.stderr is not None
    said = b""
    while b"serving on" not in said:
        ready, _, _ = select.select([child.stderr], [], [], 60)
        more = os.read(child.stderr.fileno(), 65536) if ready else b""
        said += more
        assert more, f"the server does not serve:\n{said.decode()}"


def children(pid: int) -> list[int]:
    """The children of a process, zombies left out."""
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(number) for number in tasks.read_text().split()]
    return [each for each in found if state(each) not in ("", "Z")]


def state(pid: int) -> str:
    """The letter that ps shows; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Wait for a condition; AssertionError if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.01)
