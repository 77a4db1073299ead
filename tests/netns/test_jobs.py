"""cni.netns.jobs: what the client's process does in the container, and when an executor has to.

tests/build/test_client_jobs.py has the client's side; here a thread plays it.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import sysctl
from cni.kernel.sysctl import ENSURE, READ, WRITE
from cni.netns import Namespace, namespace
from cni.netns.executor import Executor
from cni.netns.jobs import ClientJobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Netns

    Handed = Callable[..., tuple["Client", Namespace]]

HANDED = "/handed/over"
FORWARD = "net/ipv4/ip_forward"
NOTHING = 0xFFFFFFFF


def packet(*outcomes: tuple[int, bytes | None]) -> bytes:
    found = [b"s"]
    for errno, value in outcomes:
        size = NOTHING if value is None else len(value)
        found.append(struct.pack("=iI", errno, size) + (value or b""))
    return b"".join(found)


class Client:
    """Says one of `answers` to each job (None: nothing), and leaves."""

    def __init__(self, *answers: bytes | None) -> None:
        self.jobs: list[bytes] = []
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.client_jobs = ClientJobs(theirs.detach())
        self.answers = answers
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with self.sock:
            for each in self.answers:
                job = self.sock.recv(1 << 17)
                if not job:
                    return
                self.jobs.append(job)
                if each is not None:
                    self.sock.send(each)


@pytest.fixture
def handed(container: Netns) -> Iterator[Callable[..., tuple[Client, Namespace]]]:
    """A namespace with a client that gives these answers."""
    fd = os.open(container.path, os.O_RDONLY)
    opened: list[Namespace] = []

    def make(*answers: bytes | None) -> tuple[Client, Namespace]:
        client = Client(*answers)
        namespace.hand_over(HANDED, fd, None, client.client_jobs)
        opened.append(Namespace.open(HANDED))
        return client, opened[-1]

    yield make
    for each in opened:
        each.close()
    namespace.hand_over("", None)
    os.close(fd)


@pytest.fixture
def no_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        pytest.fail("an executor was asked")

    monkeypatch.setattr(Executor, "borrow", never)


@pytest.mark.usefixtures("no_executor")
def test_a_job_and_its_answer(handed: Handed) -> None:
    client, netns = handed(packet((0, b"7\n"), (0, None), (EINVAL, b"0\n"), (ENOENT, None)))
    steps = [
        (READ, FORWARD, ""),
        (WRITE, FORWARD, "1"),
        (ENSURE, FORWARD, "ä"),
        (READ, "net/x", ""),
    ]
    assert netns.sysctls(steps) == [("7", 0), (None, 0), ("0", EINVAL), (None, ENOENT)]
    name = FORWARD.encode()
    words = [b"sr" + name, b"", b"w" + name, b"1", b"e" + name, "ä".encode(), b"rnet/x", b"", b""]
    assert client.jobs == [b"\0".join(words)]


@pytest.mark.usefixtures("no_executor")
def test_the_first_failure_ends_it(handed: Handed) -> None:
    client, netns = handed(packet((0, None), (EINVAL, None)))
    steps = [(WRITE, FORWARD, "1"), (WRITE, FORWARD, "x"), (WRITE, FORWARD, "0")]
    assert netns.sysctls(steps, stop=True) == [(None, 0), (None, EINVAL)]
    assert client.jobs[0].startswith(b"Sw")


@pytest.mark.usefixtures("no_executor")
def test_one_that_nobody_waited_for(handed: Handed) -> None:
    """As when something else failed meanwhile: the next answer is not taken for it."""
    _, netns = handed(packet((0, b"old\n")), packet((0, b"new\n")))
    netns.start_sysctls([(READ, FORWARD, "")])
    assert netns.sysctls([(READ, FORWARD, "")]) == [("new", 0)]


ODD = {
    "cannot": b"n",
    "empty": b"",
    "too few": packet(),
    "too many": packet((0, b"7\n"), (0, b"7\n")),
    "cut": packet((0, b"7\n"))[:5],
    "nonsense": b"xyz",
}


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
@pytest.mark.parametrize("stop", [False, True])
def test_an_executor_does_what_it_does_not(
    handed: Handed, container: Netns, answer: bytes, stop: bool
) -> None:
    container.run(sysctl.write, FORWARD, "1")
    client, netns = handed(answer, packet((0, b"7\n")))
    for _ in range(2):
        assert netns.sysctls([(READ, FORWARD, "")], stop=stop) == [("1", 0)]
    assert len(client.jobs) == 1  # it is not asked again


def test_it_is_gone(handed: Handed, container: Netns) -> None:
    container.run(sysctl.write, FORWARD, "1")
    client, netns = handed()
    client.thread.join(20)
    assert netns.sysctls([(READ, FORWARD, "")]) == [("1", 0)]


def test_what_is_not_for_it(handed: Handed, container: Netns) -> None:
    """Too much for a packet, or what a packet cannot hold; it may be asked later."""
    container.run(sysctl.write, FORWARD, "1")
    client, netns = handed(packet((0, b"7\n")))
    assert netns.sysctls([(READ, FORWARD, "")] * 16) == [("1", 0)] * 16
    long = [(WRITE, "net/ipv4/conf/lo/arp_filter", "1" + " " * 70000)]
    assert len(netns.sysctls(long)) == 1
    netns.sysctls([(WRITE, FORWARD, "0\0w")])
    assert not client.jobs
    assert netns.sysctls([(READ, FORWARD, "")]) == [("7", 0)]


@pytest.mark.usefixtures("no_executor")
@pytest.mark.parametrize("name", ["kernel/pid_max", "net/../kernel/pid_max", "net//x", "net/a\0b"])
def test_other_parameters_are_not_asked_for(handed: Handed, name: str) -> None:
    client, netns = handed(packet((0, b"7\n")))
    with pytest.raises(ValueError, match="not a parameter below net/"):
        netns.sysctls([(READ, name, "")])
    assert not client.jobs


class _Interrupted(Exception):
    pass


def test_interrupted_while_it_works(handed: Handed, container: Netns) -> None:
    """Undoing is an executor's: what the client still does nobody knows."""
    container.run(sysctl.write, FORWARD, "1")
    _, netns = handed(None, packet((0, b"7\n")))
    finish = netns.start_sysctls([(READ, FORWARD, "")])

    def raise_it(*_: object) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(_Interrupted):
            finish()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert netns.sysctls([(READ, FORWARD, "")]) == [("1", 0)]


def test_nobody_opens_the_namespace(container: Netns) -> None:
    """Then its end is closed, and the client hears that."""
    fd = os.open(container.path, os.O_RDONLY)
    client = Client(b"s")
    namespace.hand_over(HANDED, fd, None, client.client_jobs)
    namespace.hand_over("", None)
    client.thread.join(20)
    assert not client.thread.is_alive()
    assert client.sock.fileno() == -1
    os.close(fd)
