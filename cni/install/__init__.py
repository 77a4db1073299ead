"""Installing the built file, so that no request ever unpacks or compiles anything.

In the directory of the plugins there is afterwards:

    cni                   the file itself, the interpreter written into its first lines
    bridge -> cni         one link a plugin
    .cni-<build>/         the archive, unpacked and compiled; the previous build's is still in use
    .cni-manifest.json    what was made, for `uninstall`
    .bridge.before-cni    what was called bridge before; `uninstall` puts it back

Every step is one rename, and the order makes a kill harmless at any point: a tree gets its name
when it is complete, then the rename of `cni` switches all links over at once, then missing links
are made, last of all trees that nothing runs from go. Half-made things are called .cni-tmp-*; the
next install sweeps them away.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import time
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from . import units as install_units
from .interpreter import InstallError, choose_python, compile_tree, probe

# The script that starts Python is in here: at the very beginning, or within the native client.
HEAD_SIZE = (1 << 20) + 4096
MANIFEST = ".cni-manifest.json"
TEMPORARY = ".cni-tmp-"
LOCK_SECONDS = 60.0

_BUILD = re.compile(rb"^cni_build=([0-9a-f]{12})$", re.MULTILINE)
_PYTHON = re.compile(rb"^cni_python='[^'\n]*'[^\n]*$", re.MULTILINE)
_TREE = re.compile(r"\.cni-[0-9a-f]{12}")


@dataclass
class Report:
    """What was done. Names are file names in `bin_dir`."""

    bin_dir: str
    build: str = ""
    python: str = ""
    links: list[str] = field(default_factory=list)  # made, or made to point to us
    unchanged: list[str] = field(default_factory=list)  # links that were right already
    kept: dict[str, str] = field(default_factory=dict)  # foreign file -> its name now
    restored: list[str] = field(default_factory=list)  # foreign files that are back
    removed: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)  # systemd units, with their paths
    warnings: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        return asdict(self)


def install(
    source: Path,
    bin_dir: Path,
    names: Iterable[str],
    python: str | None = None,
    units: Collection[Path] = (),
    *,
    client_only: bool = False,
) -> Report:
    """Install the built file `source` into `bin_dir`, with a link for each of `names`.

    With `client_only` there is no tree, and Python is not looked for: then a server has to run,
    perhaps in a container. `units` are systemd units to be written (and, later, removed by
    `uninstall`). Raises InstallError; until the switch nothing visible has changed then.
    """
    launcher = Launcher.read(source)
    if client_only and not launcher.is_native:
        raise InstallError(f"{source} has no native client: build it where a C compiler is")
    interpreter = "" if client_only else choose_python(python)
    bin_dir = bin_dir.absolute()
    install_units.check(units, bin_dir)
    with _errors(bin_dir), _umask(0o022):
        made = _make_directories(bin_dir)
        with _locked(bin_dir):
            installation = _Installation(bin_dir, made)
            installation.units |= set(map(str, units))
            report = installation.install(launcher, sorted(names), interpreter)
            report.units = install_units.write(units, bin_dir)
            return report


def uninstall(bin_dir: Path, units: Collection[Path] = ()) -> Report:
    """Remove what `install` made in `bin_dir` and put back what was there before.

    `units` are systemd units to remove beside those that it remembers. Raises InstallError. A
    directory without an installation gives an empty report.
    """
    bin_dir = bin_dir.absolute()
    if not bin_dir.is_dir():
        return Report(str(bin_dir), removed=install_units.remove(units))
    with _errors(bin_dir), _locked(bin_dir):
        installation = _Installation(bin_dir)
        paths = sorted({*map(Path, installation.units), *units})
        install_units.disable(paths)  # nobody starts what is going to be removed
        removed = install_units.remove(paths)
        report = installation.uninstall()
        report.removed += removed
        return report


@dataclass(frozen=True)
class Launcher:
    """A built file: where it is, its build id, and its bytes."""

    build: str
    data: bytes
    path: Path

    @classmethod
    def read(cls, path: Path) -> Launcher:
        try:
            build = build_of(path)
            data = path.read_bytes()
        except OSError as error:
            raise InstallError(f"cannot read {path}: {error.strerror}") from error
        if build is None:
            raise InstallError(
                f"{path} is not the built file: run `make build`, then dist/cni install"
            )
        return cls(build, data, path)

    @property
    def is_native(self) -> bool:
        """Does it begin with the native client, not with the script?"""
        return self.data.startswith(b"\x7fELF")

    def with_python(self, python: str) -> bytes:
        """The file with `python` as its interpreter; the archive stays where it is."""
        head, rest = self.data[:HEAD_SIZE], self.data[HEAD_SIZE:]
        line = _PYTHON.search(head)
        text = f"cni_python='{python}'  # ".encode()
        if line is None or "'" in python or "\n" in python or len(text) > len(line[0]):
            raise InstallError(f"the path of the interpreter is too long or has quotes: {python}")
        return head.replace(line[0], text.ljust(len(line[0]), b".")) + rest


def build_of(path: Path) -> str | None:
    """The build id of the built file `path`; None for any other file. Raises OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    with path.open("rb") as file:
        match = _BUILD.search(file.read(HEAD_SIZE))
    return match[1].decode() if match else None


