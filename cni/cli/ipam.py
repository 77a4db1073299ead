"""`cni ipam`: the addresses that host-local has handed out on this node, and their holders."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import click

from cni.ipam.host_local import plugin as host_local
from cni.ipam.host_local import reservation, usage
from cni.ipam.host_local.directory import Location, open_store, scan
from cni.ipam.host_local.ranges import RangeSet, canonical_sets
from cni.ipam.host_local.reservation import is_address
from cni.netns import liveness
from cni.protocol import config
from cni.protocol.address import InvalidAddress, canonical_ip, parse_ip
from cni.protocol.request import check_network_name

from . import cache, conflist, errors, formats, gojson, output
from .completion import Network
from .table import Column, Table

F = TypeVar("F", bound=Callable[..., Any])
_COLUMNS = (
    Column("ADDRESS"),
    Column("CONTAINER", cut="end", least=12),
    Column("IFNAME", drop=1),
    Column("SINCE", drop=2),
    Column("NAMESPACE"),
)


class Lease(NamedTuple):
    """A reservation. `netns` is "" where no result cache knows of it.

    `alive` tells whether the namespace of its ADD exists, None if that cannot be known.
    """

    address: str
    container_id: str
    ifname: str
    since: float
    netns: str
    alive: bool | None
    earlier_boot: bool
    content: bytes

    @property
    def state(self) -> str:
        """For people."""
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
            "since": usage.when(self.since),
            "netns": self.netns,
            "netnsAlive": self.alive,
            "earlierBoot": self.earlier_boot,
        }


class Reservations(NamedTuple):
    """Where a network's reservations are; `ranges` is None if no configuration was found."""

    network: str
    data_dir: str
    ranges: list[RangeSet] | None
    cache: cache.Cache

    @property
    def path(self) -> str:
        return Location.of(self.data_dir, self.network).path


@click.group()
def ipam() -> None:
    """Look after the addresses that host-local has handed out."""


def _options(function: F) -> F:
    for option in (
        formats.options,
        click.option(
            "--cache-dir",
            default=cache.DEFAULT_DIRECTORY,
            show_default=True,
            type=click.Path(file_okay=False),
            help="Its directory results tells which network namespace a container has.",
        ),
        click.option(
            "--data-dir",
            type=click.Path(file_okay=False),
            help="host-local's dataDir, if not that of the network's configuration "
            f"(without one, {host_local.DATA_DIR}).",
        ),
        click.argument("network", type=Network()),
    ):
        function = option(function)
    return function


@ipam.command("list")
@_options
def list_leases(network: str, **options: Any) -> None:
    """Show who holds which address since when, and whether its namespace is there."""
    leases = _leases(_reservations(network, **options))
    rows = []
    for each in leases:
        container, ifname = gojson.text(each.container_id), gojson.text(each.ifname)
        since = usage.when(each.since)
        rows.append((each.address, container, ifname or "-", since, each.state))
    formats.present(
        [each.as_dict() for each in leases],
        rows=Table(_COLUMNS, rows),
        names=[each.address for each in leases],
    )


