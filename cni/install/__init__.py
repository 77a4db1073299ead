"""Installing the built file, so that no request ever unpacks or compiles anything.

Afterwards the directory of the plugins has:

    cni                   the file itself, the interpreter written into its first lines
    bridge                a small file for each plugin, which needs `cni` (launcher/beside.h)
    .cni-<build>/         the archive, unpacked and compiled; the previous build's is still in use
    .cni-manifest.json    the list of everything that was made, for `uninstall`
    .bridge.before-cni    another project's `bridge`; `uninstall` restores it

A file that carries its interpreter needs no tree. The link by which a shell finds `cni` is in
another directory (cni.install.command).

Every step is one rename, in an order that makes a kill harmless at any point. First the complete
tree gets its name. Then `cni` is replaced, then the plugins' files; until then those of the old
build work, with the old tree or the new `cni`. Last, trees that no process runs from are removed.
Half-written files are called .cni-tmp-*; the next install removes them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import sysctl_file
from ..artifact import InstallError, Launcher
from . import units as install_units
from .directory import Installation
from .interpreter import choose
from .place import Place
from .report import Report

__all__ = ["Report", "install", "is_installed", "put_aside", "uninstall"]

LOCK = ".cni-lock"
LOCK_SECONDS = 60.0


def install(
    source: Path,
    bin_dir: Path,
    names: Iterable[str],
    python: str | None = None,
    units: Collection[Path] = (),
    *,
    client_only: bool = False,
    root: Path | None = None,
    link: Path | None = None,
    spared: Collection[str] = (),
) -> Report:
    """Install the built file `source` into `bin_dir`, with a file for each of `names`.

    With `client_only` no tree is made, and no Python is looked for: then a server has to run,
    perhaps in a container. `units` are systemd units to write (`uninstall` removes them). Another
    project's file is not replaced if its name is in `spared`. `link` is a directory in which a link
    called `cni` is made. All these absolute paths are below `root`, the root directory of the
    installed system. Raises InstallError; before `cni` is replaced nothing visible has changed.
    """
    launcher = Launcher.read(source)
    if client_only and not launcher.is_native:
        raise InstallError(f"{source} has no native client: build it where a C compiler is")
    if python and launcher.is_embedded:
        raise InstallError(f"{source} carries its interpreter: leave --python away")
    place = Place.of(bin_dir, root)
    bare = client_only or launcher.is_embedded
    interpreter, warnings = (None, []) if bare else choose(python, place.root)
    install_units.check(units, place)
    directory = place.directory()
    # The caller's umask may be 077, and then only root could run or list the plugins.
    with _errors(directory), _umask(0o022):
        if place.root is not None:
            place.root.mkdir(parents=True, exist_ok=True)
        made = _make_directories(directory)
        try:
            with _locked(directory):
                installation = Installation(place, made)
                # Noted before they are written, so that `uninstall` finds them after a kill.
                installation.units |= set(map(str, units))
                others = installation.foreign(spared)
                wanted = sorted(set(names) - set(others))
                report = installation.install(launcher, wanted, interpreter, link)
                report.units = install_units.write(units, place)
                stay = [f"{directory / name} is another project's, and stays" for name in others]
                report.warnings[:0] = [*warnings, *stay]
                return report
        except BaseException:
            _remove_directories(made)  # removes only empty ones: nothing has been installed
            raise


def uninstall(
    bin_dir: Path,
    units: Collection[Path] = (),
    *,
    root: Path | None = None,
    dry_run: bool = False,
) -> Report:
    """Remove everything that `install` made in `bin_dir`, and restore the files from before.

    `units` are systemd units to remove in addition to those in the manifest. `root` as for
    `install`. Raises InstallError. A directory without an installation gives an empty report. With
    `dry_run` nothing is changed, and the report is the same.
    """
    place = Place.of(bin_dir, root)
    directory = place.directory()
    if dry_run:
        return _preview(place, directory, units)
    if not directory.is_dir():
        return Report(str(place.bin_dir), removed=install_units.remove(units, place))
    with _errors(directory), _locked(directory):
        installation = Installation(place)
        paths = sorted({*map(Path, installation.units), *units})
        install_units.disable(paths, place)  # systemd must not start units that are being removed
        removed = install_units.remove(paths, place)
        report = installation.uninstall()
        report.removed += removed
        if report.removed and place.root is None:
            report.removed += sysctl_file.remove(str(place.bin_dir))
    gone = _remove_directories(installation.made)
    report.removed += [str(place.then(Path(path))) for path in gone]
    return report


def _preview(place: Place, directory: Path, units: Collection[Path]) -> Report:
    """What `uninstall` would report."""
    if not directory.is_dir():
        return Report(str(place.bin_dir), removed=install_units.present(units, place))
    with _errors(directory):
        installation = Installation(place, dry_run=True)
        paths = sorted({*map(Path, installation.units), *units})
        removed = install_units.present(paths, place)
        report = installation.uninstall()
        names = (LOCK, *filter(installation.is_passing, os.listdir(directory)), *report.removed)
        gone = {str(directory / name) for name in names}  # a path that is absolute stays one
        gone |= {str(place.now(Path(path))) for path in removed}
        if (removed or report.removed) and place.root is None:
            removed = [*removed, *sysctl_file.remove(str(place.bin_dir), dry_run=True)]
        emptied = _emptied(installation.made, gone)
        report.removed += [*removed, *(str(place.then(Path(path))) for path in emptied)]
        return report


def _emptied(directories: Iterable[str], gone: set[str]) -> list[str]:
    """Those of the directories, the innermost first, in which nothing is left but what is gone."""
    emptied: list[str] = []
    for directory in directories:
        try:
            names = os.listdir(directory)
        except OSError:
            break
        if {os.path.join(directory, name) for name in names} - gone - set(emptied):
            break
        emptied.append(directory)
    return emptied


def is_installed(bin_dir: Path) -> bool:
    """Has the directory plugins of this project?"""
    return Installation(Place.of(bin_dir)).is_present


def put_aside(bin_dir: Path) -> frozenset[str]:
    """The names of the other projects' plugins that `uninstall` would restore."""
    return Installation(Place.of(bin_dir)).backups()


