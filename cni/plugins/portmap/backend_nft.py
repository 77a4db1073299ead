"""portmap with nftables: maps, so that a packet costs few lookups however many ports there are.

In the reference's tables (`ip` and `ip6`, `cni_hostport`), beside its chains, so that containers
started by either plugin coexist:

    published_prerouting, published_output   what is for an address of the node: to published_lookup
    published_lookup                         host IP, protocol and port: vmap @published_at; or
                                             protocol and port: vmap @published
    net-<hash>                               marks what has to be masqueraded, dnat to map @targets
    net-<hash>-at                            the same for @published_at, with map @targets_at
    masquerade_<mark>                        masquerades what is marked
    published_guard                          drops what is not the node's own and for 127.0.0.0/8

All containers with the same subnet and options share a net- chain, so that a network's options
(conditions, masqAll, the mark) apply to its containers only. A container itself has only elements
of the maps, with its owner in the comment: so the kernel answers EEXIST for a port that is taken,
and each further container takes one small transaction. An index tells which elements a container
has (nft_index.py). A network's conditions are in the language of nft(8): that program makes the
chains of such a network, before the transaction with the elements.

A transaction names the generation of the ruleset that it was computed from. If the ruleset has
changed since, the kernel refuses, and it is computed again.

Longer than 400 lines: ADD, DEL and GC must name the same elements, which is easiest to verify in
one place. Everything separable has a module of its own (nft_*.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EEXIST, ENOENT
from typing import NamedTuple

from ...call import Steps
from ...kernel.errors import KernelError, NetlinkError, Unusable
from ...netfilter import elements as nft_elements
from ...netfilter import nft
from ...netfilter.nft import Change
from ...netfilter.table import Table
from ...owner import Owner, network_key
from ...protocol.address import Prefix
from ...protocol.errors import CNIError, from_exception
from . import nft_index as index
from .nft_chains import (
    BY_ADDRESS,
    BY_OWNER,
    FAMILIES,
    INDEX,
    KEY,
    MAPS,
    NAMES,
    NETWORK_CHAIN,
    OWN_CHAINS,
    REFERENCE_CHAIN,
    TABLE,
    Chain,
    chains,
    elements,
    family_of,
    incomplete,
    is_known,
    key_of,
    port_of,
    rule_counts,
    sets,
    skeleton,
    without,
)
from .nft_index import Elements
from .want import LoadHolders, Port, Taken, Want, plain

_RETRIES = 50


# --- ADD ------------------------------------------------------------------------------------------


def setup(want: Want, holders: LoadHolders, earlier: Want | None) -> list[int]:
    """Publish the ports, in place of those that the owner published before. Returns no handles.

    Raises CNIError ``unable to set up nftables rules for port mappings: …`` or Taken.
    """
    text = "unable to set up nftables rules for port mappings: "
    try:
        _setup_or_undo(want, holders, thorough=earlier is not None)
    except Taken:
        raise
    except NetlinkError as error:
        raise CNIError(f"{text}{error}", error.details or nft.UNUSABLE) from None
    except (CNIError, KernelError) as error:
        raise from_exception(error).wrapped(text) from None
    return []


class _Others(NamedTuple):
    """Other owners: `dead` are keys of those to replace, `aside` are the (family, key) of elements
    that another attachment of the same container has.
    """

    dead: frozenset[str] = frozenset()
    aside: frozenset[tuple[str, bytes]] = frozenset()


def _setup_or_undo(want: Want, holders: LoadHolders, *, thorough: bool) -> None:
    """Run `_setup`; if it fails, also remove the chains that nft made for it."""
    made: list[Chain] = []
    try:
        _setup(want, holders, made, thorough=thorough)
    except BaseException:
        if made:
            from . import nft_conditions

            nft_conditions.unmake(made)
        raise


def _setup(want: Want, holders: LoadHolders, made: list[Chain], *, thorough: bool) -> None:
    """As `setup`. `thorough` reads all elements, since earlier builds kept no index.

    Chains that need a transaction of their own are appended to `made` before that is sent.
    """
    others = _Others()
    for _ in range(_RETRIES):
        # before all that is read: the kernel refuses the changes if any of that has changed since
        since = nft.generation()
        if others.aside:
            from . import nft_holders

            aside = nft_holders.still_aside(want, holders())
            others = others._replace(aside=frozenset(aside))
        missing, changes = _plan(want, holders, others, thorough)
        if not is_known(missing):
            from . import nft_conditions

            made += missing
            # the program's transaction changes the generation, so everything is planned again
            nft_conditions.make(missing)
            continue
        try:
            nft.transact(changes, since)
            return
        except NetlinkError as error:
            if error.errno not in (nft.ERESTART, EEXIST, ENOENT):
                raise
            if error.errno == nft.ERESTART:
                continue
            seen = _judge(want, holders, others) if error.errno == EEXIST else others
            if seen != others:
                others = seen
            elif error.errno == EEXIST and not thorough:
                thorough = True  # this owner's or a dead one's element, not in the index
            elif nft.generation() == since:
                raise  # nothing has changed meanwhile, so it would fail again
    raise _restless()


def _judge(want: Want, holders: LoadHolders, others: _Others) -> _Others:
    from . import nft_holders

    verdict = nft_holders.judge(want, holders())
    return _Others(others.dead | verdict.dead, frozenset(verdict.aside))


def _plan(
    want: Want, holders: LoadHolders, others: _Others, thorough: bool
) -> tuple[list[Chain], list[Change]]:
    """The chains that are missing or differ, and the changes that make everything wanted."""
    missing: list[Chain] = []
    changes: list[Change] = []
    for address in want.addresses:
        family = family_of(address)
        needed = chains(want, address)
        counts = rule_counts(needed)
        unlike = incomplete(needed, counts)
        if unlike:
            missing += unlike
            changes += skeleton(family, unlike, counts)
        is_new = not counts and not Table(family, TABLE).exists()
        wanted = without(elements(want, address), family, others.aside)
        changes += _changes(want, address, wanted, holders, others.dead, is_new, thorough)
    return missing, changes


def _changes(
    want: Want,
    address: Prefix,
    wanted: Elements,
    holders: LoadHolders,
    dead: frozenset[str],
    is_new: bool,
    thorough: bool,
) -> list[Change]:
    """The changes that replace the existing elements by the wanted ones."""
    family = family_of(address)
    wanted = wanted | index.of(family, wanted)
    have = None if is_new or thorough else _held(want, address, dead, wanted, holders)
    if have is not None:
        return _differing(family, have, wanted)
    have = {} if is_new else index.dumped(family)
    former: set[str] = set()
    if have:
        from . import nft_holders

        former = nft_holders.former_holders(want.owner, address, have, holders())
    stale = dead | former | {want.owner.key}
    kept = {n: [e for e in have.get(n, ()) if e.comment[:KEY] not in stale] for n in NAMES}
    wanted = {name: [*kept[name], *wanted[name]] for name in NAMES}
    wanted |= index.of(family, wanted)
    wanted[BY_OWNER].append(index.complete(family))
    upgrade = [] if is_new else sets(family, INDEX)
    changes = _differing(family, have, wanted)
    return [*upgrade, *changes] if changes else []


def _held(
    want: Want, address: Prefix, dead: frozenset[str], wanted: Elements, holders: LoadHolders
) -> Elements | None:
    """The existing elements, to be deleted or kept; None if the index is incomplete.

    If another living attachment of the network has the address, the index keeps it for that one:
    then the address is removed from `wanted`.
    """
    family, own = family_of(address), want.owner.key
    listed = index.ports_of(family, own)
    if listed is None:
        return None
    keys = [element.value for element in wanted[BY_OWNER]] if listed else []
    parts = [index.held(family, own, listed, keys)]
    former = index.holder(want.owner, address)
    gone = set(dead)
    if former is not None and former.comment[:KEY] not in (own, *dead):
        from . import nft_holders

        if nft_holders.may_be_replaced(former, holders()):
            gone.add(former.comment[:KEY])
        else:
            wanted[BY_ADDRESS] = []
            former = None
    if former is not None:
        parts.append({BY_ADDRESS: [former]})
    for owner in sorted(gone - {own}):
        parts.append(index.held(family, owner, index.ports_of(family, owner) or []))
    return index.merged(parts)


def _differing(family: str, have: Elements, wanted: Elements) -> list[Change]:
    """The changes that turn the elements of `have` into those of `wanted`."""
    changes: list[Change] = []
    for name in (*NAMES, *INDEX):
        table = Table(family, TABLE)
        changes += nft_elements.replace(table, name, have.get(name, ()), wanted[name])
    return changes


def _restless() -> CNIError:
    return CNIError(
        "the ruleset changes all the time",
        f"{_RETRIES} attempts; `nft monitor` shows who changes it",
    )


# --- DEL and GC -----------------------------------------------------------------------------------

_Find = Callable[[str], Elements]  # family → the elements to delete


def teardown(want: Want, *, noted: bool, handles: Sequence[int] = ()) -> list[Port]:
    """Remove the owner's elements, and the reference's rules of the container.

    Raises CNIError.
    """
    from . import nft_reference

    _ = handles

    steps = Steps()
    removed: list[Port] = steps.run(lambda: unpublish(want, noted=noted)) or []
    steps.run(nft_reference.remove, want.owner.container_id, want.addresses or None)
    steps.finish()
    return removed


def unpublish(want: Want, *, noted: bool) -> list[Port]:
    """Remove the owner's elements from the maps.

    If the owner may have elements that are not in the index, all elements are read. Raises
    CNIError.
    """
    owner = want.owner

    def find(family: str) -> Elements:
        listed = index.ports_of(family, owner.key)
        if listed:
            return index.held(family, owner.key, listed)
        if listed is None or _is_doubtful(family, owner, want.ports, noted):
            return index.matching(family, owner.key, lambda comment: comment.startswith(owner.key))
        return index.held(family, owner.key, [])

    removed = _remove_everywhere(find)
    if any(want.conditions):
        from . import nft_conditions

        nft_conditions.sweep(want)
    return removed


def _is_doubtful(family: str, owner: Owner, ports: Sequence[Port], published: bool) -> bool:
    """May the owner have elements that are not in the index? Earlier builds kept no index."""
    if not ports:
        return published
    for at, names in MAPS.items():
        some = [port for port in plain(ports, FAMILIES[family]) if bool(port.host_ip) is at]
        keys = [key_of(port) for port in some]
        for name in names:
            have = nft_elements.find_all(Table(family, TABLE), name, keys)
            if any(element.comment.startswith(owner.key) for element in have):
                return True
    return False


def gc(network: str, keep: list[Owner]) -> list[Port]:
    """Remove the elements of the network's owners that are not in `keep`. Raises CNIError."""
    kept = {owner.key for owner in keep}
    return _remove_everywhere(
        lambda family: index.unwanted(family, network_key(network), kept), sweep=True
    )


