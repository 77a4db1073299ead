"""cluster: allocates addresses that are unique in a cluster, from this node's blocks.

An ADD takes addresses from the node's own blocks, with host-local's files and code, without a
request to the store (allocation.py). It claims a block only if one is missing (shortage.py). DEL,
GC and CHECK never use the store. They need only the configured directory of the files, and search
every address space: so an owner's DEL releases its address, even if the pool has changed or is
gone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ...call import Call, Steps
from ...protocol import config
from ...protocol.address import parse_ip
from ...protocol.config import DNS, PluginConf
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import IPConfig, Result
from ...store import settings
from ...store.node_files import boot_time
from ...store.settings import check_word
from ..host_local.directory import explain, explain_in, scan
from ..host_local.plugin import POD_NAME, POD_NAMESPACE, Args, Requested, requested
from ..host_local.reservation import UNREADABLE, is_address
from . import rest
from .node import OWN, Node, Space
from .pool import NOT_SPACES, Pool, PoolConf, convert

if TYPE_CHECKING:
    from ...store.settings import Settings
    from ..host_local.sticky import Memory
    from ..host_local.store import Store

_EXAMPLE = 'cluster reads "ipam": {"type": "cluster", "pool": "…"}, or "ranges" instead of "pool"'


class IpamConf(PoolConf):
    """The `ipam` object: a pool's name, or its keys; `store` and its companions: settings.py."""

    type: str = ""
    pool: str = ""
    store: dict[str, Any] | None = None
    data_dir: str = ""
    node_name: str = ""
    node_timeout: int = 0
    sticky: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool:
            check_word(self.pool, "pool")
            if self.subnet is not None or self.ranges:
                raise CNIError(
                    f"ipam.pool {self.pool} and ipam.{'ranges' if self.ranges else 'subnet'} "
                    "exclude each other",
                    "the pool's definition in the store has the ranges",
                )


class Conf(PluginConf):
    ipam: IpamConf | None = None
    args: Args | None = None
    runtime_config: Requested | None = None


# --- the verbs ---


def add(call: Call[Conf]) -> Result:
    """Reserve one address of each range set; an attachment that has addresses gets the same.

    After a failure nothing stays reserved. Raises CNIError.
    """
    ipam, its = _ipam(call), _settings(call)
    pairs = _cni_args(call)
    of_args = call.conf.args.cni if call.conf.args is not None else None
    wanted = requested(pairs.get("IP", ""), (of_args, call.conf.runtime_config))
    node = Node(its.data_dir, its.node)
    pool = pool_of(call, node, its)
    from ..host_local.allocation import Wish  # DEL does without these
    from .allocation import FromBlocks, NeedBlock, unknown_request

    error = unknown_request(wanted, pool.sets)
    if error is not None:
        raise error
    space = Space(node, pool.space)
    allocation = FromBlocks(
        space, (call.container_id, _mark(call)), call.netns, call.log, pool.conf.cooldown
    )
    call.undo.callback(allocation.undo)
    wish = Wish(pool.sets, wanted, _memory(call, its, pool, pairs))

    def reserve() -> list[IPConfig]:
        nonlocal pool
        try:
            return allocation.reserve(wish._replace(sets=pool.sets))
        except NeedBlock:
            from . import shortage

            pool, found = shortage.reserve(call, allocation, wish, pool, its, node)
            return found

    ips = reserve()
    asks = ipam.conflict_check or pool.conf.conflict_check
    if asks is not None:
        from ..host_local import conflicts

        ips = conflicts.settle(call, allocation, ips, wanted, reserve, asks)
    return Result(ips=ips, routes=pool.conf.routes, dns=pool.conf.dns or ipam.dns or DNS())


def delete(call: Call[Conf]) -> None:
    """Release every address of the attachment; having none is success. Raises CNIError."""
    node = Node(_data_dir(call), "")
    steps = Steps()
    for space in _spaces(node):
        steps.run(_release_all, call, space, steps)
    steps.finish()


def check(call: Call[Conf]) -> None:
    """Require that the attachment has an address of each range set, from this node's blocks."""
    its = _settings(call)
    node = Node(its.data_dir, its.node)
    pool = pool_of(call, node, its)
    held: list[bytes] = []
    own, lost = [], {}
    for space in _spaces(node):
        with space.location.open() as store:
            names = store.owned_by(call.container_id, _mark(call))
            ledger = space.ledger()
        own += [each.prefix for each in ledger.of_state(OWN)]
        lost.update(ledger.lost)
        held += [parse_ip(name) for name in names if is_address(name)]
    for index, ranges in enumerate(pool.sets):
        packed = next((each for each in held if ranges.contains(each)), None)
        if packed is None:
            from . import given_up

            raise given_up.missing(call, node, pool.sets, index, held)
        if not any(block.contains(packed) for block in own):
            from . import given_up

            raise given_up.error(call.container_id, packed, lost)


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Release the addresses of this network's attachments not in `keep`. Raises CNIError."""
    steps = Steps()
    for space in _spaces(Node(_data_dir(call), "")):
        steps.run(_collect, call, space, keep, steps)
    steps.finish()


