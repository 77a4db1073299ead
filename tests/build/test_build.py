"""The built file: what is in it, and that the same sources give the same file."""

from __future__ import annotations

import platform
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.harness.build import ROOT

from .running import PYTHON, build_copy, build_id, copy_tree, install, run

if TYPE_CHECKING:
    from pathlib import Path


def test_the_same_sources_give_the_same_file(tmp_path: Path) -> None:
    first = build_copy(tmp_path / "first")
    second = build_copy(tmp_path / "second", source=tmp_path / "first")
    assert first.read_bytes() == second.read_bytes()


def test_other_sources_have_another_build_id(dist: Path, other_dist: Path) -> None:
    assert build_id(other_dist) != build_id(dist)


def test_is_a_zip_with_right_offsets_and_nothing_needless(dist: Path) -> None:
    with zipfile.ZipFile(dist) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    # zipfile would make up for wrong offsets; zipimport would not.
    data = dist.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    size, offset = struct.unpack_from("<II", data, end + 12)
    assert offset + size == end
    assert names == sorted(names)
    for needless in ("_bootstrap/", "/tests/", ".pyi", "RECORD", "site-packages"):
        assert not [name for name in names if needless in name]


def test_is_small(dist: Path) -> None:
    assert dist.stat().st_size < 6_700_000


def test_has_the_extension_for_every_python(dist: Path) -> None:
    with zipfile.ZipFile(dist) as archive:
        names = archive.namelist()
    for version in ("311", "312", "313", "314"):
        name = f"msgspec/_core.cpython-{version}-{platform.machine()}-linux-gnu.so"
        assert name in names


def test_carries_the_licenses(dist: Path) -> None:
    with zipfile.ZipFile(dist) as archive:
        licensed = {n.split("-")[0] for n in archive.namelist() if ".dist-info/licenses/" in n}
    assert licensed == {"click", "jeepney", "msgspec", "pyroute2"}


def test_carries_pyroute2_for_the_command_line(dist: Path, tmp_path: Path) -> None:
    """It can be imported by whatever reads a node for people: from the file, and when installed."""
    install(dist, tmp_path / "bin")
    tree = tmp_path / "bin" / f".cni-{build_id(dist)}"
    code = "import sys; sys.path.insert(0, sys.argv[1]); import pyroute2; print(pyroute2.__file__)"
    for place in (dist, tree):
        done = run(PYTHON, "-I", "-S", "-c", code, place)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{place}/pyroute2/")


def test_knows_its_build_id(dist: Path) -> None:
    done = run(dist, "--version")
    assert done.returncode == 0, done.stderr
    assert build_id(dist) in done.stdout


def test_a_second_build_leaves_the_file_alone(tmp_path: Path) -> None:
    built = build_copy(tmp_path)
    before = built.stat().st_ino
    done = subprocess.run(
        [sys.executable, str(tmp_path / "tools/build.py")], capture_output=True, text=True
    )
    assert "unchanged" in done.stdout
    assert built.stat().st_ino == before


@pytest.mark.parametrize("what", ["wheel", "bundle"])
def test_a_cache_that_somebody_changed_is_not_used(tmp_path: Path, what: str) -> None:
    """Every build compares wheels with the lock, and what was made of them with the wheels."""
    source = copy_tree(tmp_path / "source")
    cache = source / ".cache"
    original = cache.resolve()
    cache.unlink()
    cache.mkdir()
    for path in (*original.glob("wheels-*"), *original.glob("shiv-*")):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, cache / path.name)
    build = [sys.executable, str(source / "tools/build.py")]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    targets = cache.glob("wheels-*/click-*.whl") if what == "wheel" else cache.glob("shiv-*.pyz")
    for target in targets:
        with zipfile.ZipFile(target, "a") as archive:
            archive.writestr("site-packages/evil.py", "print('evil')")
    before = (source / "dist/cni").read_bytes()
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 1
    assert "remove" in done.stderr
    assert (source / "dist/cni").read_bytes() == before


def test_what_builds_is_locked_with_hashes() -> None:
    """Every tool and dependency, in the bundled versions where there are such."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["build-system"]["requires"]
    wanted += project["project"]["optional-dependencies"]["dev"]
    lock = (ROOT / "tools/dev.lock").read_text()
    entry = r"^([a-z0-9-]+)==(\S+)(?: \\\n    --hash=sha256:[0-9a-f]{64})+$"
    versions = dict(re.findall(entry, lock, re.MULTILINE))
    assert len(versions) == lock.count("=="), "one without a hash"
    names = {re.split(r"[<>=!~\[ ]", each)[0].lower() for each in wanted}
    assert not names - versions.keys()
    bundled = (ROOT / "tools/bundle.lock").read_text()
    for name, version in re.findall(r"^(\S+)==(\S+)", bundled, re.MULTILINE):
        assert versions[name] == version
