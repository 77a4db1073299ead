"""The server with bad clients, bad luck and bad company: nobody else pays for it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cni.server import reception
from cni.server.peer import Gate
from cni.server.slots import allocate
from cni.server.supervisor import Options, Supervisor
from cni.server.wire import HELLO_SIZE
from tests.harness import Netns, Runtime
from tests.harness.server import (
    Server,
    by_exec,
    encode_request,
    send_go,
    served,
    serving,
    state,
)
from tests.harness.wait import wait_until

pytestmark = pytest.mark.own_server

Json = dict[str, Any]

LOOPBACK = {"cniVersion": "1.1.0", "name": "net1"}
VERSION = encode_request("/opt/cni/bin/loopback", {"CNI_COMMAND": "VERSION"}, b"")


def greeted(server: Server, request: bytes = VERSION) -> socket.socket:
    """A connection whose request is complete; the worker waits for the go."""
    sock = server.connect()
    sock.sendall(request)
    assert len(sock.recv(HELLO_SIZE, socket.MSG_WAITALL)) == HELLO_SIZE
    return sock


def reply(sock: socket.socket) -> bytes:
    """The first byte of the reply; empty if there is none."""
    try:
        return sock.recv(1)
    except ConnectionResetError:
        return b""


# --- connections that are not finished ------------------------------------------------------------

HALVES = {
    "nothing": b"",
    "a byte": VERSION[:1],
    "half a header": VERSION[:9],
    "a header": VERSION[:16],
    "all but a byte": VERSION[:-1],
    "no go": VERSION,
    "half of status": b"stat",
}


@pytest.mark.parametrize("message", HALVES.values(), ids=HALVES)
def test_who_stops_halfway_keeps_nobody_from_the_workers(
    server: Server, runtime: Runtime, container: Netns, message: bytes
) -> None:
    workers = server.workers()
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(server.connect()).sendall(message)
        for _ in range(3):
            served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
            served(server, lambda: runtime.delete("loopback", LOOPBACK, container)).succeeded()
    assert server.workers() == workers


@pytest.mark.parametrize("message", [b"", VERSION[:9], VERSION], ids=["silent", "half", "no go"])
def test_a_worker_waits_for_a_few_only(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch, message: bytes
) -> None:
    """What others pay for clients that stop halfway does not grow with their number."""
    waits: list[float] = []
    patience = reception._patience

    def noting_patience(alone: float, others: int) -> float:
        waits.append(patience(alone, others))
        return 0.0

    monkeypatch.setattr(reception, "_patience", noting_patience)
    with ExitStack() as stack:
        listener, waiting = receiving(stack, socket_path)
        for _ in range(100):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(socket_path))
            client.sendall(message)
            assert waiting.receive(listener.fileno()) is None
        assert len(waiting) == 100
    assert 0 < sum(wait > 0 for wait in waits) < 10


def receiving(stack: ExitStack, path: Path) -> tuple[socket.socket, reception.Reception[None]]:
    """A listening socket at `path` and its reception, of which this process is the server."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    listener.listen(8)
    listener.setblocking(False)
    gate = Gate(frozenset({os.getpid()}), any_mounts=False)
    waiting: reception.Reception[None] = reception.Reception(
        listener, gate, b"hello", lambda _: None, lambda: b"", lambda: None
    )
    stack.callback(waiting.close)
    return listener, waiting


def test_who_trickles_keeps_nobody_from_the_workers(
    server: Server, runtime: Runtime, container: Netns
) -> None:
    done = threading.Event()

    def trickle(sock: socket.socket) -> None:
        request = encode_request("/opt/cni/bin/loopback", {"FILL": "x" * 100_000}, b"")
        try:
            for at in range(len(request)):
                if done.wait(0.005):
                    return
                sock.send(request[at : at + 1])
        except OSError:
            pass  # sent away

    with ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(6)]
        threads = [threading.Thread(target=trickle, args=(sock,)) for sock in socks]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
        finally:
            done.set()
            for thread in threads:
                thread.join()


