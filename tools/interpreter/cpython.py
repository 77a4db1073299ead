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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tools.interpreter.sources import CACHE, HERE, PINS, BuildError, fetch, run, unpack

COUNT = ("-fprofile-generate", "-fprofile-update=single")
_USE_COUNTS = ("-fprofile-use", "-fprofile-correction", "-Wno-missing-profile")
EPOCH = "1577836800"  # 2020-01-01: what __DATE__ says
_OPTIONS = (
    "--disable-shared",
    "--without-ensurepip",
    "--without-doc-strings",
    "--disable-test-modules",
    "--with-pymalloc",
    "--prefix=/usr",
    "ac_cv_file__dev_ptmx=yes",
    "ac_cv_file__dev_ptc=no",
)
_TOOLS = ("ar", "ranlib", "readelf", "nm", "objcopy", "strip")
_SERIES = "debian/patches/series"
_COMPAT = ("-fno-semantic-interposition", "-fno-asynchronous-unwind-tables", "-g0")
_NATIVE = os.uname().machine
_JOBS = f"-j{os.cpu_count() or 1}"
_HERE = (f"/usr/include/{_NATIVE}-linux-gnu", "/usr/include")


@dataclass(frozen=True)
class Target:
    """What to build for: the machine, as uname(1) calls it, and whether with a profile (PGO)."""

    arch: str
    profile: bool = False

    @property
    def is_native(self) -> bool:
        """Whether it is this machine."""
        return self.arch == _NATIVE

    @property
    def compiler(self) -> str:
        """The C compiler that musl is built with."""
        return "gcc" if self.is_native else f"{self.arch}-linux-gnu-gcc"

    @property
    def tools(self) -> dict[str, str]:
        """The variables that name the programs for object files."""
        prefix = "" if self.is_native else f"{self.arch}-linux-gnu-"
        return {name.upper(): f"{prefix}{name}" for name in _TOOLS}

    @property
    def headers(self) -> tuple[str, ...]:
        """Where the kernel's headers are, which musl does not bring along."""
        return _HERE if self.is_native else (f"/usr/{self.arch}-linux-gnu/include",)


@dataclass(frozen=True)
class Build:
    """A finished build."""

    target: Target
    source: Path  # CPython's tree, in which it was built
    zlib: Path  # the directory of zlib.h and libz.a
    msgspec: Path  # the object file of msgspec._core
    flags: tuple[str, ...]  # the compiler's flags
    native: Path  # CPython's tree that was built for this machine

    @property
    def libraries(self) -> tuple[Path, ...]:
        """What an interpreter is linked with."""
        return self.source / "libpython3.11.a", self.zlib / "libz.a"

    @property
    def compiler(self) -> Path:
        """The compiler's command."""
        return self.source.parent / "cc"

    @property
    def python(self) -> Path:
        """The interpreter that runs on this machine, of the same version."""
        return self.native / "python"


def build(target: Target, train: Callable[[Build], None], trained_by: str = "") -> Build:
    """Build everything for `target`, or take what has been built before. Raises BuildError.

    With a profile everything is compiled twice: first so that it counts what is executed, then
    `train` has to use it, then with those counts. `trained_by` stands for what `train` does.
    """
    folder = CACHE / f"{target.arch}-{_key(target, trained_by)}"
    log, source = folder / "log", folder / "cpython"
    native = source if target.is_native else _native(train)
    core, flags = folder / "msgspec/_core.o", _flags(folder, target)
    built = Build(target, source, folder / "zlib", core, flags, native)
    if (folder / "finished").exists():
        return built
    _check_headers(target)
    # What a build that was killed has left.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _build_musl(folder, target, log)
    _unpack_cpython(folder, log)
    (archive,) = fetch("msgspec")
    unpack(archive, built.msgspec.parent)
    _build_zlib(built, log)
    _configure(built, log)
    if target.profile:
        _compile(replace(built, flags=(*built.flags, *COUNT)), log)
        train(replace(built, flags=(*built.flags, *COUNT)))
        # Compiled again with the counts; make would take them for up to date.
        for compiled in [*built.source.rglob("*.o"), *built.source.rglob("*.a")]:
            compiled.unlink()
        _compile(replace(built, flags=(*built.flags, *_USE_COUNTS)), log)
    else:
        _compile(built, log)
    # Last, so that a folder without it is never taken for a build.
    (folder / "finished").write_text(_key(replace(target, profile=False), ""))
    return built


def _native(train: Callable[[Build], None]) -> Path:
    """CPython's tree of a build for this machine, with a profile or without: which exists."""
    wanted = Target(_NATIVE)
    for finished in sorted(CACHE.glob(f"{_NATIVE}-*/finished")):
        if finished.read_text() == _key(wanted, ""):
            return finished.with_name("cpython")
    return build(wanted, train).source


def _check_headers(target: Target) -> None:
    """Raises BuildError without the kernel's headers: CPython would be built without netlink."""
    if not any(Path(path, "linux/netlink.h").exists() for path in target.headers):
        package = "linux-libc-dev" if target.is_native else "linux-libc-dev-arm64-cross"
        raise BuildError(f"{target.headers[0]} has no linux/netlink.h: install {package}")


def _key(target: Target, trained_by: str) -> str:
    """Stands for everything that the build depends on."""
    flags = (_COMPAT, _OPTIONS, target.headers, EPOCH)
    profile = (COUNT, _USE_COUNTS, trained_by) if target.profile else ()
    pins = {name: pin for name, pin in PINS.items() if name != "openssl"}
    digest = hashlib.sha256(repr((pins, target, flags, profile)).encode())
    for path in sorted([HERE / "src/Setup.local", *HERE.glob("patches/*.diff")]):
        digest.update(path.read_bytes())
    digest.update(compiler_version(target))
    return digest.hexdigest()[:12]


