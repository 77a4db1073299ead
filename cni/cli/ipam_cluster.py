"""`cni ipam pools`, `blocks`, `show`, …: the addresses of a cluster, as its store has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import click

from cni.ipam.cluster import as_whereabouts, blocks, rounds
from cni.ipam.cluster.claim import Claims
from cni.ipam.cluster.node import Node, Space
from cni.ipam.cluster.pool import DEFAULT_SPACE
from cni.ipam.host_local import usage
from cni.protocol import config
from cni.protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from cni.store import endpoints, engines, settings
from cni.store.interface import Item, Store, StoreError
from cni.store.settings import check_word

from . import conflist, errors, formats, output
from .completion import Network
from .table import Column, Table

F = TypeVar("F", bound=Callable[..., Any])
_BLOCKS = (
    Column("BLOCK"),
    Column("SPACE", drop=2),
    Column("NODE", cut="end", least=12),
    Column("SEQ", right=True, drop=1),
    Column("USED", right=True, drop=3),
)


class Cluster(NamedTuple):
    """A store, and how this node finds it."""

    store: Store
    its: settings.Settings


def options(function: F) -> F:
    for option in (
        formats.options,
        click.option(
            "--network",
            type=Network(),
            help="The network whose store is used [that of /etc/cni/cluster.json, of the first "
            "network that has one, or of whereabouts.conf].",
        ),
    ):
        function = option(function)
    return function


@contextmanager
def opened(network: str | None) -> Iterator[Cluster]:
    """The store. Raises CNIError, also for StoreError."""
    its = _settings(network)
    try:
        store = engines.connect(its.store)
        try:
            yield Cluster(store, its)
        finally:
            store.close()
    except StoreError as error:
        raise engines.explain(error) from None


def _settings(network: str | None) -> settings.Settings:
    # /etc/cni/cluster.json and the environment, without a network's keys.
    own = settings.read({}, os.environ)
    if network is None and own.store is not None:
        return own
    directory = os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY
    # Without --network the first network with a store: usually all have the same.
    names = [network] if network else conflist.known(directory)
    for name in names:
        for plugin in conflist.load(directory, name).plugins:
            ipam = config.lookup(plugin.raw, "ipam")
            kind = str(config.lookup(ipam, "type")) if isinstance(ipam, dict) else ""
            if config.means(kind, "cluster"):
                return settings.read(ipam, os.environ)
            if config.means(kind, "whereabouts"):
                return settings.read(as_whereabouts.translated(ipam, os.environ).ipam, os.environ)
    # Networks that Multus attaches are not in that directory, but whereabouts' own file is.
    return settings.read(as_whereabouts.translated({}, os.environ).ipam, os.environ)


def claimed(store: Store, space: str | None = None) -> dict[str, dict[Prefix, Item]]:
    """The blocks by space: of one, or of all, also of those that a restored store does not name."""
    found: dict[str, dict[Prefix, Item]] = {}
    for item in store.list(f"blocks/{space}/" if space else "blocks/").items:
        _, name, block = item.key.split("/")
        try:
            found.setdefault(name, {})[blocks.block_of_key(block)] = item
        except InvalidAddress:
            # The store is shared: another version, or a person, may have put it there.
            output.line(f"cni: {item.key} is no block: left out", err=True)
    return found


@click.command("blocks")
@options
@click.option("--space", help="Only blocks of this address space.")
@click.option("--node", help="Only blocks of this node.")
def list_blocks(network: str | None, space: str | None, node: str | None) -> None:
    """Show which node has which block.

    For blocks of this node, also how many addresses are in use.
    """
    with opened(network) as cluster:
        if space:
            check_word(space, "space")
        by_space = claimed(cluster.store, space)
        found = [
            (name, block, item.value)
            for name, its in sorted(by_space.items())
            for block, item in sorted(its.items(), key=_order)
            if node in (None, item.value.get("node"))
        ]
        held = {name: _held(cluster.its, name) for name in by_space}
    rows, values = [], []
    for name, block, value in found:
        used = sum(map(block.contains, held[name]))
        # Reservations are files of the node that has the block, so others' use is not known here.
        mine = value.get("node") == cluster.its.node
        values.append(
            {"space": name, "block": str(block), **value} | ({"used": used} if mine else {})
        )
        cells = str(block), name, str(value.get("node")), str(value.get("seq"))
        rows.append((*cells, str(used) if mine else "-"))
    formats.present(values, rows=Table(_BLOCKS, rows), names=[str(block) for _, block, _ in found])


def _order(entry: tuple[Prefix, Item]) -> tuple[int, bytes]:
    # IPv4 before IPv6, then by number.
    return len(entry[0].ip), entry[0].ip


def _held(its: settings.Settings, space: str) -> list[bytes]:
    """The addresses that are reserved on this node."""
    path = Space(Node(its.data_dir, its.node), space).location.path
    try:
        return [parse_ip(name) for name in os.listdir(path) if _is_address(name)]
    except OSError:
        return []


def _is_address(name: str) -> bool:
    try:
        parse_ip(name)
    except InvalidAddress:
        return False
    return True


@click.command()
@options
@click.argument("address", metavar="IP")
def show(network: str | None, address: str) -> None:
    """Show which node and container have an address.

    Prints the address's block and the node that has it; the container only if it is on this node.
    """
    packed = parse_ip(address)
    found = []
    with opened(network) as cluster:
        for item in cluster.store.list("spaces/").items:
            space = item.key.removeprefix("spaces/")
            for subnet, length in (item.value.get("layout") or {}).items():
                if Prefix.parse(subnet).contains(packed):
                    found.append(_shown(cluster, space, Prefix(packed, length).network, packed))
        if not found:  # a restored store may have the block, and not the subnet
            found = [
                _shown(cluster, space, block, packed)
                for space, its in claimed(cluster.store).items()
                for block in its
                if block.contains(packed)
            ]
    if not found:
        raise errors.NotFound(
            f"no address space has {address}", "`cni ipam pools` shows the subnets of all"
        )
    lines = []
    for each in found:
        node = f"node {each['node']}" if each["node"] else "no node has it"
        lines.append(f"{each['address']} in {each['space']}: block {each['block']}, {node}")
        if each.get("holder"):
            lines.append(f"  {each['holder']} has it, since {each['since']}")
        elif each["node"] == cluster.its.node:
            lines.append("  no container has it")
        elif each["node"]:
            lines.append(f"  `cni ipam show {each['address']}` on that node names the container")
    formats.present(found, lines=lines, names=[str(each["block"]) for each in found])


def _shown(cluster: Cluster, space: str, block: Prefix, packed: bytes) -> dict[str, Any]:
    item = cluster.store.read(f"blocks/{space}/{blocks.key_of(block)}")
    name = format_ip(packed)
    value: dict[str, Any] = {
        "address": name,
        "space": space,
        "block": str(block),
        "node": item.value.get("node") if item is not None else None,
    }
    path = os.path.join(
        Space(Node(cluster.its.data_dir, cluster.its.node), space).location.path, name
    )
    try:
        with open(path, "rb") as file:
            # A reservation has two or three short lines; a foreign file may be large.
            content = file.read(4096).strip()
            since = os.fstat(file.fileno()).st_mtime
    except OSError:
        return value
    # In the format of host-local: container id, interface, and here the network.
    container_id, *rest = content.decode(errors="replace").split("\r\n")
    value |= {"containerID": container_id, "since": usage.when(since)}
    value |= dict(zip(("ifname", "network"), rest, strict=False))
    return value | {"holder": usage.holder(content)}


@click.command()
@options
@click.argument("node")
@click.option("--undo", is_flag=True, help="The node may claim blocks again.")
def cordon(network: str | None, node: str, undo: bool) -> None:
    """Let a node claim no more blocks and return empty ones."""
    with opened(network) as cluster:
        item = cluster.store.read(f"nodes/{check_word(node, 'node')}")
        if item is None:
            raise _no_node(node, cluster)
        # Fails if the node has changed its entry meanwhile, so that nothing of that is lost.
        cluster.store.update(item, {**item.value, "cordoned": not undo})
    said = "may claim blocks again" if undo else "claims no more blocks"
    formats.done({"node": node, "cordoned": not undo}, f"{node} {said}")


def _no_node(node: str, cluster: Cluster) -> errors.NotFound:
    names = [item.key.removeprefix("nodes/") for item in cluster.store.list("nodes/").items]
    return errors.NotFound(
        f"there is no node {node} in {cluster.store.name}",
        f"there are {', '.join(names[:20]) or 'none'}",
    )


@click.command()
@options
@click.argument("node")
@click.option("--force", is_flag=True, help="The node's containers are gone, or do not matter.")
def forget(network: str | None, node: str, force: bool) -> None:
    """Free the blocks of a node that is gone for good.

    Overlay networks send no more packets to it. If the node comes back, it begins without blocks,
    but its containers keep addresses that others may have got. So --force is necessary.
    """
    if not force:
        raise errors.Refused(
            f"others may get the addresses of containers on {node}",
            "use --force if they are gone",
        )
    with opened(network) as cluster:
        item = cluster.store.read(f"nodes/{check_word(node, 'node')}")
        places = endpoints.of_node(cluster.store.list(endpoints.PREFIX).items, node)
        if item is None and not places:
            raise _no_node(node, cluster)
        if item is not None:
            # First this mark: if the node is not gone after all, it sees that its blocks are
            # others' now.
            cluster.store.update(item, {**item.value, "lost": True})
        for each in places:
            cluster.store.delete(each)
        freed = []
        for each in cluster.store.list("blocks/").items if item is not None else ():
            # By uid: a node that has come back under the same name has another one, and keeps its
            # blocks.
            if item is not None and each.value.get("uid") == item.value.get("uid"):
                cluster.store.delete(each)
                freed.append(str(blocks.block_of_key(each.key.rpartition("/")[2])))
    formats.done(
        {"node": node, "freed": freed}, f"{node} is forgotten, {len(freed)} blocks are free"
    )


@click.command()
@formats.options
@click.option("--release", is_flag=True, help="Give back all empty blocks, and claim none.")
def sync(release: bool) -> None:
    """Compare this node's blocks with the store's.

    Also claims blocks ahead, and gives back blocks that this node does not need.
    """
    errors.require_root("sync: it changes what ADDs allocate from")
    report, problems = rounds.once(os.environ, _log, give_back=release)
    value = {name: found._asdict() for name, found in report.items()}
    lines = [
        f"{name}: {what} {', '.join(which)}"
        for name, found in value.items()
        for what, which in found.items()
        if which
    ]
    if not lines and not problems:
        lines = ["this node and the store agree"]
    formats.present(value, lines=lines, names=list(value))
    for problem in problems:
        # The report of what did work is printed first.
        raise problem


def _log(text: str) -> None:
    output.line(text, err=True)


@click.command()
@options
@click.argument("space", default=DEFAULT_SPACE)
def accept(network: str | None, space: str) -> None:
    """Trust a store again that was restored from a backup.

    Run it only after every node has put back its blocks.
    """
    with opened(network) as cluster:
        node = Node(cluster.its.data_dir, cluster.its.node)
        names = [item.key.removeprefix("spaces/") for item in cluster.store.list("spaces/").items]
        if check_word(space, "space") not in {*names, *node.spaces()}:
            raise errors.NotFound(
                f"there is no address space {space} in {cluster.store.name}, nor on this node",
                f"there are {', '.join(names) or 'none'}",
            )
        Claims(cluster.store, cluster.its, node, _log).accept(space)
    formats.done({"space": space}, f"blocks of {space} are claimed in this store from now on")


COMMANDS = (list_blocks, show, cordon, forget, sync, accept)
