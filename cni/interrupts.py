"""Ending a request before its end: signals, and the undoing of an ADD.

SIGTERM, SIGINT and SIGHUP are noted when they come, and answered where the state is known.

An exception at any instruction could fall between a change and the note of its reverse, or into
the middle of an exchange with the kernel. So the handler only notes the signal, and `Terminated`
is raised in two kinds of places:

    check()             between two steps; Undo.callback calls it once a reverse is noted
    with waiting(): …   at once, also in the middle of a wait: nothing may be changed in there

A signal counts until `decide()`: then the result is settled, and is written whatever comes. While
an ADD is undone, signals are ignored, also by the programs that the undoing starts (`ignore`).

These are facts of the process: a process runs one request at a time.
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

# A signal that comes after Python's last look, and before the system call that waits, neither runs
# its handler nor ends the call. So a timer ends the call this often (seconds), which is repeated.
_TICK = 0.2

_noted = 0  # the number of the signal that came
_waiting = False
_decided = False


def install(*, forget: bool = True) -> None:
    """Handle the three signals: a request begins, or has ended. `forget` one that has come."""
    global _noted, _waiting, _decided  # noqa: PLW0603 facts of the process
    for number in SIGNALS:
        if getsignal(number) is not handle:
            signal(number, handle)
    if forget:
        _noted = 0
    _waiting = _decided = False


def unblock() -> None:
    """Have the signals delivered that the native client blocked until their handlers were there.

    A caller that ignores SIGCHLD hands that on, and then nobody learns how a program has ended.
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
    if _waiting:
        _waiting = False
        check()


def check() -> None:
    """Raise Terminated if a signal has come; again at each call: no `except` ends that."""
    if _noted:
        raise terminated()


def came() -> bool:
    """Has a signal come that counts?"""
    return _noted != 0


def terminated(consequence: str = "") -> Terminated:
    """The error for the signal that came; `consequence` is what failed because of it."""
    details = "what an ADD had done was undone; try again"
    if consequence:  # which may have been this error, with a text of its caller's
        details = f"{consequence.removesuffix(f'; {details}')}; {details}"
    return Terminated(f"interrupted by {SIGNALS[_noted]}", details)


class waiting:  # noqa: N801 used as a statement
    """`with waiting():` around a wait that a signal ends with Terminated, however long it is.

    Handlers of other signals run meanwhile, too. Uses SIGALRM.
    """

    def __enter__(self) -> None:
        global _waiting  # noqa: PLW0603
        self._handler = _start_ticking()
        try:
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
    """The handler that SIGALRM had; None if the timer is somebody else's, or without signals."""
    if sys.platform == "win32" or getitimer(ITIMER_REAL)[0]:
        return None
    try:
        handler = signal(SIGALRM, _on_tick)
    except ValueError:
        return None  # not the main thread, which alone runs handlers
    setitimer(ITIMER_REAL, _TICK, _TICK)
    return handler


def _on_tick(_number: int, _frame: object) -> None:
    """The system call that waited has returned, which is all that is wanted."""


def decide() -> None:
    """The result stands, unless a signal has come until now: then Terminated is raised."""
    global _decided  # noqa: PLW0603
    _decided = True
    if _noted:
        _decided = False
        check()


def ignore() -> None:
    """From now on signals do nothing, here and in the programs that are started (signal(7))."""
    global _noted, _decided
    for number in SIGNALS:
        if getsignal(number) is handle:
            signal(number, SIG_IGN)
    _noted, _decided = 0, True


class Undo:
    """What reverses the changes of an ADD, unwound by the dispatcher if the ADD fails.

    The reverse is noted before its change: an error or a signal in between, or an error of a
    change that was made all the same, then leaves nothing behind. So a reverse may be called though
    its change was not made, and must do nothing then.
    """

    def __init__(self) -> None:
        self._reverses: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def callback(self, reverse: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Note `reverse(*args, **kwargs)`. Raises Terminated if a signal has come by now."""
        self._reverses.append((reverse, args, kwargs))
        check()

    def withdraw(self) -> None:
        """Take back the reverse that was noted last: its change is known not to have been made."""
        self._reverses.pop()

    def forget(self) -> None:
        """The changes stand."""
        self._reverses.clear()

    def unwind(self) -> list[str]:
        """Call every reverse, the last one first; the texts of those that failed."""
        problems = []
        while self._reverses:
            reverse, args, kwargs = self._reverses.pop()
            try:
                reverse(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 the others run all the same
                problems.append(str(error) or type(error).__name__)
        return problems
