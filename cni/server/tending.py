"""Processes that talk to the cluster's store: for this node's blocks (cni.ipam.cluster.rounds), and
for the peers of its overlay networks (cni.plugins.shared.peers_watch).

Each runs only on a node with such blocks or networks. They are children of the supervisor, so that
no request waits for a store. They may end at any moment: ledger and notes have what is unfinished.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from .child import PAUSE, Child

if TYPE_CHECKING:
    from ..store.settings import Settings


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


class Following(Child):
    """The process that follows the other nodes of overlay networks (plugins.shared.peers_watch)."""

    name = "cni-peers"
    what = "the process for peers of networks"

    def keep(self) -> None:
        """Start it, if there are such networks; looks every ten seconds. Raises nothing."""
        if self._pid or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + PAUSE
        if any(name.startswith("endpoints") for name in _sidecars()):
            self._start(self._log)

    def run(self) -> None:
        """Publish, watch and compare, until it is ended."""
        from ..plugins.bridge import vxlan_peers
        from ..plugins.shared import peers_watch
        from ..plugins.wireguard import peers

        overlays = {each.kind: each for each in (vxlan_peers.OVERLAY, peers.OVERLAY)}
        peers_watch.forever(os.environ, self._log, self._register, overlays)

    def _register(self, its: Settings) -> None:
        """Renew this node in the store: others tell by it that it is gone. Raises StoreError,
        CNIError.
        """
        if not its.timeout:
            return
        from ..ipam.cluster.claim import Claims
        from ..ipam.cluster.node import Node
        from ..store import engines

        node = Node(its.data_dir, its.node)
        with node.claiming():
            store = engines.connect(its.store)
            try:
                claims = Claims(store, its, node, self._log)
                claims.renews = True
                claims.register()
            finally:
                store.close()


def _has_blocks() -> bool:
    """Does this node have blocks in the directory that its settings name?"""
    return any(name.endswith(".blocks") for name in _sidecars())


def _sidecars() -> list[str]:
    """What is beside the reservations in the directory that the node's settings name."""
    from ..protocol.errors import CNIError
    from ..store import settings

    try:
        return os.listdir(os.path.join(settings.data_dir({}, os.environ), ".cni"))
    except (CNIError, OSError):
        return []