# --- the directory -------------------------------------------------------------------------------


class _Installation:
    """The installation in one directory; its lock is held."""

    def __init__(self, bin_dir: Path, made: Iterable[str] = ()) -> None:
        self.dir = bin_dir
        self.report = Report(str(bin_dir))
        self.manifest = self._read_manifest()
        # Directories that exist because of us, the innermost first.
        self.made: list[str] = [*made, *self.manifest.get("made", [])]
        self.units: set[str] = set(self.manifest.get("units", []))
        self._counter = 0

    def install(self, launcher: Launcher, names: list[str], python: str) -> Report:
        """Replace whatever is installed by `launcher`; without `python` by no more than that."""
        self._check_directories(names)
        self._sweep()
        self.report.build, self.report.python = launcher.build, python
        current = self._current_build()
        previous = current if current != launcher.build else self.manifest.get("previous")
        before = self._names()
        data = launcher.with_python(python)
        if python:
            self._place_tree(launcher, python)
        self._write_manifest(launcher.build, previous, sorted({*names, *before}))
        if current is None:
            self._keep_foreign("cni")
        self._write("cni", data, 0o755)
        for name in names:
            self._link(name)
        for name in set(before) - set(names):
            self._retire(name)
        self._write_manifest(launcher.build, previous, names)
        self._remove_trees({launcher.build, previous})
        return self.report

    def uninstall(self) -> Report:
        """Take everything away again, what names point to last."""
        self._sweep()
        for name in self._names():
            self._retire(name)
        if self._current_build() is not None:
            self._restore_or_remove("cni")
        self._remove_trees(set())
        (self.dir / MANIFEST).unlink(missing_ok=True)
        for directory in self.made:
            try:
                os.rmdir(directory)
            except OSError:  # somebody else uses it
                break
            self.report.removed.append(directory)
        return self.report

    def _check_directories(self, names: list[str]) -> None:
        for name in ("cni", *names):
            path = self.dir / name
            if path.is_dir() and not path.is_symlink():
                raise InstallError(f"{path} is a directory: move it away")

    # The tree

    def _place_tree(self, launcher: Launcher, python: str) -> None:
        """Have .cni-<build>, complete, compiled for `python`, and seen to start."""
        tree = self.dir / f".cni-{launcher.build}"
        if tree.is_dir():
            _unpack(launcher.path, tree, self._temporary)
            self.report.warnings += probe(python, tree)
            compile_tree(python, tree, tree)
            return
        partial = self._temporary()
        partial.mkdir()
        try:
            _unpack(launcher.path, partial, self._temporary)
            self.report.warnings += probe(python, partial)
            compile_tree(python, partial, tree)
            _sync_tree(partial)
            partial.rename(tree)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _sync(self.dir)

    def _remove_trees(self, keep: set[str | None]) -> None:
        for path in self.dir.iterdir():
            if _TREE.fullmatch(path.name) and path.name.removeprefix(".cni-") not in keep:
                # Whoever is killed here leaves a name that the next install sweeps away.
                doomed = self._temporary()
                path.rename(doomed)
                shutil.rmtree(doomed)
                self.report.removed.append(path.name)

    # Names

    def _link(self, name: str) -> None:
        """Make `name` a link to us; there is a plugin of that name at every moment."""
        path = self.dir / name
        if path.is_symlink() and os.readlink(path) == "cni":
            self.report.unchanged.append(name)
            return
        if not self._leads_to_us(path):
            self._keep_foreign(name)
        temporary = self._temporary()
        temporary.symlink_to("cni")
        temporary.replace(path)
        self.report.links.append(name)

    def _leads_to_us(self, path: Path) -> bool:
        if not path.is_symlink():
            return False
        return os.readlink(path) == "cni" or path.resolve() == (self.dir / "cni").resolve()

    def _keep_foreign(self, name: str) -> None:
        """Give a foreign file a second name, under which it survives our taking the first."""
        path, backup = self.dir / name, self.dir / f".{name}.before-cni"
        if not os.path.lexists(path):
            return
        temporary = self._temporary()
        try:
            os.link(path, temporary, follow_symlinks=False)
        except OSError:  # a file system without hard links
            shutil.copy2(path, temporary, follow_symlinks=False)
        temporary.replace(backup)
        temporary.unlink(missing_ok=True)  # still there if both names already were one file
        self.report.kept[name] = backup.name

    def _retire(self, name: str) -> None:
        path = self.dir / name
        if path.is_symlink() and os.readlink(path) == "cni":
            self._restore_or_remove(name)

    def _restore_or_remove(self, name: str) -> None:
        path, backup = self.dir / name, self.dir / f".{name}.before-cni"
        if os.path.lexists(backup):
            backup.replace(path)
            self.report.restored.append(name)
        else:
            path.unlink()
            self.report.removed.append(name)

    def _current_build(self) -> str | None:
        """The build of the installed file; what the manifest says may never have come to be."""
        try:
            return build_of(self.dir / "cni")
        except OSError:
            return None

    def _names(self) -> list[str]:
        """The plugins that are installed; without a manifest, all that point to `cni`."""
        names = self.manifest.get("names")
        if names is None:
            links = (path for path in self.dir.iterdir() if path.is_symlink())
            names = sorted(path.name for path in links if os.readlink(path) == "cni")
        return list(names)

    # Files

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads((self.dir / MANIFEST).read_text())
        except (OSError, ValueError):
            return {}
        return manifest if isinstance(manifest, dict) else {}

    def _write_manifest(self, build: str, previous: str | None, names: list[str]) -> None:
        manifest = {"build": build, "previous": previous, "names": names, "made": self.made}
        manifest["units"] = sorted(self.units)
        self._write(MANIFEST, json.dumps(manifest, indent=4).encode() + b"\n", 0o644)

    def _write(self, name: str, data: bytes, mode: int) -> None:
        temporary = self._temporary()
        files.replace(str(self.dir / name), data, mode, temporary=str(temporary))
        _sync(self.dir)

    def _temporary(self) -> Path:
        self._counter += 1
        return self.dir / f"{TEMPORARY}{os.getpid()}-{self._counter}"

    def _sweep(self) -> None:
        """Remove what a killed install left; we hold the lock, so nobody is using it."""
        for path in self.dir.glob(f"{TEMPORARY}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _unpack(archive: Path, tree: Path, temporary: Any) -> None:
    """Bring the archive's files into `tree`; a file that is already as it should be is left alone.

    Each file appears whole, so a damaged tree is repaired under running plugins.
    """
    with zipfile.ZipFile(archive) as bundle:
        for info in bundle.infolist():
            if info.filename.endswith(".pyc") or info.filename == "__main__.py":
                continue
            path, data = tree / info.filename, bundle.read(info)
            if path.is_file() and path.read_bytes() == data:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(str(path), data, 0o644, temporary=str(temporary()))


def _sync_tree(tree: Path) -> None:
    """Have `tree` on the disk before its name is: a crash must not leave empty files."""
    for directory, _, names in os.walk(tree):
        for name in names:
            _sync(Path(directory, name))
        _sync(Path(directory))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_directories(path: Path) -> list[str]:
    """Make `path` and its parents; returns the directories made, the innermost first."""
    if path.is_dir():
        return []
    above = _make_directories(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        if path.is_dir():  # another install was quicker, and will remember it
            return above
        raise
    return [str(path), *above]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory`, which leaves no file behind; InstallError after a minute."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(fd):
            if time.monotonic() > deadline:
                raise InstallError(f"another install is at work in {directory}: wait for it to end")
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """Plugins have to be readable whatever the caller's umask; children inherit this one."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _errors(bin_dir: Path) -> Iterator[None]:
    """Say what the operating system refused, and what helps."""
    remedies = {
        errno.EACCES: "run as root, or choose another directory with --bin-dir",
        errno.EPERM: "run as root, or choose another directory with --bin-dir",
        errno.EROFS: "choose a directory on a writable file system with --bin-dir",
        errno.ENOSPC: "make room and try again; what was installed before still works",
    }
    try:
        yield
    except OSError as error:
        remedy = remedies.get(error.errno or 0, "what was installed before still works")
        where = error.filename or bin_dir
        raise InstallError(f"{where}: {error.strerror}; {remedy}") from error
