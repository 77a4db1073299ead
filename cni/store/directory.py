"""A store in a directory: the default for a single node, and for tests.

    <path>/items/<name>   an item, as JSON: its key, version and value
    <path>/lock           who changes or lists holds it
    <path>/history        changes for watches: history.py
    <path>/identity       a random number, made with the directory
    <path>/making         a file that is being written; what a kill leaves there is written over

An item's name is its key with `,` for `/`, and `.json`; a key that is too long for a file name has
its hash there, behind a `,`, with which no other name begins. An item appears (link(2)), changes
(rename(2)) and disappears (unlink(2)) in one system call, so that a kill at any other leaves it as
it was, and so does a full disk. To delete needs no space. Changes are on the disk when they are
answered.

A version is random: it does not come again, also after a file was put back by hand.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from typing import TYPE_CHECKING, Any

import msgspec

from .. import files, interrupts, lockfile
from ..protocol.errors import CNIError, Terminated
from .config import DirectoryOptions, check_path, decode
from .history import History, Line, read_since
from .interface import (
    Change,
    Conflict,
    Exists,
    Item,
    Listing,
    Refused,
    StoreError,
    Unavailable,
    Value,
)
from .keys import LARGEST_VALUE, LONGEST_KEY, check_key, check_prefix, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SUFFIX = ".json"
_LONGEST_NAME = 255  # bytes: NAME_MAX of every file system in use
_LARGEST_FILE = LARGEST_VALUE + LONGEST_KEY + 200
_IDENTITY_BYTES = 64
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25  # seconds between two looks of a watch


class _Stored(msgspec.Struct):
    key: str
    version: str
    value: Value


class _StoredRaw(msgspec.Struct):
    key: str
    version: str
    value: msgspec.Raw


_decode = msgspec.json.Decoder(_Stored).decode


class DirectoryStore:
    """The engine `directory` (interface.Store). The directory is made when it is needed.

    `timeout`: seconds to wait for the lock. For any number of processes and threads of one node.
    Without `sync` a change that was answered may be lost when the power fails.
    """

    def __init__(self, path: str, timeout: float = 10.0, *, sync: bool = True) -> None:
        self.name = f"directory {path}"
        self._path = path
        self._items = f"{path}/items"
        self._timeout = timeout
        self._sync = sync

    # --- one item ---

    def create(self, key: str, value: Value) -> Item:
        """Make an item. Raises Exists, StoreError."""
        check_key(key)
        encoded = encode(key, value)
        item = Item(key, value, os.urandom(8).hex())
        with self._locked() as history:
            path = self._file(key)
            if os.path.lexists(path):
                raise Exists(f"{key} is already in {self.name}")
            making = f"{self._path}/making"
            files.replace(making, _content(item, encoded), sync=self._sync)
            with _noted(history, Line(key, value, item.version)):
                # link(2) refuses a name that exists; rename(2) would replace the item
                _link(making, path, key)
            os.unlink(making)
            self._sync_directory()
        return item

    def read(self, key: str) -> Item | None:
        """The item, or None. Raises StoreError."""
        check_key(key)
        with self._errors():
            return self._read(self._file(key))

    def update(self, item: Item, value: Value) -> Item:
        """Replace the value of `item`. Raises Conflict, StoreError."""
        check_key(item.key)
        encoded = encode(item.key, value)
        changed = Item(item.key, value, os.urandom(8).hex())
        with self._locked() as history:
            path = self._file(item.key)
            self._check_version(path, item)
            with _noted(history, Line(item.key, value, changed.version)):
                making = f"{self._path}/making"
                data = _content(changed, encoded)
                files.replace(path, data, sync=self._sync, temporary=making)
            self._sync_directory()
        return changed

    def delete(self, item: Item) -> None:
        """Delete `item`. Raises Conflict, StoreError. Works on a full disk, too."""
        check_key(item.key)
        with self._locked() as history:
            path = self._file(item.key)
            self._check_version(path, item)
            try:
                history.begin(Line(item.key))
            except OSError:  # who watches lists again
                os.unlink(path)
            else:
                os.unlink(path)
                history.end()
            self._sync_directory()

    # --- many ---

    def list(self, prefix: str) -> Listing:
        """The items below `prefix`, of one moment. Raises StoreError.

        While the disk is full and the history was forgotten, a watch from there is Expired at once.
        """
        check_prefix(prefix)
        beginning = prefix.replace("/", ",")
        items: list[Item] = []
        with self._locked() as history:
            try:
                revision = history.position()
            except OSError as error:
                if error.errno not in (ENOSPC, EDQUOT):
                    raise
                revision = ""
            for name in os.listdir(self._items):
                # a name with `,` in front is the hash of a long key, which may have any prefix
                if name.endswith(_SUFFIX) and name.startswith((beginning, ",")):
                    item = self._read(f"{self._items}/{name}")
                    if item is not None and item.key.startswith(prefix):
                        items.append(item)
        items.sort()
        return Listing(items, revision)

    def watch(self, prefix: str, revision: str, seconds: float) -> Iterator[Change]:
        """Each change after `revision`, for so many seconds. Raises Expired, StoreError."""
        check_prefix(prefix)
        deadline = time.monotonic() + seconds
        pause = _FIRST_PAUSE
        while True:
            with self._errors():
                lines, latest = read_since(f"{self._path}/history", revision)
            for line, position in lines:
                if line.key.startswith(prefix):
                    yield _change(line, position)
            if latest != revision:
                yield Change("", None, latest)
            pause = _FIRST_PAUSE if lines else min(pause * 2, _LONGEST_PAUSE)
            revision = latest
            left = deadline - time.monotonic()
            if left <= 0:
                return
            interrupts.check()
            time.sleep(min(pause, left))

    # --- the store ---

    def clock(self) -> float | None:
        """The node's own."""
        return time.time()

    def identity(self) -> str:
        """A random number, made with the directory, and its file's inode and ctime.

        A directory that was restored from a copy has others there. One whose file system was put
        back as a whole is not recognised; the node's own state is usually put back with it. Raises
        StoreError.
        """
        path = f"{self._path}/identity"
        with self._locked():
            if not os.path.exists(path):
                files.replace(path, os.urandom(16).hex().encode(), sync=True)
                self._sync_directory(self._path)
            number = files.read(path, _IDENTITY_BYTES).decode("ascii", "replace")
            status = os.stat(path)
            return f"{number}-{status.st_ino}-{status.st_ctime_ns}"

    def close(self) -> None:
        """Nothing is kept open."""

    # --- files ---

    def _file(self, key: str) -> str:
        return f"{self._items}/{name_of(key)}"

    def _read(self, path: str) -> Item | None:
        """Raises OSError; Refused, if the file's content is no item or another one's."""
        try:
            data = files.read(path, _LARGEST_FILE)
        except FileNotFoundError:
            return None
        try:
            stored = _decode(data)
        except msgspec.MsgspecError as error:
            raise _damaged(path, str(error)) from None
        if f"{self._items}/{name_of(stored.key)}" != path:
            raise _damaged(path, f"it holds the item {stored.key}")
        return Item(stored.key, stored.value, stored.version)

    def _check_version(self, path: str, item: Item) -> None:
        present = self._read(path)
        if present is None:
            raise Conflict(f"{item.key} is not in {self.name} any more")
        if present.version != item.version:
            raise Conflict(f"{item.key} in {self.name} has been changed by somebody else")

    def _sync_directory(self, path: str = "") -> None:
        """Have the directory's entries on the disk."""
        if not self._sync:
            return
        fd = os.open(path or self._items, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # to synchronise a file does not write its entry in the directory (fsync(2))
            os.fsync(fd)
        finally:
            os.close(fd)

    @contextmanager
    def _locked(self) -> Iterator[History]:
        """Hold the lock. Raises StoreError."""
        with self._errors():
            os.makedirs(self._items, mode=0o700, exist_ok=True)
            path = f"{self._path}/lock"
            lock = files.open_regular(path, os.O_RDWR | os.O_CREAT)
            try:
                lockfile.acquire(lock, path, time.monotonic() + self._timeout)
                history = History(f"{self._path}/history")
                try:
                    yield history
                finally:
                    history.close()
            finally:
                lockfile.release(lock)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Make StoreErrors of the others."""
        try:
            yield
        except OSError as error:
            raise self._store_error(error) from error
        except Terminated:
            raise
        except CNIError as error:  # of the lock
            raise Unavailable(f"{self.name}: {error.msg}", error.details) from error

    def _store_error(self, error: OSError) -> StoreError:
        reason = (error.strerror or str(error)).lower()
        text = f"{self.name}: {error.filename or self._path}: {reason}"
        if error.errno in (ENOSPC, EDQUOT):
            return Unavailable(text, f"free space on the file system of {self._path}")
        if error.errno in (EROFS, EACCES, EPERM):
            return Refused(text, f"let this process write to {self._path}, or choose another path")
        return Unavailable(text, f"make {self._path} a directory on a file system that works")


def connect(options: Mapping[str, Any]) -> DirectoryStore:
    """The engine for a configuration (config.py). Raises Refused, which names the wrong key."""
    decoded = decode(options, DirectoryOptions)
    check_path("path", decoded.path)
    if not decoded.path:
        raise Refused("store.path is empty", "set it to a directory, or leave it out")
    return DirectoryStore(decoded.path.rstrip("/") or "/", decoded.timeout)


def name_of(key: str) -> str:
    """The file name of a key; no two keys have the same."""
    name = key.replace("/", ",") + _SUFFIX
    if len(name) <= _LONGEST_NAME:
        return name
    import hashlib

    return f",{hashlib.sha256(key.encode()).hexdigest()}{_SUFFIX}"


def _content(item: Item, encoded: bytes) -> bytes:
    return msgspec.json.encode(_StoredRaw(item.key, item.version, msgspec.Raw(encoded)))


def _link(making: str, path: str, key: str) -> None:
    try:
        os.link(making, path)
    except FileExistsError:  # somebody does not use the lock, such as on a network's file system
        raise Exists(f"{key} already exists") from None


@contextmanager
def _noted(history: History, line: Line) -> Iterator[None]:
    """Around the system call that makes a change."""
    history.begin(line)
    try:
        yield
    except BaseException:
        history.take_back()
        raise
    history.end()


def _change(line: Line, position: str) -> Change:
    if line.value is None or line.version is None:
        return Change(line.key, None, position)
    return Change(line.key, Item(line.key, line.value, line.version), position)


def _damaged(path: str, why: str) -> Refused:
    return Refused(
        f"{path} is damaged: {why}",
        "put back the file from a backup; remove it only if no node uses what its name says",
    )
