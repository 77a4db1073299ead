"""The native client (launcher/client.c), compiled with sanitizers, against odd servers."""

from __future__ import annotations

import array
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from cni.server.wire import Place
from tests.harness.build import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BUILD = "0123456789ab"
HELLO, HEADER = struct.Struct("=I12s6Q"), struct.Struct("=IIII")
MAGIC = 0x31494E43
CONF = b'{"cniVersion":"1.1.0","name":"net"}'
# Stands for Python: writes down what it was started with.
RECORDER = """#!/bin/sh
{ printf '%s\\0' "$@"; } > "$RECORD/argv"
env -0 > "$RECORD/env"
readlink /proc/self/ns/net > "$RECORD/netns"
cat > "$RECORD/stdin" 2>/dev/null
printf executed
exit 7
"""


HERE = Place.here(any_mounts=False)
# What an older kernel tells, so that the client has to look into /proc.
OLD = HERE._replace(netns_cookie=0, root_mount=0)


def hello(magic: int = MAGIC, build: str = BUILD, place: Place = HERE) -> bytes:
    return HELLO.pack(magic, build.encode(), *place)


def reply(code: int, output: bytes = b"") -> bytes:
    return struct.pack("=cBI", b"X", code, len(output)) + output


class Server:
    """Says `greeting`, reads a request, says `reply` (byte by byte if slow), then closes."""

    def __init__(self, path: Path, greeting: bytes, reply: bytes | None, *, slow: bool) -> None:
        self.requests: list[tuple[bytes, int, list[int]]] = []
        self.said: list[bytes] = []
        self.received = threading.Event()
        self.greeting, self.reply, self.slow = greeting, reply, slow
        self.look: Callable[[socket.socket, list[int]], None] | None = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while True:
                conn, _ = self.listener.accept()
                with conn:
                    conn.settimeout(20)
                    self._talk(conn)
        except OSError:
            pass  # closed

    def _talk(self, conn: socket.socket) -> None:
        try:
            conn.sendall(self.greeting)
            request, which, fds = receive(conn)
            if which:
                self.requests.append((request, which[0], fds))
                self.received.set()
                self._answer(conn, fds)
        except OSError:
            pass  # the client is gone

    def _answer(self, conn: socket.socket, fds: list[int]) -> None:
        try:
            if self.look is not None:
                self.look(conn, fds)
            elif self.reply is None:  # until a signal comes
                self.said.append(conn.recv(10))
                conn.sendall(reply(9))
            elif self.slow:
                for each in self.reply:
                    time.sleep(0.01)
                    conn.sendall(bytes([each]))
            else:
                conn.sendall(self.reply)
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


def receive(conn: socket.socket) -> tuple[bytes, bytes, list[int]]:
    """A whole request, go, and its descriptors; without go if the client left."""
    request = exactly(conn, HEADER.size)
    if len(request) < HEADER.size:
        return request, b"", []
    request += exactly(conn, sum(HEADER.unpack(request)[1:3]))
    which, ancillary, _, _ = conn.recvmsg(10, socket.CMSG_SPACE(64))
    fds = array.array("i")
    for _, _, content in ancillary:
        fds.frombytes(content)
    return request, which, list(fds)


def exactly(conn: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := conn.recv(size - len(data))):
        data += more
    return data


class Client(NamedTuple):
    """The program, and where the recorder writes."""

    program: Path
    record: Path
    socket: Path

    def environment(self, command: str = "ADD", **more: str) -> dict[str, str]:
        return {
            "PATH": "/usr/bin:/bin",
            "ASAN_OPTIONS": "exitcode=99:detect_leaks=0",
            "UBSAN_OPTIONS": "halt_on_error=1:exitcode=99",
            "CNI_COMMAND": command,
            "CNI_SERVER_SOCKET": str(self.socket),
            "RECORD": str(self.record),
        } | more

    def run(
        self, stdin: bytes = CONF, env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [self.program],
            input=stdin,
            env=env or self.environment(),
            capture_output=True,
            timeout=60,
            **options,
        )
        assert_sound(done.returncode, done.stderr)
        return done

    def recorded(self, name: str) -> bytes:
        return (self.record / name).read_bytes()


