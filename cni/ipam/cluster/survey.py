"""This node's part of a cluster's addresses, its use, and inconsistencies.

Reads the node's files, and for `problems` the store; changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from typing import Any, NamedTuple

from ... import files
from ...protocol import config
from ...protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from ...protocol.errors import CNIError
from ...store.interface import Item, Store
from ...store.node_files import boot_time
from ...store.settings import Settings
from ..host_local import usage
from ..host_local.reservation import CONFLICT, is_address
from . import blocks
from .node import OWN, PENDING, RELEASING, Node, Space
from .pool import Pool, PoolConf, check_apart, convert
from .takeover import HELD


class Use(NamedTuple):
    """One space on this node: blocks by state; addresses that are used, set aside and free."""

    space: str
    blocks: dict[str, int]
    used: int
    aside: int
    free: int


def of_node(node: Node) -> list[Use]:
    """Every space in which this node has blocks or addresses. Asks no store. Raises CNIError."""
    return [_use(node, Space(node, name)) for name in node.spaces()]


def _use(node: Node, space: Space) -> Use:
    ledger = space.ledger()
    states = {state: len(ledger.of_state(state)) for state in (OWN, PENDING, RELEASING)}
    held = reserved(space)
    aside = sum(content.startswith(CONFLICT.encode() + b"\r") for content in held.values())
    own = [each.prefix for each in ledger.of_state(OWN)]
    free = 0
    # networks may have the same ranges: they count once
    for ranges in {str(each): each for pool in _pools(node, space) for each in pool.sets}.values():
        part = blocks.narrowed(ranges, own)
        if part is not None:
            free += max(part.size - sum(map(part.contains, held)), 0)
    return Use(space.name, states, len(held) - aside, aside, free)


def _pools(node: Node, space: Space) -> Iterator[Pool]:
    """The pools of networks that needed blocks, without those that cannot be read any more."""
    for entry in space.pools().values():
        ipam = entry.get("ipam") or {}
        name = str(config.lookup(ipam, "pool") or "")
        try:
            value = node.pool_definition(name) if name else ipam
            if value is not None:
                conf = convert(value, name) if name else config.convert(value, PoolConf)
                yield Pool.of(conf, name, entry.get("cniVersion", "") if not name else "")
        except CNIError:
            continue


def reserved(space: Space) -> dict[bytes, bytes]:
    """The addresses (packed) that have a file, and its content."""
    contents = {}
    try:
        names = os.listdir(space.location.path)
    except OSError:
        return {}
    for name in filter(is_address, names):
        try:
            data = files.read(os.path.join(space.location.path, name), 4096)
        except files.Unusable:
            data = b""  # a FIFO, a directory, or too large: the address counts as taken
        except OSError:
            continue  # released meanwhile
        contents[parse_ip(name)] = data.strip()
    return contents


# --- inconsistencies ---


def silence(node: Node, its: Settings) -> list[str]:
    """What is wrong with the node's signs of life (`nodeTimeout`), which a server sends."""
    made = node.registration(its.digest)
    if not its.timeout or made is None:
        return []
    if made.boot == node.boot and not made.timeout:
        return [
            f"nodeTimeout is {its.timeout}, and no server renews for {node.name}: should this node "
            "be lost, its blocks stay its own, even if it is idle. Start `cni serve`"
        ]
    if made.timeout and (made.boot != node.boot or boot_time() >= made.until):
        return [
            f"{node.name} was not renewed in the store for {made.timeout} s (nodeTimeout), so that "
            "it may be taken for gone. Is `cni serve` running, and does it reach the store?"
        ]
    return []


def problems(store: Store, node: Node) -> list[str]:
    """Problems of the cluster's blocks, and of this node's. Raises StoreError."""
    texts: list[str] = []
    uid = node.identity().uid if os.path.lexists(node.path("node")) else ""
    records = {item.key.rpartition("/")[2]: item for item in store.list("nodes/").items}
    texts += _of_name(records.get(node.name), node, uid)
    spaces = {item.key.partition("/")[2]: item for item in store.list("spaces/").items}
    texts += _of_pools(store, spaces)
    for name in sorted({*spaces, *node.spaces()}):
        items = _blocks(store, name, texts)
        layout: dict[str, Any] = spaces[name].value.get("layout") or {} if name in spaces else {}
        texts += _of_restoration(store, spaces.get(name), Space(node, name))
        texts += [f"{name}: {text}" for text in _of_space(items, layout, records)]
        texts += [f"{name}: {text}" for text in _of_node(Space(node, name), items, uid)]
    return texts


