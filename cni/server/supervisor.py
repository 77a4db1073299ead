"""The supervisor: preloads the plugins, keeps the workers, and serves nothing itself.

Workers are forked ahead and rehearsed, so that a request finds its pages copied, its executor
running and its sockets open. A worker that ends is replaced at once; if workers of a slot die soon
after their start, the next one starts after a growing pause. If all workers wait, more are started
for a while, or clients are turned away (relief.py). The supervisor ends after a signal, or after a
long idle time; before that, every worker finishes its request. A client of another build means that
`cni install` has replaced the file: then the supervisor executes the new file, with the same
listening socket. Longer than most modules: all of this is one loop over the same few facts.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from errno import EINVAL
from pathlib import Path
from typing import NamedTuple, NoReturn

from .. import systemd
from ..artifact import OwnFile, build_of
from ..files import open_null
from . import counts, relief, slots, warmup
from .farewell import Farewell
from .observing import Observing, Wanted
from .peer import listener_pid
from .recording import mark_of_node_file
from .signals import Signals, manner
from .status import describe
from .tending import Following, Tending
from .worker import DRAIN, INTERRUPTS, Limits, Server, Worker

_SIGNALS = (signal.SIGCHLD, *INTERRUPTS)
_TICK = 0.5  # seconds between checks of workers and socket
_DRAIN_SECONDS = 30.0
_SHORT_LIFE = 2.0  # seconds; the pause before a worker's successor grows if it lived shorter
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 10.0
_BACKLOG = 4096
_SUCCESSOR = "cni-again"  # the name of the socket that a server passes to the next build
_SERVED = "CNI_SERVE_COUNT"  # passes the number of served requests to the next build


class Options(NamedTuple):
    """How to serve. `idle_exit` and `timeout` in seconds, 0 for never."""

    socket: str
    workers: int
    idle_exit: float = 0
    timeout: float = 300
    limits: Limits = Limits()
    observe: Wanted = Wanted()


class End(NamedTuple):
    """The reason for the server's end. With `upgrade` the installed file takes over its socket."""

    reason: str
    code: int = 0
    upgrade: bool = False


