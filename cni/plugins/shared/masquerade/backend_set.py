"""Masquerading with sets of nftables (`ipMasqSet`): a thousand containers need no more rules than
one (docs/plugins/bridge.md).

    table inet cni_masquerade
      map by_owner       owner's key . number : address . prefix length
      set addresses4     the containers' addresses, each with its owner as comment
      set inside4_16     address . its subnet, for each prefix length (here 16) a set; the same
      map outbound4      instead of addresses4, for `outboundAddr`: address : the one to leave under
      chain postrouting  hook: not for multicast, not inside of the subnet; else, from one of the
                         addresses: the source that outbound4 has for it, or masquerade

and the same for IPv6. The maps outbound… are made for the first attachment that needs them. One
transaction adds all elements of an attachment, and one deletes them. So by_owner always tells all
elements of an owner, also after a kill, and no set has to be listed. In by_owner IPv4 addresses are
mapped to IPv6 (::ffff:10.1.2.3), and the prefix length of addresses in a map outbound… is increased
by 256.

An address has one owner: the last one whose ADD had it.

Longer than 400 lines: every verb reads or writes the table above.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from ....kernel.errors import NetlinkError, Unusable
from ....netfilter import elements, nft, uapi
from ....netfilter.elements import Element
from ....netfilter.table import Table
from ....owner import Owner, network_key
from ....protocol.address import Prefix
from ....protocol.errors import CNIError
from . import ANY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from ....netfilter.nft import Change
    from . import Outbound

TABLE = Table("inet", "cni_masquerade")
BY_OWNER, CHAIN = "by_owner", "postrouting"
_COMMENT = "CNI masquerading"
_KEY = "mark . mark . mark . mark . mark"
_VALUE = "ipv6_addr . mark"
_MAPPED = bytes(10) + b"\xff\xff"  # prefix of an IPv4-mapped IPv6 address
_NUMBER = 4  # bytes of the number in a key of by_owner, and of a prefix length
_FIXED = 256  # is added to a prefix length in by_owner, for an address in a map outbound…
_RUN = 15  # an owner's addresses asked for at once
_MULTICAST = Prefix.parse("224.0.0.0/4"), Prefix.parse("ff00::/8")


class _Kind(NamedTuple):
    """The addresses of a family with one prefix length; with _FIXED as length, those in its map."""

    is_v4: bool
    length: int

    @property
    def inside(self) -> str:
        """The set of addresses with their subnets, or the map of fixed sources.

        Its rule has the same name as comment.
        """
        if self.length == _FIXED:
            return _outbound(self.is_v4)
        return f"inside{4 if self.is_v4 else 6}_{self.length}"


def _addresses(is_v4: bool) -> str:
    return "addresses4" if is_v4 else "addresses6"


def _outbound(is_v4: bool) -> str:
    return "outbound4" if is_v4 else "outbound6"


# --- the verbs ------------------------------------------------------------------------------------


def setup(
    owner: Owner, prefixes: list[Prefix], *, first: bool = False, outbound: Outbound = ANY
) -> list[int]:
    """Masquerade these addresses, in place of the owner's old ones. Raises CNIError."""
    _ = first  # the owner's old elements are found without a list

    def plan() -> list[Change]:
        comments = _rules()
        missing = _missing_kinds(comments, prefixes, outbound)
        shared = [] if missing is None else _skeleton(missing)
        had, wanted = _listed(owner), _elements(owner, prefixes, outbound)
        # `put` looks which elements with the wanted keys have to be replaced
        kept = {name: {item.key for item in items} for name, items in wanted.items()}
        values = [element.value for element in had]
        changes = [*shared, *_removals_of({owner.key: values}, kept)]
        for is_v4 in (True, False):
            if _outbound(is_v4) in comments:
                changes += _superseded(owner, is_v4, prefixes, kept)
        changes += elements.replace(TABLE, BY_OWNER, had, wanted.pop(BY_OWNER))
        for name, items in wanted.items():
            changes += elements.put(TABLE, name, items)
        return changes

    try:
        nft.settle(plan)
    except NetlinkError as error:
        text = f"failed to set up masquerading with a set of nftables: {error}"
        raise CNIError(text, error.details or nft.UNUSABLE) from None
    return []


