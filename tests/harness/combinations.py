"""Which parameters, and which combinations of them, are for every day.

A test with several `parametrize` runs once for each combination of their rows: 9 plugins times 12
faults. Nearly always a defect shows in a row whatever it is combined with, so `make test` has each
row at least once, and CI has all combinations.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


def every_day(wanted: Collection[str], values: Iterable[str]) -> list[object]:
    """The values, for `parametrize`: all that are not wanted every day are slow."""
    values = list(values)
    assert set(wanted) <= set(values)
    return [
        each if each in wanted else pytest.param(each, marks=pytest.mark.slow) for each in values
    ]


def more_combinations(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items whose rows are all in others of the same test function."""
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if len(rows_of(item)) > 1:
            tests[item.nodeid.partition("[")[0]].append(item)
    return [
        item
        for alike in tests.values()
        for item, is_needed in zip(alike, needed([rows_of(each) for each in alike]), strict=True)
        if not is_needed
    ]


def rows_of(item: pytest.Item) -> Sequence[str]:
    """The id of the row that each `parametrize` contributes."""
    callspec = getattr(item, "callspec", None)
    return () if callspec is None else callspec._idlist


def needed(combinations: Sequence[Sequence[str]]) -> list[bool]:
    """Which are enough for each row to be in one; few, and always the same.

    First those that are new in every row, then those that are new in any.
    """
    cells = [set(enumerate(each)) for each in combinations]
    seen: set[tuple[int, str]] = set()
    taken = [False] * len(cells)
    for new_in_every in (True, False):
        for number, cell in enumerate(cells):
            if cell.isdisjoint(seen) if new_in_every else not cell <= seen:
                taken[number] = True
                seen |= cell
    return taken
