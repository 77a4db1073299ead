"""A description in words: what a value is, and what holds without it."""

from __future__ import annotations

import json

from .forms import FORMS
from .model import (
    FIRST,
    DelegateRecord,
    Flag,
    IpamRecord,
    Key,
    Kind,
    Many,
    Number,
    Record,
    Table,
    Text,
)

_LARGE = 1 << 31


def kind(value: Kind) -> str:  # noqa: PLR0911 one answer for each kind
    """What a value is: ``integer, 68 to 65535, or 0``."""
    if isinstance(value, Flag):
        return "bool"
    if isinstance(value, Number):
        return _number(value)
    if isinstance(value, Text):
        return _text(value)
    if isinstance(value, Many):
        most = f", at most {value.most}" if value.most is not None else ""
        return f"list of {_plural(value.of)}{most}"
    if isinstance(value, Table):
        return f"object: {value.name} → {kind(value.of)}"
    if isinstance(value, Record | IpamRecord | DelegateRecord):
        return "object"
    return "any"


def _plural(value: Kind) -> str:
    if isinstance(value, Many):
        return f"lists of {_plural(value.of)}"
    if isinstance(value, Record):
        return "objects"
    plural = {"address": "addresses", "prefix": "prefixes", "span": "addresses or prefixes"}
    if isinstance(value, Text):
        return plural.get(value.form, "texts")
    return kind(value)


def _number(value: Number) -> str:
    text = "integer"
    if value.unit:
        text += f" ({value.unit})"
    if value.high is not None and value.high < _LARGE:
        text += f", {value.low} to {value.high}"
    elif value.low:
        text += f", at least {value.low}"
    also = [
        each
        for each in ("0" if value.or_zero else "", f"`{value.word}`" if value.word else "")
        if each
    ]
    return f"{text}, or {' or '.join(also)}" if also else text


def _text(value: Text) -> str:
    if value.values:
        return ", ".join(f"`{each}`" for each in value.values)
    plain = {
        "address": "address",
        "prefix": "prefix",
        "mac": "MAC address",
        "ownmac": "MAC address",
        "path": "path",
        "interface": "name of a link",
        "pci": "PCI address",
        "request": "address or prefix",
    }
    return plain.get(value.form, "text")


def form(value: Kind) -> str:
    """More of the form of a text: ``an IP address, like 10.1.2.3``; empty if there is no more."""
    if isinstance(value, Text) and value.form:
        about = FORMS[value.form]
        return f"{about.name}, like {about.example}"
    return ""


def default(key: Key) -> str:
    """What holds without the key."""
    if key.required:
        return "required"
    if key.default is not None and key.default not in ([], {}):
        text = json.dumps(key.default)
        return text.strip('"')
    if key.absent:
        return key.absent
    return "none" if key.default is not None else ""


def remarks(key: Key) -> list[str]:
    """Where the key comes from, as sentences."""
    said = []
    if key.since != FIRST:
        said.append(f"Since {key.since}.")
    if key.beyond:
        said.append("Not in the reference plugins.")
    return said


def example(key: Key) -> str:
    """``"mtu": 1400``; empty without an example."""
    if key.example is None:
        return ""
    return f'"{key.name}": {json.dumps(key.example, ensure_ascii=False)}'
