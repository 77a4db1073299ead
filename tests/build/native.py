"""The native client, compiled with sanitizers, and servers for it to talk to."""

from __future__ import annotations

import array
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.harness.build import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

BUILD = "0123456789ab"
HELLO, HEADER = struct.Struct("=I12s"), struct.Struct("=IIIII")
MAGIC = 0x32494E43
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


def hello(magic: int = MAGIC, build: str = BUILD) -> bytes:
    return HELLO.pack(magic, build.encode())


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
    request += exactly(conn, sum(HEADER.unpack(request)[1:4]))
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


def compile_client(place: Path, python: str) -> None:
    """As strict as a compiler can be, and with little patience."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: run `make setup`")
    recorder = place / "recorder"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    script = f"#!/bin/sh\ncni_build={BUILD}\ncni_python='{python}'\nexec {recorder} script \"$0\"\n"
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


def damaged(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(200))
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(3)) + data[at + 1 :]


def start(
    client: Client, conf: bytes | None = None, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """An ADD that has been given its whole configuration, or still waits for it."""
    pipe = subprocess.PIPE
    env = env or client.environment("ADD")
    child = subprocess.Popen([client.program], stdin=pipe, stdout=pipe, stderr=pipe, env=env)
    if conf is not None:
        assert child.stdin is not None
        child.stdin.write(conf)
        child.stdin.close()
        child.stdin = None
    return child
