"""A program that overwrites a plugin of the self-contained file overwrites that one only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.build.running import build_id

VERSION = {"CNI_COMMAND": "VERSION", "CNI_SERVER": "off", "CNI_DEBUG": "start"}


@pytest.fixture
def bin_dir(program: Path, tmp_path: Path) -> Path:
    where = tmp_path / "bin"
    subprocess.run([program, "install", "--bin-dir", where], check=True, capture_output=True)
    return where


def run(plugin: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([plugin], env={**VERSION, **env}, capture_output=True, text=True)


def answers(plugin: Path) -> str:
    """Fails unless the plugin tells its versions; what it says on stderr."""
    done = run(plugin)
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    return done.stderr


@pytest.mark.parametrize("way", ['cp -f "$1" "$2"', 'cat "$1" >"$2"', 'install "$1" "$2"'])
def test_the_others_go_on(bin_dir: Path, way: str) -> None:
    before = (bin_dir / "cni").read_bytes()
    path = {"PATH": os.environ["PATH"]}
    subprocess.run(["sh", "-ec", way, "sh", "/bin/true", bin_dir / "flannel"], check=True, env=path)
    assert (bin_dir / "cni").read_bytes() == before
    assert run(bin_dir / "flannel").stdout == ""
    # Each begins with the snapshot, as before, although that is in another file.
    assert "with the snapshot" in answers(bin_dir / "bridge")


def test_through_a_link_elsewhere(bin_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "host-local").symlink_to(bin_dir / "host-local")
    assert "with the snapshot" in answers(tmp_path / "host-local")


def test_cni_of_another_build_goes_on(bin_dir: Path, program: Path) -> None:
    """As in the middle of an upgrade: it is executed, under the plugin's name."""
    build = build_id(program).encode()
    content = (bin_dir / "bridge").read_bytes()
    (bin_dir / "bridge").write_bytes(content.replace(build, b"0" * 12))
    answers(bin_dir / "bridge")
    done = run(bin_dir / "bridge", CNI_COMMAND="ADD")
    assert json.loads(done.stdout)["code"] != 999, done.stdout


def missing(cni: Path) -> None:
    cni.unlink()


def foreign(cni: Path) -> None:
    shutil.copy("/bin/true", cni)


def small(cni: Path) -> None:
    shutil.copy(cni.with_name("ptp"), cni)


def short(cni: Path) -> None:
    os.truncate(cni, 1 << 20)


def for_all(cni: Path) -> None:
    cni.chmod(0o757)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (missing, "it is missing"),
        (foreign, "another program"),
        (small, "copy or download the file again"),
        (short, "copy or download the file again"),
        (for_all, "others than root may write"),
    ],
)
def test_says_what_is_wrong_with_cni(bin_dir: Path, harm: Any, said: str) -> None:
    harm(bin_dir / "cni")
    done = run(bin_dir / "bridge")
    found = json.loads(done.stdout)
    assert (done.returncode, said in found["details"]) == (1, True), found
