"""The words of a description.

Plugin ── keys: Key ── kind: Kind ─┬─ Flag, Number, Text, Anything
├─ args: Key (CNI_ARGS)     ├─ Many, Table     of one kind
└─ rules: Rule              ├─ Record          of keys
└─ IpamRecord      of the keys that the IPAM plugin has
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct

FIRST = "0.1.0"  # the first release

S = TypeVar("S", bound=Struct)


def replace(value: S, **changes: Any) -> S:
    """A copy with other values of some fields, as msgspec.structs.replace (not in cni.standins)."""
    fields = {name: getattr(value, name) for name in value.__struct_fields__}
    return type(value)(**{**fields, **changes})


class Kind(Struct, frozen=True):
    """What a value may be."""


class Flag(Kind, frozen=True):
    """true or false; with `or_text` also one of these words in quotation marks, in any case."""

    or_text: bool = False


class Number(Kind, frozen=True):
    """An integer from `low` to `high`, both inclusive; None is no bound.

    With `or_zero`, 0 is also allowed, and means that the key is not given; with `word`, that string
    is also allowed.
    """

    low: int | None = 0
    high: int | None = None
    unit: str = ""
    or_zero: bool = False
    word: str = ""

    def allows(self, value: int) -> bool:
        """Is the number within the bounds?"""
        if value == 0 and self.or_zero:
            return True
        return not (
            (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
        )


class Text(Kind, frozen=True):
    """A string: one of `values`, if there are any, or of the form that `form` names (forms.py).

    The empty string always means that the key is not given. With `ignores_others` the plugin takes
    another value as if the key were absent; without, ADD fails.
    """

    form: str = ""
    values: tuple[str, ...] = ()
    ignores_others: bool = False


class Many(Kind, frozen=True):
    """A list."""

    of: Kind
    most: int | None = None


class Table(Kind, frozen=True):
    """An object whose keys are the user's: `name` says what they are, `form` how they look."""

    of: Kind
    name: str
    form: str = ""


class Record(Kind, frozen=True):
    """An object with these keys. With `is_open` any other key may stand beside them."""

    keys: tuple[Key, ...]
    is_open: bool = False


class IpamRecord(Kind, frozen=True):
    """The object `ipam`: `type` names an IPAM plugin, whose description has the other keys.

    `default` is the IPAM plugin of an object without `type`, where there is one.
    """

    default: str = ""


class DelegateRecord(Kind, frozen=True):
    """An object with keys of the main plugin that its `type` names; `default` without one."""

    default: str


class Anything(Kind, frozen=True):
    """Any JSON value."""


class Key(Struct, frozen=True):
    """A key: `name` as it is written (a plugin takes it in any case).

    `default` is the value that counts when the key is absent; where no value says it, `absent` does
    in words. `beyond` tells that the reference plugins do not have the key. `capability` is of
    a key in runtimeConfig: what a configuration declares so that runtimes give it.
    """

    name: str
    kind: Kind
    text: str
    default: Any = None
    absent: str = ""
    example: Any = None
    required: bool = False
    beyond: bool = False
    since: str = FIRST
    capability: str = ""


Get = Callable[[str], Any]


class Rule(Struct, frozen=True):
    """What keys have to do with each other. `broken` is given a function that looks up a value.

    The function takes a path (``ipam.type``), and gives None for a key that is absent. The finding
    is placed at the first of `keys` that the document has.
    """

    keys: tuple[str, ...]
    broken: Callable[[Get], Any]
    message: str
    advice: str = ""
    is_warning: bool = False


class Plugin(Struct, frozen=True):
    """A plugin. `place` is where it stands: ``main`` makes an interface, ``chained`` follows one
    that does, ``ipam`` is named in the `ipam` of another.

    `example` is its object in a list (of an IPAM plugin: the object `ipam`), and valid. `link_kind`
    is the kind of link that it makes, by the kernel's name, where a kernel may lack it.
    """

    name: str
    place: str
    about: str
    keys: tuple[Key, ...]
    example: dict[str, Any]
    args: tuple[Key, ...] = ()
    rules: tuple[Rule, ...] = ()
    link_kind: str = ""
    system: str = "linux"
