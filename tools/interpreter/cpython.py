"""CPython, zlib and msgspec's core as static libraries for one target.

CPython is Debian's source package, with Debian's patches and those in patches/, built with musl.
A finished build stays in .cache/interpreter, in a folder whose name is a hash of everything that
went into it; so it is built again when a pin, a patch, a flag or the compiler changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.interpreter.sources import CACHE, HERE, PINS, BuildError, fetch, run, unpack

EPOCH = "1577836800"  # 2020-01-01: what __DATE__ says
_SERIES = "debian/patches/series"
_COMPAT = ("-fno-semantic-interposition", "-fno-asynchronous-unwind-tables", "-g0")
# The kernel's headers, which musl does not bring along; after all others.
_KERNEL_HEADERS = ("/usr/include", "/usr/include/{gnu}")


@dataclass(frozen=True)
class Target:
    """What to build for: the machine, as uname(1) calls it, and whether with a profile (PGO)."""

    arch: str
    profile: bool = False

    @property
    def compiler(self) -> str:
        """The compiler's command."""
        return "musl-gcc"


@dataclass(frozen=True)
class Build:
    """A finished build."""

    target: Target
    source: Path  # CPython's tree, in which it was built
    zlib: Path  # the directory of zlib.h and libz.a
    msgspec: Path  # the object file of msgspec._core
    flags: tuple[str, ...]  # the compiler's flags

    @property
    def libraries(self) -> tuple[Path, ...]:
        """What an interpreter is linked with."""
        decimal = self.source / "Modules/_decimal/libmpdec/libmpdec.a"
        return self.source / "libpython3.11.a", decimal, self.zlib / "libz.a"

    @property
    def compiler(self) -> Path:
        """The compiler's command."""
        return self.source.parent / "cc"

    @property
    def python(self) -> Path:
        """The interpreter that runs on this machine, of the same version."""
        return self.source / "python"


def build(target: Target) -> Build:
    """Build everything for `target`, or take what has been built before. Raises BuildError."""
    folder = CACHE / f"{target.arch}-{_key(target)}"
    log = folder / "log"
    built = Build(
        target, folder / "cpython", folder / "zlib", folder / "msgspec/_core.o", _flags(folder)
    )
    if (folder / "finished").exists():
        return built
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wrapper = _wrapper(folder, target)
    _unpack_cpython(folder, log)
    _build_zlib(built, wrapper, log)
    _build_cpython(built, wrapper, log)
    _build_msgspec(built, wrapper, log)
    (folder / "finished").touch()
    return built


def _key(target: Target) -> str:
    """Stands for everything that the build depends on."""
    digest = hashlib.sha256(repr((PINS, target)).encode())
    for path in sorted([Path(__file__), HERE / "src/Setup.local", *HERE.glob("patches/*.diff")]):
        digest.update(path.read_bytes())
    version = subprocess.run([target.compiler, "--version"], check=False, capture_output=True)
    digest.update(version.stdout)
    return digest.hexdigest()[:12]


def _flags(folder: Path) -> tuple[str, ...]:
    headers = []
    gnu = "x86_64-linux-gnu"
    for path in _KERNEL_HEADERS:
        headers += ["-idirafter", path.format(gnu=gnu)]
    # Neither the folder's name nor the time may get into the file.
    return ("-O2", *_COMPAT, f"-ffile-prefix-map={folder}=.", *headers)


def _wrapper(folder: Path, target: Target) -> Path:
    """A compiler that knows how the target is called, which configure asks musl-gcc in vain."""
    path = folder / "cc"
    path.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --print-multiarch ] && echo {target.arch}-linux-musl && exit\n'
        f'exec {target.compiler} "$@"\n'
    )
    path.chmod(0o755)
    return path


def environment() -> dict[str, str]:
    """An environment in which two builds give the same bytes."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "SOURCE_DATE_EPOCH": EPOCH, "LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "0"}


# --- CPython -------------------------------------------------------------------------------------


def _unpack_cpython(folder: Path, log: Path) -> None:
    upstream, debian = fetch("python")
    unpack(upstream, folder / "cpython")
    unpack(debian, folder / "cpython/debian")
    for name in (folder / "cpython" / _SERIES).read_text().split("\n"):
        if name.strip() and not name.startswith("#"):
            _patch(folder / "cpython", folder / "cpython/debian/patches" / name.split()[0], log)
    for path in sorted(HERE.glob("patches/*.diff")):
        _patch(folder / "cpython", path, log)


def _patch(tree: Path, patch: Path, log: Path) -> None:
    """Apply one patch; one that the tree has already is left out, as Debian's tools do it."""
    command: list[str | Path] = ["patch", "--strip=1", "--force", "--no-backup-if-mismatch"]
    command += ["--silent", f"--input={patch}"]
    try:
        run([*command, "--dry-run", "--reverse"], cwd=tree)
    except BuildError:
        run([*command, "--forward"], log, cwd=tree)


def _build_cpython(built: Build, wrapper: Path, log: Path) -> None:
    shutil.copy(HERE / "src/Setup.local", built.source / "Modules/Setup.local")
    with (built.source / "Modules/Setup.local").open("a") as setup:
        setup.write(f"zlib zlibmodule.c -I{built.zlib} -L{built.zlib} -lz\n")
    env = environment() | {
        "CC": str(wrapper),
        "CFLAGS": " ".join(built.flags),
        "LDFLAGS": f"-static -L{built.zlib}",
        "ARFLAGS": "rcsD",
    }
    options = ["--disable-shared", "--without-ensurepip", "--without-doc-strings"]
    options += ["--disable-test-modules", "--with-pymalloc", "--prefix=/usr"]
    cached = ["ac_cv_file__dev_ptmx=yes", "ac_cv_file__dev_ptc=no"]
    run(["./configure", *options, *cached], log, cwd=built.source, env=env)
    jobs = f"-j{os.cpu_count() or 1}"
    run(["make", jobs, "libpython3.11.a", "python"], log, cwd=built.source, env=env)


# --- the libraries -------------------------------------------------------------------------------


def _build_zlib(built: Build, wrapper: Path, log: Path) -> None:
    (archive,) = fetch("zlib")
    unpack(archive, built.zlib)
    env = environment() | {"CC": str(wrapper), "CFLAGS": " ".join(built.flags)}
    run(["./configure", "--static"], log, cwd=built.zlib, env=env)
    run(["make", "libz.a"], log, cwd=built.zlib, env=env)


def _build_msgspec(built: Build, wrapper: Path, log: Path) -> None:
    (archive,) = fetch("msgspec")
    folder = built.msgspec.parent
    unpack(archive, folder)
    core = folder / "src/msgspec/_core.c"
    includes = [f"-I{built.source}/Include", f"-I{built.source}"]
    command: list[str | Path] = [wrapper, *built.flags, *includes, "-fwrapv", "-DNDEBUG"]
    run([*command, "-c", core, "-o", built.msgspec], log, env=environment())


def msgspec_version() -> str:
    """The version that tools/bundle.lock has, for comparison with the pin."""
    lock = (HERE.parent / "bundle.lock").read_text()
    match = re.search(r"^msgspec==(\S+)", lock, re.MULTILINE)
    return match[1] if match else ""
