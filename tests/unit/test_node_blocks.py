"""What plugins other than `cluster` know of this node's blocks is what `cluster` has written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cni.ipam.cluster.node import OWN, PENDING, RELEASING, Block, Ledger, Node
from cni.ipam.cluster.pool import Pool, convert
from cni.protocol.address import Prefix
from cni.protocol.errors import CNIError
from cni.store import node_blocks, node_files

if TYPE_CHECKING:
    from pathlib import Path

RANGES = {
    "ranges": [[{"subnet": "10.40.0.0/16"}, {"subnet": "10.41.0.0/16"}], [{"subnet": "fd40::/64"}]]
}
SUBNETS = ["10.40.0.0/16", "10.41.0.0/16", "fd40::/64"]


def prefixes(*texts: str) -> list[Prefix]:
    return [Prefix.parse(text) for text in texts]


def test_only_blocks_whose_addresses_may_be_given_out(tmp_path: Path) -> None:
    assert node_blocks.of_space(str(tmp_path), "web") == []
    states = {"10.40.1.0/26": OWN, "10.40.0.64/26": OWN, "10.40.2.0/26": PENDING}
    states["10.40.3.0/26"] = RELEASING
    blocks = [Block(cidr, 1, state) for cidr, state in states.items()]
    path = Node(str(tmp_path), "n1").path("web.blocks")
    node_files.write(path, Ledger(blocks=blocks))
    assert node_blocks.of_space(str(tmp_path), "web") == prefixes("10.40.0.64/26", "10.40.1.0/26")
    assert node_blocks.of_space(str(tmp_path), "other") == []


@pytest.mark.parametrize("space", ["", "web"])
def test_the_pool_of_a_configuration(tmp_path: Path, space: str) -> None:
    ipam = {"type": "cluster", **RANGES, "Space": space}
    pool = Pool.of(convert(ipam, ""), "", "1.0.0")
    assert node_blocks.pool_of(str(tmp_path), ipam) == (pool.space, prefixes(*SUBNETS))
    alone = {"type": "cluster", "subnet": "10.40.0.0/16"}
    assert node_blocks.pool_of(str(tmp_path), alone) == ("default", prefixes("10.40.0.0/16"))


def test_the_pool_of_a_store(tmp_path: Path) -> None:
    ipam = {"type": "cluster", "pool": "web"}
    assert node_blocks.pool_of(str(tmp_path), ipam) == ("default", [])
    Node(str(tmp_path), "n1").set_pool_definition("web", {**RANGES, "space": "s"})
    assert node_blocks.pool_of(str(tmp_path), ipam) == ("s", prefixes(*SUBNETS))
    with pytest.raises(CNIError, match="invalid pool"):
        node_blocks.pool_of(str(tmp_path), {"type": "cluster", "pool": "../web"})