class Supervisor:
    """Keeps the workers of one listening socket."""

    def __init__(self, options: Options, build: str, log: Callable[[str], None]) -> None:
        self.options = options
        self.build = build
        self.log = log
        self.slots = slots.allocate(relief.most(options.workers))
        self.node_file = slots.Mark()
        observe = options.observe
        counted = observe.is_anything
        self.counts = counts.allocate(len(self.slots)) if counted else []
        self.observing = Observing(
            observe, options.socket, build, self.counts, self.slots, log, self._prepare_observer
        )
        self.tending = Tending(log, self._prepare_observer)
        self.following = Following(log, self._prepare_observer)
        self.own_file = OwnFile(Path(sys.argv[0]), build)
        self.pids: dict[int, int] = {}  # pid -> slot
        self.due: dict[int, float] = {}  # slot -> when to fill it
        self.failures = [0] * len(self.slots)  # successive early deaths of each slot's workers
        self.retiring: set[int] = set()  # workers that end: idle ones, or their socket is gone
        self.activated = False  # does the socket come from systemd?
        self._identity: tuple[int, int] | None = None  # device and inode of the socket's file
        self._server_pids: set[int] = {os.getpid()}
        self._declined = 0
        self._socket_problem = ""
        self._farewell = Farewell(build, self.slots, log)

    def run(self) -> int:
        """Serve until the end; return the exit code.

        Raises systemd.AddressInUse, OSError if the socket cannot be opened.
        """
        self._use(self._listen())
        self.node_file.set(mark_of_node_file(os.environ))
        warmup.import_plugins()
        # Before the first fork: a collection in a worker would write to the header of every
        # object, and so copy the pages that it shares with the supervisor.
        gc.collect()
        gc.freeze()
        gc.disable()
        self.signals = Signals(_SIGNALS)
        self.slots[0].start_worker(_count_so_far())
        while True:
            for number in range(self.options.workers):
                self._start(number)
            self.observing.keep()
            self.tending.keep()
            self.following.keep()
            systemd.notify("READY=1")
            self.log(f"serving on {self.options.socket} with {self.options.workers} workers")
            end = self._watch()
            self.log(f"ending: {end.reason}")
            systemd.notify("RELOADING=1" if end.upgrade else "STOPPING=1")
            self._drain(keep_socket=end.upgrade)
            if not end.upgrade:
                return end.code
            self._execute_installed()

    # --- the socket ---

    def _listen(self) -> socket.socket:
        """The socket of systemd, or of the build before, else a new one. Raises OSError."""
        handed = systemd.listen_fds()
        if len(handed) > 1:
            raise OSError(EINVAL, f"systemd handed over {len(handed)} sockets instead of one")
        if not handed:
            listener = systemd.listen_unix(self.options.socket, _BACKLOG)
            self._identity = systemd.identity(self.options.socket)
            return listener
        self.activated = handed[0].name != _SUCCESSOR
        listener = socket.socket(fileno=handed[0].fd)
        if not systemd.is_listening(listener):
            raise OSError(EINVAL, "systemd handed over something that is no listening Unix socket")
        if not self.activated:
            self._identity = systemd.identity(self.options.socket)
        # Clients that connected before name systemd as the server: process 1.
        self._server_pids |= {listener_pid(listener)} & {1}
        return listener

    def _use(self, listener: socket.socket) -> None:
        """Prepare the socket that workers accept from."""
        listener.listen(_BACKLOG)  # from now on, clients name this process as the server
        # another worker may accept the connection that has woken this one
        listener.setblocking(False)
        self.listener = listener

    def _check_socket(self) -> End | None:
        """Listen again if the socket's file was removed; end if it is another server's now."""
        if self.activated:
            return None  # systemd takes care of the file
        path = self.options.socket
        there = systemd.identity(path)
        if there == self._identity:
            return None
        if there is None:
            try:
                listener = systemd.listen_unix(path, _BACKLOG)
            except systemd.AddressInUse:
                pass  # another server has taken the path
            except OSError as error:
                self._complain(f"{path} was removed, and cannot be made again: {error}")
                return None
            else:
                self.log(f"{path} was removed: listening there again")
                self._identity = systemd.identity(path)
                self.listener.close()
                self._use(listener)
                self.retiring |= self.pids.keys()
                return None
        return End(f"{path} is no longer this server's: there is {describe(path)}", code=1)

    def _check_file(self) -> None:
        """Say if our file was overwritten: requests go on, but plugins by exec fail without it."""
        if self.own_file.change() == "":
            self.log(f"{self.own_file.path} is not of this project any more: `cni install` again")

    def _complain(self, problem: str) -> None:
        """Log a lasting problem once."""
        if problem != self._socket_problem:
            self._socket_problem = problem
            self.log(problem)

    def _unlink(self) -> None:
        """Remove the socket's file, unless it is systemd's or another server's."""
        there = systemd.identity(self.options.socket)
        if there is not None and there == self._identity and not self.activated:
            with suppress(OSError):
                os.unlink(self.options.socket)

    # --- the workers ---

    def _start(self, number: int) -> None:
        """Fork the worker of a slot; after a failure, try again later."""
        self.due.pop(number, None)
        self.slots[number].start_worker()
        parent = os.getpid()
        # No signal may arrive between the fork and the change of handlers in the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_worker(number, parent)
        except OSError as error:
            pause = self._postpone(number)
            self.log(f"cannot start a worker, next try in {pause:.1f} s: {error.strerror}")
        else:
            self.pids[pid] = number
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _become_worker(self, number: int, parent: int) -> NoReturn:
        code = 1
        try:
            from ..netns import libc

            libc.die_with_parent(parent)
            os.setpgid(0, 0)  # ^C on the supervisor's terminal is not meant for workers
            null = open_null()
            for target in (0, 1, 2):
                os.dup2(null, target)
            os.close(null)
            # not to keep a mount busy
            os.chdir("/")
            os.umask(0o022)
            self._forget_signals()
            for interrupt in INTERRUPTS:
                signal.signal(interrupt, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            warmup.rehearse()
            if number < self.options.workers:
                warmup.use_large_pages()
            pids = frozenset(self._server_pids)
            env = dict(os.environ)
            counted = self.counts[number] if self.counts else None
            server = Server(
                self.build,
                parent,
                self.slots,
                pids,
                env,
                self.node_file,
                counted,
                self.observing.spans,
            )
            Worker(self.listener, server, number, self.options.limits).run()
            code = 0
        finally:
            os._exit(code)

    def _prepare_observer(self) -> None:
        """In the observer's process: close what belongs to requests."""
        self._forget_signals()
        self.listener.close()

    def _forget_signals(self) -> None:
        """In a child: stop handling the supervisor's signals."""
        self.signals.close()
        for interrupt in INTERRUPTS:
            signal.signal(interrupt, signal.SIG_DFL)

    def _watch(self) -> End:
        """Replace workers until there is a reason to end; return it."""
        while True:
            for number in self.signals.wait(self._pause()):
                if number != signal.SIGCHLD:
                    return End(signal.Signals(number).name)
            self._reap()
            now = time.monotonic()
            self.node_file.set(mark_of_node_file(os.environ))
            self.observing.keep()
            self.tending.keep()
            self.following.keep()
            self._check_file()
            for number in [each for each, due in self.due.items() if due <= now]:
                self._start(number)
            self._relieve(now)
            end = self._check_socket() or self._check_workers(now)
            if end:
                return end

    def _pause(self) -> float:
        """Seconds until the next check."""
        next_start = min(self.due.values(), default=float("inf")) - time.monotonic()
        states = [self.slots[number].read() for number in self.pids.values()]
        return min(max(next_start, 0.0), relief.pause(states, self.options.workers, _TICK))

    def _reap(self) -> None:
        """Note which workers have ended, and when to fill their slots."""
        while self.pids:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # unexpected: no other code waits for the workers
                for number in self.pids.values():
                    self._postpone(number)
                self.pids.clear()
                return
            if pid == 0:
                return
            if any(each.reaped(pid) for each in (self.observing, self.tending, self.following)):
                continue
            self.retiring.discard(pid)
            number = self.pids.pop(pid, -1)
            if number < 0:
                continue
            lived = time.monotonic() - self.slots[number].read().started
            code = os.waitstatus_to_exitcode(status)
            if code != 0 and lived < _SHORT_LIFE:
                pause = self._postpone(number)
                self.log(
                    f"a worker ended after {lived:.1f} s {manner(code)}, "
                    f"the next begins in {pause:.1f} s"
                )
            elif number < self.options.workers:
                self.failures[number] = 0
                self.due[number] = 0.0
            else:
                self.slots[number].end_worker()

    def _relieve(self, now: float) -> None:
        """Relieve workers that are busy for long (relief.py); end workers that are unneeded."""
        states = {pid: self.slots[number].read() for pid, number in self.pids.items()}
        verdict = relief.judge(
            states.values(), self.options.workers, lambda: relief.is_readable(self.listener), now
        )
        if verdict is relief.Verdict.WORKERS:
            free = sorted({*range(len(self.slots))} - {*self.pids.values(), *self.due})
            for number in free[: len(states)]:
                self._start(number)
            if free:
                self.log(f"all {len(states)} workers are busy for long: starting more for a while")
        elif verdict is relief.Verdict.EXEC:
            self._farewell.turn_away(self.listener, now)
        usual = {pid for pid, number in self.pids.items() if number < self.options.workers}
        self.retiring |= relief.unneeded(states, usual, now)

    def _postpone(self, number: int) -> float:
        """Fill the slot later, after a pause that grows with each failure; return its seconds."""
        doublings = min(self.failures[number], 10)  # more would be longer than the longest pause
        self.failures[number] += 1
        pause: float = min(_FIRST_PAUSE * 2**doublings, _LONGEST_PAUSE)
        self.due[number] = time.monotonic() + pause
        return pause

    def _check_workers(self, now: float) -> End | None:
        """Kill workers that take too long; return a reason to end, if there is one."""
        for pid in self.retiring & self.pids.keys():
            os.kill(pid, DRAIN)  # again: one that came just before it was idle is lost
        states = {pid: self.slots[number].read() for pid, number in self.pids.items()}
        for pid, state in states.items():
            busy_for = now - state.busy_since if state.busy_since else 0.0
            if self.options.timeout and busy_for > self.options.timeout:
                self.log(f"killing worker {pid}: busy for {busy_for:.0f} s")
                os.kill(pid, signal.SIGKILL)
        declined = sum(state.declined for state in states.values())
        if declined != self._declined:
            self._declined = declined
            if _installed_build() not in ("", self.build):
                return End("another build is installed", upgrade=True)
        busy = any(state.busy_since for state in states.values())
        last = max((state.last_active for state in states.values()), default=now)
        if self.options.idle_exit and not busy and now - last > self.options.idle_exit:
            return End("idle")
        return None

    # --- the end ---

    def _drain(self, *, keep_socket: bool) -> None:
        """Let every worker finish its request, and begin no other."""
        if not keep_socket:
            self._unlink()
            self.listener.close()
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self.pids and time.monotonic() < deadline:
            for pid in self.pids:
                os.kill(pid, DRAIN)  # again: one that came just before it was idle is lost
            self.signals.wait(0.05)
            self._reap()
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.pids.clear()
        self.observing.close()
        self.tending.end()
        self.following.end()

    def _execute_installed(self) -> None:
        """Execute the installed file in this process, with its socket.

        Returns if that fails; then this build continues to serve.
        """
        name = "" if self.activated else _SUCCESSOR
        served = sum(slot.read().served for slot in self.slots)
        self.listener.setblocking(True)  # its original state, for builds that expect it
        with systemd.hand_on(self.listener.fileno(), name) as variables:
            try:
                os.execve(sys.argv[0], sys.argv, {**os.environ, **variables, _SERVED: str(served)})
            except OSError as error:
                self.log(f"cannot execute {sys.argv[0]}: {error.strerror}; this build goes on")
        self.listener.setblocking(False)


def _count_so_far() -> int:
    """The number of requests that earlier builds have served in this process."""
    text = os.environ.pop(_SERVED, "")
    return int(text) if text.isdecimal() else 0


def _installed_build() -> str:
    """The build of the file now at the path that this process was started from; "" without one."""
    try:
        return build_of(Path(sys.argv[0])) or ""
    except OSError:
        return ""
