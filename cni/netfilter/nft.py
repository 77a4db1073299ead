"""nftables over netlink: looking, deleting, and transactions of messages; the library is elsewhere.

What compiles rules is `libnftables.Nft` (`shared`). It lists only what has to be understood: a
chain of 1,000 rules costs it 120 ms. Rules that only have to be recognised by their comment are
found in the kernel's own dump (`find_rules`, 2 ms), and deleted without the library (`delete`), so
that a DEL does not even load it.

Everything acts on the caller's current network namespace. The socket and the library's context are
kept for the next call in the same namespace (`shared`), not only to save making them: after a
change is committed (0.1-0.7 ms), closing a netfilter socket waits for the kernel to have freed
what was replaced, an RCU grace period of 5-20 ms. Kept, that passes while we do other things. They
keep the namespace alive, so a process that stays must not do this in a container's without
`forget`.
"""

from __future__ import annotations

import os
import struct
from _socket import MSG_DONTWAIT
from _thread import get_ident
from errno import ENOENT
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..kernel import netlink as nl
from ..kernel.errors import NetlinkError, Unusable
from ..kernel.netlink import NETLINK_NETFILTER, Netlink

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from .libnftables import Nft

# linux/netfilter/nfnetlink.h, nf_tables.h
SUBSYSTEM = 10 << 8
_GETTABLE, _DELTABLE, _GETCHAIN, _DELCHAIN = (SUBSYSTEM | n for n in (1, 2, 4, 5))
_GETRULE, _DELRULE = (SUBSYSTEM | n for n in (7, 8))
_GETGEN = SUBSYSTEM | 16
_BATCH_BEGIN, _BATCH_END, _BATCH_GENID, _GEN_ID = 16, 17, 1, 1
_GENMSG = struct.Struct("!BBH")  # family, version, resource
GENMSG_SIZE = _GENMSG.size
_HEADER, _ERROR = struct.Struct("=IHHII"), struct.Struct("=i")
_FAMILIES = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE = 1, 3, 4, 5, 6
_HOOK_NUMBER, _NF_INET_FORWARD = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 3, 4, 7
_EXPR_NAME, _EXPR_DATA, _CMP_DATA, _DATA_VALUE = 1, 2, 3, 1
_PAYLOAD_OFFSET = 3
_IMMEDIATE_DATA, _DATA_VERDICT, _VERDICT_CODE, _NF_ACCEPT = 2, 2, 1, b"\0\0\0\x01"
_UDATA_COMMENT = 0
_BATCH_SIZE = 100  # acknowledgements that fit the socket's buffer
_SOL_SOCKET, _SO_SNDBUFFORCE, _SMALL = 1, 32, 100_000

_ATTEMPTS = 5

# What `transaction` fails with if the ruleset has changed since it was looked at.
ERESTART = 85


class Rule(NamedTuple):
    """A rule as the kernel dumps it; `raw` is the message's payload."""

    handle: int
    comment: str
    raw: bytes

    @property
    def expressions(self) -> list[tuple[str, dict[int, bytes]]]:
        """What the rule consists of, in order: the name and the attributes of each expression."""
        listed = nl.attr_map(self.raw, _GENMSG.size).get(_RULE_EXPRESSIONS, b"")
        items = [nl.attr_map(element) for _, element in nl.attrs(listed)]
        return [
            (nl.get_text(item.get(_EXPR_NAME)), nl.attr_map(item.get(_EXPR_DATA, b"")))
            for item in items
        ]

    @property
    def size(self) -> int:
        """Of how many expressions the rule consists."""
        listed = nl.attr_map(self.raw, _GENMSG.size).get(_RULE_EXPRESSIONS, b"")
        return sum(1 for _ in nl.attrs(listed))

    @property
    def compared(self) -> list[bytes]:
        """The values of the rule's comparisons, in order."""
        return [
            nl.attr_map(data.get(_CMP_DATA, b"")).get(_DATA_VALUE, b"")
            for name, data in self.expressions
            if name == "cmp"
        ]

    @property
    def accepts(self) -> bool:
        """Does it end with the verdict accept?"""
        name, data = self.expressions[-1] if self.expressions else ("", {})
        verdict = nl.attr_map(data.get(_IMMEDIATE_DATA, b"")).get(_DATA_VERDICT, b"")
        code = nl.attr_map(verdict).get(_VERDICT_CODE)
        return name == "immediate" and code == _NF_ACCEPT

    @property
    def offsets(self) -> list[int]:
        """Where in the packet's header the rule looks, in bytes, in order."""
        return [
            int.from_bytes(data.get(_PAYLOAD_OFFSET, b""), "big")
            for name, data in self.expressions
            if name == "payload"
        ]


