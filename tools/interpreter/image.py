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

from tools.interpreter import annex
from tools.interpreter.cpython import Build, environment
from tools.interpreter.modules import BOOTSTRAP, Module
from tools.interpreter.snapshot import MAX_PARTS, Snapshot, is_made_for
from tools.interpreter.sources import HERE, BuildError, run
from tools.interpreter.touched import MAX_RUNS, NOTHING, Touched

# Above all that the kernel gives a program with a small beginning at 4 MB: the heap begins at most
# 1 GB behind it. Below 2 GB, where code may have addresses of 32 bits.
ADDRESS = 0x60000000
PAGE = {"x86_64": 4096, "aarch64": 65536}  # the largest of the architecture's kernels
_LINK = ("-static", "-no-pie")
# Between the kernel's heap and the image: what the snapshot has that was allocated (snapshot.c).
AREA = 0x50000000
_SOURCES = (
    *("main.c", "paths.c", "native.c", "errors.c"),
    *("snapshot.c", "immortal.c", "pools.c", "annex.c"),
)
_WRAPPED = tuple(
    f"--wrap={name}"
    for name in (
        *("strerror", "write", "malloc", "calloc", "realloc", "free"),
        *("Py_ExitStatusException", "_Py_FatalErrorFunc", "_Py_DumpPathConfig", "_PyErr_Print"),
    )
)
_LINKER = (
    f"-Ttext-segment={ADDRESS:#x}",
    "--build-id=none",
    *_WRAPPED,
    "-z,noseparate-code",
    "-z,norelro",
    "-z,noexecstack",
    "-z,stack-size=1048576",  # of threads, for which musl takes 128 KB otherwise
)

# struct image of launcher/image.c: magic, start, size and end of file, its checksum, the headers';
# then of the snapshot: page size, how many parts take the place of the image's data, how many there
# are, and of each address, size, bytes in the file, and where those are
_DESCRIPTOR = struct.Struct("<16sQQQII")
_SNAPSHOT = struct.Struct("<QII" + "QQQQ" * MAX_PARTS)
_HEADERS = 64 + 8 * 56  # bytes of struct program there: an ELF header and eight segments
_MAGIC = b"cni-image\0\0\0\0\0\0\0"
# struct touched: magic, how many runs are for every request, how many there are, the runs
_TOUCHED = struct.Struct("<16sII" + "II" * MAX_RUNS)
_TOUCHED_MAGIC = b"cni-touched\0\0\0\0\0"


