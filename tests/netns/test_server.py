"""The warm path: the same answers as by exec, and nothing lost when the server is not well."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import gt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.server.wire import HELLO_SIZE
from tests.harness import Netns, Runtime, ping
from tests.harness.build import install_dist
from tests.harness.paths import let_everybody_in
from tests.harness.server import (
    MAGIC,
    Server,
    Watch,
    by_exec,
    children,
    encode_header,
    encode_request,
    send_go,
    served,
    serving,
    state,
)
from tests.harness.wait import wait_for_call, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.runtime import Reply

pytestmark = pytest.mark.own_server

NET = "net1"
LOOPBACK = {"cniVersion": "1.1.0", "name": NET}


def bridge(data_dir: Path, **keys: Any) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": "10.40.0.0/24", "dataDir": str(data_dir)}
    return {"cniVersion": "1.1.0", "name": NET, "isGateway": True, "ipam": ipam, **keys}


# --- the same as by exec --------------------------------------------------------------------------


def test_a_container_gets_its_network(
    server: Server, runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    conf = bridge(data_dir)
    result = served(server, lambda: runtime.add("bridge", conf, container)).result
    assert result["ips"][0]["address"] == "10.40.0.2/24"
    ping(container, "10.40.0.1")
    served(server, lambda: runtime.check("bridge", conf, container, prev_result=result)).succeeded()
    served(server, lambda: runtime.delete("bridge", conf, container)).succeeded()
    assert not list((data_dir / NET).glob("10.*"))


@pytest.mark.parametrize(
    ("command", "plugin", "conf", "env"),
    [
        ("VERSION", "bridge", "", {}),
        ("ADD", "loopback", LOOPBACK, {}),
        ("ADD", "loopback", LOOPBACK, {"CNI_IFNAME": None}),
        ("ADD", "loopback", LOOPBACK, {"CNI_IFNAME": "a/b"}),
        ("ADD", "loopback", "{", {}),
        ("ADD", "loopback", "", {}),
        ("ADD", "loopback", {"cniVersion": "9.9.9", "name": NET}, {}),
        ("ADD", "loopback", LOOPBACK, {"CNI_NETNS": "/proc/none"}),
        ("ADD", "loopback", LOOPBACK, {"CNI_NETNS": "/proc/self/ns/net"}),
        ("DEL", "bridge", {**LOOPBACK, "ipam": {"type": "nobody"}}, {}),
        ("STATUS", "bridge", {**LOOPBACK, "ipam": {"type": "host-local"}}, {}),
        ("GC", "bridge", LOOPBACK, {}),
        ("NONSENSE", "bridge", LOOPBACK, {}),
    ],
)
def test_the_reply_is_the_same(
    server: Server,
    runtime: Runtime,
    container: Netns,
    command: str,
    plugin: str,
    conf: dict[str, Any] | str,
    env: dict[str, str | None],
) -> None:
    def work(**more: str) -> Reply:
        return runtime.call(command, plugin, conf, container, env={**env, **more})

    warm = served(server, work)
    cold = by_exec(server, lambda: work(CNI_SERVER="off"))
    assert (warm.rc, warm.stdout, warm.stderr) == (cold.rc, cold.stdout, cold.stderr)


def test_a_large_configuration_and_environment(
    server: Server, runtime: Runtime, container: Netns
) -> None:
    conf = {**LOOPBACK, "padding": "x" * (3 << 20)}
    env = {f"FILL_{i}": "y" * 1000 for i in range(500)}
    served(server, lambda: runtime.add("loopback", conf, container, env=env)).succeeded()


def test_what_delegates_inherit(
    server: Server, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """Environment, working directory, umask and stderr are the client's, not the server's."""
    report = tmp_path / "report"
    probe = tmp_path / "bin" / "probe"
    probe.parent.mkdir()
    probe.write_text(
        f"#!/bin/sh\n{{ pwd; umask; echo $SECRET; readlink /proc/self/fd/0; }} > {report}\n"
        "echo heard >&2\n"
        'echo \'{"cniVersion":"1.1.0","ips":[{"address":"10.1.1.1/24"}]}\'\n'
    )
    probe.chmod(0o755)
    here = tmp_path / "here"
    here.mkdir()
    runtime.cwd = here
    runtime.cni_path = f"{probe.parent}:{runtime.bin_dir}"
    conf = {**LOOPBACK, "ipam": {"type": "probe"}}
    reports = []
    for env in ({"SECRET": "1"}, {"SECRET": "1", "CNI_SERVER": "off"}):
        before = os.umask(0o027)
        try:
            reply = runtime.add("bridge", conf, container, env=env)
        finally:
            os.umask(before)
        reports.append((reply.stderr, report.read_text().replace("memfd", "")))
        runtime.delete("bridge", conf, container, env=env).succeeded()
    assert reports[0] == reports[1]
    assert reports[0][1].splitlines()[:3] == [str(here), "0027", "1"]
    assert "heard" in reports[0][0]


def test_nothing_crosses_requests(
    server: Server, runtime: Runtime, container: Netns, container2: Netns, data_dir: Path
) -> None:
    """Two containers, two networks, one process: each gets its own; the rest is as before."""
    with serving(runtime, server.socket.with_name("one"), "--workers", "1"):
        for i in range(20):
            name = f"n{i % 2}"
            conf = bridge(data_dir, bridge=f"br{i % 2}") | {"name": name}
            conf["ipam"] = {**conf["ipam"], "subnet": f"10.{40 + i % 2}.0.0/24"}
            target = (container, container2)[i % 2]
            result = runtime.add("bridge", conf, target, container_id=f"c{i}").result
            assert result["ips"][0]["address"].startswith(f"10.{40 + i % 2}.")
            assert result["interfaces"][2]["sandbox"] == target.path
            runtime.delete("bridge", conf, target, container_id=f"c{i}").succeeded()


# --- the server is not well -----------------------------------------------------------------------


def test_without_a_server(runtime: Runtime, container: Netns, socket_path: Path) -> None:
    runtime.env["CNI_SERVER_SOCKET"] = str(socket_path)
    runtime.add("loopback", LOOPBACK, container).succeeded()


def test_a_socket_that_nobody_listens_on(
    runtime: Runtime, container: Netns, socket_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(socket_path))
    runtime.env["CNI_SERVER_SOCKET"] = str(socket_path)
    runtime.add("loopback", LOOPBACK, container).succeeded()


def test_a_hung_server(server: Server, runtime: Runtime, container: Netns) -> None:
    server.signal_workers(signal.SIGSTOP)
    runtime.add("loopback", LOOPBACK, container).succeeded()
    server.signal_workers(signal.SIGCONT)
    # The withdrawn request is not done again, and the next one is.
    served(server, lambda: runtime.delete("loopback", LOOPBACK, container)).succeeded()


def test_a_full_queue(runtime: Runtime, container: Netns, socket_path: Path) -> None:
    runtime.env["CNI_SERVER_SOCKET"] = str(socket_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(socket_path))
            runtime.add("loopback", LOOPBACK, container).succeeded()


def test_a_client_in_another_namespace(
    server: Server, runtime: Runtime, container: Netns, outside: Netns
) -> None:
    elsewhere = Runtime(runtime.bin_dir, outside, env=runtime.env)
    by_exec(server, lambda: elsewhere.add("loopback", LOOPBACK, container)).succeeded()


def test_a_client_of_another_build(
    server: Server, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    install_dist(other)
    for name in ("cni", "loopback"):
        data = (other / name).read_bytes()
        line = re.search(rb"\ncni_build=([0-9a-f]{12})\n", data)
        assert line is not None
        build, other_build = line[1], b"0" * 12
        (other / name).write_bytes(data.replace(line[0], line[0].replace(build, other_build), 1))
    if (tree := other / f".cni-{build.decode()}").exists():  # not beside a self-contained file
        tree.rename(other / f".cni-{other_build.decode()}")
    client = Runtime(other, runtime.host, env=runtime.env)
    by_exec(server, lambda: client.add("loopback", LOOPBACK, container)).succeeded()


def test_a_name_that_is_no_plugin(server: Server, runtime: Runtime, container: Netns) -> None:
    (runtime.bin_dir / "foo").symlink_to("cni")
    try:
        runtime.add("foo", LOOPBACK, container).failed(999, 'no plugin is called "foo"')
    finally:
        (runtime.bin_dir / "foo").unlink()


def slow_ipam(tmp_path: Path, runtime: Runtime) -> tuple[dict[str, Any], Path]:
    """A network whose ADD waits in its IPAM plugin until the file is there."""
    go = tmp_path / "go"
    program = tmp_path / "bin" / "slow"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        f'#!/bin/sh\n[ "$CNI_COMMAND" = DEL ] && exit 0\ntouch {tmp_path}/waiting\n'
        f"while [ ! -e {go} ]; do sleep 0.01; done\n"
        'echo \'{"cniVersion":"1.1.0","ips":[{"address":"10.1.1.1/24"}]}\'\n'
    )
    program.chmod(0o755)
    runtime.cni_path = f"{program.parent}:{runtime.bin_dir}"
    return {"cniVersion": "1.1.0", "name": NET, "ipam": {"type": "slow"}}, go


def begin(
    runtime: Runtime, command: str, conf: dict[str, Any], container: Netns, tmp_path: Path
) -> subprocess.Popen[bytes]:
    """A bridge request that a worker is working on."""
    child = runtime.start(command, "bridge", conf, container)
    wait_until((tmp_path / "waiting").exists, "the IPAM plugin runs")
    return child


def test_a_worker_that_dies_in_an_add(
    server: Server, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    conf, go = slow_ipam(tmp_path, runtime)
    child = begin(runtime, "ADD", conf, container, tmp_path)
    server.signal_workers(signal.SIGKILL)
    output, _ = child.communicate(timeout=30)
    go.touch()
    assert child.returncode == 1
    assert json.loads(output)["msg"] == "the cni server ended in the middle of the request"
    # The runtime's next steps.
    wait_until(lambda: len(server.workers()) == 2, "new workers")
    runtime.delete("bridge", conf, container).succeeded()
    served(server, lambda: runtime.add("bridge", conf, container)).succeeded()


def test_a_worker_that_dies_in_a_check(
    server: Server, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """What may be repeated is: by exec, with the same configuration."""
    conf, go = slow_ipam(tmp_path, runtime)
    child = begin(runtime, "STATUS", conf, container, tmp_path)
    server.signal_workers(signal.SIGKILL)
    go.touch()
    output, _ = child.communicate(timeout=30)
    assert (child.returncode, output) == (0, b"")


def test_a_killed_client_takes_its_worker_along(
    server: Server, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    conf, go = slow_ipam(tmp_path, runtime)
    before = set(server.workers())
    child = begin(runtime, "ADD", conf, container, tmp_path)
    child.kill()
    child.communicate(timeout=30)
    wait_until(lambda: before - set(server.workers()), "the worker ends")
    wait_until(lambda: len(server.workers()) == 2, "another takes its place")
    go.touch()
    assert "eth0" not in container.ip("link")
    runtime.delete("bridge", conf, container).succeeded()


def test_a_terminated_client_has_its_work_undone(
    server: Server, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    conf, go = slow_ipam(tmp_path, runtime)
    child = begin(runtime, "ADD", conf, container, tmp_path)
    child.terminate()
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 1
    assert json.loads(output)["msg"] == "interrupted by SIGTERM"
    go.touch()
    assert runtime.host.ip_json("link", "show", "type", "veth") == []


def test_signals_are_heard_in_every_request_and_only_there(
    runtime: Runtime, container: Netns, socket_path: Path, tmp_path: Path
) -> None:
    """Undoing takes the handlers away, and an idle worker has nothing to undo."""
    conf, go = slow_ipam(tmp_path, runtime)
    failing = bridge(tmp_path / "data", routes=[], ipam={"type": "nosuch"})
    with serving(runtime, socket_path, "--workers", "1") as server:
        (worker,) = server.workers()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            served(server, lambda: runtime.add("bridge", failing, container)).failed()
            os.kill(worker, number)
            served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()
            assert server.workers() == [worker]
        child = begin(runtime, "ADD", conf, container, tmp_path)
        child.send_signal(signal.SIGHUP)
        output, _ = child.communicate(timeout=30)
        assert json.loads(output)["msg"] == "interrupted by SIGHUP"
    go.touch()
    assert runtime.host.ip_json("link", "show", "type", "veth") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_comes_with_the_descriptors(
    runtime: Runtime, container: Netns, socket_path: Path, number: signal.Signals
) -> None:
    """The verb has not begun, and does not."""
    env = {**runtime.environment("ADD", container, ifname="lo"), "CNI_SERVER": "on"}
    stdin = json.dumps(LOOPBACK).encode()
    request = encode_request(str(runtime.bin_dir / "loopback"), env, stdin)
    with serving(runtime, socket_path, "--workers", "1") as server, server.connect() as sock:
        (worker,) = server.workers()
        sock.sendall(request)
        assert sock.recv(HELLO_SIZE, socket.MSG_WAITALL)
        os.kill(worker, signal.SIGSTOP)
        with open(container.path, "rb") as netns:
            send_go(sock, server.pid, 1, netns.fileno())
        sock.send(bytes([number]))
        os.kill(worker, signal.SIGCONT)
        kind, code, size = struct.unpack("=cBI", sock.recv(6, socket.MSG_WAITALL))
        output = json.loads(sock.recv(size, socket.MSG_WAITALL))
    assert (kind, code, output["msg"]) == (b"X", 1, f"interrupted by {number.name}")
    assert "UP" not in container.ip_json("link", "show", "lo")[0]["flags"]


def test_parameters_are_set_without_an_executor(
    server: Server, runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    """The client's process does it: executors that stand still hold nothing up."""
    tuning = {
        **LOOPBACK,
        "dataDir": str(data_dir),
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_forward": "1"},
        "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "lo"}]},
    }
    runtime.delete("bridge", bridge(data_dir), container).succeeded()  # each has its executors
    executors = [child for worker in server.workers() for child in children(worker)]
    assert executors
    for pid in executors:
        os.kill(pid, signal.SIGSTOP)
    try:
        served(server, lambda: runtime.add("tuning", tuning, container, ifname="lo")).succeeded()
        assert container.sysctl("net/ipv4/conf/lo/arp_filter") == "1"
        assert container.sysctl("net/ipv4/ip_forward") == "1"
        served(server, lambda: runtime.delete("tuning", tuning, container, ifname="lo")).succeeded()
        assert container.sysctl("net/ipv4/conf/lo/arp_filter") == "0"
        served(server, lambda: runtime.add("bridge", bridge(data_dir), container)).succeeded()
        assert container.sysctl("net/ipv4/conf/eth0/arp_notify") == "1"
    finally:
        for pid in executors:
            os.kill(pid, signal.SIGCONT)
    assert runtime.host.sysctl("net/ipv4/conf/lo/arp_filter") == "0"


