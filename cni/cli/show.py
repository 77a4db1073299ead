"""`cni ls`, `cni ps`, `cni ports` and `cni rules`: what is on this node, in one table each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import click

from . import errors, formats, output, target
from .completion import Container, Network, PortName
from .session import CACHE_DIR
from .table import Column, Table
from .view import attachments, bridges, damage, networks, published, ruleset
from .view.attached import Attached, Places
from .view.namespaces import Live

_NETWORKS = (
    Column("NAME", cut="end", least=10),
    Column("PLUGINS", cut="end", least=8),
    Column("RANGE", cut="end", least=18),
    Column("USED", right=True),
    Column("ATTACHED", right=True, drop=1),
    Column("VERSION", wide=True),
    Column("FILE", wide=True),
)
_ATTACHMENTS = (
    Column("NETWORK", cut="end", drop=2),
    Column("CONTAINER", cut="end", least=12),
    Column("IFNAME", cut="end", least=6),
    Column("ADDRESS", cut="end", least=15),
    Column("PORTS", cut="end", least=12, drop=1),
    Column("SINCE", right=True),
    Column("NETNS"),
    Column("ID", wide=True),
    Column("PATH", wide=True),
    Column("FOUND", wide=True),
)
_PORTS = (
    Column("PORT", cut="middle", least=14),
    Column("TO", cut="middle", least=16),
    Column("NETWORK", cut="end", drop=2),
    Column("CONTAINER", cut="end", least=12),
    Column("BACKEND", drop=1),
    Column("STATE"),
    Column("ID", wide=True),
)


@click.command()
@CACHE_DIR
@formats.options
def ls(cache_dir: str) -> None:
    """Show the networks of this node: plugins, ranges and their use, attachments.

    A network that is no longer configured is listed as long as something is attached to it.

    \b
    See also: cni ps NETWORK, cni inspect NETWORK, cni ipam
    """  # noqa: D301 - click wants the control character
    places = Places.of(cache_dir)
    live = Live()
    # Such files are skipped below, so without these lines a container would be missing silently.
    output.damaged([*damage.of_attachments(places), *damage.of_addresses(places)])
    found = networks.survey(places.net_d, attachments.gather(places), live)
    rows = []
    for each in found:
        if each.problem is not None:
            text = str(each.problem)
            output.line(text if each.path in text else f"{each.path}: {text}", err=True)
        rows.append(
            (
                each.name or "?",
                ",".join(each.plugins) or ("not configured" if not each.problem else "?"),
                ",".join(one.text for one in each.ranges) or "-",
                ",".join(one.use for one in each.ranges) or "-",
                str(len(each.attached)),
                each.version or "-",
                each.path or "-",
            )
        )
    if not found and formats.current() in ("", "wide"):
        text = f"no network configurations in {places.net_d}; `cni network create` writes one"
        output.line(text, err=True)
    formats.present(
        [each.as_dict() for each in found],
        rows=Table(_NETWORKS, rows),
        names=[each.name for each in found if each.name],
    )


@click.command()
@click.argument("network", type=Network(), required=False)
@CACHE_DIR
@formats.options
def ps(network: str | None, cache_dir: str) -> None:
    """Show what is attached (to NETWORK): container or pod, addresses, ports, since when.

    NETNS says whether the container's network namespace still exists (alive) or not (gone);
    `cni gc` deletes attachments whose namespace is gone.

    \b
    See also: cni inspect, cni ports, cni graph
    """  # noqa: D301 - click wants the control character
    places = Places.of(cache_dir)
    known = attachments.gather(places, network)
    output.damaged([*damage.of_attachments(places), *damage.of_addresses(places, network)])
    if network and not known:
        require_network(network, places)
    live = Live()
    # Their namespaces are alive, so nothing in the table would show it.
    lost = list(bridges.cut_off(known, live))
    for text in bridges.in_words(lost):
        output.line(text, err=True)
    rows = [
        (
            each.network,
            container_name(each),
            each.ifname,
            _joined(each.addresses),
            _joined([f"{port.name.replace('/', f'->{port.target}/')}" for port in _asked(each)]),
            age(each.since),
            each.state(live),
            each.container_id,
            each.netns or "-",
            ",".join(dict.fromkeys(source.kind for source in each.found)),
        )
        for each in known
    ]
    formats.present(
        [
            {
                **each.as_dict(live),
                "ports": [port.as_dict() for port in published.wanted(each)],
                "cutOff": next((one.text for one in lost if one.attached is each), ""),
            }
            for each in known
        ],
        rows=Table(_ATTACHMENTS, rows),
        names=[each.name for each in known],
    )


@click.command()
@click.argument("port", type=PortName(), required=False)
@CACHE_DIR
@formats.options
def ports(port: str | None, cache_dir: str) -> None:
    """Show which ports of this node lead to which containers; or who has PORT (8080, 53/udp).

    STATE is `published` if the packet filter has rules for the port; `no rule` if an ADD requested
    it and the rules are missing (`cni reload` restores them, unless the Go plugins made them); and
    `dead` if the port leads to a container whose namespace is gone.

    \b
    See also: cni rules, cni reload
    """  # noqa: D301 - click wants the control character
    errors.require_root("read the packet filter")
    number, protocol = _port(port)
    known = attachments.gather(Places.of(cache_dir))
    live = Live()
    found = [
        each._replace(state="dead") if each.owner and each.owner.is_dead(live) else each
        for each in published.find(ruleset.read(), known)
        if number in (None, each.port) and protocol in ("", each.protocol)
    ]
    if port and not found:
        raise errors.NotFound(
            f"no container has port {port} of this node",
            "`ss -lntup` shows which programs of the node listen",
        )
    rows = [
        (
            each.name,
            f"[{each.address}]:{each.target}"
            if ":" in each.address
            else f"{each.address}:{each.target}",
            each.owner.network if each.owner else "?",
            container_name(each.owner) if each.owner else "unknown",
            each.by or "-",
            each.state,
            each.owner.container_id if each.owner else "?",
        )
        for each in found
    ]
    formats.present(
        [each.as_dict() for each in found],
        rows=Table(_PORTS, rows),
        names=[each.name for each in found],
    )


@click.command()
@click.argument("container", type=Container(pods=True), required=False)
@CACHE_DIR
@formats.options
def rules(container: str | None, cache_dir: str) -> None:
    """Show the packet filter's rules and elements of all attachments, or of CONTAINER.

    CONTAINER is an id or its beginning, or NAMESPACE/POD. `-o wide` also says
    how each rule was recognised.

    \b
    See also: cni ports, cni reload
    """  # noqa: D301 - click wants the control character
    errors.require_root("read the packet filter")
    known = attachments.gather(Places.of(cache_dir))
    chosen = target.of_container(container, known) if container is not None else known
    index = ruleset.Index(ruleset.read())
    found = [(each, match) for each in chosen for match in index.belonging(each)]
    formats.present(
        [
            {
                "network": each.network,
                "containerID": each.container_id,
                "ifname": each.ifname,
                "tool": match.entry.tool,
                "table": match.entry.table,
                "chain": match.entry.chain,
                "text": match.entry.text,
                "foundBy": match.why,
            }
            for each, match in found
        ],
        lines=_rule_lines(found),
        names=[f"{match.entry.place}: {match.entry.text}" for _, match in found],
    )


def _rule_lines(found: Sequence[tuple[Attached, ruleset.Match]]) -> Iterator[str]:
    """Rules below their tables, and those below their containers; -o wide adds comments."""
    wide = formats.current() == "wide"
    width = output.terminal_width() - 6 if output.is_terminal() and not wide else None
    container = table = ""
    for each, match in found:
        entry = match.entry
        heading = f"{each.ifname} of {container_name(each)} in network {each.network}"
        if heading != container:
            container, table = heading, ""
            yield heading
        if f"{entry.tool} {entry.table}" != table:
            table = f"{entry.tool} {entry.table}"
            yield f"  {table}"
        text = f"{entry.chain}: {entry.text if wide else entry.short}"
        # A program gets each rule in one line.
        pieces = output.wrapped(text, width) if width else [text]
        yield f"    {pieces[0]}" + (f"  [by its {match.why}]" if wide else "")
        yield from (f"      {piece}" for piece in pieces[1:])


def container_name(each: Attached) -> str:
    """The pod, or else the container's id."""
    return each.shown


def age(since: float) -> str:
    """How long ago, in the largest unit that fits: ``5s``, ``3m``, ``2h``, ``4d``."""
    if not since:
        return "-"
    # The clock may have been set back since.
    seconds = max(int(time.time() - since), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def require_network(network: str, places: Places) -> None:
    """Raises NetworkNotFound for a network that no file of the configuration has."""
    from . import conflist

    conflist.load(places.net_d, network)


def _asked(each: Attached) -> Sequence[published.Port]:
    """The ports that an ADD wanted, each once, even if the container has several addresses."""
    seen: dict[str, published.Port] = {}
    for port in published.wanted(each):
        seen.setdefault(port.name, port)
    return list(seen.values())


def _joined(texts: Sequence[str]) -> str:
    return ",".join(texts) or "-"


def _port(text: str | None) -> tuple[int | None, str]:
    if not text:
        return None, ""
    number, _, protocol = text.partition("/")
    if not number.isdigit() or not 0 < int(number) < 65536:
        raise click.BadParameter(f"{text!r} is no port; write 8080 or 53/udp", param_hint="PORT")
    return int(number), protocol.lower()
