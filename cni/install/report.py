"""The report of `install` and `uninstall`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Report:
    """What an install or uninstall has done.

    Names are file names in `bin_dir`; paths are those on the installed system.

    `python` is the interpreter's path, "embedded", or "" without one. `command` is the link by
    which a shell finds `cni`.
    """

    bin_dir: str
    build: str = ""
    python: str = ""
    command: str = ""
    links: list[str] = field(default_factory=list)  # plugins that were made or replaced
    unchanged: list[str] = field(default_factory=list)  # plugins that were up to date
    kept: dict[str, str] = field(default_factory=dict)  # another project's file -> its new name
    restored: list[str] = field(default_factory=list)  # other projects' files that were restored
    removed: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)  # systemd units, with their paths
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)
