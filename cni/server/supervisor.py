"""The supervisor: preloads the plugins, keeps the workers, and serves nothing itself.

Workers are forked ahead and rehearsed, so that a request finds its pages copied, its executor
running and the packet filter's library loaded. One that ends is replaced at once. The supervisor
ends when it is told to, or has been idle for long; first every worker finishes its request.
A client of another build means that `cni install` was here: then the supervisor runs the new file,
with the same listening socket.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from errno import EINVAL
from typing import NamedTuple, NoReturn

from .. import systemd
from . import slots, warmup
from .worker import DRAIN, INTERRUPTS, Limits, Worker

_WATCHED = (signal.SIGCHLD, *INTERRUPTS)
_TICK = 1.0  # seconds between looks at the board
_DRAIN_SECONDS = 30.0
_SHORT_LIFE = 2.0  # a worker that dies sooner than that is replaced more slowly each time
_BACKLOG = 4096
_SUCCESSOR = "cni-again"  # the name under which a server hands its socket to the next build


class Options(NamedTuple):
    """How to serve. `idle_exit` and `timeout` in seconds, 0 for never; `memory` in bytes."""

    socket: str
    workers: int
    idle_exit: float = 0
    timeout: float = 300
    limits: Limits = Limits()


class Supervisor:
    """Keeps the workers of one listening socket."""

    def __init__(self, options: Options, build: str, log: Callable[[str], None]) -> None:
        self.options = options
        self.build = build
        self.log = log
        self.slots = slots.allocate(options.workers)
        self.pids: dict[int, int] = {}  # pid -> slot
        self.due: dict[int, float] = {}  # slot -> when to fill it
        self.failures = 0
        self.activated = False
        self._identity: tuple[int, int] | None = None

    def run(self) -> int:
        """Serve until told to end; the exit code. Raises OSError if the socket cannot be had."""
        self.listener = self._listen()
        warmup.import_plugins()
        gc.collect()
        gc.freeze()
        gc.disable()
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        for number in range(len(self.slots)):
            self._start(number)
        systemd.notify("READY=1")
        self.log(f"serving on {self.options.socket} with {self.options.workers} workers")
        reason = self._watch()
        again = reason == "another build is installed"
        self.log(f"ending: {reason}")
        systemd.notify("RELOADING=1" if again else "STOPPING=1")
        self._drain(keep_socket=again)
        if again:
            self._run_anew()
        return 0

    # --- the socket ---

    def _listen(self) -> socket.socket:
        """systemd's socket or our predecessor's, else a new one. Raises OSError."""
        handed = systemd.listen_fds()
        if len(handed) > 1:
            raise OSError(EINVAL, f"systemd handed over {len(handed)} sockets instead of one")
        if not handed:
            listener = systemd.listen_unix(self.options.socket, _BACKLOG)
            self._identity = systemd.identity(self.options.socket)
            return listener
        self.activated = handed[0].name != _SUCCESSOR
        if not self.activated:
            self._identity = systemd.identity(self.options.socket)
        return socket.socket(fileno=handed[0].fd)

    def _unlink(self) -> None:
        """Take our own name away; systemd's stays, and so does a successor's."""
        mine = self._identity is not None and self._identity == systemd.identity(
            self.options.socket
        )
        if mine and not self.activated:
            os.unlink(self.options.socket)

    # --- the workers ---

    def _start(self, number: int) -> None:
        slot = self.slots[number]
        slot.start_worker()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(number, parent)
        self.pids[pid] = number

    def _become_worker(self, number: int, parent: int) -> NoReturn:
        code = 1
        try:
            from ..netns import libc

            libc.die_with_parent(parent)
            os.setpgid(0, 0)  # a ^C on the supervisor's terminal is not for us
            null = os.open(os.devnull, os.O_RDWR)
            for target in (0, 1, 2):
                os.dup2(null, target)
            os.close(null)
            os.chdir("/")
            os.umask(0o022)
            for interrupt in INTERRUPTS:
                signal.signal(interrupt, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            warmup.rehearse()
            warmup.use_large_pages()
            Worker(self.listener, self.slots, number, self.build, self.options.limits).run()
            code = 0
        finally:
            os._exit(code)

    def _watch(self) -> str:
        """Replace workers until there is a reason to end, which is returned."""
        while True:
            found = signal.sigtimedwait(_WATCHED, _TICK)
            if found is not None and found.si_signo != signal.SIGCHLD:
                return signal.Signals(found.si_signo).name
            self._reap()
            now = time.monotonic()
            for number, due in sorted(self.due.items()):
                if due <= now:
                    del self.due[number]
                    self._start(number)
            reason = self._look(now)
            if reason:
                return reason

    def _reap(self) -> None:
        while self.pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            number = self.pids.pop(pid, None)
            if number is None:
                continue
            lived = time.monotonic() - self.slots[number].read().started
            failed = os.waitstatus_to_exitcode(status) != 0 and lived < _SHORT_LIFE
            self.failures = self.failures + 1 if failed else 0
            if failed:
                self.log(f"a worker ended after {lived:.1f} s with status {status}")
            self.due[number] = time.monotonic() + min(0.05 * 2**self.failures - 0.05, 10.0)

    def _look(self, now: float) -> str:
        """Kill who takes too long; a reason to end, or nothing."""
        states = {pid: self.slots[number].read() for pid, number in self.pids.items()}
        for pid, state in states.items():
            busy_for = now - state.busy_since if state.busy_since else 0.0
            if self.options.timeout and busy_for > self.options.timeout:
                self.log(f"killing worker {pid}: busy for {busy_for:.0f} s")
                os.kill(pid, signal.SIGKILL)
        declined = any(state.declined for state in states.values())
        if declined and _installed_build() not in ("", self.build):
            return "another build is installed"
        busy = any(state.busy_since for state in states.values())
        last = max((state.last_active for state in states.values()), default=now)
        if self.options.idle_exit and not busy and now - last > self.options.idle_exit:
            return "idle"
        return ""

    # --- the end ---

    def _drain(self, *, keep_socket: bool) -> None:
        """Let every worker finish its request, and nobody begin another."""
        if not keep_socket:
            self._unlink()
            self.listener.close()
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self.pids and time.monotonic() < deadline:
            for pid in self.pids:
                os.kill(pid, DRAIN)  # again: one that came just before accept(2) is lost
            signal.sigtimedwait((signal.SIGCHLD,), 0.05)
            self._reap()
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _run_anew(self) -> NoReturn:
        """Execute the file that is installed now, with our socket and process id."""
        name = "" if self.activated else _SUCCESSOR
        env = {**os.environ, **systemd.hand_on(self.listener.fileno(), name)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        os.execve(sys.argv[0], sys.argv, env)


def _installed_build() -> str:
    """The build of the file we were started from, as it is now."""
    from pathlib import Path

    from ..artifact import build_of

    try:
        return build_of(Path(sys.argv[0])) or ""
    except OSError:
        return ""
