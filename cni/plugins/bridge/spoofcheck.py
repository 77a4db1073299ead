"""A container may send with its own MAC address only: bridge's `macspoofchk`
(docs/spec/common.md §7).

In family bridge, table nat: the base chain PREROUTING sends what comes from the host's veth to a
chain of the attachment, that one to a second, which returns for the true source address and drops
the rest. Every rule's comment is ``macspoofchk-<containerID>-<ifname>``; the network is not in it.
"""

from __future__ import annotations

from errno import ENOENT
from typing import Any

from ...kernel.errors import KernelError, NetlinkError, NftError, Unusable
from ...netfilter import nft
from ...netfilter.table import Table
from ...owner import digest
from ...protocol.errors import CNIError

_FAMILY, _TABLE, _BASE = "bridge", "nat", "PREROUTING"
_COMMENT = "macspoofchk-"
_WHERE = {"family": _FAMILY, "table": _TABLE}
_RETRIES = 5

# A chain's name has at most 127 characters for all kernels and tools, a comment 128. With what we
# put around a reference, this is how long it can be; container ids of 64 digits leave room enough.
_MAX_REF = 110
_HASH = 16


def setup(owner_ref: str, host_ifname: str, mac: str) -> None:
    """Let only frames from `mac` in through the host's link `host_ifname`; again is no error.

    Raises CNIError ``failed to setup spoof-check: …``; then nothing was changed.
    """
    ref = _short(owner_ref)
    try:
        context = nft.shared()
        for attempt in range(1, _RETRIES + 1):
            stale = _jumps(ref)
            try:
                return context.run(_commands(ref, host_ifname, mac, stale))
            except NftError as error:
                # Somebody else deleted a stale rule in between: look again.
                if not (stale and error.missing) or attempt == _RETRIES:
                    raise
    except KernelError as error:
        raise CNIError(f"failed to setup spoof-check: {error.msg}", error.details) from None


def teardown(owner_ref: str) -> None:
    """Remove the attachment's rules and chains; what is not there is no error.

    Every step is tried. Raises CNIError ``failed to teardown spoof-check: <e1>, <e2>``.
    """
    ref = _short(owner_ref)
    errors: list[str] = []
    try:
        rules = [(_BASE, handle) for handle in _jumps(ref)]
    except Unusable:
        return  # nor can there be any
    chains = [chain for chain in _chains(ref) if Table(_FAMILY, _TABLE).has_chain(chain)]
    if not rules and not chains:
        return
    try:
        Table(_FAMILY, _TABLE).delete(rules, chains)
        return
    except NetlinkError:
        pass  # all or nothing did not work: as much as possible
    for rule in rules:
        _attempt(errors, f"rule in {_BASE}", [rule], [])
    for chain in chains:
        _attempt(errors, f"chain {chain}", [], [chain])
    if errors:
        raise CNIError(
            f"failed to teardown spoof-check: {', '.join(errors)}",
            "see `nft -a list table bridge nat`",
        )


def gc(live_host_links: set[str]) -> None:
    """Remove the checks of host links that do not exist any more. Raises CNIError.

    Only those: a rule does not say which network it belongs to, and a link that exists may be
    another network's.
    """
    try:
        rules = Table(_FAMILY, _TABLE).find_rules(_BASE, _COMMENT)
    except Unusable:
        return
    errors = []
    for rule in rules:
        link = rule.compared[0].split(b"\0", 1)[0].decode(errors="replace") if rule.compared else ""
        if link in live_host_links:
            continue
        try:
            teardown(rule.comment.removeprefix(_COMMENT))
        except (CNIError, KernelError) as error:
            errors.append(error.msg)
    if errors:
        raise CNIError("; ".join(errors))


def _attempt(errors: list[str], what: str, rules: list[tuple[str, int]], chains: list[str]) -> None:
    try:
        Table(_FAMILY, _TABLE).delete(rules, chains)
    except NetlinkError as error:
        if error.errno != ENOENT:
            errors.append(f"failed to delete {what}: {error}")


def _jumps(ref: str) -> list[int]:
    """The handles of the base chain's rules for `ref`."""
    comment = f"{_COMMENT}{ref}"
    return [
        rule.handle
        for rule in Table(_FAMILY, _TABLE).find_rules(_BASE, comment)
        if rule.comment == comment
    ]


def _short(owner_ref: str) -> str:
    """The reference, or one that fits a chain's name: its beginning and a hash of all of it."""
    if len(owner_ref.encode()) <= _MAX_REF:
        return owner_ref
    start = owner_ref.encode()[: _MAX_REF - _HASH - 1].decode(errors="ignore")
    return f"{start}-{digest(owner_ref)[:_HASH]}"


def _chains(ref: str) -> tuple[str, str]:
    """The chain jumped to, and the one that compares; deleted in this order."""
    return f"cni-br-iface-{ref}", f"cni-br-iface-{ref}-mac"


def _commands(ref: str, host_ifname: str, mac: str, stale: list[int]) -> list[dict[str, Any]]:
    iface, mac_chain = _chains(ref)
    base = {"type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}
    from_link = _match({"meta": {"key": "iifname"}}, host_ifname)
    from_mac = _match({"payload": {"protocol": "ether", "field": "saddr"}}, mac)
    return [
        {"add": {"table": {"family": _FAMILY, "name": _TABLE}}},
        {"add": {"chain": {**_WHERE, "name": _BASE, **base}}},
        *({"add": {"chain": {**_WHERE, "name": name}}} for name in (iface, mac_chain)),
        *({"flush": {"chain": {**_WHERE, "name": name}}} for name in (iface, mac_chain)),
        *({"delete": {"rule": {**_WHERE, "chain": _BASE, "handle": number}}} for number in stale),
        _rule(_BASE, ref, from_link, {"jump": {"target": iface}}),
        _rule(iface, ref, {"jump": {"target": mac_chain}}),
        _rule(mac_chain, ref, from_mac, {"return": None}),
        _rule(mac_chain, ref, {"drop": None}),
    ]


def _match(left: dict[str, Any], right: str) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


def _rule(chain: str, ref: str, *statements: dict[str, Any]) -> dict[str, Any]:
    rule = {**_WHERE, "chain": chain, "expr": list(statements), "comment": f"{_COMMENT}{ref}"}
    return {"add": {"rule": rule}}