def compiler_version(target: Target) -> bytes:
    """What the compiler says of itself."""
    command = [target.compiler, "--version"]
    return subprocess.run(command, check=False, capture_output=True).stdout


def _flags(folder: Path, target: Target) -> tuple[str, ...]:
    headers = [f"-I{folder}/zlib"]  # binascii uses it, too
    headers += [word for path in target.headers for word in ("-idirafter", path)]
    # Neither the folder's name nor the time may get into the file.
    return ("-O2", *_COMPAT, f"-ffile-prefix-map={folder}=.", *headers)


def _build_musl(folder: Path, target: Target, log: Path) -> None:
    """Build musl, and a compiler that uses it."""
    (archive,) = fetch("musl")
    source, installed = folder / "musl-source", folder / "musl"
    unpack(archive, source)
    flags = f"-O2 -g0 -ffile-prefix-map={folder}=."
    env = environment() | target.tools | {"CC": target.compiler, "CFLAGS": flags}
    options = [f"--prefix={installed}", f"--target={target.arch}-linux-musl", "--disable-shared"]
    run(["./configure", *options, "--enable-wrapper=gcc"], log, cwd=source, env=env)
    run(["make", _JOBS, "install"], log, cwd=source, env=env)
    wrapper = folder / "cc"
    # configure asks the compiler for a name of the target, which Debian's compilers know.
    wrapper.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --print-multiarch ] && echo {target.arch}-linux-musl && exit\n'
        f'exec {installed}/bin/musl-gcc "$@"\n'
    )
    wrapper.chmod(0o755)


def environment() -> dict[str, str]:
    """An environment in which two builds give the same bytes."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "SOURCE_DATE_EPOCH": EPOCH, "LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "0"}


# --- CPython -------------------------------------------------------------------------------------


def _unpack_cpython(folder: Path, log: Path) -> None:
    upstream, debian = fetch("python")
    unpack(upstream, folder / "cpython")
    unpack(debian, folder / "cpython/debian")
    apply_series(folder / "cpython", log)
    for path in sorted(HERE.glob("patches/*.diff")):
        patch(folder / "cpython", path, log)


def apply_series(tree: Path, log: Path) -> None:
    """Apply Debian's patches to its source package's `tree`. Raises BuildError."""
    for name in (tree / _SERIES).read_text().split("\n"):
        if name.strip() and not name.startswith("#"):
            patch(tree, tree / "debian/patches" / name.split()[0], log)


def patch(tree: Path, change: Path, log: Path) -> None:
    """Apply one patch; one that the tree has already is left out, as Debian's tools do it."""
    command: list[str | Path] = ["patch", "--strip=1", "--force", "--no-backup-if-mismatch"]
    command += ["--silent", f"--input={change}"]
    try:
        run([*command, "--dry-run", "--reverse"], cwd=tree)
    except BuildError:
        run([*command, "--forward"], log, cwd=tree)


def _configure(built: Build, log: Path) -> None:
    shutil.copy(HERE / "src/Setup.local", built.source / "Modules/Setup.local")
    with (built.source / "Modules/Setup.local").open("a") as setup:
        setup.write(f"zlib zlibmodule.c -I{built.zlib} -L{built.zlib} -lz\n")
    target = built.target
    env = (
        environment()
        | target.tools
        | {
            "CC": str(built.compiler),
            "CFLAGS": " ".join(built.flags),
            "LDFLAGS": f"-static -L{built.zlib}",
            "ARFLAGS": "rcsD",
        }
    )
    options = [*_OPTIONS]
    if not target.is_native:
        options += [f"--host={target.arch}-linux-musl", f"--build={_NATIVE}-linux-musl"]
        options += [f"--with-build-python={built.python}", "ac_cv_buggy_getaddrinfo=no"]
    run(["./configure", *options], log, cwd=built.source, env=env)


def _compile(built: Build, log: Path) -> None:
    """Compile CPython, and msgspec's core, with the flags of `built`."""
    flags = " ".join(built.flags)
    more = [f"CONFIGURE_CFLAGS={flags}", f"LDFLAGS=-static -L{built.zlib} {flags}"]
    wanted = ["libpython3.11.a", *["python"] * built.target.is_native]
    command: list[str | Path] = ["make", _JOBS, *more, *wanted]
    run(command, log, cwd=built.source, env=environment())
    core = built.msgspec.with_name("src") / "msgspec/_core.c"
    includes = [f"-I{built.source}/Include", f"-I{built.source}"]
    compiler: list[str | Path] = [built.compiler, *built.flags, *includes, "-fwrapv", "-DNDEBUG"]
    run([*compiler, "-c", core, "-o", built.msgspec], log, env=environment())


# --- the libraries -------------------------------------------------------------------------------


def _build_zlib(built: Build, log: Path) -> None:
    (archive,) = fetch("zlib")
    unpack(archive, built.zlib)
    flags = " ".join(built.flags)
    env = environment() | built.target.tools | {"CC": str(built.compiler), "CFLAGS": flags}
    run(["./configure", "--static"], log, cwd=built.zlib, env=env)
    run(["make", "libz.a"], log, cwd=built.zlib, env=env)


def msgspec_version() -> str:
    """The version that tools/bundle.lock has, for comparison with the pin."""
    lock = (HERE.parent / "bundle.lock").read_text()
    match = re.search(r"^msgspec==(\S+)", lock, re.MULTILINE)
    return match[1] if match else ""
