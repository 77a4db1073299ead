"""An ADD through the server whose client cannot write the result: undone, as by exec."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from cni.protocol.errors import IOFailure
from cni.server import worker
from tests.harness import links
from tests.harness.contract import leases
from tests.harness.server import Watch, served
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns, Runtime
    from tests.harness.server import Server

Json = dict[str, Any]


def started_add(
    runtime: Runtime, container: Netns, conf: Json, **streams: Any
) -> subprocess.Popen[bytes]:
    """A client of bridge's ADD, whose stdin is written; `streams` may name its stdout."""
    child = runtime.host.popen(
        [runtime.bin_dir / "bridge"],
        env=runtime.environment("ADD", container),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **streams,
    )
    child.stdin.write(json.dumps({"type": "bridge", **conf}).encode())
    child.stdin.close()
    child.stdin = None  # communicate() would flush it
    return child


def with_large_result(data_dir: Path) -> Json:
    """A bridge whose result is larger than a page, the smallest capacity of a pipe."""
    routes = [{"dst": f"10.99.{number}.0/24"} for number in range(100)]
    ipam = {"type": "host-local", "subnet": "10.40.0.0/24", "dataDir": str(data_dir)}
    return {
        "cniVersion": "1.1.0",
        "name": "net",
        "ipam": {**ipam, "routes": routes},
        "isGateway": True,
    }


def small_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    return reader, writer


@pytest.mark.parametrize("sink", ["full", "unread", "half read"])
def test_a_result_that_cannot_be_written_is_undone(
    sink: str, runtime: Runtime, container: Netns, server: Server, data_dir: Path
) -> None:
    conf = with_large_result(data_dir)
    before = set(links(runtime.host))
    reader, writer = small_pipe() if sink != "full" else (-1, os.open("/dev/full", os.O_WRONLY))
    with Watch(server) as watch:
        child = started_add(runtime, container, conf, stdout=writer)
        os.close(writer)
        if sink == "half read":
            assert os.read(reader, 1)
        if reader >= 0:
            os.close(reader)
        _, said = child.communicate(timeout=60)
    assert watch.handled == 1
    assert (child.returncode, b"cannot write to stdout" in said) == (1, True)
    assert set(links(runtime.host)) == before
    assert "eth0" not in links(container)
    assert not leases(data_dir)
    served(server, lambda: runtime.add("bridge", conf, container).succeeded())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_result_is_written_is_too_late(
    number: signal.Signals, runtime: Runtime, container: Netns, server: Server, data_dir: Path
) -> None:
    """The result is decided: all of it comes, and stands."""
    conf = with_large_result(data_dir)
    reader, writer = small_pipe()
    child = started_add(runtime, container, conf, stdout=writer)
    os.close(writer)
    begin = os.read(reader, 1)  # the pipe is full, and the client waits
    child.send_signal(number)
    with os.fdopen(reader, "rb") as rest:
        result = json.loads(begin + rest.read())
    child.communicate(timeout=60)
    assert child.returncode == 0
    assert leases(data_dir)
    runtime.check("bridge", conf, container, prev_result=result).succeeded()


def test_a_client_killed_while_it_writes_the_result(
    runtime: Runtime, container: Netns, server: Server, data_dir: Path
) -> None:
    """As a plugin that is killed: a DEL removes all, and the server goes on."""
    conf = with_large_result(data_dir)
    reader, writer = small_pipe()
    child = started_add(runtime, container, conf, stdout=writer)
    os.close(writer)
    assert os.read(reader, 1)
    child.kill()
    child.communicate(timeout=60)
    os.close(reader)
    wait_until(lambda: len(server.workers()) == 2, "another worker")
    served(server, lambda: runtime.delete("bridge", conf, container).succeeded())
    assert not leases(data_dir)


def test_a_result_stands_whose_client_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_REPORT_TIMEOUT", 0.01)
    ours, clients = socket.socketpair()
    with ours, clients:
        serving_it: Any = SimpleNamespace(conn=ours, watched=ours)
        worker.Worker._deliver(serving_it, b"{}")
        assert (serving_it.conn, serving_it.watched) == (None, None)


class Failing:
    """A connection, of which one method fails once."""

    def __init__(self, conn: socket.socket, method: str) -> None:
        self.conn, self.method = conn, method

    def __getattr__(self, name: str) -> Any:
        if name == self.method:
            self.method = ""
            return self._fail
        return getattr(self.conn, name)

    def _fail(self, *_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("method", "size"),
    [("setsockopt", 2), ("send", 2), ("settimeout", 8 << 20), ("sendall", 8 << 20), ("recv", 2)],
)
def test_an_error_of_the_connection(method: str, size: int) -> None:
    """A result that was not sent is undone; one that was sent stands. A large one does not fit into
    the connection at once.
    """
    ours, clients = socket.socketpair()
    with ours, clients:
        clients.sendall(b"w\0")
        failing: Any = Failing(ours, method)
        serving_it: Any = SimpleNamespace(conn=failing, watched=failing)
        if method == "recv":
            worker.Worker._deliver(serving_it, bytes(size))
        else:
            with pytest.raises(IOFailure, match="cannot send the result"):
                worker.Worker._deliver(serving_it, bytes(size))
        assert serving_it.conn is None  # nothing more is sent


@pytest.mark.parametrize("before", [b"", b"\x0f", b"\x01\x02\x0f"], ids=["", "a signal", "signals"])
@pytest.mark.parametrize("error", [0, errno.ENOSPC])
def test_a_report_after_signals(before: bytes, error: int) -> None:
    ours, clients = socket.socketpair()
    with ours, clients:
        clients.sendall(before + (b"f" if error else b"w"))
        clients.sendall(bytes([error]))
        serving_it: Any = SimpleNamespace(conn=ours, watched=ours)
        if not error:
            worker.Worker._deliver(serving_it, b"{}")
            return
        with pytest.raises(IOFailure, match="no space left"):
            worker.Worker._deliver(serving_it, b"{}")
        assert serving_it.conn is ours
