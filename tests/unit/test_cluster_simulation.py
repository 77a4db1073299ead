"""A cluster of some nodes for some hours: every address once, nothing stranded.

`python -m tests.bench.cluster --simulate 5000` is the same with 5,000 nodes and a real etcd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cni.ipam.cluster.pool import Pool, PoolConf
from cni.ipam.host_local.ranges import RangeConf
from tests.harness.cluster_simulation import Simulation
from tests.harness.cluster_store import Memory

if TYPE_CHECKING:
    from pathlib import Path

# Blocks for all, with some to spare; fewer blocks than nodes want; single addresses, dual stack.
POOLS = {
    "roomy": PoolConf(ranges=[[RangeConf(subnet="10.0.0.0/22")]], block_size=28, reserve=4),
    "tight": PoolConf(ranges=[[RangeConf(subnet="10.0.0.0/25")]], block_size=29, reserve=4),
    "single": PoolConf(
        ranges=[[RangeConf(subnet="10.0.0.0/25")], [RangeConf(subnet="fd00::/64")]],
        block_size=32,
        block_size_v6=126,
        reserve=2,
    ),
}


@pytest.mark.parametrize("which", POOLS)
def test_a_cluster_for_some_hours(which: str, tmp_path: Path) -> None:
    pool = Pool.of(POOLS[which], "", "1.1.0")
    simulation = Simulation(
        Memory(), pool, tmp_path / "nodes", nodes=8, pods=8, seed=7, losses=0.05
    )
    simulation.run(400)
    simulation.empty()
    counts = simulation.counts
    # Else this would show nothing.
    assert counts["adds"] > 100, counts
    assert counts["claims"], counts
    assert counts["forgotten nodes"], counts
    assert counts["lost nodes"], counts
    assert counts["freed blocks"], counts
