"""Rules of iptables-nft, read and written over netlink: 0.4 ms where the tool takes 2 or more.

The rules are identical to the tool's (netfilter/iptables_rules.py), so iptables-save,
`iptables -C`, `iptables -D` and nft treat them alike.

All of this is optional. `change` returns False, and has changed nothing, if the node's iptables is
another variant (`is_the_tool`), if a rule has a word that iptables_rules.py does not know, or if
the kernel refuses. Then the caller runs iptables-restore, which makes the change or explains why
not. iptables-nft does not take the lock of xtables: as in the tool, a change names the generation
of the ruleset that it was planned on, and the kernel refuses it if the ruleset has changed.
"""

from __future__ import annotations

import os
from errno import ENOENT
from typing import TYPE_CHECKING

from .. import files
from ..kernel import netlink as nl
from ..kernel.errors import NetlinkError, Unwritable
from . import nft, uapi
from .iptables_rules import Encoded, encode
from .table import Table, parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_ACCEPT = uapi.NF_ACCEPT.to_bytes(4, "big")

_MOST = 100  # changes in a transaction
_TRIES = 20
# iptables-nft makes these when the first rule needs them: hook and priority (iptables/nft.c).
_HOOKS = {
    ("filter", "FORWARD"): (uapi.NF_INET_FORWARD, 0),
    ("nat", "PREROUTING"): (uapi.NF_INET_PRE_ROUTING, -100),
    ("nat", "OUTPUT"): (uapi.NF_INET_LOCAL_OUT, -100),
    ("nat", "POSTROUTING"): (uapi.NF_INET_POST_ROUTING, 100),
}


# --- is it this variant? --------------------------------------------------------------------------

# Versions before 1.8.8 list our rules without the port, which they know only as an xtables match
# (https://github.com/kubernetes/kubernetes/issues/112477 is that defect with marks).
_OLDEST = (1, 8, 9)
_seen: dict[tuple[int, ...], bool] = {}


def is_the_tool(v6: bool) -> bool:
    """Is iptables-restore on PATH iptables-nft of a known version? Runs no program."""
    program = files.find_program(f"ip{'6' if v6 else ''}tables-restore")
    if program is None:
        return False
    try:
        stat = os.stat(program)
        # a server lives longer than an upgrade of iptables, or a change of its alternative
        key = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if key not in _seen:
            _seen[key] = _is_known(program)
        return _seen[key]
    except OSError:
        return False


def _is_known(program: str) -> bool:
    fd = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # with all links followed: one program is all tools of the variant
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        return name == "xtables-nft-multi" and version(_content(fd)) >= _OLDEST
    finally:
        os.close(fd)


def _content(fd: int) -> bytes:
    return os.read(fd, os.fstat(fd).st_size)


def version(program: bytes) -> tuple[int, ...]:
    """The version in the strings of an iptables program; () if there is none."""
    start = program.find(b"\x001.")
    while start >= 0:
        text = program[start + 1 : start + 20].partition(b"\0")[0]
        parts = text.partition(b" ")[0].split(b".")
        if len(parts) == 3 and all(part.isdigit() for part in parts):
            return tuple(int(part) for part in parts)
        start = program.find(b"\x001.", start + 1)
    return ()


# --- reading and changing -------------------------------------------------------------------------


def _dump(payload: bytes) -> list[bytes]:
    try:
        return nft.socket().dump(uapi.NFT_MSG_GETRULE, payload)
    except NetlinkError as error:
        if error.errno != ENOENT:
            raise
        return []  # no such table or chain


_known: dict[tuple[bool, str], Encoded] = {}


def _encoded(v6: bool, rule: str) -> Encoded:
    """`encode`, cached for the rules that every container needs."""
    encoded = _known.get((v6, rule))
    if encoded is None:
        # rules of single containers are also kept here: a worker must not gather them without end
        if len(_known) >= 100:
            _known.clear()
        encoded = _known[v6, rule] = encode(v6, rule)
    return encoded


