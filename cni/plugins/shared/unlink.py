"""Deleting a link without waiting for an RCU grace period.

A link is gone once the kernel has removed it from its lists and notified RTNLGRP_LINK: it has no
name, no address and carries no packet. That takes 1 ms. The deleting process then waits another 10
to 20 ms for an RCU grace period. So a child deletes the link, and this process only waits for the
notification.
"""

from __future__ import annotations

from ...kernel import link
from ...kernel.errors import ExecutorDied
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.config import means


def needs_link(ipam: str) -> bool:
    """Does this IPAM plugin need the interface? dhcp does, also to release an address.

    With all others DEL removes the link first: an address must not be given out again while the
    container that had it is still connected.
    """
    return means(ipam, "dhcp") or means(ipam, "slaac")


def delete(netns: Namespace, index: int) -> None:
    """Delete a link of that namespace; success if it is gone already. Raises NetlinkError."""

    def seen(kind: int, payload: bytes) -> bool:
        return link.says_gone(kind, payload, index)

    # subscribed before the request, so that the announcement cannot be missed
    with netns.subscribe(link.RTNLGRP_LINK) as events:
        if netns.send_until(events, seen, *link.deletion(index)):
            return
        netns.run_until(events, seen, _delete, index)


def delete_here(index: int) -> None:
    """Delete a link of the node's namespace; success if it is gone already. Raises NetlinkError."""
    try:
        with Namespace.current() as here:
            delete(here, index)
    except ExecutorDied:
        _delete(index)  # the link is in this process's namespace: this only takes longer


def _delete(index: int) -> None:
    with Netlink() as sock:
        link.delete(sock, index)
