"""Ending a request early: signals, and the undo of an ADD.

SIGTERM, SIGINT and SIGHUP are noted when they arrive, and answered at points where the state is
known.

An exception at any instruction could fall between a change and the note of its reverse, or into
the middle of an exchange with the kernel. So the handler only notes the signal, and `Terminated`
is raised in two kinds of places:

    check()             between two steps; Undo.callback calls it once a reverse is noted
    with waiting(): …   at once, also in the middle of a wait: nothing may be changed in there

A signal counts until `decide()`: then the result is settled, and is written despite later signals.
While an ADD is undone, signals are ignored, also by programs that the undo starts (`ignore`).

The state is that of the process, since a process runs one request at a time. `_signal` is the C
core of the module `signal`, which would import `enum`.
"""

from __future__ import annotations

import sys
from _signal import SIG_IGN, SIGINT, SIGTERM, getsignal, signal  # type: ignore[import-not-found]
from collections.abc import Callable
from typing import Any

from .protocol.errors import Terminated

SIGNALS: dict[int, str] = {int(SIGTERM): "SIGTERM", int(SIGINT): "SIGINT"}
if sys.platform != "win32":
    from _signal import (
        ITIMER_REAL,
        SIG_DFL,
        SIG_UNBLOCK,
        SIGALRM,
        SIGCHLD,
        SIGHUP,
        getitimer,
        pthread_sigmask,
        setitimer,
    )

    SIGNALS[int(SIGHUP)] = "SIGHUP"

# A signal that arrives after Python's last check, and before a waiting system call, neither runs
# its handler nor ends the call. So a timer ends the call at this interval (seconds); it is then
# repeated.
_TICK = 0.2

_noted = 0  # the number of the signal that arrived; 0: none
_waiting = False
_decided = False


def install(*, forget: bool = True) -> None:
    """Install the handlers of the three signals; `forget` a signal that has arrived before."""
    global _noted, _waiting, _decided  # noqa: PLW0603 facts of the process
    for number in SIGNALS:
        if getsignal(number) is not handle:
            signal(number, handle)
    if forget:
        _noted = 0
    _waiting = _decided = False


def unblock() -> None:
    """Unblock the signals that the native client has blocked until their handlers were installed.

    Also stop ignoring SIGCHLD, which a caller may have passed on: otherwise a program's exit code
    is lost.
    """
    if sys.platform != "win32":
        pthread_sigmask(SIG_UNBLOCK, SIGNALS)
        if getsignal(SIGCHLD) is SIG_IGN:
            signal(SIGCHLD, SIG_DFL)


def handle(number: int, _frame: object) -> None:
    """The signal handler. Raises Terminated in `waiting`."""
    global _noted, _waiting  # noqa: PLW0603
    if _decided:
        return
    _noted = number
    # once only: a second signal must not interrupt the handling of the first
    if _waiting:
        _waiting = False
        check()


def check() -> None:
    """Raise Terminated if a signal has arrived; at every call, so that no `except` hides it."""
    if _noted:
        raise terminated()


def came() -> bool:
    """Has a signal arrived that counts?"""
    return _noted != 0


def terminated(consequence: str = "") -> Terminated:
    """The error for the signal that arrived; `consequence` is the failure that it caused."""
    details = "what an ADD had done was undone; try again"
    if consequence:  # the consequence may be this error itself, with a caller's text
        details = f"{consequence.removesuffix(f'; {details}')}; {details}"
    return Terminated(f"interrupted by {SIGNALS[_noted]}", details)


class waiting:  # noqa: N801 used as a statement
    """`with waiting():` around a wait: a signal ends it with Terminated at any time.

    Handlers of other signals run during the wait, too. Uses SIGALRM.
    """

    def __enter__(self) -> None:
        global _waiting  # noqa: PLW0603
        self._handler = _start_ticking()
        try:
            # in this order: a signal between the two lines is seen by one of them
            _waiting = True
            if _noted:
                _waiting = False
                check()
        except BaseException:
            self._stop_ticking()
            raise

    def __exit__(self, *_: object) -> None:
        global _waiting  # noqa: PLW0603
        _waiting = False
        self._stop_ticking()

    def _stop_ticking(self) -> None:
        if self._handler is not None:
            setitimer(ITIMER_REAL, 0)
            signal(SIGALRM, self._handler)


def _start_ticking() -> Any:
    """Start the timer; return SIGALRM's old handler, or None if others use the timer."""
    if sys.platform == "win32" or getitimer(ITIMER_REAL)[0]:
        return None
    try:
        handler = signal(SIGALRM, _on_tick)
    except ValueError:
        return None  # only the main thread runs handlers
    setitimer(ITIMER_REAL, _TICK, _TICK)
    return handler


def _on_tick(_number: int, _frame: object) -> None:
    """Do nothing: the signal has ended the waiting system call."""


def decide() -> None:
    """Settle the result. Raises Terminated if a signal has arrived before."""
    global _decided  # noqa: PLW0603
    # before the look at `_noted`: a later signal does not count, an earlier one is seen
    _decided = True
    if _noted:
        _decided = False
        check()


def ignore() -> None:
    """Ignore signals from now on, in this process and in programs that it starts (signal(7))."""
    global _noted, _decided
    for number in SIGNALS:
        if getsignal(number) is handle:
            signal(number, SIG_IGN)
    _noted, _decided = 0, True


class Undo:
    """The reverses of an ADD's changes; the dispatcher unwinds them if the ADD fails.

    A reverse is noted before its change. So nothing stays behind after an error or signal in
    between, or if a change reports an error although it was made. A reverse may be called without
    its change, and must do nothing then.
    """

    def __init__(self) -> None:
        self._reverses: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def callback(self, reverse: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Note `reverse(*args, **kwargs)`. Raises Terminated if a signal has arrived."""
        self._reverses.append((reverse, args, kwargs))
        check()

    def withdraw(self) -> None:
        """Remove the last noted reverse, whose change is known not to have been made."""
        self._reverses.pop()

    def forget(self) -> None:
        """Remove all reverses: the changes are final."""
        self._reverses.clear()

    def unwind(self) -> list[str]:
        """Call every reverse, the last one first; return the texts of failures."""
        problems = []
        while self._reverses:
            reverse, args, kwargs = self._reverses.pop()
            try:
                reverse(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 the others run all the same
                problems.append(str(error) or type(error).__name__)
        return problems
