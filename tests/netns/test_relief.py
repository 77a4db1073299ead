"""Where all workers wait for something, the server has more of them for a while."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.server import relief, wire
from tests.harness.server import HELLO_SIZE, by_exec, encode_request, served, serving
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Netns, Runtime
    from tests.harness.server import Server

pytestmark = pytest.mark.own_server

WORKERS = 2
LOOPBACK = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}


@pytest.fixture
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "s"


class Waiting:
    """ADDs of a network whose IPAM plugin waits until it is let go."""

    def __init__(self, runtime: Runtime, make: Callable[..., Netns], folder: Path) -> None:
        self.runtime, self.make, self.folder = runtime, make, folder
        self.go = folder / "go"
        self.children: list[subprocess.Popen[bytes]] = []
        program = folder / "bin" / "slow"
        program.parent.mkdir()
        program.write_text(
            f'#!/bin/sh\n[ "$CNI_COMMAND" = DEL ] && exit 0\ntouch {folder}/in-$CNI_CONTAINERID\n'
            f"while [ ! -e {self.go} ]; do sleep 0.05; done\n"
            'echo \'{"cniVersion":"1.1.0","ips":[{"address":"10.1.1.1/24"}]}\'\n'
        )
        program.chmod(0o755)
        runtime.cni_path = f"{program.parent}:{runtime.bin_dir}"

    def begin(self, count: int) -> None:
        """So many more begin; they wait when this returns."""
        conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net1", "ipam": {"type": "slow"}}
        for number in range(len(self.children), len(self.children) + count):
            there = self.make("slow"), f"c{number}"
            child = self.runtime.start("ADD", "bridge", conf, there[0], container_id=there[1])
            self.children.append(child)
            wait_until((self.folder / f"in-{there[1]}").exists, "the IPAM plugin runs")

    def end(self) -> None:
        """They succeed."""
        self.go.touch()
        for child in self.children:
            output, _ = child.communicate(timeout=60)
            assert child.returncode == 0, output


@pytest.fixture
def waiting(runtime: Runtime, netns: Callable[..., Netns], tmp_path: Path) -> Waiting:
    return Waiting(runtime, netns, tmp_path)


def greeted(server: Server, runtime: Runtime, container: Netns, padding: int = 0) -> bytes:
    """What the server says to a request, however long that takes; the request does not begin."""
    env = runtime.environment("ADD", container, ifname="lo")
    stdin = b'{"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}' + b" " * padding
    with server.connect() as sock:
        sock.settimeout(60)
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(encode_request(str(runtime.bin_dir / "loopback"), env, stdin))
        return sock.recv(HELLO_SIZE)


def test_a_request_behind_others_that_wait(
    runtime: Runtime, container: Netns, waiting: Waiting, socket_path: Path
) -> None:
    """It gets a worker while the others still wait; later there are as many workers as before."""
    with serving(runtime, socket_path, "--workers", str(WORKERS)) as server:
        waiting.begin(WORKERS)
        assert len(greeted(server, runtime, container)) == HELLO_SIZE
        assert server.status()["busy"] == WORKERS
        assert all(child.poll() is None for child in waiting.children)
        assert WORKERS < len(server.workers()) <= 2 * WORKERS
        waiting.end()
        wait_until(lambda: len(server.workers()) == WORKERS, "the further workers end", 60)
        status = server.status()
    assert (status["workers"], status["busy"]) == (WORKERS, 0)


def test_many_that_wait(
    runtime: Runtime, container: Netns, waiting: Waiting, socket_path: Path
) -> None:
    """Each has its worker, also where that takes several times."""
    runtime.env["CNI_SERVER"] = "on"
    with serving(runtime, socket_path, "--workers", str(WORKERS)) as server:
        for _ in range(2 * WORKERS):
            waiting.begin(1)
            assert len(greeted(server, runtime, container)) == HELLO_SIZE
        assert WORKERS < len(server.workers()) <= 3 * WORKERS
        waiting.end()


def test_where_none_waits_there_are_no_more(
    runtime: Runtime, container: Netns, socket_path: Path
) -> None:
    with serving(runtime, socket_path, "--workers", "1") as server:
        (worker,) = server.workers()
        for _ in range(50):
            assert len(greeted(server, runtime, container)) == HELLO_SIZE
        assert server.workers() == [worker]


def test_more_than_may_wait(
    runtime: Runtime, container: Netns, waiting: Waiting, socket_path: Path
) -> None:
    """Where no worker is to be had, requests are told to run by exec; STATUS is answered."""
    with serving(runtime, socket_path, "--workers", str(WORKERS)) as server:
        waiting.begin(relief.most(WORKERS))
        sizes = [0, 0, 0, 0, 1 << 20]  # the last one does not fit into the socket's buffer
        with ThreadPoolExecutor(len(sizes) + 1) as pool:
            asked = pool.submit(server.status)
            told = list(pool.map(lambda size: greeted(server, runtime, container, size), sizes))
        assert told == [wire.BUSY] * len(sizes)
        assert asked.result()["busy"] == relief.most(WORKERS)
        by_exec(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
        assert all(child.poll() is None for child in waiting.children)
        waiting.end()
        served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()


def test_where_no_worker_can_be_started(
    runtime: Runtime, container: Netns, socket_path: Path
) -> None:
    with serving(runtime, socket_path, "--workers", "1") as server:
        inject = "inject=clone,clone3,fork,vfork:error=EAGAIN"
        command = ["strace", "-qq", "-o", "/dev/null", "-e", inject, "-p", str(server.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            status = Path(f"/proc/{server.pid}/status")
            wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), "strace is there")
            server.signal_workers(signal.SIGKILL)
            assert greeted(server, runtime, container) == wire.BUSY
            tracer.terminate()
        wait_until(lambda: len(server.workers()) == 1, "a new worker", 60)
        served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
