"""`cni network create|rm|ls`: makes and removes configurations of networks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from cni import files
from cni.describe.findings import ERROR, Finding
from cni.kernel import link
from cni.kernel.netlink import Netlink
from cni.protocol.address import InvalidAddress, Prefix
from cni.protocol.errors import CNIError
from cni.protocol.request import check_network_name
from cni.protocol.result import encode_json

from . import (
    configurations,
    conflist,
    errors,
    formats,
    network_conf,
    output,
    status_checks,
    subnets,
    validate,
)
from .completion import Network as NetworkName
from .network_conf import DRIVERS, ON_MASTER, Wish
from .session import CACHE_DIR, DRY_RUN
from .view import attachments
from .view.attached import Places
from .view.namespaces import Live

# Sorts behind other programs' files: a runtime takes the first file for its default network.
_PREFIX = "90-"


class Group(click.Group):
    """The commands about networks; `ls` is loaded when it is used."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return ["create", "ls", "rm"]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name == "ls":
            from .show import ls

            return ls
        return super().get_command(context, name)


@click.group(cls=Group)
def network() -> None:
    """Make, list and remove the configurations of networks."""


# --- create ---------------------------------------------------------------------------------------


@network.command()
@click.argument("name")
@click.option(
    "--driver", type=click.Choice(DRIVERS), default="bridge", show_default=True, help="The plugin."
)
@click.option(
    "--subnet",
    "texts",
    metavar="PREFIX",
    multiple=True,
    help="A subnet; one of each family is possible. Without it a free one is chosen.",
)
@click.option("--ipv6", is_flag=True, help="Also a free IPv6 subnet (unique local addresses).")
@click.option("--internal", is_flag=True, help="No way out of the network, and no published ports.")
@click.option(
    "--gateway",
    default="",
    metavar="IP",
    help="The gateway in the first subnet [its first address].",
)
@click.option("--range", "ip_range", metavar="FIRST-LAST", help="Its addresses for containers.")
@click.option(
    "--master", default="", metavar="LINK", help="The master, for macvlan, ipvlan and vlan."
)
@click.option("--vlan", type=click.IntRange(0, 4094), default=0, help="The VLAN ID, for vlan.")
@click.option("--mtu", type=click.IntRange(0, 65535), default=0, help="The MTU.")
@click.option("--dry-run", is_flag=True, help="Print the configuration, and write nothing.")
@formats.options
def create(name: str, texts: tuple[str, ...], ipv6: bool, dry_run: bool, **keys: Any) -> None:
    """Write the configuration of a new network.

    A subnet that a route, a link or another network uses is refused. macvlan, ipvlan and vlan
    without --subnet get addresses by DHCP. With --dry-run the configuration is only printed.

    \b
    Examples: cni network create web
              cni network create web --subnet 10.9.0.0/24 --ipv6
              cni network create lan --driver macvlan --master eth1
    See also: cni validate, cni plan, cni ls
    """  # noqa: D301 - click wants the control character
    directory = subnets.directory()
    try:
        check_network_name(name)
    except CNIError as error:
        raise click.BadParameter(f"{error}", param_hint="NAME") from None
    if dry_run:
        conf = _conf(directory, name, texts, ipv6, **keys)
        if formats.current() == "name":
            output.line(name)
        else:
            output.document(conf, "yaml" if formats.current() == "yaml" else "json")
        return
    errors.require_root("write the configuration of a network")
    # The free subnet is chosen and written under one lock.
    with _locked(directory):
        conf = _conf(directory, name, texts, ipv6, **keys)
        path = os.path.join(directory, f"{_PREFIX}{name}.conflist")
        _write(path, encode_json(conf) + b"\n")
    first = next(iter(conflist.paths(directory)), path)
    found = _subnets_of(conf)
    value = {"network": name, "file": path, "subnets": found, "default": first == path, **conf}
    text = f"{name} is in {path}: {', '.join(found) or 'addresses by DHCP'}"
    # libcni has no other notion of a default than the order of the files.
    if first == path:
        text += "\n  it is the first there: runtimes take it for their default network"
    formats.done(value, text, [name])


def _subnets_of(conf: dict[str, Any]) -> list[str]:
    ranges = conf["plugins"][0]["ipam"].get("ranges", [])
    return [each[0]["subnet"] for each in ranges]


def _conf(
    directory: str, name: str, texts: tuple[str, ...], ipv6: bool, **keys: Any
) -> dict[str, Any]:
    """A valid configuration that does not collide with others. Raises CNIError."""
    if name in conflist.known(directory):
        raise errors.Refused(f"the network {name} exists in {directory}", "choose another name")
    driver, master = keys["driver"], keys["master"]
    _require_fitting(driver, keys, texts)
    # A macvlan's or ipvlan's containers usually get addresses of their master's own subnet.
    in_use = subnets.used(directory, except_link=master)
    chosen = [_parsed(text) for text in texts]
    for each in chosen:
        subnets.require_free(each, in_use)
    # The others lease addresses by DHCP, from a server beyond their master.
    if driver not in ON_MASTER and not chosen:
        chosen.append(subnets.free_v4(in_use))
    if ipv6 and all(each.is_v4 for each in chosen):
        chosen.append(subnets.free_v6(in_use))
    wish = Wish(
        name,
        driver,
        chosen,
        internal=keys["internal"],
        master=master,
        vlan=keys["vlan"],
        mtu=keys["mtu"],
        gateway=keys["gateway"],
        ip_range=_range(keys["ip_range"]),
        bridge=_free_bridge(name) if driver == "bridge" else "",
    )
    conf = network_conf.made(wish)
    _require_valid(directory, name, conf)
    return conf


