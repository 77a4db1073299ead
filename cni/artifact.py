"""The built file: its build id, its bytes with another interpreter, and plugins' small files.

The server and the installer read it, so it imports neither.
"""

from __future__ import annotations

import binascii
import re
import stat
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

# Within this size is the script that starts Python: at the beginning, or in the native client.
HEAD_SIZE = (1 << 20) + 4096

_BUILD = re.compile(rb"^cni_build=([0-9a-f]{12})$", re.MULTILINE)
_PYTHON = re.compile(rb"^cni_python='[^'\n]*'[^\n]*$", re.MULTILINE)

# Begins the settings of a file that carries its interpreter; in others the script begins there.
_EMBEDDED = b"#!cni\ncni_build="

# Says where the interpreter is, and the checksum of what is behind the client (launcher/image.c).
_IMAGE = struct.Struct("<16sQQQII")
_IMAGE_MAGIC = b"cni-image"

# The mark by which the native client is told that it is a plugin's small file (launcher/beside.h).
_WHOLE, _STUB = b"cni-stub=0\0", b"cni-stub=1\0"


class InstallError(Exception):
    """Nothing was changed, or what was installed before still works; the text says what to do."""


@dataclass(frozen=True)
class Launcher:
    """A built file: where it is, its build id, and its bytes."""

    build: str
    data: bytes
    path: Path

    @classmethod
    def read(cls, path: Path) -> Launcher:
        """Read the file `path`. Raises InstallError if it is not a built file."""
        try:
            build = build_of(path)
            data = path.read_bytes()
        except OSError as error:
            raise InstallError(f"cannot read {path}: {error.strerror}") from error
        if build is None:
            raise InstallError(
                f"{path} is not the built file: run `make build`, then dist/cni install"
            )
        launcher = cls(build, data, path)
        if launcher.is_embedded and not launcher._is_intact():
            raise InstallError(f"{path} is damaged: copy or download it again")
        return launcher

    def _is_intact(self) -> bool:
        """Is a file that carries its interpreter unchanged since it was built?"""
        place = self.data.find(_IMAGE_MAGIC, 0, HEAD_SIZE)
        if place < 0:
            return False
        _, start, _, end, checksum, _ = _IMAGE.unpack_from(self.data, place)
        return len(self.data) >= end and binascii.crc32(self.data[start:end]) == int(checksum)

    @property
    def is_native(self) -> bool:
        """Does the file begin with the native client, not with the script?"""
        return self.data.startswith(b"\x7fELF")

    @property
    def is_embedded(self) -> bool:
        """Does the file carry its interpreter, so that it needs neither Python nor a tree?"""
        return _EMBEDDED in self.data[:HEAD_SIZE]

    def with_python(self, python: str) -> bytes:
        """The file's bytes with the absolute path `python` as its interpreter.

        The archive keeps its place in the file. Raises InstallError for a path that does not fit.
        """
        head, rest = self.data[:HEAD_SIZE], self.data[HEAD_SIZE:]
        line = _PYTHON.search(head)
        text = f"cni_python='{python}'  # ".encode()
        if line is None or "'" in python or "\n" in python or len(text) > len(line[0]):
            raise InstallError(f"the path of the interpreter is too long or has quotes: {python}")
        return head.replace(line[0], text.ljust(len(line[0]), b".")) + rest


def stub_of(data: bytes) -> bytes | None:
    """The small file for a plugin's name, made of a built file's bytes: the native client alone.

    It uses the file `cni` beside it for everything else (launcher/beside.h). So a program that
    writes to a plugin's file changes that plugin only. None if the file starts with the script.

    It ends with the line of the build id: a plugin that delegates to another one recognises the
    file by its last bytes (cni.delegate.is_ourselves).
    """
    build = _BUILD.search(data, 0, HEAD_SIZE)
    if data.count(_WHOLE, 0, HEAD_SIZE) != 1 or build is None:
        return None
    return data[: _client_size(data)].replace(_WHOLE, _STUB) + b"\n" + build[0] + b"\n"


def _client_size(data: bytes) -> int:
    """The size of the native client at the beginning of a built file, in bytes."""
    place = data.find(_IMAGE_MAGIC, 0, HEAD_SIZE)
    if place >= 0:
        return int(_IMAGE.unpack_from(data, place)[1])
    import io  # the server does not need this
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        return min(info.header_offset for info in bundle.infolist())


def is_stub(path: Path) -> bool:
    """Is this a plugin's small file, of any build? Raises OSError."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    with path.open("rb") as file:
        head = file.read(HEAD_SIZE)
    return _STUB in head and _BUILD.search(head) is not None


def embedded() -> bool:
    """Is the running interpreter part of the built file, so that nothing has to be unpacked?"""
    return "_cni_embedded" in sys.builtin_module_names


class OwnFile:
    """The file that this process was started from, and what becomes of it meanwhile.

    `cni install` replaces it by another build; programs that copy plugins may overwrite it.
    """

    def __init__(self, path: Path, build: str) -> None:
        self.path, self._build = path, build
        self._seen = self._last = self._mark()

    def change(self) -> str | None:
        """What is there since the last call: the id of another build, "" if it is no built file
        any more; None if nothing has changed, or it is still being written.
        """
        before, self._last = self._last, self._mark()
        if self._last == self._seen or self._last != before:
            return None
        self._seen = self._last
        try:
            found = build_of(self.path) or ""
        except OSError:
            found = ""
        return None if found == self._build else found

    def _mark(self) -> tuple[int, ...]:
        try:
            status = self.path.stat()
        except OSError:
            return ()
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def build_of(path: Path) -> str | None:
    """The build id of the built file `path`; None for any other file. Raises OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    with path.open("rb") as file:
        match = _BUILD.search(file.read(HEAD_SIZE))
    return match[1].decode() if match else None
