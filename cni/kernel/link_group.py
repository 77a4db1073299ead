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
from .netlink import Netlink

_IFINFO = struct.Struct("=BxHiII")  # family, kind, index, flags, flags that are changed


def delete(sock: Netlink, indexes: Sequence[int], taken: Collection[int]) -> None:
    """Delete the links with these indexes; those that are gone already are success.

    `taken` are the groups that links are in. The links come into a group of a random number, which
    is none of those. A process that is killed in between leaves links that are as they were but for
    that number. Raises NetlinkError.
    """
    if len(indexes) < 2:
        for index in indexes:
            link.delete(sock, index)
        return
    group = _free_group(taken)
    moves = [(uapi.RTM_NEWLINK, _message(index, group), 0) for index in indexes]
    outcomes = sock.batch(moves)
    try:
        sock.request(uapi.RTM_DELLINK, _message(0, group))
    except NetlinkError as error:
        if error.errno != ENODEV:
            raise
    for outcome in outcomes:
        if outcome is not None and outcome.errno != ENODEV:
            raise outcome


def _message(index: int, group: int) -> bytes:
    return _IFINFO.pack(0, 0, index, 0, 0) + nl.u32(uapi.IFLA_GROUP, group)


def _free_group(taken: Collection[int]) -> int:
    """The number of a group in which no link is; not 0, which is that of every new link."""
    while True:
        group = int.from_bytes(os.urandom(4), sys.byteorder)
        if group and group not in taken:
            return group
