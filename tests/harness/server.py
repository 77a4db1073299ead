"""`cni serve` in a node's namespace, for tests of the warm path."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni.server.observing import Observing
from cni.server.tending import Following, Tending
from cni.server.trace import VARIABLE
from cni.server.wire import HELLO_SIZE

from .netns import Netns, stop
from .wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .runtime import Reply, Runtime


MAGIC = 0x32494E43  # "CNI2" in memory


class Server:
    """A running server; `socket` is its path, `host` the node's namespace."""

    def __init__(self, child: subprocess.Popen[bytes], path: Path, host: Netns) -> None:
        self.child = child
        self.socket = path
        self.host = host
        self.said = ""  # on stderr, until it was ready

    def connect(self) -> socket.socket:
        """A connection of a client on the node."""
        sock = self.host.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(str(self.socket))
        return sock

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self.child.pid

    def workers(self) -> list[int]:
        """The workers' process ids."""
        others = (Observing.name, Tending.name, Following.name)
        return [pid for pid in children(self.pid) if command(pid) not in others]

    def observers(self) -> list[int]:
        """The process for metrics, if there is one."""
        return [pid for pid in children(self.pid) if command(pid) == Observing.name]

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


def encode_request(program: str, env: Mapping[str, str], stdin: bytes) -> bytes:
    """What the client sends first (launcher/client.c)."""

    def block(*texts: str) -> bytes:
        return "".join(f"{text}\0" for text in texts).encode()

    own = [text for pair in env.items() if pair[0].startswith("CNI_") for text in pair]
    others = [text for pair in env.items() if not pair[0].startswith("CNI_") for text in pair]
    strings, inherited = block(program, *own), block(*others)
    return encode_header(len(strings), len(inherited), len(stdin)) + strings + inherited + stdin


def encode_header(strings: int, inherited: int, stdin: int, magic: int = MAGIC) -> bytes:
    """The beginning of a request, with the sizes of its parts."""
    return struct.pack("=IIIII", magic, strings, inherited, stdin, 0)


def send_go(
    sock: socket.socket, named: int, which: int = 0, *fds: int, root: str = "/", cwd: str = "/"
) -> None:
    """What the client sends after the hello, with stderr and two directories, naming a process."""
    here, top = (os.open(path, os.O_PATH) for path in (cwd, root))
    try:
        ancillary = [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [2, here, top, *fds])),
            # Root may name any process that exists (unix(7)).
            (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("=iII", named, 0, 0)),
        ]
        sock.sendmsg([bytes([which])], ancillary)
    finally:
        os.close(here)
        os.close(top)


def served(server: Server, work: Callable[[], Reply]) -> Reply:
    """The reply, which came from a worker: nobody executed Python for it."""
    with Watch(server) as watch:
        reply = work()
    assert watch.handled == 1, f"the server handled {watch.handled} requests\n{reply}"
    return reply


def by_exec(server: Server, work: Callable[[], Reply]) -> Reply:
    """The reply, which did not come from a worker."""
    with Watch(server) as watch:
        reply = work()
    assert watch.handled == 0, f"the server handled {watch.handled} requests\n{reply}"
    return reply


class Watch:
    """Counts the requests that the server takes while it watches."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.handled = 0

    def __enter__(self) -> Watch:
        self._before = self.server.status()["served"]
        return self

    def __exit__(self, *_: object) -> None:
        self.handled = self.server.status()["served"] - self._before


@contextmanager
def serving(
    runtime: Runtime,
    path: Path,
    *options: str,
    bin_dir: Path | None = None,
    mounts: str = "",
    trace: Path | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Server]:
    """A server on the node, which the runtime's plugins find; ended afterwards.

    It may be another file than theirs, and have mounts of its own, which a shell command makes.
    `trace` is where it writes when what happened (cni/server/trace.py), `prefix` a command that
    executes it.
    """
    command = ["unshare", "-m", "/bin/sh", "-ec", f'{mounts}; exec "$@"', "sh"] if mounts else []
    program = str((bin_dir or runtime.bin_dir) / "cni")
    child = runtime.host.popen(
        [*prefix, *command, program, "serve", "--socket", str(path), *options],
        env={"PATH": runtime.env["PATH"]} | ({VARIABLE: str(trace)} if trace else {}),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        server = Server(child, path, runtime.host)
        server.said = _await_ready(child)
        # The rehearsal starts a worker's executor, which is its child.
        wait_until(lambda: all(map(children, server.workers())), "every worker is rehearsed")
        runtime.env["CNI_SERVER_SOCKET"] = str(path)
        yield server
    finally:
        stop(child)


def _await_ready(child: subprocess.Popen[bytes]) -> str:
    """Wait for the line that a server prints when it serves; all that it has printed."""
    assert child.stderr is not None
    said = b""
    while b"serving on" not in said:
        ready, _, _ = select.select([child.stderr], [], [], 60)
        more = os.read(child.stderr.fileno(), 65536) if ready else b""
        said += more
        assert more, f"the server does not serve:\n{said.decode()}"
    return said.decode()


def children(pid: int) -> list[int]:
    """The children of a process, zombies left out.

    /proc/PID/task/*/children, which says so at once, needs a kernel with CONFIG_PROC_CHILDREN.
    """
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name between the parentheses may have blanks and parentheses itself.
            letter, parent = status.read_text().rpartition(") ")[2].split()[:2]
            if int(parent) == pid and letter != "Z":
                found.append(int(status.parent.name))
    return sorted(found)


def command(pid: int) -> str:
    """The name of a process; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def state(pid: int) -> str:
    """The letter that ps shows; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
