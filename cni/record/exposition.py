"""Metrics in the text format of Prometheus (version 0.0.4).

No package is used: the format has three kinds of lines, and prometheus_client would add 0.3 MB and
a registry with locks, while every counter here is a number in shared memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LONGEST_LABEL = 128  # characters

Labels = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """A value; `suffix` follows the family's name (``_bucket``)."""

    value: float
    labels: Labels = ()
    suffix: str = ""


class Family(NamedTuple):
    """A metric with all its samples; `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    about: str
    samples: Sequence[Sample]


def labels(values: Mapping[str, object]) -> Labels:
    """Labels of bounded length; replaces bytes that are no UTF-8."""
    out = []
    for key, value in values.items():
        text = str(value)[:_LONGEST_LABEL]
        out.append((key, text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")))
    return tuple(out)


def histogram(
    counts: Sequence[int], bounds: Sequence[float], total: float, of: Labels
) -> list[Sample]:
    """The samples of one histogram: `counts` has one number more than `bounds`.

    The last number counts the values above all bounds.
    """
    out, so_far = [], 0
    for count, bound in zip(counts, (*map(_number, bounds), "+Inf"), strict=True):
        # Buckets of Prometheus are cumulative.
        so_far += count
        out.append(Sample(so_far, (*of, ("le", bound)), "_bucket"))
    return [*out, Sample(total, of, "_sum"), Sample(so_far, of, "_count")]


def text(families: Iterable[Family]) -> str:
    """The metrics as a scrape gets them."""
    return "".join(line for family in families for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {_escaped(family.about)}\n"
    yield f"# TYPE {family.name} {family.kind}\n"
    for sample in family.samples:
        pairs = ",".join(f'{key}="{_quoted(value)}"' for key, value in sample.labels)
        braced = f"{{{pairs}}}" if pairs else ""
        yield f"{family.name}{sample.suffix}{braced} {_number(sample.value)}\n"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(value: str) -> str:
    return _escaped(value).replace('"', '\\"')
