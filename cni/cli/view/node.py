"""The topology of the node's links.

A Wire is an attachment with its link in the container and its end on the node. A Segment is the
link to which wires are attached: a bridge, a master (of macvlan, ipvlan, vlan), or the node itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cni.kernel import address, link
from cni.kernel.errors import KernelError
from cni.kernel.link import Link
from cni.kernel.netlink import Netlink
from cni.netns.namespace import Namespace

from .attached import Attached
from .namespaces import Live, opened

_STACKED = frozenset({"macvlan", "ipvlan", "vlan", "macvtap", "ipvtap"})


class Wire(NamedTuple):
    """`inside` is the link in the container, `outside` its end on the node, `segment` the node's
    link to which it is attached; each is None if it does not exist or is not known.
    """

    attached: Attached
    inside: Link | None
    outside: Link | None
    segment: Link | None


ROUTED, ALONE, NOWHERE = "routed by the node", "in the container only", "not there any more"


class Segment(NamedTuple):
    """A link of the node, its addresses, and what hangs on it.

    Without a link `name` says why: ROUTED, ALONE (a device of its own) or NOWHERE.
    """

    name: str
    link: Link | None
    addresses: list[str]
    wires: list[Wire]

    @property
    def kind(self) -> str:
        """What the link is: its kind in the kernel, or ``device``."""
        return (self.link.kind or "device") if self.link else ""


class Node(NamedTuple):
    """The node's name, its links, and what hangs on them."""

    name: str
    links: dict[int, Link]
    segments: list[Segment]

    @property
    def real(self) -> list[Segment]:
        """The segments that are links of the node."""
        return [each for each in self.segments if each.link is not None]


def survey(known: Sequence[Attached], live: Live) -> Node:
    """What `known` attachments hang on. Raises KernelError, OSError."""
    with Namespace.current() as namespace:
        sock = namespace.netlink()
        links = {each.index: each for each in link.list_all(sock)}
        names = {each.name: each for each in links.values()}
        wires = [_wire(each, links, names, live) for each in known]
        segments = _segments(wires, sock)
    return Node(os.uname().nodename, links, segments)


def _wire(what: Attached, links: dict[int, Link], by_name: dict[str, Link], live: Live) -> Wire:
    inside = _inside(what, live)
    outside = _outside(what, links, by_name, inside)
    segment = links.get(outside.master) if outside else None
    if inside is not None and inside.kind in _STACKED:
        # IFLA_LINK of a stacked link is the index of its master, in the namespace of that.
        segment = links.get(inside.peer)
    return Wire(what, inside, outside, segment)


def _inside(what: Attached, live: Live) -> Link | None:
    namespace = None if what.is_dead(live) else opened(what.identity, what.netns)
    if namespace is None:
        return None
    with namespace:
        try:
            return link.find(namespace.netlink(), what.ifname)
        except (KernelError, OSError):
            return None


def _outside(
    what: Attached, links: dict[int, Link], by_name: dict[str, Link], inside: Link | None
) -> Link | None:
    """The end on the node: by the link's mark, or as the pair says, or by the result's name."""
    for name in what.links:
        if name in by_name:
            return by_name[name]
    if inside is not None and inside.kind in ("veth", "netkit"):
        return links.get(inside.peer)
    for interface in what.entries("interfaces"):
        if not interface.get("sandbox"):
            found = by_name.get(str(interface.get("name")))
            # The reference's results name the bridge as well, which is not the end of a pair.
            if found is not None and found.kind == "veth":
                return found
    return None


def _hangs_on(wire: Wire) -> str:
    if wire.segment is not None:
        return wire.segment.name
    if wire.outside is not None:
        return ROUTED
    return ALONE if wire.inside is not None else NOWHERE


def _segments(wires: Iterable[Wire], sock: Netlink) -> list[Segment]:
    """The links of the node that anything hangs on, bridges first, then what is routed."""
    prefixes: dict[int, list[str]] = {}
    for each in address.show(sock):
        # Every link has a link-local address.
        if not each.prefix.ip.startswith(b"\xfe\x80"):
            prefixes.setdefault(each.index, []).append(str(each.prefix))
    by_name: dict[str, list[Wire]] = {}
    for wire in wires:
        by_name.setdefault(_hangs_on(wire), []).append(wire)
    found = []
    for name, hanging in by_name.items():
        its_link = hanging[0].segment
        own = prefixes.get(its_link.index, []) if its_link else []
        found.append(Segment(name, its_link, own, hanging))
    return sorted(found, key=lambda each: (each.link is None, each.kind != "bridge", each.name))
