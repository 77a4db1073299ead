"""The firewall plugin without iptables: a table of our own, which the reference does not have.

    table inet cni_firewall
      set allowed4, allowed6   the containers' addresses, each with its owner as comment
      set bridges              bridges with an ingress policy, with their network as comment
      set within               bridge . bridge, where that policy is same-bridge
      chain forward            priority filter: isolation, the administrators' chains, the sets
      chain admin              a jump to each administrator's chain

One transaction makes an attachment's part and, where that is not as it should be, all that is
shared, whatever was there before. The policy of the chain is left alone: the administrator may make
it `drop`. A packet costs the same lookups however many containers there are. What is removed
is found by its owner.

An accept ends only our own chain: what another table drops stays dropped
(docs/plugins/firewall.md).
"""

from __future__ import annotations

from collections.abc import Collection

from ...kernel.errors import NetlinkError, NftError, Unusable
from ...netfilter import elements, nft
from ...netfilter.elements import Element
from ...netfilter.nft import Change
from ...netfilter.table import Table
from ...owner import Owner, network_key
from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError
from .want import Ingress, Want, gone

TABLE = "cni_firewall"
_ALLOWED = {False: "allowed4", True: "allowed6"}
_MARK = "CNI firewall plugin rules"
_RULES = (
    "iifname @bridges oifname @bridges iifname . oifname != @within drop",
    "jump admin",
    "ct state established,related ip daddr @allowed4 accept",
    "ct state established,related ip6 daddr @allowed6 accept",
    "ip saddr @allowed4 accept",
    "ip6 saddr @allowed6 accept",
)
_SKELETON = "".join(
    (
        f'add table inet {TABLE} {{ comment "{_MARK}"; }}\n',
        f"add set inet {TABLE} allowed4 {{ type ipv4_addr; }}\n",
        f"add set inet {TABLE} allowed6 {{ type ipv6_addr; }}\n",
        f"add set inet {TABLE} bridges {{ type ifname; }}\n",
        f"add set inet {TABLE} within {{ type ifname . ifname; }}\n",
        f"add chain inet {TABLE} admin\n",
        f"add chain inet {TABLE} forward {{ type filter hook forward priority filter; }}\n",
        f"flush chain inet {TABLE} forward\n",
        *(f'add rule inet {TABLE} forward {rule} comment "{_MARK}"\n' for rule in _RULES),
    )
)
# How they look in the kernel: the comment and the number of expressions of each.
_SHAPE = [(_MARK, expressions) for expressions in (8, 1, 8, 8, 5, 5)]
_IFNAME = 16  # bytes of an interface's name in a key


def setup(want: Want, *, accept: bool = True) -> None:
    """Have the rules; those that are there stay. Without `accept` only the ingress policy's.

    Raises CNIError; then nothing was changed.
    """
    if not _add_elements(want, accept):
        _render(want, accept)


def _add_elements(want: Want, accept: bool) -> bool:
    """Add the elements where the rest is as it should be; False if it is not, or cannot be seen.

    Libnftables, which would read every table and link first, is not needed for that.
    """
    changes = [
        change
        for name, element, wanted in _elements(want, accept)
        for change in _change(name, element, wanted)
    ]
    admin_chain = want.admin_chain if accept else ""
    # where it is not complete, or the kernel refuses, libnftables makes it or says what is wrong
    return nft.attempt(lambda: changes if _is_complete(admin_chain) else None)


def _change(name: str, element: Element, wanted: bool) -> list[Change]:
    """Have the element with this comment instead of any other, or not have the element."""
    changes = [*elements.put(Table("inet", TABLE), name, [element])]
    return changes if wanted else changes[:2]


def _is_complete(admin_chain: str) -> bool:
    """Are the forward chain's rules as they should be, and is there a jump to this chain?

    Then the sets that the rules refer to are there, too.
    """
    rules = Table("inet", TABLE).find_rules_with("forward", b"")
    if [(rule.comment, rule.size) for rule in rules] != _SHAPE:
        return False
    return not admin_chain or _has_jump(admin_chain)


def _elements(want: Want, accept: bool) -> list[tuple[str, Element, bool]]:
    """The attachment's elements: (set, element, whether it is wanted)."""
    comment = want.owner.comment
    needed = [
        (_ALLOWED[not a.is_v4], Element(a.ip, b"", "", comment), True)
        for a in (want.addresses if accept else ())
    ]
    if want.ingress is not None:
        bridge, comment = _padded(want.ingress.bridge), _network_comment(want.owner.network)
        needed.append(("bridges", Element(bridge, b"", "", comment), True))
        within = Element(bridge * 2, b"", "", comment)
        needed.append(("within", within, not want.ingress.isolated))
    return needed


def _padded(ifname: str) -> bytes:
    return ifname.encode().ljust(_IFNAME, b"\0")


