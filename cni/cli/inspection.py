"""`cni inspect`: everything that a container, or a network, has on this node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from cni import stderr

from . import conflist, errors, formats, output, target
from .completion import Inspectable
from .session import CACHE_DIR
from .show import container_name
from .table import Column, Table
from .view import attachments, detail, networks, node, published, ruleset
from .view.attached import Attached, Places
from .view.detail import Detail
from .view.namespaces import Live
from .view.networks import Network

_COLUMNS = (
    Column("WHAT"),
    Column("WHERE", drop=1),
    Column("IS", cut="middle", least=30),
    Column("FOUND BY", cut="end", least=8),
)
_ATTACHED = (
    Column("CONTAINER", cut="end", least=12),
    Column("IFNAME", cut="end", least=6),
    Column("ADDRESS", cut="end", least=15),
    Column("NETNS"),
    Column("ID", wide=True),
)


@click.command("inspect")
@click.argument("what", metavar="CONTAINER|NAMESPACE/POD|NETWORK", type=Inspectable())
@CACHE_DIR
@formats.options
def inspect(what: str, cache_dir: str) -> None:
    """Show everything that a container or a network has on this node, and how it was found.

    Shows links, addresses, routes, policy rules, queueing, packet filter rules, ports,
    reservations, files and kernel parameters. A container is named by its id, or the beginning of
    it.

    \b
    Examples: cni inspect 5f1b6e0c
              cni inspect default/web-0
              cni inspect mynet -o yaml
    """  # noqa: D301 - click wants the control character
    errors.require_root("look into the containers' namespaces")
    places = Places.of(cache_dir)
    known = attachments.gather(places)
    live = Live()
    # A network first: its name is exact, while a container may be named by a part of its id.
    network = _network(what, places, known, live)
    if network is not None:
        _show_network(network, live)
        return
    chosen = _chosen(what, places, known)
    # The ruleset is read once, however many attachments are shown.
    index = ruleset.Index(ruleset.read())
    found = [detail.of(each, places, index, live) for each in chosen]
    if formats.data([_as_data(each, live) for each in found]):
        return
    if formats.current() == "name":
        formats.present(None, names=[each.attached.name for each in found])
        return
    for at, each in enumerate(found):
        if at:
            output.line("")
        _show_attachment(each, live)


def _network(name: str, places: Places, known: list[Attached], live: Live) -> Network | None:
    """The network of that name, if there is one."""
    for each in networks.survey(places.net_d, known, live):
        if each.name and each.name == name:
            return each
    return None


def _chosen(name: str, places: Places, known: list[Attached]) -> list[Attached]:
    try:
        return target.of_container(name, known)
    except errors.NotFound as error:
        names = ", ".join(conflist.known(places.net_d)) or "none"
        raise errors.NotFound(
            f"there is no container, pod or network {name}",
            f"`cni ps` shows what is attached; networks are: {names}",
        ) from error


# --- a container ---


def _as_data(each: Detail, live: Live) -> dict[str, Any]:
    what = each.attached
    return {
        **what.as_dict(live),
        "kernel": [thing.as_dict() for thing in each.things],
        "rules": [
            {"place": match.entry.place, "text": match.entry.text, "foundBy": match.why}
            for match in each.matches
        ],
        "ports": [port.as_dict() for port in published.wanted(what)],
        "reservations": [{"address": one.address, "file": one.file} for one in what.reserved],
        "files": [{"path": path, "foundBy": why} for path, why in each.paths],
        "sysctls": [
            {"name": name, "value": value, "before": before} for name, value, before in each.sysctls
        ],
    }


def _show_attachment(each: Detail, live: Live) -> None:
    what = each.attached
    output.line(f"{what.ifname} of {container_name(what)} in network {what.network}")
    facts = [
        ("container", what.container_id),
        ("netns", f"{what.netns or 'unknown'}, {what.state(live)}"),
        ("since", what.as_dict(live)["since"] or "unknown"),
        ("addresses", ", ".join(what.addresses)),
        ("ports", ", ".join(dict.fromkeys(port.name for port in published.wanted(what)))),
        ("CNI_ARGS", _on_one_line(f"{key}={value}" for key, value in what.args)),
    ]
    output.facts([fact for fact in facts if fact[1]])
    output.table(Table(_COLUMNS, list(_rows(each))), wide=formats.current() == "wide")


def _on_one_line(texts: Iterable[str]) -> str:
    # CNI_ARGS may contain line feeds, which could pretend to be further lines of the output.
    return ", ".join(stderr.printable(text, keep="") for text in texts)


def _rows(each: Detail) -> Iterator[tuple[str, str, str, str]]:
    for thing in each.things:
        yield thing.kind, thing.where, thing.text, thing.found
    for match in each.matches:
        yield "rule", "node", f"{match.entry.place}: {match.entry.short}", match.why
    for one in each.attached.reserved:
        yield "reservation", "node", one.address, "its content"
    for path, why in each.paths:
        yield "file", "node", path, why
    for name, value, before in each.sysctls:
        yield "sysctl", "container", f"{name} = {value} (was {before})", "tuning's file"


# --- a network ---


def _show_network(network: Network, live: Live) -> None:
    survey = node.survey(network.attached, live)
    segments = [
        {"name": each.name, "kind": each.kind, "addresses": each.addresses}
        for each in survey.segments
    ]
    value = {
        **network.as_dict(),
        "configuration": _configuration(network),
        "links": segments,
        "attachments": [each.as_dict(live) for each in network.attached],
    }
    if formats.data(value):
        return
    if formats.current() == "name":
        formats.present(None, names=[each.name for each in network.attached])
        return
    output.line(f"network {network.name}")
    facts = [
        ("file", network.path or "none: it is not configured any more"),
        ("version", network.version),
        ("plugins", ", ".join(network.plugins)),
        ("problem", str(network.problem) if network.problem else ""),
        *(
            ("range", f"{each.text}  {each.use} used, {each.dead} of these by dead containers")
            for each in network.ranges
        ),
        *(("link", "  ".join([each.name, each.kind, *each.addresses])) for each in survey.real),
    ]
    output.facts([fact for fact in facts if fact[1]])
    rows = [
        (
            container_name(each),
            each.ifname,
            ",".join(each.addresses) or "-",
            each.state(live),
            each.container_id,
        )
        for each in network.attached
    ]
    output.table(Table(_ATTACHED, rows), wide=formats.current() == "wide")


def _configuration(network: Network) -> list[dict[str, Any]]:
    return [plugin.raw for plugin in network.configured.plugins] if network.configured else []
