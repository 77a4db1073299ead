"""The systemd units that `cni install` writes, with the path of the installed `cni`.

RULES make rules again after a restart or reload of the node's firewall, and DHCP runs the daemon of
the plugin dhcp (`--units`); SERVER starts the server with the first request (`--service`). The
administrator enables them with `systemctl`; call `disable` before `remove`. Paths are those of the
system on which the units will run.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .. import files
from ..artifact import InstallError
from .place import Place

RULES = ("cni-reload.service", "cni-reload-watch.service")
SERVER = ("cni.socket", "cni.service")
DHCP = ("cni-dhcp.socket", "cni-dhcp.service")
DIRECTORY = Path("/etc/systemd/system")
# Units of each group to enable, and the condition; a socket starts its service.
ENABLED = {
    RULES: (RULES, ""),
    SERVER: (SERVER[:1], ""),
    DHCP: (DHCP[:1], "where a network leases addresses with dhcp"),
}

_RUNNING = Path("/run/systemd/system")
_MARK = b"# Written by `cni install "
_QUOTED = frozenset(" \t\n\"'\\$;")  # characters that systemd would interpret in a command line


def foreign(paths: Iterable[Path], place: Place) -> list[Path]:
    """Those of the units that exist and were not written by `install`. Raises InstallError."""
    return [
        path for path in paths if os.path.lexists(place.now(path)) and not _is_ours(place.now(path))
    ]


def check(paths: Iterable[Path], place: Place) -> None:
    """Raise InstallError if the units cannot be written."""
    paths = list(paths)
    if paths and _QUOTED & set(str(place.bin_dir)):
        raise InstallError(f"systemd would not understand the path {place.bin_dir}: choose another")
    for path in foreign(paths, place):
        raise InstallError(f"{path} is not ours: move it away")


def write(paths: Iterable[Path], place: Place) -> list[str]:
    """Write the units with these absolute paths; return the paths. Raises InstallError."""
    # % begins a specifier of systemd.
    program = str(place.bin_dir).replace("%", "%%")
    try:
        for path in paths:
            _write(place.now(path), program)
    except OSError as error:
        raise InstallError(f"cannot write units: {error.filename}: {error.strerror}") from error
    return [str(path) for path in paths]


def _write(path: Path, program: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = _template(path.name).replace(b"@BIN_DIR@", os.fsencode(program))
    files.replace(str(path), data, 0o644, temporary=str(temporary))


def _template(name: str) -> bytes:
    """The unit's text in the package. An embedded interpreter has no data files beside modules."""
    text = pkgutil.get_data("cni", f"units/{name}")
    if text is None:
        from zipimport import zipimporter

        text = zipimporter(sys.argv[0]).get_data(f"cni/units/{name}")
    return text


def disable(paths: Iterable[Path], place: Place) -> None:
    """Stop and disable the units, if they are ours, where systemd runs. Raises InstallError."""
    ours = [path for path in paths if _is_ours(place.now(path))]
    # Of other directories systemctl knows nothing.
    names = [path.name for path in ours if path.parent == DIRECTORY]
    if names and _runs_here(place):
        _systemctl("disable", "--now", *names)


def present(paths: Iterable[Path], place: Place) -> list[str]:
    """Those of the units that `write` has made."""
    return [str(path) for path in paths if _is_ours(place.now(path))]


def remove(paths: Iterable[Path], place: Place) -> list[str]:
    """Remove the units that `write` made; return their paths. Raises InstallError."""
    removed = []
    try:
        for path in paths:
            if _is_ours(place.now(path)):
                place.now(path).unlink()
                removed.append(str(path))
    except OSError as error:
        raise InstallError(f"cannot remove {error.filename}: {error.strerror}") from error
    if _runs_here(place) and any(Path(path).parent == DIRECTORY for path in removed):
        _systemctl("daemon-reload")
    return removed


def hints(paths: Iterable[str], root: Path | None = None) -> Iterator[str]:
    """The commands that put the units into effect, some with a condition before them."""
    names = {Path(path).name for path in paths}
    chosen = [each for units, each in ENABLED.items() if names & set(units)]
    always = [name for units, when in chosen if not when for name in units]
    for units, when in ((tuple(always), ""), *(each for each in chosen if each[1])):
        if units:
            yield (f"{when}: " if when else "") + _enabling(units, root)


def _enabling(names: Iterable[str], root: Path | None) -> str:
    if root is not None:
        return f"systemctl --root {root} enable {' '.join(names)}"
    return f"systemctl daemon-reload && systemctl enable --now {' '.join(names)}"


def _runs_here(place: Place) -> bool:
    """Does systemd run, and are the units for this system?"""
    return place.root is None and _RUNNING.is_dir()


def _systemctl(*words: str) -> None:
    command = ["systemctl", *words]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise InstallError(f"cannot run {' '.join(command)}: {error.strerror}") from error
    if done.returncode:
        raise InstallError(f"{' '.join(command)}: {done.stderr.strip()}")


def _is_ours(path: Path) -> bool:
    try:
        return path.read_bytes().startswith(_MARK)
    except OSError:
        return False
