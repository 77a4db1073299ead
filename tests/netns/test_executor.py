"""cni.netns: work done in another network namespace by a forked child, the executor.

What must hold whatever a job does: the parent stays in its namespace, the child is reused only when
it is certainly clean, and nothing is left over (processes, descriptors, namespaces).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import link
from cni.kernel.errors import (
    ExecutorDied,
    KernelError,
    NetlinkError,
    NetnsError,
    NetnsMissing,
    RemoteTraceback,
)
from cni.netns import Namespace, libc, namespace
from cni.netns.executor import Executor
from cni.protocol.errors import CNIError
from tests.harness.build import ROOT
from tests.harness.netns import own_inode
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Netns


@pytest.fixture(autouse=True)
def untouched(_namespaces: None) -> Iterator[None]:
    """Around each test: same namespace, no child and no descriptor left."""
    Executor.discard_idle()
    before = own_inode(), children(), descriptors()
    yield
    Executor.discard_idle()
    assert (own_inode(), children(), descriptors()) == before


@pytest.fixture
def opened(container: Netns) -> Iterator[Namespace]:
    with Namespace.open(container.path) as ns:
        yield ns


def children() -> list[int]:
    """Pids of our child processes, zombies too."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


def descriptors() -> dict[str, str]:
    """Our open descriptors."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the listing's own
            continue
        found[fd] = target
    return found


def alive(pid: int) -> bool:
    """Does the process exist, other than as a zombie?"""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# --- jobs: they run in the child, which looks them up by name ----------------------------------


def inode() -> int:
    return os.stat("/proc/self/ns/net").st_ino


def pid() -> int:
    return os.getpid()


def echo(*values: Any) -> Any:
    return values


def read(path: str) -> str:
    return Path(path).read_text()


def size(value: bytes) -> int:
    return len(value)


def fail(error: BaseException) -> None:
    raise error


class Interrupted(Exception):
    pass


class Odd(Exception):
    """Cannot be unpickled: its constructor wants two arguments and passes on one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def fail_oddly() -> None:
    raise Odd("strange", "thing")


def exit_now(code: int) -> None:
    os._exit(code)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave_thread() -> int:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return os.getpid()


def leave_child() -> int:
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        libc.die_with_parent(parent)
        time.sleep(300)
    return child


def leave_zombie() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    return child


def run_child() -> int:
    child = os.fork()
    if child == 0:
        os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def enter(path: str) -> int:
    """Go astray: into yet another namespace."""
    fd = os.open(path, os.O_RDONLY)
    libc.setns(fd)
    os.close(fd)
    return inode()


def close_everything() -> None:
    os.closerange(0, 1000)


def nested(path: str) -> int:
    with Namespace.open(path) as ns:
        return ns.run(inode)


def unpicklable() -> Any:
    return threading.Lock()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def write(fd: int, text: str) -> int:
    return os.write(fd, text.encode())


def open_files() -> dict[str, str]:
    return descriptors()


# --- where the work is done --------------------------------------------------------------------


def test_runs_inside(container: Netns, opened: Namespace) -> None:
    before = own_inode()
    assert opened.run(inode) == container.inode != before
    assert own_inode() == before


def test_the_child_is_another_process(opened: Namespace) -> None:
    assert opened.run(pid) != os.getpid()


def test_one_child_for_many_namespaces(netns: Callable[..., Netns]) -> None:
    spaces = [netns() for _ in range(5)]
    seen = set()
    for _ in range(3):
        for space in spaces:
            with Namespace.open(space.path) as ns:
                assert ns.run(inode) == space.inode
                seen.add(ns.run(pid))
    assert len(seen) == 1


def test_several_namespaces_at_once(netns: Callable[..., Netns]) -> None:
    spaces = [netns() for _ in range(3)]
    with ExitStack() as stack:
        opened = [stack.enter_context(Namespace.open(space.path)) for space in spaces]
        for _ in range(3):
            assert [one.run(inode) for one in opened] == [space.inode for space in spaces]
    assert len(Executor._idle) == 2  # no more are kept