# --- what is kept ---------------------------------------------------------------------------------

_Place = tuple[int, int, int]  # a namespace, and the process: a forked child has its own
_kept: dict[tuple[str, int], tuple[_Place, Any]] = {}

T = TypeVar("T", "Nft", Netlink)


def shared() -> Nft:
    """The context of the current namespace, made when first asked for. Raises CNIError."""
    return _keep("library", _make_context)


def _make_context() -> Nft:
    from .libnftables import Nft  # most requests do without

    return Nft()


def forget() -> None:
    """Close what is kept (may wait for the kernel, see above)."""
    while _kept:
        _kept.popitem()[1][1].close()


def socket() -> Netlink:
    """The netlink socket of the current namespace, made when first asked for."""
    return _keep("socket", lambda: Netlink(NETLINK_NETFILTER))


def _keep(what: str, make: Callable[[], T]) -> T:
    try:
        namespace = os.stat("/proc/thread-self/ns/net")
    except OSError:
        return make()  # without /proc we could not tell where a kept one belongs
    # The number of a namespace is not given to another while a socket of ours is in it.
    here = (namespace.st_dev, namespace.st_ino, os.getpid())
    slot = (what, get_ident())
    found = _kept.get(slot)
    if found is None or found[0] != here:
        made = make()
        _kept[slot] = (here, made)
        if found is not None:
            found[1].close()
        return made
    kept: T = found[1]
    return kept


# --- over netlink ---------------------------------------------------------------------------------


def has_chain(family: str, table: str, chain: str) -> bool:
    """Does the chain exist? Raises NetlinkError when the kernel has no nftables for us."""
    try:
        socket().get(_GETCHAIN, _chain(family, table, chain))
    except NetlinkError as error:
        if error.errno == ENOENT:
            return False
        raise
    return True


def has_table(family: str, table: str) -> bool:
    """Does the table exist? Raises NetlinkError."""
    return bool(socket().get_each(_GETTABLE, message(family, nl.text(_RULE_TABLE, table))))


def chain_use(family: str, table: str, chain: str) -> int:
    """How many things a chain has or is referred to by: rules, jumps, elements of a map.

    0 without the chain. Raises NetlinkError.
    """
    answers = socket().get_each(_GETCHAIN, _chain(family, table, chain))
    found = nl.attr_map(answers[0], _GENMSG.size) if answers else {}
    return int.from_bytes(found.get(_CHAIN_USE, b""), "big")


def rule_counts(family: str, table: str) -> dict[str, int]:
    """How many rules each chain of the table has, those that have any. Raises Unusable."""
    counts: dict[str, int] = {}
    for data in _dump_rules(message(family, nl.text(_RULE_TABLE, table))):
        found = nl.attr_map(data, _GENMSG.size)
        if nl.get_text(found.get(_RULE_TABLE)) == table:
            chain = nl.get_text(found.get(_RULE_CHAIN))
            counts[chain] = counts.get(chain, 0) + 1
    return counts


def drop_policies() -> list[tuple[str, str, str]]:
    """The chains of the forward hook that drop what nothing accepts: (family, table, chain).

    Those of ip, ip6 and inet, the tables of iptables-nft among them. Raises Unusable.
    """
    try:
        dump = socket().dump(_GETCHAIN, _GENMSG.pack(0, 0, 0))
    except NetlinkError as error:
        raise Unusable(error.errno or 0, error.explanation) from None
    drop = nl.attr(_CHAIN_POLICY, bytes(4))  # NF_DROP; of a thousand chains few have it
    found = []
    for data in dump:
        family = next((k for k, number in _FAMILIES.items() if number == data[0]), "")
        if drop not in data or family not in ("ip", "ip6", "inet"):
            continue
        chain = nl.attr_map(data, _GENMSG.size)
        hook = nl.attr_map(chain.get(_CHAIN_HOOK, b"")).get(_HOOK_NUMBER, b"")
        if int.from_bytes(hook, "big") == _NF_INET_FORWARD and hook:
            table, name = (nl.get_text(chain.get(kind)) for kind in (_CHAIN_TABLE, _CHAIN_NAME))
            found.append((family, table, name))
    return sorted(found)


