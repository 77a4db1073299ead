"""The node's packet filter as text: every rule and every element of a map or set, once.

nftables is read with nft(8); iptables with its save tools, of both variants. Rules that only a
missing tool could read are left out; `has_nft` tells whether nft is missing.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cni.owner import Owner

from .. import errors
from .attached import Attached

_TIMEOUT = 60  # seconds for a tool
# What iptables-nft keeps in nf_tables: iptables-save tells it better.
_OF_IPTABLES = frozenset(
    (family, table)
    for family in ("ip", "ip6")
    for table in ("filter", "nat", "mangle", "raw", "security")
)
_SAVE_TOOLS = ("iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save")
_COUNTER = re.compile(r" ?counter packets \d+ bytes \d+")
_COMMENT = re.compile(r'comment "([^"]*)"')
_IPTABLES_COMMENT = re.compile(r'--comment (?:"((?:[^"\\]|\\.)*)"|(\S+))')
_COMMENT_TEXT = re.compile(r' comment "[^"]*"')
_IPTABLES_COMMENT_MATCH = re.compile(r' -m comment --comment (?:"(?:[^"\\]|\\.)*"|\S+)')
_REFERENCE_OWNER = re.compile(r'name: "(.*?)" id: "(.*?)"')


class Entry(NamedTuple):
    """A rule, or an element. `place` is for instance ``nft ip cni_hostport targets``.

    `tool` reads it: nft, iptables or ip6tables; `chain` is the chain, map or set.
    """

    tool: str
    table: str
    chain: str
    text: str
    comment: str

    @property
    def place(self) -> str:
        return f"{self.tool} {self.table} {self.chain}"

    @property
    def short(self) -> str:
        """The text without comment and chain."""
        text = _IPTABLES_COMMENT_MATCH.sub("", _COMMENT_TEXT.sub("", self.text))
        return text.removeprefix(f"-A {self.chain} ")

    @property
    def reference_owner(self) -> tuple[str, str] | None:
        """Network and container id in a comment of the reference."""
        found = _REFERENCE_OWNER.search(self.comment)
        return (found[1], found[2]) if found else None


class Match(NamedTuple):
    """An entry that belongs to an attachment, and the name by which it was recognised."""

    entry: Entry
    why: str


def read() -> list[Entry]:
    """Everything. Raises CommandError, NotPermitted."""
    found = [entry for entry in nft_entries(_nft_text()) if not _is_of_iptables(entry)]
    for tool in _SAVE_TOOLS:
        # Without legacy modules the legacy tools would load them.
        if _is_on_path(tool) and ("legacy" not in tool or _has_legacy(tool)):
            found += iptables_entries(tool.removesuffix("-save"), _output([tool]))
    return list(dict.fromkeys(found))


class Index:
    """Entries by the names of their owners, so that an attachment's are found without a search."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._by_token: dict[str, dict[int, Entry]] = {}
        for number, entry in enumerate(entries):
            for token in _tokens(entry):
                self._by_token.setdefault(token, {})[number] = entry

    def belonging(self, what: Attached) -> list[Match]:
        """The entries that belong to an attachment, in their order."""
        key = _Key.of(what)
        found: dict[int, Entry] = {}
        for token in key.tokens:
            found.update(self._by_token.get(token, {}))
        # A token only preselects: an address or a word may belong to others.
        return [Match(found[at], why) for at in sorted(found) if (why := key.names(found[at]))]


def _tokens(entry: Entry) -> set[str]:
    """What may be a key, container id, chain or address in an entry."""
    tokens = {entry.chain, *_TOKEN.findall(entry.text), *_KEY.findall(entry.table)}
    owner = entry.reference_owner
    return tokens | ({owner[1]} if owner else set())


class _Key(NamedTuple):
    """All by which rules name an attachment."""

    owner: Owner
    hashes: str
    whole_id: re.Pattern[str]
    chains: frozenset[str]
    hosts: tuple[str, ...]
    addresses: re.Pattern[str] | None

    @classmethod
    def of(cls, what: Attached) -> _Key:
        owner = what.owner
        hosts = tuple(address.partition("/")[0] for address in what.addresses)
        texts = "|".join(re.escape(host) for host in hosts)
        # Whole addresses only: 10.0.0.2 is not in 10.0.0.20 or 110.0.0.2.
        pattern = re.compile(rf"(?<![\w.:])(?:{texts})(?![\w.:]*[\w:])") if hosts else None
        chains = frozenset({owner.chain(), owner.chain("DN-"), owner.chain("SN-")})
        # An id may be the beginning of another one.
        whole_id = re.compile(rf"(?<![\w.-]){re.escape(owner.container_id)}(?![\w.-])")
        return cls(owner, owner.key, whole_id, chains, hosts, pattern)

    @property
    def tokens(self) -> set[str]:
        """What an entry of the attachment has at least one of."""
        return {self.hashes, self.owner.container_id, *self.chains, *self.hosts}

    def names(self, entry: Entry) -> str:
        """The name by which the entry belongs to the attachment; "" if it does not."""
        if self.hashes in entry.text or self.hashes in entry.table:
            return "key"
        if self.whole_id.search(entry.text):
            owner = entry.reference_owner
            # One container id in two networks has rules in both.
            if owner in (None, (self.owner.network, self.owner.container_id)):
                return "container id"
            return ""
        if entry.chain in self.chains or any(chain in entry.text for chain in self.chains):
            return "chain"
        has_owner = entry.reference_owner is not None or _KEY.search(entry.comment)
        return "address" if not has_owner and self._is_ours(entry) else ""

    def _is_ours(self, entry: Entry) -> bool:
        """Does a rule of the plugins, which names no owner, name an address of the attachment?"""
        if self.addresses is None or not self.addresses.search(entry.text):
            return False
        return entry.chain.startswith("CNI-") or entry.table.partition(" ")[2].startswith("cni_")