def test_who_trickles_is_sent_away_in_the_end(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although it sends something now and then, and others keep coming after it."""
    monkeypatch.setattr(reception, "_LIFETIME", 0.2)
    request = encode_request("/opt/cni/bin/loopback", {"FILL": "x" * 1000}, b"")
    with ExitStack() as stack:
        _, waiting = receiving(stack, socket_path)

        def connect() -> socket.socket:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(socket_path))
            return client

        trickling = connect()
        for at in range(len(request)):
            try:
                trickling.send(request[at : at + 1])
            except BrokenPipeError:
                break
            connect()
            for fd in waiting.wait():
                assert waiting.receive(fd) is None
            waiting.expire()
            time.sleep(0.005)
        else:
            pytest.fail("it was kept all the time")


def test_who_is_slow_is_served_all_the_same(server: Server) -> None:
    """In pieces, with pauses, and put aside before the go."""
    with server.connect() as sock:
        for piece in (VERSION[:5], VERSION[5:20], VERSION[20:]):
            sock.sendall(piece)
            time.sleep(0.1)
        assert len(sock.recv(HELLO_SIZE, socket.MSG_WAITALL)) == HELLO_SIZE
        time.sleep(0.5)
        send_go(sock, server.pid)
        assert reply(sock) == b"X"


def test_who_was_greeted_need_not_wait_for_another_s_request(
    runtime: Runtime, socket_path: Path, tmp_path: Path, container: Netns
) -> None:
    """The one worker declines, and the client runs its plugin itself."""
    go = tmp_path / "go"
    slow = tmp_path / "bin" / "slow"
    slow.parent.mkdir()
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/runs\nwhile [ ! -e {go} ]; do sleep 0.01; done\n")
    slow.chmod(0o755)
    runtime.cni_path = f"{slow.parent}:{runtime.bin_dir}"
    conf = {**LOOPBACK, "ipam": {"type": "slow"}}
    with serving(runtime, socket_path, "--workers", "1") as server, greeted(server) as waiting:
        child = runtime.start("STATUS", "bridge", conf, container)
        wait_until((tmp_path / "runs").exists, "the slow request runs")
        assert reply(waiting) == b"N"
        go.touch()
        output, _ = child.communicate(timeout=30)
        assert (child.returncode, output) == (0, b"")


def test_a_status_client_that_hangs_up(server: Server, runtime: Runtime, container: Netns) -> None:
    workers = server.workers()
    for _ in range(40):
        with server.connect() as sock:
            sock.send(b"status\n")
    served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
    assert server.workers() == workers


def test_no_connection_is_kept(runtime: Runtime, socket_path: Path) -> None:
    """Of those that were put aside, and of those that left after the hello."""
    with serving(runtime, socket_path, "--workers", "1") as server:
        (worker,) = server.workers()
        with greeted(server) as sock:
            send_go(sock, server.pid)
            assert reply(sock) == b"X"
        before = len(os.listdir(f"/proc/{worker}/fd"))
        for message in HALVES.values():
            with ExitStack() as stack:
                for _ in range(20):
                    stack.enter_context(server.connect()).sendall(message)
        wait_until(lambda: len(os.listdir(f"/proc/{worker}/fd")) <= before, "all are closed")
        assert server.workers() == [worker]


# --- what the operator reads ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "text"), [("exit 3", "with exit code 3"), ("kill -KILL $$", "by SIGKILL")]
)
def test_how_a_worker_ended_is_in_the_log(socket_path: Path, end: str, text: str) -> None:
    said: list[str] = []
    supervisor = Supervisor(Options(str(socket_path), 1), "build", said.append)
    supervisor.slots[0].start_worker()
    worker = subprocess.Popen(["/bin/sh", "-c", end])
    supervisor.pids[worker.pid] = 0
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    supervisor.slots[0].start_worker()  # however long that took, it died young
    supervisor._reap()
    worker.returncode = 0  # the supervisor has reaped it
    assert [line for line in said if text in line], said


def test_status_for_another_user_says_that_it_needs_root(server: Server) -> None:
    done = subprocess.run(
        [
            *("setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-m", "cni"),
            *("serve", "--status", "--socket", str(server.socket)),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 6
    expected = f"cannot ask the server on {server.socket}: permission denied; this needs root"
    assert expected in done.stderr


# --- what the client must have itself -------------------------------------------------------------


def test_a_go_without_proof_is_declined(server: Server) -> None:
    for named in (os.getpid(), server.workers()[0], os.getppid()):
        with greeted(server) as sock:
            send_go(sock, named)
            assert reply(sock) == b"N", named
    with greeted(server) as sock:
        socket.send_fds(sock, [b"\0"], [2, 2, 2])
        assert reply(sock) == b"N"
    with greeted(server) as sock:
        send_go(sock, server.pid)
        assert reply(sock) == b"X"


def test_a_child_s_own_process_id_is_no_proof(server: Server) -> None:
    """It is not the one that connected, and needs no capability to name itself."""
    with greeted(server) as sock:
        pid = os.fork()
        if pid == 0:
            try:
                send_go(sock, os.getpid())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert reply(sock) == b"N"


def test_another_root_directory_is_declined(server: Server, tmp_path: Path) -> None:
    with greeted(server) as sock:
        send_go(sock, server.pid, root=str(tmp_path))
        assert reply(sock) == b"N"


def test_another_mount_of_the_same_root_is_declined(server: Server, tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    subprocess.run(["mount", "--bind", "/", top], check=True)
    try:
        with greeted(server) as sock:
            send_go(sock, server.pid, root=str(top))
            assert reply(sock) == b"N"
    finally:
        subprocess.run(["umount", "-l", top], check=True)


def test_descriptors_of_another_kind_cost_no_worker(server: Server) -> None:
    workers = server.workers()
    for _ in range(3):
        with greeted(server) as sock:
            send_go(sock, server.pid, cwd="/etc/passwd")
            assert reply(sock) == b"N"
    with greeted(server) as sock:
        send_go(sock, server.pid, 7, 2, 2, 2)
        assert reply(sock) == b"N"
    with greeted(server) as sock:
        send_go(sock, server.pid, 1, 2)
        assert reply(sock) == b"X"
    assert server.workers() == workers


def test_any_mounts_serves_any_root(runtime: Runtime, socket_path: Path, tmp_path: Path) -> None:
    with serving(runtime, socket_path, "--any-mounts") as server, greeted(server) as sock:
        send_go(sock, server.pid, root=str(tmp_path))
        assert reply(sock) == b"X"


@pytest.mark.parametrize("kept", ["", ",+sys_admin", ",+sys_admin,+net_admin,+net_raw"])
def test_a_client_with_fewer_capabilities_runs_by_exec(
    server: Server, runtime: Runtime, tmp_path: Path, kept: str
) -> None:
    """And a program that it names gets no more than it has."""
    program = tmp_path / "bin" / "evil"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ngrep CapPrm /proc/self/status > {tmp_path}/proof\n")
    program.chmod(0o755)
    runtime.cni_path = str(program.parent)
    conf = json.dumps({**LOOPBACK, "type": "bridge", "ipam": {"type": "evil"}})
    env = {**runtime.environment("STATUS"), "CNI_SERVER_SOCKET": str(server.socket)}
    wrap = ["setpriv", f"--bounding-set=-all{kept}", "--inh-caps=-all", "--no-new-privs"]

    def work() -> int:
        done = runtime.host.run(
            subprocess.run,
            [*wrap, str(runtime.bin_dir / "bridge")],
            input=conf.encode(),
            env=env,
            capture_output=True,
        )
        assert done.returncode == 0, done
        return int((tmp_path / "proof").read_text().split()[1], 16).bit_count()

    before = server.status()["served"]
    capabilities = work()
    assert server.status()["served"] == before, "it was served"
    assert capabilities == kept.count("+")
    wrap.clear()
    assert work() > 30
    assert server.status()["served"] == before + 1


def test_a_client_of_a_pid_namespace_above_is_served(
    runtime: Runtime, socket_path: Path, container: Netns
) -> None:
    """A server in a container of its own cannot see its clients; they see it."""
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with serving(runtime, socket_path, "--workers", "1", "--any-mounts", prefix=inside) as server:
        assert server.status()["pid"] == 1
        served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()


def test_a_client_of_a_pid_namespace_below_is_declined(
    server: Server, runtime: Runtime, container: Netns
) -> None:
    """It does not see the server, and so cannot prove anything."""
    before = server.status()["served"]
    inside = ["unshare", "--pid", "--fork", "--kill-child"]
    done = runtime.host.run(
        subprocess.run,
        [*inside, str(runtime.bin_dir / "loopback")],
        input=json.dumps({**LOOPBACK, "type": "loopback"}).encode(),
        env={**runtime.environment("ADD", container), "CNI_SERVER_SOCKET": str(server.socket)},
        capture_output=True,
    )
    assert done.returncode == 0, done
    assert server.status()["served"] == before


def test_a_client_in_another_namespace_is_declined(
    server: Server, runtime: Runtime, container: Netns, outside: Netns
) -> None:
    elsewhere = Runtime(runtime.bin_dir, outside, env=runtime.env)
    by_exec(server, lambda: elsewhere.add("loopback", LOOPBACK, container)).succeeded()


# --- after the answer -----------------------------------------------------------------------------


def pin(pid: int, path: Path) -> None:
    """Mount the network namespace that the process is about to have."""
    own = os.stat("/proc/self/ns/net").st_ino
    wait_until(
        lambda: os.stat(f"/proc/{pid}/ns/net").st_ino != own, "it has a namespace of its own"
    )
    subprocess.run(["mount", "--bind", f"/proc/{pid}/ns/net", path], check=True)


def test_the_namespace_can_be_unmounted_at_once(
    runtime: Runtime, socket_path: Path, data_dir: Path, tmp_path: Path
) -> None:
    """With a plain umount(2), after a DEL that a worker served; the working directory, too."""
    libc = ctypes.CDLL(None, use_errno=True)
    ipam = {"type": "host-local", "subnet": "10.40.0.0/24", "dataDir": str(data_dir)}
    conf = {**LOOPBACK, "isGateway": True, "ipam": ipam}
    directory = tmp_path / "cwd"
    directory.mkdir()
    pinned = tmp_path / "pinned"
    pinned.touch()
    runtime.cwd = directory
    busy = []
    with serving(runtime, socket_path, "--workers", "3") as server:
        for number in range(12):
            holder = subprocess.Popen(["unshare", "-n", "sleep", "60"])
            try:
                pin(holder.pid, pinned)
                subprocess.run(["mount", "-t", "tmpfs", "none", str(directory)], check=True)
                env = {"CNI_NETNS": str(pinned)}
                for verb in ("ADD", "DEL"):
                    reply = runtime.call(verb, "bridge", conf, container_id=f"x{number}", env=env)
                    reply.succeeded()
                for mounted in (pinned, directory):
                    if libc.umount2(str(mounted).encode(), 0):
                        busy.append((number, mounted, os.strerror(ctypes.get_errno())))
                        subprocess.run(["umount", "-l", mounted], check=True)
            finally:
                holder.kill()
                holder.wait()
        assert server.status()["served"] == 24
    assert not busy


# --- the supervisor -------------------------------------------------------------------------------


def test_a_supervisor_that_is_stopped_and_continued(
    server: Server, runtime: Runtime, container: Netns
) -> None:
    for seconds in (1.2, 0.1, 1.2):
        server.child.send_signal(signal.SIGSTOP)
        wait_until(lambda: state(server.pid) == "T", "it is stopped")
        time.sleep(seconds)  # across the end of its wait
        server.child.send_signal(signal.SIGCONT)
        server.signal_workers(signal.SIGKILL)
        wait_until(lambda: len(server.workers()) == 2, "new workers")
    assert server.child.poll() is None
    served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
    assert server.end() == 0


def test_a_fork_that_fails(server: Server, runtime: Runtime, container: Netns) -> None:
    """The supervisor tries again, and then serves as before."""
    inject = "inject=clone,clone3,fork,vfork:error=EAGAIN:when=1..4"
    command = ["strace", "-qq", "-o", "/dev/null", "-e", inject, "-p", str(server.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        status = Path(f"/proc/{server.pid}/status")
        wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), "strace is there")
        server.signal_workers(signal.SIGKILL)
        wait_until(lambda: len(server.workers()) == 2, "new workers")
    finally:
        tracer.terminate()
        tracer.communicate()
    assert server.child.poll() is None
    served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
    assert server.end() == 0


def test_workers_that_die_at_once_for_days(tmp_path: Path) -> None:
    """The pause grows to ten seconds, and no further; other slots do not wait."""
    supervisor = Supervisor(Options(str(tmp_path / "s"), 3), "0" * 12, lambda _: None)
    pauses = [supervisor._postpone(1) for _ in range(100_000)]
    assert pauses[0] < 0.1
    assert pauses == sorted(pauses)
    assert pauses[-1] == 10.0
    assert list(supervisor.due) == [1]
    assert supervisor._postpone(2) == pauses[0]


def test_workers_that_are_killed_again_and_again(
    server: Server, runtime: Runtime, container: Netns
) -> None:
    first, _ = server.workers()
    for _ in range(5):
        first = killed(server, first)
    wait_until(lambda: len(server.workers()) == 2, "both slots are filled")
    served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()


def killed(server: Server, pid: int) -> int:
    """Kill a worker; the one that takes its place."""
    others = set(server.workers()) - {pid}
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: set(server.workers()) - others - {pid}, "another takes its place")
    (new,) = set(server.workers()) - others
    return new


def test_a_count_is_never_half_written() -> None:
    """Readers of a slot see it grow while its worker counts."""
    (slot,) = allocate(1)
    slot.start_worker()
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                slot.begin_request()
        finally:
            os._exit(0)
    try:
        counts = [slot.read().served for _ in range(200_000)]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


# --- the socket -----------------------------------------------------------------------------------


def test_a_socket_that_was_removed(server: Server, runtime: Runtime, container: Netns) -> None:
    served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
    before = server.status()["served"]
    for remove in (os.unlink, lambda path: os.rename(path, f"{path}.old")):
        remove(server.socket)
        wait_until(server.socket.exists, "it listens again")
        served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
    assert server.status()["served"] == before + 2
    assert server.end() == 0
    assert not server.socket.exists()


def test_a_socket_whose_directory_was_removed(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "s"
    with serving(runtime, path, "--workers", "1") as server:
        path.unlink()
        path.parent.rmdir()
        wait_until(path.exists, "it listens again")
        served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()


def test_a_request_goes_on_when_the_socket_is_removed(
    runtime: Runtime, socket_path: Path, tmp_path: Path, container: Netns
) -> None:
    go = tmp_path / "go"
    slow = tmp_path / "bin" / "slow"
    slow.parent.mkdir()
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/runs\nwhile [ ! -e {go} ]; do sleep 0.01; done\n")
    slow.chmod(0o755)
    runtime.cni_path = f"{slow.parent}:{runtime.bin_dir}"
    conf = {**LOOPBACK, "ipam": {"type": "slow"}}
    with serving(runtime, socket_path, "--workers", "2") as server:
        child = runtime.start("STATUS", "bridge", conf, container)
        wait_until((tmp_path / "runs").exists, "the slow request runs")
        socket_path.unlink()
        wait_until(socket_path.exists, "it listens again")
        served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
        go.touch()
        output, _ = child.communicate(timeout=30)
        assert (child.returncode, output) == (0, b"")


def test_a_socket_that_another_process_has_now(server: Server, socket_path: Path) -> None:
    """The server ends, says so, and leaves the other's socket alone."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(socket_path) + ".new")
        other.listen(1)
        os.rename(f"{socket_path}.new", socket_path)
        _, stderr = server.child.communicate(timeout=30)
    assert server.child.returncode == 1
    assert f"process {os.getpid()}".encode() in stderr
    assert socket_path.exists()


def test_status_names_the_server(server: Server, runtime: Runtime) -> None:
    answer = runtime.host.exec(
        [str(runtime.bin_dir / "cni"), "serve", "--status", "--socket", str(server.socket)]
    )
    status: dict[str, Any] = json.loads(answer.stdout)
    assert status["pid"] == server.pid
    assert status["workers"] == 2


@pytest.mark.parametrize("greeting", [16, 76])
def test_a_server_of_another_build_is_named(tmp_path: Path, greeting: int) -> None:
    """Whatever the size of the hello that comes before its status."""
    from cni.server.status import ask, describe

    path = str(tmp_path / "s")
    text = '{"build":"0123456789ab","workers":2}'

    def answer() -> None:
        for _ in range(3):
            conn, _ = listener.accept()
            with conn:
                if conn.recv(100):
                    conn.sendall(b"\x7b" * greeting + text.encode())

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        thread = threading.Thread(target=answer)
        thread.start()
        assert ask(path, 20) == text
        described = describe(path)
        thread.join()
    assert described == f"a server of build 0123456789ab, process {os.getpid()}"