def test_the_last_one_back_is_the_next_to_go(container: Netns) -> None:
    """Its memory is warm."""
    with Namespace.open(container.path) as one, Namespace.open(container.path) as two:
        first, second = one.run(pid), two.run(pid)
    for expected in (first, first):
        with Namespace.open(container.path) as again:
            assert again.run(pid) == expected
    assert first != second


def test_one_is_provided(container: Netns, tmp_path: Path) -> None:
    """While all others are at work; but not any number."""
    Executor.provide()
    assert len(Executor._idle) == 1
    Executor.provide()
    assert len(Executor._idle) == 1
    fifos = [tmp_path / str(number) for number in range(4)]
    for fifo in fifos:
        os.mkfifo(fifo)
        with Namespace.open(container.path) as ns, ns.subscribe(link.RTNLGRP_LINK) as events:
            link.create_bridge(ns.netlink(), f"br{fifo.name}")
            ns.run_until(events, lambda *_: True, read, str(fifo))
        Executor.provide()
    assert len(Executor._idle) == 4
    for fifo in fifos:
        fifo.write_text("")


# --- a namespace that is handed over, with a socket of it -----------------------------------------


HANDED = "/handed/over"


def routing_socket(container: Netns) -> socket.socket:
    with Namespace.open(container.path) as ns:
        return ns.socket(socket.AF_NETLINK, socket.SOCK_RAW)


@pytest.fixture
def handed(container: Netns) -> Iterator[int]:
    fd = os.open(container.path, os.O_RDONLY)
    namespace.hand_over(HANDED, fd, routing_socket(container))
    yield fd
    namespace.hand_over("", None)
    os.close(fd)


def test_no_child_is_asked(handed: int, container: Netns) -> None:
    Executor.discard_idle()
    before = children()  # other tests' servers
    container.ip("link", "add", "br7", "type", "bridge")
    with Namespace.open(HANDED) as ns:
        assert {one.name for one in link.list_all(ns.netlink())} == {"lo", "br7"}
        assert ns.netlink() is ns.netlink()
        assert children() == before
        assert ns.run(inode) == container.inode


def test_it_is_only_the_first_s(handed: int, container: Netns) -> None:
    for _ in range(2):
        with Namespace.open(HANDED) as ns:
            assert {one.name for one in link.list_all(ns.netlink())} == {"lo"}
            assert ns.run(inode) == container.inode


def test_nobody_asks_for_it(handed: int, netns: Callable[..., Netns]) -> None:
    """Then it is closed, which `untouched` sees."""
    other = netns()
    other.ip("link", "add", "br7", "type", "bridge")
    with Namespace.open(other.path) as ns:
        assert {one.name for one in link.list_all(ns.netlink())} == {"lo", "br7"}


def test_the_next_request_has_another_namespace(handed: int, netns: Callable[..., Netns]) -> None:
    other = netns()
    other.ip("link", "add", "br7", "type", "bridge")
    fd = os.open(other.path, os.O_RDONLY)
    namespace.hand_over(HANDED, fd)
    with Namespace.open(HANDED) as ns:
        assert {one.name for one in link.list_all(ns.netlink())} == {"lo", "br7"}
    os.close(fd)


