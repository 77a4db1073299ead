"""Settings of recording that have no effect, for `cni doctor`, `validate` and `serve`.

Requests do not report such a setting, and do not fail because of it: they ignore it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from cni import files
from cni.protocol import gojson
from cni.record import (
    _FILE_KEY,
    _FILE_VARIABLE,
    _LEVEL_KEY,
    _LEVEL_VARIABLE,
    _MAX_NODE_FILE,
    JOURNAL,
    LEVELS,
    NODE_VARIABLE,
    node_file,
)

from .otlp import read_settings

_NAMES = {_LEVEL_KEY: "logLevel", _FILE_KEY: "logFile"}
_NUMBERS = (
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
)
_PAIRS = (
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_RESOURCE_ATTRIBUTES",
)
_BASIC_SAMPLERS = ("always_on", "always_off", "traceidratio")
_SAMPLERS = (*_BASIC_SAMPLERS, *(f"parentbased_{name}" for name in _BASIC_SAMPLERS))


class Wrong(NamedTuple):
    """A setting without effect. `where` is the file or the variable."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def all_of(env: Mapping[str, str]) -> list[Wrong]:
    """The wrong settings of the node's file, and of the variables in `env`. Raises nothing."""
    return [*_of_node(env), *_of_log(env), *_of_traces(env)]


def _of_node(env: Mapping[str, str]) -> Iterator[Wrong]:
    path = node_file(env)
    try:
        data = files.read(path, _MAX_NODE_FILE, follow=True)
    except FileNotFoundError:
        # else nobody has said that there is a file
        if env.get(NODE_VARIABLE):
            yield Wrong(path, f"{NODE_VARIABLE} names it, and it is not there")
        return
    except OSError as error:
        yield Wrong(path, f"cannot be read: {(error.strerror or str(error)).lower()}")
        return
    try:
        value = msgspec.json.decode(data)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        yield Wrong(path, f"is no JSON, so all of it is ignored: {_why_no_json(data)}")
        return
    if not isinstance(value, dict):
        yield Wrong(path, 'is no JSON object, as {"logLevel": "all"}: all of it is ignored')
        return
    for key, each in value.items():
        yield from _of_key(path, key, each)


def _why_no_json(data: bytes) -> str:
    try:
        gojson.decode(data)
    except ValueError as error:
        return str(error)
    return "it has bytes that are no UTF-8, a number that is too large, or is nested too deeply"


def _of_key(path: str, key: str, value: Any) -> Iterator[Wrong]:
    folded = key.lower()
    if folded not in _NAMES:
        yield Wrong(path, f"unknown key {key}{_near(key)}; the keys are logLevel and logFile")
    elif folded == _LEVEL_KEY and value not in LEVELS:
        yield Wrong(path, f"logLevel is {_shown(value)}, and must be one of {', '.join(LEVELS)}")
    elif folded == _FILE_KEY and not _is_file(value):
        yield Wrong(path, f"logFile is {_shown(value)}, and must be journal or an absolute path")


def _near(key: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key.lower(), _NAMES, 1)
    return f"; did you mean {_NAMES[near[0]]}?" if near else ""


def _is_file(value: Any) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    return value == JOURNAL or value.startswith("/")


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) < 80 else f"{text[:80]}…"


def _of_log(env: Mapping[str, str]) -> Iterator[Wrong]:
    level, file = env.get(_LEVEL_VARIABLE, ""), env.get(_FILE_VARIABLE, "")
    if level and level not in LEVELS:
        yield Wrong(_LEVEL_VARIABLE, f"is {level!r}, and must be one of {', '.join(LEVELS)}")
    if file and not _is_file(file):
        yield Wrong(_FILE_VARIABLE, f"is {file!r}, and must be journal or an absolute path")


def _of_traces(env: Mapping[str, str]) -> Iterator[Wrong]:
    try:
        read_settings(env)
    except ValueError as error:
        yield Wrong("OTEL_EXPORTER_OTLP_ENDPOINT", f"no spans are sent: {error}")
    for name in _NUMBERS:
        text = env.get(name, "")
        if text and not (text.isascii() and text.isdigit() and int(text)):
            yield Wrong(name, f"is {text!r}, and must be a whole number above 0")
    sampler, ratio = env.get("OTEL_TRACES_SAMPLER", ""), env.get("OTEL_TRACES_SAMPLER_ARG", "")
    if sampler and sampler not in _SAMPLERS:
        names = ", ".join(_SAMPLERS)
        yield Wrong("OTEL_TRACES_SAMPLER", f"is {sampler!r}, and must be one of {names}")
    if ratio and not _is_ratio(ratio):
        yield Wrong("OTEL_TRACES_SAMPLER_ARG", f"is {ratio!r}, and must be a number from 0 to 1")
    for name in _PAIRS:
        # A header's content is a secret; the number of wrong headers is not.
        wrong = [each for each in env.get(name, "").split(",") if each.strip() and "=" not in each]
        if wrong:
            yield Wrong(name, f"{len(wrong)} of its parts are not of the form KEY=VALUE")


def _is_ratio(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
