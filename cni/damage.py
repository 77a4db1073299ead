"""Whether a failure may come from a damaged file (docs/self-contained.md, "A damaged file")."""

from __future__ import annotations

import sys


def suspect() -> None:
    """Compare the self-contained file with its checksum, after a failure that damage could explain.

    Ends the process with an error that says so if the file is damaged. Does nothing where the
    interpreter is not part of the file.
    """
    if "_cni_embedded" in sys.builtin_module_names:
        import _cni_embedded

        _cni_embedded.suspect_damage()
