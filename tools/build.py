"""Builds dist/cni: the native client, and a zip archive with the plugins and all they import.

    build.py              build dist/cni
    build.py windows      build dist/windows: a launcher for each plugin, and what they start
    build.py lock         write tools/*.lock anew: the newest versions of dependencies and tools

shiv gathers the dependencies. Its own bootstrap, which unpacks to the home directory at the first
run, is left out: launcher/ has ours. The same input gives the same file, byte for byte.

More than 400 lines in one file: it is executed by its path, since tools/ is no package.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import marshal
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.util import MAGIC_NUMBER
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "tools/bundle.lock"
CACHE = ROOT / ".cache"
OUTPUT = ROOT / "dist/cni"
WINDOWS_LOCK = ROOT / "tools/windows.lock"
TOOLS_LOCK = ROOT / "tools/dev.lock"
WINDOWS_OUTPUT = ROOT / "dist/windows"

# Packages with extension modules, which are needed once for each interpreter a node may have. The
# file names carry the interpreter's ABI, so that all of them share one package directory.
EXTENSIONS = ("msgspec",)
PYTHONS = ("311", "312", "313", "314")
MACHINES = ("x86_64", "aarch64")

# Files of packages that no plugin and no command reads.
DROPPED = re.compile(
    r"(^|/)(tests?|__pycache__)/|\.pyi$|\.pyc$|(^|/)py\.typed$|^bin/"
    r"|\.dist-info/(RECORD|WHEEL|INSTALLER|REQUESTED|direct_url\.json|top_level\.txt|entry_points\.txt)$"
)
# Packages without bytecode in the archive, since no plugin imports them.
NO_BYTECODE = ("pyroute2/",)
PREFIX_SIZE = 8192

# The launcher of the plugins on Windows (docs/windows.md).
WINDOWS_PLUGINS = ("host-local", "static", "win-bridge", "win-overlay")
LAUNCHER = ROOT / "launcher/windows.c"
MINGW = "x86_64-w64-mingw32-gcc"
LAUNCHER_FLAGS = ["-municode", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"]
LAUNCHER_FLAGS.append("-Wl,--no-insert-timestamp")

# The native client; musl makes it a tenth of what glibc does, and starts it faster. CNI_CLIENT_CC
# names another compiler, or `none` for a file that starts with the script and runs on any machine.
CLIENT = ROOT / "launcher/client.c"
CLIENT_PARTS = (CLIENT, ROOT / "launcher/steps.h", ROOT / "launcher/beside.h")
COMPILERS = ("musl-gcc", "cc")
CLIENT_FLAGS = (
    "-static",
    "-Os",
    "-s",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--build-id=none",
    "-Wl,-z,noseparate-code",
)
CLIENT_MAX = 1 << 20
TIMESTAMP = (1980, 1, 1, 0, 0, 0)

Arguments = list[str | Path]


class BuildError(Exception):
    """The build cannot go on; the text says why and what to do."""


def main(arguments: list[str]) -> int:
    commands = {"": build, "windows": windows, "lock": lock}
    command = commands.get(" ".join(arguments))
    if command is None:
        print(__doc__, file=sys.stderr)
        return 2
    CACHE.mkdir(exist_ok=True)
    try:
        with (CACHE / "build.lock").open("w") as alone:
            # Two builds at once would write the same files of the cache.
            fcntl.flock(alone, fcntl.LOCK_EX)
            command()
    except (BuildError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


# --- the file ------------------------------------------------------------------------------------


def build() -> None:
    """Write dist/cni, or leave it alone if it would stay the same."""
    started = time.time()
    files = payload()
    template = (ROOT / "launcher/prefix.sh").read_bytes()
    build_id = content_id(files, b"".join([template, *(p.read_bytes() for p in CLIENT_PARTS)]))
    files["cni/_build.py"] = build_module(build_id, files)
    files.update(bytecode(files))
    start = native_client(prefix(template, build_id))
    data = start + archive(files, len(start))
    changed = not OUTPUT.exists() or OUTPUT.read_bytes() != data
    if changed:
        write_executable(OUTPUT, data)
    # For make: newer than every source that was read, older than one that has changed since.
    os.utime(OUTPUT, (started, started))
    state = "built" if changed else "unchanged"
    print(f"build: {OUTPUT.relative_to(ROOT)} {state}: build {build_id}, {len(data) / 1e6:.1f} MB")


def payload() -> dict[str, bytes]:
    """Path in the archive -> content, for everything but cni/_build.py."""
    wheels = download()
    files = gathered(wheels)
    files.update(extension_modules(wheels))
    files.update(tree(ROOT / "cni", "cni"))
    files["run.py"] = (ROOT / "launcher/run.py").read_bytes()
    files["__main__.py"] = (ROOT / "launcher/zipmain.py").read_bytes()
    # The tree's own says that it was not built; the real one needs the id of all other files.
    del files["cni/_build.py"]
    return files


def tree(directory: Path, name: str) -> dict[str, bytes]:
    """The files below `directory`, as `name`/…, without what is never needed."""
    paths = {
        f"{name}/{path.relative_to(directory).as_posix()}": path
        for path in directory.rglob("*")
        if path.is_file()
    }
    return {name: path.read_bytes() for name, path in paths.items() if not DROPPED.search(name)}


def content_id(files: dict[str, bytes], template: bytes) -> str:
    """Twelve hexadecimal digits that stand for the whole content."""
    digest = hashlib.sha256(template)
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    return digest.hexdigest()[:12]


def build_module(build_id: str, files: dict[str, bytes]) -> bytes:
    """The source of cni/_build.py."""
    names = (re.search(r"\.(cpython-.*|cp.*-win.*)\.(so|pyd)$", name) for name in sorted(files))
    abis = tuple(sorted({match[1] for match in names if match}))
    return (
        '"""Which build this is (written by the build)."""\n\n'
        f'ID = "{build_id}"\nABIS: tuple[str, ...] = {abis!r}\n'
    ).encode()


def bytecode(files: dict[str, bytes]) -> dict[str, bytes]:
    """Compiled modules beside their sources, for the Python that builds; others use the sources.

    Without them an uninstalled plugin takes 97 ms instead of 43 for its imports.
    """
    # An unchecked hash (PEP 552): importing does not compare it with the source.
    unchecked_hash = MAGIC_NUMBER + bytes([1, 0, 0, 0]) + bytes(8)
    compiled = {}
    for name, source in files.items():
        if name.endswith(".py") and not name.startswith(NO_BYTECODE):
            code = compile(source, name, "exec", dont_inherit=True)
            # Version 2 has no references, whose presence depends on what else this process did.
            compiled[f"{name}c"] = unchecked_hash + marshal.dumps(code, 2)
    return compiled


def prefix(template: bytes, build_id: str) -> bytes:
    """The shell script, padded to PREFIX_SIZE so that `cni install` can edit it in place."""
    cases = "\n".join(f"{pattern}) cni_command='{command}' ;;" for pattern, command in remedies())
    text = template.replace(b"@BUILD_ID@", build_id.encode())
    text = text.replace(b"        # @REMEDIES@", cases.encode())
    room = PREFIX_SIZE - len(text) + len(b"@PAD@")
    if text.count(b"@PAD@") != 1 or room < 256:
        raise BuildError(f"launcher/prefix.sh does not fit into {PREFIX_SIZE} bytes")
    return text.replace(b"@PAD@", b"." * room)


def remedies() -> list[tuple[str, str]]:
    """REMEDIES of cni/startup_error.py, in the spelling of a shell's `case`."""
    found = runpy.run_path(str(ROOT / "cni/startup_error.py"))["REMEDIES"]
    return [(patterns.replace(" ", "\\ "), command) for patterns, command in found]


