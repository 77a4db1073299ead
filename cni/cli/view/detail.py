"""All objects of an attachment on this node and in its namespace, each with its source.

Links, addresses, routes, policy rules and queueing disciplines are read in the namespace with the
attachment's identity, by cni/kernel: pyroute2 needs ctypes, which the self-contained file lacks,
and the output must not depend on the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from socket import AF_INET, AF_INET6
from typing import Any, NamedTuple

import msgspec

from cni import files
from cni.kernel import address, link, route, rule, tc
from cni.kernel.netlink import Netlink
from cni.kernel.route import Route
from cni.netns.namespace import Namespace
from cni.protocol.address import format_ip

from . import node
from .attached import Attached, Places
from .namespaces import Live, opened
from .ruleset import Index, Match

NODE, CONTAINER = "node", "container"
_MAX_FILE = 1 << 16  # bytes of a file in which an owner is looked for
_SKIPPED = frozenset({"results", "networks"})  # read by attachments, and possibly large
_TUNING = "/run/cni/tuning"
_FAMILIES = (AF_INET, AF_INET6)


class Thing(NamedTuple):
    """Something in the kernel: ``kind`` (link, address, route, policy rule, queueing), in words,
    and how it was found. `where` is NODE or CONTAINER.
    """

    kind: str
    where: str
    text: str
    found: str

    def as_dict(self) -> dict[str, str]:
        """For programs."""
        return {"kind": self.kind, "where": self.where, "text": self.text, "foundBy": self.found}


class Detail(NamedTuple):
    """Everything of an attachment. `things` are of the kernel, `matches` of the packet filter,
    `paths` files with what names them, `sysctls` name, value set, and value before.
    """

    attached: Attached
    things: list[Thing]
    matches: list[Match]
    paths: list[tuple[str, str]]
    sysctls: list[tuple[str, str, str]]


def of(what: Attached, places: Places, index: Index, live: Live) -> Detail:
    """Look for all of it. Raises KernelError, OSError."""
    survey = node.survey([what], live)
    wire = survey.segments[0].wires[0]
    things = _things(what, wire, live)
    return Detail(
        what,
        things,
        index.belonging(what),
        [*((each.where, each.kind) for each in _files_found(what)), *_other_files(what, places)],
        list(_sysctls(what)),
    )


class _Room:
    """A network namespace, read by a socket of it. `names` are those of its links, by index."""

    def __init__(self, sock: Netlink) -> None:
        self.sock = sock
        self.links = {each.index: each for each in link.list_all(sock)}

    def name(self, index: int) -> str:
        found = self.links.get(index)
        return found.name if found else f"link {index}"

    def routes(self, index: int = 0) -> Iterator[Route]:
        """Those of a link (0: of all), in whichever table but that of the node's own addresses."""
        for family in _FAMILIES:
            for each in route.show(self.sock, family, index, 0):
                if each.table != route.TABLE_LOCAL:
                    yield each


def _things(what: Attached, wire: node.Wire, live: Live) -> list[Thing]:
    return [*_on_node(what, wire), *_in_container(what, live)]


def _on_node(what: Attached, wire: node.Wire) -> Iterator[Thing]:
    with Namespace.current() as namespace:
        room = _Room(namespace.netlink())
        if wire.outside is not None:
            how = "alias" if wire.outside.name in what.links else "other end of the pair"
            yield from _link(room, wire.outside.index, NODE, how)
        if wire.segment is not None:
            how = "master" if wire.outside else "carries the container's link"
            yield from _link(room, wire.segment.index, NODE, how)
        index = wire.outside.index if wire.outside else 0
        hosts = _hosts(what)
        for each in room.routes():
            # As of ptp: a route to exactly this container.
            to_it = each.dst.length == each.dst.bits and format_ip(each.dst.ip) in hosts
            if to_it or (index and each.index == index):
                how = "its address" if to_it else "the link"
                yield Thing("route", NODE, _route(room, each), how)


def _in_container(what: Attached, live: Live) -> Iterator[Thing]:
    namespace = None if what.is_dead(live) else opened(what.identity, what.netns)
    if namespace is None:
        return
    with namespace:
        yield from _inside(what, _Room(namespace.netlink()))


