"""A .tar.gz that is written once, and gets its name whole or not at all.

The interpreter of the self-contained file has no tarfile, which needs gzip, bz2 and lzma; a header
of the format (POSIX ustar, pax for long names) has 512 bytes.
"""

from __future__ import annotations

import os
import stat
import zlib
from contextlib import suppress
from errno import EEXIST, EINVAL, EISDIR, ENOENT, EOPNOTSUPP
from types import TracebackType

from cni import files

from .. import errors

STDOUT = "-"
_BLOCK = 512
_NAME_MAX = 100
_GZIP = 31  # zlib's window bits for the largest window, with gzip's header
# By these a kernel or file system says that it has no O_TMPFILE (open(2), ERRORS).
_NO_UNNAMED = frozenset({EOPNOTSUPP, EISDIR, EINVAL, ENOENT})


class Archive:
    """`add` adds files; `finish` gives the archive its name. Without `finish` nothing is left.

    The mode is 0600. Raises CommandError (Refused if there is a file and not `force`).
    """

    def __init__(self, path: str, *, force: bool = False) -> None:
        self.path = path
        self.size = 0
        self._force = force
        self._gzip = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
        self._temporary = ""
        self._now = 0
        if path == STDOUT:
            self._fd = os.dup(1)
        else:
            _require_free(path, force)
            self._fd = self._open()

    def _open(self) -> int:
        directory = os.path.dirname(self.path) or "."
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            try:
                # A file without a name: nothing is left if the command is killed.
                fd = os.open(directory, flags | os.O_TMPFILE, 0o600)
                if os.path.exists(f"/proc/self/fd/{fd}"):
                    return fd
                os.close(fd)  # without /proc it could get no name
            except OSError as error:
                if error.errno not in _NO_UNNAMED or not os.path.isdir(directory):
                    raise
            self._temporary = f"{self.path}.{os.getpid()}.part"
            return os.open(self._temporary, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            self._temporary = ""
            raise _cannot_write(self.path, error) from None

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary)

    def add(self, name: str, data: bytes, modified: int) -> None:
        """Add a regular file; `modified` is in seconds since 1970. Raises CommandError."""
        raw = name.encode("utf-8", "surrogateescape")
        # pax: a record with the whole name comes before the file's own header.
        if len(raw) > _NAME_MAX:
            record = _pax("path", raw)
            self._write(_header(b"pax", len(record), modified, b"x") + _padded(record))
            raw = raw[:_NAME_MAX]
        self._write(_header(raw, len(data), modified, b"0") + _padded(data))

    def finish(self) -> None:
        """Write the end, and give the file its name. Raises CommandError."""
        self._put(self._gzip.compress(bytes(2 * _BLOCK)) + self._gzip.flush())
        if self.path == STDOUT:
            return
        try:
            # Before it gets its name, so that a full disk or a crash leaves no torn archive under
            # it.
            os.fsync(self._fd)
            self._link()
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def _link(self) -> None:
        """Raises OSError."""
        if self._temporary and self._force:
            os.replace(self._temporary, self.path)
            self._temporary = ""
            return
        source = self._temporary or f"/proc/self/fd/{self._fd}"
        target = f"{self.path}.{os.getpid()}.part" if self._force else self.path
        try:
            # linkat(2) with AT_SYMLINK_FOLLOW, which os.link uses only if it is given a descriptor
            os.link(source, target, src_dir_fd=self._fd, follow_symlinks=True)
        except FileExistsError:
            raise
        except OSError:
            if not self._temporary:
                raise
            _require_free(self.path, self._force)  # a file system without hard links
            os.rename(self._temporary, self.path)
            self._temporary = ""
            return
        if self._force:
            try:
                os.replace(target, self.path)
            except OSError:
                os.unlink(target)
                raise

    def _write(self, data: bytes) -> None:
        self._put(self._gzip.compress(data))

    def _put(self, data: bytes) -> None:
        try:
            files.write_all(self._fd, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        self.size += len(data)


def _require_free(path: str, force: bool) -> None:
    """Raises Refused, CommandError."""
    try:
        # lstat: a link is replaced, and not what it leads to.
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_write(path, error) from None
    if not stat.S_ISREG(mode) and not (force and stat.S_ISLNK(mode)):
        raise errors.CommandError(
            f"{path} is there, and no regular file", "name another file, or - for stdout"
        )
    if not force:
        raise errors.Refused(f"{path} is there already", "--force replaces it")


def _cannot_write(path: str, error: OSError) -> errors.CommandError:
    if error.errno == EEXIST:
        return errors.Refused(f"{path} is there already", "--force replaces it")
    reason = (error.strerror or str(error)).lower()
    kind = errors.NotPermitted if isinstance(error, PermissionError) else errors.CommandError
    return kind(
        f"cannot write {'stdout' if path == STDOUT else path}: {reason}",
        "nothing was left there; -o names a file in another directory, and `-o -` writes to stdout",
    )


def _header(name: bytes, size: int, modified: int, kind: bytes) -> bytes:
    """A header of ustar: names of at most 100 bytes, sizes below 8 GiB."""
    fields = (
        name.ljust(_NAME_MAX, b"\0"),
        b"0000600\0" + b"0000000\0" * 2,  # mode, owner, group
        b"%011o\0" % size,
        b"%011o\0" % max(modified, 0),
        b" " * 8,  # the checksum is of the header with blanks here
        kind,
        bytes(100),
        b"ustar\x0000",
    )
    header = bytearray(b"".join(fields).ljust(_BLOCK, b"\0"))
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _pax(key: str, value: bytes) -> bytes:
    """A record ``<length> <key>=<value>`` and a newline, whose length counts its own digits."""
    rest = b" " + key.encode() + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)
