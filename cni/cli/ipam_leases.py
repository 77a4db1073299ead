"""The reservations of host-local on this node, and their holders."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from cni import intent
from cni.ipam.host_local import plugin as host_local
from cni.ipam.host_local import reservation, usage
from cni.ipam.host_local.directory import Location, scan
from cni.ipam.host_local.ranges import RangeSet, canonical_sets
from cni.ipam.host_local.reservation import is_address
from cni.protocol import config
from cni.protocol.address import InvalidAddress, canonical_ip, parse_ip
from cni.protocol.request import check_network_name

from . import cache, conflist, errors, gojson
from .view import attachments
from .view.attached import Attached, Places
from .view.namespaces import ALIVE, GONE, Live


class Lease(NamedTuple):
    """A reservation. `netns` is "" if no result cache has it.

    `alive`: does the namespace of its ADD exist? None if that cannot be known.
    """

    address: str
    container_id: str
    ifname: str
    since: float
    netns: str
    alive: bool | None
    earlier_boot: bool
    content: bytes
    pod: str = ""

    @property
    def state(self) -> str:
        """The state of the holder, for people."""
        if self.earlier_boot:
            return "of an earlier boot"
        return {True: "alive", False: "gone", None: "unknown"}[self.alive]

    @property
    def holder(self) -> str:
        return f"{self.container_id}/{self.ifname}" if self.ifname else self.container_id

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "address": self.address,
            "containerID": gojson.text(self.container_id),
            "ifname": gojson.text(self.ifname),
            "pod": gojson.text(self.pod),
            "since": usage.when(self.since),
            "netns": self.netns,
            "netnsAlive": self.alive,
            "earlierBoot": self.earlier_boot,
        }


class Reservations(NamedTuple):
    """The place of a network's reservations; `ranges` is None without a configuration.

    `configured`: does the configuration name this directory, so that `cni gc` looks there?
    """

    network: str
    data_dir: str
    ranges: list[RangeSet] | None
    cache: cache.Cache
    configured: bool = False

    @property
    def net_d(self) -> str:
        """The directory of network configurations."""
        return os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY

    @property
    def path(self) -> str:
        return Location.of(self.data_dir, self.network).path


def _require_no_cluster(network: str, ipam_conf: Any) -> None:
    """Raise NotFound for a network whose reservations are in a cluster's blocks."""
    kind = str(config.lookup(ipam_conf, "type")) if isinstance(ipam_conf, dict) else ""
    if any(config.means(kind, each) for each in ("cluster", "whereabouts")):
        raise errors.NotFound(
            f"network {network} has its addresses from {kind}, not from host-local",
            "`cni ipam blocks` shows the blocks of nodes, `cni ipam show IP` who has an address, "
            "and `cni ipam check --cluster` what is wrong; a DEL of the container, or the "
            "runtime's GC, releases an address",
        )


def find(network: str, *, data_dir: str | None, cache_dir: str) -> Reservations:
    """The place of the network's reservations, from the options, else from the configuration.

    Raises CNIError if there are none.
    """
    check_network_name(network)
    directory = os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY
    configured, ranges = host_local.DATA_DIR, None
    try:
        for plugin in conflist.load(directory, network).plugins:
            ipam_conf = config.lookup(plugin.raw, "ipam")
            if data_dir is None:
                _require_no_cluster(network, ipam_conf)
            if isinstance(ipam_conf, dict) and config.means(
                str(config.lookup(ipam_conf, "type")), "host-local"
            ):
                conf = config.convert(plugin.raw, host_local.Conf, "").ipam
                assert conf is not None
                configured = conf.data_dir or configured
                found_ranges = host_local.configured_ranges(conf)
                if found_ranges:
                    ranges = canonical_sets(found_ranges, "", multiple=True, exclude=conf.exclude)
    except conflist.NetworkNotFound:
        pass  # its reservations may still be there
    its_dir = data_dir or configured
    # By real path: a dataDir may be a link, as /var/run is.
    is_configured = ranges is not None and os.path.realpath(its_dir) == os.path.realpath(configured)
    results = cache.Cache(os.path.abspath(cache_dir))
    held = Reservations(network, its_dir, ranges, results, is_configured)
    if not os.path.isdir(held.path):
        raise errors.NotFound(
            f"no reservations of network {network}",
            f"there is no directory {held.path}; --data-dir names another one for its parent",
        )
    return held


