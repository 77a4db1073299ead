"""msgspec's C core without its package, which imports uuid, decimal, datetime, re, inspect, ….

When the core starts, it takes a few types from those modules, to recognize their instances. JSON
has none of them, nor has any configuration or result of ours. A Struct with a field of a type that
is not listed here raises Insufficient when it is first decoded.
"""

from __future__ import annotations

import _collections_abc as abc
import sys

from . import Closed, Insufficient, public, typing_

_UNION = type(int | str)
_ALIAS = type(list[int])
# Abstract type → the type to which a field is decoded; other types stand for themselves.
_CONCRETE: dict[object, type] = {
    **{kind: kind for kind in (list, tuple, set, frozenset, dict)},
    **dict.fromkeys((abc.Collection, abc.MutableSequence, abc.Sequence), list),
    **dict.fromkeys((abc.MutableSet, abc.Set), set),
    **dict.fromkeys((abc.MutableMapping, abc.Mapping), dict),
}
_PLAIN = {*_CONCRETE, str, int, float, bool, bytes, None, type(None), typing_.Any}
_struct: type = type  # the class of Struct classes


def enable() -> None:
    """Put a stand-in for msgspec in place; it raises if the core is not as expected.

    `typing` must not have its stand-in yet.
    """
    global _struct  # noqa: PLW0603
    package = Closed("msgspec")
    package.__path__ = [f"{directory}/msgspec" for directory in sys.path]
    sys.modules["msgspec"] = package
    lent = _lend()
    try:
        __import__("msgspec._core")
    finally:
        for name in lent:
            del sys.modules[name]
    package.__path__ = []  # any other submodule expects the real package: an ImportError
    _core = sys.modules["msgspec._core"]
    _struct = _core.StructMeta
    _PLAIN.add(_core.Raw)
    names = ("decode", "encode", "format")
    json = sys.modules["msgspec.json"] = Closed("msgspec.json")
    vars(json).update({name: getattr(_core, f"json_{name}") for name in names})
    vars(json).update(Decoder=_core.JSONDecoder, Encoder=_core.JSONEncoder)
    vars(package).update({**public(_core), "field": _field(_core), "json": json})


def _lend() -> list[str]:
    """Install the modules that the core reads when it starts; return their names, for removal."""
    wanted: dict[str, dict[str, object]] = {
        "typing": {**typing_.NAMES, **typing_.FOR_MSGSPEC, "Union": _UNION},
        "types": {"UnionType": _UNION},
        "enum": {"EnumMeta": type("EnumMeta", (type,), {})},
        "uuid": {"UUID": _Absent, "SafeUUID": _Absent},
        "decimal": {"Decimal": _Absent},
        "re": {"compile": _compile},
        "msgspec._utils": {
            "_CONCRETE_TYPES": _CONCRETE,
            "get_class_annotations": class_annotations,
            "call_annotate_forwardref": lambda annotate: annotate(1),
            "rebuild": rebuild,
            **dict.fromkeys(("get_type_hints", "get_typeddict_info", "get_dataclass_info")),
            **dict.fromkeys(("_AnnotatedAlias", "convert_generic_alias")),
        },
    }
    lent = [name for name in wanted if name not in sys.modules]
    for name in lent:
        sys.modules[name] = type(sys)(name)
        vars(sys.modules[name]).update(wanted[name])
    if "datetime" not in sys.modules:
        import _datetime  # type: ignore[import-not-found]
        # what `datetime` is made of, without the same again in Python

        sys.modules["datetime"] = _datetime
        lent.append("datetime")
    return lent


class _Absent:
    """A type without instances."""

    unknown = None


def _compile(*args: object) -> object:
    import re

    return re.compile(*args)  # type: ignore[call-overload]


def rebuild(kind, values):  # type: ignore[no-untyped-def]
    """Unpickle a Struct with keyword-only fields."""
    return kind(**values)


def class_annotations(kind: type) -> dict[str, object]:
    """The types of a Struct's fields, evaluated; the nearest class wins, as in msgspec._utils.

    Raises Insufficient for a type that the core, started as it was, would not recognize.
    """
    hints: dict[str, object] = {}
    for base in kind.__mro__:
        names = getattr(sys.modules.get(base.__module__), "__dict__", {})
        for name, hint in getattr(base, "__annotations__", {}).items():
            if name not in hints:
                # the module's names come before the class's, where `type: str` is a member
                value = eval(hint, dict(vars(base)), names) if isinstance(hint, str) else hint  # noqa: S307 our own
                if not _recognized(value):
                    raise Insufficient(f"{kind.__name__}.{name}: {value} is not in cni.standins")
                hints[name] = type(None) if value is None else value
    return hints


def _recognized(hint: object) -> bool:
    kind, inner = type(hint), getattr(hint, "__args__", ())
    if kind is _ALIAS:
        known = getattr(hint, "__origin__", None) in _CONCRETE
        return known and all(_recognized(part) for part in inner if part is not ...)
    if kind is _UNION:
        return all(map(_recognized, inner))
    if isinstance(hint, _struct):
        return True
    # a number of a kind of its own, which a dec_hook converts
    is_number = kind is type and getattr(hint, "__bases__", ()) == (int,)
    return isinstance(hint, type | None) and (is_number or hint in _PLAIN)


def _field(core: object):  # type: ignore[no-untyped-def]
    make, missing = core.Field, core.NODEFAULT  # type: ignore[attr-defined]

    def field(*, default=missing, default_factory=missing, name=None):  # type: ignore[no-untyped-def]
        return make(default=default, default_factory=default_factory, name=name)

    return field
