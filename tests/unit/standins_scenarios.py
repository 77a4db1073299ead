"""What test_standins has two interpreters do: one with the stand-ins of cni.standins, one without.

Executed as a module of the package cni, to which alone the stand-ins give their names. Each
function named scenario_… returns what the two must agree on.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Point(NamedTuple):
    """A point."""

    x: int
    y: int = 7
    label: str = "p"

    @property
    def sum(self) -> int:
        return self.x + self.y


class Shape(Protocol):
    def area(self) -> int: ...


class Box(Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content


class Named:
    def __init__(self, log: list[str], name: str, *, passes_over: bool = False) -> None:
        self.log, self.name, self.passes_over = log, name, passes_over

    def __enter__(self) -> str:
        self.log.append(f"enter {self.name}")
        return self.name

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        assert (kind, trace) == (
            type(error) if error else None,
            error.__traceback__ if error else None,
        )
        self.log.append(f"leave {self.name} {error!r}")
        return self.passes_over


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The value, or the kind of the exception."""
    try:
        return repr(function(*args, **kwargs))
    except Exception as error:
        return type(error).__name__


def chain(error: BaseException | None) -> list[str]:
    found = []
    while error is not None:
        found.append(repr(error))
        error = None if error.__suppress_context__ else error.__context__
    return found


def scenario_named_tuple() -> object:
    point = Point(1)
    return [
        repr(point),
        point == (1, 7, "p"),
        hash(point) == hash((1, 7, "p")),
        point < Point(2),
        point.sum,
        [base.__name__ for base in Point.__mro__],
        Point._fields,
        Point._field_defaults,
        Point.__match_args__,
        Point.__doc__,
        list(Point.__annotations__),
        point._asdict(),
        attempt(point._replace, y=8),
        attempt(point._replace, z=8),
        attempt(Point._make, [1, 2, "three"]),
        attempt(Point._make, [1]),
        attempt(Point, 1, 2, "three", 4),
        attempt(Point),
        attempt(Point, y=2),
        attempt(Point, 1, x=2),
        attempt(Point, 1, z=2),
        attempt(Point, x=1, label="l"),
        attempt(setattr, point, "x", 2),
        attempt(setattr, point, "other", 2),
        pickle.loads(pickle.dumps(point)) == point,
        type(pickle.loads(pickle.dumps(point))).__name__,
        f"{point.x} {point[1]} {point.label}",
        json.dumps(point),
        msgspec.json.encode(point).decode(),
    ]


def scenario_pattern() -> object:
    match Point(1, 2):
        case Point(1, y, label=label):
            return [y, label]
    return None


def scenario_generic() -> object:
    box: Box[int] = Box(3)
    return [box.content, Box[int](4).content, Box.__name__, attempt(Box)]


def _raise(error: BaseException) -> None:
    raise error


def scenario_exit_stack() -> object:
    """Every way of ending: errors in callbacks, in the body, passed over on the way."""
    log: list[Any] = []
    for body in (None, ValueError("body")):
        for failing in ((), ("a",), ("b",), ("a", "b"), ("a", "b", "c")):
            for forgiving in (None, 0, 1, 2, 3):
                log.append([repr(body), failing, forgiving])
                try:
                    with ExitStack() as stack:
                        for position, name in enumerate("abc"):
                            if position == forgiving:
                                stack.enter_context(Named(log, "over", passes_over=True))
                            call = _raise if name in failing else log.append
                            stack.callback(call, KeyError(name) if name in failing else name)
                        if forgiving == 3:
                            stack.enter_context(Named(log, "over", passes_over=True))
                        stack.enter_context(Named(log, "inner"))
                        if body is not None:
                            raise body
                    log.append("passed")
                except (ValueError, KeyError) as error:
                    log.append(chain(error))
                    error.__context__ = None
    return log


