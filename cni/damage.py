"""Is the file damaged? A check after failures (docs/self-contained.md, "A damaged file")."""

from __future__ import annotations

import sys


def suspect() -> None:
    """Compare the self-contained file with its checksum, after a failure that damage could explain.

    If the file is damaged, ends the process with that error. Does nothing if the interpreter is not
    part of the file.
    """
    if "_cni_embedded" in sys.builtin_module_names:
        import _cni_embedded

        _cni_embedded.suspect_damage()