# Words as names, keys, ids and addresses are written.
_TOKEN = re.compile(r"[\w.:-]+")
_KEY = re.compile(r"\b[0-9a-f]{16}-[0-9a-f]{16}\b")


def _is_of_iptables(entry: Entry) -> bool:
    family, _, table = entry.table.partition(" ")
    return (family, table) in _OF_IPTABLES and _is_on_path("iptables-save")


def _has_legacy(tool: str) -> bool:
    name = "ip6_tables_names" if tool.startswith("ip6") else "ip_tables_names"
    try:
        with open(f"/proc/net/{name}", encoding="ascii") as names:
            return bool(names.read().strip())
    except OSError:
        return False


def _is_on_path(name: str) -> bool:
    # As shutil.which; importing shutil loads two compression libraries.
    candidates = [os.path.join(directory, name) for directory in os.get_exec_path()]
    return any(os.path.isfile(each) and os.access(each, os.X_OK) for each in candidates)


def has_nft() -> bool:
    """Can rules of nftables be read on this node?"""
    return _is_on_path("nft")


def _nft_text() -> str:
    """The ruleset in nft(8)'s language; "" without nft. Raises CommandError, NotPermitted."""
    return _output(["nft", "list", "ruleset"]) if has_nft() else ""


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_TIMEOUT, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.CommandError(f"cannot run {command[0]}: {error}") from None
    if done.returncode:
        raise _refused(command[0], done.stderr.strip())
    return done.stdout


def _refused(what: str, text: str) -> errors.CommandError:
    if "ermission denied" in text or "not permitted" in text:
        return errors.NotPermitted(f"{what}: cannot read the rules", "run it as root")
    return errors.CommandError(f"{what}: cannot read the rules", text)


def nft_entries(text: str) -> Iterator[Entry]:
    """The rules and elements in the output of ``nft list ruleset``."""
    table = chain = ""
    elements: list[str] | None = None
    for raw in text.splitlines():
        line = raw.strip()
        if elements is not None:
            elements.append(line)
        elif raw.startswith("table "):
            table = line.removeprefix("table ").removesuffix(" {")
        elif raw.startswith("\t") and line.endswith(" {") and not raw.startswith("\t\t"):
            chain = line.split(" ", 1)[1].removesuffix(" {")
        elif line.startswith("elements = {"):
            elements = [line.removeprefix("elements = {")]
        elif raw.startswith("\t\t") and not line.startswith(_PROPERTIES):
            rule = " ".join(_COUNTER.sub("", line).split())
            yield Entry("nft", table, chain, rule, _comment(line))
        if elements is not None and elements[-1].endswith("}"):
            whole = " ".join(elements).removesuffix("}")
            for element in _split(whole):
                yield Entry("nft", table, chain, element, _comment(element))
            elements = None


# What is no rule and no element.
_PROPERTIES = (
    "type ",
    "typeof ",
    "flags ",
    "size ",
    "timeout ",
    "policy ",
    "comment ",
    "counter\n",
)


def _comment(text: str) -> str:
    found = _COMMENT.search(text)
    return found[1] if found else ""


def _split(text: str) -> Iterator[str]:
    """Elements, which commas separate, unless they are in a comment."""
    piece, quoted = "", False
    for char in text:
        quoted ^= char == '"'
        if char == "," and not quoted:
            yield piece.strip()
            piece = ""
        else:
            piece += char
    if piece.strip():
        yield piece.strip()


def iptables_entries(tool: str, text: str) -> Iterator[Entry]:
    """The rules in the output of a save tool."""
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A "):
            chain = line.split(" ", 2)[1]
            found = _IPTABLES_COMMENT.search(line)
            comment = (found[1] or found[2] or "").replace('\\"', '"') if found else ""
            yield Entry(tool, table, chain, line, comment)
