"""The plugins that the runtimes of the node use."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .node import Node

BIN_DIR = "/opt/cni/bin"


@dataclass(frozen=True)
class Plugins:
    """The plugins under test; on the node they are in BIN_DIR, and no others anywhere."""

    # A directory of other plugins, such as Debian's, from $CNI_TEST_BIN_DIR.
    given: Path | None
    # Our own file, which is installed on the node.
    dist: Path | None

    @property
    def ours(self) -> bool:
        return self.dist is not None

    def install(self, node: Node) -> None:
        """Make them the plugins of a node."""
        if self.dist is not None:
            node.run([str(self.dist), "install", "--bin-dir", BIN_DIR])
        elif self.given is not None:
            shutil.copytree(self.given, node.path(BIN_DIR), symlinks=True, dirs_exist_ok=True)
