"""What `make test` takes of a test's combinations: each row of each `parametrize`, CI the rest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.harness.combinations import needed, rows_of
from tests.harness.everyday import FEW_ROWS, LONG, ONE_ROW, long_ones, many_rows

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("lengths", [(3, 4), (4, 3), (2, 2, 5), (1, 6), (7,)], ids=str)
def test_every_row_once_and_no_more_than_the_longest_needs(lengths: tuple[int, ...]) -> None:
    every = list(product(*[[str(row) for row in range(length)] for length in lengths]))
    taken = [each for each, is_needed in zip(every, needed(every), strict=True) if is_needed]
    for place, length in enumerate(lengths):
        assert {each[place] for each in taken} == {str(row) for row in range(length)}
    assert len(taken) == max(lengths)


def test_a_combination_that_is_left_out_of_the_product() -> None:
    """A function may skip some: then it takes more to have every row."""
    assert needed([("a", "x"), ("a", "y"), ("b", "x")]) == [True, True, True]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("letter", ["a-b", "c"])
def test_rows_are_told_from_each_other(
    request: pytest.FixtureRequest, letter: str, number: int
) -> None:
    """pytest keeps them in an attribute that is not public."""
    assert rows_of(request.node) == [letter, str(number)]


def collected(*args: str) -> set[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CNI_", "PYTEST_"))}
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", __file__, *args]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
    return {line for line in done.stdout.splitlines() if "rows_are_told" in line}


def test_the_rest_is_slow() -> None:
    everyday, every = collected("-m", "not slow"), collected()
    assert len(everyday) == 2
    assert len(every) == 4
    assert everyday < every


SHARED = tuple(f"tests/harness/{name}.py" for name in ("contract", "start_cases", "store_contract"))


@pytest.mark.parametrize("path", sorted({*LONG, *ONE_ROW, *FEW_ROWS}))
def test_what_is_left_out_exists(path: str) -> None:
    """A test that has another name now would be run every day, unnoticed."""
    texts = "".join((ROOT / each).read_text() for each in (path, *SHARED))
    defined = set(re.findall(r"def (test_\w+)", texts))
    tables = (LONG.get(path, ()), ONE_ROW.get(path, {}), FEW_ROWS.get(path, ()))
    names = [name.rpartition(":")[2] for table in tables for name in table]
    assert set(names) <= defined
    assert len(names) == len(set(names)), "a test is in one table"


class Item:
    """As much of an item as is looked at."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid
        self.callspec = type("", (), {"_idlist": [nodeid.partition("[")[2].rstrip("]")]})


def test_of_one_row_the_others_are_left_out_only_if_it_is_there() -> None:
    path, tests = next(iter(ONE_ROW.items()))
    name, row = next(iter(tests.items()))
    one, another = Item(f"{path}::{name}[{row}]"), Item(f"{path}::{name}[another]")
    assert long_ones([one, another]) == [another]  # type: ignore[list-item, comparison-overlap]
    assert long_ones([another]) == []  # type: ignore[list-item]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 30])
@pytest.mark.parametrize("file", ["", "self-contained"])
def test_of_many_rows_one_or_two_are_run(
    monkeypatch: pytest.MonkeyPatch, file: str, count: int
) -> None:
    monkeypatch.setenv("CNI_TEST_FILES", file)
    path, (name, *_) = next(iter(FEW_ROWS.items()))
    items = [Item(f"{path}::{name}[{number}]") for number in range(count)]
    left_out = many_rows(items)  # type: ignore[arg-type]
    taken = {item for item in items if item not in left_out}
    assert taken == ({items[0], items[-1]} if file else {items[-1]})
    assert many_rows([Item(f"{path}::another[{number}]") for number in range(count)]) == []  # type: ignore[list-item]
