"""Judges the order of a network's plugins, and their dependencies on each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import catalogue, pairs, walk
from .findings import WARNING

if TYPE_CHECKING:
    from .network import Part

# Main plugins that may follow another: ipvlan is made on the interface before it.
_CHAINABLE = frozenset({"ipvlan", "loopback"})
# Standard capabilities that runtimes give, and that plugins of other projects read.
_OTHERS = frozenset({"aliases", "infinibandGUID", "cgroupPath"})


def judge(parts: list[Part]) -> None:
    """Note problems of the order of the parts."""
    made_by: Part | None = None  # the part that makes the interface
    for part in parts:
        described = catalogue.plugin(part.type) if part.type else None
        if described is None:  # another project's plugin may do anything
            made_by = made_by or part
            continue
        if described.place == "chained":
            _judge_chained(part, made_by)
        elif made_by is None:
            require_master(part)
            # A list may begin with loopback; the interface is then made by the next plugin.
            made_by = part if part.plugin != "loopback" else None
        elif part.plugin not in _CHAINABLE and made_by.plugin:
            _add(
                part,
                f"{part.type} would make the interface that {made_by.type} has made",
                "a network has one plugin that makes the interface, and it comes first",
            )
        _judge_capabilities(part)


def require_master(part: Part) -> None:
    """Note that vlan lacks a master, unless an earlier plugin or the runtime provides one."""
    if part.plugin != "vlan" or part.node.get("master") is not None or _gets_device(part):
        return
    # The object of a single plugin may come from a runtime, with the result before it.
    if part.node.get("prevResult") is None:
        where = walk.below(part.path, "master")
        message = f"{where} is missing: the link whose VLAN it is"
        part.report.add(part.node, "missing-key", where, message, 'for example "master": "eth0"')


def _gets_device(part: Part) -> bool:
    """Does the runtime select the master?"""
    declared = part.node.get("capabilities")
    if declared is not None and declared.node.kind == "object":
        for member in declared.node.members:
            if member.key == "deviceID" and member.node.scalar is True:
                return True
    return bool(walk.text_at(part.node, "runtimeConfig.deviceID"))


def _judge_chained(part: Part, made_by: Part | None) -> None:
    if made_by is None:
        _add(
            part,
            f"{part.type} comes before a plugin that makes the interface",
            "move it behind that plugin",
        )
        return
    maker = made_by.plugin
    if not maker:
        return
    policy = walk.text_at(part.node, "ingressPolicy")
    if part.plugin == "firewall" and policy not in ("", "open") and not _has_bridge(maker):
        _add(
            part,
            f"ingressPolicy needs a bridge, and {made_by.type} has none",
            "it works with the plugins bridge and vxlan",
            key="ingressPolicy",
        )


def _has_bridge(maker: str) -> bool:
    return maker in pairs.ON_BRIDGE or maker == "flannel"  # which calls bridge


def _judge_capabilities(part: Part) -> None:
    """A declared capability that nobody reads has no effect."""
    declared = part.node.get("capabilities")
    if declared is None or declared.node.kind != "object":
        return
    names = [part.plugin, walk.text_at(part.node, "ipam.type")]
    described = [catalogue.plugin(name) for name in names if name]
    # flannel passes everything on to its delegate.
    if None in described or part.plugin == "flannel":
        return  # another project's plugin may read it
    known = {name for each in described if each for name in catalogue.capabilities(each)}
    for member in declared.node.members:
        if member.node.scalar is not True or member.key in known:
            continue
        like = catalogue.near(member.key, sorted(known))
        owners = [
            each.name for each in catalogue.plugins() if member.key in catalogue.capabilities(each)
        ]
        advice = f"{', '.join(owners)} read{'s' if len(owners) == 1 else ''} it" if owners else ""
        if like:
            advice = f"did you mean {like}?"
        elif member.key in _OTHERS:
            advice = "plugins of other projects read it"
        path = f"{walk.below(part.path, 'capabilities')}.{member.key}"
        message = f"{part.type} does not read the capability {member.key}"
        part.report.add(member, "capability", path, message, advice, severity=WARNING)


def _add(part: Part, message: str, advice: str, key: str = "type") -> None:
    member = part.node.get(key) or part.node
    part.report.add(member, "order", walk.below(part.path, key), message, advice)
