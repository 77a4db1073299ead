"""The result cache: the results of ADDs, for CHECK, DEL and GC (docs/spec/protocol.md §8.2).

One file for each attachment, ``<directory>/results/<network>-<container id>-<interface>``, in
libcni's format, so that container runtimes and this tool see each other's attachments.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cni import files
from cni.protocol import config
from cni.protocol import version as versions
from cni.protocol.errors import CNIError
from cni.protocol.request import check_container_id, check_ifname, check_network_name
from cni.protocol.result import Result

from . import errors, gojson

try:  # hashlib would load OpenSSL
    from _sha2 import sha256  # type: ignore[import-not-found]  # Python 3.12 and later
except ImportError:
    from _sha256 import sha256  # type: ignore[import-not-found]

DEFAULT_DIRECTORY = "/var/lib/cni"
KIND = "cniCacheV1"
# Linux's NAME_MAX, in bytes
_NAME_MAX = 255
# A damaged or foreign file must not fill the memory.
_MAX_SIZE = 16 << 20  # bytes of a file


class Attachment(NamedTuple):
    """An interface of a container in a network, and the runtime's arguments for it."""

    container_id: str
    network: str
    ifname: str
    netns: str = ""
    args: tuple[tuple[str, str], ...] = ()
    capability_args: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """``<network>/<container id>/<interface>``."""
        return f"{self.network}/{self.container_id}/{self.ifname}"


class Kept(NamedTuple):
    """A file of the cache, written at `since` (seconds since 1970).

    `config` is the configuration of the network at the ADD, `result` the result as JSON.
    """

    attachment: Attachment
    path: str
    since: float
    config: bytes
    result: dict[str, Any] | None


class Outcome(NamedTuple):
    """An ADD's result and the version in which the plugin printed it."""

    result: Result
    version: str

    def as_dict(self, version: str = "") -> dict[str, Any]:
        """The JSON object in `version`, or in its own. Raises CNIError."""
        wanted = version or self.version
        if wanted not in versions.ALL:
            raise CNIError(f"no converter for CNI result version {self.version} to {wanted}")
        try:
            return self.result.as_dict(wanted)
        except CNIError:
            if wanted != self.version:
                raise
            # Only a conversion needs an address, not what was in the oldest format anyway.
            return {"cniVersion": wanted, "dns": self.result.dns.as_dict()}


