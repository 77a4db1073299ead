"""`cni install` and `cni uninstall`: the commands people type; the work is in cni.install."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cni import dispatch
from cni.artifact import InstallError
from cni.install import Report, command, is_installed, put_aside
from cni.install import install as install_file
from cni.install import uninstall as uninstall_file
from cni.install import units as install_units
from cni.install.place import Place
from cni.protocol.errors import CNIError

from . import errors, formats, output
from .session import CACHE_DIR, DRY_RUN

if TYPE_CHECKING:
    from .remaining import Staying

# Below these a directory of plugins is the system's, not a trial or a user's own.
_SYSTEM = ("/opt", "/usr")
# Plugins of their own projects that are not replaced: the addresses that such a plugin has
# allocated have to be imported first, or others would get them.
_SPARED = ("whereabouts",)


class _Directory(click.Path):
    """A directory, which need not exist. An empty word is a mistake, and not the present one."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


_BIN_DIR = click.option(
    "--bin-dir",
    type=_Directory(),
    default=Path("/opt/cni/bin"),
    show_default=True,
    help="Where the container runtime looks for plugins.",
)
_UNITS = click.option(
    "--units",
    type=_Directory(),
    metavar="DIR",
    help="Also the systemd units that restore rules, and those of the DHCP daemon, in DIR, "
    f"e.g. {install_units.DIRECTORY}.",
)
_ROOT = click.option(
    "--root",
    type=_Directory(),
    metavar="DIR",
    help="Work on the system whose root directory is DIR: an image, or a package's staging "
    "directory. All other paths are of that system.",
)


@click.command()
@_BIN_DIR
@click.option("--python", metavar="PATH", help="The interpreter to run with (3.11 or newer).")
@click.option(
    "--link",
    metavar="DIR|none",
    help="Make a link to cni in this directory, so that a shell finds it. Default: "
    f"{command.DIRECTORY} if the plugins are below {' or '.join(_SYSTEM)}, else none.",
)
@_UNITS
@click.option(
    "--service",
    is_flag=True,
    help=f"Also write the server's systemd units, to {install_units.DIRECTORY} or --units.",
)
@_ROOT
@click.option(
    "--replace-whereabouts",
    is_flag=True,
    help="Also replace the plugin of the project whereabouts (docs/from-whereabouts.md).",
)
@click.option(
    "--client-only", is_flag=True, help="Need no Python: requests go to a server in a container."
)
@formats.options
def install(
    bin_dir: Path,
    python: str | None,
    link: str | None,
    units: Path | None,
    service: bool,
    root: Path | None,
    replace_whereabouts: bool,
    client_only: bool,
) -> None:
    """Install the plugins: this file and a small one for each.

    Containers may start during the installation. An existing plugin of the same name is kept, and
    `cni uninstall` restores it.
    """
    if client_only and (python or units or service):
        raise click.UsageError("--client-only goes with --bin-dir, --link, --root, -o and --json")
    place = Place.of(bin_dir, root)
    try:
        wanted, warnings = _wanted_units(place, units, service=service)
        report = install_file(
            Path(sys.argv[0]).resolve(),
            bin_dir,
            dispatch.TABLE,
            python,
            wanted,
            client_only=client_only,
            root=root,
            link=_link_directory(place, link, client_only=client_only),
            spared=() if replace_whereabouts else _SPARED,
        )
    except InstallError as error:
        raise _failed(error) from error
    report.warnings += warnings
    below = f" of {place.root}" if place.root else ""
    _show(report, f"cni {report.build} is in {report.bin_dir}{below} and {_runs_with(report)}")
    # Advice is for people, not for scripts.
    if formats.current() == "" and not client_only:
        for text in (*_next(report, place), *_more(units, service)):
            output.line(text)


def _wanted_units(
    place: Place, directory: Path | None, *, service: bool
) -> tuple[list[Path], list[str]]:
    """The units to write, and a warning for those of others that stay. Raises InstallError."""
    at = Place.of(directory or install_units.DIRECTORY, place.root).bin_dir
    wanted = [at / name for name in (*install_units.RULES, *install_units.DHCP) if directory]
    wanted += [at / name for name in install_units.SERVER if service]
    # They could be had before only by copying them, or from another package.
    theirs = install_units.foreign([at / name for name in install_units.DHCP], place)
    kept = [path for path in theirs if path in wanted]
    return [path for path in wanted if path not in kept], [
        f"{path} stays as it is" for path in kept
    ]