def teardown(
    owner: Owner,
    mine: list[Prefix],
    others: Callable[[], list[Prefix]],
    handles: Sequence[int] = (),
) -> None:
    """Remove the owner's elements: the key tells interfaces apart. Raises CNIError."""
    _ = mine, others, handles
    _remove(lambda: _listed(owner))


def gc(network: str, keep: list[Owner]) -> None:
    """Remove the elements of the network's attachments that are not in `keep`. Raises CNIError."""
    prefix, kept = f"{network_key(network)}-", {owner.key for owner in keep}

    _remove(lambda: elements.unwanted(elements.dump(TABLE, BY_OWNER), prefix, kept))


def check(
    owner: Owner,
    prefixes: list[Prefix],
    handles: Sequence[int] = (),
    outbound: Outbound = ANY,
) -> dict[Prefix, list[str]]:
    """The addresses that are not masqueraded, each with the sets that it is in. Never fails."""
    _ = handles
    try:
        if _missing_kinds(_rules(), prefixes, outbound) is not None:
            return {prefix: [] for prefix in prefixes}
        items = {each: _items(owner, each, outbound.get(each.is_v4, b"")) for each in prefixes}
        have = {
            prefix: [name for name, item in wanted if _has(owner, name, item)]
            for prefix, wanted in items.items()
        }
    except NetlinkError:
        return {prefix: [] for prefix in prefixes}
    return {prefix: names for prefix, names in have.items() if len(names) < 2}


def _has(owner: Owner, name: str, wanted: Element) -> bool:
    element = elements.find(TABLE, name, wanted.key)
    return (
        element is not None
        and element.comment.startswith(owner.key)
        and element.value == wanted.value
    )


# --- elements -------------------------------------------------------------------------------------


def _elements(
    owner: Owner, prefixes: Iterable[Prefix], outbound: Outbound
) -> dict[str, list[Element]]:
    """The elements of an owner's addresses, by the name of their map or set."""
    wanted: dict[str, list[Element]] = {BY_OWNER: []}
    for number, prefix in enumerate(dict.fromkeys(prefixes)):
        fixed = outbound.get(prefix.is_v4, b"")
        value = _as_v6(prefix.ip) + _native(prefix.length + (_FIXED if fixed else 0))
        key = _words(owner.key) + _native(number)
        wanted[BY_OWNER].append(Element(key, value, "", owner.comment))
        for name, item in _items(owner, prefix, fixed):
            wanted.setdefault(name, []).append(item)
    return {name: list(dict.fromkeys(items)) for name, items in wanted.items()}


def _items(owner: Owner, prefix: Prefix, fixed: bytes) -> list[tuple[str, Element]]:
    """The elements of an address; `fixed` is the one that it leaves under, if that is fixed."""
    kind = _Kind(prefix.is_v4, prefix.length)
    name = _outbound(prefix.is_v4) if fixed else _addresses(prefix.is_v4)
    return [
        (name, Element(prefix.ip, fixed, "", owner.comment)),
        (kind.inside, Element(prefix.ip + prefix.network.ip, b"", "", owner.comment)),
    ]


def _listed(owner: Owner) -> list[Element]:
    """The elements of by_owner for an owner."""
    listed: list[Element] = []
    words = _words(owner.key)
    while True:
        numbers = range(len(listed), len(listed) + _RUN)
        run = elements.find_run(TABLE, BY_OWNER, [words + _native(number) for number in numbers])
        listed += run
        if len(run) < _RUN:
            return listed


def _remove(find: Callable[[], list[Element]]) -> None:
    """Remove elements of by_owner, and the elements that they index, in one transaction."""

    def plan() -> list[Change]:
        gone = find()
        changes = [*elements.remove(TABLE, BY_OWNER, gone)]
        by_owner = groupby(sorted(gone, key=_key_in), key=_key_in)
        owned = {owner: [element.value for element in items] for owner, items in by_owner}
        return changes + _removals_of(owned, {})

    try:
        nft.settle(plan)
    except NetlinkError as error:
        if isinstance(nft.judged(error), Unusable):
            return
        raise CNIError(f"failed to remove masquerading with a set of nftables: {error}") from None


