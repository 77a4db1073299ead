"""Deleting many links at once, as a link group (ip-link(8), "group").

For each request that deletes links the kernel waits for an RCU grace period of 10 to 20 ms. One
request may delete all links of a group.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Collection, Sequence
from errno import ENODEV

from . import link, uapi
from . import netlink as nl
from .errors import NetlinkError
from .link import Link
from .netlink import Netlink

_DEFAULT_GROUP = 0  # that of every new link
_IFINFO = struct.Struct("=BxHiII")  # family, kind, index, flags, flags that are changed


def delete(sock: Netlink, links: Sequence[Link], taken: Collection[int]) -> None:
    """Delete these links; those that are gone already are success.

    An index may be that of another link by now. Membership of a group is the link's own, and not
    its index's: so once they are in the group, each is compared by name and alias with what was
    listed, and another's link is put back into the default group before the rest is deleted.

    `taken` are the groups that links are in. The links come into a group of a random number, which
    is none of those. A process that is killed in between leaves links that are as they were but for
    that number. Raises NetlinkError.
    """
    if not links:
        return
    group = _free_group(taken)
    outcomes = sock.batch([_move(each.index, group) for each in links])
    known = {(each.index, each.name, each.alias) for each in links}
    members = [each for each in link.list_all(sock) if each.group == group]
    strangers = [each for each in members if (each.index, each.name, each.alias) not in known]
    for failed in sock.batch([_move(each.index, _DEFAULT_GROUP) for each in strangers]):
        if failed is not None and failed.errno != ENODEV:
            raise failed  # with the group nothing may be deleted
    try:
        sock.request(uapi.RTM_DELLINK, _message(0, group))
    except NetlinkError as error:
        if error.errno != ENODEV:
            raise
    for outcome in outcomes:
        if outcome is not None and outcome.errno != ENODEV:
            raise outcome


def _move(index: int, group: int) -> nl.Message:
    return uapi.RTM_NEWLINK, _message(index, group), 0


def _message(index: int, group: int) -> bytes:
    return _IFINFO.pack(0, 0, index, 0, 0) + nl.u32(uapi.IFLA_GROUP, group)


def _free_group(taken: Collection[int]) -> int:
    """The number of a group in which no link is; not 0, which is that of every new link."""
    while True:
        group = int.from_bytes(os.urandom(4), sys.byteorder)
        if group and group not in taken:
            return group
