"""Addresses of containers here that are another node's by now: for CHECK and STATUS.

That comes of an operator's decision (`cni ipam forget --force`, or a Node object that was deleted)
while the containers still ran, or of a store that was restored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError, LimitedConnectivity
from ..host_local import usage
from . import survey

if TYPE_CHECKING:
    from ...call import Call
    from ..host_local.ranges import RangeSet
    from .node import Node, Space

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


def missing(
    call: Call[Any], node: Node, sets: list[RangeSet], index: int, held: list[bytes]
) -> CNIError:
    """The error for an attachment with the addresses `held`, none of which is of set `index`."""
    others = [each for each in held if not any(ranges.contains(each) for ranges in sets)]
    if others:
        why = (
            f"{call.ifname} has {', '.join(map(format_ip, others))}, and none of range set {index} "
            f"({sets[index]}): the ranges were changed after it was attached. Recreate the "
            "container, or configure the earlier ranges, too"
        )
    else:
        why = (
            f"nothing in {node.data_dir} says that {call.ifname} has one of range set {index} "
            f"({sets[index]}): it was never attached to this network, or somebody released its "
            "address, which another container may get: then recreate the container"
        )
    text = f"cluster: Failed to find address added by container {call.container_id}"
    return CNIError(text, why)


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
