"""Transactions of nf_tables over netlink, and what is kept for the next one.

Everything acts on the caller's current network namespace. The socket is kept for the next call in
the same namespace (`socket`), not only to save making it: after a change is committed (0.1-0.7 ms),
closing a netfilter socket waits for the kernel to have freed what was replaced, an RCU grace period
of 5-20 ms. Kept, that passes while we do other things. It keeps the namespace alive, so a process
that stays must not do this in a container's without `forget`.

What is in a table, and what deletes it: netfilter/table.py. What makes tables, chains and rules:
expressions.py; what says why the kernel refused: refusal.py. Rules in nft(8)'s language, which
users write, go to that program: compiler.py.
"""

from __future__ import annotations

import os
import struct
from _socket import MSG_DONTWAIT
from _thread import get_ident
from errno import (
    EAFNOSUPPORT,
    EINVAL,
    ENOBUFS,
    ENOENT,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
)
from typing import TYPE_CHECKING

from ..kernel import netlink as nl
from ..kernel.errors import NetlinkError, Unusable
from ..kernel.netlink import NETLINK_NETFILTER, Netlink
from . import uapi

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FAMILIES = {
    "inet": uapi.NFPROTO_INET,
    "ip": uapi.NFPROTO_IPV4,
    "bridge": uapi.NFPROTO_BRIDGE,
    "ip6": uapi.NFPROTO_IPV6,
}
_GENMSG = struct.Struct("!BBH")  # family, version, resource
GENMSG_SIZE = _GENMSG.size
_HEADER, _ERROR = struct.Struct("=IHHII"), struct.Struct("=i")
_SOL_SOCKET, _SO_SNDBUF, _SO_SNDBUFFORCE, _SMALL = 1, 7, 32, 100_000

_GUARDED, _UNGUARDED = 20, 5  # attempts of `settle`
_READ_AGAIN = 3  # times, after errors of reading answers

UNUSABLE = "is nftables in this kernel, and are we root?"  # where the error says nothing more
# What the kernel answers that has no nf_tables, or none for us; other errors do not say that there
# are no rules.
_UNUSABLE = frozenset({EINVAL, EPERM, EOPNOTSUPP, EAFNOSUPPORT, EPROTONOSUPPORT})
# What `transact` fails with if the ruleset has changed since it was looked at.
ERESTART = 85


# --- what is kept ---------------------------------------------------------------------------------

_Place = tuple[int, int, int]  # a namespace, and the process: a forked child has its own
_kept: dict[int, tuple[_Place, Netlink]] = {}  # by thread


def forget() -> None:
    """Close the kept sockets; may wait for the kernel (see above)."""
    while _kept:
        _kept.popitem()[1][1].close()


def judged(error: OSError) -> OSError:
    """The error of a look: Unusable if it says that the kernel has no nf_tables for us."""
    if error.errno in _UNUSABLE:
        return Unusable(error.errno, getattr(error, "explanation", ""))
    return error


def socket() -> Netlink:
    """The netlink socket of the current namespace, made at the first call.

    Raises OSError: Unusable on a kernel without netfilter.
    """
    try:
        namespace = os.stat("/proc/thread-self/ns/net")
    except OSError:
        # without /proc nothing tells which namespace a kept one belongs to
        return _make_socket()
    # a kept socket keeps its namespace alive, so no other one can have the same inode
    here = (namespace.st_dev, namespace.st_ino, os.getpid())
    slot = get_ident()
    kept = _kept.get(slot)
    if kept is not None and kept[0] == here:
        return kept[1]
    made = _make_socket()
    _kept[slot] = (here, made)
    if kept is not None:
        kept[1].close()
    return made


def _make_socket() -> Netlink:
    try:
        return Netlink(NETLINK_NETFILTER)
    except OSError as error:
        raise judged(error) from None


# --- transactions ---------------------------------------------------------------------------------

Change = tuple[int, bytes, int]  # a message of a transaction: type, payload, flags


