"""An ADD on a node that lacks a block, the definition of a pool, or a valid registration.

Only here a verb talks to the store. For that it holds the node's lock (`Node.claiming`), so several
ADDs without a free address claim one block after the other, each only if it still needs one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...protocol.errors import CNIError
from ...store import engines
from ...store.interface import StoreError
from .allocation import FromBlocks, NeedBlock
from .claim import Claims, Full
from .node import Node, Space
from .pool import Pool, convert

if TYPE_CHECKING:
    from ...call import Call
    from ...protocol.result import IPConfig
    from ...store.settings import Settings
    from ..host_local.allocation import Wish

_LOCK_TIMEOUT = 60.0  # seconds: others may wait for a store that does not answer
_MOST_CLAIMS = 64  # an ADD needs one for each range set; others may use up its blocks


@contextmanager
def opened(
    call: Call[Any], node: Node, its: Settings, timeout: float = _LOCK_TIMEOUT
) -> Iterator[Claims]:
    """The store, for one process of the node at a time. Raises CNIError, also for StoreError."""
    with node.claiming(timeout):
        try:
            store = engines.connect(its.store)
            try:
                yield Claims(store, its, node, call.log)
            finally:
                store.close()
        except StoreError as error:
            raise engines.explain(error) from None


def reserve(
    call: Call[Any],
    allocation: FromBlocks,
    wish: Wish,
    pool: Pool,
    its: Settings,
    node: Node,
) -> tuple[Pool, list[IPConfig]]:
    """Claim blocks until the allocation succeeds. Returns the pool, perhaps by a newer definition.

    Raises CNIError; then claimed blocks stay the node's, and nothing stays reserved.
    """
    index = 0
    try:
        with opened(call, node, its) as claims:
            claims.register()
            space = Space(node, pool.space)
            space.note_pool(call.network, _entry(call))
            for _ in range(_MOST_CLAIMS):
                try:
                    return pool, allocation.reserve(wish)
                except NeedBlock as need:
                    index = need.index
                    packed = need.packed
                try:
                    claims.claim(space, pool, index, packed)
                except Full:
                    # the pool may have grown since this node noted its definition
                    newer = _newer(claims, pool, call.conf.cni_version)
                    if newer is None or newer.space != pool.space:
                        raise
                    pool, wish = newer, wish._replace(sets=newer.sets)
    except CNIError as error:
        raise error.wrapped(f"failed to allocate for range {index}: ") from None
    raise CNIError(
        f"failed to allocate for range {index}: other containers take every address first",
        "try again",
    )


def _entry(call: Call[Any]) -> dict[str, Any]:
    from .plugin import raw_ipam

    return {"ipam": raw_ipam(call), "cniVersion": call.conf.cni_version}


def _newer(claims: Claims, pool: Pool, version: str) -> Pool | None:
    """The pool by the store's definition, if that differs from the node's; else None."""
    if not pool.name:
        return None
    value = claims.read_pool(pool.name)
    if value is None or value == claims.node.pool_definition(pool.name):
        return None
    newer = Pool.of(convert(value, pool.name), pool.name, version)
    claims.node.set_pool_definition(pool.name, value)
    return newer


def fetch_pool(call: Call[Any], name: str, node: Node, its: Settings) -> dict[str, Any]:
    """The definition of a pool that the node does not know yet. Raises CNIError."""
    with opened(call, node, its) as claims:
        value = claims.read_pool(name)
        if value is None:
            raise CNIError(
                f"there is no pool {name} in {claims.store.name}",
                "`cni ipam pools` shows those that there are",
            )
        # a definition that cannot be used raises here, and is not noted
        Pool.of(convert(value, name), name, call.conf.cni_version)
        node.set_pool_definition(name, value)
        return value
