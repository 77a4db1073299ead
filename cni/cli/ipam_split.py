"""`cni ipam split`: a pool as several pools of whole blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from cni.ipam.cluster import blocks
from cni.ipam.cluster.pool import Pool
from cni.ipam.host_local.ranges import Range, RangeSet
from cni.protocol import config
from cni.protocol.address import format_ip
from cni.store.interface import Exists
from cni.store.settings import check_word

from . import errors, formats
from .ipam_cluster import opened, options
from .ipam_pools import pool_of


@click.command()
@options
@click.argument("pool")
@click.argument("parts", type=click.IntRange(2, 256))
@click.option("--write", is_flag=True, help="Define the parts in the store, as POOL-1, POOL-2, ….")
def split(network: str | None, pool: str, parts: int, write: bool) -> None:
    """Divide a pool into PARTS of whole blocks.

    Prints the definitions of the parts, or writes them.

    The pool itself stays, and so does every address: blocks are claimed once, whatever pool they
    are claimed for.
    """
    with opened(network) as cluster:
        item = cluster.store.read(f"pools/{check_word(pool, 'pool')}")
        if item is None:
            raise errors.NotFound(f"there is no pool {pool}", "`cni ipam pools` shows all")
        found = pool_of(item)
        definitions = {
            f"{pool}-{number + 1}": {**_common(item.value), "ranges": ranges}
            for number, ranges in enumerate(_parts(found, parts))
        }
        for name, value in definitions.items() if write else ():
            try:
                cluster.store.create(f"pools/{name}", value)
            except Exists:
                raise errors.Refused(
                    f"there is a pool {name} already", "remove it, or split another pool"
                ) from None
    lines = [
        f"{name}: {', '.join(_text(each) for of in value['ranges'] for each in of)}"
        for name, value in definitions.items()
    ]
    formats.present(definitions, lines=lines, names=list(definitions))


def _common(value: dict[str, Any]) -> dict[str, Any]:
    """A definition without its ranges."""
    single = ("ranges", "subnet", "rangestart", "rangeend", "gateway")
    return {key: each for key, each in value.items() if config.fold(key) not in single}


def _text(each: dict[str, Any]) -> str:
    return f"{each['rangeStart']}-{each['rangeEnd']} of {each['subnet']}"


def _parts(pool: Pool, parts: int) -> Iterator[list[list[dict[str, Any]]]]:
    """The range sets of each part. Raises Refused if a set has fewer blocks than parts."""
    for areas in pool.areas:
        # A part without a block could never give an address.
        if blocks.count(areas) < parts:
            raise errors.Refused(
                f"{pool.name} has {blocks.count(areas)} blocks, too few for {parts} parts",
                "give fewer parts",
            )
    for number in range(parts):
        sets = []
        for ranges, areas in zip(pool.sets, pool.areas, strict=True):
            total = blocks.count(areas)
            # Parts differ by one block at most.
            first, last = number * total // parts, (number + 1) * total // parts
            sets.append(_ranges_of(ranges, areas, first, last))
        yield sets


def _ranges_of(
    ranges: RangeSet, areas: blocks.Areas, first: int, last: int
) -> list[dict[str, Any]]:
    """What the blocks from one place to another have of a range set."""
    found = []
    at = 0
    for area in areas:
        low, high = max(first - at, 0), min(last - at, area.size)
        at += area.size
        if low >= high:
            continue
        start, end = area.block(low), area.block(high - 1)
        for each in ranges.ranges:
            if each.subnet != area.subnet:
                continue
            # A range may begin or end within a block.
            begin = max(each.start, int.from_bytes(start.ip, "big"))
            until = min(each.end, int.from_bytes(end.broadcast, "big"))
            if begin <= until:
                found.append(
                    {
                        "subnet": str(each.subnet),
                        "rangeStart": format_ip(each.packed(begin)),
                        "rangeEnd": format_ip(each.packed(until)),
                        **({"gateway": format_ip(each.gateway)} if each.gateway else {}),
                        "exclude": [_span(each, hole) for hole in each.holes],
                    }
                )
    return found


def _span(its_range: Range, hole: tuple[int, int]) -> str:
    return f"{format_ip(its_range.packed(hole[0]))}-{format_ip(its_range.packed(hole[1]))}"