def scenario_exit_stack_in_handler() -> object:
    """Unwound by close() while an error is being handled, as the dispatcher does."""
    log: list[Any] = []
    stack = ExitStack()
    stack.callback(_raise, KeyError("first pushed"))
    stack.callback(log.append, "between")
    stack.callback(_raise, OSError("last pushed"))
    try:
        try:
            _raise(ValueError("the plugin's"))
        except ValueError:
            stack.close()
    except KeyError as error:
        log.append(chain(error))
    stack.close()
    moved = ExitStack()
    moved.callback(log.append, "moved")
    other = moved.pop_all()
    moved.close()
    log.append("nothing yet")
    other.close()
    log.append(attempt(ExitStack().enter_context, object()))
    log.append(stack.callback(log.append, "x") == log.append)
    return log


@contextmanager
def managed(log: list[Any], how: str) -> Iterator[str]:
    """About `how`."""
    log.append("before")
    if how == "nothing":
        return
    try:
        yield how
        if how == "twice":
            yield "again"
    except ValueError as error:
        log.append(repr(error))
        if how == "passes over":
            return
        if how == "other":
            raise KeyError("other") from error
        if how == "yields again":
            yield "again"
        raise
    finally:
        if "again" not in how and how != "twice":  # when that one ends depends on the version
            log.append("after")


def scenario_contextmanager() -> object:
    log: list[Any] = [managed.__name__, managed.__doc__]
    for how in ("plain", "passes over", "other", "nothing", "twice", "yields again"):
        for error in (None, ValueError("v"), OSError("o"), StopIteration("s")):
            log.append([how, repr(error)])
            try:
                with managed(log, how) as value:
                    log.append(value)
                    if error is not None:
                        raise error
                log.append("passed")
            except Exception as raised:
                log.append([chain(raised), repr(raised.__cause__), raised is error])
    return log


def scenario_suppress() -> object:
    log = []
    for error in (FileNotFoundError("f"), OSError("o"), ValueError("v")):
        try:
            with suppress(OSError, KeyError):
                raise error
            log.append("passed")
        except ValueError as raised:
            log.append(repr(raised))
    with suppress(OSError):
        log.append("nothing raised")
    return log


class Base(msgspec.Struct, rename="camel"):
    type: str = ""
    some_key: int = 1


class Leaf(Base):
    numbers: list[int] = []
    any_keys: dict[str, Any] = {}
    maybe: str | None = None
    either: int | str | list[str] = 0
    inner: Base = msgspec.field(default_factory=Base)
    inners: list[Base] | None = None
    pair: tuple[int, str] = (1, "a")
    many: tuple[int, ...] = ()
    named: bool = msgspec.field(default=False, name="other-name")
    raw: msgspec.Raw = msgspec.Raw(b"null")
    real: float = 0.5
    nothing: None = None
    whatever: Any = None
    recursive: Leaf | None = None


class Tagged(msgspec.Struct, tag="one", omit_defaults=True, frozen=True):
    a: int = 1


class Tagged2(msgspec.Struct, tag="two", kw_only=True, forbid_unknown_fields=True):
    b: int


class Tags(msgspec.Struct, array_like=True):
    tagged: Tagged | Tagged2 = msgspec.field(default_factory=Tagged)


VALUES: list[object] = [
    None, True, 1, -1, 2**70, 0.25, "", "text", [], [1], ["a"], [None], {}, {"a": 1}, {"type": 1},
    {"type": "two", "b": 1}, {"type": "two"}, {"type": "one", "a": 2}, {"type": "three"},
    [{"someKey": "x"}], {"someKey": 3}, [1, "a"], [{"type": "two", "b": 2}], {"numbers": [1, 2.5]},
]  # fmt: skip
KEYS = [
    "type",
    "someKey",
    "some_key",
    "numbers",
    "anyKeys",
    "maybe",
    "either",
    "inner",
    "inners",
    "pair",
    "many",
    "other-name",
    "raw",
    "real",
    "nothing",
    "whatever",
    "recursive",
    "unknown",
]


def shown(value: object) -> str:
    return re.sub(r" at 0x\w+", "", repr(value))


