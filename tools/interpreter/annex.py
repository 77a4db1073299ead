"""The annex: built-in modules that few processes use, compressed in the image until then.

`ssl`'s core with OpenSSL, and `unicodedata`, whose tables are large. They are linked for a fixed
address, against the image, which has what they need of CPython and of the C library: nothing is
there twice. The image has to be linked first, then; and it has room for the annex, whose size is
only known afterwards. So both are linked twice, the second time with room (image.py).
"""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from tools.interpreter import openssl
from tools.interpreter.cpython import COUNT, Build, environment
from tools.interpreter.sources import BuildError, run

_MODULES = ("_ssl", "unicodedata")
# Behind the image, near enough for a branch of aarch64 (128 MB).
ADDRESS = 0x64000000
FILES = ("annex.h", "annex.ld", "annex_modules.c")
# struct annex of src/annex.c
_HEAD = struct.Struct("<16sQQQQ")
_MAGIC = b"cni-annex\0\0\0\0\0\0\0"
_SLACK = 4096  # the second annex calls other addresses than the first, and compresses differently
_ROOM = """
.section .rodata
.global cni_annex_room
.balign 16
cni_annex_room:
.ascii "{magic}"
.fill {size}, 1, 0
.section .note.GNU-stack,"",%progbits
"""
_SYMBOL = re.compile(r"^([0-9a-f]+) \w (cni_annex_(?:data|filled|end))$", re.MULTILINE)


@dataclass(frozen=True)
class Annex:
    """Its object files: all that is needed of it and of OpenSSL, in one."""

    built: Build
    folder: Path
    wrapped: tuple[str, ...]  # options of the linker: as in the image
    page: int

    @property
    def object(self) -> Path:
        """The object file."""
        return self.folder / "annex.all.o"


def compile_modules(built: Build, folder: Path, wrapped: tuple[str, ...], page: int) -> Annex:
    """Compile the annex in `folder`, which has its sources. Raises BuildError."""
    library = openssl.build(built)
    annex, log = Annex(built, folder, wrapped, page), folder / "log"
    include = built.source / "Include"
    # Nothing is counted here, also in an interpreter that counts: it has no part in requests.
    flags = [flag for flag in built.flags if flag not in COUNT]
    compiler: list[str | Path] = [built.compiler, *flags, "-fwrapv", "-DNDEBUG", "-fno-pie"]
    compiler += ["-DPy_BUILD_CORE_BUILTIN", f"-I{library / 'include'}", f"-I{include / 'internal'}"]
    compiler += [f"-I{include}", f"-I{built.source}", f"-I{built.source / 'Modules'}"]
    compiler += ["-ffunction-sections", "-fdata-sections", f"-ffile-prefix-map={folder}=."]
    sources = [Path("annex_modules.c"), *(built.source / f"Modules/{n}.c" for n in _MODULES)]
    objects: list[str | Path] = [f"{source.stem}.annex.o" for source in sources]
    for source, output in zip(sources, objects, strict=True):
        run([*compiler, "-c", source, "-o", output], log, cwd=folder, env=environment())
    command: list[str | Path] = [built.compiler, "-nostdlib", "-r", "-Wl,--gc-sections"]
    command += ["-Wl,--entry=cni_annex_modules", "-o", annex.object, *objects]
    command += [library / "libssl.a", library / "libcrypto.a", "-lgcc"]
    run(command, log, cwd=folder, env=environment())
    return annex


def needs(annex: Annex) -> list[str]:
    """What the image has to have for it: names of functions and variables. Raises BuildError."""
    listed = _read(
        [annex.built.target.tools["NM"], "--undefined-only", "--format=just-symbols", annex.object]
    )
    return sorted(set(listed.split()))


def link(annex: Annex, image: Path) -> bytes:
    """The annex for `image`, whose symbols it uses: compressed, with its head.

    Raises BuildError.
    """
    output = annex.folder / "annex"
    options = ["--gc-sections", "--build-id=none", "-z,noexecstack", f"--just-symbols={image}"]
    options += [f"--defsym=CNI_ANNEX={ADDRESS:#x}", f"--defsym=CNI_PAGE={annex.page}"]
    options += ["-T,annex.ld", "--fatal-warnings", *annex.wrapped]
    command: list[str | Path] = [annex.built.compiler, "-nostdlib", "-static", "-no-pie"]
    command += [f"-Wl,{option}" for option in options]
    log = annex.folder / "log"
    run([*command, "-o", output, annex.object], log, cwd=annex.folder, env=environment())
    flat = output.with_suffix(".bin")
    run([annex.built.target.tools["OBJCOPY"], "--output-target=binary", output, flat], log)
    places = {
        name: int(value, 16)
        for value, name in _SYMBOL.findall(_read([annex.built.target.tools["NM"], output]))
    }
    code, filled, size = (
        places[f"cni_annex_{part}"] - ADDRESS for part in ("data", "filled", "end")
    )
    data = flat.read_bytes()
    if len(data) > filled:
        raise BuildError(f"the annex has {len(data)} bytes, and not {filled}")
    data += bytes(filled - len(data))
    packed = zlib.compress(data, 9)
    return _HEAD.pack(_MAGIC, len(packed), filled, code, size) + packed


def room(folder: Path, size: int) -> Path:
    """Write the source of a room for an annex of `size` bytes (0: for any); its path."""
    path = folder / "annex_room.s"
    magic = _MAGIC.decode().replace("\0", "\\0")
    path.write_text(_ROOM.format(magic=magic, size=max(size + _SLACK, _HEAD.size) - len(_MAGIC)))
    return path


def put(image: bytes, annex: bytes, size: int) -> bytes:
    """The image with `annex` in its room for one of `size` bytes. Raises BuildError."""
    if image.count(_MAGIC) != 1 or len(annex) > size + _SLACK:
        raise BuildError(
            f"the image has no room for the annex: {len(annex)} bytes, {size} expected"
        )
    place = image.index(_MAGIC)
    return image[:place] + annex + image[place + len(annex) :]


def _read(command: list[str | Path]) -> str:
    """What a program prints. Raises BuildError."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{command[0]}: {error}") from error
