"""Converting a configuration without its wrong keys: for DEL and GC, which those must not stop.

Loaded only if the whole cannot be converted. `pick` leaves the wrong keys out. `Partial` reports
the error of such a key when the verb reads its field; keys that the verb does not read are no
errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from .errors import CNIError

Convert = Callable[[Any], Any]


class Broken(NamedTuple):
    """A value that was left out: the path of keys to it, and the error."""

    path: tuple[str, ...]
    error: CNIError


_NOTHING = object()


def pick(value: Any, convert: Convert) -> tuple[Any, list[Broken]]:
    """(the Struct that `convert` makes of `value` without its wrong parts, those parts).

    `value` has folded keys. An object that is a field loses single keys, a list single elements; an
    object in a list is kept or dropped as a whole. `convert` raises CNIError.
    """
    broken: list[Broken] = []
    kept = _pick(value, (), convert, lambda part: part, broken)
    return convert({} if kept is _NOTHING else kept), broken


def _pick(
    value: Any,
    path: tuple[str, ...],
    convert: Convert,
    place: Callable[[Any], Any],
    broken: list[Broken],
) -> Any:
    """The part of `value` that converts in the document that `place` makes of it, or _NOTHING."""
    try:
        convert(place(value))
        return value
    except CNIError as error:
        reason = error
    kept: Any = _NOTHING
    left_out: list[Broken] = []
    if isinstance(value, dict):
        kept = {}
        for key, item in value.items():
            part = _pick(item, (*path, key), convert, _under(key, place), left_out)
            if part is not _NOTHING:
                kept[key] = part
    elif isinstance(value, list):
        kept = [item for item in value if _takes(convert, place([item]))]
        left_out = [Broken(path, reason)]
    if kept is not _NOTHING and _takes(convert, place(kept)):
        broken.extend(left_out)
        return kept
    broken.append(Broken(path, reason))
    return _NOTHING


def _under(key: str, place: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function that puts a value under `key` of an object, and that object where `place` does."""
    return lambda value: place({key: value})


def _takes(convert: Convert, value: Any) -> bool:
    try:
        convert(value)
    except CNIError:
        return False
    return True


class Partial:
    """Stands for a Struct from which wrong keys were left out.

    Reading the field of such a key calls `note` with the error, and returns the default.
    """

    def __init__(
        self, struct: msgspec.Struct, broken: list[Broken], note: Callable[[CNIError], None]
    ) -> None:
        self._struct = struct
        self._note = note
        keys = dict(zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True))
        self._broken = {
            field: [Broken(each.path[1:], each.error) for each in broken if each.path[:1] == (key,)]
            for field, key in keys.items()
        }

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._struct, name)
        broken = self._broken.get(name)
        if not broken:
            return value
        if isinstance(value, msgspec.Struct) and all(each.path for each in broken):
            return Partial(value, broken, self._note)
        for each in broken:
            self._note(each.error)
        return value
