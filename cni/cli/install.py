"""`cni install` and `cni uninstall`: the commands people type; the work is in cni.install."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from cni import dispatch, install_units
from cni.install import Report
from cni.install import install as install_file
from cni.install import uninstall as uninstall_file
from cni.interpreter import InstallError

_BIN_DIR = click.option(
    "--bin-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/opt/cni/bin"),
    show_default=True,
    help="Where the container runtime looks for plugins.",
)
_UNITS = click.option(
    "--units",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also the systemd units that restore rules, e.g. in /etc/systemd/system.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")


@click.command()
@_BIN_DIR
@click.option("--python", metavar="PATH", help="The interpreter to run with (3.11 or newer).")
@_UNITS
@_JSON
def install(bin_dir: Path, python: str | None, units: Path | None, as_json: bool) -> None:
    """Install the plugins: this file and one link for each.

    Containers may start meanwhile. A plugin of the same name that is there already is kept and
    comes back with `cni uninstall`.
    """
    try:
        report = install_file(Path(sys.argv[0]).resolve(), bin_dir, dispatch.TABLE, python)
        if units is not None:
            report.units = install_units.write(units, bin_dir)
    except InstallError as error:
        raise click.ClickException(str(error)) from error
    _show(
        report, as_json, f"cni {report.build} is in {report.bin_dir} and runs with {report.python}"
    )


@click.command()
@_BIN_DIR
@_UNITS
@_JSON
def uninstall(bin_dir: Path, units: Path | None, as_json: bool) -> None:
    """Remove what `cni install` made, and put back what was there before."""
    try:
        report = uninstall_file(bin_dir)
        if units is not None:
            report.removed += install_units.remove(units)
    except InstallError as error:
        raise click.ClickException(str(error)) from error
    nothing = not report.removed and not report.restored
    where = f"{report.bin_dir}: " + ("nothing was installed" if nothing else "uninstalled")
    _show(report, as_json, where)


def _show(report: Report, as_json: bool, headline: str) -> None:
    if as_json:
        click.echo(json.dumps(report.json(), indent=4))
        return
    click.echo(headline)
    lists = {
        "linked": report.links,
        "linked before": report.unchanged,
        "kept": [f"{name} (as {backup})" for name, backup in report.kept.items()],
        "put back": report.restored,
        "removed": report.removed,
        "units": report.units,
    }
    for what, names in lists.items():
        if names:
            click.echo(f"  {what}: {', '.join(names)}")
    if report.units:
        enabled = " ".join(install_units.NAMES)
        click.echo(f"now: systemctl daemon-reload && systemctl enable --now {enabled}")
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
