"""The native client (launcher/client.c), compiled with sanitizers, against odd servers."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.server import wire
from tests.harness.paths import let_everybody_in

from .native import (
    BUILD,
    CONF,
    HEADER,
    HELLO,
    MAGIC,
    Client,
    Server,
    assert_sound,
    compile_client,
    damaged,
    hello,
    receive,
    reply,
    start,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def ran_by_exec(client: Client, done: subprocess.CompletedProcess[bytes]) -> bool:
    """Whether Python was started, which then had everything as the client had it."""
    if not (client.record / "argv").exists():
        return False
    assert (done.returncode, done.stdout) == (7, b"executed")
    head = ["-I", "-S", str(client.program.parent / f".cni-{BUILD}/run.py"), str(client.program)]
    assert client.recorded("argv").decode().split("\0")[:-1] == head
    assert client.recorded("stdin") == CONF
    assert f"RECORD={client.record}".encode() in client.recorded("env").split(b"\0")
    return True


# --- what the server says -------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_the_exit_code_is_the_server_s(
    client: Client, serve: Callable[..., Server], code: int
) -> None:
    server = serve(answer=reply(code))
    more = {"CNI_NETNS": "/proc/self/ns/net", "FILL": "x=y", "EMPTY": "", "CNI_ARGS": "K=V"}
    done = client.run(env=client.environment(**more), umask=0o027)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    ((request, which, fds),) = server.requests
    magic, strings, inherited, size, umask = HEADER.unpack_from(request)
    assert (magic, size, umask) == (MAGIC, len(CONF), 0o027)
    # stderr, directory, root, namespace, routing socket, jobs
    assert (which, len(fds)) == (7, 6)
    own, rest = request[HEADER.size :][:strings], request[HEADER.size + strings :]
    path, *variables, last = own.split(b"\0")
    assert (path, last) == (os.fsencode(client.program), b"")
    assert pairs(variables)[b"CNI_ARGS"] == b"K=V"
    assert all(name.startswith(b"CNI_") for name in variables[::2])
    *variables, last = rest[:inherited].split(b"\0")
    assert {b"FILL": b"x=y", b"EMPTY": b""}.items() <= pairs(variables).items()
    assert not any(name.startswith(b"CNI_") for name in variables[::2])
    assert rest[inherited:] == CONF


def pairs(texts: list[bytes]) -> dict[bytes, bytes]:
    """Names and values in turn."""
    return dict(zip(texts[::2], texts[1::2], strict=True))


# Python's own execve takes no such variables: executes argv[1] with those of argv[2:].
RAW_EXECVE = """
import ctypes, os, sys
texts = [*map(os.fsencode, sys.argv[1:]), *(b"=".join(pair) for pair in os.environb.items())]
environment = (ctypes.c_char_p * len(texts))(*texts[1:], None)
ctypes.CDLL(None).execve(texts[0], (ctypes.c_char_p * 2)(texts[0], None), environment)
"""


def test_a_variable_without_name_or_value_is_left_out(
    client: Client, serve: Callable[..., Server]
) -> None:
    """Python's environment has no such variables either."""
    strange = ("", "=", "=x", "LONE", "CNI_LONE", "A=B")
    server = serve()
    done = subprocess.run(
        [sys.executable, "-c", RAW_EXECVE, client.program, *strange],
        input=CONF,
        env=client.environment(),
        capture_output=True,
    )
    assert done.returncode == 0, done
    request, *_ = server.requests[0]
    _, strings, inherited, _, _ = HEADER.unpack_from(request)
    texts = request[HEADER.size :][: strings + inherited].split(b"\0")
    assert not {b"LONE", b"CNI_LONE", b"x"} & set(texts)
    assert texts.count(b"A") == texts.count(b"CNI_COMMAND") == 1
    assert len(texts) % 2 == 0  # the path, pairs, and what is behind the last NUL


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_a_routing_socket_of_the_container(
    client: Client, serve: Callable[..., Server], elsewhere: str, command: str
) -> None:
    server = serve()
    seen: list[tuple[int, int]] = []

    def look(conn: socket.socket, fds: list[int]) -> None:
        with socket.socket(fileno=os.dup(fds[4])) as routing:
            assert (routing.family, routing.proto) == (socket.AF_NETLINK, 0)
            where = fcntl.ioctl(routing, 0x894C)  # SIOCGSKNS
        seen.append((os.fstat(where).st_ino, os.fstat(fds[3]).st_ino))
        os.close(where)
        conn.sendall(reply(0))

    server.look = look
    assert client.run(env=client.environment(command, CNI_NETNS=elsewhere)).returncode == 0
    inode = os.stat(elsewhere).st_ino
    assert seen == [(inode, inode)]


