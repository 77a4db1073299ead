"""An idle node: no container has an address of it, so that its blocks may be freed by time.

Time alone does not prove that a node is gone: its server may hang or be stopped while containers
run. So blocks are freed by time (`nodeTimeout`) only while the node's record in the store says
`idle`, and the node keeps to that: an idle node allocates nothing before it has written the
opposite. Both changes are of the same item and conditional, so one of them fails.

    becomes idle    ledgers (no ADD allocates from an idle one) → registration → record
    is woken        record → registration → ledgers (session.py)

However this ends, a node whose ledger is not idle has a record that is not idle either.
"""

from __future__ import annotations

import os

from ..host_local.reservation import is_address
from .node import Node, Space


def begin(node: Node, store: str) -> bool:
    """Make the node idle if no container has an address; return whether it is idle now.

    `store` is the identity of the store that will be told. A node that has blocks of another store
    is never idle. Call it under `Node.claiming`. Raises CNIError.
    """
    spaces = [Space(node, name) for name in node.spaces()]
    if any(_has_addresses(space) or _is_of_another(space, store) for space in spaces):
        return False
    for space in spaces:
        # Again under the lock, under which ADDs reserve.
        with space.changing() as (ledger, reservations):
            if space.reserved(reservations):
                return False  # the caller tells the store so, and then wakes it
            ledger.idle = bool(ledger.blocks)
    return True


def _has_addresses(space: Space) -> bool:
    try:
        with os.scandir(space.location.path) as entries:
            return any(is_address(entry.name) for entry in entries)
    except OSError:
        return False  # the look under the lock tells what is wrong


def _is_of_another(space: Space, store: str) -> bool:
    ledger = space.ledger()
    return bool(ledger.blocks) and ledger.store != store