def native_client(script: bytes, compiler: str = "", *options: str | Path) -> bytes:
    """launcher/client.c compiled, with the script in it; the script alone without a compiler.

    `options` are further sources and flags.
    """
    compiler = compiler or os.environ.get("CNI_CLIENT_CC") or ""
    compiler = compiler or next(filter(shutil.which, COMPILERS), "none")
    if compiler == "none":
        print("build: no C compiler: the file starts with a script", file=sys.stderr)
        return script
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch, "prefix.c")
        octets = ",".join(map(str, script + b"\0"))
        text.write_text(
            f"extern const char cni_prefix[];\nconst char cni_prefix[] = {{{octets}}};\n"
        )
        client = Path(scratch, "client")
        command: Arguments = [*compiler.split(), *CLIENT_FLAGS, "-o", client, CLIENT, text]
        command += options
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{compiler}: {done.stderr.strip()}")
        data = client.read_bytes()
    if len(data) > CLIENT_MAX:
        raise BuildError(f"the native client has {len(data)} bytes, more than {CLIENT_MAX}")
    return data


def archive(files: dict[str, bytes], start: int) -> bytes:
    """A zip of `files` with offsets that count `start` bytes in, the same for the same input."""
    buffer = io.BytesIO()
    # zipfile then counts the offsets from the beginning of the whole file.
    buffer.write(bytes(start))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, TIMESTAMP)
            info.compress_type = zipfile.ZIP_DEFLATED
            # Unix; by default it would be the system that builds.
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, files[name])
    return buffer.getvalue()[start:]


