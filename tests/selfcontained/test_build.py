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


def test_python_executes_it(program: Path) -> None:
    """Whatever Python it is given to: it runs with its own."""
    done = subprocess.run(
        ["/usr/bin/python3", program, "--version"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "embedded" in done.stdout


def test_what_is_in_the_zip(program: Path) -> None:
    """Modules for plugins of others, and units; not the commands, and nothing under the GPL."""
    with zipfile.ZipFile(program) as archive:
        names = archive.namelist()
    assert {"cni/units/cni.socket", "cni/plugins/shared/veth.py", "cni/dispatch.py"} <= set(names)
    assert not [name for name in names if name.startswith(("nftables", "click/", "cni/cli/"))]
    modules = [name for name in names if name.endswith(".so")]
    assert modules
    assert all(f"-{os.uname().machine}-" in name for name in modules)


def test_no_path_of_the_building_machine(program: Path) -> None:
    assert not re.findall(rb"/[\w./-]*\.cache/interpreter[\w./-]*", program.read_bytes())


def test_its_size(program: Path) -> None:
    assert program.stat().st_size <= 16_000_000
