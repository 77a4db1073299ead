"""bridge's `macspoofchk`: drops frames whose source MAC is not the container's
(docs/spec/common.md §7).

In the table nat of family bridge, the base chain PREROUTING sends frames from the host's veth to a
chain of the attachment. That chain jumps to a second one, which returns frames with the container's
MAC and drops all others. The comment of each rule is ``macspoofchk-<containerID>-<ifname>``; it
does not contain the network.

The base chain has a rule for each container. So ADD notes the handle of its rule, and DEL believes
it if the rule there has the comment and leads to the attachment's chain. No other rule leads there
if the kernel deletes that chain, which a rule would keep. Otherwise the base chain is listed.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOENT
from typing import Any

from ...call import Call
from ...kernel import bridge_option, link
from ...kernel.errors import KernelError, NetlinkError, Unusable
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netfilter import nft, uapi
from ...netfilter.nft import Change, transact
from ...netfilter.table import Rule, Table, parse_rule
from ...owner import digest
from ...protocol.errors import CNIError

_TABLE, _BASE = Table("bridge", "nat"), "PREROUTING"
_COMMENT = "macspoofchk-"
_SOURCE_MAC = (6, 6)  # offset and size in the frame's header

# A chain's name may have 127 characters, a comment 128. Names and comments are up to 17 longer than
# the reference string; with container ids of 64 digits nothing is ever cut.
_MAX_REF = 110
_HASH = 16
_TOGETHER = 300  # attachments that GC removes in a transaction: the rule and the chains of each


def setup(owner_ref: str, host_ifname: str, mac: str) -> int:
    """Drop frames that enter through the host's link `host_ifname` unless they come from `mac`.

    Rules that exist already are replaced. Returns the handle of the rule in the base chain, 0 if
    the kernel did not tell it. Raises CNIError ``failed to setup spoof-check: …``; then nothing was
    changed.
    """
    ref = _short(owner_ref)
    try:
        told = nft.settle(lambda: _changes(ref, host_ifname, mac))
    except NetlinkError as error:
        details = error.details or nft.UNUSABLE
        raise CNIError(f"failed to setup spoof-check: {error}", details) from None
    made = [parse_rule(each, _TABLE.name, _BASE) for each in told]
    return next((rule.handle for rule in made if rule is not None and _is_jump(rule, ref)), 0)


def require_unused(host: Netlink, bridge: Link, mac: bytes) -> None:
    """Refuse a MAC that the bridge or a container on it has. Raises CNIError, NetlinkError.

    The check lets a container send with its own MAC. If that were a neighbour's, the container
    would draw the neighbour's traffic. b"" stands for the random MAC that the kernel chooses.
    """
    if not mac:
        return
    from ...kernel import peer  # few configurations name a MAC

    text = link.format_mac(mac)
    if text == bridge.mac:
        raise _in_use(text, f"the bridge {bridge.name}")
    for port, other in peer.of_ports(host, bridge.index):
        if text == port.mac or (other is not None and text == other.mac):
            raise _in_use(text, f"a link behind port {port.name} of {bridge.name}")


def _in_use(mac: str, where: str) -> CNIError:
    return CNIError(
        f"failed to setup spoof-check: MAC {mac} is in use",
        f"{where} has it: ask for another MAC, or for none",
    )


def guard_learning(call: Call[Any], host: Netlink, bridge: Link) -> None:
    """Keep the bridge from learning MACs from link-local frames, which pass no rule.

    Before Linux 5.0 a bridge has no such option, which is logged.
    """
    try:
        bridge_option.forget_link_local(host, bridge)
    except NetlinkError as error:
        call.log(f"bridge: {bridge.name} learns MACs from link-local frames unchecked: {error}")


def teardown(owner_ref: str, handle: int = 0) -> None:
    """Remove the attachment's rules and chains; missing ones are no error.

    `handle` is what `setup` returned; 0 if that is not known. Tries every deletion, then raises
    CNIError ``failed to teardown spoof-check: <e1>, <e2>``.
    """
    ref = _short(owner_ref)
    try:
        if handle and _delete_noted(ref, handle):
            return
        chains = [chain for chain in _chains(ref) if _TABLE.has_chain(chain)]
        if not chains:
            return  # a rule that led to one would have kept it
        rules = [(_BASE, each) for each in _jumps(ref)]
    except Unusable:
        return  # without nftables in the kernel ADD cannot have made rules
    try:
        _TABLE.delete(rules, chains)
        return
    except NetlinkError:
        pass  # the whole transaction failed: delete as much as possible, one by one
    errors: list[str] = []
    for rule in rules:
        _attempt(errors, f"rule in {_BASE}", [rule], [])
    for chain in chains:
        _attempt(errors, f"chain {chain}", [], [chain])
    if errors:
        raise CNIError(
            f"failed to teardown spoof-check: {', '.join(errors)}",
            "see `nft -a list table bridge nat`",
        )


def _delete_noted(ref: str, handle: int) -> bool:
    """Delete the rule with this handle and the chains behind it, all or nothing; was it done?

    Raises Unusable.
    """
    rule = _TABLE.rule(_BASE, handle)
    if rule is None or not _is_jump(rule, ref):
        return False
    try:
        transact(_deletions(rule, ref), explain=False)
    except NetlinkError:
        return False  # another rule leads to a chain, or one of them is gone
    return True


def _is_jump(rule: Rule, ref: str) -> bool:
    """Is it the rule that sends the frames of this attachment's link to its chain?"""
    return rule.comment == f"{_COMMENT}{ref}" and rule.leads_to == _chains(ref)[0]


