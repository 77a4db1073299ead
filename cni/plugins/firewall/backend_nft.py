"""The firewall plugin without iptables: a table of our own, which the reference does not have.

    table inet cni_firewall
      set allowed4, allowed6   the containers' addresses, each with its owner as comment
      set bridges              bridges with an ingress policy, with their network as comment
      set within               bridge . bridge, where that policy is same-bridge
      chain forward            priority filter: isolation, the administrators' chains, the sets
      chain admin              a jump to each administrator's chain

One transaction makes an attachment's elements. If the shared part is incomplete, the transaction
makes that anew, too. The chain's policy stays as it is: the administrator may make it `drop`. A
packet takes the same number of lookups however many containers there are. DEL and GC find elements
by their owner.

An accept ends only our own chain: what another table drops stays dropped
(docs/plugins/firewall.md).
"""

from __future__ import annotations

from collections.abc import Collection

from ...kernel.errors import NetlinkError, Unusable
from ...netfilter import elements, nft
from ...netfilter.elements import Element
from ...netfilter.nft import Change
from ...netfilter.table import Table
from ...owner import Owner, network_key
from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError
from .want import Ingress, Want, gone

TABLE = "cni_firewall"
_TABLE = Table("inet", TABLE)
_ALLOWED = {False: "allowed4", True: "allowed6"}
SETS = tuple(_ALLOWED.values())
_MARK = "CNI firewall plugin rules"
# How the kernel lists the forward chain's rules: their comment, and each one's expression count.
_SHAPE = [(_MARK, expressions) for expressions in (8, 1, 8, 8, 5, 5)]


def setup(want: Want, *, accept: bool = True) -> None:
    """Make the missing rules. Without `accept`, only those of the ingress policy.

    Raises CNIError; then nothing was changed.
    """
    admin_chain = want.admin_chain if accept else ""

    def plan() -> list[Change]:
        return [*_shared(), *_admin(admin_chain), *_changes(want, accept)]

    try:
        nft.settle(plan)
    except NetlinkError as error:
        text = f"failed to set up firewall rules with nftables: {error}"
        raise CNIError(text, error.details or nft.UNUSABLE) from None


def _shared() -> list[Change]:
    """Changes that make the shared part; [] if the forward chain's rules are complete.

    Complete rules imply that the sets and chains exist to which they refer.
    """
    rules = _TABLE.find_rules_with("forward", b"")
    if [(rule.comment, rule.size) for rule in rules] == _SHAPE:
        return []
    from . import nft_chains

    return nft_chains.skeleton(_TABLE, _ALLOWED, _MARK)


def _admin(chain: str) -> list[Change]:
    """Changes that make the administrator's chain and the jump to it, if they are missing."""
    if not chain or _has_jump(chain):
        return []
    from . import nft_chains

    return nft_chains.admin(_TABLE, chain)


def _has_jump(chain: str) -> bool:
    rules = _TABLE.find_rules_with("admin", chain.encode("utf-8", "surrogateescape"))
    return any(rule.leads_to == chain for rule in rules)


def _changes(want: Want, accept: bool) -> list[Change]:
    """Changes after which the sets have the attachment's elements. Raises NetlinkError."""
    changes: list[Change] = []
    for v6, addresses in want.families if accept else ():
        # `put`, since an address may still have the element of its former owner
        items = [Element(address.ip, b"", "", want.owner.comment) for address in addresses]
        changes += elements.put(_TABLE, _ALLOWED[v6], items)
    if want.ingress is not None:
        bridge, comment = nft.link_name(want.ingress.bridge), _network_comment(want.owner.network)
        changes += elements.put(_TABLE, "bridges", [Element(bridge, b"", "", comment)])
        if want.ingress.isolated:
            changes += elements.without(_TABLE, "within", [bridge * 2])
        else:
            changes += elements.put(_TABLE, "within", [Element(bridge * 2, b"", "", comment)])
    return changes


def _network_comment(network: str) -> str:
    """The comment of elements that a network's containers share, cut to the kernel's limit."""
    # nft(8) has no way to write a quotation mark in a comment
    return f"{network_key(network)}, net: {network.replace(chr(34), '')}"[:128]


