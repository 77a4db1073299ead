"""STATUS of cluster: is an address free here, or can a block be claimed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...protocol.errors import CNIError, NotAvailable
from ..host_local import usage
from . import blocks
from .node import OWN, Node, Space

if TYPE_CHECKING:
    from ...call import Call
    from ...store.settings import Settings
    from ..host_local.ranges import RangeSet
    from .pool import Pool


def check_free(call: Call[Any], its: Settings, node: Node) -> None:
    """Require for each range set a free address on this node, or a block that nobody has.

    Raises NotAvailable (code 50).
    """
    from .plugin import pool_of

    try:
        pool = pool_of(call, node, its)
    except CNIError as error:
        raise NotAvailable(error.msg, error.details) from None
    space = Space(node, pool.space)
    full = [i for i, each in enumerate(pool.sets) if not has_free(space, each)]
    if full or space.ledger().idle:
        _check_claimable(call, its, node, pool, full)


def has_free(space: Space, ranges: RangeSet) -> bool:
    """Is an address of the set free in the node's own blocks? Takes no lock."""
    own = blocks.narrowed(ranges, [each.prefix for each in space.ledger().of_state(OWN)])
    if own is None or not own.size:
        return False
    try:
        usage.check_free(space.location, [own])
    except NotAvailable:
        return False
    return True


def _check_claimable(
    call: Call[Any], its: Settings, node: Node, pool: Pool, full: list[int]
) -> None:
    from . import shortage

    try:
        with shortage.opened(call, node, its) as claims:
            claims.observes = True
            claims.register()
            if not full:  # it is idle: the first ADD has to change this item
                claims.ask(claims.store.read, f"nodes/{node.name}")
                return
            space = Space(node, pool.space)
            claims.check_allowed()
            claims.check_agreement(space, pool)
            items = claims.taken(space)
    except CNIError as error:
        what = "the node is idle, and the store has to know of its first address"
        if full:
            what = f"no address of range set {full[0]} is free on this node, and no block can be "
            what += "claimed"
        raise NotAvailable(f"cluster: {what}: {error.msg}", error.details) from None
    for index in full:
        areas = pool.areas[index]
        if blocks.first_free(areas, items, 0) is None:
            raise NotAvailable(
                f"cluster: no address of range set {index} is free on this node, and all "
                f"{blocks.count(areas)} blocks are taken",
                "`cni ipam blocks` shows which node has which; add a range to the pool",
            )
