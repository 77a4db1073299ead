"""Checks of attaching and detaching: an address that is used again, and what DEL leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from cni.kernel import link
from cni.protocol import config
from cni.protocol.errors import CNIError

from .. import errors
from ..conflist import NetworkList
from ..view import attachments, ruleset
from . import addresses, causes
from .containers import Container, plugin_of
from .packets import Answer, ping, why
from .row import Row, failed, passed, skipped
from .situation import Situation

_WATCHED, _INTERVAL = 3.0, 0.02  # seconds
# Packets, of one every 20 ms: on a busy machine time alone says nothing of a stale neighbour.
_TOLERATED = 50


def reused(situation: Situation, attach: Callable[[NetworkList], Container]) -> Iterator[Row]:
    """Detach the second container, and attach another with its addresses: who notices, and when?

    `attach` attaches a new container by a configuration. Both it and this raise CNIError.
    """
    second = situation.second
    reason = _not_reusable(situation)
    if second is None or reason:
        for family in situation.families:
            yield skipped("reuse", family, reason)
        return
    silent = [family for family in situation.families if ("neighbour", family) in situation.wrong]
    for family in silent:
        yield skipped("reuse", family, "not tested, as the neighbour does not answer anyway")
    families = [family for family in situation.families if family not in silent]
    if not families:
        return
    known = {family: second.address(family) for family in families}
    wanted = {family: each.address for family, each in known.items() if each is not None}
    before = second.link()
    # The first container still has the second one's MAC in its neighbour cache.
    second.detach(situation.runtime, situation.network)
    situation.second = None
    third = attach(_asking_for(situation.network, list(wanted.values())))
    situation.second = third
    for family, address in wanted.items():
        now = third.address(family)
        if now is None or now.address != address:
            yield skipped("reuse", family, f"{address} was not given again")
        else:
            yield _noticed(situation, third, family, address, before.mac if before else "")


def _not_reusable(situation: Situation) -> str:
    if situation.second is None:
        return situation.alone
    if situation.is_silent:
        return situation.beside_the_node
    apart = addresses.isolation(situation)
    if apart:
        return f"the containers are kept apart: {apart}"
    if situation.key("mode") == "vepa":
        return "in the mode vepa the switch outside connects them"
    ipam = config.lookup(situation.main.raw, "ipam")
    name = config.lookup(ipam, "type") if isinstance(ipam, dict) else None
    if not isinstance(name, str) or plugin_of(name) != "host-local":
        return "only host-local gives an address that is asked for"
    return ""


def _asking_for(network: NetworkList, wanted: list[str]) -> NetworkList:
    """The network, with a request for addresses as host-local reads it."""
    changed = []
    for plugin in network.plugins:
        raw = dict(plugin.raw)
        holder = raw
        if plugin_of(plugin.type) == "flannel":
            holder = raw["delegate"] = dict(config.lookup(raw, "delegate") or {})
        given = config.lookup(holder, "args")
        args: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
        cni = args.get("cni")
        # By args.cni.ips host-local is asked for certain addresses.
        args["cni"] = {**(cni if isinstance(cni, dict) else {}), "ips": wanted}
        # Plugins read keys in any case: two of them would be ambiguous.
        for key in [key for key in holder if key.lower() == "args"]:
            del holder[key]
        holder["args"] = args
        changed.append(plugin._replace(raw=raw) if plugin is network.plugins[0] else plugin)
    return network._replace(plugins=tuple(changed))


def _noticed(
    situation: Situation, third: Container, family: int, address: str, old_mac: str
) -> Row:
    namespace = situation.first.namespace
    try:
        with situation.waiting():
            found = ping(namespace, address, timeout=_WATCHED, interval=_INTERVAL)
    except OSError as error:
        found = Answer(False, why(error))
    own = third.link()
    mac = own.mac if own is not None else ""
    if found.arrived and found.lost <= _TOLERATED:
        lost = f"{found.lost} packets lost" if found.lost != 1 else "1 packet lost"
        text = f"{address} of a new container answers: {'nothing' if not found.lost else lost}"
        return passed("reuse", family, text if found.lost else f"{text} lost")
    known = causes.stale(namespace, address, mac)
    seen = f"; the neighbour still has {known}" if known else ""
    if known and known == old_mac:
        seen += ", the MAC of the container before"
    after = f"after {found.seconds:.1f} s" if found.arrived else f"not within {_WATCHED:.0f} s"
    return failed(
        "reuse",
        family,
        f"{address} of a new container answers {after}{seen}",
        "the plugin does not announce the address, or something drops the announcement "
        "(gratuitous ARP, unsolicited neighbour advertisement)",
    )


def detached(situation: Situation, containers: list[Container]) -> Iterator[Row]:
    """Detach all, and look for what is left of them: links, reservations, files, rules."""
    problems = []
    for each in containers:
        try:
            each.detach(situation.runtime, situation.network)
        except CNIError as error:
            problems.append(str(error))
    if problems:
        text = "; ".join(dict.fromkeys(problems))
        yield failed("detach", 0, text, f"put that right, then: cni gc {situation.network.name}")
        return
    left = [text for each in containers for text in _left_of(situation, each)]
    rules, unread = _rules_left(containers)
    left += rules
    if left:
        shown = "; ".join(dict.fromkeys(left))
        remedy = "its plugin's DEL does not remove it: `cni trace --del` shows what each does"
        yield failed("detach", 0, f"DEL has left {shown}", remedy)
        return
    looked = "links, reservations, files" + ("" if unread else ", rules")
    text = f"DEL has left nothing ({looked})"
    yield passed("detach", 0, f"{text}; rules could not be read: {unread}" if unread else text)


def _left_of(situation: Situation, container: Container) -> Iterator[str]:
    for name in sorted(container.links() - container.links_before):
        yield f"the link {name} in the container"
    number = container.number()
    for each in link.list_all(situation.node):
        # The host outside is removed at the end of the command only.
        is_outside = situation.outside is not None and each.name == situation.outside.link_name
        if number is not None and each.peer_nsid == number and not is_outside:
            yield f"the link {each.name} on the node"
    for attached in attachments.gather(situation.places, situation.network.name):
        if attached.container_id == container.attachment.container_id:
            for found in attached.found:
                yield f"the {found.kind} {found.where}"


def _rules_left(containers: list[Container]) -> tuple[list[str], str]:
    """Rules, map and set elements that name a container; and why they could not be read."""
    try:
        index = ruleset.Index(ruleset.read())
    except errors.CommandError as error:
        return [], str(error)
    found = []
    for each in containers:
        for match in index.belonging(each.known()):
            # An address may be another container's by now.
            if match.why != "address":
                found.append(f"a rule: {match.entry.place}: {match.entry.short}")
    return found, "" if ruleset.has_nft() else "the program nft is not installed"


def attached(situation: Situation) -> Row:
    """What was attached, by which plugins."""
    names = ", ".join(plugin.type for plugin in situation.network.plugins)
    containers = [situation.first, *([situation.second] if situation.second is not None else [])]
    shown = [
        ", ".join(
            str(each.address(family).address)  # type: ignore[union-attr]
            for family in each.families
        )
        or "no address"
        for each in containers
    ]
    return passed("attach", 0, f"{names}: {' and '.join(shown)}")