def test_a_file_is_handed_over(container: Netns, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    namespace.hand_over(HANDED, fd, routing_socket(container))
    with pytest.raises(NetnsError, match="unknown FS magic"):
        Namespace.open(HANDED)
    namespace.hand_over("", None)
    os.close(fd)


# --- namespaces -----------------------------------------------------------------------------------


def test_own_namespace() -> None:
    with Namespace.current() as ns:
        assert ns.run(inode) == own_inode()


def test_a_namespace_without_a_name(container: Netns) -> None:
    with Namespace.open(container.path) as ns:
        container.unname()
        assert ns.run(inode) == container.inode
        assert [one.name for one in link.list_all(ns.netlink())] == ["lo"]


def test_inside_a_job(netns: Callable[..., Netns], opened: Namespace) -> None:
    """A job that uses an executor itself: right result; the outer child, having one, is spent."""
    other = netns()
    assert opened.run(nested, other.path) == other.inode
    assert not Executor._idle


# --- until something is seen -------------------------------------------------------------------


def test_what_is_seen_ends_the_wait(container: Netns, tmp_path: Path) -> None:
    """The function goes on, so that others get another child."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Namespace.open(container.path) as ns, ns.subscribe(link.RTNLGRP_LINK) as events:
        busy = ns.run(pid)
        link.create_bridge(ns.netlink(), "br0")
        ns.run_until(events, lambda kind, _: kind == link.RTM_NEWLINK, read, str(fifo))
    with Namespace.open(container.path) as other:
        free = other.run(pid)
        assert free != busy
        fifo.write_text("")  # when it is read the function returns
        wait_until(lambda: not any(each._is_busy() for each in Executor._idle), "both are idle")
    with Namespace.open(container.path) as again:
        assert again.run(pid) in (busy, free)
    assert len(Executor._idle) == 2


def test_a_call_after_it_waits(opened: Namespace) -> None:
    before = opened.run(pid)
    with opened.subscribe(link.RTNLGRP_LINK) as events:
        link.create_bridge(opened.netlink(), "br0")
        opened.run_until(events, lambda *_: True, time.sleep, 0.05)
    assert opened.run(pid) == before
    assert opened.run(inode) == opened.identity[1]


def test_its_end_ends_the_wait_too(opened: Namespace) -> None:
    with opened.subscribe(link.RTNLGRP_LINK) as events:
        opened.run_until(events, lambda *_: False, pid)
        with pytest.raises(FileNotFoundError):
            opened.run_until(events, lambda *_: False, os.stat, "/nowhere")
        assert opened.run(inode) == opened.identity[1]


def test_a_child_killed_meanwhile(opened: Namespace) -> None:
    with opened.subscribe(link.RTNLGRP_LINK) as events, pytest.raises(ExecutorDied):
        opened.run_until(events, lambda *_: False, kill_self)
    assert opened.run(inode) == opened.identity[1]


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -1,
        1 << 200,
        1.5,
        "ünï\udc80",
        b"\0\xff",
        [1, [2, {"a": (None,)}]],
        {"k": {1, 2}},
        Path("/x"),
        signal.SIGKILL,
        link.Link(1, "lo", "", 0, "", 0, 0, 0, None, "", 0, 0, 0, b"", b""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back_as_they_were(opened: Namespace, value: Any) -> None:
    (back,) = opened.run(echo, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("length", [0, 1, 65530, 65531, 65532, 65536, 1 << 20, 50 << 20])
def test_large_values(opened: Namespace, length: int) -> None:
    value = b"x" * length
    assert opened.run(echo, value) == (value,)
    assert opened.run(size, value) == length


def test_too_large_a_value_is_refused(opened: Namespace) -> None:
    with pytest.raises((KernelError, ValueError)):
        opened.run(size, bytes(257 << 20))
    assert opened.run(echo) == ()


# --- exceptions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        OSError(2, "no such file"),
        FileNotFoundError(2, "no such file", "/x"),
        NetlinkError(17, "in the way"),
        CNIError("message", "remedy"),
        KeyError("k"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_keep_type_and_traceback(opened: Namespace, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        opened.run(fail, error)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "errno", None) == getattr(error, "errno", None)
    assert getattr(caught.value, "details", None) == getattr(error, "details", None)
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert "in fail\n" in str(cause)
    assert "test_executor.py" in str(cause)


def test_an_exception_that_cannot_travel_is_described(opened: Namespace) -> None:
    with pytest.raises(RuntimeError, match="Odd: strange thing") as caught:
        opened.run(fail_oddly)
    assert "in fail_oddly\n" in str(caught.value.__cause__)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_exceptions_that_end_a_program(opened: Namespace, error: BaseException) -> None:
    with pytest.raises(type(error)):
        opened.run(fail, error)
    assert opened.run(echo) == ()


def test_a_result_that_cannot_travel(opened: Namespace) -> None:
    with pytest.raises(TypeError, match="pickle"):
        opened.run(unpicklable)


def test_an_argument_that_cannot_travel(opened: Namespace) -> None:
    with pytest.raises(TypeError, match="pickle"):
        opened.run(echo, threading.Lock())
    assert opened.run(echo) == ()


def test_a_function_that_has_no_name(opened: Namespace) -> None:
    with pytest.raises(AttributeError):
        opened.run(lambda: None)


def test_an_exception_leaves_the_child_in_use(opened: Namespace) -> None:
    first = opened.run(pid)
    with pytest.raises(ValueError, match="bad"):
        opened.run(fail, ValueError("bad"))
    assert opened.run(pid) == first


# --- in doubt ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "args"), [(exit_now, (0,)), (exit_now, (7,)), (kill_self, ()), (close_everything, ())]
)
def test_a_child_that_dies(
    container: Netns, opened: Namespace, job: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    first = opened.run(pid)
    with pytest.raises(ExecutorDied, match="lost"):
        opened.run(job, *args)
    assert not alive(first)
    assert opened.run(inode) == container.inode  # by another child
    assert opened.run(pid) != first


def test_a_child_killed_while_idle(container: Netns) -> None:
    with Namespace.open(container.path) as ns:
        first = ns.run(pid)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not alive(first), "the child ends")
    with Namespace.open(container.path) as ns:
        assert ns.run(inode) == container.inode


def test_a_child_killed_between_jobs(container: Netns, opened: Namespace) -> None:
    os.kill(opened.run(pid), signal.SIGKILL)
    with pytest.raises(ExecutorDied):
        opened.run(inode)
    assert opened.run(inode) == container.inode


@pytest.mark.parametrize("job", [leave_thread, leave_child, leave_zombie])
def test_a_job_that_leaves_something_running(
    container: Netns, opened: Namespace, job: Callable[[], int]
) -> None:
    """Its result counts, but the child is not used again."""
    first = opened.run(pid)
    assert opened.run(job) > 0
    assert not alive(first)
    assert opened.run(pid) != first
    assert opened.run(inode) == container.inode


def test_a_job_that_cleans_up_after_itself(opened: Namespace) -> None:
    first = opened.run(pid)
    assert opened.run(run_child) == 3
    assert opened.run(pid) == first


def test_a_job_that_goes_astray(
    netns: Callable[..., Netns], container: Netns, opened: Namespace
) -> None:
    """It may enter any namespace: the child comes home, or is not used again."""
    other = netns()
    assert opened.run(enter, other.path) == other.inode
    assert opened.run(inode) == container.inode


def test_setns_fails(container: Netns, tmp_path: Path) -> None:
    """Not a namespace behind the descriptor: an error, nobody has moved, the child is fine."""
    fd = os.open(tmp_path, os.O_RDONLY)
    with Namespace(fd, str(tmp_path)) as wrong, pytest.raises(OSError, match="Invalid argument"):
        wrong.run(inode)
    with Namespace.open(container.path) as ns:
        assert ns.run(inode) == container.inode


def test_a_descriptor_that_is_closed(container: Netns) -> None:
    with Namespace.open(container.path) as ns:
        good, ns.fd = ns.fd, 9999
        with pytest.raises(ExecutorDied):
            ns.run(inode)
        ns.fd = good
        assert ns.run(inode) == container.inode


def test_an_exception_from_a_signal_handler(container: Netns, opened: Namespace) -> None:
    """The answer to the interrupted job must not be taken for that of the next."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        first = opened.run(pid)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupted):
            opened.run(sleep, 30)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not alive(first)
    assert opened.run(inode) == container.inode


def test_a_forked_process_does_not_share_it(container: Netns) -> None:
    """Two processes on one child would get each other's answers."""
    with Namespace.open(container.path) as ns:
        first = ns.run(pid)
    forked = os.fork()
    if forked == 0:
        code = 1
        try:
            with Namespace.open(container.path) as ns:
                code = 0 if ns.run(pid) != first else 2
            Executor.discard_idle()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
    with Namespace.open(container.path) as ns:
        assert ns.run(pid) == first


# --- what a child has ---------------------------------------------------------------------------


def test_stdin_and_stdout_are_not_the_childs(
    opened: Namespace, capfd: pytest.CaptureFixture[str]
) -> None:
    assert opened.run(write, 1, "must not appear") == len("must not appear")
    assert capfd.readouterr().out == ""


def test_an_idle_child_holds_nothing_of_ours(netns: Callable[..., Netns], tmp_path: Path) -> None:
    """A namespace, a lock or a pipe must not live as long as a child that was forked meanwhile."""
    held = netns()
    secret = (tmp_path / "secret").open("w")
    with secret, Namespace.open(held.path) as ns:
        inherited = set(ns.run(open_files).values())
    assert str(tmp_path / "secret") not in inherited
    with Namespace.open(netns().path) as ns:  # a later job of the same child
        later = ns.run(open_files)
    assert f"net:[{held.inode}]" not in later.values()
    assert len(later) < 10


# --- sockets -----------------------------------------------------------------------------------


def test_a_netlink_socket_belongs_to_the_namespace(container: Netns, opened: Namespace) -> None:
    container.ip("link", "add", "only-here", "type", "veth", "peer", "name", "and-here")
    names = {one.name for one in link.list_all(opened.netlink())}
    assert names == {"lo", "only-here", "and-here"}
    assert opened.netlink() is opened.netlink()


def test_changes_over_the_socket(container: Netns, opened: Namespace) -> None:
    sock = opened.netlink()
    link.change(sock, link.get(sock, "lo").index, up=True)
    assert "UP" in container.ip_json("link", "show", "lo")[0]["flags"]


def test_a_packet_socket(container: Netns, opened: Namespace) -> None:
    container.ip("link", "add", "only-here", "type", "veth", "peer", "name", "and-here")
    sock = opened.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind(("only-here", 0))
    sock.close()


def test_a_socket_that_cannot_be_made(opened: Namespace) -> None:
    with pytest.raises(OSError, match="not supported") as caught:
        opened.socket(socket.AF_INET, socket.SOCK_STREAM, 200)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    opened.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def test_a_subscription_hears_changes(container: Netns, opened: Namespace) -> None:
    with opened.subscribe(link.RTNLGRP_LINK) as events:
        container.ip("link", "set", "lo", "up")
        assert any(kind == link.RTM_NEWLINK for kind, _ in events.events(5))


# --- leaks -------------------------------------------------------------------------------------


def test_a_thousand_calls_leak_nothing(netns: Callable[..., Netns]) -> None:
    spaces = [netns() for _ in range(4)]
    with Namespace.open(spaces[0].path) as ns:
        first = ns.run(pid)
        before = ns.run(open_files)
    ours, processes = descriptors(), children()
    for number in range(1000):
        with Namespace.open(spaces[number % 4].path) as ns:
            if number % 3 == 0:
                ns.run(inode)
            elif number % 3 == 1:
                ns.netlink()
            else:
                with pytest.raises(ValueError, match="x"):
                    ns.run(fail, ValueError("x"))
    assert descriptors() == ours
    assert children() == processes
    with Namespace.open(spaces[0].path) as ns:
        assert ns.run(pid) == first
        assert ns.run(open_files) == before


def test_a_hundred_lost_children_leak_nothing(container: Netns) -> None:
    Executor.discard_idle()
    ours, processes = descriptors(), children()
    for _ in range(100):
        with Namespace.open(container.path) as ns, pytest.raises(ExecutorDied):
            ns.run(kill_self)
    assert descriptors() == ours
    assert children() == processes


def test_namespaces_end_when_they_are_no_longer_wanted(netns: Callable[..., Netns]) -> None:
    """A namespace used through an executor that lives on is gone after its close.

    Seen by the fate of a veth pair: the kernel destroys it with the namespace of one end.
    """
    stays, goes = netns(), netns()
    stays.ip("link", "add", "peer", "type", "veth", "peer", "name", "in", "netns", goes.name)
    with Namespace.open(goes.path) as ns:
        assert ns.run(inode) == goes.inode
        ns.netlink()
    with Namespace.open(stays.path) as ns:
        assert ns.run(inode) == stays.inode
        goes.close()
        wait_until(lambda: link.find(ns.netlink(), "peer") is None, "the link is gone")


# --- the parent dies ---------------------------------------------------------------------------

_DOOMED = """
import os, sys, time
sys.path.insert(0, {root!r})
from cni.netns import Namespace
ns = Namespace.open({path!r})
print(ns.run(os.getpid), flush=True)
{then}
"""


@pytest.mark.parametrize(
    "then",
    ["ns.run(time.sleep, 300)", "time.sleep(300)", "ns.close(); time.sleep(300)"],
    ids=["in a job", "between jobs", "idle"],
)
def test_the_child_dies_with_its_parent(container: Netns, then: str) -> None:
    text = _DOOMED.format(root=str(ROOT), path=container.path, then=then)
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_until(lambda: not alive(child), "the child ends")


# --- what is not a network namespace -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "below a file", "dangling link"])
def test_a_missing_path(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    path = tmp_path / {"missing": "x", "below a file": "file/x", "dangling link": "link"}[kind]
    with pytest.raises(NetnsMissing, match="Statfs"):
        Namespace.open(str(path))


@pytest.mark.parametrize("kind", ["directory", "file", "fifo", "socket", "device", "loop"])
def test_a_path_that_is_no_namespace(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "directory":
        path.mkdir()
    elif kind == "file":
        path.write_text("")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path = Path("/dev/null")
    with pytest.raises(NetnsError, match=str(path)) as caught:
        Namespace.open(str(path))
    assert not isinstance(caught.value, NetnsMissing)


def test_a_file_that_may_not_be_read_like_a_namespace(tmp_path: Path) -> None:
    """A device whose ioctl would answer anything is still not a namespace."""
    with pytest.raises(NetnsError):
        Namespace.open("/proc/self/mounts")
    with pytest.raises(NetnsError):
        Namespace.open("/proc/self/ns")


@pytest.mark.parametrize("kind", ["mnt", "uts", "pid", "user", "ipc"])
def test_another_kind_of_namespace(kind: str) -> None:
    with pytest.raises(NetnsError, match="not of the network"):
        Namespace.open(f"/proc/self/ns/{kind}")


def test_a_path_with_a_nul() -> None:
    with pytest.raises((NetnsError, ValueError)):
        Namespace.open("/x\0y")


def test_a_broken_frame_is_not_trusted(container: Netns) -> None:
    """An answer that says it is larger than any: the child is lost, and nothing is allocated."""
    executor = Executor.borrow()
    os.kill(executor.pid, signal.SIGKILL)
    ours, theirs = socket.socketpair()
    old, executor._sock = executor._sock, ours
    old.close()
    theirs.send(struct.pack("=Ic", 0xFFFFFFFF, b"m"))
    fd = os.open(container.path, os.O_RDONLY)
    with theirs, pytest.raises(ExecutorDied, match="oversized"):
        executor.run(fd, inode)
    os.close(fd)
