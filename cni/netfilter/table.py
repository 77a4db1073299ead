"""Tables of nf_tables: listing and deleting what they contain, over netlink.

libnftables takes 120 ms to list a chain of 1,000 rules. Here rules are found by their comment in
the kernel's dump (2 ms), and deleted by their handle. Functions that make tables, chains and rules
are in netfilter/expressions.py, those that change sets and maps in netfilter/elements.py.
"""

from __future__ import annotations

from errno import ENOENT
from typing import TYPE_CHECKING, NamedTuple

from ..kernel import netlink as nl
from ..kernel.errors import NetlinkError
from . import uapi
from .nft import FAMILIES, GENMSG_SIZE, comment_of, judged, message, socket, transact

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from .nft import Change

_FEW = 32  # chains and sets of a table, of which a list takes no longer than five requests
_BATCH_SIZE = 1000  # rules and chains in a batch: 100 KB, for one RCU grace period


class Rule(NamedTuple):
    """A rule as the kernel dumps it; `raw` is the message's payload."""

    handle: int
    comment: str
    raw: bytes

    @property
    def expressions(self) -> list[tuple[str, dict[int, bytes]]]:
        """The rule's expressions in order: the name and the attributes of each."""
        listed = nl.attr_map(self.raw, GENMSG_SIZE).get(uapi.NFTA_RULE_EXPRESSIONS, b"")
        items = [nl.attr_map(element) for _, element in nl.attrs(listed)]
        return [
            (
                nl.get_text(item.get(uapi.NFTA_EXPR_NAME)),
                nl.attr_map(item.get(uapi.NFTA_EXPR_DATA, b"")),
            )
            for item in items
        ]

    @property
    def size(self) -> int:
        """The number of the rule's expressions."""
        listed = nl.attr_map(self.raw, GENMSG_SIZE).get(uapi.NFTA_RULE_EXPRESSIONS, b"")
        return sum(1 for _ in nl.attrs(listed))

    @property
    def compared(self) -> list[bytes]:
        """The values of the rule's comparisons, in order."""
        return [
            nl.attr_map(data.get(uapi.NFTA_CMP_DATA, b"")).get(uapi.NFTA_DATA_VALUE, b"")
            for name, data in self.expressions
            if name == "cmp"
        ]

    @property
    def loaded(self) -> bytes:
        """The value that the rule loads into a register; empty if it loads none."""
        for name, data in self.expressions:
            if name == "immediate":
                value = nl.attr_map(data.get(uapi.NFTA_IMMEDIATE_DATA, b""))
                return value.get(uapi.NFTA_DATA_VALUE, b"")
        return b""

    @property
    def accepts(self) -> bool:
        """Does it end with the verdict accept?"""
        return self._verdict.get(uapi.NFTA_VERDICT_CODE) == uapi.NF_ACCEPT.to_bytes(4, "big")

    @property
    def leads_to(self) -> str:
        """The chain to which the rule jumps at its end; "" if it ends otherwise."""
        return nl.get_text(self._verdict.get(uapi.NFTA_VERDICT_CHAIN))

    @property
    def _verdict(self) -> dict[int, bytes]:
        """The attributes of the verdict that the rule ends with; empty if it ends otherwise."""
        name, data = self.expressions[-1] if self.expressions else ("", {})
        value = nl.attr_map(data.get(uapi.NFTA_IMMEDIATE_DATA, b"") if name == "immediate" else b"")
        return nl.attr_map(value.get(uapi.NFTA_DATA_VERDICT, b""))

    @property
    def offsets(self) -> list[int]:
        """The offsets in the packet's header that the rule loads, in bytes, in order."""
        return [
            int.from_bytes(data.get(uapi.NFTA_PAYLOAD_OFFSET, b""), "big")
            for name, data in self.expressions
            if name == "payload"
        ]