def _deletions(jump: Rule, ref: str) -> list[Change]:
    return [
        _TABLE.without_rule(_BASE, jump.handle),
        *(_TABLE.without_chain(chain) for chain in _chains(ref)),
    ]


def gc(list_links: Callable[[], set[str]]) -> None:
    """Remove the rules of host links that are gone.

    `list_links` returns the names of all links. It is called after the rules were read, because an
    ADD makes its link before its rules. Rules do not name their network, so all rules of links that
    exist stay. Raises CNIError.
    """
    try:
        rules = _TABLE.find_rules(_BASE, _COMMENT)
    except Unusable:
        return
    if not rules:
        return
    live_links = list_links()
    stale = [rule for rule in rules if _link_of(rule) not in live_links]
    for start in range(0, len(stale), _TOGETHER):
        _delete_stale(stale[start : start + _TOGETHER])


def _link_of(rule: Rule) -> str:
    """The name of the link whose frames a rule of the base chain takes; "" if of none."""
    # the rule compares the link's name, padded with NULs to IFNAMSIZ
    return rule.compared[0].split(b"\0", 1)[0].decode(errors="replace") if rule.compared else ""


def _delete_stale(rules: list[Rule]) -> None:
    """Remove attachments by their rules in the base chain: at once, or else one by one.

    Raises CNIError.
    """
    refs = [rule.comment.removeprefix(_COMMENT) for rule in rules]
    pairs = list(zip(rules, refs, strict=True))
    if len(set(refs)) == len(refs) and all(_is_jump(rule, ref) for rule, ref in pairs):
        try:
            changes = [change for rule, ref in pairs for change in _deletions(rule, ref)]
            transact(changes, explain=False)
            return
        except NetlinkError:
            pass  # somebody has removed a part, or uses one
    errors = []
    for rule, ref in pairs:
        try:
            teardown(ref, rule.handle)
        except (CNIError, KernelError) as error:
            errors.append(error.msg)
    if errors:
        raise CNIError("; ".join(errors))


def _attempt(errors: list[str], what: str, rules: list[tuple[str, int]], chains: list[str]) -> None:
    try:
        _TABLE.delete(rules, chains)
    except NetlinkError as error:
        # ENOENT: another process has deleted it in the meantime
        if error.errno != ENOENT:
            errors.append(f"failed to delete {what}: {error}")


def _jumps(ref: str) -> list[int]:
    """The handles of the rules in the base chain whose comment is made of `ref`."""
    comment = f"{_COMMENT}{ref}"
    return [rule.handle for rule in _TABLE.find_rules(_BASE, comment) if rule.comment == comment]


def _short(owner_ref: str) -> str:
    """`owner_ref`; if it is too long for a chain's name, its beginning and a hash of all of it."""
    if len(owner_ref.encode()) <= _MAX_REF:
        return owner_ref
    start = owner_ref.encode()[: _MAX_REF - _HASH - 1].decode(errors="ignore")
    return f"{start}-{digest(owner_ref)[:_HASH]}"


def _chains(ref: str) -> tuple[str, str]:
    """The chain to which PREROUTING jumps, and the one that compares; deleted in this order."""
    return f"cni-br-iface-{ref}", f"cni-br-iface-{ref}-mac"


def _changes(ref: str, host_ifname: str, mac: str) -> list[Change]:
    """Changes that replace the attachment's rules, and make table and base chain if missing."""
    from ...netfilter import expressions as kernel

    iface, mac_chain = _chains(ref)
    old = [name for name in (iface, mac_chain) if _TABLE.has_chain(name)]
    # a jump keeps its chain from being deleted, so without the chain no jump has to be replaced
    stale = _jumps(ref) if iface in old else []
    from_link = [kernel.meta(uapi.NFT_META_IIFNAME), kernel.compare(nft.link_name(host_ifname))]
    from_mac = [
        kernel.payload(uapi.NFT_PAYLOAD_LL_HEADER, *_SOURCE_MAC),
        kernel.compare(link.parse_mac(mac)),
    ]
    jump = kernel.new_rule(_TABLE, _BASE, [*from_link, kernel.jump(iface)], f"{_COMMENT}{ref}")
    rules = [
        (iface, [kernel.jump(mac_chain)]),
        (mac_chain, [*from_mac, kernel.verdict(uapi.NFT_RETURN)]),
        (mac_chain, [kernel.verdict(uapi.NF_DROP)]),
    ]
    # no policy: that of an existing chain stays; the kernel's default is accept
    base = kernel.new_base_chain(_TABLE, _BASE, "prerouting", "filter", -300)
    return [
        kernel.new_table(_TABLE),
        *(() if _TABLE.has_base_chain(base) else (base,)),
        *(kernel.new_chain(_TABLE, name) for name in (iface, mac_chain) if name not in old),
        *(_TABLE.without_rules(name) for name in old),
        *(_TABLE.without_rule(_BASE, number) for number in stale),
        nft.echoed(jump),
        *(kernel.new_rule(_TABLE, chain, rule, f"{_COMMENT}{ref}") for chain, rule in rules),
    ]
