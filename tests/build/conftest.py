"""Fixtures for the tests of the built file: real builds, real installs, no stand-ins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.harness.build import build_dist

from .running import build_copy, install


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of dist/cni, so that a rebuild meanwhile does no harm."""
    return Path(shutil.copy(build_dist(), tmp_path_factory.mktemp("dist")))


@pytest.fixture(scope="session")
def other_dist(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another build, as the next version would be."""
    return build_copy(tmp_path_factory.mktemp("other"), "another build")


@pytest.fixture(scope="session")
def third_dist(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third build."""
    return build_copy(tmp_path_factory.mktemp("third"), "a third build")


@pytest.fixture(scope="session")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with dist/cni installed, for tests that only run it."""
    directory = tmp_path_factory.mktemp("installed") / "bin"
    install(dist, directory)
    return directory


@pytest.fixture(scope="session")
def script_dist(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a machine without a C compiler builds: the file starts with the script."""
    return build_copy(tmp_path_factory.mktemp("script"), compiler="none")