class Rules:
    """The rules of a table; each chain is read when it is first needed. Raises OSError.

    `add` fails if any rule has changed since the first read. Of a chain in `noted` only the rules
    with these handles are read; others are invisible.
    """

    def __init__(
        self, v6: bool, table: str, noted: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        self._v6, self._table, self._noted = v6, table, noted or {}
        self._handle = Table("ip6" if v6 else "ip", table)
        self._since = b""
        self._seen: dict[str, list[bytes]] = {}
        self._chains: dict[str, bool] = {}

    def of(self, chain: str = "") -> list[bytes]:
        """The kernel's messages about a chain's rules; without `chain`, about all of the table."""
        messages = self._seen.get(chain)
        if messages is None and chain and "" in self._seen:
            # a message begins with the table and the chain
            start = nl.text(uapi.NFTA_RULE_TABLE, self._table) + nl.text(
                uapi.NFTA_RULE_CHAIN, chain
            )
            messages = [m for m in self._seen[""] if m.startswith(start, nft.GENMSG_SIZE)]
        elif messages is None:
            # before the first read: whatever changes after that makes the transaction fail
            self._since = self._since or nft.generation()
            messages = self._read(chain)
        self._seen[chain] = messages
        return messages

    def _read(self, chain: str) -> list[bytes]:
        if chain in self._noted:
            rules = [self._handle.rule(chain, handle) for handle in self._noted[chain]]
            return [rule.raw for rule in rules if rule]
        parts = [nl.text(uapi.NFTA_RULE_TABLE, self._table)]
        parts += [nl.text(uapi.NFTA_RULE_CHAIN, chain)] if chain else []
        return _dump(self._handle.message(*parts))

    def have(self, rule: str) -> bool:
        """Does this rule (`-A …`) exist, as `iptables -C` asks? Raises Unwritable."""
        return self._place(encode(self._v6, rule)) is not None

    def _place(self, rule: Encoded) -> int | None:
        """The first index among its chain's rules; None if it is not there."""
        for number, data in enumerate(self.of(rule.chain)):
            if rule.tail in data and rule.is_in(data):
                return number
        return None

    def has_chain(self, name: str) -> bool:
        """Is there such a chain?"""
        if name not in self._chains:
            self._since = self._since or nft.generation()
            self._chains[name] = self._handle.has_chain(name)
        return self._chains[name]

    def saved(self, rules: list[str]) -> list[str] | None:
        """Those of `rules`, and of their chains, that exist, in iptables-save's words.

        A chain's rules are in their order. None if a rule may exist in the form of another version:
        it is not found, but its chain exists, and so does the chain it jumps to.
        Raises Unwritable.
        """
        chains: dict[str, None] = {}
        there: dict[str, int] = {}
        for rule in rules:
            one = _encoded(self._v6, rule)
            names = dict.fromkeys(name for name in (one.chain, one.leads_to) if name)
            chains |= names
            place = self._place(one)
            if place is not None:
                there[rule] = place
                self._chains |= dict.fromkeys(names, True)
            elif all(self.has_chain(name) for name in names):
                return None
        lines = [f":{name} " for name in chains if self.has_chain(name)]
        return lines + sorted(there, key=there.__getitem__)

    def add(
        self, lines: list[str], made: Mapping[str, list[int]] | None = None, *, hooks: bool = False
    ) -> None:
        """Make chains (`-N …`) and rules (`-A …`, `-I …`), all or none; `made` as in `change`.

        With `hooks` it also makes the table and the built-in chains of the rules where they are
        missing, as the tool does. Raises NetlinkError (EEXIST if a chain exists, ERESTART if others
        have changed the ruleset since the first read), Unwritable.
        """
        table = self._handle.message(nl.text(uapi.NFTA_CHAIN_TABLE, self._table))
        changes = [(uapi.NFT_MSG_NEWTABLE, table, nl.NLM_F_CREATE)] if hooks else []
        for line in lines:
            if hooks:
                changes += self._hook(line.split()[1])
            change = self._change(line)
            told = made and not line.startswith("-N ") and line.split()[1] in made
            changes.append(nft.echoed(change) if told else change)
        if len(changes) > _MOST:
            raise Unwritable("too much for one transaction")
        if not changes:
            return
        # after a refusal the tool runs, and says why
        for answer in nft.transact(changes, self._since, explain=False):
            for chain in made or {}:
                rule = parse_rule(answer, self._table, chain)
                if rule and made:
                    made[chain].append(rule.handle)

    def _change(self, line: str) -> tuple[int, bytes, int]:
        command, _, rest = line.partition(" ")
        flags = nl.NLM_F_CREATE
        if command == "-N":
            names = nl.text(uapi.NFTA_CHAIN_TABLE, self._table) + nl.text(
                uapi.NFTA_CHAIN_NAME, rest
            )
            return uapi.NFT_MSG_NEWCHAIN, self._handle.message(names), flags | nl.NLM_F_EXCL
        if command == "-A":
            flags |= nl.NLM_F_APPEND
        elif command != "-I":
            raise Unwritable(line)
        rule = encode(self._v6, line)
        payload = self._handle.message(
            nl.text(uapi.NFTA_RULE_TABLE, self._table),
            nl.text(uapi.NFTA_RULE_CHAIN, rule.chain),
            rule.attributes,
        )
        return uapi.NFT_MSG_NEWRULE, payload, flags

    def _hook(self, name: str) -> list[tuple[int, bytes, int]]:
        """The change that makes the built-in chain `name`; [] if it exists, or is not built in."""
        place = _HOOKS.get((self._table, name))
        if place is None or self.has_chain(name):
            return []
        self._chains[name] = True
        number, priority = (value.to_bytes(4, "big", signed=True) for value in place)
        payload = self._handle.message(
            nl.text(uapi.NFTA_CHAIN_TABLE, self._table),
            nl.text(uapi.NFTA_CHAIN_NAME, name),
            nl.nest(
                uapi.NFTA_CHAIN_HOOK,
                nl.attr(uapi.NFTA_HOOK_HOOKNUM, number),
                nl.attr(uapi.NFTA_HOOK_PRIORITY, priority),
            ),
            nl.attr(uapi.NFTA_CHAIN_POLICY, _ACCEPT),
            nl.text(uapi.NFTA_CHAIN_TYPE, self._table),
        )
        return [(uapi.NFT_MSG_NEWCHAIN, payload, nl.NLM_F_CREATE)]


def present(
    v6: bool, table: str, rules: list[str], noted: Mapping[str, Sequence[int]] | None = None
) -> list[str]:
    """Those of `rules` that exist, a chain's rules in their order. Runs no program.

    Also [] if that cannot be known here: then iptables-save tells. Only the chains of `rules` are
    read, one request each, where the tool reads every chain of the table. Of a chain in `noted`
    only the rules with these handles are read: it may have others.
    """
    if not is_the_tool(v6):
        return []
    try:
        there = Rules(v6, table, noted).saved(rules) or []
        return [line for line in there if line.startswith("-A")]
    except (OSError, Unwritable):
        return []


def change(
    v6: bool,
    table: str,
    plan: Callable[[Rules], list[str] | None],
    made: Mapping[str, list[int]] | None = None,
) -> bool:
    """Add the lines that `plan` returns; call it again if the rules have changed meanwhile.

    `made` maps chains to lists, to which the handles of the chain's new rules are appended, as far
    as the kernel tells them. Returns False if nothing was changed, and iptables-restore has to do
    it: `plan` returned None, or one of the reasons in this module's docstring applies.
    """
    if not is_the_tool(v6):
        return False
    hooks = False
    for _ in range(_TRIES):
        rules = Rules(v6, table)
        try:
            lines = plan(rules)
            if lines is None:
                return False
            rules.add(lines, made, hooks=hooks)
            return True
        except Unwritable:
            return False
        except OSError as error:
            # the table or its built-in chains are missing: nobody has used iptables here yet
            fresh = error.errno == ENOENT and not hooks
            if not isinstance(error, NetlinkError) or not (fresh or error.errno == nft.ERESTART):
                return False
            hooks |= fresh
    return False