def _removals_of(
    owned: Mapping[str, Sequence[bytes]], kept: Mapping[str, Collection[bytes]]
) -> list[Change]:
    """Changes that remove the elements that these values of by_owner index.

    `owned` maps each owner's key to its values. Elements that have another owner by now stay, and
    so do those with a key in `kept`, which has the keys of each set and map.
    """
    wanted: dict[str, dict[bytes, str]] = {}
    for owner, values in owned.items():
        for value in values:
            is_fixed = _from_native(value[-_NUMBER:]) >= _FIXED
            prefix = prefix_of(value)
            for name, item in _items(Owner("", "", ""), prefix, prefix.ip if is_fixed else b""):
                wanted.setdefault(name, {})[item.key] = owner
    changes: list[Change] = []
    for name, owners in wanted.items():
        if len(owners) <= _RUN:
            have = elements.find_all(TABLE, name, sorted(owners))
        else:  # of a GC
            have = elements.elements(TABLE, name)
        gone = [
            element
            for element in have
            if element.key in owners
            and element.key not in kept.get(name, ())
            and element.comment.startswith(owners[element.key])
        ]
        changes += elements.remove(TABLE, name, gone)
    return changes


def _superseded(
    owner: Owner, is_v4: bool, prefixes: list[Prefix], kept: Mapping[str, Collection[bytes]]
) -> list[Change]:
    """What takes others' elements out of the map of fixed sources, which the kernel asks first.

    Those with a key in `kept` stay, as in `_removals_of`.
    """
    keys = {prefix.ip for prefix in prefixes if prefix.is_v4 == is_v4}
    have = elements.find_all(
        TABLE, _outbound(is_v4), sorted(keys - set(kept.get(_outbound(is_v4), ())))
    )
    theirs = [element for element in have if not element.comment.startswith(owner.key)]
    return [*elements.remove(TABLE, _outbound(is_v4), theirs)]


def prefix_of(value: bytes) -> Prefix:
    """The address in a value of by_owner."""
    packed, length = value[:-_NUMBER], value[-_NUMBER:]
    is_v4 = packed.startswith(_MAPPED)
    return Prefix(packed[len(_MAPPED) :] if is_v4 else packed, _from_native(length) % _FIXED)


def _as_v6(ip: bytes) -> bytes:
    return _MAPPED + ip if len(ip) == 4 else ip


def _key_in(element: Element) -> str:
    """The owner's key in the comment of an element."""
    return element.comment.partition(",")[0]


def _words(key: str) -> bytes:
    """An owner's key as four numbers, which nft(8) shows with the same digits."""
    digits = key.replace("-", "")
    return b"".join(_native(int(digits[at : at + 8], 16)) for at in range(0, len(digits), 8))


def _native(value: int) -> bytes:
    from ....netfilter.expressions import native

    return native(value)


def _from_native(data: bytes) -> int:
    import sys

    return int.from_bytes(data, sys.byteorder)


# --- the shared part ------------------------------------------------------------------------------


def _rules() -> list[str]:
    """The comments of the chain's rules. Raises NetlinkError."""
    return [rule.comment for rule in TABLE.find_rules_with(CHAIN, b"")]


def _missing_kinds(
    comments: list[str], prefixes: list[Prefix], outbound: Outbound
) -> list[_Kind] | None:
    """None if the chain has the rules for these addresses; else all kinds that it needs."""
    wanted = {_Kind(prefix.is_v4, prefix.length) for prefix in prefixes}
    wanted |= {_Kind(prefix.is_v4, _FIXED) for prefix in prefixes if prefix.is_v4 in outbound}
    there = {kind for comment in comments if (kind := _kind_named(comment)) is not None}
    kinds = sorted(wanted | there, reverse=True)
    return None if wanted <= there and comments == _comments(kinds) else kinds


