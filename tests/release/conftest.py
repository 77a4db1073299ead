"""A release made of a clean copy of the working tree, twice."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATE = "2026-01-02T03:04:05Z"


@dataclass
class Repository:
    """A clean copy of the working tree, with one commit, in which a release can be made."""

    path: Path

    @property
    def version(self) -> str:
        match = re.search(r'__version__ = "(.*)"', (self.path / "cni/__init__.py").read_text())
        assert match is not None
        return match[1]

    def commit(self) -> None:
        identity = {"NAME": "nobody", "EMAIL": "nobody@example.org", "DATE": DATE}
        env = {f"GIT_{who}_{k}": v for who in ("AUTHOR", "COMMITTER") for k, v in identity.items()}
        self.git("add", "--all", env=env)
        self.git("commit", "--quiet", "--allow-empty", "--message", "all", env=env)

    def git(self, *words: str, env: dict[str, str] | None = None) -> str:
        command = ["git", "-c", "core.hooksPath=/nonexistent", *words]
        env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", **(env or {})}
        done = subprocess.run(
            command, cwd=self.path, env=env, check=True, capture_output=True, text=True
        )
        return done.stdout

    def release(self, output: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tools.release", "--output", str(output), *words]
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **more}
        return subprocess.run(
            command, cwd=self.path, env=env, capture_output=True, text=True, timeout=300
        )


def copy_of_tree(target: Path) -> Repository:
    """What git would commit, in a repository of its own; downloads are shared."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (target / ".cache").mkdir()
    downloads = ("wheels-*", "shiv-*", "packages")
    for each in (path for pattern in downloads for path in ROOT.glob(f".cache/{pattern}")):
        subprocess.run(["cp", "--archive", "--link", each, target / ".cache"], check=True)
    repository = Repository(target)
    changelog = target / "CHANGELOG.md"
    text = changelog.read_text()
    if f"## [{repository.version}] - " not in text:
        text = text.replace("## [Unreleased]", f"## [{repository.version}] - 2026-01-02", 1)
    changelog.write_text(re.sub(r"(?s)## \[Unreleased\].*?(?=\n## \[)", "", text))
    repository.git("init", "--quiet")
    repository.commit()
    return repository


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return copy_of_tree(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def selfcontained() -> Path | None:
    """The self-contained file for this machine, where one has been built."""
    path = ROOT / f"dist/cni-linux-{platform.machine()}"
    return path if path.exists() else None


@pytest.fixture(scope="session")
def executables(
    repository: Repository, selfcontained: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Options that name the executables: where there is no self-contained file, a zipapp."""
    places = {"x86_64": tmp_path_factory.mktemp("files") / "native"}
    places["aarch64"] = places["x86_64"].with_name("any")
    for machine, compiler in (("x86_64", ""), ("aarch64", "none")):
        env = {**os.environ, "CNI_CLIENT_CC": compiler}
        build = [sys.executable, "tools/build.py"]
        subprocess.run(build, cwd=repository.path, env=env, check=True, capture_output=True)
        shutil.copy(repository.path / "dist/cni", places[machine])
    if selfcontained:
        places[platform.machine()] = selfcontained
    return [f"--self-contained={machine}={path}" for machine, path in places.items()]


@pytest.fixture(scope="session")
def released(
    repository: Repository, executables: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The directory with the files of a release."""
    output = tmp_path_factory.mktemp("released") / "release"
    done = repository.release(output, *executables)
    assert done.returncode == 0, done.stdout + done.stderr
    return output
