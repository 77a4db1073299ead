"""Unpacking the archive: files appear whole, and are on the disk before the tree gets its name."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

from .. import files


def unpack(archive: Path, tree: Path, temporary: Callable[[], Path]) -> None:
    """Unpack the built file `archive` into the directory `tree`. Raises OSError.

    Files with the right content stay; others are replaced by a rename. So a damaged tree can be
    repaired while plugins run from it. `temporary` returns names for half-written files, on the
    same file system.
    """
    with zipfile.ZipFile(archive) as bundle:
        for info in bundle.infolist():
            # Bytecode is added by bytecode.py; __main__.py is for a file that is run as an archive.
            if info.filename.endswith(".pyc") or info.filename == "__main__.py":
                continue
            path, data = tree / info.filename, bundle.read(info)
            if path.is_file() and path.read_bytes() == data:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(str(path), data, 0o644, temporary=str(temporary()))


def is_safe(path: Path) -> bool:
    """May only this user and root change the file, or the directory and its contents?

    Raises OSError.
    """
    if path.is_symlink() or not _is_ours(path):
        return False
    return all(
        _is_ours(Path(directory, name))
        for directory, directories, names in os.walk(path)
        for name in (*directories, *names)
    )


def _is_ours(path: Path) -> bool:
    status = path.lstat()
    writable = stat.S_IMODE(status.st_mode) & 0o022 and not stat.S_ISLNK(status.st_mode)
    return status.st_uid in (0, os.geteuid()) and not writable


def sync(tree: Path) -> None:
    """Write the whole directory `tree` to the disk (fsync). Raises OSError.

    Call it before the directory gets its name: a power failure must not leave empty files.
    """
    for directory, _, names in os.walk(tree):
        for name in names:
            sync_file(Path(directory, name))
        sync_file(Path(directory))


def sync_file(path: Path) -> None:
    """Write the file or directory `path` to the disk (fsync). Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
