"""The runtimes use the plugins under test, and no others."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import pytest

from cni import artifact
from tests.harness import DUAL

from .node_init import OTHER_BIN_DIRS
from .plugins import BIN_DIR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .engines import Engine
    from .networks import Network
    from .node import Node
    from .plugins import Plugins

pytestmark = pytest.mark.runtime


def test_only_ours_are_there(node: Node, plugins: Plugins) -> None:
    """The only plugin directory of the node has the file that was built here, and what it needs."""
    if plugins.dist is None:
        pytest.skip(f"CNI_TEST_BIN_DIR={plugins.given} chooses other plugins")
    names = set(node.run(["ls", BIN_DIR]).stdout.split())
    assert {"bridge", "host-local", "loopback", "ptp"} <= names
    of_plugins = [node.path(f"{BIN_DIR}/{name}") for name in names - {"cni"}]
    assert all(artifact.is_stub(path) for path in of_plugins)
    builds = {artifact.build_of(path) for path in [*of_plugins, plugins.dist]}
    assert len(builds) == 1

    def archive(path: Path) -> dict[str, int]:
        with zipfile.ZipFile(path) as file:
            return {entry.filename: entry.CRC for entry in file.infolist()}

    assert archive(node.path(f"{BIN_DIR}/cni")) == archive(plugins.dist)
    assert any(name.endswith("cni/dispatch.py") for name in archive(plugins.dist))


def test_none_elsewhere(node: Node) -> None:
    """The directories in which the runtimes look besides (Debian's is one) are empty."""
    for directory in OTHER_BIN_DIRS:
        assert node.run(["ls", directory], check=False).stdout == ""


@pytest.mark.parametrize("missing", ["bridge", "host-local"])
def test_without_a_plugin(
    network: Callable[..., Network], engine: Engine, node: Node, plugins: Plugins, missing: str
) -> None:
    """No container starts when a plugin is gone from the directory: none came from elsewhere."""
    net = network(DUAL)
    plugin = node.path(f"{BIN_DIR}/{missing}")
    hidden = plugin.with_name(f"{missing}.hidden")
    plugin.rename(hidden)
    try:
        with pytest.raises(AssertionError, match=rf'failed to find plugin \\*"{missing}'):
            engine.run(net)
    finally:
        hidden.rename(plugin)
    engine.remove_all()
    node.nothing_left(net)
    if plugins.ours:
        # The reference cannot use the bridge that is left without ports ("could not set bridge's
        # mac: invalid argument").
        engine.remove(engine.run(net))