def transact(changes: Sequence[Change], since: bytes = b"", *, explain: bool = True) -> list[bytes]:
    """Make changes in one transaction, all or none.

    Returns what the kernel tells of changes with NLM_F_ECHO, such as the handle of a new rule:
    payloads in their order, or fewer if they were too many to be read.

    Raises NetlinkError: Refused, about the first change that the kernel did not take; its text
    says which one that is, and why, unless `explain` is false. With `since`, a number from
    `generation`, the kernel refuses (ERESTART) if any rule has changed since then: what the caller
    has read in between still holds.
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
    if not changes:
        return []
    sock = socket()
    numbers = [sock.next_sequence() for _ in batch]
    data = b"".join(
        _HEADER.pack(16 + len(payload), kind, nl.NLM_F_REQUEST | flags, number, 0) + payload
        for (kind, payload, flags), number in zip(batch, numbers, strict=True)
    )
    _send(sock, data)
    echoes: list[bytes] = []
    answers = _answers(sock, frozenset(numbers), echoes)
    for number, flags, answer in answers:
        code = nl.unpack(_ERROR, answer)[0]
        if code == -ERESTART or (code != 0 and not explain):
            raise NetlinkError(-code)
        if code != 0:
            from .refusal import refused

            raise refused(batch[numbers.index(number)], -code, flags, answer)
    if not answers:
        raise NetlinkError(ENOBUFS, "the kernel's answer was lost: the changes may be made")
    return echoes


def _send(sock: Netlink, data: bytes) -> None:
    """Send a batch, which has to be one datagram. Raises NetlinkError."""
    if len(data) > _SMALL:
        for option in (_SO_SNDBUFFORCE, _SO_SNDBUF):  # the second has a limit (wmem_max)
            try:
                sock.sock.setsockopt(_SOL_SOCKET, option, 2 * len(data))
                break
            except PermissionError:
                pass  # root of another user namespace may only do the second
    try:
        sock.sock.send(data)
    except OSError as error:
        raise NetlinkError(error.errno or 0, f"sending {len(data)} bytes of changes") from None


def _answers(
    sock: Netlink, numbers: frozenset[int], echoes: list[bytes]
) -> list[tuple[int, int, bytes]]:
    """The acknowledgements of messages with these numbers: (number, flags, payload).

    What else answers them is appended to `echoes`.

    The kernel works while we send: all its answers are here now, also if it refused the batch as a
    whole. An error of reading them (ENOBUFS: there were too many) says nothing of the changes.
    """
    answers: list[tuple[int, int, bytes]] = []
    failures = 0
    while failures < _READ_AGAIN:
        try:
            data = sock.sock.recv(65536, MSG_DONTWAIT)
        except BlockingIOError:
            break
        except OSError:
            failures += 1
            continue
        for kind, flags, number, payload in nl.split(data):
            if number not in numbers:
                continue
            if kind == nl.NLMSG_ERROR:
                answers.append((number, flags, payload))
            else:
                echoes.append(payload)
    return answers


def echoed(change: Change) -> Change:
    """The change, of which the kernel tells what came of it: see `transact`."""
    kind, payload, flags = change
    return kind, payload, flags | nl.NLM_F_ECHO


def generation() -> bytes:
    """The number of the ruleset as it is now, for `transact`. Raises NetlinkError."""
    answer = socket().get(uapi.NFT_MSG_GETGEN, _GENMSG.pack(0, 0, 0))
    return nl.attr_map(answer, _GENMSG.size).get(uapi.NFTA_GEN_ID, b"")


def settle(plan: Callable[[], Sequence[Change]]) -> list[bytes]:
    """Make the changes that `plan` returns; call it again if the rules have changed meanwhile.

    Returns what `transact` does. Where they change all the time, the last attempts take that risk:
    what `plan` has read may not hold any more. Raises NetlinkError.
    """
    last = _GUARDED + _UNGUARDED - 1
    for number in range(last + 1):
        guarded = number < _GUARDED
        since = generation() if guarded else b""
        try:
            return transact(plan(), since)
        except NetlinkError as error:
            # unguarded, what another process has just deleted is no reason to give up either
            if error.errno != (ERESTART if guarded else ENOENT) or number == last:
                raise
    return []


def message(family: str, *attributes: bytes) -> bytes:
    """The payload of a request; `family` as nft(8) calls it."""
    return _GENMSG.pack(FAMILIES[family], 0, 0) + b"".join(attributes)


def link_name(ifname: str) -> bytes:
    """A link's name as registers and keys of sets hold it."""
    return ifname.encode("utf-8", "surrogateescape").ljust(uapi.IFNAMSIZ, b"\0")


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
