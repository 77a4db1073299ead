"""Archives whose bytes depend on their content alone."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A file, a directory (no `data`, no `link`) or a symbolic link; `name` is a relative path."""

    name: str
    data: bytes | None = None
    mode: int = 0o644
    link: str | None = None


def directories(entries: Iterable[Entry]) -> list[Entry]:
    """The directories above `entries`, the outermost first."""
    above = {str(each) for entry in entries for each in Path(entry.name).parents}
    return [Entry(name, mode=0o755) for name in sorted(above - {"."})]


def tar(entries: Iterable[Entry], epoch: int) -> bytes:
    """A tar file of `entries` in their order, all of root's, changed at `epoch`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.mtime = epoch
            info.uname = info.gname = "root"
            if entry.link is not None:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
                archive.addfile(info)
            elif entry.data is None:
                info.type, info.mode = tarfile.DIRTYPE, entry.mode
                archive.addfile(info)
            else:
                info.size, info.mode = len(entry.data), entry.mode
                archive.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def compress(data: bytes) -> bytes:
    """`data` in gzip's form, without a time."""
    return gzip.compress(data, 9, mtime=0)