def write_executable(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.chmod(0o755)
    # By rename: the file may be running, and a killed build leaves the old one.
    temporary.replace(path)


# --- Windows -------------------------------------------------------------------------------------


def windows() -> None:
    """Write dist/windows anew: launchers, and the tree cni-lib that they start Python on."""
    if shutil.which(MINGW) is None:
        raise BuildError(f"{MINGW} is missing: apt-get install gcc-mingw-w64-x86-64")
    files = windows_payload()
    files["cni/_build.py"] = build_module(content_id(files, LAUNCHER.read_bytes()), files)
    partial = WINDOWS_OUTPUT.with_name(f".windows.{os.getpid()}")
    for name, data in files.items():
        path = partial / "cni-lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    launcher = launcher_program(partial / "launcher.exe")
    for name in WINDOWS_PLUGINS:
        shutil.copy(launcher, partial / f"{name}.exe")
    launcher.unlink()
    shutil.rmtree(WINDOWS_OUTPUT, ignore_errors=True)
    partial.replace(WINDOWS_OUTPUT)
    print(f"build: {WINDOWS_OUTPUT.relative_to(ROOT)} built")


def windows_payload() -> dict[str, bytes]:
    """Our own code and msgspec; nothing else is on a plugin's way there."""
    files = tree(ROOT / "cni", "cni")
    files["run.py"] = (ROOT / "launcher/run.py").read_bytes()
    for wheel in sorted(windows_wheels().glob("*.whl")):
        files.update(members(wheel))
    return files


def launcher_program(target: Path) -> Path:
    """Compile the launcher."""
    command: Arguments = [MINGW, *LAUNCHER_FLAGS, "-o", target, LAUNCHER]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{MINGW}: {done.stderr.strip()}")
    return target


def windows_wheels() -> Path:
    """A directory of the locked wheels for Windows; kept until the lock changes."""
    key = hashlib.sha256(WINDOWS_LOCK.read_bytes() + repr(PYTHONS).encode()).hexdigest()[:12]
    target = CACHE / f"wheels-windows-{key}"
    if not target.is_dir():
        partial = Path(f"{target}.{os.getpid()}")
        for python in PYTHONS:
            selection = windows_selection(python)
            pip_download(partial, *selection, "--require-hashes", "--requirement", WINDOWS_LOCK)
        partial.replace(target)
    verify(target, WINDOWS_LOCK)
    return target


def windows_selection(python: str) -> list[str]:
    """pip's options for one version of Python there."""
    interpreter = ["--implementation", "cp", "--python-version", python, "--abi", f"cp{python}"]
    return ["--no-deps", *interpreter, "--platform", "win_amd64"]


def lock_windows(versions: dict[str, str]) -> None:
    """Write tools/windows.lock: the same versions of what has extension modules."""
    scratch = CACHE / f"lock-windows.{os.getpid()}"
    try:
        for name in EXTENSIONS:
            for python in PYTHONS:
                pip_download(scratch, *windows_selection(python), f"{name}=={versions[name]}")
        entries = lock_entries({name: versions[name] for name in EXTENSIONS}, scratch)
        WINDOWS_LOCK.write_text(LOCK_HEADER + "".join(entries))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# --- dependencies --------------------------------------------------------------------------------


def download() -> Path:
    """A directory of the locked wheels of all interpreters; kept until the lock changes."""
    key = hashlib.sha256(LOCK.read_bytes() + repr((PYTHONS, MACHINES)).encode()).hexdigest()[:12]
    target = CACHE / f"wheels-{key}"
    if not target.is_dir():
        partial = Path(f"{target}.{os.getpid()}")
        pip_download(partial, "--require-hashes", "--requirement", LOCK)
        for name in EXTENSIONS:
            single = partial / "single.lock"
            single.write_text(locked(LOCK.read_text(), name))
            download_others(partial, "--require-hashes", "--requirement", single)
            single.unlink()
        partial.replace(target)
    verify(target, LOCK)
    return target


def verify(wheels: Path, lock: Path) -> None:
    """Compare the hash of each cached wheel with the lock. Raises BuildError."""
    known = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", lock.read_text()))
    for wheel in sorted(wheels.glob("*.whl")):
        if hashlib.sha256(wheel.read_bytes()).hexdigest() not in known:
            raise BuildError(f"{wheel} is not the wheel of {lock.name}: remove {wheels}")


def download_others(target: Path, *wanted: str | Path) -> None:
    """Add the wheels of the other interpreters, as far as the index has them."""
    for python, machine in ((p, m) for p in PYTHONS for m in MACHINES):
        selection = ["--no-deps", "--implementation", "cp", "--python-version", python]
        selection += ["--abi", f"cp{python}", "--platform", f"manylinux2014_{machine}"]
        try:
            pip_download(target, *selection, *wanted)
        except BuildError as error:
            print(f"build: left out: CPython {python} on {machine}: {error}", file=sys.stderr)


def locked(requirements: str, name: str) -> str:
    """The lock's entry of package `name`."""
    match = re.search(rf"^{name}==(.*\\\n)*.*\n", requirements, re.MULTILINE)
    if not match:
        raise BuildError(f"tools/bundle.lock has no {name}")
    return match[0]


def gathered(wheels: Path) -> dict[str, bytes]:
    """What shiv puts together for the locked requirements; kept until the lock changes."""
    tag = sysconfig.get_config_var("SOABI")
    bundle = CACHE / f"shiv-{wheels.name.removeprefix('wheels-')}-{tag}.pyz"
    if not bundle.exists():
        partial = Path(f"{bundle}.{os.getpid()}")
        entry: Arguments = ["--reproducible", "--entry-point", "cni.__main__:main"]
        wanted: Arguments = ["--no-index", "--find-links", wheels]
        wanted += ["--require-hashes", "--requirement", LOCK]
        run("shiv", *entry, "--output-file", partial, *wanted)
        partial.replace(bundle)
    files = dict(members(bundle, "site-packages/"))
    originals = {name: data for wheel in wheels.glob("*.whl") for name, data in members(wheel)}
    for name, data in files.items():
        if originals.get(name) != data:
            raise BuildError(f"{bundle} has a {name} that is in no locked wheel: remove the file")
    return files


def extension_modules(wheels: Path) -> dict[str, bytes]:
    """The extension modules of every interpreter and machine there is a wheel for."""
    files: dict[str, bytes] = {}
    for name in EXTENSIONS:
        for wheel in sorted(wheels.glob(f"{name}-*.whl")):
            files.update((n, data) for n, data in members(wheel) if n.endswith(".so"))
    return files


def members(path: Path, below: str = "") -> Iterator[tuple[str, bytes]]:
    """(name, content) of a zip's files below the folder `below`, without what is never needed."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removeprefix(below)
            inside = info.filename.startswith(below) and not info.is_dir()
            if inside and not DROPPED.search(name):
                yield name, archive.read(info)


def lock() -> None:
    """Write tools/bundle.lock: what pip resolves pyproject.toml's dependencies to, with hashes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    scratch = CACHE / f"lock.{os.getpid()}"
    try:
        pip_download(scratch, *project["dependencies"])
        versions = dict(wheel.name.split("-")[:2] for wheel in scratch.glob("*.whl"))
        for name in EXTENSIONS:
            download_others(scratch, f"{name}=={versions[name]}")
        LOCK.write_text(LOCK_HEADER + "".join(lock_entries(versions, scratch)))
        lock_windows(versions)
        lock_tools(versions, scratch / "constraints")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def lock_tools(versions: dict[str, str], constraints: Path) -> None:
    """Write the locks of the tools, with the bundled versions of the dependencies.

    tools/dev.lock is for `make venv`; tools/build.lock, tools/release.lock and tools/docs.lock, for
    those targets, have the same versions of what they have in common. With the hashes for all
    interpreters and machines, of which each environment takes its own.
    """
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
    lock_requirements(TOOLS_LOCK, constraints, "--extra", "dev", "pyproject.toml")
    constraints.write_text("\n".join(PINNED.findall(TOOLS_LOCK.read_text())))
    for name in ("build", "release", "docs"):
        lock_requirements(ROOT / f"tools/{name}.lock", constraints, f"tools/{name}.in")


def lock_requirements(target: Path, constraints: Path, *wanted: str) -> None:
    """Write the lock file `target` for `wanted`, words of pip-compile."""
    options = ["--quiet", "--generate-hashes", "--allow-unsafe", "--strip-extras", "--no-header"]
    options += ["--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    options += ["--no-emit-trusted-host", "--rebuild"]
    target.unlink(missing_ok=True)  # else it would keep the versions that it has
    run("piptools", "compile", *options, "-c", constraints, "-o", target, *wanted)
    target.write_text(TOOLS_HEADER.format(name=target.stem) + target.read_text())


PINNED = re.compile(r"^[\w.-]+==[\w.]+", re.MULTILINE)
TOOLS_HEADER = """\
# What the environment for `{name}` has, with the hashes of the files. Written by `make lock`.
"""
LOCK_HEADER = """\
# The bundled versions, with the hashes of their wheels. Written by `make lock`.
"""


def lock_entries(versions: dict[str, str], wheels: Path) -> Iterator[str]:
    """One requirement with its hashes for each of `versions`."""
    for name, version in sorted(versions.items()):
        matching = sorted(wheels.glob(f"{name}-{version}-*.whl"))
        hashes = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in matching]
        lines = [f"{name}=={version}", *(f"    --hash=sha256:{h}" for h in sorted(hashes))]
        yield " \\\n".join(lines) + "\n"


def pip_download(target: Path, *wanted: str | Path) -> None:
    """Download wheels into `target`. Raises BuildError with pip's last words."""
    quiet = ["--quiet", "--disable-pip-version-check"]
    run("pip", "download", *quiet, "--only-binary=:all:", "--dest", target, *wanted)


def run(module: str, *arguments: str | Path) -> None:
    """Run a module of the build environment. Raises BuildError with its last words."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        raise BuildError(f"{module}: {words[-1]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