def _make_directories(path: Path) -> list[str]:
    """Make `path` and its parents; returns the directories made, the innermost first."""
    if path.is_dir():
        return []
    above = _make_directories(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        if path.is_dir():  # another install has made it, and will remember that
            return above
        _remove_directories(above)
        raise InstallError(_in_the_way(path)) from None
    except OSError:
        _remove_directories(above)
        raise
    return [str(path), *above]


def _in_the_way(path: Path) -> str:
    """The error text for a path that should be a directory, and is something else."""
    if path.is_symlink():
        what = f"is a symbolic link to {os.readlink(path)}, which is no directory"
    else:
        what = "is no directory"
    return f"{path} {what}: remove it, or choose another directory with --bin-dir"


def _remove_directories(paths: Iterable[str]) -> list[str]:
    """Remove directories, the innermost first, until one is not empty; return the removed ones."""
    removed = []
    for directory in paths:
        try:
            os.rmdir(directory)
        except OSError:  # it has files that are not ours
            break
        removed.append(directory)
    return removed


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory`, and leave no file behind. Raises InstallError after a minute.

    The lock is a file that no other user can open. A lock on the directory itself would not do:
    every user who may read the directory could hold it.
    """
    path = directory / LOCK
    deadline = time.monotonic() + LOCK_SECONDS
    while (fd := _take_lock(path)) is None:
        if time.monotonic() > deadline:
            raise InstallError(f"another install is at work in {directory}: wait for it to end")
        time.sleep(0.05)
    try:
        yield
    finally:
        # While the lock is still held: later the file could be the next holder's.
        path.unlink(missing_ok=True)
        os.close(fd)


def _take_lock(path: Path) -> int | None:
    """The descriptor of the locked file; None if another process has it. Raises OSError."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        # A symbolic link, a FIFO or socket, a directory: nothing that an install has made.
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise InstallError(f"{path} is not ours: remove it") from None
    taken = False
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
            path.unlink()  # another user's file, made to hold the lock
            return None
        os.fchmod(fd, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous holder has removed the file, perhaps after we opened it.
        taken = os.path.exists(path) and os.path.samestat(status, os.lstat(path))
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not taken:
            os.close(fd)
    return fd if taken else None


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """Use this umask, also in child processes: every user must be able to read plugins."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _errors(bin_dir: Path) -> Iterator[None]:
    """Turn an OSError into an InstallError that says what to do."""
    remedies = {
        errno.EACCES: "run as root, or choose another directory with --bin-dir",
        errno.EPERM: "run as root, or choose another directory with --bin-dir",
        errno.EROFS: "choose a directory on a writable file system with --bin-dir",
        errno.ENOSPC: "make room and try again; nothing was changed",
        errno.EDQUOT: "make room and try again; nothing was changed",
    }
    try:
        yield
    except OSError as error:
        remedy = remedies.get(error.errno or 0, "what was installed before still works")
        where = error.filename or bin_dir
        raise InstallError(f"{where}: {error.strerror}; {remedy}") from error
