"""iptables and ip6tables: each change is one iptables-restore, not one process for each rule.

Uses the variant (nf_tables or legacy) that the administrator has made the default: rules belong
where the node's other tools put theirs (docs/spec/common.md §11).
"""

from __future__ import annotations

import os
from errno import EINTR, EIO, EMFILE, ENFILE, ENOBUFS, ENOENT, ENOMEM

from .. import files
from ..kernel.errors import IptablesError, IptablesMissing, IptablesUnknown
from .table import Table

# The variables, besides PATH, that the tools read; the rest of a runtime's environment stays out.
_PASSED_ON = ("PATH", "XTABLES_LIBDIR", "XTABLES_LOCKFILE")
# Errors of this process or of memory, which say nothing about a chain.
_TRANSIENT = frozenset({EINTR, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM})


def restore(v6: bool, table: str, lines: list[str]) -> None:
    """Apply `lines` (`-A …`, `-N …`) to a table, all or none. Raises IptablesError.

    Refuses a line with a control character: the tool would take the text behind a newline for a
    line of its own, which could change any rule of the node.
    """
    for line in lines:
        if has_control_characters(line):
            text = f"refused to write a rule with control characters: {line!r}"
            raise IptablesError(text, "look at the names in the configuration and in prevResult")
    script = "\n".join((f"*{table}", *lines, "COMMIT", ""))
    # --noflush keeps the rules of others in the table
    _run(v6, "tables-restore", ["--noflush", "--wait"], script)


def has_control_characters(text: str) -> bool:
    """Has `text` a control character of ASCII? (The codes of Latin-1's are bytes of UTF-8.)"""
    return any(character < " " or character == "\x7f" for character in text)


def save(v6: bool, table: str) -> list[str]:
    """The table in iptables-save's words, without comments. Raises IptablesError."""
    output = _run(v6, "tables-save", ["-t", table])
    return [line for line in output.splitlines() if line and not line.startswith("#")]


def usable(v6: bool) -> bool:
    """Is the tool there, and can it see the INPUT chain? (docs/spec/common.md §6)"""
    try:
        _run(v6, "tables", ["--wait", "-t", "filter", "-S", "INPUT"])
    except IptablesError:
        return False
    return True


def has_nft_chain(v6: bool, table: str, chain: str) -> bool:
    """Has iptables-nft this chain? Its chains are ordinary nftables chains; runs no program.

    Raises IptablesError if the kernel could not be asked: then nobody knows.
    """
    try:
        return Table("ip6" if v6 else "ip", table).has_chain(chain)
    except OSError as error:
        if error.errno in _TRANSIENT:
            reason = (error.strerror or str(error)).lower()
            text = f"cannot look for chain {chain} in table {table}: {reason}"
            raise IptablesUnknown(text, "the kernel could not be asked: try again") from None
        return False  # no chain without nftables in the kernel


def may_be_used(v6: bool, table: str, *chains: str) -> bool:
    """May either variant have one of these chains? True if unknown; runs no program."""
    try:
        has_chain = any(has_nft_chain(v6, table, chain) for chain in chains)
    except IptablesError:
        return True  # removing them will show why the kernel does not answer
    return has_chain or has_legacy_table(v6, table)


def has_legacy_table(v6: bool, table: str) -> bool:
    """False only if iptables-legacy certainly has no such table here; runs no program."""
    try:
        with open(f"/proc/thread-self/net/ip{'6' if v6 else ''}_tables_names") as names:
            return table in names.read().split()
    except FileNotFoundError:
        # The kernel has no legacy iptables, unless /proc is missing.
        return not os.path.isdir("/proc/thread-self/net")
    except OSError:
        return True


def comment(text: str) -> str:
    """The arguments for a rule's comment, exactly as iptables-save prints them."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'-m comment --comment "{quoted}"'


def require() -> None:
    """Raise IptablesMissing if iptables-restore is not installed; runs no program."""
    _find("iptables-restore")


def _find(name: str) -> str:
    program = files.find_program(name)
    if program is None:
        raise IptablesMissing(f"{name} not found", "install the package iptables")
    return program


def _run(v6: bool, tool: str, arguments: list[str], stdin: str = "") -> str:
    from .. import process  # most requests speak netlink instead

    name = f"ip{'6' if v6 else ''}{tool}"
    program = _find(name)
    env = {key: value for key in _PASSED_ON if (value := os.environ.get(key))}
    try:
        done = process.run(program, [name, *arguments], stdin.encode(), env)
    except OSError as error:
        reason = os.strerror(error.errno or ENOENT).lower()
        raise IptablesError(f"fork/exec {program}: {reason}") from None
    if done.code != 0:
        text = " ".join(done.stderr.decode(errors="replace").split())
        raise IptablesError(f"{name} failed with {done.code}: {text}" if text else f"{name} failed")
    # another program's comment may have bytes that are no UTF-8
    return done.stdout.decode(errors="surrogateescape")
