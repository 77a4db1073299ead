"""The process that looks after this node's blocks of a cluster (cni.ipam.cluster.rounds).

It runs only on a node with such blocks. It is a child of the supervisor, so that no request waits
for a store. It may end at any moment: the ledger records unfinished changes.
"""

from __future__ import annotations

import os
import time

from .child import PAUSE, Child


class Tending(Child):
    """Keeps the process running."""

    name = "cni-cluster"
    what = "the process for blocks of addresses"

    def keep(self) -> None:
        """Start the process if there are blocks; looks every ten seconds. Raises nothing."""
        if self._pid or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + PAUSE
        if _has_blocks():
            self._start(self._log)

    def run(self) -> None:
        """Claim blocks ahead, compare them with the store, give blocks back; until a signal."""
        from ..ipam.cluster import rounds

        rounds.forever(os.environ, self._log)


def _has_blocks() -> bool:
    """Does this node have blocks in the directory that its settings name?"""
    from ..protocol.errors import CNIError
    from ..store import settings

    try:
        directory = os.path.join(settings.data_dir({}, os.environ), ".cni")
        return any(name.endswith(".blocks") for name in os.listdir(directory))
    except (CNIError, OSError):
        return False
