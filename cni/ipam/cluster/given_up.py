"""Addresses of containers here that are another node's by now: for CHECK and STATUS.

That comes of an operator's decision (`cni ipam forget --force`, or a Node object that was deleted)
while the containers still ran, or of a store that was restored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError, LimitedConnectivity
from ..host_local import usage
from . import survey

if TYPE_CHECKING:
    from .node import Space

_SHOWN = 5  # containers that an error names


def error(container_id: str, packed: bytes, lost: Mapping[str, str]) -> CNIError:
    """The error for a container with this address, which no block of the node has.

    `lost`: blocks that the node had, and the nodes that have them.
    """
    holder = _holder(packed, lost)
    whose = f", and which node {holder} has by now" if holder else ""
    return CNIError(
        f"cluster: the address of container {container_id} is of a block that this node has no "
        f"longer{whose}",
        f"another container in the cluster may have {format_ip(packed)}: recreate this one",
    )


def check_none(network: str, spaces: Iterable[Space]) -> None:
    """Require that no container of the network has an address of a lost block.

    Raises LimitedConnectivity, which names the containers.
    """
    found = []
    for space in spaces:
        lost = space.ledger().lost
        for packed, content in sorted(survey.reserved(space).items()) if lost else ():
            parts = content.decode(errors="replace").split("\r\n")
            holder = _holder(packed, lost)
            if holder and parts[2:] == [network]:
                who = usage.holder(content)
                found.append(f"{format_ip(packed)} of {who} (block of node {holder})")
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise LimitedConnectivity(
            f"cluster: other nodes have the blocks of {len(found)} addresses that containers here "
            f"use: {', '.join(found[:_SHOWN])}{more}",
            "this node was taken for gone while they ran; other containers may have the same "
            "addresses: recreate those of this node",
        )


def _holder(packed: bytes, lost: Mapping[str, str]) -> str:
    return next((to for block, to in lost.items() if Prefix.parse(block).contains(packed)), "")
