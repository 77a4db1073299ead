"""A network namespace that lives by a bind mount only, as those of most runtimes do.

tests.harness.Netns holds a descriptor of its namespace, which therefore outlives its name; this one
is gone with its mount.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Pinned:
    """A new namespace, mounted at a path."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        path.touch()
        subprocess.run(["unshare", f"--net={path}", "true"], check=True)

    def unmount(self) -> None:
        """End the namespace, unless it is held otherwise; the path is a plain file then."""
        subprocess.run(["umount", self.path], check=True)

    def bind(self, path: Path) -> None:
        """Mount the namespace at another path, too."""
        path.touch()
        subprocess.run(["mount", "--bind", self.path, path], check=True)


def unmount_all(directory: Path) -> None:
    """Unmount what a test has left below a directory."""
    for path in directory.iterdir():
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)
