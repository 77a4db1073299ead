"""What is released: version, commit, date. Refuses what no commit of the repository has."""

from __future__ import annotations

import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_SECTION = re.compile(r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$", re.MULTILINE)
# https://semver.org/, without build metadata, which no package manager orders.
_SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?")


class ReleaseError(Exception):
    """There is no release; the text says why and what to do."""


@dataclass(frozen=True)
class Source:
    """The commit that is released. `epoch` is its date, in seconds since 1970."""

    version: str
    commit: str
    epoch: int
    root: Path = ROOT

    @property
    def package_version(self) -> str:
        """The version as dpkg and rpm order it: 0.2.0-rc.1 comes before 0.2.0."""
        return self.version.replace("-", "~", 1).replace("-", ".")


def read(root: Path = ROOT) -> Source:
    """Read the state of the repository at `root`. Raises ReleaseError."""
    dirty = git(root, "status", "--porcelain").splitlines()
    if dirty:
        names = ", ".join(line[3:] for line in dirty[:5]) + (" …" if len(dirty) > 5 else "")
        raise ReleaseError(f"the tree is not clean ({names}): commit the changes or put them aside")
    match = _VERSION.search((root / "cni/__init__.py").read_text())
    if match is None or not _SEMVER.fullmatch(match[1]):
        found = match[1] if match else "nothing"
        raise ReleaseError(f"cni/__init__.py has no version MAJOR.MINOR.PATCH, but {found}")
    check_changelog((root / "CHANGELOG.md").read_text(), match[1])
    commit, epoch = git(root, "log", "-1", "--format=%H %ct").split()
    return Source(match[1], commit, int(epoch), root)


def check_changelog(text: str, version: str) -> None:
    """Check that the changelog's first section is `version`'s, with a date. Raises ReleaseError.

    A section [Unreleased] above it may stand there, if it is empty.
    """
    sections = list(_SECTION.finditer(text))
    if sections and sections[0][1] == "Unreleased":
        end = sections[1].start() if len(sections) > 1 else len(text)
        if text[sections[0].end() : end].strip():
            raise ReleaseError(
                "CHANGELOG.md has changes below [Unreleased]: move them to a section "
                f"`## [{version}] - YYYY-MM-DD`"
            )
        del sections[0]
    first = sections[0] if sections else None
    if first is None or first[1] != version:
        found = first[1] if first else "nothing"
        raise ReleaseError(f"the version is {version}, but CHANGELOG.md begins with {found}")
    if first[2] is None:
        raise ReleaseError(f"the section [{version}] of CHANGELOG.md has no date")


def export(source: Source, target: Path) -> None:
    """Write the commit's files into the new directory `target`: what is built is what is there."""
    target.mkdir(parents=True)
    command = ["git", "archive", "--format=tar", source.commit]
    with subprocess.Popen(command, cwd=source.root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            archive.extractall(target)
    if process.returncode:
        raise ReleaseError(f"git archive ended with {process.returncode}")


def git(root: Path, *arguments: str) -> str:
    """What git prints. Raises ReleaseError."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    except OSError as error:
        raise ReleaseError(f"git: {error.strerror}") from error
    if done.returncode:
        raise ReleaseError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip("\n")
