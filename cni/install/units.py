"""The systemd units that `cni install` writes, with the path of the installed `cni`.

RULES make rules again after a restart or reload of the node's firewall (`--units`); SERVER starts
the server with the first request (`--service`). The administrator enables them with `systemctl`;
`remove` is preceded by `disable`.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .. import files
from ..artifact import InstallError

RULES = ("cni-reload.service", "cni-reload-watch.service")
SERVER = ("cni.socket", "cni.service")
DIRECTORY = Path("/etc/systemd/system")
# Units to enable of each group; the socket starts the server.
ENABLED = {RULES: RULES, SERVER: SERVER[:1]}

_RUNNING = Path("/run/systemd/system")
_MARK = b"# Written by `cni install "
_QUOTED = frozenset(" \t\n\"'\\$;")  # characters that systemd would interpret in a command line


def check(paths: Iterable[Path], bin_dir: Path) -> None:
    """Check that the units can be written for plugins in `bin_dir`. Raises InstallError."""
    for path in paths:
        if _QUOTED & set(str(bin_dir)):
            raise InstallError(f"systemd would not understand the path {bin_dir}: choose another")
        if path.exists() and not _is_ours(path):
            raise InstallError(f"{path} is not ours: move it away")


def write(paths: Iterable[Path], bin_dir: Path) -> list[str]:
    """Write the units with these absolute paths, which it returns. Raises InstallError."""
    program = str(bin_dir).replace("%", "%%")
    try:
        return [_write(path, program) for path in paths]
    except OSError as error:
        raise InstallError(f"cannot write units: {error.filename}: {error.strerror}") from error


def _write(path: Path, program: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = pkgutil.get_data("cni", f"units/{path.name}")
    assert text is not None, "the archive has the units"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = text.replace(b"@BIN_DIR@", os.fsencode(program))
    files.replace(str(path), data, 0o644, temporary=str(temporary))
    return str(path)


def disable(paths: Iterable[Path]) -> None:
    """Stop and disable the units, if they are ours, where systemd runs. Raises InstallError."""
    ours = [path for path in paths if path.exists() and _is_ours(path)]
    names = [path.name for path in ours if path.parent == DIRECTORY]
    if names and _RUNNING.is_dir():
        _systemctl("disable", "--now", *names)


def remove(paths: Iterable[Path]) -> list[str]:
    """Remove the units that `write` made; their paths. Raises InstallError."""
    removed = []
    try:
        for path in paths:
            if path.exists() and _is_ours(path):
                path.unlink()
                removed.append(str(path))
    except OSError as error:
        raise InstallError(f"cannot remove {error.filename}: {error.strerror}") from error
    if _RUNNING.is_dir() and any(Path(path).parent == DIRECTORY for path in removed):
        _systemctl("daemon-reload")
    return removed


def hint(paths: Iterable[str]) -> str:
    """The command that puts the units into effect; empty without units."""
    names = {Path(path).name for path in paths}
    wanted = [name for units, some in ENABLED.items() if names & set(units) for name in some]
    enable = f"systemctl enable --now {' '.join(wanted)}"
    return f"systemctl daemon-reload && {enable}" if wanted else ""


def _systemctl(*words: str) -> None:
    command = ["systemctl", *words]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise InstallError(f"cannot run {' '.join(command)}: {error.strerror}") from error
    if done.returncode:
        raise InstallError(f"{' '.join(command)}: {done.stderr.strip()}")


def _is_ours(path: Path) -> bool:
    return path.read_bytes().startswith(_MARK)
