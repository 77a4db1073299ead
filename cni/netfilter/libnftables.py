"""libnftables in this process: it compiles rules (0.2 ms a transaction; forking nft(8): 5-10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..kernel.errors import NftError, NftMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_SPOILT = "netlink: Error: "  # begins what the library says when it cannot read an answer …
_UNREAD = f"{_SPOILT}cache initialization failed"  # … of the ruleset, before any change


class Nft:
    """A libnftables context of the network namespace it is made in; mostly used by `nft.shared()`.

    Making it loads the library (3 ms the first time, 0.2 after). Raises NftMissing when the library
    or its binding is.
    """

    def __init__(self) -> None:
        try:
            # The binding's destructor trips over a library that is missing: look first.
            from ctypes import CDLL

            CDLL("libnftables.so.1")
            from nftables import Nftables
        except (OSError, ImportError) as error:
            raise NftMissing(
                f"nftables is not available: {error}",
                "install libnftables (Debian, Ubuntu: libnftables1, python3-nftables)",
            ) from None
        self._make: Callable[[], Any] = Nftables
        self._context: Any = None
        self._renew()

    def _renew(self) -> None:
        self._context = self._make()
        # Its output and errors go to buffers, never to our stdout.
        self._context.set_handle_output(True)

    def close(self) -> None:
        """Free the context; it cannot be used any more."""
        self._context = None

    def run(self, commands: Sequence[dict[str, Any]]) -> None:
        """Apply commands (libnftables-json(5)) as one transaction. Raises NftError."""
        self._json(list(commands))

    def run_text(self, script: str) -> None:
        """Apply commands in nft(8)'s language as one transaction. Raises NftError.

        For what older versions drop silently from JSON, such as the comment of a table.
        """
        self._command(script, json=False)

    def list_chain(self, family: str, table: str, chain: str) -> list[dict[str, Any]] | None:
        """The rules of one chain, with handles; None when there is no such chain. Raises NftError.

        Slow for long chains (0.1 ms a rule): see `Table.find_rules`.
        """
        what = {"family": family, "table": table, "name": chain}
        try:
            output = self._json([{"list": {"chain": what}}])
        except NftError as error:
            if error.missing:
                return None
            raise
        return [item["rule"] for item in output if "rule" in item]

    def _json(self, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
        import msgspec

        output = self._command(msgspec.json.encode({"nftables": commands}).decode(), json=True)
        if not output.strip():
            return []
        objects: list[dict[str, Any]] = msgspec.json.decode(output)["nftables"]
        return objects

    def _command(self, text: str, *, json: bool) -> str:
        code, output, error = self._attempt(text, json)
        if code != 0 and _UNREAD in error:  # then nothing has been changed
            code, output, error = self._attempt(text, json)
        if code != 0:
            raise NftError(_clean(error) or f"libnftables failed with {code}")
        return output

    def _attempt(self, text: str, json: bool) -> tuple[int, str, str]:
        self._context.set_json_output(json)
        code, output, error = self._context.cmd(text)
        if code != 0 and _SPOILT in error:
            # What is left in the socket would be taken for the answer to the next request.
            self._renew()
        return int(code), str(output), str(error)


def _clean(text: str) -> str:
    """libnftables' error without the position of JSON input, which it does not know, and carets."""
    lines = [line.removeprefix("internal:0:0-0: Error: ").strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line and line.strip("^~ "))