def find_all(cache_dir: str) -> list[Reservations]:
    """The places of all networks that have reservations. Raises CNIError."""
    places = Places.of(cache_dir)
    return [
        Reservations(network, os.path.dirname(path), None, places.results)
        for network, path in attachments.reservation_directories(places, None)
    ]


def leases_of(held: Reservations) -> list[Lease]:
    """All leases, sorted by address. Raises CNIError."""
    known = _holders(held)
    this_boot = reservation.this_boot()
    live = Live()
    leases = []
    for name, content in scan(held.path):
        file = os.path.join(held.path, name)
        # Lock, index and hint files; or empty, of a process that was killed while it reserved.
        if not (is_address(name) and content):
            continue
        # The reference's older versions wrote the container id alone.
        container_id, _, ifname = content.decode("utf-8", "surrogateescape").partition("\r\n")
        holder = known.get((container_id, ifname))
        netns = holder.netns if holder else ""
        boot = reservation.boot_of(file)
        try:
            since = os.stat(file).st_mtime
        except OSError:
            continue  # released meanwhile
        # None: made by the reference, which notes no boot.
        earlier = boot not in (None, this_boot)
        noted = reservation.namespace_of(None, file)
        # The identity in the reservation is that of its own ADD, so it counts most.
        state = holder.state(live) if holder and not noted else live.state(noted, netns)
        alive = {ALIVE: True, GONE: False}.get(state)
        pod = holder.pod if holder else ""
        leases.append(Lease(name, container_id, ifname, since, netns, alive, earlier, content, pod))
    # IPv4 before IPv6, then by number.
    return sorted(leases, key=lambda each: (len(parse_ip(each.address)), parse_ip(each.address)))


def _holders(held: Reservations) -> dict[tuple[str, str], Attached]:
    """The known attachments of the network, by (container id, interface). Raises CNIError."""
    env = os.environ
    places = Places(held.cache, env.get("CNI_STATE_DIR") or intent.STATE_DIR, held.net_d)
    return {
        (each.container_id, each.ifname): each
        # Reservations are what this is the holder of; so they cannot tell who that is.
        for each in attachments.gather(places, held.network, reservations=False)
    }


def chosen(leases: list[Lease], text: str, held: Reservations) -> list[Lease]:
    """The leases of one address, container (its id, or the beginning) or pod.

    Raises NotFound, Ambiguous.
    """
    try:
        # IPv6 addresses have several spellings.
        wanted = canonical_ip(text)
        chosen = [each for each in leases if canonical_ip(each.address) == wanted]
    except InvalidAddress:
        chosen = _of_holder(leases, text)
    if not chosen:
        raise errors.NotFound(
            f"nothing is reserved for {text} in {held.network}",
            f"`cni ipam list {held.network}` shows what is, from {held.path}",
        )
    return chosen


def _of_holder(leases: list[Lease], text: str) -> list[Lease]:
    """The leases of a container or pod. Raises Ambiguous if several containers match."""
    exact = [each for each in leases if text and text in (each.container_id, each.pod)]
    chosen = exact or [each for each in leases if text and each.container_id.startswith(text)]
    holders = dict.fromkeys(each.container_id for each in chosen)
    if len(holders) > 1:
        fitting = "; ".join(f"{each.address} of {each.holder}" for each in chosen)
        raise errors.Ambiguous(
            f"{text} may be one of {len(holders)} containers",
            f"name one by its id, or an address: {fitting}",
        )
    return chosen