def check(want: Want, *, accept: bool = True) -> list[str]:
    """What is missing, a line each."""
    try:
        return _differences(want, accept)
    except NetlinkError as error:
        return [f"nftables cannot be read: {error}"]


def _differences(want: Want, accept: bool) -> list[str]:
    where = f"inet {TABLE}"
    problems = []
    rules = _TABLE.find_rules("forward", _MARK)
    if len(rules) != len(_SHAPE):
        text = f"chain {where} forward: want its {len(_SHAPE)} rules, have {len(rules)}"
        problems.append(gone(text))
    if accept and not _has_jump(want.admin_chain):
        problems.append(gone(f"chain {where} admin: no jump to {want.admin_chain}"))
    for v6, addresses in want.families if accept else ():
        keys = [address.ip for address in addresses]
        owners = {e.key: e.comment for e in elements.find_all(_TABLE, _ALLOWED[v6], keys)}
        for address in addresses:
            have = owners.get(address.ip)
            if have is None:
                problems.append(
                    gone(f"set {where} {_ALLOWED[v6]}: {format_ip(address.ip)} is not in it")
                )
            elif have != want.owner.comment:
                text = (
                    f"{format_ip(address.ip)} is another's: want {want.owner.comment}, have {have}"
                )
                problems.append(f"set {where} {_ALLOWED[v6]}: {text}")
    return problems + (_isolation_differences(want.ingress) if want.ingress else [])


def _isolation_differences(ingress: Ingress) -> list[str]:
    name = nft.link_name(ingress.bridge)
    problems = []
    if elements.find(_TABLE, "bridges", name) is None:
        problems.append(gone(f"set inet {TABLE} bridges: {ingress.bridge} is not in it"))
    if (elements.find(_TABLE, "within", name * 2) is not None) == ingress.isolated:
        is_there = "is" if ingress.isolated else "is not"
        text = f"{ingress.bridge} {is_there} in it, and the policy is {ingress.policy}"
        problems.append(gone(f"set inet {TABLE} within: {text}"))
    return problems


def teardown(owner: Owner, addresses: list[Prefix], zone: str) -> None:
    """Remove the attachment's elements; the bridge's policy stays. Raises CNIError.

    ADD notes its addresses before it makes elements. If all of them are in the sets, the owner has
    no others, and the sets need not be listed.
    """
    _ = zone
    if not _delete_known(owner, addresses):
        _delete(SETS, owner.key, ())


def _delete_known(owner: Owner, addresses: list[Prefix]) -> bool:
    """Delete these addresses' elements if all exist and are the owner's; else False."""
    changes: list[Change] = []
    try:
        for v6, name in _ALLOWED.items():
            keys = sorted({address.ip for address in addresses if address.is_v4 != v6})
            have = elements.find_all(_TABLE, name, keys)
            if len(have) != len(keys) or not all(e.comment.startswith(owner.key) for e in have):
                return False
            changes += elements.remove(_TABLE, name, have)
        nft.transact(changes)
    except NetlinkError:
        return False  # the caller lists the sets
    return bool(changes)


def gc(network: str, keep: list[Owner], addresses: list[Prefix], zone: str) -> None:
    """Remove the elements of the network's attachments that are not in `keep`.

    If none is kept, the policies of the network's bridges go, too. Raises CNIError.
    """
    _ = addresses, zone
    _delete(SETS, f"{network_key(network)}-", {owner.key for owner in keep})
    if not keep:
        _delete(("bridges", "within"), f"{network_key(network)}, ", ())


def _delete(names: tuple[str, ...], prefix: str, keep: Collection[str]) -> None:
    try:
        for name in names:
            elements.delete_matching(_TABLE, name, prefix, keep)
    except Unusable:
        return  # without nf_tables there are no elements
    except NetlinkError as error:
        raise CNIError(f"failed to remove firewall rules with nftables: {error}") from None


def status() -> None:
    """Raise CNIError if the kernel has no nftables for us."""
    try:
        _TABLE.has_chain("forward")
    except NetlinkError as error:
        raise CNIError(f"the kernel has no nftables for us: {error}", nft.UNUSABLE) from None
