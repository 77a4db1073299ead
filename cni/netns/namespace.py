"""A network namespace, held open by a descriptor (network_namespaces(7)), and its identity.

Longer than most modules: nearly every request opens a namespace, notes its identity, and uses the
descriptors that a client has sent; a second module would be one more file for each to load.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_NETLINK, SOCK_RAW, SOL_SOCKET, socket
from collections.abc import Callable, Collection, Sequence
from errno import ENOENT, ENOTDIR
from fcntl import ioctl
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..kernel.errors import TRANSIENT, NetnsError, NetnsMissing, NetnsUnknown

if TYPE_CHECKING:
    from ..kernel.netlink import Netlink
    from ..kernel.sysctl import Outcome, Step
    from .executor import Executor
    from .jobs import ClientJobs

_EMBEDDED = "_cni_embedded" in sys.builtin_module_names
_NS_GET_NSTYPE, _NS_GET_ID = 0xB703, 0x8008B70D
_CLONE_NEWNET = 0x40000000
_NSFS = 0x6E736673  # the file system of namespaces
_SO_NETNS_COOKIE = 71
_SELF = "/proc/self/ns/net"

T = TypeVar("T")


class Namespace:
    """An open network namespace. The calling process itself never enters it."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self._executor: Executor | None = None
        self._netlink: Netlink | None = None
        self._client_jobs: ClientJobs | None = None

    @classmethod
    def open(cls, path: str) -> Namespace:
        """Open the namespace at `path` (``/run/netns/x``, ``/proc/1/ns/net``).

        Raises NetnsMissing when the path does not exist, NetnsUnknown when this process could not
        look, NetnsError for anything that is not a network namespace: a plain file, a directory,
        another kind of namespace, a socket, a path without permission. A FIFO or device does not
        block. The texts are the reference's (docs/spec/common.md §1).
        """
        try:
            fd = _open(path)
        except OSError as error:
            text = f'failed to Statfs "{path}": {_reason(error)}'
            raise _kind(error)(text) from None
        except ValueError as error:  # a NUL in the path
            raise NetnsError(f"{path!r}: {error}") from None
        try:
            # by the ioctl, not by the file system: namespaces of all kinds are on nsfs
            if ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET:
                namespace = cls(fd, path)
                if path in _handed:
                    namespace._netlink, namespace._client_jobs = _take_extras()
                return namespace
            problem = f'"{path}" is a namespace, but not of the network'
        except OSError as error:
            from . import libc

            magic = libc.filesystem_magic(fd)
            if magic == _NSFS:  # it is a namespace; only the question which one has failed
                os.close(fd)
                raise NetnsUnknown(f'failed to look at "{path}": {_reason(error)}') from None
            problem = f'unknown FS magic on "{path}": {magic:x}'
        os.close(fd)
        raise NetnsError(problem)

    @classmethod
    def current(cls) -> Namespace:
        """The namespace this process is in."""
        return cls.open(_SELF)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor and the netlink socket; the executor goes back to be reused."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        if self._client_jobs is not None:
            self._client_jobs.close()
            self._client_jobs = None
        if self._executor is not None:
            self._executor.release()
            self._executor = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: equal for two descriptors of one namespace, whatever their paths.

        To be compared only while both are open; `identify` gives what may be noted for later.
        """
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    @property
    def is_own(self) -> bool:
        """Is it the namespace that this process is in?"""
        return self.identity == (_home or own_identity())

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a module-level function in this namespace, in a child process.

        Arguments and result are copied. The function's exception is raised here, with the child's
        traceback as its cause. Raises ExecutorDied when the child is lost.
        """
        return self._borrowed().run(self.fd, function, *args)

    def start(self, function: Callable[..., T], *args: Any) -> Callable[[], T]:
        """As `run`, but without waiting: the returned function waits, and returns the value."""
        executor = self._borrowed()
        executor.begin(self.fd, function, *args)
        return executor.finish

    def sysctls(self, steps: Sequence[Step], *, stop: bool = False) -> list[Outcome]:
        """As kernel.sysctl.perform, in this namespace. Raises ExecutorDied."""
        return self.start_sysctls(steps, stop=stop)()

    def start_sysctls(
        self, steps: Sequence[Step], *, stop: bool = False
    ) -> Callable[[], list[Outcome]]:
        """As `sysctls`, but without waiting: the returned function waits, and returns outcomes."""
        client_jobs = self._client_jobs
        if client_jobs is None or not client_jobs.ask(steps, stop=stop):
            return self._start_sysctls(steps, stop)

        def finish() -> list[Outcome]:
            outcomes = client_jobs.answer()
            if outcomes is not None:
                return outcomes
            from ..kernel import sysctl

            # steps may be repeated, so an executor takes all of them if the client has not
            return self.run(sysctl.perform, steps, stop)

        return finish

    def _start_sysctls(self, steps: Sequence[Step], stop: bool) -> Callable[[], list[Outcome]]:
        if self._may_visit:
            from . import visit

            outcomes = visit.sysctls(self.fd, steps, stop)
            if outcomes is not None:
                return lambda: outcomes
        from ..kernel import sysctl  # the caller has loaded it, for the steps

        return self.start(sysctl.perform, steps, stop)

    def run_until(
        self,
        events: Netlink,
        seen: Callable[[int, bytes], bool],
        function: Callable[..., Any],
        *args: Any,
    ) -> None:
        """As `run`, but return as soon as the kernel announces the result of the function.

        `events` is a socket that gets the notifications; `seen` (type, payload) recognises the
        awaited one. The function goes on after that, and its outcome is ignored. If no such
        notification comes, this returns, or raises, when the function ends.
        """
        from select import POLLIN, poll

        executor = self._borrowed()
        executor.begin(self.fd, function, *args)
        watch = poll()
        watch.register(events.sock, POLLIN)
        # the end of the executor ends the wait, too
        watch.register(executor, POLLIN)
        waiting = True
        try:
            while waiting:
                ready = {fd for fd, _ in watch.poll()}
                news = events.events(0) if events.sock.fileno() in ready else []
                if any(seen(*event) for event in news):
                    return
                waiting = executor.fileno() not in ready
        except BaseException:  # an interrupt: its answer would be taken for the next job's
            executor.discard()
            raise
        executor.finish()

    def send_until(
        self, events: Netlink, seen: Callable[[int, bytes], bool], kind: int, payload: bytes
    ) -> bool:
        """Send a request on `events`; True as soon as `seen` recognises the kernel's announcement.

        As `run_until` for what is one request, without an executor. False if that is not possible
        here, or the announcement did not come: do it in another way then, once more.
        """
        if not self._may_visit:
            return False
        from . import visit

        return visit.send_until(events, seen, events.message(kind, payload))

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket:
        """A socket that lives in this namespace and is used from here. Raises OSError."""
        fd = None
        if self._may_visit:
            from . import visit

            fd = visit.open_socket(self.fd, family, kind, protocol)
        if fd is None:
            fd = self._borrowed().open_socket(self.fd, family, kind, protocol)
        return socket(family, kind, protocol, fd)

    def netlink(self) -> Netlink:
        """The routing netlink socket of this namespace; made at the first call. Raises OSError."""
        if self._netlink is None:
            self._netlink = _netlink_of(self.socket(AF_NETLINK, SOCK_RAW))
        return self._netlink

    def subscribe(self, *groups: int) -> Netlink:
        """A new socket subscribed to the notifications of `groups` (RTNLGRP_*) in this namespace.

        Raises OSError.
        """
        return _netlink_of(self.socket(AF_NETLINK, SOCK_RAW), groups=groups)

    @property
    def _may_visit(self) -> bool:
        """May netns/visit.py be used? Not with an executor at work, nor in a server's worker."""
        return _EMBEDDED and self._executor is None and _home is None

    def _borrowed(self) -> Executor:
        if self._executor is not None:
            self._executor.settle()
        if self._executor is None or not self._executor.healthy:
            from .executor import Executor  # many requests need none

            self._executor = Executor.borrow()
        return self._executor


