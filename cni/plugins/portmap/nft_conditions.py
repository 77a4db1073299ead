"""The chains of networks with conditions, which users write in the language of nft(8).

Only chains are made here, so an ADD that finds them does without the program, and so do DEL, GC and
CHECK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...kernel.errors import NftMissing
from ...netfilter import compiler
from ...protocol.errors import CNIError
from .nft_chains import script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .nft_chains import Chain


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
    compiler.run(script(chains))