def test_who_was_in_the_container_s_namespace_is_back(
    client: Client, serve: Callable[..., Server], elsewhere: str
) -> None:
    serve(answer=b"")
    done = client.run(env=client.environment("DEL", CNI_NETNS=elsewhere))
    assert ran_by_exec(client, done)
    assert client.recorded("netns").decode().strip() == os.readlink("/proc/self/ns/net")


@pytest.mark.parametrize(
    ("netns", "which"), [("", 0), ("/nonexistent", 0), ("/proc/self/ns/mnt", 1), ("/etc/passwd", 1)]
)
def test_no_namespace_no_routing_socket(
    client: Client, serve: Callable[..., Server], netns: str, which: int
) -> None:
    server = serve()
    assert client.run(env=client.environment(CNI_NETNS=netns)).returncode == 0
    assert [(got, len(fds)) for _, got, fds in server.requests] == [(which, 3 + which)]


def test_the_namespace_s_mount_is_not_kept_busy(
    client: Client, serve: Callable[..., Server], elsewhere: str, tmp_path: Path
) -> None:
    """Although the server still has every descriptor that came with the request."""
    pinned = tmp_path / "netns"
    pinned.touch()
    subprocess.run(["mount", "--bind", elsewhere, pinned], check=True)
    server = serve()
    results: list[int] = []

    def look(conn: socket.socket, fds: list[int]) -> None:
        results.append(len(fds))
        results.append(subprocess.run(["umount", pinned]).returncode)
        conn.sendall(reply(0))

    server.look = look
    try:
        assert client.run(env=client.environment(CNI_NETNS=str(pinned))).returncode == 0
        assert results == [6, 0]
    finally:
        subprocess.run(["umount", "-l", pinned], capture_output=True)


def test_the_kernel_is_asked_for_the_client_s_capabilities(
    client: Client, serve: Callable[..., Server]
) -> None:
    """Without CAP_SYS_ADMIN no go can be sent, so no worker lends any."""
    server = serve()
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    done = subprocess.run(
        [*bare, client.program], input=CONF, env=client.environment(), capture_output=True
    )
    assert ran_by_exec(client, done)
    assert server.requests == []


