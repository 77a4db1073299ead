"""Tending a node's blocks outside of requests: claiming ahead, giving back, comparing.

The server does this in the background, `cni ipam sync` does it once. Blocks are claimed until
`reserve` addresses are free; empty blocks are given back as long as that many stay free. All empty
blocks are given back if another node needs a block and none is free, or if this node is cordoned.
"""

from __future__ import annotations

from ...protocol.address import Prefix
from ..host_local.ranges import RangeSet
from . import blocks
from .claim import Claims, Full
from .compare import Synced
from .node import OWN, Block, Space
from .pool import Pool


def space(claims: Claims, its: Space, pools: list[Pool], sync: bool = True) -> Synced | None:
    """Tend one space, whose pools that this node uses are `pools`. Raises StoreError, CNIError.

    With `sync` ledger and store are compared.
    """
    claims.register(force=True)
    believed = claims.acknowledge(its)
    claims.settle(its)
    synced = claims.sync(its) if sync or not believed else None
    if not believed:
        return synced
    everything = claims.is_cordoned() or claims.is_wanted(its)
    give_back(claims, its, pools, everything)
    if not everything:
        for pool in pools:
            claim_ahead(claims, its, pool)
    return synced


def claim_ahead(claims: Claims, its: Space, pool: Pool) -> None:
    """Claim until `reserve` addresses of each used range set are free, or no block is left."""
    for index, ranges in enumerate(pool.sets):
        while lacks(its, ranges, pool.conf.reserve):
            try:
                claims.claim(its, pool, index)
            except Full:
                break  # other nodes need blocks now, and no ADD waits for this one


def lacks(its: Space, ranges: RangeSet, reserve: int) -> bool:
    """Is the range set in use, with fewer than `reserve` addresses free here? Asks no store."""
    with its.changing() as (ledger, store):
        reserved = its.reserved(store)
        own = [each.prefix for each in ledger.of_state(OWN)]
    part = blocks.narrowed(ranges, own)
    used = sum(map(part.contains, reserved)) if part is not None else 0
    return part is not None and used > 0 and part.size - used < reserve


def give_back(claims: Claims, its: Space, pools: list[Pool], everything: bool) -> list[str]:
    """Release empty blocks: all, or those that are not needed to keep `reserve` addresses free."""
    with its.changing() as (ledger, store):
        reserved = its.reserved(store)
        own = ledger.of_state(OWN)
    surplus = {each.cidr for each in own} if everything else _surplus(own, reserved, pools)
    if not surplus:
        return []
    cooldown = max((pool.conf.cooldown for pool in pools), default=0)
    return claims.release(its, lambda entry: entry.cidr in surplus, cooldown)


def _surplus(own: list[Block], reserved: list[bytes], pools: list[Pool]) -> set[str]:
    """The empty blocks that no pool needs, the youngest first; also blocks of no pool."""
    needed: set[Prefix] = set()
    for pool in pools:
        for ranges in pool.sets:
            spare = 0
            for entry in own:
                part = blocks.narrowed(ranges, [entry.prefix])
                if part is None:
                    continue
                used = sum(map(part.contains, reserved))
                if used or spare < pool.conf.reserve:
                    needed.add(entry.prefix)
                    spare += part.size - used
    return {each.cidr for each in own if each.prefix not in needed}
