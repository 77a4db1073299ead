"""The engines of stores, by the `type` of the settings. Loaded only when the store is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ...protocol.errors import CNIError, TryAgainLater
from .store.interface import Store, StoreError, Unavailable

TYPES = ("directory", "etcd", "kubernetes")


def connect(options: dict[str, Any] | None) -> Store:
    """The store that the settings describe. Raises CNIError naming the field, StoreError."""
    if options is None:
        raise CNIError(
            "no `store` is configured",
            'say where blocks are claimed, as ipam.store or in /etc/cni/cluster.json: {"store": '
            '{"type": "etcd", "endpoints": ["https://…"]}}, or of type kubernetes, or directory',
        )
    kind = options.get("type")
    if kind not in TYPES:
        raise CNIError(f"unknown store.type {kind!r}", f"there are {', '.join(TYPES)}")
    if kind == "directory":
        return _directory(options)
    store: Store = import_module(f"cni.ipam.cluster.store.{kind}").connect(options)
    return store


def _directory(options: dict[str, Any]) -> Store:
    from .store.directory import DirectoryStore

    path = options.get("path")
    if not isinstance(path, str) or not path.startswith("/"):
        raise CNIError(
            "store.path is missing" if path is None else f"store.path is no path: {path!r}",
            'a store in a directory is {"type": "directory", "path": "/var/lib/cni/blocks"}',
        )
    return DirectoryStore(path)


def explain(error: StoreError) -> CNIError:
    """What a verb says of a store's error."""
    text = f"cluster: {error}"
    if isinstance(error, Unavailable):
        why = error.remedy or "is the store running, and can this node reach it? Then try again"
        return TryAgainLater(text, why)
    return CNIError(text, error.remedy)