@pytest.mark.parametrize("size", [0, 15 << 20])
def test_a_server_that_hangs_up(client: Client, size: int) -> None:
    """At once, while the request is sent: as one does that declines."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(client.socket))
        listener.listen(1)
        listener.settimeout(20)
        child = start(client)
        thread = threading.Thread(target=lambda: listener.accept()[0].close())  # noqa: PLW0108 later
        thread.start()
        output, _ = child.communicate(CONF + b" " * size, timeout=60)
        thread.join()
    assert (child.returncode, output) == (7, b"executed")
    assert client.recorded("stdin") == CONF + b" " * size


def test_a_silent_server_and_a_large_configuration(client: Client) -> None:
    """It does not fit into the queue: nobody waits longer for that."""
    stdin = CONF + b" " * (5 << 20)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(client.socket))
        listener.listen(1)
        assert client.run(stdin).stdout == b"executed"
    assert client.recorded("stdin") == stdin


BAD_GREETINGS = {
    "nothing": b"",
    "one byte": hello()[:1],
    "cut short": hello()[:-1],
    "another magic": hello(magic=7),
    "another build": hello(build="ba9876543210"),
    "zeros": bytes(HELLO.size),
    "an exit code": reply(0),
}


@pytest.mark.parametrize("greeting", BAD_GREETINGS.values(), ids=BAD_GREETINGS)
def test_who_does_not_greet_properly_gets_no_request(
    client: Client, serve: Callable[..., Server], greeting: bytes
) -> None:
    server = serve(greeting)
    assert ran_by_exec(client, client.run())
    assert server.requests == []


def test_another_user_s_server_gets_no_request(
    client: Client, serve: Callable[..., Server], elsewhere: str
) -> None:
    """It could have the client do things."""
    server = serve()
    for path in (client.program.parent, client.record.parent):
        let_everybody_in(path)
    for path in (client.socket, client.record):
        path.chmod(0o777)
    done = client.run(env=client.environment(CNI_NETNS=elsewhere), user=65534, group=65534)
    assert ran_by_exec(client, done)
    assert server.requests == []


def test_the_request_goes_on_whatever_was_done_in_the_container(
    client: Client, serve: Callable[..., Server], elsewhere: str
) -> None:
    server = serve(hello(), reply(5))
    for netns in ("", elsewhere):
        assert client.run(env=client.environment(CNI_NETNS=netns)).returncode == 5
    assert len(server.requests) == 2


def test_a_silent_server_is_not_waited_for(client: Client) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(client.socket))
        listener.listen(1)
        assert ran_by_exec(client, client.run())


REPLIES = {  # -> what becomes of an ADD, and of a DEL
    "unknown plugin": (b"N", "exec", "exec"),
    "end": (b"", "lost", "exec"),
    "exit without code": (b"X", "lost", "exec"),
    "exit without size": (reply(0)[:-1], "lost", "exec"),
    "less output than said": (reply(0, b"out")[:-1], "lost", "exec"),
    "more output than there can be": (b"X\0" + b"\xff" * 4, "lost", "exec"),
    "nonsense": (b"Q", "lost", "exec"),
    "output": (reply(3, b"out"), 3, 3),
    "more output than said": (reply(3, b"out") + b"put", 3, 3),
    "no output": (reply(5), 5, 5),
}


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("case", REPLIES.values(), ids=REPLIES)
def test_replies(
    client: Client,
    serve: Callable[..., Server],
    case: tuple[bytes, str | int, str | int],
    slow: bool,
    command: str,
) -> None:
    answer, *outcomes = case
    serve(answer=answer, slow=slow)
    done = client.run(env=client.environment(command))
    expected = outcomes[command == "DEL"]
    assert ran_by_exec(client, done) == (expected == "exec")
    if expected == "lost":
        assert done.returncode == 1
        error = json.loads(done.stdout)
        assert (error["code"], set(error)) == (11, {"code", "msg", "details"})
    elif expected != "exec":
        assert (done.returncode, done.stdout) == (expected, b"out" if b"out" in answer else b"")


@pytest.mark.parametrize("size", [1, 4096, 70_000, 3_000_000])
def test_output_arrives_whole(client: Client, serve: Callable[..., Server], size: int) -> None:
    output = bytes(range(256)) * (size // 256) + bytes(size % 256)
    serve(answer=reply(1, output))
    done = client.run()
    assert (done.returncode, done.stdout == output, done.stderr) == (1, True, b"")


@pytest.mark.parametrize("sink", ["/dev/full", "|true"])
def test_output_that_nobody_takes(client: Client, serve: Callable[..., Server], sink: str) -> None:
    """As by exec: an exit code and a line on stderr, not a signal."""
    serve(answer=reply(0, bytes(1 << 20)))
    command = f'"$0" > {sink}' if sink[0] == "/" else '{ "$0"; echo $? >&3; } 3>&2 ' + sink
    done = subprocess.run(
        ["/bin/sh", "-c", command, client.program],
        env=client.environment(),
        input=CONF,
        capture_output=True,
        timeout=60,
    )
    code = done.returncode if sink[0] == "/" else int(done.stderr.split()[-1])
    assert (code, b"cni: cannot write to stdout: " in done.stderr) == (1, True)


def test_random_servers(client: Client, serve: Callable[..., Server]) -> None:
    """Whatever it says, the client gives an exit code, an error, or runs by exec."""
    rng = random.Random(11)
    server = serve()
    for _ in range(150):
        server.greeting = hello() if rng.random() < 0.7 else damaged(rng, hello())
        server.reply = bytes(rng.choices(b"XN\0\1Q", k=rng.randrange(9)))
        command = rng.choice(["ADD", "DEL", "CHECK", "STATUS"])
        done = client.run(env=client.environment(command))
        if (client.record / "argv").exists():
            assert ran_by_exec(client, done)
            (client.record / "argv").unlink()
        elif done.stdout and not server.reply.startswith(b"X"):
            assert (command, json.loads(done.stdout)["code"]) == ("ADD", 11)


# --- what the client is given ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16384, 32767, 32768, 32769, 65537, 1 << 20, 16 << 20])
def test_configurations_of_any_size(
    client: Client, serve: Callable[..., Server], size: int
) -> None:
    server = serve()
    stdin = random.Random(size).randbytes(size)
    assert client.run(stdin).returncode == 0
    assert server.requests[0][0].endswith(stdin)


def test_a_configuration_that_is_too_long(client: Client, serve: Callable[..., Server]) -> None:
    """Python says so: the beginning, which is too long already, is handed on."""
    server = serve()
    assert client.run(bytes(17 << 20)).stdout == b"executed"
    assert len(client.recorded("stdin")) > 16 << 20
    assert server.requests == []


def test_a_large_environment(client: Client, serve: Callable[..., Server]) -> None:
    server = serve()
    more = {f"FILL_{i}": "y" * 10000 for i in range(100)}
    assert client.run(env=client.environment(**more)).returncode == 0
    request, *_ = server.requests[0]
    assert request.count(b"y" * 10000) == 100


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("command", ["ADD", "VERSION"])
def test_closed_descriptors(
    client: Client, serve: Callable[..., Server], closed: tuple[int, ...], command: str
) -> None:
    """The socket must not become the worker's stdout."""
    server = serve()
    shell = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in closed)
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" {shell}', client.program],
        env=client.environment(command),
        input=CONF,
        capture_output=True,
        timeout=60,
    )
    assert_sound(done.returncode, done.stderr)
    assert (client.record / "argv").exists()
    assert server.requests == []