def _render(want: Want, accept: bool) -> None:
    """Make everything by libnftables."""
    script = _SKELETON
    if accept:
        script += "".join(
            _element(_ALLOWED[not a.is_v4], _key(a), want.owner.comment) for a in want.addresses
        )
        script += _admin(want.admin_chain)
    if want.ingress is not None:
        script += _isolation(want.ingress, want.owner.network)
    try:
        nft.shared().run_text(script)
    except NftError as error:
        raise CNIError(f"failed to set up firewall rules with nftables: {error.msg}") from None


def _key(address: Prefix) -> str:
    return format_ip(address.ip)


def _element(name: str, key: str, comment: str) -> str:
    """As `_change`, for an element that is wanted."""
    where = f"inet {TABLE} {name}"
    return (
        f"add element {where} {{ {key} }}\n"
        f"delete element {where} {{ {key} }}\n"
        f'add element {where} {{ {key} comment "{comment}" }}\n'
    )


def _admin(chain: str) -> str:
    script = f"add chain inet {TABLE} {chain}\n"
    if not _has_jump(chain):
        script += f"add rule inet {TABLE} admin jump {chain}\n"
    return script


def _has_jump(chain: str) -> bool:
    try:
        return bool(Table("inet", TABLE).find_rules_with("admin", f"{chain}\0".encode()))
    except NetlinkError:
        return False


def _isolation(ingress: Ingress, network: str) -> str:
    comment = _network_comment(network)
    pair = f'"{ingress.bridge}" . "{ingress.bridge}"'
    within = _element("within", pair, comment)
    if ingress.isolated:
        within = "".join(within.splitlines(keepends=True)[:2])
    return _element("bridges", f'"{ingress.bridge}"', comment) + within


def _network_comment(network: str) -> str:
    """The comment of what all containers of a network share, cut to the kernel's limit."""
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
    rules = Table("inet", TABLE).find_rules("forward", _MARK)
    if len(rules) != len(_RULES):
        text = f"chain {where} forward: want its {len(_RULES)} rules, have {len(rules)}"
        problems.append(gone(text))
    if accept and not _has_jump(want.admin_chain):
        problems.append(gone(f"chain {where} admin: no jump to {want.admin_chain}"))
    for v6, addresses in want.families if accept else ():
        owners = {e.key: e.comment for e in elements.elements(Table("inet", TABLE), _ALLOWED[v6])}
        for address in addresses:
            have = owners.get(address.ip)
            if have is None:
                problems.append(gone(f"set {where} {_ALLOWED[v6]}: {_key(address)} is not in it"))
            elif have != want.owner.comment:
                text = f"{_key(address)} is another's: want {want.owner.comment}, have {have}"
                problems.append(f"set {where} {_ALLOWED[v6]}: {text}")
    return problems + (_isolation_differences(want.ingress) if want.ingress else [])


def _isolation_differences(ingress: Ingress) -> list[str]:
    name = _padded(ingress.bridge)
    problems = []
    if name not in _keys("bridges"):
        problems.append(gone(f"set inet {TABLE} bridges: {ingress.bridge} is not in it"))
    if (name * 2 in _keys("within")) == ingress.isolated:
        is_there = "is" if ingress.isolated else "is not"
        text = f"{ingress.bridge} {is_there} in it, and the policy is {ingress.policy}"
        problems.append(gone(f"set inet {TABLE} within: {text}"))
    return problems


def _keys(name: str) -> set[bytes]:
    return {element.key for element in elements.elements(Table("inet", TABLE), name)}


def teardown(owner: Owner, addresses: list[Prefix], zone: str) -> None:
    """Remove the attachment's elements; the bridge's policy stays. Raises CNIError."""
    _ = addresses, zone  # the comments name the owner
    _delete(tuple(_ALLOWED.values()), owner.key, ())


def gc(network: str, keep: list[Owner], addresses: list[Prefix], zone: str) -> None:
    """Remove the elements of the network's attachments that are not in `keep`.

    If none is kept, the policies of the network's bridges go, too. Raises CNIError.
    """
    _ = addresses, zone
    comments = {owner.comment for owner in keep}
    _delete(tuple(_ALLOWED.values()), f"{network_key(network)}-", comments)
    if not keep:
        _delete(("bridges", "within"), f"{network_key(network)}, ", ())


def _delete(names: tuple[str, ...], prefix: str, keep: Collection[str]) -> None:
    try:
        for name in names:
            elements.delete_matching(Table("inet", TABLE), name, prefix, keep)
    except Unusable:
        return  # without nf_tables there are no elements
    except NetlinkError as error:
        raise CNIError(f"failed to remove firewall rules with nftables: {error}") from None


def status() -> None:
    """Raises CNIError if the library or the kernel's nftables is missing."""
    nft.shared()
    try:
        Table("inet", TABLE).has_chain("forward")
    except NetlinkError as error:
        raise CNIError(f"the kernel has no nftables for us: {error}") from None