def _kind_named(comment: str) -> _Kind | None:
    for is_v4 in (True, False):
        if comment == _outbound(is_v4):
            return _Kind(is_v4, _FIXED)
    head, _, length = comment.partition("_")
    if head not in ("inside4", "inside6") or not length.isdecimal():
        return None
    return _Kind(head == "inside4", int(length))


def _comments(kinds: list[_Kind]) -> list[str]:
    """The comments of the chain's rules, in their order."""
    inside = [kind.inside for kind in _inside(kinds)]
    fixed = [kind.inside for kind in _fixed(kinds)]
    return ["multicast", "multicast", *inside, *fixed, _addresses(True), _addresses(False)]


def _inside(kinds: list[_Kind]) -> list[_Kind]:
    return [kind for kind in kinds if kind.length != _FIXED]


def _fixed(kinds: list[_Kind]) -> list[_Kind]:
    return [kind for kind in kinds if kind.length == _FIXED]


def _skeleton(kinds: list[_Kind]) -> list[Change]:
    """Changes that make the table and its shared parts, and fill the chain anew."""
    from ....netfilter import expressions as kernel

    accept = kernel.verdict(uapi.NFT_RETURN)
    rules = [
        [kernel.nfproto(prefix.is_v4), kernel.destination(prefix), accept] for prefix in _MULTICAST
    ]
    rules += [[*_load_pair(kind), kernel.lookup(kind.inside), accept] for kind in _inside(kinds)]
    rules += [
        [
            _load_source(kind.is_v4),
            kernel.lookup(kind.inside, into=uapi.NFT_REG_1),
            kernel.snat(kind.is_v4),
        ]
        for kind in _fixed(kinds)
    ]
    rules += [
        [_load_source(is_v4), kernel.lookup(_addresses(is_v4)), kernel.masquerade()]
        for is_v4 in (True, False)
    ]
    sets: list[tuple[str, str, str | None]] = [(BY_OWNER, _KEY, _VALUE)]
    for is_v4 in (True, False):
        sets.append((_addresses(is_v4), _type(is_v4), None))
    for kind in _fixed(kinds):
        sets.append((kind.inside, _type(kind.is_v4), _type(kind.is_v4)))
    for kind in _inside(kinds):
        sets.append((kind.inside, f"{_type(kind.is_v4)} . {_type(kind.is_v4)}", None))
    return [
        kernel.new_table(TABLE, _COMMENT),
        *(
            kernel.new_set(TABLE, name, number, key, value)
            for number, (name, key, value) in enumerate(sets, 1)
        ),
        kernel.new_base_chain(TABLE, CHAIN, "postrouting", "nat", 100),
        TABLE.without_rules(CHAIN),
        *(
            kernel.new_rule(TABLE, CHAIN, rule, comment)
            for rule, comment in zip(rules, _comments(kinds), strict=True)
        ),
    ]


def _type(is_v4: bool) -> str:
    return "ipv4_addr" if is_v4 else "ipv6_addr"


def _load_source(is_v4: bool) -> bytes:
    from ....netfilter import expressions as kernel

    offset, size = (12, 4) if is_v4 else (8, 16)
    header = uapi.NFT_PAYLOAD_NETWORK_HEADER
    return kernel.nfproto(is_v4) + kernel.payload(header, offset, size)


def _load_pair(kind: _Kind) -> list[bytes]:
    """Load the source, and beside it the subnet that the destination would be in."""
    from ....netfilter import expressions as kernel

    offset, size = (16, 4) if kind.is_v4 else (24, 16)
    register = uapi.NFT_REG32_01 if kind.is_v4 else uapi.NFT_REG_2
    ones = (1 << kind.length) - 1 << size * 8 - kind.length
    return [
        _load_source(kind.is_v4),
        kernel.payload(uapi.NFT_PAYLOAD_NETWORK_HEADER, offset, size, register),
        kernel.bitwise(ones.to_bytes(size, "big"), bytes(size), register),
    ]
