"""Transactions of nf_tables over netlink, and what is kept for the next one.

Everything acts on the caller's current network namespace. The socket and the library's context are
kept for the next call in the same namespace (`socket`, `shared`), not only to save making them:
after a change is committed (0.1-0.7 ms), closing a netfilter socket waits for the kernel to have
freed what was replaced, an RCU grace period of 5-20 ms. Kept, that passes while we do other things.
They keep the namespace alive, so a process that stays must not do this in a container's without
`forget`.

What is in a table, and what deletes it: netfilter/table.py. What makes rules: expressions.py; what
compiles them from nft(8)'s language: libnftables.py.
"""

from __future__ import annotations

import os
import struct
from _socket import MSG_DONTWAIT
from _thread import get_ident
from errno import ENOBUFS, ENOENT
from typing import TYPE_CHECKING, Any, TypeVar

from ..kernel import netlink as nl
from ..kernel.errors import NetlinkError
from ..kernel.netlink import NETLINK_NETFILTER, Netlink
from . import uapi

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .libnftables import Nft

FAMILIES = {
    "inet": uapi.NFPROTO_INET,
    "ip": uapi.NFPROTO_IPV4,
    "bridge": uapi.NFPROTO_BRIDGE,
    "ip6": uapi.NFPROTO_IPV6,
}
_GENMSG = struct.Struct("!BBH")  # family, version, resource
GENMSG_SIZE = _GENMSG.size
_HEADER, _ERROR = struct.Struct("=IHHII"), struct.Struct("=i")
_SOL_SOCKET, _SO_SNDBUFFORCE, _SMALL = 1, 32, 100_000

_ATTEMPTS = 5
_READ_AGAIN = 3  # times, after errors of reading answers

# What `transact` fails with if the ruleset has changed since it was looked at.
ERESTART = 85


# --- what is kept ---------------------------------------------------------------------------------

_Place = tuple[int, int, int]  # a namespace, and the process: a forked child has its own
_kept: dict[tuple[str, int], tuple[_Place, Any]] = {}

T = TypeVar("T", "Nft", Netlink)


def shared() -> Nft:
    """The library's context for this namespace, made by the first call. Raises NftMissing."""
    return _keep("library", _make_context)


def _make_context() -> Nft:
    from .libnftables import Nft  # most requests do without

    return Nft()


def forget() -> None:
    """Close the kept sockets and contexts; may wait for the kernel (see above)."""
    while _kept:
        _kept.popitem()[1][1].close()


def socket() -> Netlink:
    """The netlink socket of the current namespace, made at the first call. Raises OSError."""
    return _keep("socket", lambda: Netlink(NETLINK_NETFILTER))


def _keep(what: str, make: Callable[[], T]) -> T:
    try:
        namespace = os.stat("/proc/thread-self/ns/net")
    except OSError:
        return make()  # without /proc nothing tells which namespace a kept one belongs to
    # a kept socket keeps its namespace alive, so no other one can have the same inode
    here = (namespace.st_dev, namespace.st_ino, os.getpid())
    slot = (what, get_ident())
    there = _kept.get(slot)
    if there is None or there[0] != here:
        made = make()
        _kept[slot] = (here, made)
        if there is not None:
            there[1].close()
        return made
    kept: T = there[1]
    return kept


# --- transactions ---------------------------------------------------------------------------------

Change = tuple[int, bytes, int]  # a message of a transaction: type, payload, flags


def transact(changes: Sequence[Change], since: bytes = b"") -> None:
    """Make changes in one transaction, all or none. Raises NetlinkError: the first that is refused.

    With `since`, a number from `generation`, the kernel refuses (ERESTART) if any rule has changed
    since then: what the caller has read in between still holds.
    """
    begin = _GENMSG.pack(0, 0, uapi.NFNL_SUBSYS_NFTABLES)
    first = begin + (nl.attr(uapi.NFNL_BATCH_GENID, since) if since else b"")
    # errors are answered in any case, and of what is done only the last has to be
    last = [(kind, payload, flags | nl.NLM_F_ACK) for kind, payload, flags in changes[-1:]]
    batch = [
        (uapi.NFNL_MSG_BATCH_BEGIN, first, 0),
        *changes[:-1],
        *last,
        (uapi.NFNL_MSG_BATCH_END, begin, 0),
    ]
    sock = socket()
    sequence = sock.next_sequence()
    data = b"".join(
        _HEADER.pack(16 + len(payload), kind, nl.NLM_F_REQUEST | flags, sequence, 0) + payload
        for kind, payload, flags in batch
    )
    if len(data) > _SMALL:
        sock.sock.setsockopt(_SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(data))
    sock.sock.send(data)
    codes = _answers(sock, sequence)
    for code in codes:
        if code != 0:
            raise NetlinkError(-code)
    if changes and not codes:
        raise NetlinkError(ENOBUFS, "the kernel's answer was lost: the changes may be made")


def _answers(sock: Netlink, sequence: int) -> list[int]:
    """The codes of all acknowledgements.

    The kernel works while we send: all its answers are here now, also if it refused the batch as a
    whole. An error of reading them (ENOBUFS: there were too many) says nothing of the changes.
    """
    codes: list[int] = []
    failures = 0
    while failures < _READ_AGAIN:
        try:
            data = sock.sock.recv(65536, MSG_DONTWAIT)
        except BlockingIOError:
            break
        except OSError:
            failures += 1
            continue
        for kind, _, seq, payload in nl.split(data):
            if kind == nl.NLMSG_ERROR and seq == sequence:
                codes.append(nl.unpack(_ERROR, payload)[0])
    return codes


def generation() -> bytes:
    """The number of the ruleset as it is now, for `transact`. Raises NetlinkError."""
    answer = socket().get(uapi.NFT_MSG_GETGEN, _GENMSG.pack(0, 0, 0))
    return nl.attr_map(answer, _GENMSG.size).get(uapi.NFTA_GEN_ID, b"")


def attempt(plan: Callable[[], Sequence[Change] | None]) -> bool:
    """Make the changes that `plan` returns; call it again if the rules have changed meanwhile.

    False if nothing was changed: `plan` returned None, or the kernel refused the changes.
    """
    try:
        for _ in range(_ATTEMPTS):
            since = generation()
            changes = plan()
            if changes is None:
                return False
            try:
                transact(changes, since)
            except NetlinkError as error:
                if error.errno not in (ERESTART, ENOENT):
                    raise
            else:
                return True
    except NetlinkError:
        pass
    return False


def message(family: str, *attributes: bytes) -> bytes:
    """The payload of a request; `family` as nft(8) calls it."""
    return _GENMSG.pack(FAMILIES[family], 0, 0) + b"".join(attributes)


def userdata(comment: str) -> bytes:
    """A comment as nft(8) keeps it, of anything that can have one."""
    text = comment.encode("utf-8", "surrogateescape") + b"\0"
    return bytes((uapi.NFTNL_UDATA_RULE_COMMENT, len(text))) + text


def comment_of(userdata: bytes) -> str:
    """The comment in a rule's user data: (type, length, value) entries of nft(8)."""
    offset = 0
    while offset + 2 <= len(userdata):
        kind, size = userdata[offset], userdata[offset + 1]
        if kind == uapi.NFTNL_UDATA_RULE_COMMENT:
            return nl.get_text(userdata[offset + 2 : offset + 2 + size])
        offset += 2 + size
    return ""
