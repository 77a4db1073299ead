"""Network namespaces: open and verify them, and run work in them from a forked child."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from .unsupported import (
        Executor,
        ExecutorDied,
        Namespace,
        NetnsError,
        NetnsMissing,
        RemoteTraceback,
        same_namespace,
    )
else:
    from .executor import Executor, ExecutorDied, RemoteTraceback
    from .namespace import Namespace, NetnsError, NetnsMissing, same_namespace

__all__ = [
    "Executor",
    "ExecutorDied",
    "Namespace",
    "NetnsError",
    "NetnsMissing",
    "RemoteTraceback",
    "same_namespace",
]
