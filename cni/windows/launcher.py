"""The start on Windows, by copies of one launcher (docs/windows.md)."""

from __future__ import annotations

import os


def plugin_name(path: str) -> str:
    r"""``C:\opt\cni\bin\win-bridge.exe`` -> ``win-bridge``."""
    # Windows takes file names in any case, and runtimes may write .EXE.
    name = path.replace("\\", "/").rpartition("/")[2].lower()
    return name.removesuffix(".exe")


def is_twin(program: str, ourselves: str) -> bool:
    """Is the program a copy of our launcher, beside it, so that it would start this same code?

    Raises OSError.
    """
    if os.path.dirname(os.path.abspath(program)) != os.path.dirname(os.path.abspath(ourselves)):
        return False
    with open(program, "rb") as one, open(ourselves, "rb") as other:
        return one.read() == other.read()
