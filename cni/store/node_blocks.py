"""The blocks of addresses that this node has, for others than `cluster` (ipam/cluster/node.py has
the rest).

    <dataDir>/.cni/<space>.blocks    the node's blocks in an address space
    <dataDir>/.cni/<pool>.pool       the store's definition of a pool, as it was read last
"""

from __future__ import annotations

import os
from typing import Any

from ..protocol import config
from ..protocol.address import Prefix
from . import node_files
from .settings import check_word

_DEFAULT_SPACE = "default"
_OWN = "own"


def of_space(data_dir: str, space: str) -> list[Prefix]:
    """The blocks whose addresses this node may give out, sorted. Raises CNIError."""
    ledger = _read(data_dir, f"{space}.blocks")
    entries = [each for each in ledger.get("blocks", ()) if each.get("state", _OWN) == _OWN]
    return sorted(Prefix.parse(each["cidr"]) for each in entries)


def pool_of(data_dir: str, ipam: dict[str, Any]) -> tuple[str, list[Prefix]]:
    """Space and subnets of the pool of an `ipam` object of the type cluster; no subnets if the pool
    is in the store, and this node has not read it yet. Raises CNIError.
    """
    name = config.lookup(ipam, "pool")
    if isinstance(name, str) and name:
        ipam = _read(data_dir, f"{check_word(name, 'pool')}.pool")
    space = config.lookup(ipam, "space") or _DEFAULT_SPACE
    return check_word(str(space), "space"), subnets_of(ipam)


def subnets_of(ipam: dict[str, Any]) -> list[Prefix]:
    """The subnets of an `ipam` object with `subnet` or `ranges`, sorted. Raises CNIError."""
    sets = config.lookup(ipam, "ranges")
    every: list[Any] = [ipam]
    for each in sets if isinstance(sets, list) else ():
        every += each if isinstance(each, list) else [each]
    texts = [config.lookup(each, "subnet") for each in every if isinstance(each, dict)]
    return sorted({Prefix.parse(text).network for text in texts if isinstance(text, str) and text})


def _read(data_dir: str, name: str) -> dict[str, Any]:
    path = os.path.join(data_dir, node_files.SIDECARS, name)
    value: dict[str, Any] | None = node_files.read(path, dict[str, Any])
    return value or {}