def _inside(what: Attached, room: _Room) -> Iterator[Thing]:
    for each in room.links.values():
        if each.name != what.ifname:
            continue
        yield from _link(room, each.index, CONTAINER, "its name")
        for entry in address.show(room.sock, each.index):
            yield Thing("address", CONTAINER, str(entry.prefix), "the link")
        for way in room.routes(each.index):
            yield Thing("route", CONTAINER, _route(room, way), "the link")
        for queue in tc.qdiscs(room.sock, each.index):
            # The default of virtual links, which says nothing.
            if queue.kind != "noqueue":
                text = f"{queue.kind} handle {queue.handle >> 16:x}:"
                yield Thing("queueing", CONTAINER, text, "the link")
    yield from _policy_rules(room, what)


def _link(room: _Room, index: int, where: str, how: str) -> Iterator[Thing]:
    each = room.links.get(index)
    if each is None:  # it went in the meantime
        return
    facts = [
        each.name,
        each.kind or "device",
        each.mac,
        f"mtu {each.mtu}",
        "up" if each.up else "down",
        f"on {room.name(each.master)}" if each.master else "",
        f"alias {each.alias}" if each.alias else "",
    ]
    yield Thing("link", where, " ".join(fact for fact in facts if fact), how)


def _hosts(what: Attached) -> set[str]:
    return {each.partition("/")[0] for each in what.addresses}


def _route(room: _Room, each: Route) -> str:
    text = str(each.dst) if each.dst.length else "default"
    text += f" via {format_ip(each.gateway)}" if each.gateway else ""
    text += f" dev {room.name(each.index)}" if each.index else ""
    text += f" src {format_ip(each.source)}" if each.source else ""
    return text + (f" table {each.table}" if each.table != route.TABLE_MAIN else "")


def _policy_rules(room: _Room, what: Attached) -> Iterator[Thing]:
    """Those that name an address of the attachment, or carry its number (sbr)."""
    hosts = _hosts(what)
    for each in rule.show(room.sock):
        source = format_ip(each.source.ip) if each.source.length else ""
        owned = each.owner == what.owner.number
        if source not in hosts and not owned:
            continue
        text = f"{each.priority}: from {source or 'all'} lookup {each.table}"
        how = "its number" if owned else "its address"
        yield Thing("policy rule", CONTAINER, text, how)


# --- files ---


def _files_found(what: Attached) -> Iterable[Any]:
    return [each for each in what.found if each.kind != "link"]


def _other_files(what: Attached, places: Places) -> Iterator[tuple[str, str]]:
    """Files below the directories of state that name the owner, or whose names do."""
    known = {each.where for each in what.found}
    marks = (what.owner.key, what.container_id)
    roots = dict.fromkeys((places.state_dir, places.results.directory, _TUNING))
    for path in dict.fromkeys(path for root in roots for path in _walk(root)):
        if path in known:
            continue
        if any(mark in os.path.basename(path) for mark in marks):
            yield path, "its name"
        elif _mentions(path, marks):
            yield path, "its content"


def _walk(root: str) -> Iterator[str]:
    for directory, folders, names in os.walk(root):
        # In place: os.walk then does not enter the others.
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            yield os.path.join(directory, name)


def _mentions(path: str, marks: Sequence[str]) -> bool:
    try:
        data = files.read(path, _MAX_FILE)
    except OSError:
        return False
    return any(mark.encode("utf-8", "surrogateescape") in data for mark in marks)


def _sysctls(what: Attached) -> Iterator[tuple[str, str, str]]:
    """Kernel parameters that tuning has set, with the values from before."""
    from cni.owner import file_name
    from cni.plugins.tuning.backup import Backup

    path = os.path.join(_TUNING, file_name(f"{what.container_id}_{what.ifname}", ".json"))
    try:
        backup = msgspec.json.decode(files.read(path, _MAX_FILE), type=Backup)
    except (OSError, msgspec.MsgspecError):
        return
    for name, (before, value) in sorted(backup.sysctl.items()):
        yield name, value, before
