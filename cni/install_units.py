"""The systemd units that make rules again after a restart or reload of the node's firewall.

`cni install --units DIR` writes them, with the path of the installed `cni`; what enables them is
the administrator's `systemctl`.
"""

from __future__ import annotations

import os
import pkgutil
from pathlib import Path

from .interpreter import InstallError

NAMES = ("cni-reload.service", "cni-reload-watch.service")
_MARK = b"# Written by `cni install --units`"
_QUOTED = frozenset(" \t\n\"'\\$;")  # what systemd would take apart in a command line


def write(directory: Path, bin_dir: Path) -> list[str]:
    """Write the units into `directory`; their paths. Raises InstallError."""
    program = str(bin_dir.absolute())
    if _QUOTED & set(program):
        raise InstallError(f"systemd would not understand the path {program}: choose another")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [_write(directory / name, program.replace("%", "%%")) for name in NAMES]
    except OSError as error:
        raise InstallError(f"cannot write units into {directory}: {error.strerror}") from error


def _write(path: Path, program: str) -> str:
    if path.exists() and not _is_ours(path):
        raise InstallError(f"{path} is not ours: move it away")
    text = pkgutil.get_data("cni", f"units/{path.name}")
    assert text is not None, "the archive has the units"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(text.replace(b"@BIN_DIR@", os.fsencode(program)))
    temporary.chmod(0o644)
    temporary.replace(path)
    return str(path)


def remove(directory: Path) -> list[str]:
    """Remove the units that `write` made there; their paths. Raises InstallError."""
    removed = []
    try:
        for path in (directory / name for name in NAMES):
            if path.exists() and _is_ours(path):
                path.unlink()
                removed.append(str(path))
    except OSError as error:
        raise InstallError(f"cannot remove units in {directory}: {error.strerror}") from error
    return removed


def _is_ours(path: Path) -> bool:
    return path.read_bytes().startswith(_MARK)
