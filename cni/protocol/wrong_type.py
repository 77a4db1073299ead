"""The text for a value of the wrong type in a configuration; loaded only for such a value."""

from __future__ import annotations

from typing import Any

_GO_TYPES = {
    "int": "number",
    "float": "number",
    "str": "string",
    "bool": "bool",
    "array": "array",
    "object": "object",
    "null": "null",
}
_PYTHON_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "array": list}


def explain(text: str, value: Any, names: dict[str, str]) -> tuple[str, str]:
    """msgspec's "Expected `int`, got `str` - at `$.mtu`" in the words of the reference, and advice.

    `value` is the configuration with folded keys; `names` has each key as it was written.
    """
    parts = text.split("`")
    if not text.startswith("Expected `") or len(parts) < 5:
        return f"json: cannot unmarshal: {text}", ""
    wanted = parts[1].removesuffix(" | null")
    got = _GO_TYPES.get(parts[3], parts[3])
    steps = (
        parts[5][2:].replace("[...]", "[*]").split(".")
        if len(parts) > 5 and parts[5] != "$"
        else []
    )
    spelled, there = _followed(steps, value, wanted, names)
    path = ".".join(spelled) or "(top)"
    kind = "string" if wanted == "str" else wanted
    said = f"json: cannot unmarshal {got} into field {path} of type {kind}"
    return said, _advice(there, wanted)


def _followed(
    steps: list[str], value: Any, wanted: str, names: dict[str, str]
) -> tuple[list[str], Any]:
    """The steps with keys as they were written, and the value at their end.

    In a map msgspec writes ``[...]`` for the key: that means the first wrong value.
    """
    spelled = []
    for step in steps:
        key, *indices = step.replace("]", "").split("[")
        value = value.get(key) if isinstance(value, dict) else None
        shown = names.get(key, key)
        for index in indices:
            if index.isdigit() and isinstance(value, list) and int(index) < len(value):
                value = value[int(index)]
                shown += f"[{index}]"
            elif isinstance(value, dict):
                wrong_key = _first_wrong(value, wanted)
                value = value.get(wrong_key) if wrong_key is not None else None
                shown += f".{names.get(wrong_key, wrong_key)}" if wrong_key is not None else ""
            else:
                value, shown = None, f"{shown}[{index}]"
        spelled.append(shown)
    return spelled, value


def _first_wrong(value: dict[str, Any], wanted: str) -> str | None:
    right = _PYTHON_TYPES.get(wanted, dict)
    for key, item in value.items():
        is_bool = isinstance(item, bool) and wanted != "bool"
        if item is not None and (is_bool or not isinstance(item, right)):  # type: ignore[arg-type]
            return key
    return None


def _advice(value: Any, wanted: str) -> str:
    """How to write the value so that it has the wanted type; "" if that is not clear."""
    if isinstance(value, str) and wanted in ("int", "float", "bool"):
        words = ("true", "false") if wanted == "bool" else ()
        text = value.strip().lower()
        if text in words or (not words and text.lstrip("-").isdigit()):
            return f"write {text} without quotes"
        return "write true or false, without quotes" if words else "write a number, without quotes"
    if wanted == "str" and isinstance(value, bool | int | float):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return f'write it with quotes: "{text}"'
    if wanted == "array" and not isinstance(value, list):
        return "write a list, in [ and ]"
    if wanted == "object" and not isinstance(value, dict):
        return "write an object, in { and }"
    return ""
