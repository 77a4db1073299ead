"""Changes of a directory of plugins since it was installed, for `cni doctor`.

Other projects copy plugins into the same directory. Files that they overwrite are theirs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..artifact import InstallError, Launcher, build_of, is_stub
from .directory import Installation
from .place import Place


@dataclass
class State:
    """Changes since `cni install`, or a package, has written the files. Names are file names."""

    broken: str = ""  # the defect of the file `cni` because of which no plugin can start
    changed: str = ""  # how `cni`, which works, differs from the installed file
    foreign: list[str] = field(default_factory=list)  # plugins that another project has overwritten
    links: list[str] = field(default_factory=list)  # links to `cni`: writing to one overwrites it


def state_of(directory: Path, names: Iterable[str]) -> State | None:
    """The state of `directory`, with plugins of these `names`; None if it has none of ours.

    Raises OSError.
    """
    noted = Installation(Place.of(directory)).manifest
    builds = {name: _build_of(directory / name) for name in noted.get("names", names)}
    ours = [name for name, build in builds.items() if build]
    state = State()
    program = directory / "cni"
    if not noted and not _build_of(program) and not any(map(_is_stub, _in(directory, ours))):
        return None
    links = [path for path in _in(directory, builds) if path.is_symlink()]
    state.links = [path.name for path in links if os.readlink(path) == "cni"]
    theirs = [name for name, build in builds.items() if not build and name not in state.links]
    state.foreign = [path.name for path in _in(directory, theirs) if path.is_file()]
    state.broken = _broken(program)
    if not state.broken and noted.get("digest"):
        same = hashlib.sha256(program.read_bytes()).hexdigest() == noted["digest"]
        build = _build_of(program)
        state.changed = "" if same else f"it is of build {build}, installed was {noted['build']}"
    return state


def _broken(program: Path) -> str:
    if not os.path.lexists(program):
        return "it is missing"
    if not _build_of(program):
        return "it was overwritten by another program"
    if is_stub(program):
        return "it was overwritten by the small file of a plugin"
    try:
        Launcher.read(program)
    except InstallError:
        return "it is damaged"
    return "" if os.access(program, os.X_OK) else "it is not executable"


def _in(directory: Path, names: Iterable[str]) -> list[Path]:
    return [directory / name for name in names]


def _build_of(path: Path) -> str | None:
    try:
        return build_of(path)
    except OSError:
        return None


def _is_stub(path: Path) -> bool:
    try:
        return is_stub(path)
    except OSError:
        return False
