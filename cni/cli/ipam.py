"""`cni ipam`: the addresses that host-local has handed out on this node, and their holders."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import click

from cni import intent
from cni.ipam.host_local import plugin as host_local
from cni.ipam.host_local import reservation, usage
from cni.ipam.host_local.directory import Location, open_store, scan
from cni.ipam.host_local.ranges import RangeSet, canonical_sets
from cni.ipam.host_local.reservation import is_address
from cni.protocol import config
from cni.protocol.address import InvalidAddress, canonical_ip, parse_ip
from cni.protocol.request import check_network_name

from . import cache, conflist, errors, formats, gojson, ipam_cluster, ipam_split, output
from . import ipam_whereabouts as whereabouts
from .completion import Network, Reserved
from .ipam_problems import of_files, of_leases
from .ipam_reconcile import reconcile
from .table import Column, Table
from .view import attachments, damage, networks
from .view.attached import Attached, Places
from .view.namespaces import ALIVE, GONE, Live

F = TypeVar("F", bound=Callable[..., Any])
cache_option = click.option(
    "--cache-dir",
    default=cache.DEFAULT_DIRECTORY,
    show_default=True,
    type=click.Path(file_okay=False),
    help="Its directory results tells which network namespace a container has.",
)
_RANGES = (
    Column("NETWORK", cut="end"),
    Column("RANGE", cut="end", least=18),
    Column("SIZE", right=True, drop=1),
    Column("USED", right=True),
    Column("FREE", right=True),
    Column("DEAD", right=True),
    Column("USE", right=True, drop=2),
)
_COLUMNS = (
    Column("NETWORK", cut="end"),
    Column("ADDRESS"),
    Column("CONTAINER", cut="end", least=12),
    Column("IFNAME", cut="end", least=6, drop=1),
    Column("SINCE", drop=2),
    Column("NAMESPACE"),
    Column("ID", wide=True),
    Column("NETNS", wide=True),
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
    pod: str = ""

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
            "pod": gojson.text(self.pod),
            "since": usage.when(self.since),
            "netns": self.netns,
            "netnsAlive": self.alive,
            "earlierBoot": self.earlier_boot,
        }


class Reservations(NamedTuple):
    """Where a network's reservations are; `ranges` is None if no configuration was found.

    `configured` says whether the configuration names this directory, so that `cni gc` knows it.
    """

    network: str
    data_dir: str
    ranges: list[RangeSet] | None
    cache: cache.Cache
    configured: bool = False

    @property
    def net_d(self) -> str:
        """Where networks are configured."""
        return os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY

    @property
    def path(self) -> str:
        return Location.of(self.data_dir, self.network).path


@click.group(invoke_without_command=True)
@cache_option
@formats.options
@click.pass_context
def ipam(context: click.Context, cache_dir: str) -> None:
    """Show how much of each network's ranges is in use, or look after the addresses.

    Without a command: the ranges of host-local of all networks of this node.

    \b
    Examples: cni ipam
              cni ipam list
              cni ipam release mynet 10.22.0.3
    """  # noqa: D301 - click wants the control character
    if context.invoked_subcommand is not None:
        return
    places = Places.of(cache_dir)
    live = Live()
    output.damaged(list(damage.of_addresses(places)))
    found = networks.survey(places.net_d, attachments.gather(places), live)
    ranges = [(each, one) for each in found for one in each.ranges]
    rows = [
        (
            each.name,
            one.text,
            str(one.size),
            str(one.used),
            str(max(one.size - one.used, 0)),
            str(one.dead),
            f"{100 * one.used // one.size}%" if one.size else "-",
        )
        for each, one in ranges
    ]
    formats.present(
        [{"network": each.name, **one.as_dict()} for each, one in ranges],
        rows=Table(_RANGES, rows),
        names=[f"{each.name} {one.text}" for each, one in ranges],
    )


ipam.add_command(reconcile)


def _options(needs_network: bool) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in (
            formats.options,
            cache_option,
            click.option(
                "--data-dir",
                type=click.Path(file_okay=False),
                help="host-local's dataDir, if not that of the network's configuration "
                f"(without one, {host_local.DATA_DIR}).",
            ),
            click.argument("network", type=Network(), required=needs_network),
        ):
            function = option(function)
        return function

    return decorate


@ipam.command("list", short_help="Show who holds which address, since when.")
@_options(needs_network=False)
def list_leases(network: str | None, data_dir: str | None, cache_dir: str) -> None:
    """Show who holds which address (of NETWORK) since when, and whether its namespace is there."""
    if network or data_dir:
        if not network:
            raise click.UsageError("--data-dir needs NETWORK")
        all_held = [_reservations(network, data_dir=data_dir, cache_dir=cache_dir)]
    else:
        all_held = _all_reservations(cache_dir)
    output.damaged([each for held in all_held for each in damage.of_directory(held.path)])
    leases = [(held.network, each) for held in all_held for each in _leases(held)]
    rows = [
        (
            name,
            each.address,
            each.pod or gojson.text(each.container_id),
            gojson.text(each.ifname) or "-",
            usage.when(each.since),
            each.state,
            gojson.text(each.container_id),
            each.netns or "-",
        )
        for name, each in leases
    ]
    columns = [column._replace(wide=bool(network)) for column in _COLUMNS[:1]]
    formats.present(
        [{"network": name, **each.as_dict()} for name, each in leases],
        rows=Table([*columns, *_COLUMNS[1:]], rows),
        names=[each.address for _, each in leases],
    )


@ipam.command(short_help="Release addresses, or all of a container.")
@_options(needs_network=True)
@click.argument(
    "what",
    metavar="ADDRESS|CONTAINER|NAMESPACE/POD",
    nargs=-1,
    required=True,
    type=Reserved(),
)
@click.option("--force", is_flag=True, help="Also if the container's namespace is there.")
@click.option("--dry-run", is_flag=True, help="Say what would be released, and change nothing.")
def release(
    network: str, what: tuple[str, ...], force: bool, dry_run: bool, **options: Any
) -> None:
    """Release addresses, or all that a container (its id, its beginning, or its pod) holds.

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
        lines=[f"{verb} {each.address}, held by {each.holder}" for each in chosen],
        names=[each.address for each in chosen],
    )


