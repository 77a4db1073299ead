"""cni.standins with every version of Python that the built file supports and this machine has."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from cni.artifact import build_of
from cni.standins import PYTHONS
from tests.unit.test_standins import NAMES, SCENARIOS, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("version", PYTHONS, ids=lambda version: f"3.{version[1]}")
def test_as_the_real_modules(version: tuple[int, int], installed: Path) -> None:
    """What they do depends on the version here and there: the scenarios of test_standins."""
    python = shutil.which(f"python3.{version[1]}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"there is no python3.{version[1]}")
    tree = [str(installed / f".cni-{build_of(installed / 'cni')}")]
    for name in NAMES:
        found = [
            run(python, SCENARIOS, name, standins=standins, path=tree) for standins in (True, False)
        ]
        assert not any(done.returncode for done in found), found[0].stderr + found[1].stderr
        assert json.loads(found[0].stdout) == json.loads(found[1].stdout), name
