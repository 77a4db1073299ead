"""The addresses that pods had: with `sticky`, a new pod of that name gets its address back if free.

    <dataDir>/.cni/<network>.sticky

A file of fixed size: the hash of a pod's name selects a bucket of entries, the most recent one
first; a new entry replaces the oldest one. So the size is bounded, however many pods come and go:
it has room for some 65,000 names. It is a hint: with a wrong or lost entry a pod only gets another
address.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ... import files
from .directory import SIDECARS

_BUCKETS = 4096
_KEY, _ADDRESS = 12, 16
_ENTRY = _KEY + 1 + _ADDRESS  # hash of the name, length of the address, address
_BUCKET = _ENTRY * 16


class Memory:
    """The addresses that a pod had in a network. Used under the network's lock. Raises nothing."""

    def __init__(self, data_dir: str, network: str, pod: tuple[str, ...]) -> None:
        self._directory = os.path.join(data_dir, SIDECARS)
        self._path = os.path.join(self._directory, f"{network}.sticky")
        self._pod = "\0".join(pod)

    def recall(self, range_id: int) -> bytes | None:
        """The address (packed) that the pod had from a range set; None if that is not known."""
        key, at = self._position(range_id)
        with suppress(OSError):
            fd = files.open_regular(self._path)
            try:
                for entry in _entries(os.pread(fd, _BUCKET, at)):
                    if entry.startswith(key):
                        length = entry[_KEY]
                        return entry[_KEY + 1 : _KEY + 1 + length] if length in (4, 16) else None
            finally:
                os.close(fd)
        return None

    def keep(self, range_id: int, packed: bytes) -> None:
        """Note the address (packed) that the pod has from a range set now."""
        key, at = self._position(range_id)
        with suppress(OSError):
            with suppress(FileExistsError):
                os.mkdir(self._directory, 0o700)
            fd = files.open_regular(self._path, os.O_RDWR | os.O_CREAT)
            try:
                others = _entries(os.pread(fd, _BUCKET, at))
                entries = [key + bytes([len(packed)]) + packed.ljust(_ADDRESS, b"\0")]
                entries += [entry for entry in others if not entry.startswith(key)]
                os.pwrite(fd, b"".join(entries)[:_BUCKET], at)
            finally:
                os.close(fd)

    def _position(self, range_id: int) -> tuple[bytes, int]:
        from _blake2 import blake2b  # not hashlib, which loads OpenSSL

        name = f"{range_id}\0{self._pod}".encode("utf-8", "surrogateescape")
        digest = blake2b(name, digest_size=_KEY + 2).digest()
        return digest[:_KEY], int.from_bytes(digest[_KEY:], "big") % _BUCKETS * _BUCKET


def _entries(bucket: bytes) -> list[bytes]:
    entries = [bucket[i : i + _ENTRY] for i in range(0, len(bucket), _ENTRY)]
    return [entry for entry in entries if len(entry) == _ENTRY and any(entry)]
