"""The networks of this node: their configurations, their ranges, and the ranges' use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cni.ipam.host_local import plugin as host_local
from cni.ipam.host_local.ranges import RangeSet, canonical_sets
from cni.protocol import config
from cni.protocol.address import parse_ip
from cni.protocol.errors import CNIError

from .. import conflist
from ..conflist import Configured, NetworkList
from .attached import Attached
from .namespaces import Live


class Range(NamedTuple):
    """A range set of host-local: `size` addresses can be handed out, `used` are, `dead` of these
    by containers whose namespace is gone.
    """

    text: str
    size: int
    used: int
    dead: int

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        free = max(self.size - self.used, 0)
        return {
            "range": self.text,
            "size": self.size,
            "used": self.used,
            "free": free,
            "dead": self.dead,
        }

    @property
    def use(self) -> str:
        """``12/254``."""
        return f"{self.used}/{self.size}"


class Network(NamedTuple):
    """A network: its file ("" if it is not configured any more), or why that cannot be read."""

    name: str
    path: str
    configured: NetworkList | None
    problem: CNIError | None
    ranges: list[Range]
    attached: list[Attached]

    @property
    def plugins(self) -> list[str]:
        """Types, in the order of ADD."""
        return [plugin.type for plugin in self.configured.plugins] if self.configured else []

    @property
    def version(self) -> str:
        return self.configured.version if self.configured else ""

    @property
    def driver(self) -> dict[str, Any]:
        """The configuration of the first plugin."""
        return self.configured.plugins[0].raw if self.configured else {}

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "file": self.path,
            "cniVersion": self.version,
            "plugins": self.plugins,
            "ranges": [each.as_dict() for each in self.ranges],
            "attachments": len(self.attached),
            "problem": str(self.problem) if self.problem else "",
        }


def survey(net_d: str, known: Sequence[Attached], live: Live) -> list[Network]:
    """The networks of a directory, and those that attachments have, sorted by name.

    An unreadable file is listed with its problem. Raises CNIError.
    """
    found: dict[str, Network] = {}
    broken = []
    for each in conflist.survey(net_d):
        if each.network is None:
            broken.append(_broken(each))
        # The first file of a name counts, as in libcni.
        elif each.network.name not in found:
            found[each.network.name] = _network(each.path, each.network, known, live)
    for attached in known:
        if attached.network not in found:
            mine = [each for each in known if each.network == attached.network]
            found[attached.network] = Network(attached.network, "", None, None, [], mine)
    return sorted([*found.values(), *broken], key=lambda each: (each.name, each.path))


def _broken(each: Configured) -> Network:
    return Network("", each.path, None, each.problem, [], [])


def _network(path: str, configured: NetworkList, known: Iterable[Attached], live: Live) -> Network:
    mine = [each for each in known if each.network == configured.name]
    problem, ranges = None, []
    try:
        for _, sets in reserving(configured):
            ranges += [_range(each, mine, live) for each in sets]
    except CNIError as error:
        problem = error
    return Network(configured.name, path, configured, problem, ranges, mine)


def reserving(configured: NetworkList) -> list[tuple[str, list[RangeSet]]]:
    """The directory of reservations and the range sets of each plugin that uses host-local.

    Raises CNIError for a configuration that host-local would refuse.
    """
    found = []
    for plugin in configured.plugins:
        ipam = config.lookup(plugin.raw, "ipam")
        if not isinstance(ipam, dict):
            continue
        if not config.means(str(config.lookup(ipam, "type")), "host-local"):
            continue
        conf = config.convert(plugin.raw, host_local.Conf, "").ipam
        assert conf is not None
        ranges = host_local.configured_ranges(conf)
        sets = canonical_sets(ranges, "", multiple=True, exclude=conf.exclude) if ranges else []
        directory = os.path.join(conf.data_dir or host_local.DATA_DIR, configured.name)
        found.append((directory, sets))
    return found


def _range(each: RangeSet, attached: Iterable[Attached], live: Live) -> Range:
    used = dead = 0
    for holder in attached:
        count = sum(each.contains(parse_ip(one.address)) for one in holder.reserved)
        used += count
        dead += count if count and holder.is_dead(live) else 0
    return Range(str(each), each.size, used, dead)
