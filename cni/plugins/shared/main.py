"""Masquerading for the main plugins, loaded only where `ipMasq` is on (docs/spec/common.md §6)."""

from __future__ import annotations

from typing import Any

from ...call import Call
from ...protocol.address import Prefix
from ...protocol.errors import CNIError
from ...protocol.request import Attachment
from ...protocol.result import Result


def masquerade(call: Call[Any], result: Result, backend: str | None) -> None:
    """Masquerade the result's addresses, and no longer if the ADD fails. Raises CNIError."""
    from . import masquerade as masq

    prefixes = [ip.prefix for ip in result.ips]
    call.undo.callback(masq.teardown, call.owner, prefixes)
    masq.setup(call.owner, prefixes, backend)


def remasquerade(call: Call[Any], result: Result, backend: str | None) -> None:
    """For `reload`: make missing masquerading rules again. Raises CNIError."""
    from . import masquerade as masq

    masq.setup(call.owner, [ip.prefix for ip in result.ips], backend)


def missing_masquerade(call: Call[Any], result: Result) -> list[str]:
    """For CHECK: the missing masquerading rules, a sentence each."""
    from . import masquerade as masq

    missing = masq.check(call.owner, [ip.prefix for ip in result.ips])
    return [f"{line}. Rules are gone: run `cni reload`" for line in missing]


def check_backend(ip_masq: bool, backend: str | None) -> None:
    """Refuse an unknown masquerading backend before anything is changed. Raises CNIError."""
    if ip_masq and backend not in (None, "", "iptables", "nftables"):
        raise CNIError(
            f'unknown ipmasq backend "{backend}"', 'ipMasqBackend is "iptables" or "nftables"'
        )


def unmasquerade(call: Call[Any], prefixes: list[Prefix]) -> None:
    """Remove the owner's masquerading; its addresses, if known, find rules of the reference."""
    from . import masquerade as masq

    masq.teardown(call.owner, prefixes)


def collect_masquerade(call: Call[Any], keep: frozenset[Attachment]) -> None:
    """Remove the masquerading of this network's attachments that are not in `keep`."""
    from . import masquerade as masq

    masq.gc(call.network, call.owners(keep))