def _of_name(record: Item | None, node: Node, uid: str) -> Iterator[str]:
    if uid and record is not None and record.value.get("uid") != uid:
        yield (
            f"another node is called {node.name}, or was before this one was installed anew: this "
            "node claims no block. Set another nodeName; or, if it was this one, and its "
            f"containers are gone, `cni ipam forget {node.name}`"
        )


def _of_restoration(store: Store, record: Item | None, space: Space) -> Iterator[str]:
    """Is the store of the space another one than before, and has nobody accepted it?"""
    before = record.value.get("store") if record is not None else space.ledger().store
    if before and before != store.identity():
        yield (
            f"{space.name}: {store.name} was restored from a backup, or is another store than "
            "before, so no block is claimed: run `cni ipam sync` on every node, then `cni ipam "
            f"accept {space.name}` on one"
        )


def _of_pools(store: Store, spaces: dict[str, Item]) -> Iterator[str]:
    """What keeps the store's pools from being used, and keys of theirs that mean nothing."""
    known = {name.lower() for name in PoolConf.__struct_encode_fields__}
    for item in store.list("pools/").items:
        name = item.key.removeprefix("pools/")
        for key in sorted(item.value):
            if key.lower() not in known:
                yield f"pool {name}: {key} is no key of a pool: it is ignored"
        try:
            pool = Pool.of(convert(item.value, name), name, "")
            space = spaces.get(pool.space)
            layout = (space.value.get("layout") or {}) if space is not None else {}
            check_apart(list(pool.layout.items()), layout)
        except CNIError as error:
            text = str(error)
            yield text if text.startswith(f"pool {name}: ") else f"pool {name}: {text}"


def _blocks(store: Store, space: str, found: list[str]) -> dict[Prefix, Item]:
    made = {}
    for item in store.list(f"blocks/{space}/").items:
        try:
            made[blocks.block_of_key(item.key.rpartition("/")[2])] = item
        except InvalidAddress:
            found.append(f"{item.key} is no block: delete it")
    return made


def _of_space(
    items: dict[Prefix, Item], layout: dict[str, Any], records: Container[str]
) -> Iterator[str]:
    before: Prefix | None = None
    # in this order, a block comes right before those that it contains
    for block in sorted(items, key=lambda each: (len(each.ip), each.ip, each.length)):
        holder = str(items[block].value.get("node"))
        if before is not None and before.is_v4 == block.is_v4 and before.overlaps(block):
            other = items[before].value.get("node")
            yield f"blocks {before} of {other} and {block} of {holder} share addresses"
        else:
            before = block
        if not any(
            length == block.length and Prefix.parse(subnet).contains(block.ip)
            for subnet, length in layout.items()
        ):
            yield f"block {block} of {holder} is of no subnet that the space has"
        if items[block].value.get("uid") == HELD:
            yield f"block {block} is held for {holder}: `cni ipam import whereabouts` on that node"
        elif holder not in records:
            yield (
                f"block {block} is of node {holder}, which the store does not know: if that is "
                "gone, `cni ipam reconcile` frees it"
            )


def _of_node(space: Space, items: dict[Prefix, Item], uid: str) -> Iterator[str]:
    """Compare this node's ledger and reservations with the store."""
    ledger = space.ledger()
    for entry in ledger.blocks:
        item = items.get(entry.prefix)
        mine = item is not None and item.value.get("uid") == uid
        if entry.state == OWN and item is None:
            yield f"the store lacks this node's block {entry.cidr}: `cni ipam sync` puts it back"
        elif entry.state == OWN and item is not None and not mine:
            yield (
                f"block {entry.cidr} is used here, but is of node {item.value.get('node')} in the "
                "store: `cni ipam sync` gives it up; recreate the containers that have addresses "
                "of it"
            )
    known = {entry.prefix for entry in ledger.blocks}
    for block, item in items.items():
        if uid and item.value.get("uid") == uid and block not in known:
            yield f"this node does not know its block {block}: `cni ipam sync` gives it back"
    own = [entry.prefix for entry in ledger.of_state(OWN)]
    for packed, content in sorted(reserved(space).items()):
        holder = usage.holder(content)
        if content.startswith(CONFLICT.encode() + b"\r"):
            mac = content.split(b"\r\n")[1].decode(errors="replace")
            yield f"{format_ip(packed)} is set aside: {mac} on the link has it"
        elif not any(block.contains(packed) for block in own):
            others = (item.value.get("node") for block, item in items.items()
                      if block.contains(packed))  # fmt: skip
            whose = next((f"node {each}'s block" for each in others), "no block of this node")
            yield f"{format_ip(packed)} of {holder} is of {whose}: recreate that"
