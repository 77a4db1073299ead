"""JSON as Go's encoding/json writes it: what libcni hands to plugins and keeps in its cache."""

from __future__ import annotations

from typing import Any

import msgspec

from cni.protocol import gojson
from cni.protocol.errors import CNIError

# What Go escapes in strings by default, so that JSON may stand inside of HTML.
_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


def encode(value: Any) -> bytes:
    """Compact JSON; keys sorted below the top level, which keeps its order (a Go struct's)."""
    if isinstance(value, dict):
        value = {key: plain(item) for key, item in value.items()}
    data = msgspec.json.encode(value)
    # These bytes can only be parts of strings: outside of them JSON has none of these characters.
    for raw, escaped in _ESCAPES:
        if raw in data:
            data = data.replace(raw, escaped)
    return data


def encode_sorted(value: Any) -> bytes:
    """Compact JSON with the keys sorted at every level, as of a Go map."""
    return encode(plain(value))


def plain(value: Any) -> Any:
    """`value` with sorted keys, as Go prints it.

    A float without a fraction is an integer; bytes that are no UTF-8 (surrogates here) are U+FFFD.
    """
    if isinstance(value, dict):
        return {key: plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return text(value)
    # From 1e21 on Go writes an exponent.
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    return value


# The error for a document that is nested too deeply for the decoder's recursion.
TOO_DEEP = "objects and lists are nested too deeply"
TOO_DEEP_ADVICE = "no key lies below a few levels: look for brackets that are too many"


def text(value: str) -> str:
    """`value` with U+FFFD for bytes that are no UTF-8."""
    if value.isascii():
        return value
    try:
        data = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in value)
    return data.decode("utf-8", "replace")


def decode(data: bytes) -> Any:
    """The JSON document in `data`. Raises CNIError with the reason."""
    try:
        # msgspec is in C; Go's rules are applied only to what it refuses.
        return msgspec.json.decode(data)
    except RecursionError:
        raise CNIError(TOO_DEEP, TOO_DEEP_ADVICE) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError):
        return _as_go(data)


def _as_go(data: bytes) -> Any:
    """A document that only Go accepts as JSON; otherwise Go's error text with the position."""
    reader = gojson.Reader(data.decode("utf-8", "replace"))
    try:
        return reader.document()
    except ValueError as error:
        before = reader.text[: reader.at]
        column = len(before) - before.rfind("\n")
        place = f"line {before.count(chr(10)) + 1}, column {column}" if before.strip() else ""
        raise CNIError(str(error), place) from None


def decode_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; null is an empty one. Raises CNIError with the reason."""
    value = decode(data)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CNIError(
            f"json: cannot unmarshal {json_type(value)} into Go value of type "
            "map[string]interface {}"
        )
    return value


def json_type(value: Any) -> str:
    """The kind of a JSON value: ``object``, ``array``, ``string``, ``bool``, ``number``."""
    for kind, name in ((bool, "bool"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "number"


_GO_TYPES = {
    "object": "map[string]interface {}",
    "array": "[]interface {}",
    "number": "float64",
    "null": "<nil>",
}


def go_type(value: Any) -> str:
    """Go's name (%T) of the type to which a JSON value is decoded."""
    name = json_type(value)
    return _GO_TYPES.get(name, name)


def quote(value: str) -> str:
    """`value` in double quotes (%q)."""
    return msgspec.json.encode(text(value)).decode()
