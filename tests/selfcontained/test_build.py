"""What the file consists of, and that it is the same each time it is built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.harness.build import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def build(output: Path) -> bytes:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/interpreter/build.py", "--output", output],
        env={**os.environ, "TZ": "Asia/Tokyo" if output.name == "second" else "UTC"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return output.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_building_twice_gives_the_same_bytes(program: Path, tmp_path: Path) -> None:
    assert build(tmp_path / "first") == build(tmp_path / "second")


def test_it_is_a_zip_for_python(program: Path) -> None:
    done = subprocess.run(
        ["/usr/bin/python3", program, "--version"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "embedded" not in done.stdout


def test_what_is_not_in_the_zip(program: Path) -> None:
    """The binding of nftables, whose licence is the GPL; and other machines' modules."""
    with zipfile.ZipFile(program) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.startswith("nftables/")]
    modules = [name for name in names if name.endswith(".so")]
    assert modules
    assert all(f"-{os.uname().machine}-" in name for name in modules)


def test_no_path_of_the_building_machine(program: Path) -> None:
    assert not re.findall(rb"/[\w./-]*\.cache/interpreter[\w./-]*", program.read_bytes())


def test_its_size(program: Path) -> None:
    assert program.stat().st_size <= 16_000_000
