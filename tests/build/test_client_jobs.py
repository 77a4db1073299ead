"""What the native client does in the container for a worker (cni.netns.jobs)."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from errno import EINVAL, EISDIR, ENOENT
from pathlib import Path

import pytest

from .native import CONF, Client, Server, damaged, reply, start

NOTHING = 0xFFFFFFFF
FORWARD, FILTER = "net/ipv4/ip_forward", "net/ipv4/conf/lo/arp_filter"


def job(*steps: tuple[str, str, str], stop: bool = False) -> bytes:
    body = "".join(f"{kind}{name}\0{value}\0" for kind, name, value in steps)
    return (b"S" if stop else b"s") + body.encode()


def outcomes(answer: bytes) -> list[tuple[int, bytes | None]]:
    assert answer[:1] == b"s"
    found: list[tuple[int, bytes | None]] = []
    at = 1
    while at < len(answer):
        errno, size = struct.unpack_from("=iI", answer, at)
        at += 8
        found.append((errno, None if size == NOTHING else answer[at : at + size]))
        at += 0 if size == NOTHING else size
    assert at == len(answer)
    return found


@pytest.fixture
def ask(
    client: Client, serve: Callable[..., Server], elsewhere: str
) -> Callable[..., list[bytes | None]]:
    """What a client answers to jobs, which then has to be well; None: it takes no more."""

    def run(*jobs: bytes, netns: str = elsewhere) -> list[bytes | None]:
        answers: list[bytes | None] = []

        def look(conn: socket.socket, fds: list[int]) -> None:
            with socket.socket(fileno=os.dup(fds[5])) as sock:
                assert sock.type == socket.SOCK_SEQPACKET
                sock.settimeout(20)
                for each in jobs:
                    try:
                        sock.send(each)
                        answers.append(sock.recv(1 << 17) or None)
                    except (BrokenPipeError, ConnectionResetError):
                        answers.append(None)
            conn.sendall(reply(0, b"done"))

        server = serve()
        server.look = look
        done = client.run(env=client.environment(CNI_NETNS=netns))
        assert (done.returncode, done.stdout, done.stderr) == (0, b"done", b"")
        assert len(answers) == len(jobs)
        return answers

    return run


def inside(netns: str, name: str) -> bytes:
    command = ["nsenter", f"--net={netns}", "cat", f"/proc/sys/{name}"]
    return subprocess.run(command, check=True, capture_output=True).stdout


Ask = Callable[..., list[bytes | None]]


def test_parameters_are_those_of_the_container(ask: Ask, elsewhere: str) -> None:
    here = Path("/proc/sys", FORWARD).read_bytes()
    other = b"0" if here == b"1\n" else b"1"
    was = inside(elsewhere, FORWARD)
    first, second = ask(
        job(("r", FORWARD, ""), ("w", FORWARD, other.decode()), ("r", FORWARD, "")),
        job(("r", FORWARD, "")),
    )
    assert outcomes(first or b"") == [(0, was), (0, None), (0, other + b"\n")]
    assert outcomes(second or b"") == [(0, other + b"\n")]
    assert inside(elsewhere, FORWARD) == other + b"\n"
    assert Path("/proc/sys", FORWARD).read_bytes() == here


def test_writing_only_what_differs(ask: Ask, elsewhere: str) -> None:
    (answer,) = ask(job(("e", FILTER, "1"), ("e", FILTER, "1"), ("e", FILTER, "x")))
    assert outcomes(answer or b"") == [(0, b"0\n"), (0, b"1\n"), (EINVAL, b"1\n")]
    assert inside(elsewhere, FILTER) == b"1\n"


def test_what_fails_is_told(ask: Ask, elsewhere: str) -> None:
    steps = [
        ("r", "net/nosuch", ""),
        ("w", "net/ipv4/conf", "1"),
        ("e", "net/nosuch", "1"),
        ("w", FORWARD, "x"),
        ("r", "net/" + "x" * 5000, ""),
        ("r", "kernel/pid_max", ""),
        ("w", "net/../kernel/pid_max", "1"),
        ("r", "net/..", ""),
        ("w", FORWARD, "1"),
    ]
    wanted = [(ENOENT, None), (EISDIR, None), (ENOENT, None), (EINVAL, None)]
    wanted += [(ENOENT, None)] * 4
    one, other = ask(job(*steps), job(*steps, stop=True))
    assert outcomes(one or b"") == [*wanted, (0, None)]
    assert outcomes(other or b"") == wanted[:1]


def test_as_many_as_their_answers_fit(ask: Ask) -> None:
    """All that cni.netns.jobs asks for at once, and no more than there is room for."""
    steps = [("r", FILTER, "")]
    few, many = ask(job(*steps * 15), job(*steps * 3000))
    assert len(outcomes(few or b"")) == 15
    assert 15 < len(outcomes(many or b"")) < 3000 * 10


@pytest.mark.parametrize("netns", ["/proc/self/ns/mnt", "/etc/passwd"])
def test_no_namespace_no_jobs(client: Client, serve: Callable[..., Server], netns: str) -> None:
    server = serve()
    assert client.run(env=client.environment(CNI_NETNS=netns)).returncode == 0
    assert [(got, len(fds)) for _, got, fds in server.requests] == [(1, 4)]


def test_random_jobs(ask: Ask) -> None:
    """Nothing but our own server sends them; even so nothing is read where there is nothing."""
    rng = random.Random(9)
    whole = job(("r", FORWARD, ""), ("e", FILTER, "0"), ("r", "net/nosuch", ""))
    jobs = [damaged(rng, whole) or b"s" for _ in range(150)]
    jobs += [whole[:size] for size in range(1, len(whole))]
    jobs += [b"s" + b"r" * 60000, b"s" + b"\0" * 60000, b"S"]
    answers = ask(*jobs, whole)
    assert len(outcomes(answers[-1] or b"")) == 3


def test_a_signal_between_jobs(
    client: Client, serve: Callable[..., Server], elsewhere: str
) -> None:
    server = serve()
    heard: list[bytes] = []

    def look(conn: socket.socket, fds: list[int]) -> None:
        with socket.socket(fileno=os.dup(fds[5])) as sock:
            sock.settimeout(20)
            running.send_signal(signal.SIGTERM)
            heard.append(conn.recv(10))
            sock.send(job(("r", FORWARD, "")))
            heard.append(sock.recv(100)[:1])
        conn.sendall(reply(3))

    server.look = look
    environment = client.environment(CNI_NETNS=elsewhere)
    running = start(client, CONF, env=environment)
    running.communicate(timeout=20)
    assert running.returncode == 3
    assert heard == [bytes([signal.SIGTERM]), b"s"]
