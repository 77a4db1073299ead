"""What a process notices of the file that it was started from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cni.artifact import OwnFile

OURS, OTHER = "0123456789ab", "ba9876543210"


def built(build: str, rest: str = "") -> str:
    return f"#!/bin/sh\ncni_build={build}\n{rest}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "cni"
    path.write_text(built(OURS))
    return path


def settled(own: OwnFile) -> str | None:
    """What is found once the file is not being written any more."""
    assert own.change() is None
    return own.change()


def test_nothing_has_changed(path: Path) -> None:
    own = OwnFile(path, OURS)
    assert [own.change() for _ in range(3)] == [None] * 3


@pytest.mark.parametrize("how", ["renamed", "written"])
def test_another_build(path: Path, how: str) -> None:
    own = OwnFile(path, OURS)
    if how == "renamed":
        path.with_name("new").write_text(built(OTHER))
        path.with_name("new").replace(path)
    else:
        path.write_text(built(OTHER, "longer"))
    assert settled(own) == OTHER
    assert own.change() is None  # it was told once


@pytest.mark.parametrize("how", ["overwritten", "removed", "a directory"])
def test_no_built_file_any_more(path: Path, how: str) -> None:
    own = OwnFile(path, OURS)
    path.unlink()
    if how == "overwritten":
        path.write_text("#!/bin/sh\nexec flannel\n")
    elif how == "a directory":
        path.mkdir()
    assert settled(own) == ""
    assert own.change() is None


def test_the_same_build_again(path: Path) -> None:
    """As `cni install` of it makes: there is nothing to do."""
    own = OwnFile(path, OURS)
    path.write_text(built(OURS, "with another interpreter"))
    assert settled(own) is None


def test_while_it_is_written_nothing_is_said(path: Path) -> None:
    own = OwnFile(path, OURS)
    for size in range(1, 4):
        path.write_text("x" * size)
        assert own.change() is None
    path.write_text(built(OTHER, "whole"))
    assert settled(own) == OTHER


def test_a_file_that_comes_back(path: Path) -> None:
    own = OwnFile(path, OURS)
    kept = path.with_name("kept")
    os.rename(path, kept)
    assert settled(own) == ""
    os.rename(kept, path)
    assert own.change() is None
    assert own.change() is None
