"""The tests' node leaves nothing on the machine, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import V4
from tests.harness.build import ROOT
from tests.harness.netns import leftovers, remove_stale
from tests.harness.wait import last_seen

from .engines import Podman, make_image
from .networks import Network
from .node import Node, left_of, processes_in, remove_stale_nodes

if TYPE_CHECKING:
    from .plugins import Plugins

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.usefixtures("_namespaces", "_runtimes_installed"),
]

# Where runtimes and plugins write on a real node.
STATE = ("/etc/cni", "/opt/cni", "/run/cni", "/run/netns", "/var/lib/cni", "/var/lib/containers")


def test_stop_with_running_containers(plugins: Plugins) -> None:
    node = Node()
    try:
        plugins.install(node)
        podman = Podman(node)
        make_image(node)
        net = Network(node.tag, V4, options={"bridge": "br-isolated"})
        node.path(net.file).write_text(net.conflist())
        container = podman.run(net)
        # There is something to find, and left_of finds it.
        seen = "\n".join(left_of(node))
        assert "cgroup" in seen
        assert "conmon" in seen
        assert f"file {node.base}" in seen
    finally:
        node.stop()
    assert left_of(node) == []
    for top in STATE:
        for name in (net.name, container.id):
            assert list(Path(top).rglob(f"*{name}*")) == []


def test_killed_test_run() -> None:
    """A node ends with the process that made it; the next run removes the rest."""
    script = (
        "import os; from tests.runtime.node import Node; node = Node()\n"
        "node.popen(['sleep', '1000'])\n"
        "print(os.getpid(), node.base, *node.namespaces, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, base, *namespaces = done.stdout.split()
    assert len(namespaces) == 5
    left = last_seen(lambda: processes_in(namespaces), wanted=lambda seen: not seen)
    assert left == []
    remove_stale()
    remove_stale_nodes()
    assert not Path(base).exists()
    assert leftovers(int(pid)) == []
