"""`cni metrics`: what the node's state says, for Prometheus, without a server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from cni import __version__, files
from cni.record.exposition import Family, Sample, labels, text

from . import cache, errors, formats, output
from .session import CACHE_DIR
from .view import attachments, networks, published
from .view.attached import Attached, Places
from .view.namespaces import Live

_MOST_NETWORKS = 200  # with series of their own: more would be a burden for Prometheus


@click.command()
@click.option("--to", "path", metavar="FILE", help="Write to this file, atomically.")
@CACHE_DIR
@formats.options
def metrics(path: str | None, cache_dir: str) -> None:
    """Print what is in use on this node in Prometheus' text format.

    Use it on a node without a server, or for node-exporter's directory of text files. A server
    also counts requests: cni serve --metrics.

    \b
    See also: cni ipam, cni ports, cni serve --status
    """  # noqa: D301 - click wants the control character
    found = [*of_node(cache_dir), _build_info()]
    if path:
        try:
            # node-exporter, which reads the file, is usually not root.
            files.replace(path, text(found).encode(), mode=0o644)
        except OSError as error:
            raise errors.unwritable(path, error) from None
        formats.done({"file": path, **as_dict(found)}, f"{path} is written", [path])
    elif not formats.data(as_dict(found)):
        for line in text(found).splitlines():
            output.line(line)


def of_node(cache_dir: str = cache.DEFAULT_DIRECTORY) -> list[Family]:
    """What the state of this node says. Raises CNIError, click.ClickException."""
    places = Places.of(cache_dir)
    known = attachments.gather(places)
    live = Live()
    return [
        Family(
            "cni_ipam_addresses",
            "gauge",
            "Addresses of host-local: free, used, and used by containers that are gone.",
            list(_addresses(places, known, live)),
        ),
        *_of_cluster(),
        Family(
            "cni_portmap_ports",
            "gauge",
            "Ports of the node that attachments have published.",
            [Sample(_ports(known, live))],
        ),
        Family(
            "cni_attachments",
            "gauge",
            "Attachments by whether their namespace exists.",
            list(_attachments(known, live)),
        ),
    ]


def of_node_or_nothing() -> list[Family]:
    """As `of_node`; one gauge says whether it could be read. Raises nothing."""
    found: list[Family] = []
    problem = 0
    try:
        found = of_node()
    except Exception:  # noqa: BLE001 the other metrics are told all the same
        problem = 1
    about = "Whether the node's state could not be read."
    return [*found, Family("cni_state_unreadable", "gauge", about, [Sample(problem)])]


def as_dict(families: list[Family]) -> dict[str, Any]:
    """For programs: the samples of each family."""
    return {
        family.name: [{**dict(sample.labels), "value": sample.value} for sample in family.samples]
        for family in families
    }


def _build_info() -> Family:
    from cni.server.observer import build_info

    try:
        from cni._build import ID
    except ImportError:
        ID = ""  # noqa: N806 the build's own name
    return build_info(ID, __version__)


def _addresses(places: Places, known: list[Attached], live: Live) -> Iterator[Sample]:
    with_ranges = [each for each in networks.survey(places.net_d, known, live) if each.ranges]
    for network in with_ranges[:_MOST_NETWORKS]:
        for each in network.ranges:
            states = {
                "used": each.used - each.dead,
                "dead": each.dead,
                "free": max(each.size - each.used, 0),
            }
            for state, count in states.items():
                yield Sample(
                    count, labels({"network": network.name, "range": each.text, "state": state})
                )


def _of_cluster() -> list[Family]:
    """What this node has of a cluster's addresses; nothing on a node that has none."""
    from cni.ipam.cluster import survey
    from cni.ipam.cluster.node import Node
    from cni.store import settings

    uses = survey.of_node(Node(settings.data_dir({}, os.environ), ""))
    addresses, blocks = [], []
    for use in uses[:_MOST_NETWORKS]:
        for state, count in (("used", use.used), ("conflict", use.aside), ("free", use.free)):
            addresses.append(Sample(count, labels({"space": use.space, "state": state})))
        for state, count in use.blocks.items():
            blocks.append(Sample(count, labels({"space": use.space, "state": state})))
    if not uses:
        return []
    return [
        Family(
            "cni_cluster_addresses",
            "gauge",
            "Addresses of this node's blocks: free, used, and those that others on the link have.",
            addresses,
        ),
        Family("cni_cluster_blocks", "gauge", "Blocks of this node, by state.", blocks),
    ]


def _ports(known: list[Attached], live: Live) -> int:
    return len(
        {
            (port.host, port.port, port.protocol)
            for each in known
            if not each.is_dead(live)
            for port in published.wanted(each)
        }
    )


def _attachments(known: list[Attached], live: Live) -> Iterator[Sample]:
    states: dict[str, int] = {}
    for each in known:
        state = "dead" if each.is_dead(live) else "alive"
        states[state] = states.get(state, 0) + 1
    # Also 0: a series that is missing would look like a node that is not scraped.
    for state in ("alive", "dead"):
        yield Sample(states.get(state, 0), labels({"state": state}))