@ipam.command()
@_options
@click.argument("what", metavar="ADDRESS|CONTAINER", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also if the container's namespace is there.")
@click.option("--dry-run", is_flag=True, help="Say what would be released, and change nothing.")
def release(
    network: str, what: tuple[str, ...], force: bool, dry_run: bool, **options: Any
) -> None:
    """Release addresses, or all that a container holds.

    Links, routes and rules stay: `cni del` or the runtime takes them away with the address.
    """
    held = _reservations(network, **options)
    leases = _leases(held)
    chosen = [lease for text in what for lease in _chosen(leases, text, held)]
    for each in chosen:
        if each.alive and not force:
            raise errors.Refused(
                f"{each.address} is in use by {each.holder}",
                f"its namespace {each.netns} is there: remove the container, or use --force",
            )
    if not dry_run:
        with open_store(held.data_dir, network) as store:
            for each in chosen:
                if store.content(each.address) == each.content:
                    store.release(each.address)
    verb = "would release" if dry_run else "released"
    formats.present(
        [each.as_dict() for each in chosen],
        lines=[f"{verb} {each.address}, which {each.holder} held" for each in chosen],
        names=[each.address for each in chosen],
    )


@ipam.command()
@_options
def check(network: str, **options: Any) -> None:
    """Look for reservations that should not be, and whether the index agrees with the files.

    Exit code 1 if there is anything. A wrong index is removed; the next ADD or DEL makes a new one.
    """
    held = _reservations(network, **options)
    problems = _problems(held)
    with open_store(held.data_dir, network) as store:
        wrong = store.index_differences()
        if wrong:
            store.distrust()
            problems += [f"index: {text}" for text in wrong]
    texts = [gojson.text(text) for text in problems]
    formats.done(
        {"problems": texts, "indexed": wrong == []}, f"{network}: {len(problems) or 'no'} problems"
    )
    if not formats.is_data():
        for text in problems:
            output.line(text)
    if problems:
        click.get_current_context().exit(1)


# --- finding out ---


def _reservations(network: str, *, data_dir: str | None, cache_dir: str) -> Reservations:
    """Where the network's reservations are, by the options or else the configuration.

    Raises CNIError if there are none.
    """
    check_network_name(network)
    directory = os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY
    configured, ranges = host_local.DATA_DIR, None
    try:
        for plugin in conflist.load(directory, network).plugins:
            ipam_conf = config.lookup(plugin.raw, "ipam")
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
    held = Reservations(
        network, data_dir or configured, ranges, cache.Cache(os.path.abspath(cache_dir))
    )
    if not os.path.isdir(held.path):
        raise errors.NotFound(
            f"no reservations of network {network}",
            f"there is no directory {held.path}; --data-dir names another one for its parent",
        )
    return held


def _leases(held: Reservations) -> list[Lease]:
    """All leases, sorted by address. Raises CNIError."""
    namespaces = {
        (each.container_id, each.ifname): each.netns
        for each in held.cache.attachments()
        if each.network == held.network
    }
    this_boot = reservation.this_boot()
    leases = []
    for name, content in scan(held.path):
        file = os.path.join(held.path, name)
        if not (is_address(name) and content):
            continue
        container_id, _, ifname = content.decode("utf-8", "surrogateescape").partition("\r\n")
        netns = namespaces.get((container_id, ifname), "")
        boot = reservation.boot_of(file)
        try:
            since = os.stat(file).st_mtime
        except OSError:
            continue  # just released
        earlier = boot not in (None, this_boot)
        alive = liveness.exists(reservation.namespace_of(None, file), netns)
        leases.append(Lease(name, container_id, ifname, since, netns, alive, earlier, content))
    return sorted(leases, key=lambda each: (len(parse_ip(each.address)), parse_ip(each.address)))


def _chosen(leases: list[Lease], text: str, held: Reservations) -> list[Lease]:
    """The leases of one address or container. Raises CNIError if there are none."""
    try:
        wanted = canonical_ip(text)
        chosen = [each for each in leases if canonical_ip(each.address) == wanted]
    except InvalidAddress:
        chosen = [each for each in leases if each.container_id == text]
    if not chosen:
        raise errors.NotFound(
            f"nothing is reserved for {text} in {held.network}",
            f"`cni ipam list {held.network}` shows what is, from {held.path}",
        )
    return chosen


def _problems_of_files(held: Reservations) -> list[str]:
    problems = []
    for name, content in sorted(scan(held.path)):
        if not is_address(name):
            problems.append(f"{name}: not a reservation; remove it")
        elif content == reservation.UNREADABLE:
            problems.append(f"{name}: no small regular file; it keeps the address from being used")
        elif not content:
            problems.append(f"{name}: empty, left by a process that was killed; it counts as free")
    return problems


def _problems(held: Reservations) -> list[str]:
    """What is wrong with the reservations, a line each."""
    problems = _problems_of_files(held)
    first_address: dict[tuple[str, int], str] = {}
    spelled: dict[bytes, str] = {}
    for each in _leases(held):
        packed = parse_ip(each.address)
        same = spelled.setdefault(packed, each.address)
        if same != each.address:
            problems.append(f"{each.address}: the same address as {same}, reserved twice")
        if each.earlier_boot or each.alive is False:
            gone = f"{each.netns or 'a namespace'}, which is gone"
            why = "an earlier boot" if each.earlier_boot else gone
            problems.append(
                f"{each.address}: {each.holder} was of {why}; release it with "
                f"`cni ipam release {held.network} {each.address}`"
            )
        index = next((i for i, r in enumerate(held.ranges or ()) if r.contains(packed)), None)
        if index is None:
            if held.ranges is not None:
                problems.append(f"{each.address}: outside of the configured ranges")
            continue
        other = first_address.setdefault((each.holder, index), each.address)
        if other != each.address:
            problems.append(f"{each.address}: {each.holder} holds {other} of this range set, too")
    return problems
