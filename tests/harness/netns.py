"""Real network namespaces for tests.

A namespace is entered by a thread, never by the process: `Netns.run` starts a thread, moves that
thread into the namespace, calls a function and lets the thread end. Whatever the function creates
(a socket, a child process) stays in the namespace; the test process itself never leaves its own.
No fork is needed to look into a namespace, which keeps tests cheap.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import socket as socketlib
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
PREFIX = "cnitest"

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 1 << 20
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)

# What a child gets unless a test says otherwise: the developer's locale, proxies or PYTHONPATH
# must not decide a test.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BARE_ENV = {"PATH": PATH, "LC_ALL": "C"}


class CommandError(AssertionError):
    """A command run in a namespace failed; the message carries what it printed."""


def _check(rc: int, what: str) -> None:
    if rc != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, flags: int) -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), b"none", ctypes.c_ulong(flags), None),
        f"mount {source} on {target}",
    )


def _prepare_netns_dir() -> None:
    """Make /run/netns a shared mount, as `ip netns add` does.

    Whoever comes first has to do it: done later, it would bind the namespaces that are already
    there a second time, and they could not be removed.
    """
    NETNS_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(NETNS_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            _mount("", str(NETNS_DIR), _MS_SHARED | _MS_REC)
        except OSError:
            # Only a mount can be made shared: bound to itself, the directory is one.
            _mount(str(NETNS_DIR), str(NETNS_DIR), _MS_BIND | _MS_REC)
            _mount("", str(NETNS_DIR), _MS_SHARED | _MS_REC)
    finally:
        os.close(fd)


def in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own; return what it returns, raise what it raises."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="netns", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


class Netns:
    """One network namespace, made now and removed by `close` (or at the end of a `with` block).

    It has a name below /run/netns, so `ip netns exec` works on it while a test is being debugged.
    """

    _count = 0
    _count_lock = threading.Lock()
    _prepared = False
    alive: ClassVar[set[Netns]] = set()

    def __init__(self, role: str = "") -> None:
        with Netns._count_lock:
            if not Netns._prepared:
                _prepare_netns_dir()
                Netns._prepared = True
            Netns._count += 1
            number = Netns._count
        self.role = role
        self.name = f"{PREFIX}-{os.getpid()}-{number}"
        self.path = str(NETNS_DIR / self.name)
        self._children: list[subprocess.Popen[Any]] = []
        # The namespace is mounted on this file. O_EXCL: a file that exists belongs to somebody
        # else.
        os.close(os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))

        def create() -> int:
            _check(_libc.unshare(_CLONE_NEWNET), "unshare")
            # Not /proc/self, which shows the main thread's namespace.
            _mount("/proc/thread-self/ns/net", self.path, _MS_BIND)
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

        try:
            self._fd = in_thread(create)
        except BaseException:
            os.unlink(self.path)
            raise
        self.inode = os.fstat(self._fd).st_ino
        Netns.alive.add(self)

    def __repr__(self) -> str:
        return f"<Netns {self.role or 'namespace'} {self.name}>"

    def __str__(self) -> str:
        return self.path

    def __enter__(self) -> Netns:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the children started here and remove the namespace; again is no error."""
        if self not in Netns.alive:
            return
        for child in self._children:
            stop(child)
        self._children.clear()
        self.unname()
        os.close(self._fd)
        Netns.alive.discard(self)

    def unname(self) -> None:
        """Take away the path, as a runtime does that is done with a container.

        The namespace lives on (it can still be looked into) until `close`.
        """
        # Our own descriptor is open on this mount: without MNT_DETACH that is EBUSY.
        _libc.umount2(self.path.encode(), _MNT_DETACH)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    # -- doing things inside ------------------------------------------------------------------

    def enter(self) -> None:
        """Move the calling thread (not the main one) into this namespace, for good."""
        if threading.current_thread() is threading.main_thread():
            # /proc/self/net and /proc/self/ns show the main thread's namespace to the whole
            # process.
            raise RuntimeError("the main thread must stay in its own network namespace")
        _check(_libc.setns(self._fd, _CLONE_NEWNET), f"setns {self.name}")

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function inside the namespace."""

        def inside() -> T:
            self.enter()
            return function(*args, **kwargs)

        return in_thread(inside)

    def exec(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the namespace and wait for it."""
        done = self.run(
            subprocess.run,
            [os.fspath(arg) for arg in argv],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            env=BARE_ENV if env is None else dict(env),
            cwd=cwd,
        )
        if check and done.returncode != 0:
            raise CommandError(
                f"{' '.join(map(str, argv))} in {self!r}: exit status {done.returncode}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done

    def popen(self, argv: Sequence[str | os.PathLike[str]], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a command inside the namespace; it is ended with the namespace."""
        kwargs.setdefault("env", dict(BARE_ENV))
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        child: subprocess.Popen[Any] = self.run(
            subprocess.Popen, [os.fspath(arg) for arg in argv], **kwargs
        )
        self._children.append(child)
        return child

    def ip(self, *args: str) -> str:
        """`ip ARGS` inside, e.g. `ns.ip("link", "set", "lo", "up")`; returns what it prints."""
        return self.exec(["ip", *args]).stdout

    def ip_batch(self, *lines: str) -> None:
        """Several `ip` commands in one process."""
        self.exec(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")

    def ip_json(self, *args: str) -> list[dict[str, Any]]:
        """`ip -j -d ARGS` inside, decoded."""
        text = self.exec(["ip", "-j", "-d", *args]).stdout
        # Older iproute2 prints nothing, or empty objects, where there is nothing to list.
        return [item for item in json.loads(text or "[]") if item]

    def ip_json_each(self, *lines: str, family: int | None = None) -> list[list[dict[str, Any]]]:
        """What each of several `ip -j -d` commands shows, from one process."""
        options = ["-j", "-d", *([f"-{family}"] if family else [])]
        text = self.exec(["ip", *options, "-batch", "-"], stdin="\n".join(lines) + "\n").stdout
        found, decoder = [], json.JSONDecoder()
        while text := text.lstrip():
            shown, end = decoder.raw_decode(text)
            found.append([item for item in shown if item])
            text = text[end:]
        if len(found) != len(lines):  # older iproute2 prints nothing where there is nothing to list
            return [self.ip_json(*options[2:], *line.split()) for line in lines]
        return found

    def socket(self, family: int, kind: int, proto: int = 0) -> socketlib.socket:
        """A socket that belongs to this namespace, usable from any thread."""
        return self.run(socketlib.socket, family, kind, proto)

    def sysctl(self, name: str) -> str:
        """Read a sysctl, by path below /proc/sys (`net/ipv4/ip_forward`)."""
        return self.run(Path("/proc/sys", name).read_text).rstrip("\n")

    def set_sysctl(self, name: str, value: str | int) -> None:
        """Write a sysctl, by path below /proc/sys."""
        self.run(Path("/proc/sys", name).write_text, str(value))


class JoinedNetns(Netns):
    """A namespace that something else made and removes, such as a container of a runtime.

    Until `close` it lives on: close it before the container's end is looked at.
    """

    def __init__(self, path: str | os.PathLike[str], role: str = "") -> None:
        self.role, self.name, self.path = role, Path(path).name, os.fspath(path)
        self._children = []
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self._fd).st_ino
        Netns.alive.add(self)

    def unname(self) -> None:
        """Its path is not ours to take away."""


def stop(child: subprocess.Popen[Any], grace: float = 2) -> None:
    """End one child process that we started: SIGTERM, then SIGKILL."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            stream.close()


def leave_network() -> None:
    """Move the calling thread, and what it starts from now on, into a network of its own."""
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def own_inode() -> int:
    """The inode of the network namespace the test process itself is in."""
    return os.stat("/proc/self/ns/net").st_ino


def leftovers(pid: int | None = None) -> list[str]:
    """Names of the namespaces that the test process `pid` (this one) has left below /run/netns."""
    if not NETNS_DIR.is_dir():
        return []
    own = f"{PREFIX}-{os.getpid() if pid is None else pid}-"
    return sorted(entry.name for entry in NETNS_DIR.iterdir() if entry.name.startswith(own))


def remove_stale() -> list[str]:
    """Remove what test processes that no longer exist have left (they were killed)."""
    removed = []
    for entry in sorted(NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []:
        match = re.fullmatch(rf"{PREFIX}-(\d+)-\d+", entry.name)
        if match and not Path("/proc", match[1]).exists():
            _libc.umount2(str(entry).encode(), _MNT_DETACH)
            with contextlib.suppress(FileNotFoundError):
                entry.unlink()
            removed.append(entry.name)
    return removed
