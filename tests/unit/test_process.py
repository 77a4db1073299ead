"""Running programs: a signal ends the wait, at whatever moment it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni import interrupts, process

if TYPE_CHECKING:
    from collections.abc import Iterator

# Handles a signal between Python's last look and the system call that waits: the C library runs the
# handler in another thread, and the call in the main thread goes on. That is the same to Python.
LATE = """
import os, signal, sys, threading
from cni import interrupts, process

{prepare}
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, ({number},))
try:
    {wait}
except BaseException as error:
    print(type(error).__name__, flush=True)
    os._exit(0)
"""
TERMINATED = "interrupts.install()"
EXITING = "signal.signal(signal.SIGIO, lambda *_: os._exit(7))"


@pytest.mark.parametrize(
    ("prepare", "number", "code"),
    [(TERMINATED, signal.SIGTERM, 0), (EXITING, signal.SIGIO, 7)],
    ids=["told to end", "the client of a worker has died"],
)
@pytest.mark.parametrize("wait", ["program", "stdin"])
def test_no_signal_is_missed_by_a_wait(
    tmp_path: Path, prepare: str, number: signal.Signals, code: int, wait: str
) -> None:
    ready, end = tmp_path / "ready", tmp_path / "end"
    os.mkfifo(ready)
    os.mkfifo(end)
    ending = os.open(end, os.O_RDWR)
    begun = f"open({str(ready)!r}, 'w').close()"
    waits = {
        "program": f"process.run('/bin/sh', ['sh', '-c', ': > {ready}; read line < {end}'])",
        "stdin": f"{begun}\n    with interrupts.waiting(): os.read(0, 1)",
    }
    script = LATE.format(prepare=prepare, number=int(number), wait=waits[wait])
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        ready.read_text()  # until then nothing waits
        child.send_signal(number)
        assert child.wait(timeout=30) == code  # stdin stays open
        assert child.stdout is not None
        output = child.stdout.read()
    finally:
        os.write(ending, b"\n")
        os.close(ending)
        child.kill()
        child.communicate()
    assert output.decode().split() == ([] if code else ["Terminated"])


@pytest.fixture
def alarm() -> Iterator[None]:
    """Nobody uses SIGALRM, as in a plugin; afterwards it is pytest-timeout's again."""
    handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.mark.usefixtures("alarm")
def test_a_wait_leaves_alone_the_timer_of_somebody_else() -> None:
    def mine(_number: int, _frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, mine)
    signal.setitimer(signal.ITIMER_REAL, 500.0)
    assert process.run("/bin/true", ["true"]).code == 0
    assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with pytest.raises(TimeoutError):
        process.run("/bin/sleep", ["sleep", "60"])


@pytest.mark.usefixtures("alarm")
def test_a_wait_gives_the_timer_back() -> None:
    with pytest.raises(ZeroDivisionError), interrupts.waiting():  # noqa: PT012 what is within
        assert signal.getitimer(signal.ITIMER_REAL)[0]
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert not signal.getitimer(signal.ITIMER_REAL)[0]
