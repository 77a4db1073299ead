"""The chains of networks with conditions, which users write in the language of nft(8).

Only chains are made here, so an ADD that finds them does without the program, and so do DEL, GC and
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
    """Raises CNIError if the program is missing."""
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
    """Raises CNIError for a rule that nft would take for something else than one whole rule."""
    parts = text.split('"')
    if not len(parts) % 2:  # it would go on to the next quote, which is in another rule
        raise CNIError("a condition has a quote without its end", 'add or remove a `"`')
    if "#" in "".join(parts[::2]):  # outside of quotes; it would hide the rule's end
        raise CNIError("a condition cannot have a comment", "remove the `#`, or quote it")


def unmake(chains: Sequence[Chain]) -> None:
    """Remove the networks' chains among these, but those that something refers to by now.

    An ADD that has seen such a chain, and not used it yet, is refused for the generation that it
    names, and makes the chain again.
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
        # looked at first: a transaction that fails waits 13 ms for RCU
        unmake([c for c in chains if Table(c.family, TABLE).chain_use(c.name) == len(c.rules)])
    except NetlinkError:
        pass  # they do no harm
