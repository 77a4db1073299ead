"""Network namespaces: open and verify them, and run work in them from a forked child."""

from .executor import Executor, ExecutorDied, RemoteTraceback
from .namespace import Namespace, NetnsError, NetnsMissing

__all__ = [
    "Executor",
    "ExecutorDied",
    "Namespace",
    "NetnsError",
    "NetnsMissing",
    "RemoteTraceback",
]
