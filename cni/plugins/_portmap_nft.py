"""portmap with nftables: maps, so that a packet costs one lookup however many ports there are.

In the reference's tables (`ip` and `ip6`, `cni_hostport`), beside its chains, so that containers
started by either coexist:

    published_prerouting, published_output   what is for an address of the node: to published_lookup
    published_lookup                         host IP, protocol and port: vmap @published_at; or
                                             protocol and port: vmap @published
    net-<hash>                               marks what has to be masqueraded, dnat to map @targets
    net-<hash>-at                            the same for @published_at, with map @targets_at
    masquerade_<mark>                        masquerades what is marked
    published_guard                          keeps what others send to 127.0.0.0/8 out

A net- chain is shared by all containers of the same subnet and options, so that the options of a
network (conditions, masqAll, the mark) apply to its containers only. A container is nothing but
elements of the maps, each with its owner in the comment: a port that is taken is EEXIST, and one
more container is one small transaction without libnftables, which is needed only to make chains.

What is changed was looked at in the same generation of the ruleset; otherwise it is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EEXIST, ENOENT

from ..kernel import nft, nft_elements
from ..kernel.netlink import NetlinkError
from ..kernel.nft_elements import Change, Element
from ..kernel.owner import Owner, network_key
from ..protocol.address import Prefix
from ..protocol.errors import CNIError
from ._portmap import Port, Want
from ._portmap_rules import (
    KEY,
    MAPS,
    NAMES,
    TABLE,
    Chain,
    chains,
    elements,
    family_of,
    owner_of,
    port_of,
    script,
    shown,
)

_FAMILIES = ("ip", "ip6")
# The reference's chains with rules of containers; the first one is in every table of its.
_GO_CHAINS = ("hostports", "hostip_hostports", "masquerading")
_RETRIES = 50
_GONE = "the nftables rules are not there; something flushed them. Rules are gone: run `cni reload`"


class Taken(CNIError):
    """A host port is published by another container."""


def usable() -> None:
    """Raises CNIError or NetlinkError when ports cannot be published with nftables."""
    nft.shared()
    nft.generation()


# --- ADD ------------------------------------------------------------------------------------------


def install(want: Want, is_dead: Callable[[Owner], bool]) -> None:
    """Publish the ports, instead of what the owner had published before.

    A port that is taken by an owner who is dead goes over to us. Raises Taken or another CNIError,
    NetlinkError or nft.Unusable; then there is nothing that a packet could notice.
    """
    dead: set[str] = set()
    wanted = [chain for address in want.addresses for chain in chains(want, address)]
    for _ in range(_RETRIES):
        since = nft.generation()
        incomplete = _incomplete(wanted)
        if incomplete:
            nft.shared().run_text(script(incomplete))
            continue
        changes = [change for a in want.addresses for change in _changes(want, a, dead)]
        if not changes:
            return None
        try:
            return nft.transaction(changes, since)
        except NetlinkError as error:
            if error.errno == EEXIST:
                dead |= _dead_holders(want, dead, is_dead)
            elif error.errno not in (nft.ERESTART, ENOENT):
                raise
    raise _restless()


def _changes(want: Want, address: Prefix, dead: set[str]) -> list[Change]:
    """What leads from what is there to what is wanted; `dead` are keys of owners to replace."""
    family, wanted = family_of(address), elements(want, address)
    dumps = {name: nft_elements.dump(family, TABLE, name) for name in NAMES}
    gone = dead | _former_holders(want.owner, address, dumps)
    marks = [key.encode() for key in (want.owner.key, *sorted(gone))]
    changes: list[Change] = []
    for name in NAMES:
        have = nft_elements.matching(dumps[name], marks)
        stale = [element for element in have if element not in wanted[name]]
        new = [element for element in wanted[name] if element not in have]
        changes += nft_elements.remove(family, TABLE, name, stale)
        changes += nft_elements.insert(family, TABLE, name, new)
    return changes


def _former_holders(owner: Owner, address: Prefix, dumps: dict[str, list[bytes]]) -> set[str]:
    """The keys of those in our network who had this address before us.

    IPAM gives an address only once: they are gone, and what they published would come to us.
    """
    network = network_key(owner.network)
    return {
        element.comment[:KEY]
        for _, targets in MAPS.values()
        for element in nft_elements.matching(dumps[targets], [address.ip])
        if element.value.startswith(address.ip)
        and element.comment.startswith(f"{network}-")
        and not element.comment.startswith(owner.key)
    }


def _dead_holders(want: Want, dead: set[str], is_dead: Callable[[Owner], bool]) -> set[str]:
    """The keys of the dead owners of ports that we want. Raises Taken if one is alive."""
    found = set()
    for address in want.addresses:
        for name, wanted in elements(want, address).items():
            for element in wanted:
                holder = nft_elements.find(family_of(address), TABLE, name, element.key)
                if holder is None or holder.comment[:KEY] in (want.owner.key, *dead):
                    continue
                owner = owner_of(holder.comment)
                if owner is None or not is_dead(owner):
                    raise _taken(element, holder, owner, address)
                found.add(owner.key)
    return found


def _taken(element: Element, holder: Element, owner: Owner | None, address: Prefix) -> Taken:
    port = port_of(element.key)
    if owner is not None:
        who = f"container {owner.container_id} ({owner.ifname} in network {owner.network})"
        hint = f"stop that container; if it is long gone, `cni gc` of {owner.network} removes it"
    else:
        who = f"somebody else ({holder.comment or 'unknown'})"
        hint = "stop it"
    place = f"nft list map {family_of(address)} {TABLE}"
    return Taken(
        f"host port {port} is already published by {who}",
        f"publish another port, or {hint}; see `{place} {MAPS[bool(element.key[:-8])][1]}`",
    )


def _restless() -> CNIError:
    return CNIError(
        "unable to set up nftables rules for port mappings: the ruleset changes all the time",
        f"{_RETRIES} attempts; `nft monitor` shows who changes it",
    )


def _incomplete(wanted: Sequence[Chain]) -> list[Chain]:
    """Those that are not there, or have not as many rules as they should."""
    counts = {family: nft.rule_counts(family, TABLE) for family in {c.family for c in wanted}}
    return [c for c in wanted if counts[c.family].get(c.name) != len(c.rules)]


# --- DEL and GC -----------------------------------------------------------------------------------


def remove(owner: Owner) -> list[Port]:
    """Remove what the owner published; what it was. Raises CNIError."""
    return _remove_where(owner.key, lambda comment: comment.startswith(owner.key))


def collect(network: str, keep: Sequence[Owner]) -> list[Port]:
    """Remove what the network's owners published that are not in `keep`. Raises CNIError."""
    kept, prefix = {owner.key for owner in keep}, f"{network_key(network)}-"
    return _remove_where(prefix, lambda c: c.startswith(prefix) and c[:KEY] not in kept)