@pytest.mark.parametrize(
    "env", [{}, {"CNI_COMMAND": ""}, {"CNI_SERVER": "off"}, {"CNI_COMMAND": "ADD"}]
)
def test_what_is_not_for_the_server(
    client: Client, serve: Callable[..., Server], env: dict[str, str]
) -> None:
    server = serve()
    whole = client.environment() | env
    if not env:
        del whole["CNI_COMMAND"]
    done = client.run(env=whole)
    if env == {"CNI_COMMAND": "ADD"}:
        assert (done.returncode, len(server.requests)) == (0, 1)
    else:
        assert (done.stdout, server.requests) == (b"executed", [])


@pytest.mark.parametrize("path", ["", "/nonexistent/s", "x" * 200])
def test_sockets_that_are_not_there(client: Client, path: str) -> None:
    assert ran_by_exec(client, client.run(env=client.environment(CNI_SERVER_SOCKET=path)))


def test_arguments_are_handed_on(client: Client, compiled: Path) -> None:
    env = client.environment()
    subprocess.run([compiled / "cni", "a b", "c"], env=env, input=CONF, timeout=60)
    program = os.fsencode(compiled / "cni")
    assert client.recorded("argv").split(b"\0")[-4:-1] == [program, b"a b", b"c"]


def test_without_an_installed_tree_the_script_runs(client: Client, tmp_path: Path) -> None:
    elsewhere = tmp_path / "bridge"
    shutil.copy(client.program, elsewhere)
    done = subprocess.run([elsewhere], env=client.environment(), input=CONF, timeout=60)
    assert done.returncode == 7
    assert client.recorded("argv") == b"script\0" + os.fsencode(elsewhere) + b"\0"
    assert client.recorded("stdin") == CONF


