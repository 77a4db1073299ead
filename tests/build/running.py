"""Running the built file as container runtimes and people do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.build import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = {"CNI_COMMAND": "VERSION"}
PYTHON = "/usr/bin/python3"
# A shell in a mount namespace of its own, where the whole file system is read-only.
READ_ONLY = 'mount -o remount,bind,ro / && exec "$@"'


def run(
    *command: str | Path,
    env: dict[str, str] | None = None,
    cwd: str | Path = "/",
    prefix: Sequence[str] = (),
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command with an environment of nothing but `env`."""
    return subprocess.run(
        [*prefix, *map(str, command)],
        env=env or {},
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=110,
    )


def supported(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The spec versions in the answer to VERSION; fails unless it is one."""
    assert done.returncode == 0, f"{done.args}: {done.stdout}{done.stderr}"
    assert done.stderr == ""
    versions = json.loads(done.stdout)["supportedVersions"]
    assert isinstance(versions, list)
    return versions


def error(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The error object on stdout; fails unless it is the only output of a failed run."""
    assert done.returncode == 1, f"{done.args}: {done.stdout}{done.stderr}"
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert set(found) == {"code", "msg", "details"}
    assert done.stdout == json.dumps(found, indent=4) + "\n"
    return dict(found)


def install(dist: Path, bin_dir: Path, *options: str) -> dict[str, Any]:
    """`dist install`; its report."""
    done = run(dist, "install", "--bin-dir", bin_dir, "--json", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def uninstall(dist: Path, bin_dir: Path, *options: str) -> dict[str, Any]:
    """`dist uninstall`; its report. Before it `--dry-run` says the same, and changes nothing."""
    reports = []
    for more in (["--dry-run"], []):
        before = everything_below(bin_dir)
        done = run(dist, "uninstall", "--bin-dir", bin_dir, "--json", *options, *more)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not more or everything_below(bin_dir) == before
        report = dict(json.loads(done.stdout))
        assert report.pop("dryRun") is bool(more)
        reports.append({**report, "removed": sorted(report["removed"])})
    assert reports[0] == reports[1]
    return reports[1]


def everything_below(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of the last change of all that is in a directory, and of itself."""
    if not directory.exists():
        return {}
    paths = [directory, *directory.rglob("*")]
    found = [(str(path), path.lstat()) for path in paths]
    return {path: (status.st_ino, status.st_size, status.st_mtime_ns) for path, status in found}


def build_id(dist: Path) -> str:
    """What the launcher says it belongs to."""
    match = re.search(rb"^cni_build=(\w+)$", dist.read_bytes(), re.MULTILINE)
    assert match
    return match[1].decode()


def copy_tree(target: Path, comment: str = "", source: Path = ROOT) -> Path:
    """Copy what is needed for building; `comment` makes it another build."""
    for name in ("cni", "launcher", "tools"):
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "pyproject.toml", target)
    (target / ".cache").symlink_to(ROOT / ".cache")
    if comment:
        (target / "cni" / "_another.py").write_text(f'"""{comment}"""\n')
    return target


def build_copy(
    target: Path, comment: str = "", source: Path = ROOT, compiler: str | None = None
) -> Path:
    """Build a copy of the sources; the built file. `compiler` is for the native client."""
    script = copy_tree(target, comment, source) / "tools" / "build.py"
    env = dict(os.environ) | ({"CNI_CLIENT_CC": compiler} if compiler else {})
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return target / "dist" / "cni"


def pythons(*, new: bool) -> list[str]:
    """Interpreters found on this machine that are new enough, or are not, one a version."""
    found: dict[tuple[int, ...], str] = {}
    places = [
        *Path("/usr/bin").glob("python3.[0-9]*"),
        *Path("/usr/local/bin").glob("python3.[0-9]*"),
    ]
    places += Path.home().glob(".pyenv/versions/3.*/bin/python3.[0-9]*")
    for path in places:
        match = re.fullmatch(r"python3\.(\d+)", path.name)
        if match and os.access(path, os.X_OK):
            found.setdefault((3, int(match[1])), str(path))
    return [path for version, path in sorted(found.items()) if (version >= (3, 11)) is new]


def need(program: str) -> str:
    """The path of a program, or skip the test, naming it."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program}: run `make setup`")
    return path


def in_mounts(script: str) -> list[str]:
    """A prefix for `run`: the command runs after `script`, in a mount namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a mount namespace")
    return [need("unshare"), "-m", "--propagation", "private", "/bin/sh", "-c", script, "sh"]