def _remove_where(mark: str, unwanted: Callable[[str], bool]) -> list[Port]:
    try:
        return [port for f in _FAMILIES for port in _remove(f, mark.encode(), unwanted)]
    except nft.Unusable:
        return []  # nor can there be any
    except NetlinkError as error:
        raise CNIError(f"error deleting nftables rules: {error}") from None


def _remove(family: str, mark: bytes, unwanted: Callable[[str], bool]) -> list[Port]:
    """Remove the unwanted elements, and with the last ones also the table."""
    for _ in range(_RETRIES):
        since = _generation()
        if not nft.has_chain(family, TABLE, "published_lookup"):
            return []
        dumps = {name: nft_elements.dump(family, TABLE, name) for name in NAMES}
        gone = {
            name: [e for e in nft_elements.matching(dumps[name], [mark]) if unwanted(e.comment)]
            for name in NAMES
        }
        others = any(nft_elements.has_more_than(dumps[name], len(gone[name])) for name in NAMES)
        if not others and not nft.has_chain(family, TABLE, _GO_CHAINS[0]):
            changes = [nft.without_table(family, TABLE)]
        else:
            changes = _removals(family, dumps, gone)
        try:
            if changes:
                nft.transaction(changes, since)
            keys = [element.key for decides, _ in MAPS.values() for element in gone[decides]]
            return [port for key in keys if (port := port_of(key))]
        except NetlinkError as error:
            if error.errno not in (nft.ERESTART, ENOENT):
                raise
    raise _restless()


def _generation() -> bytes:
    try:
        return nft.generation()
    except NetlinkError as error:
        raise nft.Unusable(error.errno or 0, error.detail) from None


def _removals(
    family: str, dumps: dict[str, list[bytes]], gone: dict[str, list[Element]]
) -> list[Change]:
    """The elements, then the networks' chains that no other element leads to."""
    changes = [c for name in NAMES for c in nft_elements.remove(family, TABLE, name, gone[name])]
    for decides, _ in MAPS.values():
        for chain in sorted({element.chain for element in gone[decides]}):
            ours = sum(element.chain == chain for element in gone[decides])
            name = f"{chain}\0".encode()
            if sum(data.count(name) for data in dumps[decides]) == ours:
                changes.append(nft.without_chain(family, TABLE, chain))
    return changes


def remove_of_go(container_id: str, addresses: Sequence[Prefix] | None) -> None:
    """Remove the reference's rules of a container: only those for its addresses, if they are known.

    They name the container, not the network: without addresses, those of another network go, too.
    Raises CNIError.
    """
    try:
        for family in _FAMILIES:
            ours = (
                None if addresses is None else [a.ip for a in addresses if family_of(a) == family]
            )
            _remove_rules(family, container_id, ours)
    except nft.Unusable:
        return
    except NetlinkError as error:
        raise CNIError(f"error deleting nftables rules: {error}") from None


def _remove_rules(family: str, container_id: str, addresses: Sequence[bytes] | None) -> None:
    for last in (False, False, False, True):
        rules = [
            (chain, rule.handle)
            for chain in _GO_CHAINS
            for rule in nft.find_rules(family, TABLE, chain, container_id)
            if rule.comment == container_id
            and (addresses is None or any(ip in rule.raw for ip in addresses))
        ]
        try:
            return nft.delete(family, TABLE, rules) if rules else None
        except NetlinkError as error:
            if error.errno != ENOENT or last:
                raise
    return None


# --- CHECK ----------------------------------------------------------------------------------------


def check(want: Want) -> list[str]:
    """What is not as it should be, a line each. Raises NetlinkError."""
    problems = []
    for address in want.addresses:
        family, wanted = family_of(address), elements(want, address)
        for chain in _incomplete(chains(want, address)):
            place = f"{family} {TABLE}"
            text = f'missing hostport rules in "{chain.name}" chain of {place}: {_GONE}'
            problems.append(text)
        for name in NAMES:
            dump = nft_elements.dump(family, TABLE, name)
            have = nft_elements.matching(dump, [want.owner.key.encode()])
            problems += _differences(f"map {name} of {family} {TABLE}", wanted[name], have)
    return problems


def _differences(where: str, wanted: Sequence[Element], have: Sequence[Element]) -> list[str]:
    lines = [
        f"missing hostport rules: {where}: want {shown(e)}; {_GONE}"
        for e in wanted
        if e not in have
    ]
    extra = [e for e in have if e not in wanted]
    return lines + [f"hostport rules: {where}: have {shown(e)}, which nobody wants" for e in extra]
