"""What plugins use of `contextlib`, which imports functools, collections and more."""

from __future__ import annotations


class AbstractContextManager:
    """A base without effect."""

    def __class_getitem__(cls, _: object) -> type:
        return cls

    def __enter__(self) -> object:
        return self


class suppress:  # noqa: N801 as in contextlib
    """Pass over these exceptions."""

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
        return next(self._generator)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            next(self._generator, None)
            return False
        try:
            self._generator.throw(error)
        except StopIteration:
            return True
        except BaseException as raised:
            if raised is not error:
                raise
            error.__traceback__ = trace  # type: ignore[assignment]
            return False
        raise RuntimeError("generator didn't stop after throw()")


def contextmanager(function):  # type: ignore[no-untyped-def]
    """Make a generator function with one yield usable with `with`."""

    def make(*args: object, **kwargs: object) -> _Generated:
        return _Generated(function(*args, **kwargs))

    make.__name__, make.__qualname__ = function.__name__, function.__qualname__
    make.__module__, make.__doc__ = function.__module__, function.__doc__
    return make


class ExitStack:
    """Callbacks and context managers, unwound in reverse order whatever they raise."""

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
        result = manager.__enter__()
        self._exits.append(manager.__exit__)
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
        received = error
        while self._exits:
            leave = self._exits.pop()
            try:
                shape = (type(error), error, error.__traceback__) if error else (None, None, None)
                if leave(*shape):
                    error = None
            except BaseException as raised:  # noqa: BLE001 the rest is unwound all the same
                error = raised
        if error is not None and error is not received:
            raise error
        return received is not None and error is None


NAMES: dict[str, object] = {
    "AbstractContextManager": AbstractContextManager,
    "ExitStack": ExitStack,
    "contextmanager": contextmanager,
    "suppress": suppress,
}
