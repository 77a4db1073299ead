"""libnftables in this process: the judge of what we write into nftables ourselves."""

from __future__ import annotations

import ctypes
import json
from typing import Any

_OUTPUT_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON; commands are then JSON, too


def apply(script: str) -> None:
    """Apply commands in nft(8)'s language as one transaction, in the current namespace."""
    _apply(script, 0)


def apply_json(commands: list[dict[str, Any]]) -> None:
    """As `apply`, for commands of libnftables-json(5)."""
    _apply(json.dumps({"nftables": commands}), _OUTPUT_JSON)


def _apply(commands: str, flags: int) -> None:
    library = ctypes.CDLL("libnftables.so.1")
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    try:
        for stream in (library.nft_ctx_buffer_output, library.nft_ctx_buffer_error):
            assert stream(context) == 0
        library.nft_ctx_output_set_flags(context, flags)
        code = library.nft_run_cmd_from_buffer(context, commands.encode())
        assert code == 0, library.nft_ctx_get_error_buffer(context).decode()
    finally:
        library.nft_ctx_free(context)
