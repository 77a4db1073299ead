"""Transactions of nf_tables over netlink, and the socket that is kept between them.

Everything acts on the caller's current network namespace. The socket is kept for the next call in
the same namespace (`socket`). That saves more than making it: after a change is committed
(0.1-0.7 ms), closing a netfilter socket waits until the kernel has freed what was deleted, an RCU
grace period of 5-20 ms (`hand_over`). With an open socket that time passes while we work. The
socket keeps the namespace alive: a process that lives on must call `forget` after using a
container's namespace.

Listing and deleting: netfilter/table.py. Making tables, chains and rules: expressions.py. Why the
kernel refused: refusal.py. Rules that users write in nft(8)'s language: compiler.py.
"""

from __future__ import annotations

import os
import struct
from _socket import MSG_DONTWAIT, SCM_RIGHTS, SOL_SOCKET, socketpair
from _thread import get_ident
from errno import (
    EAFNOSUPPORT,
    EEXIST,
    EINVAL,
    ENOBUFS,
    ENOENT,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
)
from typing import TYPE_CHECKING, Any

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
_SO_SNDBUF, _SO_SNDBUFFORCE, _SMALL = 7, 32, 100_000
_FD = struct.Struct("=i")

_GUARDED, _UNGUARDED = 20, 5  # attempts of `settle`
_READ_AGAIN = 3  # times, after errors of reading answers

UNUSABLE = "is nftables in this kernel, and are we root?"  # for errors without an explanation
# Errors of a kernel that has no nf_tables, or none for us. Other errors do not mean that there are
# no rules.
_UNUSABLE = frozenset({EINVAL, EPERM, EOPNOTSUPP, EAFNOSUPPORT, EPROTONOSUPPORT})
# The error of `transact` if the ruleset has changed since it was read.
ERESTART = 85


# Changes after which closing the socket waits.
_DELETIONS = frozenset(
    {
        uapi.NFT_MSG_DELTABLE,
        uapi.NFT_MSG_DELCHAIN,
        uapi.NFT_MSG_DELRULE,
        uapi.NFT_MSG_DELSET,
        uapi.NFT_MSG_DELSETELEM,
    }
)
_PAUSES = 4  # jiffies between the end of a process and the closing of the socket that it leaves


# --- the kept sockets -----------------------------------------------------------------------------

_Place = tuple[int, int, int]  # a namespace, and the process: a forked child has its own
_kept: dict[int, tuple[_Place, Netlink]] = {}  # by thread
_deleted_by: set[int] = set()  # the processes that have deleted something: this one, or none


def forget() -> None:
    """Close the kept sockets; may wait for an RCU grace period (see above)."""
    while _kept:
        _kept.popitem()[1][1].close()


def hand_over() -> None:
    """Leave the kept sockets to the kernel, which closes them later. For a process that now ends.

    A DEL is done when its transaction is acknowledged. But the closing of its socket, and so the
    end of the process, takes 10-17 ms on Linux 6.18: nft_rcv_nl_event() waits for the work that
    frees what was deleted, and meanwhile nobody can change the namespace's rules, since it holds
    their mutex. This function takes 0.1 ms instead. It sends the socket to a Unix socket that only
    its own queue refers to. The kernel collects such sockets (unix_gc(), started by the closing of
    the other end), since Linux 6.9 in a worker. Before that, this process does it, and waits as
    without this function.

    The socket is in the queue of a socket in the queue of another, and so on. The worker closes one
    of them a jiffy, so the grace period is over when the netfilter socket's turn comes. Then nobody
    waits, and the mutex is free for the next plugin.

    Does nothing if this process has deleted nothing. Errors (no descriptors, a refused system call)
    leave the closing to the end of the process.
    """
    if os.getpid() not in _deleted_by:
        return
    try:
        while _kept:
            _leave(_kept.popitem()[1][1])
    except OSError:
        pass


def _leave(kept: Netlink) -> None:
    inner = kept.sock
    for _ in range(_PAUSES):
        outer, sender = socketpair()
        _put(sender, inner.fileno())
        inner.close()
        inner = outer
    # At the end of a process the kernel closes descriptors in ascending order. So if we are killed
    # before the next lines, the other end is also closed after the one that only its queue holds.
    cycle, other = socketpair()
    _put(other, inner.fileno(), cycle.fileno())
    inner.close()
    cycle.close()
    other.close()


