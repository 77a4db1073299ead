"""The command line beside libcni itself (in podman and containerd): one cache, one format."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from cni.cli.cache import Cache
from tests.harness import DUAL, ports

from .checks import check_own_network

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .engines import Engine
    from .networks import Network
    from .node import Node
    from .plugins import Plugins

pytestmark = pytest.mark.runtime

PLAIN = {"ipMasq": False}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_the_cache_is_libcnis_byte_for_byte(
    network: Callable[..., Network], engine: Engine, node: Node, tmp_path: Path, version: str
) -> None:
    net = network(DUAL, cni_version=version, options=PLAIN)
    engine.run(net)
    theirs = Cache(str(node.path("/var/lib/cni")))
    attachment = next(a for a in theirs.attachments() if a.network == net.name)
    written = node.path(f"/var/lib/cni/results/{theirs.path(attachment).rpartition('/')[2]}")
    config = base64.b64decode(json.loads(written.read_bytes())["config"])
    assert config == node.path(net.file).read_bytes()

    result = theirs.read(attachment)
    assert result is not None
    ours = Cache(str(tmp_path))
    ours.write(attachment, config, result.as_dict())
    (copy,) = (tmp_path / "results").iterdir()
    assert copy.name == written.name
    wanted = written.read_bytes()
    if version == "1.0.0":  # Debian's libcni 1.1 prints it although it is empty; 1.3 does not
        wanted = wanted.replace(b'"dns":{},', b"")
    assert copy.read_bytes() == wanted
    assert copy.stat().st_mode == written.stat().st_mode


def test_gc_knows_the_runtimes_attachments(
    network: Callable[..., Network], engine: Engine, node: Node, plugins: Plugins
) -> None:
    if not plugins.ours:
        pytest.skip("the reference has no command line")
    net = network(DUAL, options=PLAIN)
    first, second = engine.run(net), engine.run(net)
    cache = Cache(str(node.path("/var/lib/cni")))
    found = [a for a in cache.attachments() if a.network == net.name]
    kept = next(a for a in found if first.id in a.container_id)
    assert len(found) == 2

    cni = "/opt/cni/bin/cni"
    keep = f"{kept.container_id}/{kept.ifname}"
    node.run([cni, "gc", net.name, "--keep", keep])
    assert len([a for a in cache.attachments() if a.network == net.name]) == 2, "both live"
    node.run([cni, "gc", net.name, "--all", "--yes", "--keep", keep])
    assert [a for a in cache.attachments() if a.network == net.name] == [kept]
    check_own_network(first, DUAL)
    assert len(ports(node.netns, net.bridge)) == 1

    # The runtime finds the second one gone, which is no error.
    engine.remove(second)
    engine.remove(first)
    assert node.leases(net) == []
