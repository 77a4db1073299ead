"""YAML 1.2 for what JSON can hold, in the block style that people read.

Only what cannot be taken for anything else is written without quotes; JSON's double quotes are also
YAML's. (PyYAML would do more, for 0.2 MB in the file; a test has it read what this writes.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from . import gojson

# Begins with a letter, so it is no number; no `: ` or ` #`, which end a plain scalar.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@+-]*")
# What some version of YAML takes for something else than a string.
_WORDS = frozenset(["null", "true", "false", "yes", "no", "on", "off", "y", "n"])


def encode(value: Any) -> str:
    """`value` (dict, list, str, int, float, bool, None) as a YAML document, ending in a newline."""
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _entry(f"{_scalar(str(key))}:", item)
    elif isinstance(value, list | tuple) and value:
        for item in value:
            yield from _item(item)
    else:
        yield _scalar(value)


def _entry(head: str, item: Any) -> Iterator[str]:
    if isinstance(item, dict | list | tuple) and item:
        yield head
        yield from (f"  {line}" for line in _lines(item))
    else:
        yield f"{head} {_scalar(item)}"


def _item(item: Any) -> Iterator[str]:
    first, *rest = _lines(item)
    if isinstance(item, list | tuple) and item:
        yield "-"
        rest = [first, *rest]
    else:
        yield f"- {first}"
    yield from (f"  {line}" for line in rest)


def _scalar(value: Any) -> str:
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if is_plain else gojson.quote(value)
    return gojson.encode(value).decode()