class Table(NamedTuple):
    """A table by its family, as nft(8) calls it, and its name; it need not exist.

    Methods that read raise NetlinkError: Unusable if the kernel has no nf_tables for us. Methods
    `without_…` do nothing themselves: they return changes for `transact`.
    """

    family: str
    name: str

    # --- reading ---

    def exists(self) -> bool:
        """Is there such a table? Raises NetlinkError."""
        payload = self.message(nl.text(uapi.NFTA_TABLE_NAME, self.name))
        return bool(socket().get_each(uapi.NFT_MSG_GETTABLE, payload))

    def is_large(self) -> bool:
        """Does it have more than a few dozen chains and sets? False without it.

        Then it costs less to ask for single chains than to list all. Raises NetlinkError.
        """
        payload = self.message(nl.text(uapi.NFTA_TABLE_NAME, self.name))
        answers = socket().get_each(uapi.NFT_MSG_GETTABLE, payload)
        attributes = nl.attr_map(answers[0], GENMSG_SIZE) if answers else {}
        return int.from_bytes(attributes.get(uapi.NFTA_TABLE_USE, b""), "big") > _FEW

    def has_chain(self, chain: str) -> bool:
        """Is there such a chain? False also without the table. Raises NetlinkError."""
        try:
            socket().get(uapi.NFT_MSG_GETCHAIN, self._chain(chain))
        except NetlinkError as error:
            if error.errno == ENOENT:
                return False
            raise judged(error) from None
        return True

    def has_base_chain(self, change: Change) -> bool:
        """Is there the chain that expressions.new_base_chain's `change` makes, at the same hook?

        For transactions that follow each other often: the kernel counts even a change of nothing as
        an update, whose remains it frees after a grace period (`nft`). Raises NetlinkError.
        """
        wanted = nl.attr_map(change[1], GENMSG_SIZE)
        chain = self._chain(nl.get_text(wanted.get(uapi.NFTA_CHAIN_NAME)))
        answers = socket().get_each(uapi.NFT_MSG_GETCHAIN, chain)
        have = nl.attr_map(answers[0], GENMSG_SIZE) if answers else {}
        hooks = [nl.attr_map(each.get(uapi.NFTA_CHAIN_HOOK, b"")) for each in (have, wanted)]
        kind = uapi.NFTA_CHAIN_TYPE
        return hooks[0] == hooks[1] and have.get(kind) == wanted.get(kind)

    def chain_use(self, chain: str) -> int:
        """The kernel's reference count of a chain: its rules, and the jumps and map elements to it.

        0 without the chain. Raises NetlinkError.
        """
        answers = socket().get_each(uapi.NFT_MSG_GETCHAIN, self._chain(chain))
        attributes = nl.attr_map(answers[0], GENMSG_SIZE) if answers else {}
        return int.from_bytes(attributes.get(uapi.NFTA_CHAIN_USE, b""), "big")

    def chain_uses(self) -> dict[str, int]:
        """`chain_use` of all chains of the table; one request, which lists the whole family.

        Raises NetlinkError.
        """
        table, uses = nl.text(uapi.NFTA_CHAIN_TABLE, self.name), {}
        for data in socket().dump(uapi.NFT_MSG_GETCHAIN, self.message()):
            # parsing takes longer than this, and most chains of the family may be others'
            if table not in data:
                continue
            attributes = nl.attr_map(data, GENMSG_SIZE)
            if nl.get_text(attributes.get(uapi.NFTA_CHAIN_TABLE)) == self.name:
                use = int.from_bytes(attributes.get(uapi.NFTA_CHAIN_USE, b""), "big")
                uses[nl.get_text(attributes.get(uapi.NFTA_CHAIN_NAME))] = use
        return uses

    def rule_counts(self) -> dict[str, int]:
        """The number of rules of each chain that has any; {} if the table is missing."""
        return self._rule_counts(nl.text(uapi.NFTA_RULE_TABLE, self.name))

    def rule_counts_of(self, chains: Iterable[str]) -> dict[str, int]:
        """`rule_counts` of these chains, with a request for each."""
        counts: dict[str, int] = {}
        for chain in chains:
            counts |= self._rule_counts(*self._rule_of(chain))
        return counts

    def _rule_counts(self, *which: bytes) -> dict[str, int]:
        counts: dict[str, int] = {}
        for data in _dump_rules(self.message(*which)):
            attributes = nl.attr_map(data, GENMSG_SIZE)
            if nl.get_text(attributes.get(uapi.NFTA_RULE_TABLE)) == self.name:
                chain = nl.get_text(attributes.get(uapi.NFTA_RULE_CHAIN))
                counts[chain] = counts.get(chain, 0) + 1
        return counts

    def find_rules(self, chain: str, prefix: str) -> list[Rule]:
        """The chain's rules whose comment starts with `prefix` (not empty), in their order.

        [] if the chain is missing. Raises NetlinkError.
        """
        rules = self.find_rules_with(chain, prefix.encode())
        return [rule for rule in rules if rule.comment.startswith(prefix)]

    def find_rules_with(self, chain: str, mark: bytes) -> list[Rule]:
        """The chain's rules whose message contains these bytes; [] if the chain is missing.

        Only those are parsed, since few rules of a long chain belong to a caller.
        """
        payload = self.message(*self._rule_of(chain))
        rules = [
            parse_rule(data, self.name, chain) for data in _dump_rules(payload) if mark in data
        ]
        return [rule for rule in rules if rule]

    def rule(self, chain: str, handle: int) -> Rule | None:
        """The chain's rule with this handle, without listing the chain; None if there is none.

        A handle is never given again while the table exists. Raises NetlinkError.
        """
        payload = self._rule_at(chain, handle)
        answers = socket().get_each(uapi.NFT_MSG_GETRULE, payload)
        return parse_rule(answers[0], self.name, chain) if answers else None

    def jumps(self, parent: str, chain: str, handles: Sequence[int] = ()) -> list[Rule]:
        """All rules of the chain `parent` that lead to `chain`, in their order.

        `handles` may name them. They are believed if the kernel counts no other reference to
        `chain`; else `parent`, which may be long, is listed. Raises NetlinkError.
        """
        told = [rule for one in dict.fromkeys(handles) if (rule := self.rule(parent, one))]
        known = [rule for rule in told if rule.leads_to == chain]
        # the kernel's count includes the chain's own rules
        if known and len(known) + len(self.find_rules_with(chain, b"")) == self.chain_use(chain):
            return known
        return self.find_rules_with(parent, f"{chain}\0".encode())

    # --- deleting ---

    def delete(self, rules: Sequence[tuple[str, int]] = (), chains: Sequence[str] = ()) -> None:
        """Delete rules (chain, handle), then whole chains, in this order.

        Each thousand is one transaction, all or none. Raises NetlinkError: ENOENT if one of them is
        gone already, EBUSY if something still refers to a chain.
        """
        changes = [self.without_rule(chain, handle) for chain, handle in rules]
        changes += [self.without_chain(chain) for chain in chains]
        for start in range(0, len(changes), _BATCH_SIZE):
            transact(changes[start : start + _BATCH_SIZE])

    def delete_matching(self, chain: str, prefix: str, keep: Collection[str]) -> None:
        """Delete the chain's rules whose comment begins with `prefix`, but with none of `keep`.

        All of `keep` have one length, and begin with `prefix`. Other processes may delete the same
        rules meanwhile. No rule, and no chain, is success. Raises NetlinkError.
        """
        # each try lists the rules anew, without those that others have deleted
        for last in (False, False, False, True):
            rules = self._unwanted(chain, prefix, keep)
            stale = [(chain, rule.handle) for rule in rules]
            try:
                return self.delete(stale) if stale else None
            except NetlinkError as error:
                if error.errno != ENOENT or last:
                    raise
        return None

    def _unwanted(self, chain: str, prefix: str, keep: Collection[str]) -> list[Rule]:
        """The rules that `delete_matching` deletes; those that stay are not parsed."""
        mark, size = prefix.encode(), max(map(len, keep), default=0)
        kept = {each.encode() for each in keep}

        def is_kept(data: bytes) -> bool:
            at = data.find(mark)
            return at < 0 or data[at : at + size] in kept

        dump = _dump_rules(self.message(*self._rule_of(chain)))
        rules = [parse_rule(data, self.name, chain) for data in dump if not is_kept(data)]
        return [rule for rule in rules if rule and rule.comment.startswith(prefix)]

    def without_rule(self, chain: str, handle: int) -> Change:
        """A change that deletes a rule; fails with ENOENT if it is gone."""
        return uapi.NFT_MSG_DELRULE, self._rule_at(chain, handle), 0

    def without_rules(self, chain: str) -> Change:
        """A change that deletes the chain's rules; fails with ENOENT if the chain is missing."""
        return uapi.NFT_MSG_DELRULE, self.message(*self._rule_of(chain)), 0

    def without_chain(self, chain: str) -> Change:
        """A change that deletes a chain; fails with ENOENT if it is gone, EBUSY if it is used."""
        return uapi.NFT_MSG_DELCHAIN, self._chain(chain), 0

    def without_set(self, name: str) -> Change:
        """A change that deletes a set or map with its elements; fails with EBUSY if it is used."""
        names = nl.text(uapi.NFTA_SET_TABLE, self.name), nl.text(uapi.NFTA_SET_NAME, name)
        return uapi.NFT_MSG_DELSET, self.message(*names), 0

    def without_table(self) -> Change:
        """A change that deletes the table with its contents; fails with ENOENT if it is gone."""
        payload = self.message(nl.text(uapi.NFTA_TABLE_NAME, self.name))
        return uapi.NFT_MSG_DELTABLE, payload, 0

    # --- messages ---

    def message(self, *attributes: bytes) -> bytes:
        """The payload of a request about this family; the attributes name the table."""
        return message(self.family, *attributes)

    def _chain(self, chain: str) -> bytes:
        names = nl.text(uapi.NFTA_CHAIN_TABLE, self.name), nl.text(uapi.NFTA_CHAIN_NAME, chain)
        return self.message(*names)

    def _rule_at(self, chain: str, handle: int) -> bytes:
        number = nl.attr(uapi.NFTA_RULE_HANDLE, handle.to_bytes(8, "big"))
        return self.message(*self._rule_of(chain), number)

    def _rule_of(self, chain: str) -> tuple[bytes, bytes]:
        return nl.text(uapi.NFTA_RULE_TABLE, self.name), nl.text(uapi.NFTA_RULE_CHAIN, chain)


