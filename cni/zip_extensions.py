"""Imports extension modules from the archive, without a file on a disk.

The dynamic loader needs a file. An anonymous file in memory suffices (memfd_create(2)); its path is
/proc/self/fd/N. An installed tree has real files and does not need this module.
"""

from __future__ import annotations

import os
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader
from _imp import extension_suffixes
from collections.abc import Sequence
from types import ModuleType
from zipimport import zipimporter


class ArchiveExtensions:
    """A finder for sys.meta_path; `importer` is the zipimporter of the archive's root."""

    def __init__(self, importer: zipimporter) -> None:
        self._importer = importer
        self._prefix = importer.archive + "/"

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of extension module `name` below `path` (its package's), or None.

        Raises ImportError when memory files are not executable here (vm.memfd_noexec=2).
        """
        for directory in path or ():
            if not directory.startswith(self._prefix):
                continue
            for suffix in extension_suffixes():
                member = f"{directory}/{name.rpartition('.')[2]}{suffix}"
                try:
                    data = self._importer.get_data(member)
                except OSError:
                    continue
                return self._spec(name, member, data)
        return None

    def _spec(self, name: str, member: str, data: bytes) -> ModuleSpec:
        try:
            fd = os.memfd_create(name)
            # Stays open: the loader identifies libraries by their paths, so another library with
            # the same descriptor number would be taken for this one.
            with os.fdopen(fd, "wb", closefd=False) as file:
                file.write(data)
        except OSError as error:
            raise ImportError(
                f"cannot load {member} from memory: {error.strerror}; run: cni install", name=name
            ) from error
        path = f"/proc/self/fd/{fd}"
        # The loader opens the spec's origin, not its own path.
        return ModuleSpec(name, ExtensionFileLoader(name, path), origin=path)


def enable(loader: object) -> None:
    """Register the finder if `loader` (of the calling module) imports from an archive."""
    if isinstance(loader, zipimporter):
        sys.meta_path.append(ArchiveExtensions(zipimporter(loader.archive)))
