"""What `install` and `uninstall` say that they have done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Report:
    """What was done. Names are file names in `bin_dir`; all paths are of the running system.

    `python` is the interpreter's path, "embedded", or empty without one. `command` is the link by
    which a shell finds `cni`.
    """

    bin_dir: str
    build: str = ""
    python: str = ""
    command: str = ""
    links: list[str] = field(default_factory=list)  # plugins: made, or made anew
    unchanged: list[str] = field(default_factory=list)  # plugins that were right already
    kept: dict[str, str] = field(default_factory=dict)  # foreign file -> its name now
    restored: list[str] = field(default_factory=list)  # foreign files that are back
    removed: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)  # systemd units, with their paths
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)