def assert_sound(code: int, stderr: bytes) -> None:
    assert code not in (99, -6, -11), stderr.decode()
    assert b"Sanitizer" not in stderr, stderr.decode()
    assert b"runtime error" not in stderr, stderr.decode()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client in its directory, installed for a Python that is the recorder."""
    place = tmp_path_factory.mktemp("client")
    compile_client(place, str(place / "recorder"))
    tree = place / f".cni-{BUILD}"
    tree.mkdir()
    (tree / "run.py").write_text("")
    return place


def compile_client(place: Path, python: str) -> None:
    """As strict as a compiler can be, and with little patience."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: run `make setup`")
    recorder = place / "recorder"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    script = (
        f"#!/bin/sh\ncni_build={BUILD}\ncni_python='{python}'\nexec {recorder} script \"$0\"\n"
    )
    octets = ",".join(map(str, script.encode() + b"\0"))
    text = f"extern const char cni_prefix[];\nconst char cni_prefix[] = {{{octets}}};\n"
    (place / "prefix.c").write_text(text)
    flags = ["-g", "-O1", "-Wall", "-Wextra", "-Werror", "-DCNI_PATIENCE_MS=500"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [str(ROOT / "launcher/client.c"), str(place / "prefix.c")]
    command = ["gcc", *flags, "-o", str(place / "cni"), *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (place / "bridge").symlink_to("cni")


@pytest.fixture
def client(compiled: Path, tmp_path: Path) -> Client:
    record = tmp_path / "record"
    record.mkdir()
    return Client(compiled / "bridge", record, tmp_path / "s")


@pytest.fixture
def serve(client: Client) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def start(
        greeting: bytes | None = None, answer: bytes | None = reply(0), *, slow: bool = False
    ) -> Server:
        greeting = hello() if greeting is None else greeting
        made.append(Server(client.socket, greeting, answer, slow=slow))
        return made[-1]

    yield start
    for server in made:
        server.close()


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
    done = client.run(env=client.environment(CNI_NETNS="/proc/self/ns/net", FILL="x"), umask=0o027)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    ((request, which, fds),) = server.requests
    magic, strings, size, umask = HEADER.unpack_from(request)
    assert (magic, size, umask) == (MAGIC, len(CONF), 0o027)
    assert (which, len(fds)) == (3, 4)  # stderr, directory, namespace, routing socket
    path, *env, last = request[HEADER.size : HEADER.size + strings].split(b"\0")
    assert (path, last) == (os.fsencode(client.program), b"")
    assert b"FILL=x" in env
    assert request[HEADER.size + strings :] == CONF


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The path of another network namespace."""
    child = subprocess.Popen(["unshare", "-n", "sleep", "600"])
    path = f"/proc/{child.pid}/ns/net"
    while os.stat(path).st_ino == HERE.netns_ino:
        time.sleep(0.001)
    yield path
    child.kill()
    child.wait()


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_a_routing_socket_of_the_container(
    client: Client, serve: Callable[..., Server], elsewhere: str, command: str
) -> None:
    server = serve()
    seen: list[tuple[int, int]] = []

    def look(conn: socket.socket, fds: list[int]) -> None:
        with socket.socket(fileno=os.dup(fds[3])) as routing:
            assert (routing.family, routing.proto) == (socket.AF_NETLINK, 0)
            where = fcntl.ioctl(routing, 0x894C)  # SIOCGSKNS
        seen.append((os.fstat(where).st_ino, os.fstat(fds[2]).st_ino))
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
    assert [(got, len(fds)) for _, got, fds in server.requests] == [(which, 2 + which)]


@pytest.mark.parametrize("size", [0, 15 << 20])
def test_a_server_that_hangs_up(client: Client, size: int) -> None:
    """At once, while the request is sent: as one does that declines."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(client.socket))
        listener.listen(1)
        listener.settimeout(20)
        child = start(client)
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
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
    "another namespace": hello(place=HERE._replace(netns_cookie=HERE.netns_cookie + 1)),
    "another namespace, old kernel": hello(place=OLD._replace(netns_ino=OLD.netns_ino + 1)),
    "another device, old kernel": hello(place=OLD._replace(netns_dev=OLD.netns_dev + 1)),
    "another root mount": hello(place=HERE._replace(root_mount=HERE.root_mount + 1)),
    "another root directory": hello(place=HERE._replace(root_ino=HERE.root_ino + 1)),
    "other mounts, old kernel": hello(place=OLD._replace(mounts=OLD.mounts + 1)),
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


GOOD_PLACES = {
    "here": HERE,
    "any mounts": HERE._replace(mounts=0, root_mount=7),
    "old kernel": OLD,
    "old kernel, any mounts": OLD._replace(mounts=0),
}


@pytest.mark.parametrize("place", GOOD_PLACES.values(), ids=GOOD_PLACES)
def test_who_is_in_the_same_place_gets_the_request(
    client: Client, serve: Callable[..., Server], place: Place
) -> None:
    server = serve(hello(place=place), reply(5))
    assert client.run().returncode == 5
    assert len(server.requests) == 1


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
def test_output_that_nobody_takes(
    client: Client, serve: Callable[..., Server], sink: str
) -> None:
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
        server.greeting = hello() if rng.random() < 0.7 else _damaged(rng, hello())
        server.reply = bytes(rng.choices(b"XN\0\1Q", k=rng.randrange(9)))
        command = rng.choice(["ADD", "DEL", "CHECK", "STATUS"])
        done = client.run(env=client.environment(command))
        if (client.record / "argv").exists():
            assert ran_by_exec(client, done)
            (client.record / "argv").unlink()
        elif done.stdout and not server.reply.startswith(b"X"):
            assert (command, json.loads(done.stdout)["code"]) == ("ADD", 11)


def _damaged(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(200))
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(3)) + data[at + 1 :]


# --- what the client is given ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 1 << 20, 16 << 20])
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


# --- signals --------------------------------------------------------------------------------------


def start(client: Client, conf: bytes | None = None) -> subprocess.Popen[bytes]:
    """An ADD that has been given its whole configuration, or still waits for it."""
    pipe = subprocess.PIPE
    env = client.environment("ADD")
    child = subprocess.Popen([client.program], stdin=pipe, stdout=pipe, stderr=pipe, env=env)
    if conf is not None:
        assert child.stdin is not None
        child.stdin.write(conf)
        child.stdin.close()
        child.stdin = None
    return child


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
