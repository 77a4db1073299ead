"""Where an installation goes: into this system, or below the root directory of another one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..artifact import InstallError


class Place(NamedTuple):
    """The directory of the plugins, as an absolute path of the system on which they will run.

    `root` is where that system's root directory is now: an image, or a package's staging directory.
    None: it is this system.
    """

    bin_dir: Path
    root: Path | None = None

    @classmethod
    def of(cls, bin_dir: Path, root: Path | None = None) -> Place:
        """Makes both absolute. The root directory itself stands for this system."""
        if root is not None:
            root = Path(os.path.realpath(root))
            bin_dir = Path("/", bin_dir)
        return cls(bin_dir.absolute(), None if root == Path("/") else root)

    def now(self, path: Path) -> Path:
        """Where the absolute `path` of that system is at present: a file's, or a link's own.

        Raises InstallError if a link in the root leads out of it, to a file of this system.
        """
        if self.root is None:
            return path
        found = Path(os.path.normpath(f"{self.root}/{path}"))
        real = Path(os.path.realpath(found.parent), found.name)
        if not real.is_relative_to(self.root):
            raise InstallError(f"{found} leads out of {self.root}, to {real}: name another place")
        return found

    def directory(self) -> Path:
        """Where the directory of the plugins is at present; it may itself be a link in the root.

        Raises InstallError as `now`.
        """
        return self.now(self.bin_dir / "cni").parent

    def then(self, path: Path) -> Path:
        """What will be the absolute path of what is at `path` at present; the reverse of `now`."""
        return path if self.root is None else Path("/", path.relative_to(self.root))
