"""Allocations of whereabouts itself: reading its objects, and whether they were taken over.

Its objects (whereabouts.cni.cncf.io/v1alpha1, of a namespace):

    IPPool                         spec.range, spec.allocations {"<offset>": {id, podref, ifname}};
                                   called [<network_name>-][<node>-]<range, with - for : and />
    OverlappingRangeIPReservation  spec {containerid, podref, ifname}; called
                                   [<network_name>-]<address, with - for :>
    NodeSlicePool                  spec {range, sliceSize},
                                   status.allocations [{nodeName, sliceRange}];
                                   called [<network_name>-]<range>

An offset counts from the address in the text of `range`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ...protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from ...protocol.errors import CNIError
from .pool import DEFAULT_SPACE

if TYPE_CHECKING:
    from ...call import Call
    from ...store.kubernetes_api import Api
    from ...store.settings import Settings
    from .node import Node

GROUP = "whereabouts.cni.cncf.io"
API = f"/apis/{GROUP}/v1alpha1"
KINDS = {
    "IPPool": "ippools",
    "OverlappingRangeIPReservation": "overlappingrangeipreservations",
    "NodeSlicePool": "nodeslicepools",
}
HELD = "whereabouts"  # the uid of an item that holds an address until its node takes it over

Json = dict[str, Any]


class Allocation(NamedTuple):
    """An address that whereabouts has given. `node` is "" if its pod does not exist."""

    space: str
    packed: bytes
    block: Prefix
    container_id: str
    pod: str
    ifname: str
    node: str

    @property
    def address(self) -> str:
        return format_ip(self.packed)


class Found(NamedTuple):
    """The contents of the objects. `layouts`: for each space its subnets, with their block length.

    `slices`: for each space the blocks that nodes have been given; `pods`: "namespace/name" → node.
    """

    allocations: list[Allocation]
    layouts: dict[str, dict[str, int]]
    slices: dict[str, dict[Prefix, str]]
    pods: dict[str, str]


def interpret(objects: Iterable[Json]) -> Found:
    """Read a list of objects: whereabouts' and pods. Raises CNIError for a malformed one."""
    by_kind: dict[str, list[Json]] = {}
    for each in objects:
        by_kind.setdefault(str(each.get("kind")), []).append(each)
    pods = dict(map(_pod, by_kind.get("Pod", [])))
    reader = _Reader(pods, by_kind.get("NodeSlicePool", []))
    for pool in by_kind.get("IPPool", []):
        reader.pool(pool)
    for each in by_kind.get("OverlappingRangeIPReservation", []):
        reader.reservation(each)
    found = sorted(reader.found.values(), key=lambda a: (a.space, len(a.packed), a.packed))
    return Found(found, reader.layouts, reader.slices, pods)


class _Reader:
    def __init__(self, pods: dict[str, str], slice_pools: list[Json]) -> None:
        self.pods = pods
        self.found: dict[tuple[str, bytes], Allocation] = {}
        self.layouts: dict[str, dict[str, int]] = {}
        self.slices: dict[str, dict[Prefix, str]] = {}
        self.nodes = set(pods.values()) - {""}
        for each in slice_pools:
            self._slice_pool(each)

    def _slice_pool(self, value: Json) -> None:
        spec = value.get("spec") or {}
        subnet = _prefix(value, spec.get("range")).network
        space = _before(value, str(spec.get("range")), str(subnet)) or DEFAULT_SPACE
        size = str(spec.get("sliceSize") or "").removeprefix("/")
        if not size.isdecimal() or not subnet.length <= int(size) <= subnet.bits:
            raise _odd(value, f"its sliceSize is {spec.get('sliceSize')!r}")
        self.layouts.setdefault(space, {})[str(subnet)] = int(size)
        for each in (value.get("status") or {}).get("allocations") or ():
            node = str(each.get("nodeName") or "")
            if node:
                self.nodes.add(node)
                block = _prefix(value, each.get("sliceRange")).network
                self.slices.setdefault(space, {})[block] = node

    def pool(self, value: Json) -> None:
        spec = value.get("spec") or {}
        written = _prefix(value, spec.get("range"))
        subnet = written.network
        space, node = self._place(_before(value, str(spec.get("range")), str(subnet)))
        layout = self.layouts.setdefault(space, {})
        # the pool of a node's slice adds no subnet: that of its NodeSlicePool is known
        if not any(Prefix.parse(each).overlaps(subnet) for each in self._sliced(space, subnet)):
            layout.setdefault(str(subnet), subnet.bits)
        first = int.from_bytes(written.ip, "big")
        for offset, each in sorted((spec.get("allocations") or {}).items()):
            if not str(offset).isdecimal() or not isinstance(each, dict):
                raise _odd(value, f"its allocation {offset!r} is no number")
            number = first + int(offset)
            if number >> subnet.bits:
                continue  # a defect of whereabouts: no address has this offset
            packed = number.to_bytes(len(subnet.ip), "big")
            if not subnet.contains(packed):
                continue
            self._add(space, packed, str(each.get("id") or ""), each, node)

    def reservation(self, value: Json) -> None:
        name, spec = value["metadata"]["name"], value.get("spec") or {}
        # the longest first: with `a` and `a-b`, the name `a-b-<address>` is of the second
        networks = sorted((s for s in self.layouts if s != DEFAULT_SPACE), key=len, reverse=True)
        for network in networks:
            packed = _unwritten(name.removeprefix(f"{network}-"))
            if name.startswith(f"{network}-") and packed is not None:
                return self._add(network, packed, str(spec.get("containerid") or ""), spec, "")
        packed, space = _unwritten(name), DEFAULT_SPACE
        if packed is None:
            network, _, rest = name.rpartition("-")
            packed, space = _unwritten(rest), network
        if packed is None:
            raise _odd(value, "its name ends in no address")
        return self._add(space, packed, str(spec.get("containerid") or ""), spec, "")

    def _add(self, space: str, packed: bytes, container_id: str, spec: Json, node: str) -> None:
        pod = str(spec.get("podref") or "")
        block = Prefix(packed, self._length(space, packed)).network
        made = Allocation(
            space, packed, block, container_id, pod, str(spec.get("ifname") or ""),
            self.pods.get(pod, "") or (node if not self.pods else ""),
        )  # fmt: skip
        before = self.found.get((space, packed))
        # an address may be in two objects; the one that tells the node counts
        if before is None or (not before.node and made.node):
            self.found[space, packed] = made

    def _length(self, space: str, packed: bytes) -> int:
        for text, length in self.layouts.get(space, {}).items():
            if Prefix.parse(text).contains(packed):
                return length
        return 8 * len(packed)

    def _sliced(self, space: str, subnet: Prefix) -> Iterator[str]:
        for text, length in self.layouts.get(space, {}).items():
            if length < subnet.bits and Prefix.parse(text).is_v4 == subnet.is_v4:
                yield text

    def _place(self, before: str) -> tuple[str, str]:
        """Space and node of a pool, from the part of its name before the range."""
        # the longest first: a name that ends in `-a-b` ends in `-b`, too
        for node in sorted(self.nodes, key=len, reverse=True):
            if before == node:
                return DEFAULT_SPACE, node
            if before.endswith(f"-{node}"):
                return before.removesuffix(f"-{node}"), node
        return before or DEFAULT_SPACE, ""


