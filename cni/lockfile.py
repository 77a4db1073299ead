"""A file lock with a deadline; the error after the deadline names the lock's holder."""

from __future__ import annotations

import os
import sys
import time

from . import interrupts
from .protocol.errors import CNIError, TryAgainLater

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int, shared: bool) -> None:
        """Lock the first byte, as the reference does; it may lie beyond the end."""
        _ = shared  # Windows has no shared locks here
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError:  # on Windows: another process has the lock
            raise BlockingIOError from None

    def _unlock(fd: int) -> None:
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    # flock(2), as the reference: its host-local and ours exclude each other on one node
    # (docs/spec/host-local.md). The kernel releases it when the holder is killed.
    def _lock(fd: int, shared: bool) -> None:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


TIMEOUT = 10.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE, _SHORTEST_OF_OLD = 0.0005, 0.01, 0.001
_OLD = 0.02  # seconds, after which pauses become shorter again
_HALVED = 0.05  # seconds, after which pauses are half as long


def pause_after(waited: float, last: float) -> float:
    """Seconds before the next attempt, after `waited` seconds and a pause of `last` seconds.

    A process that tries more often gets the lock sooner. If pauses only grew, newcomers would
    overtake earlier processes: of 64 processes that all the time want a lock, and keep it for 1 ms,
    one waited for 1,000 others. With these pauses it is 350 (tests/unit/test_lockfile.py).
    """
    if waited < _OLD:
        return min(last * 2, _LONGEST_PAUSE) if last else _FIRST_PAUSE
    return max(_LONGEST_PAUSE * _HALVED / (waited + _HALVED), _SHORTEST_OF_OLD)


def acquire(fd: int, path: str, deadline: float, *, shared: bool = False) -> None:
    """Lock the open file `fd`, exclusively unless `shared`; `release` unlocks it.

    `path` is for the message, `deadline` is a time.monotonic(). Raises TryAgainLater (code 11) or
    Terminated.
    """
    began, pause = time.monotonic(), 0.0
    while True:
        try:
            _lock(fd, shared)
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise CNIError(f"lock {path}: {(error.strerror or '').lower()}") from None
        now = time.monotonic()
        if now >= deadline:
            raise TryAgainLater(
                f"cannot lock {path}: held by {holder(fd) or 'another process'}",
                "if that process hangs, end it; the lock goes with it. Then try again",
            )
        interrupts.check()
        # A wait in the kernel would need a signal to end it, and a server's worker has the same
        # signals for all requests.
        pause = pause_after(now - began, pause)
        time.sleep(pause)


def take(path: str, timeout: float = TIMEOUT) -> int:
    """Open the lock file `path`, which is made if it is missing, and lock it; `release` closes it.

    Waits `timeout` seconds. Raises OSError if it cannot be opened, else as `acquire`.
    """
    from . import files  # callers that lock a descriptor of their own do not need it

    fd = files.open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        acquire(fd, path, time.monotonic() + timeout)
    except BaseException:
        os.close(fd)
        raise
    return fd


def release(fd: int) -> None:
    """Unlock and close. Raises nothing, since the work under the lock is done.

    Closing alone would leave the file locked if a process was forked meanwhile.
    """
    for step in (_unlock, os.close):
        try:
            step(fd)
        except OSError:
            pass


def holder(fd: int) -> str:
    """``pid 42 (command line)`` of the process that holds a lock on the file; empty if unknown."""
    if sys.platform == "win32":
        return ""
    stat = os.fstat(fd)
    exact = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    similar = ""
    for fields in _locks():
        # 1: FLOCK  ADVISORY  WRITE 42 08:01:1234 0 EOF; one that waits has "->" after the number.
        if len(fields) < 6 or fields[1] != "FLOCK":
            continue
        if fields[5] == exact:
            return _process(fields[4])
        # Some file systems (overlay, btrfs) show another device here than stat does.
        if fields[5].rpartition(":")[2] == str(stat.st_ino):
            similar = _process(fields[4])
    return similar


def _locks() -> list[list[str]]:
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            return [line.split() for line in file]
    except OSError:
        return []


def _process(pid: str) -> str:
    if pid.startswith("-") or pid == "0":
        return "a process outside of this container"
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read(200).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = ""
    return f"pid {pid} ({command})" if command else f"pid {pid}"
