"""Stands in for netns/namespace.py on Windows, where CNI_NETNS is a name or a GUID."""

from __future__ import annotations

from typing import Any

from ..kernel.errors import NetnsError


class Namespace:
    """A namespace that can only be closed: none is ever opened, so it needs no other method."""

    @classmethod
    def open(cls, path: str) -> Any:
        raise NetnsError(f'"{path}": Windows has no network namespaces of this kind')

    def close(self) -> None:
        """Do nothing: nothing was opened."""


def same_namespace(_path: str) -> bool:
    """False: a container is never in our own namespace."""
    return False


def identify(_path: str) -> None:
    """None: a container's namespace has no identity that could be noted."""
