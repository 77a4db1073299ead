"""The interpreter's image: an ELF program for a fixed address, which the native client maps.

It has CPython, msgspec's core, and all modules as frozen code. It is static and no PIE: nothing is
to be relocated at the start.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from tools.interpreter.cpython import Build, environment
from tools.interpreter.modules import BOOTSTRAP, Module
from tools.interpreter.sources import HERE, BuildError, run

# Above all that the kernel gives a program with a small beginning at 4 MB: the heap begins at most
# 1 GB behind it. Below 2 GB, where code may have addresses of 32 bits.
ADDRESS = 0x60000000
PAGE = {"x86_64": 4096, "aarch64": 65536}  # the largest of the architecture's kernels
_LINK = ("-static", "-no-pie", "-s")
_LINKER = (
    f"-Ttext-segment={ADDRESS:#x}",
    "--build-id=none",
    "--wrap=strerror",
    "-z,noseparate-code",
    "-z,norelro",
    "-z,noexecstack",
    "-z,stack-size=1048576",  # of threads, for which musl takes 128 KB otherwise
)

# struct image of launcher/image.c: magic, start, size and end of file, its checksum, the headers'
_DESCRIPTOR = struct.Struct("<16sQQQII")
_HEADERS = 64 + 8 * 56  # bytes of struct program there: an ELF header and eight segments
_MAGIC = b"cni-image\0\0\0\0\0\0\0"


def link(built: Build, modules: dict[str, Module], folder: Path, *flags: str) -> bytes:
    """The image of `modules`; `folder` is used for what lies between. Raises BuildError.

    `flags` are further ones of the compiler and the linker.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "log"
    _freeze(built, modules, folder, log)
    for name in ("main.c", "paths.c", "native.c", "errors.c"):
        shutil.copy(HERE / "src" / name, folder)
    sources = ["main.c", "paths.c", "native.c", "errors.c", "frozen.c", "marshalled.s"]
    compiler: list[str | Path] = [built.compiler, *built.flags, *flags, "-fwrapv", "-DNDEBUG"]
    compiler += ["-DPy_BUILD_CORE", f"-I{built.source}/Include/internal"]
    compiler += [f"-I{built.source}/Include", f"-I{built.source}", f"-ffile-prefix-map={folder}=."]
    compiler += [f"-I{HERE.parents[1] / 'launcher'}"]  # steps.h
    for source in sources:
        run([*compiler, "-c", source], log, cwd=folder, env=environment())
    linker = [
        f"-Wl,{option}" for option in (*_LINKER, f"-z,max-page-size={PAGE[built.target.arch]}")
    ]
    objects: list[str | Path] = [Path(source).with_suffix(".o") for source in sources]
    objects += [built.msgspec, *built.libraries, "-lm"]
    command: list[str | Path] = [built.compiler, *_LINK, *flags, *linker, "-o", "image", *objects]
    run(command, log, cwd=folder, env=environment())
    return (folder / "image").read_bytes()


def _freeze(built: Build, modules: dict[str, Module], folder: Path, log: Path) -> None:
    """Write frozen.c and what belongs to it."""
    (folder / "modules").mkdir()
    lines = []
    # The interpreter looks from the beginning: the request path comes first.
    for module in sorted(modules.values(), key=lambda module: (not module.is_deep, module.name)):
        kinds = "p" * module.is_package + "d" * module.is_deep or "-"
        lines.append(f"{module.name} {BOOTSTRAP.get(module.name, module.name)} {kinds}\n")
        (folder / "modules" / module.name).write_bytes(module.source)
    (folder / "modules/list").write_text("".join(lines))
    scripts = built.source / "Tools/scripts"
    # Columns mark a place in a line's text, which tracebacks there do not have: 0.6 MB.
    command: list[str | Path] = [built.python, "-I", "-X", "no_debug_ranges"]
    run([*command, HERE / "freeze.py", scripts, folder / "modules", folder], log, env=environment())


def assemble(client: bytes, image: bytes, archive_of: Callable[[int], bytes], page: int) -> bytes:
    """The whole file: client, image, and the zip that `archive_of(start)` makes."""
    start = -(-len(client) // page) * page
    head = client + bytes(start - len(client)) + image
    behind = image + archive_of(len(head))
    if client.count(_MAGIC) != 1:
        raise BuildError("the native client has no place for the image's description")
    end = start + len(behind)
    checksums = zlib.crc32(behind), zlib.crc32(behind[:_HEADERS])
    described = _DESCRIPTOR.pack(_MAGIC, start, len(image), end, *checksums)
    place = client.index(_MAGIC)
    client = client[:place] + described + client[place + len(described) :]
    return client + bytes(start - len(client)) + behind
