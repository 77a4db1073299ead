"""How much memory a request takes at most (VmHWM), and the file's size, as the bench has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench import limits, weight
from tests.bench.measure import Node
from tests.harness.build import install_dist

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.usefixtures("_namespaces")
def test_peak_and_size(program: Path, tmp_path: Path) -> None:
    """VERSION, and each ADD of the chain of bridge, portmap, firewall …"""
    node = Node("alone", install_dist(tmp_path / "bin", program), tmp_path)
    try:
        found = weight.measure(node)
    finally:
        node.close()
    assert {"VERSION", "bridge ADD", "portmap ADD", "firewall ADD"} <= set(found.peaks)
    heavy = {what: peak for what, peak in found.peaks.items() if peak > limits.ALONE_PEAK_MB}
    assert not heavy
    assert found.size <= limits.ALONE_FILE_MB
