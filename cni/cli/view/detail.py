"""All that one attachment has on this node and in its namespace, each with how it was found.

Links, addresses, routes, policy rules and queueing disciplines are read with pyroute2, in the
namespace that the attachment's identity leads to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from cni import files

from . import node
from .attached import Attached, Places
from .namespaces import Live, opened
from .ruleset import Index, Match

if TYPE_CHECKING:
    from pyroute2 import IPRoute

NODE, CONTAINER = "node", "container"
_MAX_FILE = 1 << 16  # bytes of a file in which an owner is looked for
_SKIPPED = frozenset({"results", "networks"})  # read by attachments, and possibly large
_TUNING = "/run/cni/tuning"
_FAMILIES = (AF_INET, AF_INET6)
_RT_TABLE_MAIN, _RT_TABLE_LOCAL = 254, 255


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


def _things(what: Attached, wire: node.Wire, live: Live) -> list[Thing]:
    try:
        return [*_on_node(what, wire), *_in_container(what, live)]
    except ModuleNotFoundError as error:  # the self-contained file has no ctypes, which it needs
        if error.name != "pyroute2":
            raise
        text = "links, addresses and routes are not shown: this file is without pyroute2"
        return [Thing("note", NODE, text, "use ip(8), or the file that runs with Python")]


def _on_node(what: Attached, wire: node.Wire) -> Iterator[Thing]:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        if wire.outside is not None:
            how = "alias" if wire.outside.name in what.links else "other end of the pair"
            yield from _link(ip, wire.outside.index, NODE, how)
        if wire.segment is not None:
            how = "master" if wire.outside else "carries the container's link"
            yield from _link(ip, wire.segment.index, NODE, how)
        index = wire.outside.index if wire.outside else 0
        hosts = {address.partition("/")[0] for address in what.addresses}
        for family in _FAMILIES:
            for each in ip.get_routes(family=family):
                to_it = each.get_attr("RTA_DST") in hosts
                if each.get_attr("RTA_TABLE") == _RT_TABLE_LOCAL:
                    continue
                if to_it or _is_through(each, index):
                    how = "its address" if to_it else "the link"
                    yield Thing("route", NODE, _route(ip, each), how)


def _in_container(what: Attached, live: Live) -> Iterator[Thing]:
    namespace = None if what.is_dead(live) else opened(what.identity, what.netns)
    if namespace is None:
        return
    with namespace:
        # The descriptor leads to the namespace that was identified, whatever the path does.
        yield from _inside(what, f"/proc/{os.getpid()}/fd/{namespace.fd}")


def _inside(what: Attached, path: str) -> Iterator[Thing]:
    from pyroute2 import IPRoute

    with IPRoute(netns=path) as ip:
        for index in ip.link_lookup(ifname=what.ifname):
            yield from _link(ip, index, CONTAINER, "its name")
            yield from _addresses(ip, index)
            for family in _FAMILIES:
                for each in ip.get_routes(family=family):
                    if _is_through(each, index) and each.get_attr("RTA_TABLE") != _RT_TABLE_LOCAL:
                        yield Thing("route", CONTAINER, _route(ip, each), "the link")
            yield from _queueing(ip, index)
        yield from _policy_rules(ip, what)


def _link(ip: IPRoute, index: int, where: str, how: str) -> Iterator[Thing]:
    for each in ip.get_links(index):
        info = each.get_attr("IFLA_LINKINFO")
        kind = (info.get_attr("IFLA_INFO_KIND") if info else "") or "device"
        master = each.get_attr("IFLA_MASTER")
        facts = [
            each.get_attr("IFLA_IFNAME"),
            kind,
            each.get_attr("IFLA_ADDRESS"),
            f"mtu {each.get_attr('IFLA_MTU')}",
            str(each["state"]),
            f"on {_name(ip, master)}" if master else "",
            f"alias {alias}" if (alias := each.get_attr("IFLA_IFALIAS")) else "",
        ]
        yield Thing("link", where, " ".join(str(fact) for fact in facts if fact), how)


def _addresses(ip: IPRoute, index: int) -> Iterator[Thing]:
    for each in ip.get_addr(index=index):
        address = each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")
        yield Thing("address", CONTAINER, f"{address}/{each['prefixlen']}", "the link")


def _is_through(each: Any, index: int) -> bool:
    hops = each.get_attr("RTA_MULTIPATH") or []
    return index > 0 and (
        each.get_attr("RTA_OIF") == index or any(hop["oif"] == index for hop in hops)
    )


def _route(ip: IPRoute, each: Any) -> str:
    destination = each.get_attr("RTA_DST")
    text = f"{destination}/{each['dst_len']}" if destination else "default"
    gateway, link = each.get_attr("RTA_GATEWAY"), each.get_attr("RTA_OIF")
    source, table = each.get_attr("RTA_PREFSRC"), each.get_attr("RTA_TABLE")
    text += f" via {gateway}" if gateway else ""
    text += f" dev {_name(ip, link)}" if link else ""
    text += f" src {source}" if source else ""
    return text + (f" table {table}" if table not in (None, _RT_TABLE_MAIN) else "")


def _policy_rules(ip: IPRoute, what: Attached) -> Iterator[Thing]:
    """Those that name an address of the attachment, or carry its number (sbr)."""
    hosts = {address.partition("/")[0] for address in what.addresses}
    for family in _FAMILIES:
        for each in ip.get_rules(family=family):
            source, mark = each.get_attr("FRA_SRC"), each.get_attr("FRA_FWMARK")
            if source not in hosts and mark != what.owner.number:
                continue
            text = f"{each.get_attr('FRA_PRIORITY')}: from {source or 'all'}"
            text += f" lookup {each.get_attr('FRA_TABLE')}"
            how = "its number" if mark == what.owner.number else "its address"
            yield Thing("policy rule", CONTAINER, text, how)


def _queueing(ip: IPRoute, index: int) -> Iterator[Thing]:
    for each in ip.get_qdiscs(index=index):
        kind = each.get_attr("TCA_KIND")
        if kind not in ("noqueue", None):
            yield Thing(
                "queueing", CONTAINER, f"{kind} handle {each['handle'] >> 16:x}:", "the link"
            )


def _name(ip: IPRoute, index: int) -> str:
    for each in ip.get_links(index):
        return str(each.get_attr("IFLA_IFNAME"))
    return f"link {index}"


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
