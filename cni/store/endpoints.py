"""Endpoints: the addresses by which the nodes of an overlay network reach each other.

    endpoints/<network>/<node>   {"node", "uid", "port", "addresses": ["192.0.2.11", "fd00::11"], …}

The rest is the plugin's: `vni` of vxlan, `publicKey` and `subnets` of wireguard. Each node writes
its own, and reads those of all. One with another node's `uid` is replaced only if the store says
that this node is gone: an item of the same name may be that of a machine that lives.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..protocol.address import InvalidAddress, parse_ip
from .interface import Conflict, Exists, Item, Refused, Store, Unavailable

PREFIX = "endpoints/"
_ATTEMPTS = 8  # to change an item that others change, too
_MOST_ADDRESSES = 8  # of a node; what it says beyond is not read


def key_of(network: str, node: str) -> str:
    """The key of a node's endpoint."""
    return f"{PREFIX}{network}/{node}"


def place_of(key: str) -> tuple[str, str]:
    """Network and node of a key; both empty for a key of another form."""
    parts = key.split("/")
    return (parts[1], parts[2]) if len(parts) == 3 else ("", "")


def addresses_of(value: dict[str, Any]) -> list[str]:
    """The addresses of an item's value that can be used.

    Others have written it: what is no unicast address is left out.
    """
    texts = value.get("addresses")
    if not isinstance(texts, list):
        return []
    return [text for text in texts[:_MOST_ADDRESSES] if isinstance(text, str) and _is_usable(text)]


def _is_usable(text: str) -> bool:
    """Is it an address that a node can have: no multicast, loopback, link-local, or zero?"""
    try:
        packed = parse_ip(text)
    except InvalidAddress:
        return False
    if len(packed) == 4:
        # 0.0.0.0/8, 127.0.0.0/8, multicast and what is reserved, 169.254.0.0/16
        return packed[0] not in (0, 127) and packed[0] < 0xE0 and packed[:2] != b"\xa9\xfe"
    is_mapped = not any(packed[:10])  # also :: and ::1
    return not is_mapped and packed[0] != 0xFF and not (packed[0] == 0xFE and packed[1] >= 0x80)


def publish(store: Store, network: str, own: dict[str, Any], present: Item | None) -> None:
    """Have the store say `own` of this node: `node`, `uid`, and the plugin's keys. `present` is the
    item as it was read last, or None.

    Raises Refused if the item is another node's, StoreError.
    """
    key = key_of(network, own["node"])
    for _ in range(_ATTEMPTS):
        if present is not None:
            if present.value == own:
                return
            if present.value.get("uid") != own["uid"]:
                _require_gone(store, own, present)
        try:
            if present is None:
                store.create(key, own)
            else:
                store.update(present, own)
        except (Exists, Conflict):
            present = store.read(key)
        else:
            return
    raise Unavailable(f"{store.name}: {key} changes all the time", "try again")


def _require_gone(store: Store, own: dict[str, Any], present: Item) -> None:
    """Raises Refused unless the node that wrote `present` was given up."""
    node, uid = own["node"], own["uid"]
    old = str(present.value.get("uid", ""))
    if not old or store.read(f"lost/{old}") is not None:
        return
    record = store.read(f"nodes/{node}")
    if record is not None and (record.value.get("uid") == uid or record.value.get("lost")):
        return
    raise Refused(
        f"another node is called {node} in {store.name}",
        f"{present.key} was written by the node with the uid {old}, this one has {uid}: give one "
        "of them another nodeName. If it is this node before it was installed anew: `cni ipam "
        f"forget --force {node}`",
    )


def withdraw(store: Store, network: str, node: str, uid: str) -> None:
    """Remove this node's endpoint; one that is gone, or another node's, stays. Raises StoreError.

    A Conflict: it has just been written anew.
    """
    item = store.read(key_of(network, node))
    if item is not None and item.value.get("uid") == uid:
        try:
            store.delete(item)
        except Conflict:
            pass


def of_node(items: Iterable[Item], node: str) -> list[Item]:
    """A node's items, of all networks."""
    return [item for item in items if place_of(item.key)[1] == node]


def of_network(items: Iterable[Item], network: str) -> dict[str, Item]:
    """The items of a network, by node."""
    found = {}
    for item in items:
        its_network, node = place_of(item.key)
        if its_network == network and node:
            found[node] = item
    return found
