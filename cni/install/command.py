"""The link by which a shell finds `cni`: in /usr/local/bin, or where `--link` says."""

from __future__ import annotations

import os
from pathlib import Path

from ..artifact import InstallError
from .place import Place

DIRECTORY = Path("/usr/local/bin")


def path_in(place: Place, directory: Path) -> Path | None:
    """The path of the link in `directory`; None if `cni` itself is in that directory."""
    return None if directory == place.bin_dir else directory / "cni"


def make(place: Place, link: Path) -> str:
    """Make the link at the absolute path `link`; return "", or the reason why it cannot be made.

    An existing file stays; missing directories are made.
    """
    try:
        at = place.now(link)
        if _is_ours(place, at):
            return ""
        if os.path.lexists(at):
            return f"{link} is another file, and stays: no link to {_target(place)} is made there"
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(_target(place))
    except (OSError, InstallError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, FileExistsError):
            reason = f"{error.filename} is no directory"
        return f"cannot make the link {link}: {reason}; another directory: --link DIR"
    return ""


def remove(place: Place, link: Path, *, dry_run: bool = False) -> bool:
    """Remove the link if it leads to the installed file; False if there is none. Raises OSError.

    With `dry_run` the link stays.
    """
    try:
        at = place.now(link)
    except InstallError:
        return False  # it leads out of the root, so `make` has not made it
    if not _is_ours(place, at):
        return False
    if not dry_run:
        at.unlink()
    return True


def _target(place: Place) -> str:
    return str(place.bin_dir / "cni")


def _is_ours(place: Place, at: Path) -> bool:
    return at.is_symlink() and os.readlink(at) == _target(place)
