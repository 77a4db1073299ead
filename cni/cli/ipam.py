"""`cni ipam`: the addresses that host-local has handed out on this node, and their holders."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cni.ipam.host_local import plugin as host_local
from cni.ipam.host_local import usage
from cni.ipam.host_local.directory import open_store

from . import (
    cache,
    errors,
    formats,
    gojson,
    ipam_check,
    ipam_cluster,
    ipam_leases,
    ipam_pools,
    ipam_split,
    output,
)
from . import ipam_whereabouts as whereabouts
from .completion import Network, Reserved
from .ipam_problems import of_files, of_leases
from .ipam_reconcile import reconcile
from .table import Column, Table
from .view import attachments, damage, networks
from .view.attached import Places
from .view.namespaces import Live

F = TypeVar("F", bound=Callable[..., Any])
cache_option = click.option(
    "--cache-dir",
    default=cache.DEFAULT_DIRECTORY,
    show_default=True,
    type=click.Path(file_okay=False),
    help="The result cache, DIRECTORY/results, names the containers' network namespaces.",
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


@click.group(invoke_without_command=True)
@cache_option
@formats.options
@click.pass_context
def ipam(context: click.Context, cache_dir: str) -> None:
    """Show how much of each network's ranges is in use, or look after the addresses.

    Without a command, it shows the ranges of host-local of all networks of this node.

    \b
    Examples: cni ipam
              cni ipam list
              cni ipam release mynet 10.22.0.3
    """  # noqa: D301 - click wants the control character
    # click calls the group's function before each of its commands.
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
                help="host-local's dataDir [that of the network's configuration, or "
                f"{host_local.DATA_DIR}].",
            ),
            click.argument("network", type=Network(), required=needs_network),
        ):
            function = option(function)
        return function

    return decorate


@ipam.command("list", short_help="Show who holds which address, since when.")
@_options(needs_network=False)
def list_leases(network: str | None, data_dir: str | None, cache_dir: str) -> None:
    """Show who holds which address (of NETWORK), since when, and whether its namespace exists."""
    if network or data_dir:
        if not network:
            raise click.UsageError("--data-dir needs NETWORK")
        all_held = [ipam_leases.find(network, data_dir=data_dir, cache_dir=cache_dir)]
    else:
        all_held = ipam_leases.find_all(cache_dir)
    output.damaged([each for held in all_held for each in damage.of_directory(held.path)])
    leases = [(held.network, each) for held in all_held for each in ipam_leases.leases_of(held)]
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
    # With NETWORK on the command line, the column would repeat it in each row.
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
@click.option("--force", is_flag=True, help="Also if the container's namespace exists.")
@click.option("--dry-run", is_flag=True, help="Say what would be released, and change nothing.")
def release(
    network: str, what: tuple[str, ...], force: bool, dry_run: bool, **options: Any
) -> None:
    """Release addresses, or all that a container (its id, its beginning, or its pod) holds.

    Links, routes and rules stay; `cni del` or the runtime removes them together with the address.
    """
    held = ipam_leases.find(network, **options)
    leases = ipam_leases.leases_of(held)
    chosen = [lease for text in what for lease in ipam_leases.chosen(leases, text, held)]
    for each in chosen:
        if each.alive and not force:
            raise errors.Refused(
                f"{each.address} is in use by {each.holder}",
                f"its namespace {each.netns} is there: remove the container, or use --force",
            )
    if not dry_run:
        with open_store(held.data_dir, network) as store:
            for each in chosen:
                # Compared under the store's lock: since it was listed, the address may have been
                # released and given to another container.
                if store.content(each.address) == each.content:
                    store.release(each.address)
    verb = "would release" if dry_run else "released"
    formats.present(
        [each.as_dict() for each in chosen],
        lines=[f"{verb} {each.address}, held by {each.holder}" for each in chosen],
        names=[each.address for each in chosen],
    )


@ipam.command(short_help="Find wrong reservations.")
@_options(needs_network=False)
@click.option(
    "--cluster", is_flag=True, help="Compare this node's blocks of a cluster with the store."
)
def check(network: str | None, cluster: bool, **options: Any) -> None:
    """Look for wrong reservations, and compare the index with the files.

    Exit code 1 if there is a problem. A wrong index is removed; the next ADD or DEL makes a new
    one. With --cluster nothing is changed, and NETWORK is the network whose store is used.
    """
    if cluster:
        _report("cluster", ipam_check.of_cluster(network), {})
        return
    if network is None:
        raise click.UsageError("give NETWORK, or --cluster")
    held = ipam_leases.find(network, **options)
    # Not simply root: somebody may own a directory of their own (--data-dir).
    if not os.access(held.path, os.R_OK | os.W_OK | os.X_OK):
        errors.require_root(f"check the reservations in {held.path}")
    problems = of_files(held) + of_leases(held, ipam_leases.leases_of(held))
    with open_store(held.data_dir, network) as store:
        wrong = store.index_differences()
        if wrong:
            # The files are authoritative; the next request makes the index from them.
            store.distrust()
            problems += [f"index: {text}" for text in wrong]
    _report(network, problems, {"indexed": wrong == []})


def _report(what: str, problems: list[str], more: dict[str, Any]) -> None:
    """Show problems; exit code 1 if there are any."""
    texts = [gojson.text(text) for text in problems]
    formats.done(
        {"problems": texts, **more},
        f"{what}: {len(problems) or 'no'} {'problem' if len(problems) == 1 else 'problems'}",
    )
    if not formats.is_data():
        for text in problems:
            output.paragraph(text)
    if problems:
        click.get_current_context().exit(1)


for command in (*ipam_cluster.COMMANDS, ipam_pools.pools, ipam_split.split, *whereabouts.COMMANDS):
    ipam.add_command(command)
