"""The directory with the installed plugins: its files, its manifest, and replacing a build.

Longer than 400 lines: `Undo` removes exactly the files that `Installation` makes, in the reverse
order, so a change of one needs the other in view.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import files
from ..artifact import InstallError, Launcher, build_of, is_stub, stub_of
from . import command, tree
from .interpreter import Interpreter, compile_tree, probe
from .place import Place
from .report import Report

MANIFEST = ".cni-manifest.json"
MANIFEST_MAX = 1 << 20  # bytes
TEMPORARY = ".cni-tmp-"

_TREE = re.compile(r"\.cni-[0-9a-f]{12}")


class Installation:
    """The installation in one directory, whose lock the caller holds (`cni.install`)."""

    def __init__(self, place: Place, made: Iterable[str] = (), *, dry_run: bool = False) -> None:
        """`made` are the directories that this install has made, the innermost first.

        With `dry_run` `uninstall` only reports, and needs no lock.
        """
        self.place, self._dry_run = place, dry_run
        self.dir = place.directory()
        self.report = Report(str(place.bin_dir))
        self.manifest = self._read_manifest()
        before = [str(place.now(Path(path))) for path in self.manifest.get("made", [])]
        self.made: list[str] = [*made, *before]
        # Paths on the installed system.
        self.units: set[str] = set(self.manifest.get("units", []))
        self.commands: set[str] = set(self.manifest.get("commands", []))
        self.digest = ""
        self._counter = 0

    def install(
        self,
        launcher: Launcher,
        names: list[str],
        python: Interpreter | None,
        link: Path | None = None,
    ) -> Report:
        """Replace what is installed by `launcher`.

        Without `python` nothing is unpacked: the file is only the client, or carries its
        interpreter. `link` is a directory in which a shell looks for programs.
        """
        self._check_directories(names)
        self.sweep()
        undo = Undo(self, launcher.build)
        try:
            return self._install(launcher, names, python, link)
        except BaseException:
            undo.undo()
            raise

    def _install(
        self, launcher: Launcher, names: list[str], python: Interpreter | None, link: Path | None
    ) -> Report:
        self.report.build = launcher.build
        self.report.python = python.path if python else "embedded" * launcher.is_embedded
        self._note_command(link)
        current = self.current_build()
        previous = current if current != launcher.build else self.manifest.get("previous")
        before = self._names()
        data = launcher.data
        if not launcher.is_embedded:
            data = launcher.with_python(python.path if python else "")
        if python:
            self._place_tree(launcher, python)
        self.digest = ""  # unknown, until it is certain which file is there
        # Before the files change: after a kill `uninstall` has to know old and new names.
        self._write_manifest(launcher.build, previous, sorted({*names, *before}))
        # Another program may be called cni.
        if current is None:
            self._keep_foreign("cni")
        self.write("cni", data, 0o755)
        # After `cni`, which the new small files need; the old ones work with the new `cni`, too.
        stub = stub_of(data)
        for name in names:
            self._place(name, stub)
        # Plugins that this build no longer has.
        for name in set(before) - set(names):
            self._retire(name)
        self.digest = hashlib.sha256(data).hexdigest()
        self._write_manifest(launcher.build, previous, names)
        self._remove_trees({launcher.build, previous})
        self._make_command()
        return self.report

    def uninstall(self) -> Report:
        """Remove the plugins' files first, then `cni`, which they need, then everything else."""
        if not self._dry_run:
            self.sweep()
        for path in sorted(self.commands):
            if command.remove(self.place, Path(path), dry_run=self._dry_run):
                self.report.removed.append(path)
        for name in self._names():
            self._retire(name)
        if self.current_build() is not None:
            self._restore_or_remove("cni")
        self._remove_trees(set())
        if not self._dry_run:
            (self.dir / MANIFEST).unlink(missing_ok=True)
        return self.report

    def is_passing(self, name: str) -> bool:
        """Whether a file of the directory goes with any uninstall, and no report names it."""
        return name == MANIFEST or name.startswith(TEMPORARY)

    def _check_directories(self, names: list[str]) -> None:
        for name in ("cni", *names):
            path = self.dir / name
            if path.is_dir() and not path.is_symlink():
                raise InstallError(f"{path} is a directory: move it away")

    # The link for a shell

    def _note_command(self, directory: Path | None) -> None:
        path = command.path_in(self.place, directory) if directory else None
        if path is not None:
            self.report.command = str(path)
            self.commands.add(str(path))

    def _make_command(self) -> None:
        """Make the link, last: nothing depends on it. `warnings` say why there is none."""
        if not self.report.command:
            return
        problem = command.make(self.place, Path(self.report.command))
        if problem:
            self.report.warnings.append(problem)
            self.report.command = ""

    # The tree

    def _place_tree(self, launcher: Launcher, python: Interpreter) -> None:
        """Make .cni-<build> complete, compiled for `python`, and tried with it."""
        final = self.dir / f".cni-{launcher.build}"
        if os.path.lexists(final) and not tree.is_safe(final):
            self._discard(final)  # another user may have put files there
        if final.is_dir():
            tree.unpack(launcher.path, final, self._temporary)
            compile_tree(python, launcher.path, final, self.place.then(final))
            probe(python, final)
            return
        partial = self._temporary()
        partial.mkdir()
        try:
            tree.unpack(launcher.path, partial, self._temporary)
            compile_tree(python, launcher.path, partial, self.place.then(final))
            probe(python, partial)
            tree.sync(partial)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        tree.sync_file(self.dir)

    def _remove_trees(self, keep: set[str | None]) -> None:
        for path in self.dir.iterdir():
            if _TREE.fullmatch(path.name) and path.name.removeprefix(".cni-") not in keep:
                self._discard(path)
                self.report.removed.append(path.name)

    def _discard(self, path: Path) -> None:
        """Remove a tree. After a kill the next install removes the rest."""
        if self._dry_run:
            return
        # By its new name the next install recognises what a kill leaves of it.
        doomed = self._temporary()
        path.rename(doomed)
        _remove(doomed)

    # Names

    def _place(self, name: str, stub: bytes | None) -> None:
        """Replace `name` by the file `stub`, with one rename: the name never disappears.

        Without a `stub` (the built file starts with the script) it is a link to `cni`.
        """
        path = self.dir / name
        if self._is_in_place(path, stub):
            self.report.unchanged.append(name)
            return
        if not self._is_ours(path):
            self._keep_foreign(name)
        if stub is None:
            temporary = self._temporary()
            temporary.symlink_to("cni")
            temporary.replace(path)
        else:
            files.replace(str(path), stub, 0o755, temporary=str(self._temporary()))
        self.report.links.append(name)

    def _is_in_place(self, path: Path, stub: bytes | None) -> bool:
        if path.is_symlink():
            return stub is None and os.readlink(path) == "cni"
        if stub is None:
            return False
        try:
            if not tree.is_safe(path) or not os.access(path, os.X_OK):
                return False
            status = path.lstat()
            like = stat.S_ISREG(status.st_mode) and status.st_size == len(stub)
            return like and path.read_bytes() == stub
        except OSError:
            return False

    def _belongs(self, path: Path) -> bool:
        """Has `_place` made this plugin's file, of this build or another?"""
        if path.is_symlink():
            return os.readlink(path) == "cni"
        try:
            return is_stub(path)
        except OSError:
            return False

    def foreign(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are other projects' files."""
        paths = {name: self.dir / name for name in names}
        return [n for n, path in paths.items() if os.path.lexists(path) and not self._is_ours(path)]

    def _is_ours(self, path: Path) -> bool:
        """Does `path` lead to the installed file, or is it a copy of a built file, of any build?

        Copies come from copying files one by one, or from unpacking without links.
        """
        if path.is_symlink():
            return os.readlink(path) == "cni" or self._leads_to_us(path)
        try:
            return build_of(path) is not None
        except OSError:
            return False

    def _leads_to_us(self, path: Path) -> bool:
        # realpath, since Path.resolve() fails for circular links.
        return os.path.realpath(path) == os.path.realpath(self.dir / "cni")

    def _keep_foreign(self, name: str) -> None:
        """Give another project's file a second name, for `_restore_or_remove`."""
        path, backup = self.dir / name, self.dir / f".{name}.before-cni"
        if not os.path.lexists(path):
            return
        temporary = self._temporary()
        try:
            # A second name, not a rename: the plugin can be executed all the time.
            os.link(path, temporary, follow_symlinks=False)
        except OSError:  # a file system without hard links
            shutil.copy2(path, temporary, follow_symlinks=False)
        temporary.replace(backup)
        temporary.unlink(missing_ok=True)  # rename(2) leaves it if both names are one file
        self.report.kept[name] = backup.name

    def _retire(self, name: str) -> None:
        if self._belongs(self.dir / name):
            self._restore_or_remove(name)

    def _restore_or_remove(self, name: str) -> None:
        path, backup = self.dir / name, self.dir / f".{name}.before-cni"
        if os.path.lexists(backup):
            self.report.restored.append(name)
            if not self._dry_run:
                backup.replace(path)
        else:
            self.report.removed.append(name)
            if not self._dry_run:
                path.unlink()

    def current_build(self) -> str | None:
        """The build of the installed file.

        The manifest cannot tell: it is written before the file is replaced.
        """
        try:
            return build_of(self.dir / "cni")
        except OSError:
            return None

    def backups(self) -> frozenset[str]:
        """The names of the other projects' files that were kept."""
        names = self._names() if self.is_present else []
        return frozenset(n for n in names if os.path.lexists(self.dir / f".{n}.before-cni"))

    @property
    def is_present(self) -> bool:
        """Is there anything to uninstall?"""
        return bool(self.manifest) or self.current_build() is not None

    def _names(self) -> list[str]:
        """The installed plugins; without a manifest, all files that belong to `cni`."""
        names = self.manifest.get("names")
        if names is None:
            paths = (path for path in self.dir.iterdir() if not path.name.startswith("."))
            names = sorted(path.name for path in paths if self._belongs(path))
        return list(names)

    # Files

    def _read_manifest(self) -> dict[str, Any]:
        path = self.dir / MANIFEST
        try:
            if not tree.is_safe(path):
                return {}
            manifest = json.loads(files.read(str(path), MANIFEST_MAX))
        except (OSError, ValueError):
            return {}
        return manifest if _is_manifest(manifest) else {}

    def _write_manifest(self, build: str, previous: str | None, names: list[str]) -> None:
        made = [str(self.place.then(Path(path))) for path in self.made]
        manifest = {"build": build, "previous": previous, "names": names, "made": made}
        manifest["digest"] = self.digest  # SHA-256 of `cni`, for `cni doctor`
        manifest["units"] = sorted(self.units)
        manifest["commands"] = sorted(self.commands)
        self.write(MANIFEST, json.dumps(manifest, indent=4).encode() + b"\n", 0o644)

    def write(self, name: str, data: bytes, mode: int) -> None:
        """Replace the file `name` by `data`, whole or not at all. Raises OSError."""
        temporary = self._temporary()
        files.replace(str(self.dir / name), data, mode, temporary=str(temporary))
        tree.sync_file(self.dir)

    def _temporary(self) -> Path:
        self._counter += 1
        return self.dir / f"{TEMPORARY}{os.getpid()}-{self._counter}"

    def sweep(self) -> None:
        """Remove what a killed install left. It is not in use, since the caller holds the lock."""
        for path in self.dir.glob(f"{TEMPORARY}*"):
            _remove(path)


class Undo:
    """Undoes a failed install, so that the directory is as before."""

    def __init__(self, installation: Installation, build: str) -> None:
        self._of = installation
        self._build = build
        self._tree = installation.dir / f".cni-{build}"
        self._tree_was_there = os.path.lexists(self._tree)
        self._was_there = installation.is_present
        try:
            self._manifest: bytes | None = (installation.dir / MANIFEST).read_bytes()
        except OSError:
            self._manifest = None

    def undo(self) -> None:
        """Remove the new files; the next install removes those that cannot be removed now.

        If `cni` is of the new build already, the links to it work, and stay if there was a `cni`
        before.
        """
        if self._was_there and self._of.current_build() == self._build:
            return
        for step in (self._names, self._manifest_again, self._new_tree, self._of.sweep):
            try:
                step()
            except OSError:
                pass

    def _names(self) -> None:
        """Remove the links, then `cni`, and restore the files from before."""
        if self._was_there:
            return
        for name in [*self._of.report.links, "cni"]:
            path = self._of.dir / name
            if os.path.lexists(path) and (name != "cni" or self._of.current_build() == self._build):
                path.unlink()
        for name, backup in self._of.report.kept.items():
            path = self._of.dir / backup
            path.replace(self._of.dir / name)
            path.unlink(missing_ok=True)  # rename(2) leaves it if both are one file

    def _manifest_again(self) -> None:
        if self._manifest is None:
            (self._of.dir / MANIFEST).unlink(missing_ok=True)
        else:
            self._of.write(MANIFEST, self._manifest, 0o644)

    def _new_tree(self) -> None:
        if not self._tree_was_there and os.path.lexists(self._tree):
            _remove(self._tree)


def _is_manifest(read: Any) -> bool:
    """Has a document the form that `_write_manifest` writes?"""
    if not isinstance(read, dict):
        return False
    texts = [read.get(key, "") for key in ("build", "digest")]
    lists = [read.get(key, []) for key in ("names", "made", "units", "commands")]
    return all(isinstance(each, str) for each in texts) and all(
        isinstance(each, list) and all(isinstance(text, str) for text in each) for each in lists
    )


def _remove(path: Path) -> None:
    """Remove a file, or a directory with its contents."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