def same_namespace(path: str) -> bool:
    """Is the namespace at `path` the one this process is in? False if it cannot be looked at."""
    try:
        return _identity_of(path) == (_home or own_identity())
    except (OSError, ValueError):
        return False


def _identity_of(path: str) -> tuple[int, int]:
    there = _stat(path)
    return there.st_dev, there.st_ino


def _stat(path: str) -> os.stat_result:
    """As os.stat; cached for a namespace that was handed over."""
    if path not in _handed:
        return os.stat(path)
    if not _handed_status:
        _handed_status.append(os.fstat(_handed[path]))
    return _handed_status[0]


def _reason(error: OSError) -> str:
    return (error.strerror or "").lower()


def _kind(error: OSError) -> type[NetnsError]:
    """The class of NetnsError for an error of opening, or of stat of, a path."""
    if error.errno in TRANSIENT:
        return NetnsUnknown
    return NetnsMissing if error.errno in (ENOENT, ENOTDIR) else NetnsError


class Identity(NamedTuple):
    """A network namespace's identity, to be noted and compared later in this boot.

    The kernel reuses inode numbers. `number` is the kernel's number of the namespace, which it
    never reuses (NS_GET_ID of nsfs.h, Linux 6.18; 0 before). Without it `pinned` helps: the time
    (ns) since which the path has been a bind mount of the namespace. It is 0 if the path is no bind
    mount, and if `number` is known.
    """

    device: int
    inode: int
    pinned: int = 0
    number: int = 0

    def __str__(self) -> str:
        return ":".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Identity | None:
        """The identity that str() wrote as `text`; None if the text is not one."""
        try:
            device, inode, pinned, number = map(int, text.split(":"))
        except ValueError:
            return None
        return cls(device, inode, pinned, number)

    def differs(self, other: Identity) -> bool:
        """Are these certainly two namespaces?"""
        if self.number and other.number:
            return self.number != other.number
        if self[:2] != other[:2]:
            return True
        return bool(self.pinned and other.pinned) and self.pinned != other.pinned


