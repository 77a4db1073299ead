"""Files of tests that other users are to reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def let_everybody_in(directory: Path) -> None:
    """Let other users look into a directory of a test; pytest makes its directories private."""
    for each in (directory, *directory.parents):
        mode = each.stat().st_mode
        if mode & 0o5 != 0o5:
            each.chmod(mode & 0o7777 | 0o755)
