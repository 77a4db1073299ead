"""The parts of `typing` that plugins use at run time; only msgspec evaluates annotations."""

from __future__ import annotations

import sys
from _collections import _tuplegetter  # type: ignore[import-not-found]


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


class _NamedTupleMeta(type):
    """Makes a direct subclass of NamedTuple a plain class below tuple, as the real one does."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
        if not bases:
            return super().__new__(cls, name, bases, body)
        made = type(name, (tuple,), {"__slots__": (), **_METHODS, **body})
        fields = tuple(made.__annotations__)
        given = {field: body[field] for field in fields if field in body}
        for key, value in {"_fields": fields, "_field_defaults": given}.items():
            setattr(made, key, value)
        made.__match_args__ = fields  # type: ignore[attr-defined, misc]
        for index, field in enumerate(fields):
            # The descriptor of collections.namedtuple, which is in C.
            setattr(made, field, _tuplegetter(index, ""))
        return made


class NamedTuple(metaclass=_NamedTupleMeta):
    """As typing.NamedTuple, which takes 0.3 ms a class: it compiles each from source."""


def _new(cls, /, *args, **kwargs):  # type: ignore[no-untyped-def]
    if kwargs or len(args) != len(cls._fields):
        args = _bind(cls, args, kwargs)  # type: ignore[no-untyped-call]
    return tuple.__new__(cls, args)


def _bind(cls, args, kwargs):  # type: ignore[no-untyped-def]
    given = dict(zip(cls._fields, args))  # noqa: B905 the lengths are compared below
    values = {**cls._field_defaults, **given, **kwargs}
    missing = [name for name in cls._fields if name not in values]
    repeated = given.keys() & kwargs.keys()
    if len(args) > len(cls._fields) or len(values) > len(cls._fields) or missing or repeated:
        raise TypeError(f"{cls.__name__}() takes {', '.join(cls._fields)}")
    return tuple(values[name] for name in cls._fields)


def _make(cls, values):  # type: ignore[no-untyped-def]
    made = tuple.__new__(cls, values)
    if len(made) != len(cls._fields):
        raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
    return made


def _replace(self, /, **changes):  # type: ignore[no-untyped-def]
    unknown = [name for name in changes if name not in self._fields]
    if unknown:  # the class of the error is that of the Python that runs
        kind = TypeError if sys.version_info >= (3, 13) else ValueError
        raise kind(f"Got unexpected field names: {unknown!r}")
    return self._make({**self._asdict(), **changes}.values())


def _asdict(self) -> dict[str, object]:  # type: ignore[no-untyped-def]
    return dict(zip(self._fields, self, strict=True))


def _as_tuple(self) -> tuple[object, ...]:  # type: ignore[no-untyped-def]
    return tuple(self)


def _repr(self) -> str:  # type: ignore[no-untyped-def]
    pairs = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
    return f"{type(self).__name__}({pairs})"


_METHODS: dict[str, object] = {
    "__new__": _new,
    "__repr__": _repr,
    "__replace__": _replace,
    "__getnewargs__": _as_tuple,
    "_make": classmethod(_make),
    "_replace": _replace,
    "_asdict": _asdict,
}


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
# The names that msgspec looks up in `typing`. No type of our configurations uses one; a module that
# imports one gets Insufficient.
FOR_MSGSPEC: dict[str, object] = {
    name: type(name, (), {})
    for name in ("Literal", "ClassVar", "Final", "_GenericAlias", "TypeAliasType")
}
