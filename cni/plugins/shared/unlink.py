"""Deleting a link without waiting for the kernel to have forgotten it.

When the kernel has unlisted a link and told everybody so, it is gone: no name, no address, no
packet. That takes 1 ms. Then the process that asked has to wait 10 to 20 ms more, until nobody can
still be looking at what was the link (RCU). That may as well be the executor.
"""

from __future__ import annotations

from ...kernel import link
from ...kernel.netlink import Netlink
from ...netns import Namespace


def delete(netns: Namespace, index: int) -> None:
    """Delete a link of that namespace; one that is gone already is success. Raises NetlinkError."""

    def seen(kind: int, payload: bytes) -> bool:
        return link.says_gone(kind, payload, index)

    with netns.subscribe(link.RTNLGRP_LINK) as events:
        netns.run_until(events, seen, _delete, index)


def delete_here(index: int) -> None:
    """The same in the node's namespace. Raises NetlinkError."""
    with Namespace.current() as here:
        delete(here, index)


def _delete(index: int) -> None:
    with Netlink() as sock:
        link.delete(sock, index)
