"""In place of namespaces where there are none: on Windows, CNI_NETNS is a name or a GUID."""

from __future__ import annotations

from typing import Any

from ..kernel.errors import NetnsError


class Namespace:
    """Cannot be opened, so that everything else of it has no need to be here."""

    @classmethod
    def open(cls, path: str) -> Any:
        raise NetnsError(f'"{path}": Windows has no network namespaces of this kind')

    def close(self) -> None:
        """Nothing was opened."""


def same_namespace(_path: str) -> bool:
    """A container is never in our own namespace."""
    return False


def identify(_path: str) -> None:
    """A container's namespace has no identity that could be noted."""