def test_ending_lets_requests_finish(
    server: Server, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    conf, go = slow_ipam(tmp_path, runtime)
    child = begin(runtime, "ADD", conf, container, tmp_path)
    server.child.terminate()
    wait_until(lambda: not server.socket.exists(), "the socket is gone")
    # Nobody waits for it meanwhile.
    runtime.call("VERSION", "bridge", "").succeeded()
    go.touch()
    output, _ = child.communicate(timeout=30)
    assert (child.returncode, json.loads(output)["ips"][0]["address"]) == (0, "10.1.1.1/24")
    assert server.child.wait(20) == 0
    runtime.delete("bridge", conf, container).succeeded()


def test_a_killed_supervisor_leaves_nobody_behind(
    server: Server, runtime: Runtime, container: Netns
) -> None:
    workers = server.workers()
    executors = [pid for worker in workers for pid in children(worker)]
    assert executors
    server.child.kill()
    wait_until(lambda: all(state(p) in ("", "Z") for p in workers + executors), "all end")
    runtime.add("loopback", LOOPBACK, container).succeeded()


def serve_output(runtime: Runtime, path: Path, *prefix: str) -> tuple[int, str]:
    """Exit code and stderr of another `cni serve` on the socket, which ends by itself."""
    program = [*prefix, str(runtime.bin_dir / "cni"), "serve", "--socket", str(path)]
    child = runtime.host.popen(program, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    _, stderr = child.communicate(timeout=30)
    return child.returncode, stderr.decode()


def test_a_second_server_refuses_to_start(
    server: Server, runtime: Runtime, container: Netns, socket_path: Path
) -> None:
    code, text = serve_output(runtime, socket_path)
    assert code == 1
    assert f"process {server.pid}" in text
    assert server.status()["build"] in text
    served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()


def test_a_second_server_beside_one_that_hangs(
    server: Server, runtime: Runtime, socket_path: Path
) -> None:
    server.signal_workers(signal.SIGSTOP)
    try:
        code, text = serve_output(runtime, socket_path)
    finally:
        server.signal_workers(signal.SIGCONT)
    assert code == 1
    assert f"process {server.pid}" in text


def test_only_root_serves(runtime: Runtime, socket_path: Path) -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    read = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")  # the tests' directories
    code, text = serve_output(runtime, socket_path, *nobody, *read)
    assert code == 6
    assert "only root can serve" in text


def test_idle_exit(runtime: Runtime, socket_path: Path) -> None:
    with serving(runtime, socket_path, "--idle-exit", "0.5") as server:
        assert server.child.wait(30) == 0
        assert not socket_path.exists()


def test_a_request_that_takes_too_long(
    runtime: Runtime, container: Netns, socket_path: Path, tmp_path: Path
) -> None:
    conf, go = slow_ipam(tmp_path, runtime)
    with serving(runtime, socket_path, "--timeout", "0.5", "--workers", "1"):
        reply = runtime.add("bridge", conf, container)
        reply.failed(11, "the cni server ended")
        go.touch()


# --- who may ask, and what ------------------------------------------------------------------------


def test_only_root_may_connect(server: Server) -> None:
    assert server.socket.stat().st_mode & 0o777 == 0o600


def test_another_user_is_turned_away(
    server: Server, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """Even if somebody opened the socket's mode."""
    server.socket.chmod(0o666)
    let_everybody_in(tmp_path)
    reply = runtime.host.exec(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "python3", "-c", PROBE],
        stdin=str(server.socket),
    )
    assert reply.stdout == "b''\n"


PROBE = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.stdin.read())
try:
    sock.sendall(b"status\\n")
    print(sock.recv(100))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
"""


def test_the_same_worker_serves_what_comes_one_by_one(
    server: Server, runtime: Runtime, container: Netns
) -> None:
    """Its caches are warm; the others are not even woken."""

    def idle(workers: list[int]) -> list[int]:
        for pid in workers:
            wait_for_call(pid, "epoll_wait")
        return workers

    def switches(pid: int) -> int:
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.partition("voluntary_ctxt_switches:")[2].split()[0])

    workers = server.workers()
    assert len(workers) > 1
    served_before = server.status()["served"]
    before = {pid: switches(pid) for pid in idle(workers)}
    for _ in range(10):
        runtime.add("loopback", LOOPBACK, container).succeeded()
        idle(workers)  # while one tidies up another one would serve
    assert sum(switches(pid) >= before[pid] + 10 for pid in workers) == 1
    assert sum(switches(pid) == before[pid] for pid in workers) == len(workers) - 1
    assert server.status()["served"] == served_before + 10


def test_nonsense_does_no_harm(server: Server, runtime: Runtime, container: Netns) -> None:
    rng = random.Random(7)
    messages = [b"", b"\0", b"status", rng.randbytes(40), rng.randbytes(70000)]
    huge = 1 << 31
    for magic in (MAGIC, 0):
        for size, more, stdin in (
            *((0, 0, 0), (10, 0, 0), (huge, 0, 0), (0, huge, 0), (3, 0, huge), (3, 0, 3)),
            *((2, 1, 0), (2, 0, 1), (0, 3, 0), (1, 2, 0)),
        ):
            messages.append(encode_header(size, more, stdin, magic) + b"a\0b")
    for own, others in (("a\0b\0", ""), ("a\0\0b\0", ""), ("a\0=\0\0", ""), ("a\0", "\0\0")):
        sizes = encode_header(len(own), len(others), 0)
        messages.append(sizes + own.encode() + others.encode())
    for message in messages:
        for fds in ([], [0, 1, 2], [1] * 20):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(server.socket))
                try:
                    if fds and message:
                        socket.send_fds(sock, [message], fds)
                        sock.sendall(bytes([rng.randrange(256)]))
                    else:
                        sock.sendall(message)
                    sock.shutdown(socket.SHUT_WR)
                    sock.settimeout(20)
                    while answer := sock.recv(1000):
                        assert b"X" not in answer[HELLO_SIZE:]
                except (BrokenPipeError, ConnectionResetError):
                    pass
    served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()


@pytest.mark.parametrize(
    ("which", "count"),
    [
        (0, 0),
        (0, 2),
        (1, 3),
        (0, 4),
        (2, 4),
        (3, 4),
        (4, 4),
        (5, 5),
        (7, 5),
        (8, 4),
        (255, 3),
        (3, 16),
    ],
)
def test_descriptors_that_do_not_fit(
    server: Server, runtime: Runtime, container: Netns, which: int, count: int
) -> None:
    """The request is whole, but nobody works with what comes with it; nor is it kept."""
    request = encode_request("/opt/cni/bin/loopback", {"CNI_COMMAND": "VERSION"}, b"{}")
    descriptors = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in server.workers()}
    for _ in range(40):
        with server.connect() as sock:
            sock.sendall(request)
            assert sock.recv(HELLO_SIZE, socket.MSG_WAITALL)
            if count:
                socket.send_fds(sock, [bytes([which])], [2] * count)
            else:
                sock.sendall(bytes([which]))
            sock.settimeout(20)
            try:
                assert sock.recv(100) in (b"", b"N")
            except ConnectionResetError:
                pass
    after = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in descriptors}
    assert all(after[pid] < before + 10 for pid, before in descriptors.items()), (
        descriptors,
        after,
    )
    served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()


# --- upgrades, load, wear -------------------------------------------------------------------------


def test_an_upgrade_under_load_loses_no_add(
    runtime: Runtime, socket_path: Path, tmp_path: Path, data_dir: Path, netns: Callable[..., Netns]
) -> None:
    """`cni install` of another build while containers start; the server changes over by itself."""
    from tests.build.running import build_copy

    bin_dir = install_dist(tmp_path / "opt")
    other = build_copy(tmp_path / "source", "another build")
    mine = Runtime(bin_dir, runtime.host, env=runtime.env)
    containers = [netns() for _ in range(4)]
    stop = threading.Event()
    failures: list[str] = []
    done = [0] * len(containers)

    def work(number: int) -> None:
        conf = bridge(data_dir)
        while not stop.is_set() and not failures:
            identity = f"c{number}-{done[number]}"
            for verb in (mine.add, mine.delete):
                reply = verb("bridge", conf, containers[number], container_id=identity)
                if reply.rc:
                    failures.append(str(reply))
            done[number] += 1

    with serving(mine, socket_path, "--workers", "2") as server:
        before = server.status()["build"]
        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(containers))]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: min(done) > 1 or failures, "the load runs", 60)
            served_before = server.status()["served"]
            install = [other, "install", "--bin-dir", bin_dir]
            subprocess.run(install, check=True, capture_output=True)
            wait_until(
                lambda: _build(server) not in ("", before) or failures, "it changes over", 60
            )
            assert server.status()["served"] >= served_before
            at = list(done)
            wait_until(lambda: all(map(gt, done, at)) or failures, "the load runs on", 60)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not failures, failures[0]
    assert not list((data_dir / NET).glob("10.*"))


def _build(server: Server) -> str:
    try:
        return str(server.status()["build"])
    except (OSError, ValueError):
        return ""


def test_many_at_once(
    server: Server, runtime: Runtime, data_dir: Path, netns: Callable[..., Netns]
) -> None:
    """More requests than workers: they queue, and each gets its answer."""
    containers = [netns() for _ in range(12)]
    conf = bridge(data_dir)

    def work(number: int) -> str:
        result = runtime.add("bridge", conf, containers[number], container_id=f"c{number}").result
        return str(result["ips"][0]["address"])

    with ThreadPoolExecutor(12) as pool:
        addresses = list(pool.map(work, range(12)))
    assert len(set(addresses)) == 12


def test_requests_leave_nothing(
    runtime: Runtime, container: Netns, data_dir: Path, socket_path: Path
) -> None:
    """Processes, descriptors and memory are the same after many requests."""
    conf = bridge(data_dir)

    def round_trip(times: int) -> None:
        for _ in range(times):
            runtime.add("bridge", conf, container).succeeded()
            runtime.delete("bridge", conf, container).succeeded()
            runtime.call("ADD", "bridge", "{", container).failed(6)

    with serving(runtime, socket_path, "--workers", "1") as server:
        round_trip(12)
        (worker,) = server.workers()
        before = _footprint(worker)
        round_trip(40)
        assert server.workers() == [worker], "it was replaced"
        after = _footprint(worker)
    assert after[0] <= before[0], (before, after)
    assert after[1] <= before[1] + 1024, (before, after)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_requests_leave_nothing(
    runtime: Runtime, container: Netns, data_dir: Path, socket_path: Path
) -> None:
    """One worker serves them all; neither it, nor its executor, nor the supervisor grows."""
    conf = bridge(data_dir)
    status = {**LOOPBACK, "ipam": {"type": "host-local"}}

    def round_trip(times: int) -> None:
        for number in range(times):
            if number % 10 == 0:
                runtime.add("bridge", conf, container).succeeded()
                runtime.delete("bridge", conf, container).succeeded()
            else:
                runtime.add("loopback", LOOPBACK, container).succeeded()
                runtime.delete("loopback", LOOPBACK, container).succeeded()
            runtime.status("bridge", status).succeeded()
            runtime.call("ADD", "bridge", "{", container).failed(6)

    with serving(runtime, socket_path, "--workers", "1", "--max-requests", "1000000") as server:
        round_trip(64)
        (worker,) = server.workers()
        before = list(map(_footprint, (server.pid, worker)))
        round_trip(2500)
        assert server.workers() == [worker], "it was replaced"
        after = list(map(_footprint, (server.pid, worker)))
        executors = [_footprint(pid) for pid in children(worker)]
    for old, new in zip(before, after, strict=True):
        assert new[0] <= old[0] + 3, (before, after)  # executors that still delete a link
        assert new[1] <= old[1] + 2048, (before, after)
    for descriptors, memory in executors:
        assert descriptors <= 8, executors
        assert memory <= after[1][1], executors
    assert runtime.host.ip_json("link", "show", "type", "veth") == []
    assert not list((data_dir / NET).glob("10.*"))


def _footprint(pid: int) -> tuple[int, int]:
    """Descriptors, less one for each child's socket, and resident memory in KiB.

    A worker may have up to four executors: one is free, others still delete a link.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    memory = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    executors = len(children(pid))
    assert executors <= 4
    return len(os.listdir(f"/proc/{pid}/fd")) - executors, int(memory)


def test_a_worker_is_replaced_after_its_share(
    runtime: Runtime, container: Netns, socket_path: Path
) -> None:
    with serving(runtime, socket_path, "--workers", "1", "--max-requests", "3") as server:
        (first,) = server.workers()
        for _ in range(3):
            runtime.call("VERSION", "loopback", "").succeeded()
        wait_until(lambda: server.workers() not in ([], [first]), "a new worker")
        served(server, lambda: runtime.add("loopback", LOOPBACK, container)).succeeded()


# --- systemd --------------------------------------------------------------------------------------


@contextmanager
def activated(
    runtime: Runtime, socket_path: Path, tmp_path: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A server that systemd's socket has started: its process, and what it tells the manager."""
    notify = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(notify))
        heard.settimeout(30)
        listening = [f"--listen={socket_path}", f"--setenv=NOTIFY_SOCKET={notify}"]
        server = [str(runtime.bin_dir / "cni"), "serve", "--workers=1", *options]
        child = runtime.host.popen(
            ["systemd-socket-activate", *listening, *server], stderr=subprocess.PIPE
        )
        wait_until(socket_path.exists, "the socket is there")
        # A plugin would not wait for as long as a busy machine may take to start the server.
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(socket_path))
            assert heard.recv(100) == b"READY=1"
        yield child, heard
        assert heard.recv(100) == b"STOPPING=1"
        assert child.wait(30) == 0
        assert socket_path.exists(), "the socket is systemd's"


