"""What the addresses of networks mean: ranges, gateways, and subnets that overlap.

Ranges are judged by host-local's own code (cni/ipam/host_local/ranges.py).
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from cni.ipam.host_local.ranges import Range, RangeConf, RangeSet, canonical, excluded
from cni.protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from cni.protocol.config import fold_keys
from cni.protocol.errors import CNIError

from . import catalogue, pairs, walk
from .document import Node
from .findings import ERROR, WARNING
from .network import Network, Part


class Place(msgspec.Struct):
    """A range of a network, or an address with its prefix (then `range` is None)."""

    network: Network
    part: Part
    node: Node
    path: str
    subnet: Prefix
    range: Range | None = None

    @property
    def link(self) -> str:
        """The link that carries the network: a bridge or a master; empty if that is not known."""
        plugin, node = self.part.plugin, self.part.node
        if plugin in pairs.ON_BRIDGE:
            get = walk.getter(node)
            return pairs.bridge_name(plugin, get("bridge"), get("vni"))
        return walk.text_at(node, "master")

    @property
    def is_on_node(self) -> bool:
        """Is the subnet on a link of the node, so that routes lead there?"""
        get = walk.getter(self.part.node)
        return pairs.is_gateway(self.part.plugin, get("isGateway"), get("isDefaultGateway"))

    def shown(self) -> str:
        """The range, or the subnet."""
        return str(self.range) if self.range is not None else str(self.subnet)

    def add(self, code: str, message: str, advice: str = "", *, severity: str = ERROR) -> None:
        """Note a finding there."""
        self.part.report.add(self.node, code, self.path, message, advice, severity=severity)


def judge(network: Network, *, quiet: bool = False) -> list[Place]:
    """Judge the ranges and addresses of a network; those that are right are returned.

    `quiet` notes nothing.
    """
    # Judging adds findings as it goes; `quiet` takes them back in the end.
    noted = {id(part): list(part.report.findings) for part in network.parts}
    places: list[Place] = []
    for part in network.parts:
        ipam = part.node.get("ipam")
        # flannel puts the ranges into `ipam` only at the ADD.
        if ipam is None or ipam.node.kind != "object" or part.plugin == "flannel":
            continue
        kind = catalogue.known_as(walk.text_at(ipam.node, "type"))
        path = walk.below(part.path, ipam.key)
        if kind == "host-local":
            places += _ranges(network, part, ipam.node, path)
        elif kind == "static":
            _addresses(part, ipam.node, path)
        if kind in ("host-local", "static"):
            _judge_routes(part, ipam.node, path)
    for part in network.parts if quiet else ():
        part.report.findings[:] = noted[id(part)]
    return places


# --- host-local ---


def _ranges(network: Network, part: Part, ipam: Node, path: str) -> list[Place]:
    """The ranges of host-local: each on its own, and with each other."""
    sets: list[list[Place]] = []
    if ipam.get("subnet") is not None:
        sets.append(_set(network, part, [(ipam, path)]))
    ranges = ipam.get("ranges")
    for index, each in enumerate(ranges.node.items if ranges is not None else []):
        inner = f"{path}.ranges[{index}]"
        if each.kind == "array" and not each.items:
            part.report.add(each, "empty", inner, f"{inner} is empty: a set needs a range")
        nodes = [(node, f"{inner}[{at}]") for at, node in enumerate(each.items)]
        sets.append(_set(network, part, nodes))
    places = [place for each in sets for place in each]
    for at, place in enumerate(places):
        _judge_earlier(place, places[:at])
    _judge_families(network, sets)
    _judge_room(ipam, sets)
    return places


def _set(network: Network, part: Part, nodes: list[tuple[Node, str]]) -> list[Place]:
    """The ranges of one set that are right; they must be of one family."""
    places: list[Place] = []
    for node, path in nodes:
        place = _range(network, part, node, path)
        if place is None:
            continue
        if places and places[0].subnet.is_v4 != place.subnet.is_v4:
            advice = "give IPv4 and IPv6 ranges in range sets of their own"
            place.add("range", f"{path}: mixed address families", advice)
            continue
        places.append(place)
    return places


def _range(network: Network, part: Part, node: Node, path: str) -> Place | None:
    """One range with the position of its subnet; None if it is wrong, which is noted."""
    member = node.get("subnet")
    # Its absence or type is a finding of walk.py.
    if member is None or member.node.kind != "string":
        return None  # noted already
    keys = ("subnet", "rangeStart", "rangeEnd", "gateway", "exclude")
    # Only these keys: an unknown one beside them must not hide what is wrong with the range.
    value = {
        key.lower(): fold_keys(found.node.plain(), {}) for key in keys if (found := node.get(key))
    }
    try:
        conf = msgspec.convert(value, RangeConf)
        found_range = canonical(conf)
    except msgspec.ValidationError:
        return None
    except CNIError as error:
        _wrong_range(part, node, path, error)
        return None
    place = Place(network, part, member.node, f"{path}.subnet", found_range.subnet, found_range)
    _judge_gateway(part, node, path, found_range.subnet)
    return place


def _wrong_range(part: Part, node: Node, path: str, error: CNIError) -> None:
    """Note the error at the key that it is about, unless the form of a text was noted there."""
    if isinstance(error, InvalidAddress):
        return
    key = "subnet"
    for name in ("rangeStart", "rangeEnd"):
        if error.msg.lower().startswith(name.lower()) and node.get(name) is not None:
            key = name
    member = node.get(key)
    if member is not None:
        part.report.add(member.node, "range", f"{path}.{key}", error.msg, error.details)


def _judge_gateway(part: Part, node: Node, path: str, subnet: Prefix) -> None:
    member = node.get("gateway")
    if member is None or part.plugin in pairs.ALONE:  # which has a route to the gateway
        return
    try:
        packed = parse_ip(member.node.scalar or "")
    except (CNIError, TypeError, AttributeError):
        return
    if packed[:2] == b"\xfe\x80":  # a router's link-local address, which every link reaches
        return
    where = f"{path}.gateway"
    if len(packed) != len(subnet.ip) or not subnet.contains(packed):
        message = f"the gateway {member.node.scalar} is not in the subnet {subnet.network}"
        part.report.add(member.node, "gateway", where, message, "containers cannot reach it")
    # A /31 has no network and no broadcast address (RFC 3021), and IPv6 has none at all.
    elif subnet.is_v4 and subnet.length < 31 and packed in (subnet.network.ip, subnet.broadcast):
        what = "network" if packed == subnet.network.ip else "broadcast"
        message = f"the gateway {member.node.scalar} is the {what} address of {subnet.network}"
        part.report.add(member.node, "gateway", where, message, "no host can have it")


def _judge_earlier(place: Place, earlier: list[Place]) -> None:
    for other in earlier:
        if place.range is None or other.range is None or not place.range.overlaps(other.range):
            continue
        line, _ = other.part.report.document.position(other.node.start)
        message = f"{place.range} overlaps with {other.range} in line {line}"
        place.add("overlap", message, "set rangeStart and rangeEnd apart")
        return


def _judge_room(ipam: Node, sets: list[list[Place]]) -> None:
    """Each set must have an address to hand out: not the gateway, and not excluded."""
    member = ipam.get("exclude")
    holes = []
    for each in member.node.items if member is not None else []:
        with suppress(CNIError):  # its form was noted
            # ipam.exclude counts for every range of its family.
            holes.append(excluded(each.scalar if isinstance(each.scalar, str) else ""))
    for places in sets:
        ranges = [
            place.range._replace(
                holes=(
                    *place.range.holes,
                    *((low, high) for width, low, high in holes if width == place.range.width),
                )
            )
            for place in places
            if place.range is not None
        ]
        if ranges and not RangeSet(tuple(ranges)).size:
            shown = ",".join(map(str, ranges))
            message = f"{shown} has no address to hand out"
            places[0].add("range", message, "the gateway and `exclude` take all of them")


def _judge_families(network: Network, sets: list[list[Place]]) -> None:
    """Before 0.3.0 a result has one address of each family."""
    if network.version not in ("0.1.0", "0.2.0", ""):
        return
    firsts = [each[0] for each in sets if each]
    for is_v4 in (True, False):
        same = [each for each in firsts if each.subnet.is_v4 is is_v4]
        if len(same) > 1:
            message = f"version {network.version} has one address of each family"
            same[1].add("version", message, "use cniVersion 0.3.0 or later")


# --- static ---


def _addresses(part: Part, ipam: Node, path: str) -> None:
    """The gateway of each address must be in its subnet."""
    member = ipam.get("addresses")
    for index, node in enumerate(member.node.items if member is not None else []):
        if node.kind != "object":
            continue
        try:
            subnet = Prefix.parse(walk.text_at(node, "address"))
        except CNIError:
            continue
        where = f"{path}.addresses[{index}]"
        _judge_gateway(part, node, where, subnet)
        without = part.plugin in pairs.ALONE and not walk.text_at(node, "gateway")
        if without and not _may_be_replaced(part):
            message = f"{where}.gateway is missing: ptp puts it on the node's end"
            advice = f'for example "gateway": "{format_ip(subnet.nth(1))}"'
            part.report.add(node, "missing-key", f"{where}.gateway", message, advice)


def _may_be_replaced(part: Part) -> bool:
    """May other addresses count than those of `ipam.addresses`?"""
    value = fold_keys(part.value(), {})
    given = [value.get("capabilities"), value.get("runtimeconfig"), value.get("args")]
    return any(given)


# --- routes ---


def _judge_routes(part: Part, ipam: Node, path: str) -> None:
    """A next hop must be of the family of its destination."""
    member = ipam.get("routes")
    for index, node in enumerate(member.node.items if member is not None else []):
        hop = node.get("gw") if node.kind == "object" else None
        if hop is None:
            continue
        try:
            packed = parse_ip(walk.text_at(node, "gw"))
            dst = Prefix.parse(walk.text_at(node, "dst"))
        except CNIError:
            continue  # noted already
        if len(packed) != len(dst.ip):
            message = f"the next hop {hop.node.scalar} is not of the family of {dst}"
            where = f"{path}.routes[{index}].gw"
            part.report.add(hop.node, "value", where, message, "the kernel refuses the route")


# --- several networks ---


def judge_together(places: list[Place], judged: set[str]) -> None:
    """Note subnets of different networks that overlap; only in files that are `judged`.

    It is an error if both are on the node, or on one link; else the networks may be apart.
    """
    for at, place in enumerate(places):
        for other in places[:at]:
            if place.network is other.network or not _share(place, other):
                continue
            # A fault is reported in a file that was asked for, even if the other one is wrong.
            mine = place if place.part.report.file in judged else other
            theirs = other if mine is place else place
            if mine.part.report.file not in judged:
                continue
            _note_overlap(mine, theirs)


def _share(one: Place, other: Place) -> bool:
    """Do they overlap? On one link it is the ranges that matter, elsewhere the subnets."""
    if one.link and one.link == other.link and one.range is not None and other.range is not None:
        return one.range.overlaps(other.range)
    return one.subnet.is_v4 == other.subnet.is_v4 and one.subnet.overlaps(other.subnet)


def _note_overlap(mine: Place, theirs: Place) -> None:
    same_link = bool(mine.link) and mine.link == theirs.link
    both = mine.is_on_node and theirs.is_on_node
    line, column = theirs.part.report.document.position(theirs.node.start)
    where = f"{theirs.part.report.file}:{line}:{column}"
    if same_link:
        advice = f"both are on {mine.link}: two containers would get one address"
    elif both:
        advice = "the node can have a route to one of them only"
    else:
        advice = "it works if the networks are apart"
    message = f"{mine.shown()} overlaps with {theirs.shown()} of {theirs.network.name} ({where})"
    severity = ERROR if same_link or both else WARNING
    mine.add("overlap", message, advice, severity=severity)
