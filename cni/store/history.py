"""The changes of a directory's items, in their order: what a watch of it reads.

One file, in which every change is a line. Its first line names the epoch; a position is the epoch
and an offset in the file. A change is written without its line feed, then the item is changed, then
comes the line feed. So a line without one is a change of which nobody knows whether it happened,
because its writer was killed or failed: then a new epoch begins, and who watches has to list again.
That is also done when the file is long, and after a boot, since it is not synchronised to the disk.

Only who has the directory's lock writes. Readers need none: they look at the epoch afterwards.
"""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from .. import files
from .interface import Expired, Value

LIMIT = 4 << 20  # bytes, after which a new epoch begins
_LONGEST_HEADER = 200
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND


class Line(msgspec.Struct):
    """A change: `value` and `version` are those of the item since then, None if it was deleted."""

    key: str
    value: Value | None = None
    version: str | None = None


class _Header(msgspec.Struct):
    epoch: str
    boot: str


_decode_line = msgspec.json.Decoder(Line).decode
_decode_header = msgspec.json.Decoder(_Header).decode


class History:
    """The open file, for who has the lock. Every method raises OSError; `close` it."""

    def __init__(self, path: str) -> None:
        self._fd = files.open_regular(path, _FLAGS)
        self._begun: int | None = None

    def close(self) -> None:
        """If a change has neither ended nor been taken back, its line feed is missing."""
        os.close(self._fd)

    def position(self) -> str:
        """Where a watch goes on that knows everything until now."""
        epoch, size = self._settle()
        return f"{epoch}:{size}"

    def begin(self, line: Line) -> None:
        """Note a change that is about to be made; then call `end` or `take_back`.

        When that fails, the history is forgotten.
        """
        try:
            _, self._begun = self._settle()
            files.write_all(self._fd, msgspec.json.encode(line))
        except OSError:
            self.forget()
            raise

    def end(self) -> None:
        """The change was made. Raises nothing: without space the history is forgotten."""
        try:
            files.write_all(self._fd, b"\n")
        except OSError:
            self.forget()

    def take_back(self) -> None:
        """The change was not made."""
        os.ftruncate(self._fd, self._begun or 0)

    def forget(self) -> None:
        """Empty the file, which needs no space: the next change begins an epoch."""
        os.ftruncate(self._fd, 0)

    def _settle(self) -> tuple[str, int]:
        """The epoch and the size of a file whose last change is known to have happened."""
        size = os.fstat(self._fd).st_size
        header = read_header(self._fd)
        if (
            header is not None
            and header.boot == this_boot()
            and size <= LIMIT
            and os.pread(self._fd, 1, size - 1) == b"\n"
        ):
            return header.epoch, size
        self.forget()
        header = _Header(epoch=os.urandom(8).hex(), boot=this_boot())
        line = msgspec.json.encode(header) + b"\n"
        files.write_all(self._fd, line)
        return header.epoch, len(line)


def read_header(fd: int) -> _Header | None:
    """The first line; None if there is none."""
    line, end, _ = os.pread(fd, _LONGEST_HEADER, 0).partition(b"\n")
    if not end:
        return None
    with suppress(msgspec.MsgspecError):
        return _decode_header(line)
    return None


def this_boot() -> str:
    """The kernel's name for this boot; the empty string, where it tells none."""
    try:
        return files.read("/proc/sys/kernel/random/boot_id", 64).strip().decode()
    except (OSError, UnicodeDecodeError):
        return ""


def read_since(path: str, position: str) -> tuple[list[tuple[Line, str]], str]:
    """The changes after `position`, each with the position behind it, and the last position.

    Raises Expired, if they are not known any more; OSError.
    """
    epoch, _, offset = position.rpartition(":")
    if not epoch or not offset.isdecimal():
        raise Expired(f"{path} has no position {position!r}", "list again")
    try:
        fd = files.open_regular(path)
    except FileNotFoundError:
        raise Expired(f"{path} is gone", "list again") from None
    try:
        at = int(offset)
        os.lseek(fd, at, os.SEEK_SET)
        data = files.read_open(fd, 4 * LIMIT, path)
        # An epoch that is over never comes back: if it is the present one, `data` is of it.
        header = read_header(fd)
    finally:
        os.close(fd)
    if header is None or header.epoch != epoch:
        raise Expired(f"{path} has begun a new epoch", "list again")
    return _lines(path, data, epoch, at)


def _lines(path: str, data: bytes, epoch: str, at: int) -> tuple[list[tuple[Line, str]], str]:
    changes: list[tuple[Line, str]] = []
    *complete, _ = data.split(b"\n")
    for line in complete:
        at += len(line) + 1
        try:
            changes.append((_decode_line(line), f"{epoch}:{at}"))
        except msgspec.MsgspecError:
            raise Expired(f"{path} is damaged before byte {at}", "list again") from None
    return changes, f"{epoch}:{at}"
