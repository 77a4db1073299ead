"""Network namespaces: open and verify them, and run work in them from a forked child."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from .unsupported import Namespace, identify, same_namespace
else:
    from .namespace import Namespace, identify, same_namespace

__all__ = ["Namespace", "identify", "same_namespace"]
