"""`cni graph`: the node, what its containers hang on, and the containers, as a picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from cni import files

from . import errors, formats, output
from .completion import Network
from .picture import Box, dot, svg, text
from .session import CACHE_DIR
from .show import container_name, require_network
from .view import attachments, node, published
from .view.attached import Places
from .view.namespaces import ALIVE, Live
from .view.node import Node, Segment, Wire

PICTURES = ("dot", "svg")


class Picture(NamedTuple):
    """What is drawn, and the same as data."""

    root: Box
    data: dict[str, Any]


class _Form(click.ParamType[str]):
    """A format of every command, or of a picture."""

    name = "format"

    def convert(self, value: str, param: Any, ctx: Any) -> str:
        if value not in (*formats.FORMATS, *PICTURES):
            self.fail(
                f"{value!r} is not one of {', '.join((*formats.FORMATS, *PICTURES))}", param, ctx
            )
        return value

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = (*formats.FORMATS, *PICTURES)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command()
@click.argument("network", type=Network(), required=False)
@click.option(
    "--to",
    "path",
    type=click.Path(dir_okay=False),
    help="Write the picture to this file.",
)
@CACHE_DIR
@formats.options_with(_Form(), " Also dot and svg.")
def graph(network: str | None, path: str | None, cache_dir: str) -> None:
    """Draw the node: bridges and other links, and the containers (of NETWORK) on them.

    \b
    Examples: cni graph
              cni graph mynet -o svg --to mynet.svg
              cni graph -o dot | dot -Tpng >node.png
    """  # noqa: D301 - click wants the control character
    errors.require_root("look into the containers' namespaces")
    places = Places.of(cache_dir)
    known = attachments.gather(places, network)
    if network and not known:
        require_network(network, places)
    live = Live()
    picture = _picture(node.survey(known, live), live)
    form = formats.current()
    if form in PICTURES or path:
        drawing = {"dot": dot, "svg": svg}.get(form, text)(picture.root)
        _write(drawing, path)
        if path:
            formats.done({"file": path, **picture.data}, f"{path} is written", [path])
        return
    if form in ("", "wide"):
        for line in text(picture.root).splitlines():
            # Cut, not wrapped: a wrapped line would break the drawing.
            output.fitted(line) if not form else output.line(line)
        return
    formats.present(picture.data, names=[each.name for each in known])


def _write(drawing: str, path: str | None) -> None:
    """To a file, or to stdout. Raises CommandError."""
    if path is None:
        output.line(drawing.rstrip("\n"))
        return
    try:
        # The same escapes as for a terminal, since a browser or a shell may show the file.
        files.replace(os.path.abspath(path), output.printable(drawing).encode())
    except OSError as error:
        raise errors.CommandError(
            f"cannot write {path}: {(error.strerror or str(error)).lower()}"
        ) from None


def _picture(found: Node, live: Live) -> Picture:
    boxes = [_segment(each, live) for each in found.segments]
    root = Box(found.name, "node", [each.root for each in boxes])
    return Picture(root, {"node": found.name, "segments": [each.data for each in boxes]})


def _segment(segment: Segment, live: Live) -> Picture:
    wires = [_wire(each, live) for each in segment.wires]
    facts = [segment.kind, *segment.addresses]
    if segment.link is not None and not segment.link.up:
        facts.append("down")
    label = "  ".join([segment.name, *(fact for fact in facts if fact)])
    data = {
        "name": segment.name,
        "kind": segment.kind,
        "addresses": segment.addresses,
        "up": segment.link.up if segment.link else None,
        "attachments": [each.data for each in wires],
    }
    return Picture(Box(label, segment.kind, [each.root for each in wires]), data)


def _wire(wire: Wire, live: Live) -> Picture:
    what = wire.attached
    ports = [f"{port.name.replace('/', f'->{port.target}/')}" for port in published.wanted(what)]
    state = what.state(live)
    label = "  ".join(_facts(wire, ports, state))
    data = {
        "network": what.network,
        "containerID": what.container_id,
        "pod": what.pod,
        "ifname": what.ifname,
        "kind": wire.inside.kind if wire.inside else "",
        "hostInterface": wire.outside.name if wire.outside else "",
        "addresses": what.addresses,
        "ports": list(dict.fromkeys(ports)),
        "netnsState": state,
    }
    return Picture(Box(label, "container" if state == ALIVE else "dead", []), data)


def _facts(wire: Wire, ports: list[str], state: str) -> Iterator[str]:
    """``veth1a2b ── eth0``, container, addresses, ports, and what is wrong."""
    what = wire.attached
    # veth is what most containers have; only other kinds are worth the room.
    kind = wire.inside.kind if wire.inside and wire.inside.kind != "veth" else ""
    yield f"{wire.outside.name} ── {what.ifname}" if wire.outside else what.ifname
    yield container_name(what) if what.pod else what.container_id[:12]
    yield ", ".join(what.addresses) or "no address"
    yield from filter(None, (kind, what.network, ", ".join(dict.fromkeys(ports))))
    if state != ALIVE:
        yield f"({state})"