def link(built: Build, modules: dict[str, Module], folder: Path, *flags: str) -> bytes:
    """The image of `modules`; `folder` is used for what lies between. Raises BuildError.

    `flags` are further ones of the compiler and the linker.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "log"
    _freeze(built, modules, folder, log)
    for name in (*_SOURCES, "snapshot.h", "snapshot.ld", *annex.FILES):
        shutil.copy(HERE / "src" / name, folder)
    page = PAGE[built.target.arch]
    compiler: list[str | Path] = [built.compiler, *built.flags, *flags, "-fwrapv", "-DNDEBUG"]
    compiler += ["-DPy_BUILD_CORE", f"-DCNI_PAGE={page}", f"-DCNI_AREA={AREA:#x}"]
    compiler += [f"-DCNI_ANNEX={annex.ADDRESS:#x}"]
    compiler += [f"-I{built.source}/Include/internal"]
    compiler += [f"-I{built.source}/Include", f"-I{built.source}", f"-I{built.zlib}"]
    compiler += [f"-ffile-prefix-map={folder}=."]
    compiler += [f"-I{HERE.parents[1] / 'launcher'}"]  # steps.h
    sources = [*_SOURCES, "frozen.c", "marshalled.s"]
    for source in sources:
        run([*compiler, "-c", source], log, cwd=folder, env=environment())
    return _link_both(built, folder, sources, compiler, flags)


def _link_both(
    built: Build,
    folder: Path,
    sources: list[str],
    compiler: list[str | Path],
    flags: tuple[str, ...],
) -> bytes:
    """Link the image and its annex, which each need the other: the image without room first."""
    page, log = PAGE[built.target.arch], folder / "log"
    attached = annex.compile_modules(built, folder, _WRAPPED, page)
    more = (f"-z,max-page-size={page}", "-T,snapshot.ld")
    wanted = [f"--undefined={name}" for name in annex.needs(attached)]
    linker = [f"-Wl,{option}" for option in (*_LINKER, *more, *wanted)]
    objects: list[str | Path] = [Path(source).with_suffix(".o") for source in sources]
    objects += ["annex_room.o", built.msgspec, *built.libraries, "-lm"]
    command: list[str | Path] = [built.compiler, *_LINK, *flags, *linker, "-o", "image", *objects]
    image, size = folder / "image", 0
    for _ in ("without room", "with room"):
        run([*compiler, "-c", annex.room(folder, size)], log, cwd=folder, env=environment())
        run(command, log, cwd=folder, env=environment())
        packed = annex.link(attached, image)
        size, before = len(packed), size
    run([built.target.tools["STRIP"], "--strip-all", image], log)
    image.write_bytes(annex.put(image.read_bytes(), packed, before))
    return image.read_bytes()


def _freeze(built: Build, modules: dict[str, Module], folder: Path, log: Path) -> None:
    """Write frozen.c and what belongs to it."""
    (folder / "modules").mkdir()
    lines = []
    is_deep = not is_made_for(built.target)
    # The interpreter looks from the beginning: the request path comes first.
    for module in sorted(modules.values(), key=lambda each: (not each.is_for_requests, each.name)):
        kinds = "p" * module.is_package + "r" * module.is_for_requests
        kinds += "d" if is_deep and module.is_for_requests else "z"
        lines.append(f"{module.name} {BOOTSTRAP.get(module.name, module.name)} {kinds}\n")
        (folder / "modules" / module.name).write_bytes(module.source)
    (folder / "modules/list").write_text("".join(lines))
    scripts = built.source / "Tools/scripts"
    # Columns mark a place in a line's text, which tracebacks there do not have: 0.6 MB.
    command: list[str | Path] = [built.python, "-I", "-X", "no_debug_ranges"]
    run([*command, HERE / "freeze.py", scripts, folder / "modules", folder], log, env=environment())


def assemble(
    client: bytes,
    image: bytes,
    snapshot: Snapshot | None,
    archive_of: Callable[[int], bytes],
    page: int,
    touched: Touched = NOTHING,
) -> bytes:
    """The whole file: client, image, snapshot, and the zip that `archive_of(start)` makes."""
    client = _put(client, _TOUCHED_MAGIC, _list(touched))
    start = -(-len(client) // page) * page
    behind = image
    described = bytes(_SNAPSHOT.size)
    if snapshot:
        behind += bytes(-len(behind) % page)
        described = _describe(snapshot, start + len(behind))
        behind += b"".join(part.content for part in snapshot.parts)
    behind += archive_of(start + len(behind))
    checksums = zlib.crc32(behind), zlib.crc32(described, zlib.crc32(behind[:_HEADERS]))
    end = start + len(behind)
    described = _DESCRIPTOR.pack(_MAGIC, start, len(image), end, *checksums) + described
    client = _put(client, _MAGIC, described)
    return client + bytes(start - len(client)) + behind


def _put(client: bytes, magic: bytes, description: bytes) -> bytes:
    """The client with `description` in the place that begins with `magic`. Raises BuildError."""
    if client.count(magic) != 1:
        raise BuildError(f"the native client has no place for {magic.rstrip(bytes(1)).decode()}")
    place = client.index(magic)
    return client[:place] + description + client[place + len(description) :]


def _list(touched: Touched) -> bytes:
    numbers = [number for run in touched.runs for number in run]
    rest = [0] * (2 * (MAX_RUNS - len(touched.runs)))
    return _TOUCHED.pack(_TOUCHED_MAGIC, touched.always, len(touched.runs), *numbers, *rest)


def _describe(snapshot: Snapshot, offset: int) -> bytes:
    """The snapshot's part of the description; its contents begin at `offset` of the file."""
    numbers = [snapshot.page, snapshot.replaced, len(snapshot.parts)]
    for part in snapshot.parts:
        numbers += [part.address, part.size, len(part.content), offset]
        offset += len(part.content)
    return _SNAPSHOT.pack(*numbers, *[0] * (4 * (MAX_PARTS - len(snapshot.parts))))
