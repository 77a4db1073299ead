"""libnftables in this process: the judge of what we write into nftables ourselves."""

from __future__ import annotations

from typing import Any


def apply(script: str) -> None:
    """Apply commands in nft(8)'s language as one transaction, in the current namespace."""
    _apply(lambda library: library.cmd(script))


def apply_json(commands: list[dict[str, Any]]) -> None:
    """As `apply`, for commands of libnftables-json(5)."""
    _apply(lambda library: library.json_cmd({"nftables": commands}))


def _apply(command: Any) -> None:
    from nftables import Nftables  # Debian's binding, which is on no package index

    library = Nftables()
    library.set_handle_output(True)
    code, _, error = command(library)
    assert code == 0, error