def status(call: Call[Conf]) -> None:
    """Require for each range set a free address on this node, or a block that can be claimed.

    Asks the store only if this node has no free address, or is idle (idle.py). Raises NotAvailable
    (code 50), and LimitedConnectivity (code 51) if containers of the network have addresses that
    are another node's by now.
    """
    ipam, its = _ipam(call), _settings(call)
    existing = its.data_dir
    # the first ADD makes the directory
    while not os.path.lexists(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing) or "."
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise NotAvailable(
            f"cluster: cannot write to {existing}",
            f"addresses and blocks are kept in {its.data_dir}: make it a writable directory, or "
            "set dataDir",
        )
    if ipam.pool or ipam.ranges or ipam.subnet is not None:
        from . import capacity

        capacity.check_free(call, its, Node(its.data_dir, its.node))
    if any(space.ledger().lost for space in _spaces(Node(its.data_dir, its.node))):
        from . import given_up

        given_up.check_none(call.network, _spaces(Node(its.data_dir, its.node)))


# --- configuration ---


def _ipam(call: Call[Conf]) -> IpamConf:
    if call.conf.ipam is None:
        raise CNIError("IPAM config missing 'ipam' key", _EXAMPLE)
    return call.conf.ipam


def raw_ipam(call: Call[Any]) -> dict[str, Any]:
    """The `ipam` object as given. Raises CNIError if it is no object."""
    ipam = config.lookup(call.raw, "ipam")
    if ipam is None:
        raise CNIError("IPAM config missing 'ipam' key", _EXAMPLE)
    if not isinstance(ipam, dict):
        raise CNIError("`ipam` is not a JSON object", _EXAMPLE)
    return ipam


def _settings(call: Call[Conf]) -> Settings:
    return settings.read(raw_ipam(call), call.request.env)


def _data_dir(call: Call[Conf]) -> str:
    return settings.data_dir(raw_ipam(call), call.request.env)


def pool_of(call: Call[Conf], node: Node, its: Settings) -> Pool:
    """The configuration's pool; a named one as the node has noted it, else as the store has it.

    Raises CNIError.
    """
    ipam = _ipam(call)
    version = call.conf.cni_version
    if not ipam.pool:
        return Pool.of(ipam, "", version)
    known = node.pool_definition(ipam.pool)
    if known is None:
        from . import shortage

        known = shortage.fetch_pool(call, ipam.pool, node, its)
    return Pool.of(convert(known, ipam.pool), ipam.pool, version)


def _cni_args(call: Call[Conf]) -> dict[str, str]:
    if not call.args:
        return {}
    from ...protocol import args

    known = {"IP", POD_NAMESPACE, POD_NAME} if _ipam(call).sticky else {"IP"}
    return args.parse(call.args, frozenset(known))


def _memory(call: Call[Conf], its: Settings, pool: Pool, pairs: dict[str, str]) -> Memory | None:
    """The memory of this pod's addresses; None without `sticky`, or if the runtime names no pod."""
    if not _ipam(call).sticky or not pairs.get(POD_NAME):
        return None
    from ..host_local import sticky

    pod = (pairs.get(POD_NAMESPACE, ""), pairs[POD_NAME], call.ifname)
    return sticky.Memory(its.data_dir, pool.space, pod)


# --- releasing ---


def _mark(call: Call[Conf]) -> str:
    """The text in place of the interface in a reservation: networks share a space's directory."""
    return f"{call.ifname}\r\n{call.network}"


def _spaces(node: Node) -> list[Space]:
    """The spaces that have a directory of reservations. Raises CNIError."""
    try:
        with os.scandir(node.data_dir) as entries:
            names = [each.name for each in entries if each.name[0] != "."]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise explain("open", node.data_dir, error) from None
    spaces = [Space(node, name) for name in sorted(names) if name not in NOT_SPACES]
    return [each for each in spaces if os.path.isdir(each.location.path)]


def _release_all(call: Call[Conf], space: Space, steps: Steps) -> None:
    with space.location.open() as store:
        owned = store.releasable(call.container_id, _mark(call))
        for name in owned.names:
            steps.run(_release, space, store, name, owned.content)
        for error in owned.errors:
            steps.run(_raise, explain_in("read", store.path, error))


def _collect(call: Call[Conf], space: Space, keep: frozenset[Attachment], steps: Steps) -> None:
    # Read all files before taking the lock, since others may wait for it.
    found = scan(space.location.path, lambda error: steps.run(_raise, error))
    stale = {
        name: content
        for name, content in found
        if is_address(name) and _is_stale(call.network, content, keep)
    }
    with space.location.open() as store:
        for name, content in stale.items():
            # since it was read, another attachment may have got the address
            if store.content(name) == content:
                steps.run(_release, space, store, name, content)
                call.note_removed("reservation", 1)
        store.recount()


def _is_stale(network: str, content: bytes, keep: frozenset[Attachment]) -> bool:
    """Does a file belong to this network, and to an attachment that is not in `keep`?"""
    if content == UNREADABLE:
        return False
    parts = content.decode("utf-8", "surrogateescape").split("\r\n")
    return len(parts) == 3 and parts[2] == network and Attachment(*parts[:2]) not in keep


def _release(space: Space, store: Store, name: str, content: bytes) -> None:
    if is_address(name):
        # first: a kill in between must not free the address without its cooldown
        rest.note(space.freed, parse_ip(name), boot_time())
    try:
        store.release(name, content)
    except OSError as error:
        raise explain_in("remove", store.path, error) from None


def _raise(error: CNIError) -> None:
    raise error