def find_rules(family: str, table: str, chain: str, prefix: str) -> list[Rule]:
    """The chain's rules whose comment starts with `prefix` (not empty); none without the chain.

    Raises Unusable.
    """
    found = find_rules_with(family, table, chain, prefix.encode())
    return [rule for rule in found if rule.comment.startswith(prefix)]


def find_rules_with(family: str, table: str, chain: str, mark: bytes) -> list[Rule]:
    """The chain's rules with these bytes anywhere in the kernel's message. Raises Unusable.

    Of a long chain few rules are ours: only those are taken apart.
    """
    payload = message(family, nl.text(_RULE_TABLE, table), nl.text(_RULE_CHAIN, chain))
    rules = [_rule(data, table, chain) for data in _dump_rules(payload) if mark in data]
    return [rule for rule in rules if rule]


def _dump_rules(payload: bytes) -> list[bytes]:
    try:
        return socket().dump(_GETRULE, payload)
    except NetlinkError as error:
        if error.errno == ENOENT:
            return []
        raise Unusable(error.errno or 0, error.explanation) from None


def delete(
    family: str, table: str, rules: Sequence[tuple[str, int]] = (), chains: Sequence[str] = ()
) -> None:
    """Delete rules (chain, handle), then whole chains, in this order.

    One transaction for up to a hundred things. Raises NetlinkError: with ENOENT when one of them
    is gone already (then nothing of that hundred was deleted), with EBUSY when a chain is in use.
    """
    messages = [without_rule(family, table, chain, handle)[:2] for chain, handle in rules]
    messages += [(_DELCHAIN, _chain(family, table, chain)) for chain in chains]
    transact(messages)


def delete_matching(
    family: str, table: str, chain: str, prefix: str, keep: Collection[str]
) -> None:
    """Delete the chain's rules whose comment starts with `prefix` and is not in `keep`.

    Also while others delete the same rules. Raises NetlinkError.
    """
    for last in (False, False, False, True):
        rules = find_rules(family, table, chain, prefix)
        stale = [(chain, rule.handle) for rule in rules if rule.comment not in keep]
        try:
            return delete(family, table, stale) if stale else None
        except NetlinkError as error:
            if error.errno != ENOENT or last:
                raise
    return None


def transact(messages: Sequence[tuple[int, bytes]]) -> None:
    """Send changes (type, payload), a hundred to a transaction. Raises NetlinkError."""
    for start in range(0, len(messages), _BATCH_SIZE):
        transaction([(*m, 0) for m in messages[start : start + _BATCH_SIZE]])


def generation() -> bytes:
    """The number of the ruleset as it is now, for `transaction`. Raises NetlinkError."""
    answer = socket().get(_GETGEN, _GENMSG.pack(0, 0, 0))
    return nl.attr_map(answer, _GENMSG.size).get(_GEN_ID, b"")


def transaction(messages: Sequence[tuple[int, bytes, int]], since: bytes = b"") -> None:
    """Make up to a hundred changes (type, payload, flags) at once. Raises NetlinkError.

    With `since`, only if nobody has changed any rule after that generation (else ERESTART): what
    was looked at after asking for it is still as it was seen.
    """
    begin = _GENMSG.pack(0, 0, SUBSYSTEM >> 8)
    first = begin + (nl.attr(_BATCH_GENID, since) if since else b"")
    # errors are answered in any case, and of what is done only the last has to be
    last = [(kind, payload, flags | nl.NLM_F_ACK) for kind, payload, flags in messages[-1:]]
    batch = [(_BATCH_BEGIN, first, 0), *messages[:-1], *last, (_BATCH_END, begin, 0)]
    data = b"".join(
        _HEADER.pack(16 + len(payload), kind, nl.NLM_F_REQUEST | flags, 0, 0) + payload
        for kind, payload, flags in batch
    )
    sock = socket()
    if len(data) > _SMALL:
        sock.sock.setsockopt(_SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(data))
    sock.sock.send(data)
    codes = _answers(sock)
    for code in codes:
        if code != 0:
            raise NetlinkError(-code)
    assert codes or not messages, "the kernel left a batch unanswered"


