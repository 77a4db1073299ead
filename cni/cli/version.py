"""What `cni --version` says: the version, the build, and what runs it."""

from __future__ import annotations

import os
import sys

from cni import __version__, artifact, dispatch
from cni._build import ID


def text() -> str:
    """Four lines; the first is `cni VERSION (build ID)`."""
    machine = os.uname()
    python = ".".join(map(str, sys.version_info[:3]))
    where = "embedded" if artifact.embedded() else sys.executable or "path unknown"
    return (
        f"cni {__version__} (build {ID})\n"
        f"plugins: {dispatch.full_version()}\n"
        f"interpreter: Python {python} ({where})\n"
        f"machine: {machine.sysname} {machine.release}, {machine.machine}"
    )