@ipam.command(short_help="Find reservations that should not be.")
@_options(needs_network=True)
def check(network: str, **options: Any) -> None:
    """Look for reservations that should not be, and whether the index agrees with the files.

    Exit code 1 if there is anything. A wrong index is removed; the next ADD or DEL makes a new one.
    """
    held = _reservations(network, **options)
    if not os.access(held.path, os.R_OK | os.W_OK | os.X_OK):
        errors.require_root(f"check the reservations in {held.path}")
    problems = of_files(held) + of_leases(held, _leases(held))
    with open_store(held.data_dir, network) as store:
        wrong = store.index_differences()
        if wrong:
            store.distrust()
            problems += [f"index: {text}" for text in wrong]
    texts = [gojson.text(text) for text in problems]
    formats.done(
        {"problems": texts, "indexed": wrong == []},
        f"{network}: {len(problems) or 'no'} {'problem' if len(problems) == 1 else 'problems'}",
    )
    if not formats.is_data():
        for text in problems:
            output.paragraph(text)
    if problems:
        click.get_current_context().exit(1)


for command in (*ipam_cluster.COMMANDS, ipam_split.split, *whereabouts.COMMANDS):
    ipam.add_command(command)


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
    its_dir = data_dir or configured
    is_configured = ranges is not None and os.path.realpath(its_dir) == os.path.realpath(configured)
    results = cache.Cache(os.path.abspath(cache_dir))
    held = Reservations(network, its_dir, ranges, results, is_configured)
    if not os.path.isdir(held.path):
        raise errors.NotFound(
            f"no reservations of network {network}",
            f"there is no directory {held.path}; --data-dir names another one for its parent",
        )
    return held


def _all_reservations(cache_dir: str) -> list[Reservations]:
    """Of all networks that have any. Raises CNIError."""
    places = Places.of(cache_dir)
    return [
        Reservations(network, os.path.dirname(path), None, places.results)
        for network, path in attachments.reservation_directories(places, None)
    ]


def _leases(held: Reservations) -> list[Lease]:
    """All leases, sorted by address. Raises CNIError."""
    known = _holders(held)
    this_boot = reservation.this_boot()
    live = Live()
    leases = []
    for name, content in scan(held.path):
        file = os.path.join(held.path, name)
        if not (is_address(name) and content):
            continue
        container_id, _, ifname = content.decode("utf-8", "surrogateescape").partition("\r\n")
        holder = known.get((container_id, ifname))
        netns = holder.netns if holder else ""
        boot = reservation.boot_of(file)
        try:
            since = os.stat(file).st_mtime
        except OSError:
            continue  # just released
        earlier = boot not in (None, this_boot)
        noted = reservation.namespace_of(None, file)
        state = holder.state(live) if holder and not noted else live.state(noted, netns)
        alive = {ALIVE: True, GONE: False}.get(state)
        pod = holder.pod if holder else ""
        leases.append(Lease(name, container_id, ifname, since, netns, alive, earlier, content, pod))
    return sorted(leases, key=lambda each: (len(parse_ip(each.address)), parse_ip(each.address)))


def _holders(held: Reservations) -> dict[tuple[str, str], Attached]:
    """What else is known of the network's containers, by id and interface. Raises CNIError."""
    env = os.environ
    places = Places(held.cache, env.get("CNI_STATE_DIR") or intent.STATE_DIR, held.net_d)
    return {
        (each.container_id, each.ifname): each
        for each in attachments.gather(places, held.network, reservations=False)
    }


def _chosen(leases: list[Lease], text: str, held: Reservations) -> list[Lease]:
    """The leases of one address, container (its id, or the beginning) or pod.

    Raises NotFound, Ambiguous.
    """
    try:
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
    """Those of a container or pod. Raises Ambiguous if several containers fit."""
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
