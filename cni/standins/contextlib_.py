"""The parts of `contextlib` that plugins use; the real one imports functools, collections …"""

from __future__ import annotations

import sys


class AbstractContextManager:
    """A base without effect."""

    def __class_getitem__(cls, _: object) -> type:
        return cls

    def __enter__(self) -> object:
        return self


class suppress:  # noqa: N801 as in contextlib
    """Ignore these exceptions."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self._kinds)


class _Generated:
    def __init__(self, generator) -> None:  # type: ignore[no-untyped-def]
        self._generator = generator

    def __enter__(self) -> object:
        for value in self._generator:
            return value
        raise RuntimeError("generator didn't yield")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            for _ in self._generator:
                self._generator.close()
                raise RuntimeError("generator didn't stop")
            return False
        try:
            self._generator.throw(error)
        except BaseException as raised:
            # a StopIteration that passes through a generator comes out inside a RuntimeError
            wrapped = isinstance(error, StopIteration) and isinstance(raised, RuntimeError)
            if raised is error or (wrapped and raised.__cause__ is error):
                error.__traceback__ = trace  # type: ignore[assignment]
                return False
            if isinstance(raised, StopIteration):  # the generator has handled the exception
                return True
            raise
        self._generator.close()
        raise RuntimeError("generator didn't stop after throw()")


def contextmanager(function):  # type: ignore[no-untyped-def]
    """Make a generator function with one yield usable with `with`."""

    def make(*args: object, **kwargs: object) -> _Generated:
        return _Generated(function(*args, **kwargs))

    make.__name__, make.__qualname__ = function.__name__, function.__qualname__
    make.__module__, make.__doc__ = function.__module__, function.__doc__
    make.__wrapped__ = function  # type: ignore[attr-defined]
    return make


class ExitStack:
    """Callbacks and context managers, unwound in reverse order, even after exceptions."""

    def __init__(self) -> None:
        self._exits: list = []  # type: ignore[type-arg]

    def __enter__(self) -> ExitStack:
        return self

    def callback(self, function, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Call `function` when unwinding."""

        def call(*_: object) -> None:
            function(*args, **kwargs)

        self._exits.append(call)
        return function

    def enter_context(self, manager):  # type: ignore[no-untyped-def]
        """Enter `manager`, leave it when unwinding."""
        kind = type(manager)
        try:
            enter, leave = kind.__enter__, kind.__exit__
        except AttributeError:
            raise TypeError(f"{kind.__qualname__!r} object is no context manager") from None
        result = enter(manager)
        self._exits.append(lambda *error: leave(manager, *error))
        return result

    def pop_all(self) -> ExitStack:
        """Move everything to a new stack."""
        other = type(self)()
        other._exits, self._exits = self._exits, []
        return other

    def close(self) -> None:
        """Unwind now."""
        self.__exit__(None, None, None)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        received, raising = error, False
        # What is being handled around us is the context of whatever is raised in here, where it
        # should be the error before: as in nested `with` statements.
        around = sys.exc_info()[1]
        while self._exits:
            leave = self._exits.pop()
            try:
                shape = (type(error), error, error.__traceback__) if error else (None, None, None)
                if leave(*shape):
                    error, raising = None, False
            except BaseException as raised:  # noqa: BLE001 the rest is unwound all the same
                _put_in_chain(raised, error, around)
                error, raising = raised, True
        if raising and error is not None:
            context = error.__context__
            try:
                raise error
            finally:
                error.__context__ = context
        return received is not None and error is None


def _put_in_chain(
    raised: BaseException, before: BaseException | None, around: BaseException | None
) -> None:
    """Make the chain of contexts of `raised` end at `before` instead of `around`."""
    last = raised
    while last.__context__ is not around:
        if last.__context__ is None or last.__context__ is before:
            return
        last = last.__context__
    if around is not None and last is not before:
        last.__context__ = before


NAMES: dict[str, object] = {
    "AbstractContextManager": AbstractContextManager,
    "ExitStack": ExitStack,
    "contextmanager": contextmanager,
    "suppress": suppress,
}
