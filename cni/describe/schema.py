"""Descriptions as JSON Schema, draft 2020-12, for editors and admission webhooks.

A schema is narrower than the plugins: keys have to be spelled as described (a plugin takes any
case), no value is null, and a key that nobody reads is refused. Other plugins' objects are free.
What no schema can say (ranges that overlap, keys that exclude each other) `cni validate` says.
"""

from __future__ import annotations

from typing import Any

from . import words
from .catalogue import IPAM_NAMES, NAMES, capabilities, ipam_keys, plugin, whole
from .common import LIST
from .forms import FORMS
from .model import (
    DelegateRecord,
    Flag,
    IpamRecord,
    Key,
    Kind,
    Many,
    Number,
    Plugin,
    Record,
    Table,
    Text,
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Keys of tools: reserved names of the specification (with a dot), and comments.
_FOREIGN = r"[./]|^[$_]|^x-"

Schema = dict[str, Any]


def of_list() -> Schema:
    """A network configuration: a list of plugins, or a single plugin of any name."""
    keys = _properties(tuple(key for key in LIST if key.name != "plugins"))
    keys["plugins"] = {
        "description": "the plugins, in the order of ADD",
        "type": "array",
        "minItems": 1,
        "items": {"$ref": "#/$defs/plugin"},
    }
    return {
        "$schema": DIALECT,
        "title": "CNI network configuration list",
        "type": "object",
        "properties": keys,
        "required": ["name"],
        "patternProperties": {f"{_FOREIGN}|^nerdctl": True},
        "additionalProperties": False,
        "$defs": {"plugin": _any_plugin(), **_definitions(NAMES)},
    }


def of_plugin(described: Plugin) -> Schema:
    """The object of one plugin; of an IPAM plugin: the object `ipam`."""
    name = described.name
    head = {"$schema": DIALECT, "title": f"CNI plugin {name}", "description": described.about}
    if described.place == "ipam":
        return {**head, **_ipam(name)}
    # flannel's delegate may be any of them.
    names = NAMES if name == "flannel" else (name,)
    return {**head, **_main(described), "$defs": _definitions(names, without=name)}


def _definitions(names: tuple[str, ...], without: str = "") -> Schema:
    definitions: Schema = {}
    for name in names:
        described = plugin(name)
        if described is not None and described.place != "ipam" and name != without:
            definitions[name] = _main(described)
    for name in IPAM_NAMES:
        definitions[f"ipam-{name}"] = _ipam(name)
    definitions["ipam"] = _any_ipam("")
    definitions["ipam-default-host-local"] = _any_ipam("host-local")
    return definitions


def _any_plugin() -> Schema:
    cases = [
        {"if": _has_type(name), "then": {"$ref": f"#/$defs/{name}"}}
        for name in NAMES
        if name not in IPAM_NAMES
    ]
    return {
        "type": "object",
        "properties": {"type": {"type": "string", "minLength": 1}},
        "required": ["type"],
        "allOf": cases,
    }


def _any_ipam(default: str) -> Schema:
    """The object `ipam`, by its type."""
    cases: list[Schema] = [
        {"if": _has_type(name), "then": {"$ref": f"#/$defs/ipam-{name}"}} for name in IPAM_NAMES
    ]
    if default:
        absent = {"not": {"required": ["type"]}}
        cases.append({"if": absent, "then": {"$ref": f"#/$defs/ipam-{default}"}})
    return {
        "type": "object",
        "properties": {"type": {"type": "string"}},
        "allOf": cases,
    }


def _has_type(name: str) -> Schema:
    return {"properties": {"type": {"const": name}}, "required": ["type"]}


def _main(described: Plugin) -> Schema:
    """The object of a main or chained plugin. What IPAM reads beside its object is in it, too."""
    # Which IPAM plugin the object names is not known here, so what any of them reads is allowed.
    keys = {key.name: key for name in IPAM_NAMES for key in whole(described, name).keys}
    properties = _properties(tuple(keys.values()))
    for name in ("args", "runtimeConfig"):
        properties[name] = _merged(
            [_of(key.kind) for each in IPAM_NAMES for key in _named(described, each, name)]
        )
    # After the others, which describe `type` as any text.
    properties["type"] = {"const": described.name, "description": described.about}
    known = sorted(set().union(*map(_capabilities, (described.name, *IPAM_NAMES))))
    properties["capabilities"]["examples"] = [dict.fromkeys(known, True)]
    required = [key.name for key in described.keys if key.required]
    return {
        "description": described.about,
        "type": "object",
        "properties": properties,
        "required": ["type", *required],
        "patternProperties": {_FOREIGN: True},
        "additionalProperties": False,
    }


def _named(described: Plugin, ipam: str, name: str) -> list[Key]:
    return [key for key in whole(described, ipam).keys if key.name == name]


def _capabilities(name: str) -> set[str]:
    described = plugin(name)
    return capabilities(described) if described is not None else set()


def _merged(schemas: list[Schema]) -> Schema:
    """Objects as one that has the properties of all."""
    out = dict(schemas[0])
    for each in schemas[1:]:
        properties = dict(out.get("properties", {}))
        for name, value in each.get("properties", {}).items():
            old = properties.get(name, value)
            both = "properties" in old and "properties" in value
            properties[name] = _merged([old, value]) if both else old
        out["properties"] = properties
    return out


def _ipam(name: str) -> Schema:
    described = plugin(name)
    record = _record(ipam_keys(name))
    record["properties"]["type"] = {"const": name}
    if described is not None:
        record["description"] = described.about
    return record


def _properties(keys: tuple[Key, ...]) -> Schema:
    return {key.name: _of_key(key) for key in keys}


def _of_key(key: Key) -> Schema:
    schema = _of(key.kind)
    about = " ".join([key.text, *(f"({each})" for each in words.remarks(key))])
    missing = f"; without it: {key.absent}" if key.absent else ""
    extra: Schema = {"description": f"{about}{missing}"} if about else {}
    if key.default is not None:
        extra["default"] = key.default
    if key.example is not None:
        extra["examples"] = [key.example]
    return {**extra, **schema}


def _of(kind: Kind) -> Schema:  # noqa: PLR0911 one answer for each kind
    if isinstance(kind, Flag):
        if kind.or_text:
            words_too = {"type": "string", "pattern": "^([tT][rR][uU][eE]|[fF][aA][lL][sS][eE])$"}
            return {"anyOf": [{"type": "boolean"}, words_too]}
        return {"type": "boolean"}
    if isinstance(kind, Number):
        return _number(kind)
    if isinstance(kind, Text):
        return _text(kind)
    if isinstance(kind, Many):
        schema: Schema = {"type": "array", "items": _of(kind.of)}
        if kind.most is not None:
            schema["maxItems"] = kind.most
        return schema
    if isinstance(kind, Table):
        names = {"pattern": FORMS[kind.form].pattern} if kind.form else {}
        own = {"propertyNames": names} if names else {}
        return {"type": "object", **own, "additionalProperties": _of(kind.of)}
    if isinstance(kind, Record):
        return _record(kind)
    if isinstance(kind, IpamRecord):
        return {"$ref": f"#/$defs/ipam{'-default-' + kind.default if kind.default else ''}"}
    return {"type": "object"} if isinstance(kind, DelegateRecord) else {}


def _number(kind: Number) -> Schema:
    bounds: Schema = {}
    if kind.low is not None:
        bounds["minimum"] = kind.low
    if kind.high is not None:
        bounds["maximum"] = kind.high
    # 0 is outside of the bounds, and means that the key is not given.
    if kind.or_zero and kind.low:
        number: Schema = {"type": "integer", "anyOf": [{"const": 0}, bounds]}
    else:
        number = {"type": "integer", **bounds}
    return {"anyOf": [number, {"const": kind.word}]} if kind.word else number


def _text(kind: Text) -> Schema:
    if kind.values:
        # "" counts as absent in each key.
        return {"type": "string", "anyOf": [{"enum": list(kind.values)}, {"const": ""}]}
    pattern = FORMS[kind.form].pattern if kind.form else ""
    if not pattern:
        return {"type": "string"}
    return {"type": "string", "anyOf": [{"pattern": pattern}, {"const": ""}]}


def _record(kind: Record) -> Schema:
    schema: Schema = {"type": "object", "properties": _properties(kind.keys)}
    required = [key.name for key in kind.keys if key.required]
    if required:
        schema["required"] = required
    if not kind.is_open:
        schema["patternProperties"] = {_FOREIGN: True}
        schema["additionalProperties"] = False
    return schema
