"""Deleting many links at once, as a link group (ip-link(8), "group").

For each request that deletes links the kernel waits for an RCU grace period of 10 to 20 ms. One
request may delete all links of a group.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence
from errno import ENODEV

from . import link, uapi
from . import netlink as nl
from .errors import NetlinkError
from .link import Link
from .netlink import Netlink

_DEFAULT_GROUP = 0  # that of every new link
_IFINFO = struct.Struct("=BxHiII")  # family, kind, index, flags, flags that are changed


def delete(sock: Netlink, links: Sequence[Link], listed: Sequence[bytes]) -> None:
    """Delete these links; those that are gone already are success.

    By now another link may have an index of the list. So the links are first put into a group:
    the link is a member, not its index. Then each member is compared with the list by name and
    alias, and a stranger goes back into the default group before the group is deleted.

    `listed` is what link.dump() gave. The group has a random number that none of those links has.
    A process that is killed in between leaves links of which only that number has changed. Raises
    NetlinkError.
    """
    if not links:
        return
    group = _free_group(listed)
    outcomes = sock.batch([_move(each.index, group) for each in links])
    strangers = _strangers(sock, links, group)
    for failed in sock.batch([_move(index, _DEFAULT_GROUP) for index in strangers]):
        if failed is not None and failed.errno != ENODEV:
            raise failed  # a stranger is still in the group, so it must not be deleted
    try:
        sock.request(uapi.RTM_DELLINK, _message(0, group))
    except NetlinkError as error:
        if error.errno != ENODEV:
            raise
    for outcome in outcomes:
        if outcome is not None and outcome.errno != ENODEV:
            raise outcome


def _strangers(sock: Netlink, links: Sequence[Link], group: int) -> list[int]:
    """The indexes of the group's members that none of `links` is, by name and alias."""
    known = {
        each.index: (nl.text(uapi.IFLA_IFNAME, each.name), nl.text(uapi.IFLA_IFALIAS, each.alias))
        for each in links
    }
    member = nl.u32(uapi.IFLA_GROUP, group)
    strangers = []
    for data in link.dump(sock):
        if member in data:
            index = link.index_in(data)
            name, alias = known.get(index, (b"", b""))
            if not (name and name in data and alias in data) and link.parse(data).group == group:
                strangers.append(index)
    return strangers


def _move(index: int, group: int) -> nl.Message:
    return uapi.RTM_NEWLINK, _message(index, group), 0


def _message(index: int, group: int) -> bytes:
    return _IFINFO.pack(0, 0, index, 0, 0) + nl.u32(uapi.IFLA_GROUP, group)


def _free_group(listed: Sequence[bytes]) -> int:
    """The number of a group without a link; never 0, the group of every new link."""
    while True:
        # random, so that two processes that delete links at the same time do not share a group
        group = int.from_bytes(os.urandom(4), sys.byteorder)
        member = nl.u32(uapi.IFLA_GROUP, group)
        if group and not any(member in data for data in listed):
            return group