def _require_fitting(driver: str, keys: dict[str, Any], texts: tuple[str, ...]) -> None:
    """Raises UsageError for options that do not belong to the driver."""
    if driver == "vlan" and not keys["master"]:
        with Netlink() as host:
            links = status_checks.masters_in_words(host)
        raise click.UsageError(f"vlan needs --master LINK{links}")
    for option, drivers in (("master", ON_MASTER), ("vlan", ("vlan",))):
        if keys[option] and driver not in drivers:
            raise click.UsageError(f"--{option} goes with {', '.join(drivers)} only")
    for option in ("gateway", "ip_range"):
        if keys[option] and not texts:
            shown = "--range" if option == "ip_range" else "--gateway"
            raise click.UsageError(f"{shown} needs --subnet")


def _parsed(text: str) -> Prefix:
    try:
        subnet = Prefix.parse(text)
    except InvalidAddress as error:
        raise click.BadParameter(f"{error}", param_hint="--subnet") from None
    # 10.9.0.5/24 may be meant as a subnet or as a gateway: ask rather than guess.
    if subnet != subnet.network:
        raise click.BadParameter(f"{text} has host bits: {subnet.network}", param_hint="--subnet")
    return subnet


def _range(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    try:
        return network_conf.parse_range(text)
    except (ValueError, CNIError) as error:
        raise click.BadParameter(str(error), param_hint="--range") from None


def _free_bridge(name: str) -> str:
    """The bridge's name. Raises Refused if the node has a link of that name."""
    bridge = network_conf.bridge_name(name)
    with Netlink() as host:
        if link.find(host, bridge) is not None:
            raise errors.Refused(
                f"the node has a link {bridge} already",
                f"it may be another network's: ip link show {bridge}",
            )
    return bridge


def _require_valid(directory: str, name: str, conf: dict[str, Any]) -> None:
    """Judge the configuration together with the others. Raises CommandError for errors.

    Missing plugins are no error: they may be installed later.
    """
    path = os.path.join(directory, f"{_PREFIX}{name}.conflist")
    # Judged as it will be on disk, together with the other files of the directory.
    found = validate.judge_new(path, encode_json(conf), directory)
    wrong: list[Finding] = [
        each for each in found if each.severity == ERROR and each.code != "missing-plugin"
    ]
    if wrong:
        more = [f"{each.message}: {_advice(each)}".removesuffix(": ") for each in wrong[1:]]
        details = "; ".join(filter(None, [_advice(wrong[0]), *more]))
        raise errors.CommandError(f"the network would not work: {wrong[0].message}", details)


def _advice(finding: Finding) -> str:
    """The finding's advice; if it is about a key of the new file, the option instead."""
    return finding.advice.replace("link as `master`", "link with --master")


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Hold the lock for choosing a free subnet, so that two processes do not choose the same."""
    os.makedirs(directory, mode=0o755, exist_ok=True)
    # The directory itself: a lock file in it would be one more file that runtimes look at.
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(path: str, data: bytes) -> None:
    """Write a new file, whole or not at all. Raises CommandError."""
    if os.path.lexists(path):
        raise errors.Refused(f"{path} exists", "it may be another network's: look at it")
    try:
        # sync: the network has to survive a power failure once the command has ended.
        files.replace(path, data, 0o644, sync=True)
    except OSError as error:
        raise errors.CommandError(f"cannot write {path}: {error.strerror}") from None


# --- rm -------------------------------------------------------------------------------------------


@network.command()
@click.argument("name", type=NetworkName())
@click.option("--force", is_flag=True, help="Also while containers are attached.")
@CACHE_DIR
@DRY_RUN
@formats.options
def rm(name: str, force: bool, cache_dir: str, dry_run: bool) -> None:
    """Remove the configuration of a network.

    Refused while containers are attached. A bridge stays, because it may be of another program.

    \b
    Example:  cni network rm web
    See also: cni ps, cni gc
    """  # noqa: D301 - click wants the control character
    errors.require_root("remove the configuration of a network")
    configurations.files_of_network(name)  # before the lock, whose directory would be made
    with _locked(subnets.directory()):
        # Again under the lock: another `rm` may have been faster.
        path = configurations.files_of_network(name).asked[0]
        live = Live()
        known = attachments.gather(Places.of(cache_dir), name)
        in_use = [each for each in known if not each.is_dead(live)]
        if in_use and not force:
            raise errors.Refused(
                f"{len(in_use)} {'container is' if len(in_use) == 1 else 'containers are'} "
                f"attached to {name}",
                "`cni ps` shows them; delete the containers first. --force removes the "
                "configuration all the same",
            )
        if not dry_run:
            try:
                os.unlink(path)
            except OSError as error:
                raise errors.CommandError(f"cannot remove {path}: {error.strerror}") from None
    verb = "would be removed" if dry_run else "is removed"
    dead = len(known) - len(in_use)
    value = {"network": name, "file": path, "dryRun": dry_run, "attached": len(in_use)}
    formats.done(value | {"dead": dead}, f"{path} {verb}", [name], always=dry_run)
    if dead and not formats.is_data():
        output.line(_left(name, dead), err=True)


def _left(name: str, dead: int) -> str:
    """The text about attachments of containers that have ended."""
    what = "1 attachment" if dead == 1 else f"{dead} attachments"
    remedy = f"`cni gc {name}` removes what is left"
    return f"{what} of ended containers: addresses and rules may be in use; {remedy}"