def attempt(plan: Callable[[], Sequence[tuple[int, bytes, int]] | None]) -> bool:
    """Make the changes that `plan` finds right, again if others changed the rules meanwhile.

    False if nothing was changed: `plan` says None, or the kernel refuses, for whatever reason.
    """
    try:
        for _ in range(_ATTEMPTS):
            since = generation()
            changes = plan()
            if changes is None:
                return False
            try:
                transaction(changes, since)
            except NetlinkError as error:
                if error.errno not in (ERESTART, ENOENT):
                    raise
            else:
                return True
    except NetlinkError:
        pass
    return False


def _answers(sock: Netlink) -> list[int]:
    """The codes of all acknowledgements.

    The kernel works while we send: all its answers are here now, also if it refused the batch as a
    whole.
    """
    codes: list[int] = []
    while True:
        try:
            data = sock.sock.recv(65536, MSG_DONTWAIT)
        except BlockingIOError:
            return codes
        for kind, _, _, payload in nl.split(data):
            if kind == nl.NLMSG_ERROR:
                codes.append(nl.unpack(_ERROR, payload)[0])


def message(family: str, *attributes: bytes) -> bytes:
    """The payload of a request; `family` as nft(8) calls it."""
    return _GENMSG.pack(_FAMILIES[family], 0, 0) + b"".join(attributes)


def without_rule(family: str, table: str, chain: str, handle: int) -> tuple[int, bytes, int]:
    """For `transaction`: delete a rule; ENOENT if it is gone."""
    names = nl.text(_RULE_TABLE, table), nl.text(_RULE_CHAIN, chain)
    number = nl.attr(_RULE_HANDLE, handle.to_bytes(8, "big"))
    return _DELRULE, message(family, *names, number), 0


def without_chain(family: str, table: str, chain: str) -> tuple[int, bytes, int]:
    """For `transaction`: delete a chain; EBUSY if something refers to it."""
    return _DELCHAIN, _chain(family, table, chain), 0


def without_table(family: str, table: str) -> tuple[int, bytes, int]:
    """For `transaction`: delete a table with all that is in it."""
    return _DELTABLE, message(family, nl.text(_RULE_TABLE, table)), 0


def _chain(family: str, table: str, chain: str) -> bytes:
    return message(family, nl.text(_CHAIN_TABLE, table), nl.text(_CHAIN_NAME, chain))


def _rule(data: bytes, table: str, chain: str) -> Rule | None:
    """The rule in a dump's message; None when it is of another chain (kernels before 4.12)."""
    found = nl.attr_map(data, _GENMSG.size)
    if nl.get_text(found.get(_RULE_TABLE)) != table or nl.get_text(found.get(_RULE_CHAIN)) != chain:
        return None
    return Rule(
        int.from_bytes(found.get(_RULE_HANDLE, b""), "big"),
        comment_of(found.get(_RULE_USERDATA, b"")),
        data,
    )


def userdata(comment: str) -> bytes:
    """A comment as nft(8) keeps it, of anything that can have one."""
    text = comment.encode("utf-8", "surrogateescape") + b"\0"
    return bytes((_UDATA_COMMENT, len(text))) + text


def comment_of(userdata: bytes) -> str:
    """The comment in a rule's user data: (type, length, value) entries of nft(8)."""
    offset = 0
    while offset + 2 <= len(userdata):
        kind, size = userdata[offset], userdata[offset + 1]
        if kind == _UDATA_COMMENT:
            return nl.get_text(userdata[offset + 2 : offset + 2 + size])
        offset += 2 + size
    return ""