def decoded(document: object, kind: Any) -> str:
    """What is decoded, or the text of the error."""
    data = msgspec.json.encode(document)
    try:
        value = msgspec.json.decode(data, type=kind)
        assert msgspec.convert(msgspec.json.decode(data), kind) == value or b"raw" in data
        return f"{shown(value)} {msgspec.json.encode(value).decode()}"
    except msgspec.MsgspecError as error:
        return f"{type(error).__name__}: {error}"


def scenario_struct() -> object:
    found = [decoded({key: value}, Leaf) for key in KEYS for value in VALUES]
    found += [decoded(value, kind) for kind in (Tags, Tagged, Tagged | Tagged2) for value in VALUES]
    found += [Leaf.__struct_fields__, Leaf.__struct_encode_fields__, shown(Leaf(some_key=2))]
    found += [attempt(Tagged, b=1), attempt(setattr, Tagged(), "a", 2), Tagged() == Tagged(a=1)]
    found += [shown(pickle.loads(pickle.dumps(kind))) for kind in (Leaf(), Tagged2(b=3))]
    found += [msgspec.json.format(b'{"a":[1,2]}', indent=4).decode()]
    return found


def scenario_json_errors() -> object:
    broken = [b"", b"{", b'{"a":', b"[1,]", b"nul", b'"\xff"', b'{"a":1}x', b"[" * 3000, b"1e999"]
    found = []
    for data in broken:
        try:
            found.append(repr(msgspec.json.decode(data)))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def scenario_plugins() -> object:
    """Every plugin's Conf: the documented examples, and each key with values of every kind."""
    from cni.dispatch import TABLE
    from cni.protocol import config
    from cni.protocol.errors import CNIError

    found = []
    for name, plugin in TABLE.items():
        __import__(plugin.module)
        kind = sys.modules[plugin.module].Conf  # type: ignore[attr-defined]
        documents = [
            d
            for d in DOCUMENTS
            if d.get("type") == name
            or name in ("cluster", "host-local", "static", "dhcp", "whereabouts")
        ]
        names = {key: value for d in documents for key, value in d.items()}
        names |= dict.fromkeys(kind.__struct_encode_fields__)
        documents += [{"name": "n", "type": name, key: value} for key in names for value in VALUES]
        for document in documents:
            try:
                found.append(f"{name} {config.convert(document, kind, 'wrong: ')!r}")
            except CNIError as error:
                found.append(f"{name} {error.code} {error.msg} {error.details}")
    return found


def scenario_foreign() -> object:
    """The real modules for everybody else, also after ours asked for a stand-in's names."""
    import collections
    import dataclasses
    import enum
    import signal
    import typing
    import uuid

    space: dict[str, Any] = {"__name__": "elsewhere"}
    source = """
import collections, contextlib, signal, typing
from collections import OrderedDict, abc
from contextlib import *
from typing import *
@runtime_checkable
class P(Protocol):
    x: int
class N(NamedTuple):
    a: int = 1
found = [repr(Optional[Any]), P.__mro__[1].__module__, get_type_hints(N), signal.SIGTERM.name,
         contextlib.ExitStack.__module__, nullcontext.__module__, Any.__module__,
         abc.Mapping.__name__,
         typing.Any is Any, hasattr(typing, "nonsense"),
         hasattr(collections, "nonsense")]
"""
    exec(source, space)
    made = dataclasses.make_dataclass("D", [("a", typing.Any)])
    return [
        [str(part) for part in space["found"]],
        repr(made(1)),
        str(enum.Enum("E", "a b").a),  # type: ignore[attr-defined]
        len(str(uuid.uuid4())),
        collections.OrderedDict(a=1) == {"a": 1},
        collections.abc.Mapping.__name__,
        int(signal.SIGTERM),
        signal.Signals(15).name,
    ]


DOCUMENTS: list[dict[str, Any]] = json.loads(os.environ.get("DOCUMENTS", "[]"))
