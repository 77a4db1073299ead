"""Structural schemas of CustomResourceDefinitions: their rules, pruning and validation.

Source: kubernetes.io, Extend the Kubernetes API with CustomResourceDefinitions: "Specifying a
structural schema", "Field pruning", "Defaulting and Nullable", "Validation rules"; and API
concepts, "Validation for unrecognized or duplicate fields".
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

# What a structural schema may have outside of allOf, anyOf, oneOf and not.
KEYWORDS = frozenset(
    [
        "type",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "description",
        "title",
        "enum",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "uniqueItems",
        "multipleOf",
        "nullable",
        "default",
        "example",
        "externalDocs",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-int-or-string",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-map-type",
        "x-kubernetes-validations",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
    ]
)
TYPES = frozenset(["object", "array", "string", "integer", "number", "boolean"])

# Rules in CEL that are understood here: by hand, hence by their text.
RULES = {"self == oldSelf": lambda new, old: new == old}


def structural_faults(schema: Json, path: str = "") -> Iterator[str]:
    """Why an API server would not take the schema, or would call it non-structural."""
    where = path or "(root)"
    yield from _type_faults(schema, where)
    yield from _keyword_faults(schema, where)
    for name, child in schema.get("properties", {}).items():
        if not path and name == "metadata":
            if set(child) - {"type", "properties", "description"}:
                yield "metadata: only restrictions of name and generateName are allowed"
            continue
        yield from structural_faults(child, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from structural_faults(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from structural_faults(schema["additionalProperties"], f"{path}[*]")


def _keyword_faults(schema: Json, where: str) -> Iterator[str]:
    for keyword in sorted(set(schema) - KEYWORDS):
        yield f"{where}: {keyword} is not allowed"
    if "properties" in schema and "additionalProperties" in schema:
        yield f"{where}: properties and additionalProperties exclude each other"
    if schema.get("uniqueItems"):
        yield f"{where}: uniqueItems cannot be set to true"
    if schema.get("additionalProperties") is False:
        yield f"{where}: additionalProperties cannot be set to false"
    for rule in schema.get("x-kubernetes-validations", []):
        if rule["rule"] not in RULES:
            yield f"{where}: no translation of the rule {rule['rule']!r}"
    missing = set(schema.get("required", ())) - set(schema.get("properties", {}))
    if missing and "properties" in schema:
        yield f"{where}: required, but not described: {', '.join(sorted(missing))}"


def _type_faults(schema: Json, where: str) -> Iterator[str]:
    kind = schema.get("type")
    if schema.get("x-kubernetes-int-or-string"):
        if kind is not None:
            yield f"{where}: type must be empty beside x-kubernetes-int-or-string"
        return
    if kind is None:
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{where}: type must not be empty"
    elif kind not in TYPES:
        yield f"{where}: {kind!r} is no type"
    if kind == "array" and not isinstance(schema.get("items"), dict):
        yield f"{where}: an array needs items, one schema"


def prune(value: Any, schema: Json, path: str = "") -> list[str]:
    """Remove in place what the schema does not specify; return the paths of it."""
    if isinstance(value, dict):
        return _prune_object(value, schema, path)
    gone = []
    if isinstance(value, list):
        for index, item in enumerate(value):
            gone += prune(item, schema.get("items", {}), f"{path}[{index}]")
    return gone


def _prune_object(value: Json, schema: Json, path: str) -> list[str]:
    gone = []
    known = schema.get("properties", {})
    others = schema.get("additionalProperties")
    for key in list(value):
        at = f"{path}.{key}" if path else key
        if not path and key in ("apiVersion", "kind", "metadata"):
            continue
        if key in known:
            gone += prune(value[key], known[key], at)
        elif isinstance(others, dict):
            gone += prune(value[key], others, at)
        elif not schema.get("x-kubernetes-preserve-unknown-fields") and others is not True:
            del value[key]
            gone.append(at)
    return gone


def set_defaults(value: Any, schema: Json) -> None:
    """Apply `default`, and drop nulls of fields that are not nullable and have one."""
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            is_unset = name not in value or (value[name] is None and not child.get("nullable"))
            if "default" in child and is_unset:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                set_defaults(value[name], child)
    elif isinstance(value, list):
        for item in value:
            set_defaults(item, schema.get("items", {}))


def faults(value: Json, schema: Json, old: Json | None = None) -> list[tuple[str, str]]:
    """What is wrong with an object: path and text of each, as `details.causes` has them."""
    import jsonschema  # takes more than a second, in every worker that collects

    # As in draft 4, exclusiveMinimum and exclusiveMaximum of Kubernetes are booleans.
    validator = jsonschema.Draft4Validator(_json_schema(schema))
    found = []
    for error in sorted(validator.iter_errors(value), key=lambda e: list(map(str, e.path))):
        at = ".".join(map(str, error.absolute_path))
        found.append((at or "<root>", error.message))
    if not found:
        found += _rule_faults(value, schema, old, "")
    return found


def _rule_faults(new: Any, schema: Json, old: Any, path: str) -> list[tuple[str, str]]:
    """Transition rules are looked at only where there is an old value."""
    found = []
    if old is not None and new is not None:
        for rule in schema.get("x-kubernetes-validations", []):
            if not RULES[rule["rule"]](new, old):
                found.append((path, rule.get("message", f"failed rule: {rule['rule']}")))
    if isinstance(new, dict):
        for name, child in schema.get("properties", {}).items():
            if name in new:
                before = old.get(name) if isinstance(old, dict) else None
                at = f"{path}.{name}" if path else name
                found += _rule_faults(new[name], child, before, at)
    return found


def _json_schema(schema: Json) -> Json:
    """The same schema in JSON Schema's words."""
    made = {k: v for k, v in schema.items() if not k.startswith("x-") and k != "nullable"}
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if "properties" in made:
        made["properties"] = {k: _json_schema(v) for k, v in made["properties"].items()}
    for keyword in ("items", "additionalProperties"):
        if isinstance(made.get(keyword), dict):
            made[keyword] = _json_schema(made[keyword])
    return made
