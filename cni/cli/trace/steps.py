"""Steps of a request as a tree: one lies within another if its times do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..table import Column, Table

_MARKED = 3  # the slowest steps
_LEAST = 0.0005  # seconds: what takes less is never marked
MARK = "◀"
SHORT = 0.0001  # seconds


@dataclass
class Step:
    """`begin` and `end` are seconds of CLOCK_MONOTONIC; `count` is of equal ones in a row."""

    name: str
    detail: str
    begin: float
    end: float
    count: int = 1
    spent: float = 0.0  # of several in a row
    inside: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spent = self.spent or self.end - self.begin

    @property
    def own(self) -> float:
        """Its own time, without the steps within it, in seconds."""
        return max(self.spent - sum(each.spent for each in self.inside), 0.0)

    def as_dict(self, origin: float) -> dict[str, Any]:
        """For programs; times in milliseconds, the beginning counted from `origin`."""
        return {
            "step": self.name,
            "detail": self.detail,
            "at": milliseconds(self.begin - origin),
            "ms": milliseconds(self.spent),
            "steps": [each.as_dict(origin) for each in self.inside],
        }


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def tree(steps: list[Step]) -> list[Step]:
    """Steps within steps, in the order of their beginnings."""
    found: list[Step] = []
    open_ones: list[Step] = []
    # Copies, because `inside` is filled in here, and callers build several trees of one list.
    copies = [Step(each.name, each.detail, each.begin, each.end) for each in steps]
    # Of two steps that begin together the longer one is around the other.
    for each in sorted(copies, key=lambda step: (step.begin, -step.end)):
        while open_ones and open_ones[-1].end < each.end:
            open_ones.pop()
        (open_ones[-1].inside if open_ones else found).append(each)
        open_ones.append(each)
    return found


def joined(steps: list[Step]) -> list[Step]:
    """The tree; of equal steps in a row, which have none inside, one with their count."""
    found: list[Step] = []
    for each in steps:
        last = found[-1] if found else None
        same = last is not None and (last.name, last.detail) == (each.name, each.detail)
        if last is not None and same and not last.inside and not each.inside:
            last.count += 1
            last.spent += each.spent
            last.end = each.end
        else:
            inside = joined(each.inside)
            found.append(Step(each.name, each.detail, each.begin, each.end, inside=inside))
    return found


def walk(steps: list[Step], depth: int = 0) -> Iterator[tuple[int, Step]]:
    """All steps with their depth, as they are shown."""
    for each in steps:
        yield depth, each
        yield from walk(each.inside, depth + 1)


def slowest(steps: list[Step]) -> list[Step]:
    """The steps with the longest own times."""
    every = [each for _, each in walk(steps) if each.own >= _LEAST]
    return sorted(every, key=lambda each: -each.own)[:_MARKED]


def without_short(steps: list[Step]) -> list[Step]:
    """Without the steps that take less than SHORT."""
    kept = [each for each in steps if each.spent >= SHORT]
    return [
        Step(each.name, each.detail, each.begin, each.end, each.count, each.spent,
             without_short(each.inside))
        for each in kept
    ]  # fmt: skip


def table(steps: list[Step]) -> Table:
    """For people."""
    marked = slowest(steps)
    columns = [
        Column("MS", right=True),
        Column(""),
        Column("STEP"),
        Column("WHAT", cut="middle", least=12, drop=1),
    ]
    rows = []
    for depth, each in walk(steps):
        times = f" ×{each.count}" if each.count > 1 else ""
        mark = MARK if any(each is one for one in marked) else ""
        name = f"{'  ' * depth}{each.name}{times}"
        rows.append([f"{each.spent * 1000:.2f}", mark, name, each.detail])
    return Table(columns, rows)
