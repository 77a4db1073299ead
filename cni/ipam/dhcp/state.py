"""Leases on disk, so that they survive the daemon: a file for each, replaced atomically.

Like namespaces they belong to one boot; the directory is on a tmpfs next to the socket.
"""

from __future__ import annotations

import os
import time

import msgspec

from ... import files, lockfile
from ...owner import digest
from ...protocol.errors import CNIError
from ...stderr import line as log
from . import binding4
from . import lease6 as leases6
from .conf import Options, PrefixDelegation
from .interface import Interface

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SUFFIX = ".json"
_LOCK = "lock"
_MAX_SIZE = 1 << 20  # bytes of a lease
_PATIENCE = 1.0  # seconds for another daemon to end


class Record(msgspec.Struct, omit_defaults=True):
    """An attachment: its ids, interface and options, and its leases."""

    boot: str
    container_id: str
    network: str
    ifname: str
    interface: Interface = msgspec.field(name="place")  # as earlier builds have written it
    options: Options
    priority: int = 0
    ipv4: bool = True
    ipv6: bool = False
    lease4: binding4.Lease4 | None = None
    lease6: leases6.Lease6 | None = None
    delegation: PrefixDelegation | None = None

    @property
    def key(self) -> str:
        """The client id as text, and the key of the map of leases."""
        return f"{self.container_id}/{self.network}/{self.ifname}"


class Directory:
    """The state directory, locked: a second daemon would answer for the first one's leases."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(_BOOT_ID, encoding="ascii") as file:
            self.boot = file.read().strip()
        os.makedirs(path, mode=0o700, exist_ok=True)
        lock = os.path.join(path, _LOCK)
        self._lock = files.open_regular(lock, os.O_RDWR | os.O_CREAT)
        try:
            lockfile.acquire(self._lock, lock, time.monotonic() + _PATIENCE)
        except CNIError:
            os.close(self._lock)
            raise

    def close(self) -> None:
        lockfile.release(self._lock)

    def save(self, record: Record) -> None:
        """Write or replace a lease. A full disk is only logged: the lease is lost at a restart."""
        path = self._file(record.key)
        try:
            files.replace(path, msgspec.json.encode(record), temporary=f"{path}.new")
        except OSError as error:
            log(f"{record.key}: cannot write {path}, a restart will forget this lease: {error}")

    def remove(self, key: str) -> None:
        try:
            os.unlink(self._file(key))
        except FileNotFoundError:
            pass
        except OSError as error:
            log(f"{key}: {error}")

    def load(self) -> list[Record]:
        """The leases of this boot; removes those of an earlier boot, and torn files.

        A file that cannot be read now stays, and DEL of its attachment tries again.
        """
        records = []
        for name in sorted(os.listdir(self.path)):
            if name == _LOCK:
                continue
            path = os.path.join(self.path, name)
            try:
                record = self._read(path)
                if record is not None:
                    records.append(record)
                    continue
                log(f"{path} is removed: of an earlier boot, or not complete")
                os.unlink(path)
            except OSError as error:
                log(f"{path} is left alone, its lease is not maintained: {error.strerror}")
        return records

    def find(self, key: str) -> Record | None:
        """The lease of one attachment of this boot; None if there is none. Raises OSError."""
        try:
            return self._read(self._file(key))
        except FileNotFoundError:
            return None

    def _read(self, path: str) -> Record | None:
        """A file's record; None if torn, of an earlier boot or misplaced. Raises OSError."""
        try:
            record = msgspec.json.decode(files.read(path, _MAX_SIZE), type=Record)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        # after a boot, device and inode may be those of another namespace
        is_ours = record.boot == self.boot and path == self._file(record.key)
        return record if is_ours else None

    def _file(self, key: str) -> str:
        return os.path.join(self.path, digest(key)[:32] + _SUFFIX)