def drop_policies() -> list[tuple[str, str, str]]:
    """The chains of the forward hook with the policy drop: (family, table, chain).

    Chains of ip, ip6 and inet, also those of iptables-nft. Raises NetlinkError.
    """
    try:
        dump = socket().dump(uapi.NFT_MSG_GETCHAIN, bytes(GENMSG_SIZE))
    except NetlinkError as error:
        raise judged(error) from None
    drop = nl.attr(uapi.NFTA_CHAIN_POLICY, bytes(4))  # NF_DROP; of a thousand chains few have it
    chains = []
    for data in dump:
        family = next((k for k, number in FAMILIES.items() if number == data[0]), "")
        if drop not in data or family not in ("ip", "ip6", "inet"):
            continue
        chain = nl.attr_map(data, GENMSG_SIZE)
        hook = nl.attr_map(chain.get(uapi.NFTA_CHAIN_HOOK, b"")).get(uapi.NFTA_HOOK_HOOKNUM, b"")
        if int.from_bytes(hook, "big") == uapi.NF_INET_FORWARD and hook:
            table, name = (
                nl.get_text(chain.get(kind))
                for kind in (uapi.NFTA_CHAIN_TABLE, uapi.NFTA_CHAIN_NAME)
            )
            chains.append((family, table, name))
    return sorted(chains)


def _dump_rules(payload: bytes) -> list[bytes]:
    try:
        return socket().dump(uapi.NFT_MSG_GETRULE, payload)
    except NetlinkError as error:
        if error.errno == ENOENT:
            return []
        raise judged(error) from None


def parse_rule(data: bytes, table: str, chain: str) -> Rule | None:
    """The rule in a dump's message; None if it is another chain's (before 4.12 all are listed)."""
    attributes = nl.attr_map(data, GENMSG_SIZE)
    if (
        nl.get_text(attributes.get(uapi.NFTA_RULE_TABLE)) != table
        or nl.get_text(attributes.get(uapi.NFTA_RULE_CHAIN)) != chain
    ):
        return None
    return Rule(
        int.from_bytes(attributes.get(uapi.NFTA_RULE_HANDLE, b""), "big"),
        comment_of(attributes.get(uapi.NFTA_RULE_USERDATA, b"")),
        data,
    )
