"""Waiting for what takes a moment: the one place where tests look again and again.

A deadline is only how long a broken test takes to say so. It is generous, because the machine may
be busy; no test asserts that something was quick.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

T = TypeVar("T")

TIMEOUT = 60.0  # seconds
# As in the kernel's asm/unistd.h.
_CALLS = {
    "x86_64": {"read": 0, "epoll_wait": 232, "epoll_pwait": 281},
    "aarch64": {"read": 63, "epoll_wait": 22, "epoll_pwait": 22},
}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05


def last_seen(
    look: Callable[[], T], *, wanted: Callable[[T], Any] = bool, timeout: float = TIMEOUT
) -> T:
    """Look until what is seen is wanted, or the time is up; what was seen last.

    For an assertion that shows what was seen, and for a test that expects not to see something.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        began = time.monotonic()
        seen = look()
        now = time.monotonic()
        if wanted(seen) or now > deadline:
            return seen
        time.sleep(max(pause, now - began))  # at most half the time is spent on looking
        pause = min(2 * pause, _LONGEST_PAUSE)


def wait_until(
    condition: Callable[[], T],
    what: str,
    timeout: float = TIMEOUT,
    *,
    process: subprocess.Popen[Any] | None = None,
    tell: Callable[[], object] | None = None,
) -> T:
    """Wait until the condition is true; its value.

    AssertionError, which says `what` did not happen and what `tell` returns, if it is not true in
    time, or once `process` has ended.
    """

    def ended() -> bool:
        return process is not None and process.poll() is not None

    def look() -> tuple[T, bool]:
        over = ended()  # before the last look, which may see what it did at its end
        return condition(), over

    value, over = last_seen(look, wanted=any, timeout=timeout)
    if not value:
        assert process is None or not over, _failure(f"ended ({process.returncode})", what, tell)
        raise AssertionError(_failure(f"not within {timeout:g} s", what, tell))
    return value


def _failure(how: str, what: str, tell: Callable[[], object] | None) -> str:
    return f"{how}: {what}" + (f"\n{tell()}" if tell is not None else "")


def wait_for_line(path: Path, process: subprocess.Popen[Any] | None = None) -> str:
    """Wait until a file has a line, which somebody writes to say that it is there; the file."""

    def text() -> str:
        return path.read_text() if path.exists() else ""

    wait_until(lambda: "\n" in text(), f"a line in {path}", process=process)
    return text()


def wait_for_open(pid: int, path: Path, times: int = 1) -> None:
    """Wait until a process has a file open (so often), as one has that waits for its lock."""

    def is_it(descriptor: Path) -> bool:
        try:
            return descriptor.samefile(path)
        except FileNotFoundError:  # closed since
            return False

    def count() -> int:
        return sum(map(is_it, Path(f"/proc/{pid}/fd").iterdir()))

    wait_until(lambda: count() >= times, f"process {pid} opens {path}")


def wait_for_lock_waiters(path: Path, count: int = 1) -> None:
    """Wait until so many processes block on a lock of a file (proc_locks(5))."""
    inode = f":{path.stat().st_ino} "

    def waiters() -> list[str]:
        lines = Path("/proc/locks").read_text().splitlines()
        return [line for line in lines if "->" in line and inode in line]

    wait_until(lambda: len(waiters()) >= count, f"{count} wait for the lock of {path}")


def wait_for_call(pid: int, name: str, *arguments: int) -> None:
    """Wait until a process sleeps in a system call of this name and with these first arguments.

    epoll_wait is also what the C library makes of it: musl calls epoll_pwait.
    """
    calls = _CALLS[platform.machine()]
    names = (name, "epoll_pwait") if name == "epoll_wait" else (name,)
    numbers = [[str(calls[each])] for each in names]
    wanted = [*map(hex, arguments)]

    def call() -> list[str]:
        return Path(f"/proc/{pid}/syscall").read_text().split()

    def is_there() -> bool:
        now = call()
        return now[:1] in numbers and now[1 : 1 + len(wanted)] == wanted

    wait_until(is_there, f"process {pid} sleeps in {name}", tell=call)