def _link_directory(place: Place, link: str | None, *, client_only: bool) -> Path | None:
    """The directory for the link by which a shell finds `cni`, of the system in question."""
    if link == "none":
        return None
    if link:
        return Place.of(Path(link), place.root).bin_dir
    of_system = any(place.bin_dir.is_relative_to(each) for each in _SYSTEM)
    # With a trial below /tmp or a home, no link in the system's PATH.
    return command.DIRECTORY if of_system and not client_only else None


def _runs_with(report: Report) -> str:
    if report.python == "embedded":
        return "carries its interpreter"
    return f"runs with {report.python}" if report.python else "needs a server (cni serve)"


def _next(report: Report, place: Place) -> Iterator[str]:
    """What puts into effect what was written."""
    for text in install_units.hints(report.units, place.root):
        yield f"now: {text}"


def _more(units: Path | None, service: bool) -> Iterator[str]:
    """What else `install` can do."""
    if not service:
        yield "more: --service writes systemd units of the server, which answers much faster"
    if not units:
        yield (
            "more: --units DIR writes systemd units that restore rules after a firewall's restart, "
            "and run the DHCP daemon"
        )


@click.command()
@_BIN_DIR
@_UNITS
@_ROOT
@click.option("--force", is_flag=True, help="Go on although containers are attached.")
@CACHE_DIR
@DRY_RUN
@formats.options
def uninstall(
    bin_dir: Path,
    units: Path | None,
    root: Path | None,
    force: bool,
    cache_dir: str,
    dry_run: bool,
) -> None:
    """Remove what `cni install` made, and put back what was there before.

    Refused while containers are attached that without these plugins could not be detached
    completely.
    """
    # Loads the view of the node, which `install` does not need.
    from . import remaining

    place = Place.of(bin_dir, root)
    warnings: list[str] = []
    try:
        stay = _staying(place, cache_dir)
    except CNIError as error:
        if not force:
            error.details = f"{error.details}; --force goes on all the same".lstrip("; ")
            raise
        # A node whose state is damaged must not keep the plugins for ever.
        stay, warnings = [], [f"what stays is not known: {error}"]
    if stay and not force:
        raise remaining.refusal(stay)
    paths: list[Path] = []
    if units:
        at = Place.of(units, place.root).bin_dir
        names = (*install_units.RULES, *install_units.DHCP, *install_units.SERVER)
        paths = [at / name for name in names]
    try:
        # Units of both options, whether they were written or not: a missing one is no error.
        report = uninstall_file(bin_dir, paths, root=root, dry_run=dry_run)
    except InstallError as error:
        raise _failed(error) from error
    report.warnings += warnings
    report.warnings += [
        f"stays: {text}" for text in remaining.shortened([each.text for each in stay])
    ]
    nothing = not report.removed and not report.restored
    verb = "this would go" if dry_run else "uninstalled"
    where = f"{report.bin_dir}: " + ("nothing was installed" if nothing else verb)
    _show(report, where, dryRun=dry_run)


def _staying(place: Place, cache_dir: str) -> list[Staying]:
    """What is attached and would stay. Raises CNIError if that cannot be found out."""
    if place.root is not None or os.geteuid() != 0 or not is_installed(place.bin_dir):
        return []  # no container can have been attached by them
    from .remaining import staying

    return list(staying(place.bin_dir, cache_dir, put_aside(place.bin_dir)))


def _show(report: Report, headline: str, **more: Any) -> None:
    if formats.data({**report.as_dict(), **more}):
        return
    output.line(headline)
    lists = {
        "made": report.links,
        "unchanged": report.unchanged,
        "kept": [f"{name} (as {backup})" for name, backup in report.kept.items()],
        "put back": report.restored,
        "removed": report.removed,
        "in a shell": [report.command] if report.command else [],
        "units": report.units,
    }
    for what, names in lists.items():
        if names:
            output.line(f"  {what}: {', '.join(names)}")
    for warning in report.warnings:
        output.line(f"warning: {warning}", err=True)


def _failed(error: InstallError) -> Exception:
    """What the command ends with: NotPermitted where the system has refused it to this user."""
    # So that scripts see exit code 6, and not that of a fault.
    if isinstance(error.__cause__, PermissionError):
        what, _, remedy = str(error).partition("; ")
        return errors.NotPermitted(what, remedy)
    return click.ClickException(str(error))