class Cache:
    """The cache below one directory (usually /var/lib/cni)."""

    def __init__(self, directory: str = DEFAULT_DIRECTORY) -> None:
        self.directory = directory
        self.results = os.path.join(directory, "results")

    def path(self, attachment: Attachment) -> str:
        """The attachment's file. Raises CNIError for names that cannot be part of one."""
        network, container_id, ifname = (
            attachment.network,
            attachment.container_id,
            attachment.ifname,
        )
        if not (network and container_id and ifname):
            quoted = [gojson.quote(part) for part in (network, container_id, ifname)]
            raise CNIError(
                f"cache file path requires network name ({quoted[0]}), container ID ({quoted[1]}), "
                f"and interface name ({quoted[2]})"
            )
        check_network_name(network)
        check_container_id(container_id)
        check_ifname(ifname)
        return os.path.join(self.results, f"{network}-{container_id}-{ifname}")

    def prepare(self, attachment: Attachment) -> None:
        """Check, before the first plugin runs, that `write` can succeed. Raises CNIError."""
        with _failing_to_set(attachment.network):
            name = os.path.basename(self.path(attachment))
            if len(os.fsencode(name)) > _NAME_MAX:
                raise CNIError(
                    f"open {self.results}/{name}: file name too long",
                    "use a shorter network name or container id",
                )
            _make_directories(self.results)
            if not os.access(self.results, os.W_OK | os.X_OK):
                raise CNIError(
                    f"open {self.results}: permission denied",
                    "run as root, or choose another directory with --cache-dir",
                )

    def write(self, attachment: Attachment, data: bytes, result: dict[str, Any]) -> None:
        """Keep `result` (JSON) and the network's configuration.

        A failure leaves the file as it was. Raises CNIError.
        """
        content = gojson.encode(_record(attachment, data, result))
        with _failing_to_set(attachment.network):
            _make_directories(self.results)
            path = self.path(attachment)
            # A network's name cannot begin with a dot; a shorter one also fits where `path` did.
            temporary = os.path.join(self.results, f".{os.getpid()}-{os.urandom(4).hex()}.tmp")
            # By rename, so that runtimes never read half a result.
            files.replace(path, content, temporary=temporary)

    def read(self, attachment: Attachment) -> Outcome | None:
        """The result that was kept; None if there is none. Raises CNIError if it is unusable."""
        path = self.path(attachment)
        try:
            data = files.read(path, _MAX_SIZE, follow=True)
        # For example a FIFO, on which an open would wait for ever.
        except files.Unusable as error:
            raise CNIError(f"open {path}: {error.strerror}", "remove it") from None
        except PermissionError as error:
            raise CNIError(
                f"open {path}: {(error.strerror or '').lower()}", "run as root"
            ) from None
        except OSError:
            return None
        try:
            raw = gojson.decode(data)
            if not isinstance(raw, dict):
                raise CNIError(f"{gojson.json_type(raw)} is not a result")
            record = _lower(raw)
            if record.get("kind") == KIND:
                raw = record.get("result") or {}
            # Else the file is the result itself, as in libcni before 0.8.
            return outcome(raw, "")
        except CNIError as error:
            error.details = f"{error.details}; in {path}" if error.details else f"in {path}"
            raise

    def remove(self, attachment: Attachment) -> None:
        """Remove an attachment's file; a missing one is no error."""
        with contextlib.suppress(OSError):
            os.unlink(self.path(attachment))

    def sweep(self) -> None:
        """Remove the files of a `write` that was killed; call it under ``lock(None)``."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.results):
                if name.startswith(".") and name.endswith(".tmp"):
                    os.unlink(os.path.join(self.results, name))

    def attachments(self) -> list[Attachment]:
        """All attachments in the cache, sorted by file name; skips other files."""
        try:
            return [kept.attachment for kept in self.kept()]
        except CNIError:
            return []

    def kept(self) -> list[Kept]:
        """All that is in the cache, sorted by file name; other files are left out.

        Raises NotPermitted, CommandError if the directory is there and cannot be read.
        """
        try:
            names_there = sorted(os.listdir(self.results), key=os.fsencode)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise errors.unreadable(self.results, error) from None
        read = (self._kept(name) for name in names_there if not name.startswith("."))
        return [kept for kept in read if kept is not None]

    def _kept(self, name: str) -> Kept | None:
        path = os.path.join(self.results, name)
        try:
            since = os.stat(path).st_mtime
            data = files.read(path, _MAX_SIZE, follow=True)
            record = _lower(gojson.decode_object(data))
            if record.get("kind") != KIND:
                return None
            attachment = Attachment(
                container_id=_text(record, "containerid"),
                network=_text(record, "networkname"),
                ifname=_text(record, "ifname"),
                netns=_text(record, "netns"),
                args=tuple((str(k), str(v)) for k, v in record.get("cniargs") or ()),
                capability_args=record.get("capabilityargs") or None,
            )
            network = base64.b64decode(_text(record, "config"), validate=True)
            self.path(attachment)
        except (OSError, CNIError, TypeError, ValueError, binascii.Error):
            return None
        result = record.get("result")
        return Kept(attachment, path, since, network, result if isinstance(result, dict) else None)

    @contextlib.contextmanager
    def lock(
        self, container_id: str | None, on_wait: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Hold the lock of a container, or with None of all of them (docs/spec/protocol.md §2).

        Each container has a byte of one file; GC locks all bytes. If another process has the lock,
        `on_wait` is called before the wait. If the file cannot be made, the cache cannot be changed
        either, so nothing is locked.
        """
        path = os.path.join(self.directory, ".lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield
            return
        try:
            start, length = 0, 0
            if container_id is not None:
                digest = sha256(container_id.encode("utf-8", "surrogateescape")).digest()
                # 56 bits, because off_t has 63. Containers that share a byte only wait for each
                # other.
                start, length = int.from_bytes(digest[:7], "big"), 1
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start, os.SEEK_SET)
            except OSError:
                on_wait()
                # lockf, because flock(2) cannot lock single bytes. The kernel releases the lock of
                # a process that dies.
                fcntl.lockf(fd, fcntl.LOCK_EX, length, start, os.SEEK_SET)
            yield
        finally:
            os.close(fd)


def outcome(raw: Any, config_version: str) -> Outcome:
    """A result object as printed or cached; a missing version is the configuration's.

    Raises CNIError.
    """
    own = config.lookup(raw, "cniVersion") if isinstance(raw, dict) else None
    version = own if isinstance(own, str) and own else config_version or versions.DEFAULT
    if isinstance(raw, dict) and own != version:
        raw = {key: value for key, value in raw.items() if key.lower() != "cniversion"}
    return Outcome(Result.parse(raw, version), version)


def _record(attachment: Attachment, data: bytes, result: dict[str, Any]) -> dict[str, Any]:
    """The file's content, keys in the order of libcni's struct."""
    record: dict[str, Any] = {
        "kind": KIND,
        "containerId": attachment.container_id,
        "config": base64.b64encode(data).decode(),
        "ifName": attachment.ifname,
        "networkName": attachment.network,
    }
    for key, value in (
        ("netns", attachment.netns),
        ("cniArgs", attachment.args),
        ("capabilityArgs", attachment.capability_args),
        ("result", result),
    ):
        if value:
            record[key] = value
    return record


def _lower(raw: dict[str, Any]) -> dict[str, Any]:
    """The object with its keys in lower case, since Go ignores their case."""
    return {key.lower(): value for key, value in raw.items()}


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key) or ""
    if not isinstance(value, str):
        raise TypeError(key)
    return value


@contextlib.contextmanager
def _failing_to_set(network: str) -> Iterator[None]:
    prefix = f'failed to set network "{network}" cached result: '
    try:
        yield
    except CNIError as error:
        raise error.wrapped(prefix) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CNIError(
            f"{prefix}{error.filename}: {reason}", "choose another directory with --cache-dir"
        ) from None


def _make_directories(path: str) -> None:
    """Like os.makedirs, with mode 0700 for each directory that is made."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent and parent != path:
        _make_directories(parent)
    # Another process may make it at the same time.
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