def _pod(value: Json) -> tuple[str, str]:
    metadata = value.get("metadata") or {}
    name = f"{metadata.get('namespace') or 'default'}/{metadata.get('name')}"
    return name, str((value.get("spec") or {}).get("nodeName") or "")


def _before(value: Json, *ranges: str) -> str:
    """The part of an object's name before its range. Raises CNIError."""
    name = str((value.get("metadata") or {}).get("name"))
    for text in ranges:
        for written in (text, text.replace(":/", ":0/")):
            suffix = written.replace(":", "-").replace("/", "-")
            if name == suffix:
                return ""
            if name.endswith(f"-{suffix}"):
                return name.removesuffix(f"-{suffix}")
    raise _odd(value, f"its name does not end in its range {ranges[0]}")


def _unwritten(text: str) -> bytes | None:
    """The address that a name encodes; None if it encodes none."""
    try:
        return parse_ip(text.replace("-", ":"))
    except InvalidAddress:
        return None


def _prefix(value: Json, text: Any) -> Prefix:
    try:
        return Prefix.parse(str(text))
    except InvalidAddress as error:
        raise _odd(value, error.msg) from None


def _odd(value: Json, why: str) -> CNIError:
    name = (value.get("metadata") or {}).get("name")
    return CNIError(
        f"{value.get('kind')} {name} cannot be understood: {why}",
        "nothing was changed: correct the object, or delete it if no container uses it",
    )


# --- the API ---


def read_api(api: Api, *, pods: bool = True) -> list[Json]:
    """The objects of whereabouts, and every pod; skips types that the API does not define.

    Raises StoreError.
    """
    from ...store.kubernetes_api import object_of
    from .kubernetes_nodes import Nodes

    objects: list[Json] = []
    for kind, plural in KINDS.items():
        answer = api.request("GET", f"{API}/{plural}?limit=1")
        if answer.status == 404 or not (object_of(answer.body) or {}).get("items"):
            continue
        objects += [{**each, "kind": kind} for each in Nodes(api).list(f"{API}/{plural}")]
    if pods:
        objects += [{**each, "kind": "Pod"} for each in Nodes(api).list("/api/v1/pods")]
    return objects


def check_taken_over(call: Call[Any], node: Node, its: Settings, space: str) -> None:
    """Require that whereabouts has no allocations in a space that the store does not know yet.

    Raises CNIError. Does nothing if the store is not a Kubernetes API, which has no such objects.
    """
    if (its.store or {}).get("type") != "kubernetes":
        return
    from . import shortage

    with shortage.opened(call, node, its) as claims:
        if claims.ask(claims.store.read, f"spaces/{space}") is not None:
            return
        api = getattr(claims.store, "api", None)
        if api is None:
            return
        found = interpret(read_api(api, pods=False))
    taken = [each.address for each in found.allocations if each.space == space]
    if taken:
        raise CNIError(
            f"whereabouts has given {len(taken)} addresses of space {space} that were not taken "
            f"over, such as {taken[0]}",
            "run `cni ipam import whereabouts` (docs/from-whereabouts.md), or delete whereabouts' "
            "objects if no container has such an address",
        )
