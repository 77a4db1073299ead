"""Takes over the addresses that whereabouts has given to containers, while they run.

    1  hold       anywhere, once: an item for each allocation, in the name of its pod's node, so
                  that nobody claims it
    2  take over  on each node: its held items become its blocks, with a reservation for each
                  container that the result cache knows

Both steps may be repeated, and interrupted at any moment. Held items whose pod is gone are removed.
Between the steps nobody can get the address; after them the container's DEL releases it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ...protocol.address import InvalidAddress, Prefix, parse_ip
from ...store.interface import Conflict, Exists, Item, Refused
from ..host_local.reservation import content_of, namespace_note
from . import blocks
from .claim import Claims
from .node import OWN, PENDING, Block, Space
from .pool import check_apart
from .takeover import HELD, Allocation, Found


class Attachment(NamedTuple):
    """A container of this node and its `addresses` (packed), from the result cache."""

    container_id: str
    network: str
    ifname: str
    netns: str
    addresses: frozenset[bytes]


class Held(NamedTuple):
    """The report of `hold`: blocks and addresses as texts, with their spaces.

    `others` are claimed by another node than the pod's; `orphans` are of pods that are gone.
    """

    held: list[str]
    already: list[str]
    let_go: list[str]
    others: list[str]
    orphans: list[str]


class Taken(NamedTuple):
    """The report of `take_over`. `unknown`: no cached result names the container."""

    taken: list[str]
    already: list[str]
    unknown: list[str]


# --- 1: hold ---


def hold(claims: Claims, found: Found, dry_run: bool = False) -> Held:
    """Make an item for each block with an allocation of an existing pod. Raises StoreError."""
    report = Held([], [], [], [], [])
    for each in found.allocations:
        if not each.node:
            report.orphans.append(f"{each.space}/{each.address}")
    for space, layout in found.layouts.items():
        if not dry_run:
            _agree(claims, space, layout)
        _hold_space(claims, space, _wanted(found, space), report, dry_run)
    return report


def _wanted(found: Found, space: str) -> dict[Prefix, str]:
    """Block → node, for slices, and for blocks with addresses of pods."""
    wanted = dict(found.slices.get(space, {}))
    for each in found.allocations:
        if each.space == space and each.node:
            wanted.setdefault(each.block, each.node)
    return wanted


def _agree(claims: Claims, space: str, layout: dict[str, int]) -> None:
    def joined(old: Item | None) -> dict[str, Any]:
        before: dict[str, Any] = old.value if old is not None else {"store": claims.identity()}
        known: dict[str, int] = before.get("layout") or {}
        check_apart(list(layout.items()), known)
        return {**before, "layout": {**known, **layout}}

    claims.put(f"spaces/{space}", joined)


def _hold_space(
    claims: Claims, space: str, wanted: dict[Prefix, str], report: Held, dry_run: bool
) -> None:
    items = {item.key: item for item in claims.ask(claims.store.list, f"blocks/{space}/").items}
    for block, node in sorted(wanted.items(), key=lambda pair: (len(pair[0].ip), pair[0])):
        key, text = f"blocks/{space}/{blocks.key_of(block)}", f"{space}/{block}"
        item = items.pop(key, None)
        value = {"node": node, "uid": HELD, "boot": "", "seq": 0}
        if item is not None and item.value.get("node") == node:
            report.already.append(text)
        elif item is not None and item.value.get("uid") != HELD:
            report.others.append(text)
        elif dry_run or _put(claims, key, item, value):
            report.held.append(text)
        else:
            report.others.append(text)
    # what is left has no allocation of a pod any more
    for key, item in items.items():
        if item.value.get("uid") == HELD and (dry_run or _let_go(claims, item)):
            report.let_go.append(f"{space}/{blocks.block_of_key(key.rpartition('/')[2])}")


def _put(claims: Claims, key: str, item: Item | None, value: dict[str, Any]) -> bool:
    try:
        if item is None:
            claims.ask(claims.store.create, key, value)
        else:
            claims.ask(claims.store.update, item, value)
    except (Exists, Conflict):
        return False
    return True


def _let_go(claims: Claims, item: Item) -> bool:
    try:
        claims.ask(claims.store.delete, item)
    except (Conflict, Refused):
        return False  # a policy lets nodes delete only their own: an administrator's run does it
    return True


# --- 2: take over ---


def take_over(
    claims: Claims, found: Found, attachments: Iterable[Attachment], dry_run: bool = False
) -> Taken:
    """Make this node's held blocks its own, and reserve its containers' addresses.

    Call it under `Node.claiming`. Raises StoreError, CNIError.
    """
    me = claims.node.name
    report = Taken([], [], [])
    known = {(a.container_id, packed): a for a in attachments for packed in a.addresses}
    work: dict[tuple[str, Prefix], list[Allocation]] = {}
    for space, nodes in found.slices.items():
        work.update({(space, block): [] for block, node in nodes.items() if node == me})
    for each in found.allocations:
        if each.node == me:
            work.setdefault((each.space, each.block), []).append(each)
    if work and not dry_run:
        claims.register()
    for (space, block), allocations in work.items():
        text = f"{space}/{block}"
        unknown = [a for a in allocations if (a.container_id, a.packed) not in known]
        report.unknown.extend(f"{space}/{each.address}" for each in unknown)
        if unknown and block.length == block.bits:
            continue  # the item stays held: no DEL would find a reservation
        files = {each.address: _file(each, known.get((each.container_id, each.packed)))
                 for each in allocations}  # fmt: skip
        done = _take(claims, Space(claims.node, space), block, files, dry_run)
        (report.taken if done else report.already).append(text)
    return report


def _file(each: Allocation, of: Attachment | None) -> tuple[bytes, bytes]:
    """Content and namespace of a reservation. Without an attachment it only blocks the address."""
    if of is None:
        return content_of(each.container_id or each.pod, f"{each.ifname}\r\n"), b""
    mark = f"{of.ifname}\r\n{of.network}"
    return content_of(of.container_id, mark), namespace_note(of.netns)


def _take(
    claims: Claims,
    space: Space,
    block: Prefix,
    files: dict[str, tuple[bytes, bytes]],
    dry_run: bool,
) -> bool:
    """Make a held block this node's, with reservations (address → content and namespace).

    False if it was this node's before, or is another's. As in every claim the ledger names the
    block before the store does. Addresses are reserved before that, so none is given out, however
    this ends.
    """
    with space.changing() as (ledger, store):
        entry = ledger.find(block)
        if dry_run or (entry is not None and entry.state != PENDING):
            return entry is None or entry.state == PENDING
        if entry is None:
            ledger.seq += 1
            entry = Block(str(block), ledger.seq, PENDING)
            ledger.blocks.append(entry)
        # only what is new is released again if the block is another's
        made = [name for name, each in files.items() if store.reserve(name, *each)]
    owned = _own(claims, f"blocks/{space.name}/{blocks.key_of(block)}", entry)
    with space.changing() as (ledger, store):
        present = ledger.find(block)
        if present is not None and owned:
            present.state = OWN
        elif present is not None and present.state == PENDING:
            ledger.remove(present)
        for name in () if owned else made:
            store.release(name, files[name][0])
    return owned


def _own(claims: Claims, key: str, entry: Block) -> bool:
    """Write this node into a held item; False if the item is another node's."""
    item = claims.ask(claims.store.read, key)
    if item is None or item.value.get("uid") != HELD:
        return item is not None and claims.is_mine(item)
    return _put(claims, key, item, claims.author(entry))


def addresses_of(result: dict[str, Any] | None) -> frozenset[bytes]:
    """The addresses (packed) of an ADD's result, of any version; ignores texts that are none."""
    texts: list[Any] = []
    for each in (result or {}).get("ips") or ():
        texts.append(each.get("address") if isinstance(each, dict) else None)
    for key in ("ip4", "ip6"):
        each = (result or {}).get(key)
        texts.append(each.get("ip") if isinstance(each, dict) else None)
    addresses = set()
    for text in texts:
        try:
            addresses.add(parse_ip(str(text).partition("/")[0]))
        except InvalidAddress:
            continue
    return frozenset(addresses)
