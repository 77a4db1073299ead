"""`cni install` and `cni uninstall`: the commands people type; the work is in cni.install."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from cni import dispatch
from cni.artifact import InstallError
from cni.install import Report
from cni.install import install as install_file
from cni.install import uninstall as uninstall_file
from cni.install import units as install_units

from . import formats, output

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
_SERVICE = click.option(
    "--service",
    is_flag=True,
    help=f"Also the systemd units of the server, in {install_units.DIRECTORY} or --units.",
)


@click.command()
@_BIN_DIR
@click.option("--python", metavar="PATH", help="The interpreter to run with (3.11 or newer).")
@_UNITS
@_SERVICE
@click.option(
    "--client-only", is_flag=True, help="Without Python: requests go to a server in a container."
)
@formats.options
def install(
    bin_dir: Path,
    python: str | None,
    units: Path | None,
    service: bool,
    client_only: bool,
) -> None:
    """Install the plugins: this file and one link for each.

    Containers may start meanwhile. A plugin of the same name that is there already is kept and
    comes back with `cni uninstall`.
    """
    if client_only and (python or units or service):
        raise click.UsageError("--client-only goes with --bin-dir, -o and --json only")
    wanted = [units / name for name in install_units.RULES] if units else []
    if service:
        wanted += [(units or install_units.DIRECTORY) / name for name in install_units.SERVER]
    source = Path(sys.argv[0]).resolve()
    try:
        report = install_file(
            source,
            bin_dir,
            dispatch.TABLE,
            python,
            _absolute(wanted),
            client_only=client_only,
        )
    except InstallError as error:
        raise click.ClickException(str(error)) from error
    runs = f"runs with {report.python}" if report.python else "needs a server (cni serve)"
    _show(report, f"cni {report.build} is in {report.bin_dir} and {runs}")


@click.command()
@_BIN_DIR
@_UNITS
@formats.options
def uninstall(bin_dir: Path, units: Path | None) -> None:
    """Remove what `cni install` made, and put back what was there before."""
    names = (*install_units.RULES, *install_units.SERVER)
    try:
        report = uninstall_file(bin_dir, _absolute(units / name for name in names) if units else [])
    except InstallError as error:
        raise click.ClickException(str(error)) from error
    nothing = not report.removed and not report.restored
    where = f"{report.bin_dir}: " + ("nothing was installed" if nothing else "uninstalled")
    _show(report, where)


def _absolute(paths: Iterable[Path]) -> list[Path]:
    return [path.absolute() for path in paths]


def _show(report: Report, headline: str) -> None:
    if formats.data(report.as_dict()):
        return
    output.line(headline)
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
            output.line(f"  {what}: {', '.join(names)}")
    if report.units:
        output.line(f"now: {install_units.hint(report.units)}")
    for warning in report.warnings:
        output.line(f"warning: {warning}", err=True)
