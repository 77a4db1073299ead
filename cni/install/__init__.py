"""Installing the built file, so that no request ever unpacks or compiles anything.

In the directory of the plugins there is afterwards:

    cni                   the file itself, the interpreter written into its first lines
    bridge -> cni         one link a plugin
    .cni-<build>/         the archive, unpacked and compiled; the previous build's is still in use
    .cni-manifest.json    what was made, for `uninstall`
    .bridge.before-cni    what was called bridge before; `uninstall` puts it back

Every step is one rename, in an order that makes a kill harmless at any point. First the tree gets
its name, once it is complete. Then the rename of `cni` switches all links over at once. Then
missing links are made, and at last the trees that nothing runs from are removed. Half-written files
are called .cni-tmp-*; the next install sweeps them away.
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

from ..artifact import InstallError, Launcher
from . import units as install_units
from .directory import Installation, Report
from .interpreter import choose_python

__all__ = ["Report", "install", "uninstall"]

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
            installation = Installation(bin_dir, made)
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
        installation = Installation(bin_dir)
        paths = sorted({*map(Path, installation.units), *units})
        install_units.disable(paths)  # systemd must not start what is about to be removed
        removed = install_units.remove(paths)
        report = installation.uninstall()
        report.removed += removed
    report.removed += _remove_directories(installation.made)
    return report


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


def _remove_directories(paths: Iterable[str]) -> list[str]:
    """Remove directories, the innermost first, until one is not empty; those that are gone."""
    removed = []
    for directory in paths:
        try:
            os.rmdir(directory)
        except OSError:  # it holds files that are not ours
            break
        removed.append(directory)
    return removed


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory`, which leaves no file behind; InstallError after a minute.

    The lock is a file that no other user can open. The directory itself would do as well, but every
    user who may read it could hold its lock.
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
        path.unlink(missing_ok=True)
        os.close(fd)


def _take_lock(path: Path) -> int | None:
    """The descriptor of the locked file; None if another process has it. Raises OSError."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise InstallError(f"{path} is not ours: remove it") from None
    taken = False
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
            path.unlink()  # another user has made it, to hold it
            return None
        os.fchmod(fd, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The process that had the lock before has removed the file, perhaps after we opened it.
        taken = os.path.exists(path) and os.path.samestat(status, os.lstat(path))
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not taken:
            os.close(fd)
    return fd if taken else None


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """Use this umask, in child processes too: plugins must be readable for everybody."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _errors(bin_dir: Path) -> Iterator[None]:
    """Turn an OSError into an InstallError that says what helps."""
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
