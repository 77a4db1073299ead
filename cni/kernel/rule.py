"""Policy routing rules: which table routes a packet (ip-rule(8), linux/fib_rules.h).

A rule has no comment, but it has a firewall mark. With the mask 0 a rule matches packets of any
mark, so the mark itself can name the rule's owner (`owner`). `ip rule` shows it as
``fwmark 0x1a2b3c4d/0``.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, AF_UNSPEC
from errno import ENOENT
from typing import NamedTuple

from ..protocol.address import Prefix
from . import netlink as nl
from . import uapi
from .errors import NetlinkError
from .netlink import Netlink

# family, dst len, src len, tos, table, 2 reserved, action, flags
_HEADER = struct.Struct("=BBBBBxxBI")
_FAMILIES = (AF_INET, AF_INET6)  # multicast routing has rules, too
# attributes that are no condition for packets: with only these, a rule matches every packet
_NO_SELECTOR = frozenset(
    {
        uapi.FRA_PRIORITY,
        uapi.FRA_SUPPRESS_PREFIXLEN,
        uapi.FRA_TABLE,
        uapi.FRA_PAD,
        uapi.FRA_PROTOCOL,
    }
)
_UNDERSTOOD = _NO_SELECTOR | {uapi.FRA_SRC, uapi.FRA_FWMARK, uapi.FRA_FWMASK}


class Rule(NamedTuple):
    """A rule. `source` has length 0 if the rule matches any, `owner` is 0 if it names none.

    `plain`: the rule has no condition but the source. `raw` is the kernel's message. `of_vrfs`: the
    rule selects the table of the packet's VRF (l3mdev); the kernel adds it with the first VRF.
    """

    priority: int
    source: Prefix
    table: int
    owner: int
    plain: bool
    raw: bytes
    of_vrfs: bool = False

    def __str__(self) -> str:
        return f"from {self.source} lookup {self.table}"


def show(sock: Netlink) -> list[Rule]:
    """The rules of IPv4 and IPv6, each in their order. Raises NetlinkError."""
    asked = _HEADER.pack(AF_UNSPEC, *[0] * 6)
    return [_parse(data) for data in sock.dump(uapi.RTM_GETRULE, asked) if data[0] in _FAMILIES]


def addition(source: Prefix, table: int, owner: int) -> nl.Message:
    """The message for Netlink.batch that adds a rule: packets from `source` (its address alone) use
    `table`.

    The kernel gives it a lower priority number than all earlier rules have, so it is the first.
    `owner` is a number above 0.
    """
    host = source.host
    header = _HEADER.pack(
        host.family, 0, host.length, 0, table if table < 256 else 0, uapi.FR_ACT_TO_TBL, 0
    )
    parts = [
        nl.attr(uapi.FRA_SRC, host.ip),
        nl.u32(uapi.FRA_TABLE, table),
        nl.u32(uapi.FRA_FWMARK, owner),
        nl.u32(uapi.FRA_FWMASK, 0),
    ]
    return uapi.RTM_NEWRULE, header + b"".join(parts), nl.NLM_F_CREATE | nl.NLM_F_EXCL


def delete(sock: Netlink, rule: Rule) -> None:
    """Delete a rule that show() found; one that is gone already is success."""
    try:
        sock.request(uapi.RTM_DELRULE, rule.raw)
    except NetlinkError as error:
        if error.errno != ENOENT:
            raise


def _parse(data: bytes) -> Rule:
    family, dst_len, src_len, tos, table, action, flags = nl.unpack(_HEADER, data)
    a = nl.attr_map(data, _HEADER.size)
    masked = nl.get_u32(a.get(uapi.FRA_FWMASK)) != 0
    others = not _UNDERSTOOD.issuperset(a)
    return Rule(
        priority=nl.get_u32(a.get(uapi.FRA_PRIORITY)),
        source=Prefix(a.get(uapi.FRA_SRC, bytes(16 if family == AF_INET6 else 4)), src_len),
        table=nl.get_u32(a.get(uapi.FRA_TABLE), table),
        owner=0 if masked else nl.get_u32(a.get(uapi.FRA_FWMARK)),
        plain=not (dst_len or tos or flags or masked or others) and action == uapi.FR_ACT_TO_TBL,
        raw=data,
        of_vrfs=uapi.FRA_L3MDEV in a,
    )
