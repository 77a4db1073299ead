"""The chains of networks with conditions, which users write in the language of nft(8).

Only chains are made here. So an ADD that finds them does not need the program, nor do DEL, GC and
CHECK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...kernel.errors import NetlinkError, NftMissing
from ...netfilter import compiler, nft
from ...netfilter.table import Table
from ...protocol.errors import CNIError
from .nft_chains import NETWORK_CHAIN, TABLE, network_chain, script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .nft_chains import Chain
    from .want import Want


def require() -> None:
    """Raise CNIError if the program is missing."""
    try:
        compiler.require()
    except NftMissing as error:
        raise CNIError(
            f"conditionsV4 and conditionsV6 are in the language of nft, and {error.msg}",
            f"{error.details}, or remove the conditions; `backend: iptables` takes conditions in "
            "the language of iptables",
        ) from None


def make(chains: Sequence[Chain]) -> None:
    """Make the chains, and the table and sets, in one transaction of their own.

    Raises CNIError, NftError; then nothing was changed.
    """
    require()
    for chain in chains:
        for rule in chain.rules:
            _check(rule.text)
    compiler.run(script(chains))


def _check(text: str) -> None:
    """Raise CNIError for a text that nft would not read as exactly one rule."""
    parts = text.split('"')
    if not len(parts) % 2:  # an open quote would end at the next quote, in another rule
        raise CNIError("a condition has a quote without its end", 'add or remove a `"`')
    if "#" in "".join(parts[::2]):  # a comment would hide the rule's end
        raise CNIError("a condition cannot have a comment", "remove the `#`, or quote it")


def unmake(chains: Sequence[Chain]) -> None:
    """Remove the networks' chains among these that nothing refers to.

    An ADD that has read such a chain, and not used it yet, names the old generation: the kernel
    refuses it, and it makes the chain again.
    """
    for chain in chains:
        if chain.name.startswith(NETWORK_CHAIN):
            try:
                nft.transact([Table(chain.family, TABLE).without_chain(chain.name)], explain=False)
            except NetlinkError:
                pass  # it is in use, or gone


def sweep(want: Want) -> None:
    """Remove the network's chains if nothing refers to them: an ADD that was killed left them."""
    chains = [
        network_chain(want, address, host_ip)
        for address in want.addresses
        for host_ip in (False, True)
    ]
    try:
        # read first: a transaction that fails waits 13 ms for RCU
        unmake([c for c in chains if Table(c.family, TABLE).chain_use(c.name) == len(c.rules)])
    except NetlinkError:
        pass  # unused chains do no harm