def test_socket_activation(
    runtime: Runtime, container: Netns, socket_path: Path, tmp_path: Path
) -> None:
    """systemd keeps the socket, and starts the server with the first connection."""
    runtime.env["CNI_SERVER_SOCKET"] = str(socket_path)
    with activated(runtime, socket_path, tmp_path) as (child, _):
        server = Server(child, socket_path, runtime.host)

        def is_served() -> bool:
            # by exec while the worker is too slow, on a busy machine
            runtime.add("loopback", LOOPBACK, container).succeeded()
            return bool(server.status()["served"])

        wait_until(is_served, "a worker serves a request")
        child.terminate()


def test_an_idle_server_leaves_the_socket_to_systemd(
    runtime: Runtime, socket_path: Path, tmp_path: Path
) -> None:
    with activated(runtime, socket_path, tmp_path, "--idle-exit=1"):
        pass  # it ends by itself


def test_no_lock_or_descriptor_of_a_request_stays(
    server: Server, runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    conf = bridge(data_dir)
    served(server, lambda: runtime.add("bridge", conf, container)).succeeded()
    for pid in server.workers():
        targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [t for t in targets if str(data_dir) in t or t.startswith("pipe:")], targets
    with open(data_dir / NET / "lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- a server in a container ----------------------------------------------------------------------


def test_a_server_with_other_mounts(
    runtime: Runtime, socket_path: Path, tmp_path: Path, data_dir: Path, netns: Callable[..., Netns]
) -> None:
    """It does not see the container's namespace by name; its client, which it was given for, does.

    The node has only the client: no unpacked tree beside it.
    """
    node = tmp_path / "node"
    install = [runtime.bin_dir / "cni", "install", "--client-only", "--bin-dir", node]
    subprocess.run(install, check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    assert not list(node.glob(".cni-[0-9a-f]*"))
    client = Runtime(node, runtime.host, env=runtime.env)
    hide = "mount -t tmpfs none /run/netns"
    own = {"bin_dir": runtime.bin_dir, "mounts": hide}
    with serving(client, socket_path, "--workers", "1", "--any-mounts", **own) as server:
        container = netns()
        (worker,) = server.workers()
        assert not Path(f"/proc/{worker}/root/{container.path}").exists()
        conf = bridge(data_dir, ipMasq=True, ipMasqBackend="nftables")
        result = served(server, lambda: client.add("bridge", conf, container)).result
        assert result["interfaces"][2]["sandbox"] == container.path
        ping(container, "10.40.0.1")
        check = lambda: client.check("bridge", conf, container, prev_result=result)  # noqa: E731
        served(server, check).succeeded()
        container.ip("addr", "flush", "dev", "eth0")
        served(server, check).failed()
        delete = lambda: client.delete("bridge", conf, container, prev_result=result)  # noqa: E731
        served(server, delete).succeeded()
        assert "eth0" not in container.ip("link")
        served(server, delete).succeeded()
    assert not list((data_dir / NET).glob("10.*"))


def test_a_server_that_means_other_files(
    runtime: Runtime, container: Netns, data_dir: Path, socket_path: Path
) -> None:
    """Without --any-mounts its clients are those who see the same files; others run by exec."""
    data_dir.mkdir(exist_ok=True)
    hide = f"mount -t tmpfs none {data_dir}"
    conf = bridge(data_dir)
    with serving(runtime, socket_path, "--workers", "1", mounts=hide) as server:
        by_exec(server, lambda: runtime.add("bridge", conf, container)).succeeded()
        assert list((data_dir / NET).glob("10.*"))
        by_exec(server, lambda: runtime.delete("bridge", conf, container)).succeeded()
    assert not list((data_dir / NET).glob("10.*"))


def test_a_chain_with_other_mounts(
    runtime: Runtime, socket_path: Path, data_dir: Path, netns: Callable[..., Netns]
) -> None:
    """Chained plugins take the namespace from their client, too."""
    hide = "mount -t tmpfs none /run/netns"
    with serving(runtime, socket_path, "--workers", "1", "--any-mounts", mounts=hide) as server:
        container = netns()
        plugins = [
            bridge(data_dir) | {"type": "bridge"},
            {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400},
            {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"},
        ]
        conflist = {"cniVersion": "1.1.0", "name": NET, "plugins": plugins}
        ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
        more = {"capabilities": {"portMappings": ports}}
        with Watch(server) as watch:
            result = runtime.add_list(conflist, container, **more)
            runtime.check_list(conflist, container, result, **more)
            assert container.sysctl("net/ipv4/conf/eth0/arp_filter") == "1"
            runtime.delete_list(conflist, container, result, **more)
        assert watch.handled == 9
