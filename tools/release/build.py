"""The executables of a release, built from an export of the commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .source import ReleaseError, Source, export

# uname's name -> what Go, Debian and the image specification call it.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

INTERPRETER = "tools/interpreter/build.py"
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine: EM_X86_64, EM_AARCH64
# Archives and packages replace what is there. What this plugin has given to containers has to be
# taken over before (docs/from-whereabouts.md).
_NOT_LINKED = frozenset({"whereabouts"})


@dataclass(frozen=True)
class Executables:
    """The small zipapp, the self-contained file of each machine, and the plugins' names.

    `manual` are the manual pages, compressed: ``man8/cni-bridge.8.gz`` -> content.
    """

    zipapp: bytes
    selfcontained: Mapping[str, bytes]
    plugins: tuple[str, ...]
    manual: Mapping[str, bytes]


def build(source: Source, given: Mapping[str, Path], machines: tuple[str, ...]) -> Executables:
    """Build what is not `given` (machine -> a self-contained file). Raises ReleaseError."""
    cache = source.root / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="release-") as scratch:
        tree = Path(scratch, "source")
        export(source, tree)
        (tree / ".cache").symlink_to(cache)  # downloads and builds; each is keyed by its content
        zipapp = _zipapp(tree)
        plugins = _plugins(tree / "dist/cni")
        manual = _manual(tree)
        files = {}
        for machine in machines:
            path = given.get(machine) or _selfcontained(tree, machine)
            files[machine] = _executable(path, machine)
    return Executables(zipapp, files, plugins, manual)


def _executable(path: Path, machine: str) -> bytes:
    """The file's bytes. Raises ReleaseError if it is for another machine."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReleaseError(f"{path}: {error.strerror}") from error
    elf = data.startswith(b"\x7fELF")
    if elf and int.from_bytes(data[18:20], "little") != ELF_MACHINES[machine]:
        raise ReleaseError(f"{path} is not for {machine}")
    return data


def _zipapp(tree: Path) -> bytes:
    """The small zipapp. It starts with a script, not a client: it is for any machine's Python."""
    _run([sys.executable, tree / "tools/build.py"], tree, CNI_CLIENT_CC="none")
    return (tree / "dist/cni").read_bytes()


def _plugins(file: Path) -> tuple[str, ...]:
    """The names of the plugins in the built file to which archives and packages have links."""
    done = subprocess.run([file, "plugins", "--json"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"the zipapp does not list its plugins: {done.stderr.strip()}")
    return tuple(sorted({each["name"] for each in json.loads(done.stdout)} - _NOT_LINKED))


def _manual(tree: Path) -> dict[str, bytes]:
    """The manual pages, made of the built file."""
    target = tree / "dist/man"
    command: list[str | Path] = [sys.executable, "-I", tree / "tools/release/man.py"]
    _run([*command, tree / "dist/cni", target, "--compressed"], tree)
    return {
        str(each.relative_to(target)): each.read_bytes()
        for each in sorted(target.rglob("*"))
        if each.is_file()
    }


def _selfcontained(tree: Path, machine: str) -> Path:
    output = tree / f"dist/cni-linux-{machine}"
    profile = ["--pgo"] if machine == platform.machine() else []
    command: list[str | Path] = [sys.executable, tree / INTERPRETER]
    _run([*command, "--arch", machine, *profile, "--output", output], tree)
    return output


def _run(command: list[str | Path], directory: Path, **variables: str) -> None:
    """Run a program; its output is the user's. Raises ReleaseError."""
    try:
        done = subprocess.run(command, cwd=directory, check=False, env={**os.environ, **variables})
    except OSError as error:
        raise ReleaseError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise ReleaseError(f"{command[1]} ended with {done.returncode}")
