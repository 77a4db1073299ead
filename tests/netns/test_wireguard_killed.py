"""wireguard killed at one point: a sample of what test_crash.py does, for `make test-debian`, whose
kernel is the only one with WireGuard.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.harness.requires import ensure, requires_kernel
from tests.harness.world import CASES, World
from tests.netns.test_crash import just_made, trial

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    requires_kernel("wireguard"),
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]


@pytest.mark.usefixtures("_namespaces")
def test_killed(bin_dir: Path, tmp_path: Path) -> None:
    """When all links are there, and nothing says yet who uses them: a GC leaves nothing."""
    ensure(["nft"])
    world = World(bin_dir, CASES["wireguard"], tmp_path / "world")
    try:
        world.prepare()
        points = world.points("ADD")
        world.delete()
        made = just_made(points)
        assert len(made) >= 3, "the trace shows the making of link, routes and pair"
        wrong = trial(world, "ADD", made[-1], "GC")
    finally:
        world.close()
    assert not wrong, f"killed at {made[-1]}: {wrong}"
