"""Which file a test is about, and which tests a run leaves to another one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import build

IDS = [f"tests/netns/test_bridge.py::test_y[{number}]" for number in range(3000)]


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing is built, and both files are there."""
    monkeypatch.setattr(build, "build_dist", lambda: build.DIST)
    monkeypatch.setattr(build, "SELF_CONTAINED", build.ROOT)
    monkeypatch.delenv("CNI_TEST_BIN_DIR", raising=False)
    monkeypatch.delenv("CNI_TEST_FILES", raising=False)
    return monkeypatch


def test_a_third_is_on_the_zipapp(chosen: pytest.MonkeyPatch) -> None:
    assert {build.file_under_test(test) for test in IDS} == {build.DIST}
    chosen.setenv("CNI_TEST_FILES", "self-contained")
    assert {build.file_under_test(test) for test in IDS} == {build.SELF_CONTAINED}
    chosen.setenv("CNI_TEST_FILES", "both")
    files = [build.file_under_test(test) for test in IDS]
    assert files == [build.file_under_test(test) for test in IDS]
    assert 900 < files.count(build.DIST) < 1100
    for test in ("tests/unit/test_nft.py::test_y", "tests/build/test_ways.py::test_y", ""):
        assert build.file_under_test(test) == build.DIST


def test_the_running_test_is_asked(chosen: pytest.MonkeyPatch) -> None:
    chosen.setenv("CNI_TEST_FILES", "both")
    for test in IDS[:30]:
        chosen.setenv("PYTEST_CURRENT_TEST", f"{test} (call)")
        assert build.file_under_test() == build.file_under_test(test)


def test_a_choice_that_is_none(chosen: pytest.MonkeyPatch) -> None:
    chosen.setenv("CNI_TEST_FILES", "selfcontained")
    with pytest.raises(ValueError, match="neither self-contained nor both"):
        build.file_under_test(IDS[0])


class Factory:
    """As much of pytest's as `once` uses."""

    def __init__(self, base: Path) -> None:
        base.mkdir(exist_ok=True)
        self.getbasetemp = lambda: base


def test_what_workers_share_is_made_once(chosen: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen.setenv("PYTEST_XDIST_WORKER", "gw0")
    made: list[Path] = []

    def make(directory: Path) -> Path:
        made.append(directory)
        (directory / "file").touch(exist_ok=False)
        if len(made) == 1:
            raise OSError("no room")
        return directory / "file"

    one, other = (Factory(tmp_path / name) for name in ("popen-gw0", "popen-gw1"))
    with pytest.raises(OSError, match="no room"):
        build.once(one, "it", make)  # type: ignore[arg-type]
    for each in (other, one):
        assert build.once(each, "it", make) == tmp_path / "it/file"  # type: ignore[arg-type]
    assert len(made) == 2, "the first try has failed"


def collected(module: str, **env: str) -> tuple[int, int]:
    """How many tests of a module of tests/netns a run takes, of how many."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", f"tests/netns/{module}.py"],
        cwd=build.ROOT,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("CNI_")}, **env},
        capture_output=True,
        text=True,
    )
    match = re.search(
        r"^(no|\d+)(?:/(\d+))? tests collected(?: \((\d+) deselected\))?", done.stdout, re.MULTILINE
    )
    assert match is not None, done.stdout + done.stderr
    number = 0 if match[1] == "no" else int(match[1])
    return number, number + int(match[3] or 0)


def test_a_run_through_a_server_takes_what_goes_through_one() -> None:
    server = {"CNI_TEST_SERVER": "1"}
    assert collected("test_trace")[0] > 0
    assert collected("test_trace", **server)[0] == 0  # of the command line
    assert collected("test_record_log", **server)[0] == 0  # has servers of its own
    number, of = collected("test_macvlan", **server)
    assert number == of > 0


def test_the_lab_takes_what_the_machine_cannot() -> None:
    lab = {"CNI_LAB": "1"}
    number, of = collected("test_broken_conf", **lab)
    assert number == of > 0
    number, of = collected("test_broken_conf", **lab, CNI_HOST_FEATURES="macvlan tap nft veth")
    assert 0 < number < of
    number, of = collected("test_broken_conf", **lab, CNI_HOST_FEATURES="")
    assert number > 0


def test_what_the_lab_lacks_too_is_left_to_debians_kernel() -> None:
    number, of = collected("test_portmap_sctp", PYTEST_ADDOPTS="-m debian")
    assert number == of > 0
    assert collected("test_portmap_sctp", PYTEST_ADDOPTS="-m lab")[0] == 0
    assert collected("test_macvlan", PYTEST_ADDOPTS="-m debian")[0] == 0
