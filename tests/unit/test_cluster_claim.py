"""Which block a node tries, and how many requests it takes when many nodes want some."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.ipam.cluster import blocks
from cni.ipam.cluster.claim import Claims, Full
from cni.ipam.cluster.node import Node, Space
from cni.ipam.cluster.pool import Pool, PoolConf
from cni.ipam.host_local.ranges import RangeConf
from cni.ipam.host_local.store import Store as ReservationStore
from cni.store import settings
from cni.store.settings import Settings
from tests.harness.cluster_store import Memory
from tests.harness.turns import Turns

from .test_cluster_plugin import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cni.store.interface import Store

# Two subnets, of which one has a hole of whole blocks.
AREAS = Pool.of(
    PoolConf(
        ranges=[
            [
                RangeConf(subnet="10.0.0.0/26", exclude=["10.0.0.16-10.0.0.31"]),
                RangeConf(subnet="10.9.0.0/27"),
            ]
        ],
        block_size=29,
    ),
    "",
    "1.1.0",
).areas[0]
EVERY = list(blocks.in_order(AREAS, 0))


def test_each_block_has_a_place() -> None:
    assert [str(each) for each in EVERY] == [
        *(f"10.0.0.{number}/29" for number in (0, 8, 32, 40, 48, 56)),
        *(f"10.9.0.{number}/29" for number in (0, 8, 16, 24)),
    ]
    assert [blocks.place_of(AREAS, each) for each in EVERY] == list(range(len(EVERY)))
    assert [blocks.block_in(AREAS, place) for place in range(len(EVERY))] == EVERY
    hole, larger = blocks.Prefix.parse("10.0.0.16/29"), blocks.Prefix.parse("10.0.0.0/28")
    assert blocks.place_of(AREAS, hole) is None
    assert blocks.place_of(AREAS, larger) is None
    with pytest.raises(IndexError):
        blocks.block_in(AREAS, len(EVERY))


@given(taken=st.sets(st.sampled_from(EVERY)), attempt=st.integers(0, 99))
def test_what_is_chosen_is_free(taken: set[blocks.Prefix], attempt: int) -> None:
    chosen = blocks.any_free(AREAS, taken, "n1", attempt)
    if taken == set(EVERY):
        assert chosen is None
    else:
        assert chosen in EVERY
        assert chosen not in taken


def test_nodes_choose_different_ones_of_what_is_left() -> None:
    """Also of the blocks behind a row of taken ones, each has its chance."""
    taken = set(EVERY[:7])
    chosen = [blocks.any_free(AREAS, taken, f"n{number}", 1) for number in range(300)]
    assert all(chosen.count(each) > 50 for each in EVERY[7:])


def test_a_huge_pool_is_not_gone_through() -> None:
    conf = PoolConf(ranges=[[RangeConf(subnet="fd00::/64")]], block_size_v6=122)
    areas = Pool.of(conf, "", "1.1.0").areas[0]
    first = blocks.any_free(areas, set(), "n1", 0)
    assert first is not None
    assert blocks.any_free(areas, {first}, "n1", 0) not in (None, first)
    assert blocks.next_free(areas, set(), first) == blocks.block_in(
        areas, (blocks.place_of(areas, first) or 0) + 1
    )


def test_the_next_block_is_of_the_row_and_free() -> None:
    assert blocks.next_free(AREAS, set(), EVERY[0]) == EVERY[1]
    assert blocks.next_free(AREAS, {EVERY[1]}, EVERY[0]) is None
    assert blocks.next_free(AREAS, set(), EVERY[-1]) is None


# --- many nodes ---


def competitor(
    directory: Path, name: str, pool: Pool, each_anew: bool
) -> Callable[[Store], list[str]]:
    """What a node does that claims until nothing is free; `each_anew`: as so many ADDs."""

    def claim_all(store: Store) -> list[str]:
        node = Node(str(directory / name), name)
        its = Settings(node.data_dir, name, {"type": "memory"}, 0)
        claims, won = Claims(store, its, node, lambda _: None), []
        while True:
            try:
                won.append(str(claims.claim(Space(node, pool.space), pool, 0)))
            except Full:
                return won
            if each_anew:
                claims = Claims(store, its, node, lambda _: None)

    return claim_all


@pytest.mark.parametrize(("each_anew", "most"), [(False, 2.0), (True, 3.0)])
def test_nodes_that_compete_for_all_blocks(
    each_anew: bool, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block twice, no node without one, and no more than three requests for each."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    conf = PoolConf(ranges=[[RangeConf(subnet="10.0.0.0/18")]], block_size=26)
    pool = Pool.of(conf, "", "1.1.0")
    turns = Turns(Memory(), seed=1)
    won = turns.run(
        {name: competitor(tmp_path, name, pool, each_anew) for name in map("n{}".format, range(16))}
    )
    every = [block for one in won.values() for block in one]
    assert len(every) == len(set(every)) == 256
    assert all(won.values())
    assert turns.requests.total() <= most * 256, turns.requests


def test_a_claim_in_a_large_space_does_not_list_it(tmp_path: Path) -> None:
    """Half of 16,384 blocks are taken: a few questions for one are less than a list of 8,192."""
    conf = PoolConf(ranges=[[RangeConf(subnet="10.0.0.0/12")]], block_size=26)
    pool, store = Pool.of(conf, "", "1.1.0"), Memory()
    store.create("spaces/default", {"layout": {"10.0.0.0/12": 26}, "store": store.identity()})
    for number in range(0, 1 << 14, 2):
        block = blocks.block_in(pool.areas[0], number)
        store.create(f"blocks/default/{blocks.key_of(block)}", {"node": "other", "uid": "other"})
    store.requests.clear()
    for number in range(40):
        node = Node(str(tmp_path / f"n{number}"), f"n{number}")
        its = Settings(node.data_dir, node.name, {"type": "memory"}, 0)
        Claims(store, its, node, lambda _: None).claim(Space(node, pool.space), pool, 0)
    asked = Counter(each.partition("/")[0] for each in store.requests)
    assert asked["list blocks"] <= 4, asked  # one in 32 finds five taken ones
    assert 40 < asked["create blocks"] < 120, asked


def test_a_full_space_is_found_to_be_full(tmp_path: Path) -> None:
    """Also a large one, in which the first blocks that are tried are not looked for."""
    conf = PoolConf(ranges=[[RangeConf(subnet="10.0.0.0/16")]], block_size=29)
    pool, store = Pool.of(conf, "", "1.1.0"), Memory()
    store.create("spaces/default", {"layout": {"10.0.0.0/16": 29}, "store": store.identity()})
    every = list(blocks.in_order(pool.areas[0], 0))
    for block in every[1:]:
        store.create(f"blocks/default/{blocks.key_of(block)}", {"node": "other", "uid": "other"})
    node = Node(str(tmp_path / "n1"), "n1")
    its = Settings(node.data_dir, "n1", {"type": "memory"}, 0)
    claims = Claims(store, its, node, lambda _: None)
    assert claims.claim(Space(node, pool.space), pool, 0) == every[0]
    with pytest.raises(Full):
        claims.claim(Space(node, pool.space), pool, 0)
    assert store.items["wanted/default/n1"]


class Clocked(Memory):
    """A store with a clock."""

    def clock(self) -> float | None:
        return 2_000_000_000.0


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_node_is_asked_for_blocks_whatever_time_it_believes_it_is(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = PoolConf(ranges=[[RangeConf(subnet="10.0.0.0/29")]], block_size=29)
    pool, store = Pool.of(conf, "", "1.1.0"), Clocked()

    def claims_of(name: str) -> tuple[Claims, Space]:
        node = Node(str(tmp_path / name), name)
        its = Settings(node.data_dir, name, {"type": "memory"}, 0)
        return Claims(store, its, node, lambda _: None), Space(node, pool.space)

    (one, its), (other, its_space) = claims_of("n1"), claims_of("n2")
    other.claim(its_space, pool, 0)
    assert not other.is_wanted(its_space)
    with pytest.raises(Full):
        one.claim(its, pool, 0)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert other.is_wanted(its_space)
    # A mark of a node that is gone counts for an hour, by the same clock.
    monkeypatch.setattr(Clocked, "clock", lambda _: 2_000_003_601.0)
    assert not other.is_wanted(its_space)


def test_a_block_that_was_given_back_is_found_again(tmp_path: Path) -> None:
    """What a node remembers of others' blocks is old when it finds none: it looks again."""
    pool = Pool.of(PoolConf(ranges=[[RangeConf(subnet="10.0.0.0/29")]], block_size=30), "", "1.1.0")
    store = Memory()

    def claims_of(name: str) -> tuple[Claims, Space]:
        node = Node(str(tmp_path / name), name)
        its = Settings(node.data_dir, name, {"type": "memory"}, 0)
        return Claims(store, its, node, lambda _: None), Space(node, pool.space)

    (one, its), (other, its_space) = claims_of("n1"), claims_of("n2")
    one.claim(its, pool, 0)
    other.claim(its_space, pool, 0)
    with pytest.raises(Full):
        one.claim(its, pool, 0)
    assert other.release(its_space, lambda _: True)
    one.claim(its, pool, 0)
    assert len(its.own()) == 2


def test_an_add_asks_the_index_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When every free address of the block was released lately, it asks once for the whole row."""
    monkeypatch.setattr(settings, "NODE_FILE", str(tmp_path / "none.json"))
    node = Cluster(tmp_path).node("n1", ranges=[[{"subnet": "10.64.0.0/24"}]], blockSize=26)
    for number in range(70):
        node.add(f"c{number}")
        node.delete(f"c{number}")
    asked = []
    first_free = ReservationStore.first_free

    def counted(store: ReservationStore, width: int, low: int, high: int) -> int | None:
        asked.append((low, high))
        return first_free(store, width, low, high)

    monkeypatch.setattr(ReservationStore, "first_free", counted)
    before = node.add("next")
    assert len(asked) <= 3, asked
    node.delete("next")
    assert node.add("other") != before