def _remove_everywhere(find: _Find, *, sweep: bool = False) -> list[Port]:
    try:
        return [port for family in FAMILIES for port in _remove(family, find, sweep)]
    except Unusable:
        return []  # without nf_tables there are no elements
    except NetlinkError as error:
        raise CNIError(f"error deleting nftables rules: {error}") from None


def _remove(family: str, find: _Find, sweep: bool) -> list[Port]:
    """Remove the elements, and with the last ones also the table.

    With `sweep` also remove chains of any network that nothing refers to: ADDs that were killed
    have left them. An ADD that relies on such a chain names the old generation, so the kernel
    refuses it, and it makes the chain again.
    """
    for _ in range(_RETRIES):
        try:
            since = nft.generation()
        except NetlinkError as error:
            raise nft.judged(error) from None
        if not Table(family, TABLE).has_chain("published_lookup"):
            return []
        gone = find(family)
        try:
            changes = _removals(family, gone, sweep)
            if changes:
                nft.transact(changes, since)
            keys = [element.key for decides, _ in MAPS.values() for element in gone[decides]]
            return [port for key in keys if (port := port_of(key))]
        except NetlinkError as error:
            if error.errno not in (nft.ERESTART, ENOENT):
                raise
    raise _restless()


def _removals(family: str, gone: Elements, sweep: bool) -> list[Change]:
    """Changes that delete the elements, then chains that nothing else refers to; or the table."""
    leading = [element.chain for decides, _ in MAPS.values() for element in gone[decides]]
    # Then other networks have ports, or chains that a killed ADD has left, which only GC removes.
    is_large = not sweep and Table(family, TABLE).is_large()
    if is_large:
        counts = Table(family, TABLE).rule_counts_of(set(leading))
    else:
        counts = Table(family, TABLE).rule_counts()
    uses = Table(family, TABLE).chain_uses() if sweep else {}

    def has_others(chain: str) -> bool:
        use = uses.get(chain, 0) if sweep else Table(family, TABLE).chain_use(chain)
        # the chain's own rules count, too, and so do the elements that go in this transaction
        return use > counts.get(chain, 0) + leading.count(chain)

    unused = [chain for chain in sorted(set(leading)) if not has_others(chain)]
    others = [c for c in counts if c.startswith(NETWORK_CHAIN) and c not in leading]
    is_last = len(unused) == len(set(leading)) and not any(has_others(chain) for chain in others)
    is_ours = all(chain.startswith(OWN_CHAINS) for chain in counts)
    if is_last and is_ours and not is_large and _is_empty_without(family, gone):
        return [Table(family, TABLE).without_table()]
    changes = [
        change
        for name in (*NAMES, *INDEX)
        for change in nft_elements.remove(Table(family, TABLE), name, gone[name])
    ]
    if sweep:
        unused += [chain for chain in sorted(others) if not has_others(chain)]
    return changes + [Table(family, TABLE).without_chain(chain) for chain in unused]


def _is_empty_without(family: str, gone: Elements) -> bool:
    """Has the table no other elements than these, and nothing of the reference?"""
    dumps = {name: nft_elements.dump(Table(family, TABLE), name) for name in NAMES}
    if any(nft_elements.has_more_than(dumps[name], len(gone[name])) for name in NAMES):
        return False
    return not Table(family, TABLE).has_chain(REFERENCE_CHAIN)


# --- CHECK and STATUS -----------------------------------------------------------------------------


def check(want: Want, holders: LoadHolders) -> list[str]:
    """What is not as it should be, a line each."""
    from . import nft_check

    return nft_check.differences(want, holders())


def status(*, conditions: bool) -> None:
    """Raise CNIError or KernelError if ports cannot be published with nftables."""
    if conditions:
        from . import nft_conditions

        nft_conditions.require()
    nft.generation()
