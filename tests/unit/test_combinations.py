"""What `make test` takes of a test's combinations: each row of each `parametrize`, CI the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.harness.combinations import needed, rows_of

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
    everyday, rest = collected("-m", "not slow"), collected("-m", "slow")
    assert len(everyday) == len(rest) == 2
    assert everyday | rest == collected()
