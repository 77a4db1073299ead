"""Looks into released files, through archives and packages, for what must not be passed on."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator

# Where the module of Debian's nftables binding, which is GPL-2.0-only, would be.
FORBIDDEN = ("nftables/nftables.py", "nftables/nftables.pyc")


def forbidden(name: str, data: bytes) -> list[str]:
    """The paths of what must not be in the released file `name`."""
    return [path for path, _ in walk(name, data) if path.split("!")[-1].endswith(FORBIDDEN)]


def walk(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """The file `name`, and all files in it: path (`outer!inner`), content."""
    yield name, data
    for inner, content in _members(data):
        yield from walk(f"{name}!{inner}", content)


_COMPRESSED = {b"\x1f\x8b": gzip, b"\xfd7zXZ\0": lzma, b"BZh": bz2}


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The files that the archive `data` has; none if it is none."""
    for magic, module in _COMPRESSED.items():
        if data.startswith(magic):
            yield module.__name__, module.decompress(data)
            return
    # An ar archive, as .deb files are.
    if data.startswith(b"!<arch>\n"):
        yield from _ar(data)
    # The lead of an .rpm file.
    elif data.startswith(b"\xed\xab\xee\xdb"):
        done = subprocess.run(
            ["rpm2archive", "-n", "-"], input=data, capture_output=True, check=True
        )
        yield "payload.tar", done.stdout
    elif data[257:262] == b"ustar":
        yield from _tar(data)
    elif zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as zipped:
            for name in zipped.namelist():
                yield name, zipped.read(name)


def _tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read()


def _ar(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The members of an ar archive, as .deb files are: headers of 60 bytes, even offsets."""
    at = 8
    while at + 60 <= len(data):
        name = data[at : at + 16].decode().strip().rstrip("/")
        size = int(data[at + 48 : at + 58])
        yield name, data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
