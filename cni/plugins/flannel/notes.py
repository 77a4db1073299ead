"""flannel's notes: the configuration with which each attachment's delegate was called, for DEL.

    <dataDir>/<container id>:<ifname>   JSON, one file an attachment
    <dataDir>/<container id>            a link to the newest of them, for the reference; or the
                                        reference's own note, that of the last attachment

Neither a container id nor an interface name can contain a colon. A note is written as
``:<network's hash>:<container id>:<ifname>`` and then renamed, so that no note is ever torn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EINVAL, ENOENT

from ... import files
from ...owner import Owner, file_name, network_key
from ...protocol.errors import CNIError
from ...protocol.request import Attachment

_MAX_SIZE = 32 << 20  # bytes; a configuration has at most half of that


class Note:
    """The note of one attachment, in the directory `data_dir`."""

    def __init__(self, data_dir: str, owner: Owner) -> None:
        container_id, ifname = owner.container_id, owner.ifname
        self.directory = data_dir or "."
        self.path = os.path.join(data_dir, _name(container_id, ifname))
        self.shared = os.path.join(data_dir, file_name(container_id))
        self._making = os.path.join(data_dir, _making(owner.network, container_id, ifname))

    def save(self, data: bytes) -> None:
        """Write the note, in place of an older one. Raises CNIError."""
        try:
            os.makedirs(self.directory, 0o700, exist_ok=True)
            # On the disk at once: it has to outlive a crash of the node, as the leases do.
            files.replace(self.path, data, sync=True, temporary=self._making)
            self._link()
        except (OSError, ValueError) as error:
            raise _explain("write", self.path, error) from None

    def _link(self) -> None:
        """Make the link by which the reference finds the note.

        A note of the reference stays: it may be that of the container's other interface.
        """
        if _target(self.shared) is not None:
            _unlink(self.shared)
        try:
            os.symlink(os.path.basename(self.path), self.shared)
        except FileExistsError:
            pass

    def load(self) -> bytes | None:
        """The contents of the note, else of the reference's note, else None. Raises CNIError."""
        data = _read(self.path)
        if data is None and _target(self.shared) is None:
            data = _read(self.shared)
        return data

    def remove(self) -> None:
        """Remove what load() read, the link to it, and a half-written note. Raises CNIError."""
        target = _target(self.shared)
        if target == os.path.basename(self.path) or (target is None and _is_gone(self.path)):
            _unlink(self.shared)
        _unlink(self.path)
        _unlink(self._making)


def _name(container_id: str, ifname: str) -> str:
    return file_name(f"{container_id}:{ifname}")


def _making(network: str, container_id: str, ifname: str) -> str:
    return file_name(f":{network_key(network)}:{container_id}:{ifname}")


def notes(data_dir: str, keep: frozenset[Attachment]) -> Iterator[tuple[Attachment, str, bytes]]:
    """The notes of all attachments but those in `keep`, each as (attachment, path, contents).

    `ifname` is "" where the note does not name it: in the reference's notes, and in those of
    container ids that are too long for a file's name. Raises CNIError.
    """
    kept = {_name(*attachment) for attachment in keep}
    # the reference's notes, which have the container's id alone as their name
    kept |= {file_name(attachment.container_id) for attachment in keep}
    for name in _names(data_dir):
        if name in kept:
            continue
        path = os.path.join(data_dir, name)
        container_id, _, ifname = name.partition(":")
        if container_id and _target(path) is None and os.path.isfile(path):
            data = _read(path)
            if data is not None:
                yield Attachment(container_id, ifname), path, data


def remove_begun(data_dir: str, network: str, keep: frozenset[Attachment]) -> None:
    """Remove the half-written notes of killed ADDs in this network. Raises CNIError."""
    start = f":{network_key(network)}:"
    kept = {_making(network, *attachment) for attachment in keep}
    for name in _names(data_dir):
        if name.startswith(start) and name not in kept:
            _unlink(os.path.join(data_dir, name))


def remove(path: str) -> None:
    """Remove a note that notes() gave, and a link to it. Raises CNIError."""
    _unlink(path)
    directory, target = os.path.split(path)
    for name in _names(directory):
        other = os.path.join(directory, name)
        if _target(other) == target:
            _unlink(other)


def _names(data_dir: str) -> list[str]:
    try:
        return sorted(os.listdir(data_dir or "."))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _explain("open", data_dir, error) from None


def _target(path: str) -> str | None:
    """The target of a symbolic link; None if the path is not one. Raises CNIError."""
    try:
        return os.readlink(path)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (EINVAL, ENOENT):
            return None
        raise _explain("read", path, error) from None


def _is_gone(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:
        raise _explain("read", path, error) from None
    return False


def _read(path: str) -> bytes | None:
    try:
        return files.read(path, _MAX_SIZE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _explain("read", path, error) from None


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise _explain("remove", path, error) from None


def _explain(operation: str, path: str, error: Exception) -> CNIError:
    reason = getattr(error, "strerror", None) or str(error)  # ValueError: a path with a NUL
    return CNIError(
        f"{operation} {path}: {reason.lower()}",
        "flannel keeps there what its DEL needs to know: it needs a directory that it can write "
        "to (dataDir, by default /var/lib/cni/flannel)",
    )
