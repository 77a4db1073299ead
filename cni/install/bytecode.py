"""Gives unpacked modules the archive's bytecode. Run as a program, by the plugins' interpreter.

    python -I -S bytecode.py TREE FINAL <ARCHIVE

writes for each compiled module of ARCHIVE, the built file, a file below TREE, where its source is.
Tracebacks name the source below FINAL, where TREE will be. Exit status 3: ARCHIVE was compiled by
another Python, whose bytecode this one cannot read; nothing is written then.

To take bytecode costs an eighth of what compiling costs.
"""

from __future__ import annotations

import marshal
import os
import sys
import zipfile
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from types import CodeType

ANOTHER_PYTHON = 3
_HEADER = 16  # bytes: the magic number, flags, and a hash of the source (PEP 552)
_UNCHECKED = (1).to_bytes(4, "little")  # the hash is not compared when the module is imported


def main(tree: str, final: str) -> int:
    with zipfile.ZipFile(sys.stdin.buffer) as archive:
        names = [name for name in archive.namelist() if name.endswith(".pyc")]
        for name in names:
            data = archive.read(name)
            if not data.startswith(MAGIC_NUMBER):
                return ANOTHER_PYTHON
            source = f"{tree}/{name[:-1]}"
            # A file that is not unpacked, such as __main__.py, needs no bytecode.
            if os.path.exists(source):
                code = _placed(marshal.loads(data[_HEADER:]), f"{final}/{name[:-1]}")
                _write(cache_from_source(source), _of(source) + marshal.dumps(code))
    return 0 if names else ANOTHER_PYTHON


def _placed(code: CodeType, path: str) -> CodeType:
    """The code as if it were compiled from the source at `path`."""
    inner = (_placed(each, path) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.replace(co_filename=path, co_consts=tuple(inner))


def _of(source: str) -> bytes:
    """The header of the bytecode of this source file."""
    with open(source, "rb") as file:
        return MAGIC_NUMBER + _UNCHECKED + source_hash(file.read())


def _write(path: str, data: bytes) -> None:
    """Have the file with this content, whole: plugins may run from the tree. Raises OSError."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
