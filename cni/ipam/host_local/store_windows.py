"""The store of host-local on Windows: without directory descriptors, links, an index and boot ids.

Names are those of the reference there: with ``_`` for the ``:`` of IPv6 addresses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from ... import files
from ...protocol.address import InvalidAddress, parse_ip
from . import reservation
from .reservation import IN_MAKING, LAST_RESERVED, is_address, may_be_reservation, name_of_file
from .store import Store

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)


class WindowsStore(Store):
    """The same by paths, looking at every file."""

    def __init__(self, path: str) -> None:
        super().__init__(path, -1, "", reclaim=False)  # without a boot's id there is no index

    def leases(self) -> dict[str, bytes]:
        """Name -> content, as of any Store."""
        if self._leases is None:
            self._leases = dict(_scan(self.path))
        return self._leases

    def content(self, name: str) -> bytes | None:
        """As of any Store."""
        return content(self.path, name)

    def last_reserved(self, range_id: int) -> bytes | None:
        """As of any Store."""
        text = content(self.path, f"{LAST_RESERVED}{range_id}")
        try:
            return parse_ip((text or b"").decode("ascii", "replace"))
        except InvalidAddress:
            return None

    def reserve(self, name: str, content: bytes, _namespace: bytes = b"") -> bool:
        """As of any Store. A kill before the file is written leaves a free address."""
        try:
            self._write(name, os.O_EXCL, content)
        except FileExistsError:
            if self.content(name) != b"":
                return False
            self._write(name, os.O_TRUNC, content)
        self._leases = None
        return True

    def release(self, name: str, content: bytes | None = None) -> None:  # noqa: ARG002
        """As of any Store."""
        with suppress(FileNotFoundError):
            os.unlink(_path(self.path, name))
        self._leases = None

    def set_last_reserved(self, range_id: int, name: str) -> None:
        """As of any Store."""
        path = _path(self.path, f"{LAST_RESERVED}{range_id}")
        files.replace(path, name.encode(), temporary=_path(self.path, IN_MAKING))

    def distrust(self) -> None:
        """Read the files again."""
        self._leases = None

    def _write(self, name: str, how: int, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | how | _BINARY
        fd = os.open(_path(self.path, name), flags, 0o600)
        try:
            files.write_all(fd, data)
        finally:
            os.close(fd)


def _scan(path: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of all reservations; b"" if torn. Raises OSError."""
    for name in filter(may_be_reservation, os.listdir(path)):
        text = content(path, name)
        if text is not None:
            yield name_of_file(name), text


def held(path: str) -> Iterator[tuple[float, str]]:
    """Since when (seconds since 1970) somebody has which address."""
    for name, text in _scan(path):
        if text and is_address(name):
            with suppress(OSError):
                yield os.stat(_path(path, name)).st_mtime, name


def content(path: str, name: str) -> bytes | None:
    """As `reservation.content`, by the directory's path."""
    return reservation.content(None, _path(path, name))


def _path(path: str, name: str) -> str:
    return os.path.join(path, name.replace(":", "_"))
