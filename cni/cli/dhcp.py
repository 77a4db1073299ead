"""`cni dhcp`: the daemon, and a look at what it holds."""

from __future__ import annotations

from typing import Any

import click

from cni.ipam.dhcp import rpc
from cni.protocol.errors import CNIError

from . import output

_ANY = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


@click.group()
def dhcp() -> None:
    """Run the DHCP daemon, and look at its leases."""


@dhcp.command(context_settings=_ANY)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def daemon(context: click.Context, flags: tuple[str, ...]) -> None:
    """Run the daemon; FLAGS as for `dhcp daemon` (-h prints them)."""
    from cni.ipam.dhcp.main import main

    context.exit(main(list(flags)))


@dhcp.command()
@click.option(
    "--socket",
    "path",
    default=rpc.DEFAULT_SOCKET,
    show_default=True,
    type=click.Path(),
    help="The daemon's socket.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def leases(path: str, as_json: bool) -> None:
    """Show the leases the daemon holds: what, whose, in which state, and for how long."""
    try:
        rows = rpc.call(path, "DHCP.Leases", {}, timeout=10)
    except CNIError as problem:
        output.error(problem, as_json=as_json)
        click.get_current_context().exit(1)
    if as_json:
        output.json(rows)
        return
    table = [("ADDRESS", "STATE", "RENEW", "EXPIRES", "NETWORK", "CONTAINER", "IFNAME", "MAC")]
    for row in sorted(rows, key=lambda r: (r["network"], r["containerID"], r["ifname"])):
        table.append(
            (
                str(row.get("address", "-")),
                str(row["state"]),
                _duration(row, "t1"),
                _duration(row, "expires"),
                str(row["network"]),
                str(row["containerID"])[:13],
                str(row["ifname"]),
                str(row["mac"]),
            )
        )
    output.table(table)


def _duration(row: dict[str, Any], key: str) -> str:
    """Seconds from now as ``1h05m``; the past is ``-``."""
    if "address" not in row:
        return "-"
    seconds = row.get(key)
    if seconds is None:
        return "never"
    if seconds <= 0:
        return "-"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
