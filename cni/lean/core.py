"""msgspec's C core without its package, which imports uuid, decimal, datetime, re, inspect, ….

The core takes a few types from those when it starts, to recognize their instances in what it
encodes and decodes. JSON has none of them, and no configuration or result of ours either.
"""

from __future__ import annotations

import sys

from . import StandIn, public, types


def enable() -> None:
    """Put a stand-in for msgspec in place; changes nothing if the core is not as expected.

    `typing` must not have its stand-in yet.
    """
    beside = __file__.rpartition("/cni/")[0]
    stand_in = _Package("msgspec", {"__path__": [f"{beside}/msgspec"]})
    lent = _lend()
    try:
        from msgspec import _core
    except (ImportError, AttributeError, TypeError):  # another core than the one we know
        del sys.modules["msgspec"]
        return
    finally:
        for name in lent:
            del sys.modules[name]
    stand_in.__dict__.update(public(_core))
    stand_in.__dict__["field"] = _field(_core)
    stand_in.__dict__["json"] = StandIn(
        "msgspec.json",
        {
            "Decoder": _core.JSONDecoder,
            "Encoder": _core.JSONEncoder,
            "decode": _core.json_decode,
            "encode": _core.json_encode,
            "format": _core.json_format,
        },
    )


class _Package(StandIn):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        __import__(f"msgspec.{name}")  # a submodule, which may well do more than ours
        return vars(self)[name]


def _lend() -> list[str]:
    """Put in place what the core looks at when it starts; the names to take away again."""
    union = type(int | str)
    wanted: dict[str, dict[str, object]] = {
        "typing": {**types.NAMES, **types.FOR_MSGSPEC, "Union": union},
        "types": {"UnionType": union},
        "enum": {"EnumMeta": type("EnumMeta", (type,), {})},
        "uuid": {"UUID": _Absent, "SafeUUID": _Absent},
        "decimal": {"Decimal": _Absent},
        "re": {"compile": _compile},
        "msgspec._utils": {
            "_CONCRETE_TYPES": {kind: kind for kind in (list, tuple, set, frozenset, dict)},
            "get_class_annotations": class_annotations,
            "call_annotate_forwardref": lambda annotate: annotate(1),
            "rebuild": lambda kind, values: kind(**values),
            **dict.fromkeys(("get_type_hints", "get_typeddict_info", "get_dataclass_info")),
            **dict.fromkeys(("_AnnotatedAlias", "convert_generic_alias")),
        },
    }
    lent = [name for name in wanted if name not in sys.modules]
    for name in lent:
        StandIn(name, wanted[name])
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


def class_annotations(kind: type) -> dict[str, object]:
    """The types of a Struct's fields, evaluated; the nearest class wins, as in msgspec._utils."""
    hints: dict[str, object] = {}
    for base in kind.__mro__:
        names = vars(sys.modules[base.__module__])
        for name, hint in getattr(base, "__annotations__", {}).items():
            if name not in hints:
                value = eval(hint, names, dict(vars(base))) if isinstance(hint, str) else hint  # noqa: S307 our own
                hints[name] = type(None) if value is None else value
    return hints


def _field(core: object):  # type: ignore[no-untyped-def]
    make, missing = core.Field, core.NODEFAULT  # type: ignore[attr-defined]

    def field(*, default=missing, default_factory=missing, name=None):  # type: ignore[no-untyped-def]
        return make(default=default, default_factory=default_factory, name=name)

    return field