def identify(path: str) -> Identity | None:
    """Which network namespace `path` names; None if it names none, or cannot be looked at."""
    try:
        there = _stat(path)
        if there.st_dev != (_home or own_identity())[0]:  # all namespaces are on one device
            return None
        number = _number(_handed[path]) if path in _handed else _number_at(path)
    except (OSError, ValueError):
        return None
    pinned = not number and _is_mounted(path, there)
    return Identity(there.st_dev, there.st_ino, there.st_ctime_ns if pinned else 0, number)


def _number_at(path: str) -> int:
    """As `_number`, of the namespace at a path. Raises OSError."""
    fd = _open(path)
    try:
        return _number(fd)
    finally:
        os.close(fd)


def _number(fd: int) -> int:
    """NS_GET_ID of an open namespace; 0 if the kernel has no such call."""
    try:
        return int.from_bytes(ioctl(fd, _NS_GET_ID, bytes(8)), sys.byteorder)
    except OSError:
        return 0


def _is_mounted(path: str, there: os.stat_result) -> bool:
    """Is the path a mount of the namespace `there`?

    In /proc it is a link. To a client of the server the path may be another file than to us.
    """
    try:
        return os.path.samestat(os.lstat(path), there)
    except (OSError, ValueError):
        return False


def sees(path: str) -> bool:
    """Is `path` the same file to this process as to the client that sent the request?"""
    if path not in _handed:
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(_handed[path]))
    except (OSError, ValueError):
        return False


def own_identity() -> tuple[int, int]:
    """Device and inode of the namespace this process is in. Raises OSError."""
    here = os.stat(_SELF)
    return here.st_dev, here.st_ino


def stay() -> tuple[int, int]:
    """Promise that this process never leaves its namespace; return its device and inode.

    Both are cached from then on. Raises OSError.
    """
    global _home  # noqa: PLW0603 a fact of the process
    _home = own_identity()
    return _home


def cookie(sock: socket) -> int:
    """The cookie of a socket's namespace, unique in this boot; 0 before Linux 5.14."""
    try:
        return int.from_bytes(sock.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        return 0


_home: tuple[int, int] | None = None

# In a worker of the server: CNI_NETNS of the request, and the descriptor that the client sent for
# it. The client may see other mounts than the server does, so the path is not opened again.
_handed: dict[str, int] = {}
_handed_status: list[os.stat_result] = []  # stat of that descriptor, once it was needed
# What the client sent with it, until the namespace is opened: a socket, and its offer of jobs.
_extras: list[tuple[socket | None, ClientJobs | None]] = []


def leave_mounts() -> None:
    """From now on, opening the handed-over path opens the path itself again; closes nothing."""
    _handed.clear()
    _handed_status.clear()


def hand_over(
    path: str, fd: int | None, routing: socket | None = None, client_jobs: ClientJobs | None = None
) -> None:
    """From now on, opening `path` opens the namespace behind `fd`; with None, the path itself.

    The caller keeps `fd` open. `routing` is a routing netlink socket of that namespace, on which
    kernel.netlink.OPTIONS are set; through `client_jobs` the client does small jobs there. The
    first Namespace that is opened owns both.
    """
    leave_mounts()
    while _extras:
        _close(*_extras.pop())
    if fd is None:
        _close(routing, client_jobs)
        return
    _handed[path] = fd
    _extras.append((routing, client_jobs))


def _close(*extras: socket | ClientJobs | None) -> None:
    for extra in extras:
        if extra is not None:
            extra.close()


def _take_extras() -> tuple[Netlink | None, ClientJobs | None]:
    routing, client_jobs = _extras.pop() if _extras else (None, None)
    return None if routing is None else _netlink_of(routing), client_jobs


def _netlink_of(sock: socket, groups: Collection[int] = ()) -> Netlink:
    """A Netlink of a socket with kernel.netlink.OPTIONS. Raises OSError."""
    global _netlink_type  # noqa: PLW0603 an import statement takes long even of what is loaded
    if _netlink_type is None:
        from ..kernel.netlink import Netlink

        _netlink_type = Netlink
    return _netlink_type(sock=sock, groups=groups)


_netlink_type: type[Netlink] | None = None  # many requests need none


def _open(path: str) -> int:
    if path in _handed:
        return os.dup(_handed[path])  # os.dup() gives a descriptor that children do not inherit
    # O_NONBLOCK: to open a FIFO would wait for a writer
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