def _put(sender: Any, *fds: int) -> None:
    """Put descriptors into the queue of a socket pair's other end. Raises OSError."""
    sender.sendmsg([b"\0"], [(SOL_SOCKET, SCM_RIGHTS, b"".join(map(_FD.pack, fds)))])


def judged(error: OSError) -> OSError:
    """The error of a reading request; Unusable if it means that there is no nf_tables for us."""
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
        # without /proc the namespace of a kept socket is not known
        return _make_socket()
    # a kept socket keeps its namespace alive, so no other namespace can have that inode
    here = (namespace.st_dev, namespace.st_ino, os.getpid())
    slot = get_ident()
    kept = _kept.get(slot)
    if kept is not None and kept[0] == here:
        return kept[1]
    made = _make_socket()
    # by thread, since a namespace is a thread's, and a Netlink serves one request at a time
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

    Returns the kernel's echoes of changes with NLM_F_ECHO, such as the handle of a new rule:
    payloads in their order, or fewer if the socket's buffer could not hold all of them.

    Raises NetlinkError: Refused, about the first change that the kernel refused. Unless `explain`
    is false its text says which change that is, and why. With `since`, a number from `generation`,
    the kernel refuses (ERESTART) if any rule has changed since then. So after a success, what the
    caller has read in between held.
    """
    begin = _GENMSG.pack(0, 0, uapi.NFNL_SUBSYS_NFTABLES)
    first = begin + (nl.attr(uapi.NFNL_BATCH_GENID, since) if since else b"")
    # the kernel answers errors in any case; of successes only the last has to be answered
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
    if any(kind in _DELETIONS for kind, _, _ in changes):
        _deleted_by.add(os.getpid())
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
        # nothing to explain: the caller plans again, or runs the tool, which says why
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
    # the kernel refuses a datagram that is larger than the socket's buffer (EMSGSIZE)
    if len(data) > _SMALL:
        for option in (_SO_SNDBUFFORCE, _SO_SNDBUF):  # the second has a limit (wmem_max)
            try:
                sock.sock.setsockopt(SOL_SOCKET, option, 2 * len(data))
                break
            except PermissionError:
                pass  # root of another user namespace may only use the second
    try:
        sock.sock.send(data)
    except OSError as error:
        raise NetlinkError(error.errno or 0, f"sending {len(data)} bytes of changes") from None


def _answers(
    sock: Netlink, numbers: frozenset[int], echoes: list[bytes]
) -> list[tuple[int, int, bytes]]:
    """The acknowledgements of messages with these numbers: (number, flags, payload).

    The payloads of other replies to them are appended to `echoes`.

    The kernel works while we send, so all its answers are here now, also if it refused the batch as
    a whole. An error of reading them (ENOBUFS: there were too many) says nothing of the changes.
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
    """The change with NLM_F_ECHO: `transact` returns what the kernel has made of it."""
    kind, payload, flags = change
    return kind, payload, flags | nl.NLM_F_ECHO


def generation() -> bytes:
    """The generation number of the ruleset now, for `transact`. Raises NetlinkError."""
    answer = socket().get(uapi.NFT_MSG_GETGEN, _GENMSG.pack(0, 0, 0))
    return nl.attr_map(answer, _GENMSG.size).get(uapi.NFTA_GEN_ID, b"")


def settle(plan: Callable[[], Sequence[Change]]) -> list[bytes]:
    """Make the changes that `plan` returns; call it again if the rules have changed meanwhile.

    Returns what `transact` returns. If the rules change all the time, the last attempts are made
    unguarded: what `plan` has read may be outdated then. Raises NetlinkError.
    """
    last = _GUARDED + _UNGUARDED - 1
    for number in range(last + 1):
        guarded = number < _GUARDED
        since = generation() if guarded else b""
        try:
            return transact(plan(), since)
        except NetlinkError as error:
            # another process may have deleted, or made, what an unguarded plan has read
            if error.errno not in ((ERESTART,) if guarded else (ENOENT, EEXIST)) or number == last:
                raise
    return []


def message(family: str, *attributes: bytes) -> bytes:
    """The payload of a request; `family` as nft(8) calls it."""
    return _GENMSG.pack(FAMILIES[family], 0, 0) + b"".join(attributes)


def link_name(ifname: str) -> bytes:
    """A link's name in the form of registers and of sets' keys."""
    # the kernel compares all 16 bytes
    return ifname.encode("utf-8", "surrogateescape").ljust(uapi.IFNAMSIZ, b"\0")


def userdata(comment: str) -> bytes:
    """A comment in the form of nft(8), for the user data of a rule, chain, set or element."""
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
