"""`cni dhcp`: the daemon, and a look at what it holds."""

from __future__ import annotations

from typing import Any

import click

from cni.ipam.dhcp import rpc

from . import formats
from .table import Column, Table

# The daemon parses its flags itself, -h included, as the reference's `dhcp daemon` does.
_ANY = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
_PREFIX = Column("PREFIX")  # only if an attachment has one
_COLUMNS = (
    Column("ADDRESS"),
    _PREFIX,
    Column("STATE"),
    Column("RENEW", drop=2),
    Column("EXPIRES"),
    Column("NETWORK", cut="end"),
    Column("CONTAINER", cut="end", least=12),
    Column("IFNAME", drop=1),
    Column("MAC", drop=3),
)


@click.group()
def dhcp() -> None:
    """Run the DHCP daemon, and look at its leases."""


@dhcp.command(context_settings=_ANY, short_help="Run the daemon; -h prints its flags.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def daemon(context: click.Context, flags: tuple[str, ...]) -> None:
    """Run the daemon; FLAGS as for `dhcp daemon` (-h prints them)."""
    # Loads asyncio, which `leases` does not need.
    from cni.ipam.dhcp.main import main

    context.exit(main(list(flags)))


@dhcp.command(short_help="Show the leases that the daemon holds.")
@click.option(
    "--socket",
    "path",
    default=rpc.DEFAULT_SOCKET,
    show_default=True,
    type=click.Path(),
    help="The daemon's socket.",
)
@formats.options
def leases(path: str) -> None:
    """Show the daemon's leases: address, prefix, state, remaining time, and the holder."""
    rows = rpc.call(path, "DHCP.Leases", {}, timeout=10)
    columns = tuple(c for c in _COLUMNS if c is not _PREFIX or any("prefix" in r for r in rows))
    cells = []
    for row in sorted(rows, key=lambda r: (r["network"], r["containerID"], r["ifname"])):
        prefix = (str(row.get("prefix", "-")),) if _PREFIX in columns else ()
        cells.append(
            (
                str(row.get("address", "-")),
                *prefix,
                str(row["state"]),
                _duration(row, "t1"),
                _duration(row, "expires"),
                str(row["network"]),
                str(row["containerID"]),
                str(row["ifname"]),
                str(row["mac"]),
            )
        )
    names = [str(row.get("address", row.get("prefix", "-"))) for row in rows]
    formats.present(rows, rows=Table(columns, cells), names=names)


def _duration(row: dict[str, Any], key: str) -> str:
    """Seconds from now as ``1h05m``; the past is ``-``."""
    if key not in row:
        return "-"
    seconds = row[key]
    if seconds is None:
        return "never"
    if seconds <= 0:
        return "-"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
