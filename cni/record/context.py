"""The trace that a request belongs to: TRACEPARENT of its environment (w3.org/TR/trace-context)."""

from __future__ import annotations

from typing import NamedTuple

_HEX = frozenset("0123456789abcdef")
_SAMPLED = 1  # a bit of the flags
_LONGEST = 512  # characters: later versions may be longer


class Parent(NamedTuple):
    """The caller's span. `trace_id` and `span_id` are lower-case hexadecimal digits."""

    trace_id: str
    span_id: str
    is_sampled: bool


def parse(text: str) -> Parent | None:
    """The caller's span; None for anything that the specification does not allow.

    In later versions only the first four fields are read, as the specification demands.
    """
    if len(text) > _LONGEST:
        return None
    version, _, rest = text.partition("-")
    fields = rest.split("-")
    if not _is_hex(version, 2) or version == "ff" or len(fields) < 3:
        return None
    trace_id, span_id, flags = fields[:3]
    if version == "00" and len(fields) > 3:
        return None
    known = _is_hex(trace_id, 32) and _is_hex(span_id, 16) and _is_hex(flags, 2)
    if not known or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def traceparent(trace_id: str, span_id: str, *, is_sampled: bool) -> str:
    """The value of TRACEPARENT for a program that is called."""
    return f"00-{trace_id}-{span_id}-{'01' if is_sampled else '00'}"


def _is_hex(text: str, size: int) -> bool:
    return len(text) == size and _HEX.issuperset(text)
