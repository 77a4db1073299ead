"""What plugins use of `typing` at run time; annotations are never evaluated but by msgspec."""

from __future__ import annotations

from _collections import _tuplegetter  # type: ignore[attr-defined]


class Any:
    """Anything."""


class _Subscriptable:
    def __class_getitem__(cls, _: object) -> type:
        return cls


class Generic(_Subscriptable):
    """A base without effect."""


class Protocol(_Subscriptable):
    """A base without effect."""


class TypeVar:
    """A name without effect."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass


class NamedTuple(tuple):  # type: ignore[type-arg]
    """As typing.NamedTuple, which compiles each class from source: 0.3 ms a class."""

    __slots__ = ()
    _fields: tuple[str, ...] = ()
    _field_defaults: dict[str, object] = {}

    def __init_subclass__(cls) -> None:
        if NamedTuple not in cls.__bases__:
            return
        names = tuple(cls.__annotations__)
        cls._fields = cls.__match_args__ = names
        cls._field_defaults = {name: vars(cls)[name] for name in names if name in vars(cls)}
        for index, name in enumerate(names):
            setattr(cls, name, _tuplegetter(index, ""))

    def __new__(cls, *args, **kwargs):  # type: ignore[no-untyped-def]
        if kwargs or len(args) != len(cls._fields):
            args = cls._bind(args, kwargs)
        return tuple.__new__(cls, args)

    @classmethod
    def _bind(cls, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[object, ...]:
        given = dict(zip(cls._fields, args))  # noqa: B905 the lengths are compared below
        values = {**cls._field_defaults, **given, **kwargs}
        missing = [name for name in cls._fields if name not in values]
        repeated = given.keys() & kwargs.keys()
        if len(args) > len(cls._fields) or len(values) > len(cls._fields) or missing or repeated:
            raise TypeError(f"{cls.__name__} takes {', '.join(cls._fields)}")
        return tuple(values[name] for name in cls._fields)

    @classmethod
    def _make(cls, values):  # type: ignore[no-untyped-def]
        return cls(*values)

    def _replace(self, **changes):  # type: ignore[no-untyped-def]
        return type(self)(**{**self._asdict(), **changes})

    def _asdict(self) -> dict[str, object]:
        return dict(zip(self._fields, self, strict=True))

    def __getnewargs__(self) -> tuple[object, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        pairs = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
        return f"{type(self).__name__}({pairs})"


def _same(value: object) -> object:
    return value


NAMES: dict[str, object] = {
    "TYPE_CHECKING": False,
    "Any": Any,
    "Generic": Generic,
    "NamedTuple": NamedTuple,
    "NoReturn": None,
    "Protocol": Protocol,
    "TypeVar": TypeVar,
    "final": _same,
    "overload": _same,
    "cast": lambda _, value: value,
}
# Which msgspec recognizes; where a module uses one, the real `typing` comes and brings its own.
FOR_MSGSPEC: dict[str, object] = {
    name: type(name, (), {})
    for name in ("Literal", "ClassVar", "Final", "_GenericAlias", "TypeAliasType")
}
