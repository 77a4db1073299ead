"""The store of the settings, and what its errors say. Loaded only when the store is needed."""

from __future__ import annotations

from typing import Any

from ..protocol.errors import CNIError, TryAgainLater
from .config import open_store
from .interface import Store, StoreError, Unavailable


def connect(options: dict[str, Any] | None) -> Store:
    """The store that the settings describe. Raises StoreError, CNIError."""
    if options is None:
        raise CNIError(
            "no `store` is configured",
            'say where blocks are claimed, as ipam.store or in /etc/cni/cluster.json: {"store": '
            '{"type": "etcd", "endpoints": ["https://…"]}}, or of type kubernetes, or directory',
        )
    return open_store(options)


def explain(error: StoreError, plugin: str = "cluster") -> CNIError:
    """What a verb of `plugin` says of a store's error."""
    text = f"{plugin}: {error}"
    if isinstance(error, Unavailable):
        why = error.remedy or "is the store running, and can this node reach it? Then try again"
        return TryAgainLater(text, why)
    return CNIError(text, error.remedy)
