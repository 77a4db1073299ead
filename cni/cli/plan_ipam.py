"""The addresses that IPAM would give, without reserving any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from cni.describe import catalogue, walk
from cni.describe.network import Part
from cni.ipam.host_local import plugin as host_local
from cni.ipam.host_local.ranges import RangeSet, canonical_sets
from cni.ipam.host_local.reservation import LAST_RESERVED, is_address
from cni.protocol import config
from cni.protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from cni.protocol.errors import CNIError


class Allocated(NamedTuple):
    """An address that would be given; `gateway` may be empty."""

    address: str
    length: int
    gateway: str

    @property
    def shown(self) -> str:
        """``10.0.0.2/24``."""
        return f"{self.address}/{self.length}"

    @property
    def is_v4(self) -> bool:
        return ":" not in self.address

    @property
    def subnet(self) -> str:
        return str(Prefix.parse(self.shown).network)


def allocate(network: str, part: Part, version: str) -> tuple[list[Allocated], str]:
    """The addresses that the part's IPAM plugin would give, and the unknown ones as a text."""
    name = catalogue.known_as(walk.text_at(part.node, "ipam.type"))
    # What the others give is known only to a server or to a store of the cluster.
    if name not in ("host-local", "static"):
        return [], ""
    try:
        if name == "static":
            return _configured(part), ""
        return _free(network, part, version), ""
    except (CNIError, msgspec.ValidationError, OSError) as error:
        return [], str(error)


def told(part: Part, allocated: list[Allocated], problem: str) -> Iterator[str]:
    """The steps of IPAM."""
    name = walk.text_at(part.node, "ipam.type")
    if not name:
        return
    if problem:
        yield f"ask {name} for an address, which fails: {problem}"
    elif allocated:
        shown = ", ".join(each.shown for each in allocated)
        verb = "reserve" if catalogue.known_as(name) == "host-local" else "take"
        yield f"{verb} {shown} ({name})"
    elif catalogue.known_as(name) == "dhcp":
        yield f"lease an address from the network's DHCP server ({name})"
    elif catalogue.known_as(name) == "slaac":
        yield f"wait for a router's advertisement, which gives the addresses ({name})"
    else:
        yield f"ask {name} for an address"


def _configured(part: Part) -> list[Allocated]:
    """The addresses of static. Raises CNIError."""
    member = part.node.at("ipam.addresses")
    found = []
    for node in member.node.items if member is not None else ():
        prefix = Prefix.parse(walk.text_at(node, "address"))
        found.append(Allocated(format_ip(prefix.ip), prefix.length, walk.text_at(node, "gateway")))
    return found


def _free(network: str, part: Part, version: str) -> list[Allocated]:
    """The next free address of each range set of host-local. Raises CNIError, OSError."""
    conf = config.convert(part.value(), host_local.Conf)
    if conf.ipam is None:
        return []
    sets = canonical_sets(host_local.configured_ranges(conf.ipam), version, True, conf.ipam.exclude)
    directory = os.path.join(conf.ipam.data_dir or host_local.DATA_DIR, network)
    # Without host-local's lock: nothing is reserved, and an ADD may be faster.
    taken = _taken(directory)
    return [_next(each, taken, _last(directory, at)) for at, each in enumerate(sets)]


def _taken(directory: str) -> set[bytes]:
    """The addresses that have a file."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return set()
    return {parse_ip(name) for name in names if is_address(name)}


def _last(directory: str, at: int) -> bytes | None:
    """The address that the range set gave last."""
    try:
        with open(os.path.join(directory, f"{LAST_RESERVED}{at}"), encoding="ascii") as file:
            return parse_ip(file.read(128))
    except (OSError, UnicodeDecodeError, InvalidAddress):
        return None


def _next(each: RangeSet, taken: set[bytes], last: bytes | None) -> Allocated:
    """The next free address of the set. Raises CNIError if all are taken."""
    # In host-local's order, which begins behind the address that was given last.
    for its_range, low, high in each.spans(last):
        for number in range(low, high + 1):
            packed = its_range.packed(number)
            if packed not in taken:
                gateway = format_ip(its_range.gateway)
                return Allocated(format_ip(packed), its_range.subnet.length, gateway)
    raise CNIError(f"no IP addresses available in range set: {each}")
