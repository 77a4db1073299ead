"""`cni ipam pools`: the pools of a cluster, and how much of them is claimed."""

from __future__ import annotations

import click

from cni.ipam.cluster import blocks
from cni.ipam.cluster.pool import Pool, convert
from cni.protocol.errors import CNIError
from cni.store.interface import Item, Store

from . import formats, output
from .ipam_cluster import claimed, opened, options
from .table import Column, Table

_POOLS = (
    Column("POOL", cut="end"),
    Column("SPACE", drop=3),
    Column("RANGES", cut="end", least=18),
    Column("BLOCK", right=True, drop=2),
    Column("BLOCKS", right=True),
    Column("TAKEN", right=True),
    Column("USE", right=True, drop=1),
)


@click.command()
@options
def pools(network: str | None) -> None:
    """Show the pools, and how much of them is claimed.

    A pool without a name is a subnet of networks whose configuration defines the pool.
    """
    with opened(network) as cluster:
        found, wrong = _pools(cluster.store)
        found += _unnamed(cluster.store, found, wrong)
        taken = claimed(cluster.store)
    rows, values = [], []
    for pool in found:
        of_space = taken.get(pool.space, {})
        for ranges, areas in zip(pool.sets, pool.areas, strict=True):
            total = blocks.count(areas)
            used = sum(blocks.contains(areas, block) for block in of_space)
            sizes = "/".join(dict.fromkeys(str(area.length) for area in areas))
            values.append(
                {
                    "pool": pool.name,
                    "space": pool.space,
                    "ranges": str(ranges),
                    "blockSize": [area.length for area in areas],
                    "blocks": total,
                    "taken": used,
                }
            )
            use = f"{100 * used // total}%"
            cells = pool.name or "-", pool.space, str(ranges)
            rows.append((*cells, f"/{sizes}", str(total), str(used), use))
    names = [each.name for each in found if each.name]
    formats.present(values, rows=Table(_POOLS, rows), names=names)
    for error in wrong:  # after those that can be used
        output.line(f"cni: {error}", err=True)
    if wrong:
        click.get_current_context().exit(1)


def _pools(store: Store) -> tuple[list[Pool], list[CNIError]]:
    """The pools of the store, and what is wrong with definitions that no ADD can use."""
    found, wrong = [], []
    for item in store.list("pools/").items:
        try:
            found.append(pool_of(item))
        except CNIError as error:
            wrong.append(error)
    return found, wrong


def _unnamed(store: Store, named: list[Pool], wrong: list[CNIError]) -> list[Pool]:
    """The subnets of spaces that no pool in the store has: networks define them themselves.

    The store knows the subnets, but neither `rangeStart` nor `exclude` of such networks.
    """
    found = []
    known = {(pool.space, subnet) for pool in named for subnet in pool.layout}
    for item in store.list("spaces/").items:
        space = item.key.removeprefix("spaces/")
        for subnet, length in sorted((item.value.get("layout") or {}).items()):
            if (space, subnet) in known:
                continue
            size = "blockSizeV6" if ":" in subnet else "blockSize"
            definition = {"subnet": subnet, size: length, "space": space, "noGateway": True}
            try:
                found.append(Pool.of(convert(definition, ""), "", ""))
            except CNIError as error:
                wrong.append(CNIError(f"{item.key}: {error.msg}", error.details))
    return found


def pool_of(item: Item) -> Pool:
    name = item.key.removeprefix("pools/")
    return Pool.of(convert(item.value, name), name, "")
