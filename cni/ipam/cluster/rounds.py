"""A round over all of this node's blocks in stores, which the server repeats."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...protocol import config
from ...protocol.errors import CNIError
from ...store import engines, settings
from ...store.interface import StoreError
from ...store.node_files import boot_time
from ...store.settings import Settings
from . import reconciling, tend
from .claim import Claims
from .compare import Synced
from .node import Node, Space
from .pool import Pool, convert

_LOOK = 5.0  # seconds between two checks whether a block is needed
_ROUND = 12  # checks until the store is asked anyway
_COMPARE = 600.0  # seconds until ledger and store are compared, which lists all blocks
_LISTED = 10_000  # blocks a second that all nodes of a cluster together may list

Report = dict[str, Synced]  # by space


class Pace:
    """When ledgers and store are compared again: the more seldom, the more blocks and nodes.

    A comparison lists the blocks of all nodes, and every node makes one. Nodes wait longer in a
    larger cluster, so that the store has not to send more there, and not all equally long: also
    the first time, since all of them may have been started at once.
    """

    def __init__(self) -> None:
        self._due = time.monotonic() + _COMPARE * _chance()

    def is_due(self) -> bool:
        """Is it time? Then the next one comes later."""
        if time.monotonic() < self._due:
            return False
        self._wait(_COMPARE)
        return True

    def note(self, listed: int) -> None:
        """A comparison was made; all nodes together list so many blocks when each makes one."""
        self._wait(listed / _LISTED)

    def _wait(self, seconds: float) -> None:
        self._due = max(self._due, time.monotonic() + seconds * (0.8 + 0.4 * _chance()))


def _chance() -> float:
    """Between 0 and 1, without the module random, which takes long to load."""
    return int.from_bytes(os.urandom(2), "big") / (1 << 16)


def once(
    env: Mapping[str, str],
    log: Callable[[str], None],
    *,
    compare: bool = True,
    give_back: bool = False,
    data_dir: str = "",
    pace: Pace | None = None,
) -> tuple[Report, list[CNIError]]:
    """Tend every space of the node; return the findings and the errors. Raises CNIError.

    `compare` ledgers with stores; with `give_back` all empty blocks are released, and none claimed.
    A process that makes rounds repeatedly gives its `pace`.
    """
    base = settings.read({}, env)
    base = base._replace(data_dir=data_dir or base.data_dir)
    node = Node(base.data_dir, base.node)
    report: Report = {}
    problems = []
    for name in node.spaces():
        space = Space(node, name)
        for its, entries in _by_store(space, base, env):
            try:
                found = _tend(space, its, entries, log, compare, give_back, pace)
            except StoreError as error:
                problems.append(engines.explain(error))
            except CNIError as error:
                problems.append(error)
            else:
                if found is not None:
                    report[name] = found
    return report, problems


def forever(env: Mapping[str, str], log: Callable[[str], None]) -> None:
    """Rounds, as long as the process lives. A lasting problem is logged once."""
    said: list[str] = []
    memory, pace = reconciling.Reconciling(), Pace()
    for number in itertools.count():
        problems = None
        try:
            if number % _ROUND == 0 or _lacks(env) or _is_due(env):
                _, problems = once(env, log, compare=pace.is_due(), pace=pace)
        except CNIError as error:
            problems = [error]
        if number % _ROUND == 0:
            try:
                reconciling.attempt(memory, env, log)
            except CNIError as error:
                problems = [*(problems or ()), error]
        if problems is not None:
            texts = [str(each) for each in problems]
            for text in texts:
                if text not in said:
                    log(text)
            said = texts
        time.sleep(_LOOK)


def _lacks(env: Mapping[str, str]) -> bool:
    """Has this node too few free addresses of a pool? Asks no store. Raises CNIError."""
    node = Node(settings.data_dir({}, env), "")
    for name in node.spaces():
        space = Space(node, name)
        for entry in space.pools().values():
            pool = _known_pool(node, entry)
            if pool is not None and pool.space == name:
                reserve = pool.conf.reserve
                if any(tend.lacks(space, ranges, reserve) for ranges in pool.sets):
                    return True
    return False


def _is_due(env: Mapping[str, str]) -> bool:
    """Is the node to be renewed before the next round? Asks no store. Raises CNIError."""
    base = settings.read({}, env)
    node = Node(base.data_dir, base.node)
    found = [
        node.registration(its.digest)
        for name in node.spaces()
        for its, _ in _by_store(Space(node, name), base, env)
    ]
    return any(each is not None and each.is_due(boot_time()) for each in found)


def _known_pool(node: Node, entry: dict[str, Any]) -> Pool | None:
    """The pool of a network, by the node's notes."""
    from .plugin import IpamConf

    conf = config.convert(entry["ipam"], IpamConf)
    if not conf.pool:
        return Pool.of(conf, "", entry.get("cniVersion", ""))
    value = node.pool_definition(conf.pool)
    return Pool.of(convert(value, conf.pool), conf.pool, "") if value is not None else None


def _by_store(
    space: Space, base: Settings, env: Mapping[str, str]
) -> list[tuple[Settings, list[dict[str, Any]]]]:
    """The networks that needed blocks of the space, by the store that they name."""
    groups: dict[str, tuple[Settings, list[dict[str, Any]]]] = {}
    for entry in space.pools().values():
        its = settings.read(entry["ipam"], env)
        if its.data_dir == base.data_dir:
            groups.setdefault(its.digest, (its, []))[1].append(entry)
    if not groups and base.store is not None:
        groups[base.digest] = (base, [])
    return list(groups.values())


def _tend(
    space: Space,
    its: Settings,
    entries: list[dict[str, Any]],
    log: Callable[[str], None],
    compare: bool,
    give_back: bool,
    pace: Pace | None,
) -> Synced | None:
    node = Node(its.data_dir, its.node)
    space = Space(node, space.name)
    with node.claiming():
        store = engines.connect(its.store)
        try:
            claims = Claims(store, its, node, log)
            # only a process that stays can keep a promise to renew
            claims.renews = pace is not None
            pools = [each for entry in entries if (each := _pool(claims, entry)) is not None]
            pools = [each for each in pools if each.space == space.name]
            if give_back:
                claims.register()
                claims.settle(space)
                tend.give_back(claims, space, pools, everything=True)
                return None
            found = tend.space(claims, space, pools, compare)
            if pace is not None:
                pace.note(claims.listed)
            return found
        finally:
            store.close()


def _pool(claims: Claims, entry: dict[str, Any]) -> Pool | None:
    """The pool of a network, by the store's present definition; None if it has none any more."""
    name = config.lookup(entry["ipam"], "pool")
    if name:
        value = claims.read_pool(name)
        if value is None:
            return None
        # raises for a definition that cannot be used, before it is noted
        Pool.of(convert(value, name), name, "")
        claims.node.set_pool_definition(name, value)
    return _known_pool(claims.node, entry)
