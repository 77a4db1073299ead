"""The start of the interpreter that is part of the self-contained file (docs/self-contained.md).

Its main program imports this module and calls `main`. Before that it has not used the file system;
garbage collection is off.
"""

from __future__ import annotations

import gc
import os
import sys


def main() -> int:
    """Run the plugin or command that sys.argv names; returns the exit code."""
    if not os.environ.get("CNI_COMMAND") or sys.argv[1:]:
        gc.enable()  # for programs that run longer than a request
    from .__main__ import main as run

    return run()


def prepare(names: list[str]) -> None:
    """Import and rehearse what requests need, for their snapshot (docs/self-contained.md).

    Nothing may remain that belongs to the building process; the main program renews the rest.
    """
    from . import standins

    standins.enable()
    for name in names:
        __import__(name)
    from .rehearsal import rehearse

    rehearse()
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, name, None)
        setattr(sys, f"__{name}__", None)
    sys.argv, sys.orig_argv = [], []
    os.environ.clear()
    gc.collect()
    # else the first collection would write to each object's header, and each
    # page that is written to has to be copied
    gc.freeze()