def test_a_client_alone_is_more_patient(client: Client, tmp_path: Path) -> None:
    """Without an installed Python there is little to fall back on."""
    compile_client(tmp_path, "")
    alone = client._replace(program=tmp_path / "bridge")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(client.socket))
        listener.listen(1)
        listener.settimeout(20)
        child = start(alone, CONF)
        conn, _ = listener.accept()
        with conn:
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(1)  # twice what it waits otherwise
            conn.sendall(hello())
            _, _, fds = receive(conn)
            conn.sendall(reply(4))
            for fd in fds:
                os.close(fd)
        child.communicate(timeout=30)
    assert child.returncode == 4


def test_who_is_turned_away_runs_by_exec(client: Client, serve: Callable[..., Server]) -> None:
    server = serve(greeting=wire.BUSY)
    assert ran_by_exec(client, client.run())
    assert server.requests == []


@pytest.mark.parametrize("size", [0, 4 << 20])
def test_a_client_alone_that_is_turned_away_asks_again(
    client: Client, tmp_path: Path, size: int
) -> None:
    """Also if its configuration does not fit into the socket, so that it is not even sent."""
    compile_client(tmp_path, "")
    alone = client._replace(program=tmp_path / "bridge")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(client.socket))
        listener.listen(1)
        listener.settimeout(20)
        child = start(alone)
        with ThreadPoolExecutor(1) as pool:
            output = pool.submit(child.communicate, CONF + b" " * size, 60)
            for _ in range(3):
                conn, _ = listener.accept()
                with conn:
                    assert conn.recv(1)
                    conn.sendall(wire.BUSY)
            conn, _ = listener.accept()
            with conn:
                conn.sendall(hello())
                request, _, fds = receive(conn)
                conn.sendall(reply(4))
                for fd in fds:
                    os.close(fd)
            assert_sound(child.wait(30), output.result()[1])
    assert child.returncode == 4
    assert len(request) > size


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_goes_to_the_worker(
    client: Client, serve: Callable[..., Server], number: signal.Signals
) -> None:
    server = serve(answer=None)
    child = start(client, CONF)
    assert server.received.wait(20)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=30)
    assert_sound(child.returncode, stderr)
    assert (child.returncode, server.said) == (9, [bytes([number])])


def test_a_signal_while_stdin_is_read(client: Client, serve: Callable[..., Server]) -> None:
    server = serve()
    child = start(client)
    assert child.stdin is not None
    child.stdin.write(bytes(1 << 17))  # more than a pipe holds: it is reading
    child.stdin.flush()
    child.terminate()
    child.communicate(timeout=30)
    assert child.returncode == -signal.SIGTERM
    assert server.requests == []


def test_a_signal_before_the_greeting(client: Client) -> None:
    """Nothing has begun, and nothing begins: also not by exec."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(client.socket))
        listener.listen(1)
        child = start(client, CONF)
        listener.settimeout(20)
        conn, _ = listener.accept()
        child.terminate()
        output, stderr = child.communicate(timeout=30)
        conn.close()
    assert_sound(child.returncode, stderr)
    assert child.returncode == 1
    assert json.loads(output)["msg"] == "interrupted by a signal"
    assert not (client.record / "argv").exists()
