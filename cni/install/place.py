"""The place of an installation: this system, or another one's root directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..artifact import InstallError


class Place(NamedTuple):
    """The directory of the plugins, as an absolute path of the system on which they will run.

    `root` is the present path of that system's root directory: an image, or a package's staging
    directory. None means this system.
    """

    bin_dir: Path
    root: Path | None = None

    @classmethod
    def of(cls, bin_dir: Path, root: Path | None = None) -> Place:
        """A Place with absolute paths; "/" as `root` means this system."""
        if root is not None:
            root = Path(os.path.realpath(root))
            bin_dir = Path("/", bin_dir)
        return cls(bin_dir.absolute(), None if root == Path("/") else root)

    def now(self, path: Path) -> Path:
        """The present path of that system's absolute `path`; a link at its end is not followed.

        Raises InstallError if a link in the root leads out of it, to a file of this system.
        """
        if self.root is None:
            return path
        here = Path(os.path.normpath(f"{self.root}/{path}"))
        real = Path(os.path.realpath(here.parent), here.name)
        if not real.is_relative_to(self.root):
            raise InstallError(f"{here} leads out of {self.root}, to {real}: name another place")
        return here

    def directory(self) -> Path:
        """The present path of the plugins' directory, with links in the root followed.

        Raises InstallError as `now`.
        """
        return self.now(self.bin_dir / "cni").parent

    def then(self, path: Path) -> Path:
        """The later absolute path of the file that is now at `path`; the reverse of `now`."""
        return path if self.root is None else Path("/", path.relative_to(self.root))
