"""Steps of a request as a tree, and functions that are timed and put back."""

from __future__ import annotations

import builtins
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import dispatch, stopwatch
from cni.cli.trace import steps
from cni.cli.trace.steps import Step
from cni.kernel.netlink import Netlink
from cni.netfilter import table
from cni.netns.namespace import Namespace
from cni.record import tracing


def step(name: str, begin: float, end: float, detail: str = "") -> Step:
    return Step(name, detail, begin, end)


def shape(found: list[Step]) -> list[object]:
    return [(each.name, each.count, shape(each.inside)) for each in found]


def test_a_step_lies_within_another() -> None:
    noted = [step("b", 1, 2), step("c", 2.5, 3), step("a", 0, 4), step("d", 5, 6)]
    assert shape(steps.tree(noted)) == [
        ("a", 1, [("b", 1, []), ("c", 1, [])]),
        ("d", 1, []),
    ]
    assert steps.tree(noted)[0].own == 2.5
    assert shape(steps.tree(noted)) == shape(steps.tree(noted))


def test_equal_ones_in_a_row_are_one() -> None:
    noted = [step("n", 1, 2), step("n", 3, 4), step("n", 5, 6, "other"), step("n", 7, 8)]
    found = steps.joined(steps.tree(noted))
    assert [(each.count, each.spent) for each in found] == [(2, 2), (1, 1), (1, 1)]
    noted = [step("n", 0, 4), step("x", 1, 2), step("n", 5, 6)]
    assert [each.count for each in steps.joined(steps.tree(noted))] == [1, 1]


def test_the_slowest_are_marked_by_their_own_time() -> None:
    noted = [step("verb", 0, 10), step("slow", 1, 9), step("quick", 9, 9.1)]
    found = steps.tree(noted)
    assert [each.name for each in steps.slowest(found)] == ["slow", "verb", "quick"]
    rows = steps.table(steps.joined(found)).rows
    assert [row[1] for row in rows] == [steps.MARK] * 3
    assert [row[2] for row in rows] == ["verb", "  slow", "  quick"]
    assert [
        each.name for each in steps.without_short([step("a", 0, 1), step("b", 1, 1.00001)])
    ] == ["a"]


TIMES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=12)


@given(TIMES)
def test_no_step_is_lost(times: list[tuple[int, int]]) -> None:
    noted = [step("s", begin, begin + size) for begin, size in times]
    every = [each for _, each in steps.walk(steps.tree(noted))]
    assert sorted((each.begin, each.end) for each in every) == sorted(
        (each.begin, each.end) for each in noted
    )
    joined = [each for _, each in steps.walk(steps.joined(steps.tree(noted)))]
    assert sum(each.count for each in joined) == len(noted)


def originals() -> list[object]:
    found: list[object] = [builtins.__import__]
    for place in stopwatch.STEPS:
        module_name, _, path = place.partition(":")
        __import__(module_name)
        holder: object = sys.modules[module_name]
        *kinds, name = path.split(".")
        for kind in kinds:
            holder = getattr(holder, kind)
        found.append(vars(holder)[name])
    return found


def test_every_step_is_a_function_that_is_there() -> None:
    for place in stopwatch.STEPS:
        __import__(place.partition(":")[0])
    assert all(originals())


def test_functions_are_put_back(tmp_path: Path) -> None:
    for place in stopwatch.STEPS:
        __import__(place.partition(":")[0])
    from cni.cli.view import namespaces  # has a function of ours under a name of its own

    path = tmp_path / "steps"
    path.touch()
    before = [*originals(), namespaces.liveness.exists]
    stopwatch.install(True, str(path))
    during = originals()
    assert not [one for one, other in zip(before, during, strict=False) if one is other]
    with Namespace.current() as here, Netlink():
        assert here.is_own
    stopwatch.install(False)
    assert [*originals(), namespaces.liveness.exists] == before


def test_a_request_is_written_down_and_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "cni.server.worker", raising=False)  # of other tests
    path = tmp_path / "steps"
    path.touch()
    before = originals()
    env = {
        "CNI_COMMAND": "STATUS",
        "CNI_PATH": str(tmp_path),
        "CNI_DEBUG": "steps",
        "CNI_STEPS_FILE": str(path),
    }
    conf = json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "loopback"}).encode()
    assert dispatch.answer("loopback", env, lambda: conf) == (0, b"")
    assert originals() == before
    line = json.loads(path.read_text())
    assert (line["plugin"], line["verb"], line["served"]) == ("loopback", "STATUS", False)
    assert line["steps"][-1][:2] == ["verb", "loopback STATUS"]
    env.pop("CNI_DEBUG")
    assert dispatch.answer("loopback", env, lambda: conf) == (0, b"")
    assert len(path.read_text().splitlines()) == 1
    # A file that cannot be written: the request does not mind.
    env |= {"CNI_DEBUG": "steps", "CNI_STEPS_FILE": str(tmp_path / "no" / "where")}
    assert dispatch.answer("loopback", env, lambda: conf) == (0, b"")
    assert originals() == before


def test_spans_are_made_until_a_request_is_not_traced(tmp_path: Path) -> None:
    """Of what is called under another name, too; and besides the times of the same request."""
    path = tmp_path / "steps"
    path.touch()
    before = [*originals(), table.transact]
    trace = tracing.begin({}, lambda *_: True)
    assert trace is not None
    traced = [*originals(), table.transact]
    assert not [one for one, other in zip(before, traced, strict=True) if one is other]
    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": str(tmp_path), "CNI_DEBUG": "steps"}
    env["CNI_STEPS_FILE"] = str(path)
    conf = json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "loopback"}).encode()
    assert dispatch.answer("loopback", env, lambda: conf) == (0, b"")
    assert json.loads(path.read_text())["steps"][-1][:2] == ["verb", "loopback STATUS"]
    assert [*originals(), table.transact] == traced
    with Netlink() as sock:
        sock.get(18, bytes(4) + (1).to_bytes(4, sys.byteorder) + bytes(8))
    assert table.transact([]) == []
    tracing.end()
    with Netlink() as sock:
        sock.dump(18, bytes(16))
    assert [span["name"] for span in trace.spans] == ["netlink GETLINK", "nftables"]
    assert tracing.begin({}, lambda *_: False) is None
    assert [*originals(), table.transact] == before


def test_a_child_tells_nobody() -> None:
    """An executor outlives the request, and works for others."""
    before = originals()
    assert tracing.begin({}, lambda *_: True) is not None
    pid = os.fork()
    if pid == 0:
        os._exit(int(originals() != before))
    assert os.waitpid(pid, 0)[1] == 0
    assert originals() != before
    assert tracing.begin({}, lambda *_: False) is None
    assert originals() == before
