"""Files of this node below `<dataDir>/.cni/`, and who it is: a name, and an id it gave itself once.

.cni/node      the identity
.cni/claims    the lock of the process that changes it, or talks to a store for the node
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from .. import files, lockfile
from ..protocol.errors import CNIError, TryAgainLater, advice_for

SIDECARS = ".cni"
_MOST = 16 << 20
_ADVICE = (
    "what this node knows of the cluster is kept there: let it be a directory that can be written "
    "to, or set dataDir"
)
_ONE_BY_ONE = (
    "processes of a node ask the store one by one, and each waits as long as that does not answer: "
    "look whether the store can be reached, then try again"
)


class Identity(msgspec.Struct):
    """Who this node is: a name, and a random id that it gave itself once."""

    name: str
    uid: str


def identity(data_dir: str, name: str) -> Identity:
    """Who this node is; it gives itself an id when there is none. Under `claiming`.

    Raises CNIError if it had another name before: what it has in a store is under that.
    """
    path = os.path.join(data_dir, SIDECARS, "node")
    known: Identity | None = read(path, Identity)
    if known is None:
        known = Identity(name, os.urandom(16).hex())
        write(path, known, sync=True)
    if known.name != name:
        raise CNIError(
            f"this node is {known.name} in the store, not {name}",
            f"its blocks are claimed under that name: set nodeName to {known.name}. To give the "
            f"node another name, first remove, while it is {known.name}, all containers of its "
            f"networks, release its blocks with `cni ipam sync --release`, and remove {path}",
        )
    return known


@contextmanager
def claiming(data_dir: str, timeout: float = lockfile.TIMEOUT) -> Iterator[None]:
    """One process of the node at a time talks to a store. Raises TryAgainLater."""
    with locked(os.path.join(data_dir, SIDECARS, "claims"), timeout, advice=_ONE_BY_ONE):
        yield


@contextmanager
def locked(path: str, timeout: float = lockfile.TIMEOUT, advice: str = "") -> Iterator[None]:
    """Hold the lock of a file, which is made if it is missing.

    Raises CNIError, TryAgainLater; the latter with this `advice`, if there is one.
    """
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        fd = lockfile.take(path, timeout)
    except TryAgainLater as error:
        raise TryAgainLater(error.msg, advice or error.details) from None
    except OSError as error:
        raise explain("open", path, error) from None
    try:
        yield
    finally:
        lockfile.release(fd)


def read(path: str, kind: Any) -> Any:
    """The value in a file, None if there is none. Raises CNIError."""
    try:
        return msgspec.json.decode(files.read(path, _MOST), type=kind)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except OSError as error:
        raise explain("read", path, error) from None
    except msgspec.MsgspecError:
        raise CNIError(
            f"{path} is damaged",
            "it says what this node has in the store: remove it while no ADD runs; then `cni ipam "
            "sync`, or the next ADD, writes it anew from the store",
        ) from None


def write(path: str, value: Any, sync: bool = False) -> None:
    """Replace a file. With `sync` it is on the disk then, its name too. Raises CNIError."""
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        files.replace(path, msgspec.json.encode(value), sync=sync)
        # without this, a power failure may take the name away again
        if sync:
            fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError as error:
        raise explain("write", path, error) from None


def boot_time() -> float:
    """Seconds since the boot, suspends included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def explain(operation: str, path: str, error: OSError) -> CNIError:
    """``open <path>: permission denied``, and what to do."""
    reason = (error.strerror or str(error)).lower()
    return CNIError(f"{operation} {path}: {reason}", advice_for(error) or _ADVICE)
