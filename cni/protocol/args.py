"""CNI_ARGS: ``K=V;K2=V2`` (docs/spec/protocol.md §5)."""

from __future__ import annotations

from .errors import CNIError

_TRUE, _FALSE = ("1", "true"), ("0", "false")


def parse(text: str, known: frozenset[str]) -> dict[str, str]:
    """The pairs whose key is in `known`; an empty `text` gives none.

    Keys are case-sensitive. An unknown key is an error (CNIError) unless IgnoreUnknown is true.
    """
    if not text:
        return {}
    pairs: dict[str, str] = {}
    unknown = []
    ignore = False
    for piece in text.split(";"):
        key, equals, value = piece.partition("=")
        if not equals or "=" in value:
            raise CNIError(f'ARGS: invalid pair "{piece}"', "CNI_ARGS has the form K=V;K2=V2")
        if key == "IgnoreUnknown":
            ignore = _boolean(piece, value)
        elif key in known:
            pairs[key] = value
        else:
            unknown.append(f'"{piece}"')
    if unknown and not ignore:
        raise CNIError(
            f"ARGS: unknown args [{' '.join(unknown)}]",
            "add IgnoreUnknown=1 to CNI_ARGS to pass keys that this plugin does not read; it reads "
            + (", ".join(sorted(known)) or "none"),
        )
    return pairs


def _boolean(pair: str, value: str) -> bool:
    lowered = value.lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise CNIError(
        f'ARGS: error parsing value of pair "{pair}": boolean unmarshal error: '
        f"invalid input {value}"
    )
