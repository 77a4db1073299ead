"""The bench's limits: what is compared with what."""

from __future__ import annotations

from tests.bench import limits
from tests.bench.cases import CASES
from tests.bench.chain import Rates
from tests.bench.measure import CPU, WALL, Row, Summary


def summary(wall: float, cpu: float) -> Summary:
    return Summary(30, wall, wall, wall, cpu)


def row(case: str, verb: str, **times: tuple[float, float]) -> Row:
    return Row(case, verb, {name: summary(*each) for name, each in times.items()})


def test_limits_are_of_cases_that_there_are() -> None:
    measured = {case.name for case in CASES} | {"chain", "chain (nftables)"}
    assert {case for case, _ in limits._ALONE} <= measured
    assert set(limits._WARM) <= measured
    assert set(limits._EXEC) <= measured


def test_ratios() -> None:
    measured = row("ptp", "DEL", alone=(30, 2), ours=(40, 6), go=(20, 4))
    assert measured.ratio("alone", WALL) == 1.5
    assert measured.ratio("alone", CPU) == 0.5
    assert measured.ratio("warm") is None
    assert Rates("up", 9, {"alone": 30, "go": 10}).ratio("alone") == 3
    assert Rates("up", 9, {"go": 10}).ratio("alone") is None


def test_what_is_compared() -> None:
    """ADD by wall time; DEL of a link, CHECK and STATUS by processor time."""
    slow = row("ptp", "ADD", alone=(9, 1), go=(20, 20))
    assert [(v.what, v.met) for v in limits.of_row(slow)] == [
        ("ptp ADD, self-contained : Go", False)
    ]
    waiting = row("ptp", "DEL", alone=(99, 7), go=(20, 20))
    assert [v.met for v in limits.of_row(waiting)] == [True]
    looks = row("chain: bridge", "CHECK", alone=(9, 6), ours=(9, 9), go=(1, 5))
    assert [(v.value, v.limit, v.met) for v in limits.of_row(looks)] == [
        (1.8, 2.0, True),
        (1.2, 1.0, False),
    ]
    assert limits.mark(looks) == "✓ 2 ✗ 1"


def test_what_go_cannot_has_no_limit() -> None:
    assert limits.of_row(row("chain", "STATUS", alone=(9, 6), ours=(9, 9))) == []
