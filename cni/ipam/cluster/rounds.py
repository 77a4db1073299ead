"""A round over all that this node has in stores: what the server does now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...protocol.errors import CNIError
from . import engines, settings, tend
from .claim import Claims, Synced
from .node import Node, Space
from .pool import Pool, PoolConf, convert
from .settings import Settings
from .store.interface import StoreError

Report = dict[str, Synced]  # by space


def once(
    env: Mapping[str, str],
    log: Callable[[str], None],
    *,
    compare: bool = True,
    give_back: bool = False,
    data_dir: str = "",
) -> tuple[Report, list[CNIError]]:
    """Tend every space of the node: what was found, and what went wrong. Raises CNIError.

    `compare` ledgers with stores; with `give_back` all empty blocks are released, and none claimed.
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
                found = _tend(space, its, entries, log, compare, give_back)
            except StoreError as error:
                problems.append(engines.explain(error))
            except CNIError as error:
                problems.append(error)
            else:
                if found is not None:
                    report[name] = found
    return report, problems


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
) -> Synced | None:
    node = Node(its.data_dir, its.node)
    space = Space(node, space.name)
    with node.claiming():
        store = engines.connect(its.store)
        try:
            claims = Claims(store, its, node, log)
            pools = [each for entry in entries if (each := _pool(claims, entry)) is not None]
            pools = [each for each in pools if each.space == space.name]
            if give_back:
                claims.register()
                claims.settle(space)
                tend.give_back(claims, space, pools, everything=True)
                return None
            return tend.space(claims, space, pools, compare)
        finally:
            store.close()


def _pool(claims: Claims, entry: dict[str, Any]) -> Pool | None:
    """The pool of a network, by the store's present definition; None if it has none any more."""
    from .plugin import IpamConf

    conf: PoolConf = convert_conf(entry["ipam"], IpamConf)
    name = conf.pool if isinstance(conf, IpamConf) else ""
    if not name:
        return Pool.of(conf, "", entry.get("cniVersion", ""))
    value = claims.read_pool(name)
    if value is None:
        return None
    pool = Pool.of(convert(value, name), name, entry.get("cniVersion", ""))
    claims.node.set_pool_definition(name, value)
    return pool


def convert_conf(value: Any, kind: type[PoolConf]) -> PoolConf:
    """A configuration's object `ipam`. Raises CNIError."""
    from ...protocol import config

    return config.convert(value, kind)
