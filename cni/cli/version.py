"""The text of `cni --version`: the version, the build, and the interpreter."""

from __future__ import annotations

import os
import sys

from cni import __version__, artifact, dispatch
from cni._build import ID


def facts() -> dict[str, str]:
    """The same for programs."""
    machine = os.uname()
    return {
        "version": __version__,
        "build": ID,
        "plugins": dispatch.full_version(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "interpreter": "embedded" if artifact.embedded() else sys.executable or "path unknown",
        "system": f"{machine.sysname} {machine.release}",
        "machine": machine.machine,
    }


def text() -> str:
    """Four lines; the first is `cni VERSION (build ID)`."""
    fact = facts()
    return (
        f"cni {fact['version']} (build {fact['build']})\n"
        f"plugins: {fact['plugins']}\n"
        f"interpreter: Python {fact['python']} ({fact['interpreter']})\n"
        f"machine: {fact['system']}, {fact['machine']}"
    )
