"""The self-contained file, started in unusual ways."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.harness.start_cases import ByDescriptor, Dispositions, Limits, Streams

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def started(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, with links for plugins beside it."""
    path = tmp_path_factory.mktemp("bin") / "cni"
    shutil.copy(program, path)
    for name in ("loopback", "host-local"):
        path.with_name(name).symlink_to("cni")
    return path


class TestByDescriptor(ByDescriptor):
    pass


class TestStreams(Streams):
    pass


class TestLimits(Limits):
    pass


class TestDispositions(Dispositions):
    pass
