"""host-local: allocates addresses from ranges, recorded in files on this node
(docs/spec/host-local.md).

An ADD reserves all of its addresses under one lock, and releases them under the same lock if it
fails (allocation.py). After a kill at any instruction, DEL releases the attachment's addresses.

Beyond the reference: time does not depend on the number of reservations (index.py), reservations of
an earlier boot are released (reservation.py); `exclude` (ranges.py), `sticky` (sticky.py), GC and
STATUS.

Longer than 400 lines: a second module would be one more file for each request to load.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...call import Call, Steps
from ...protocol import config
from ...protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from ...protocol.config import DNS, Folded, PluginConf, Route
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Result
from .directory import Location, explain, explain_in, scan
from .ranges import ConflictCheck, NoRoom, RangeConf, RangeSet, canonical_sets
from .reservation import UNREADABLE, content_of, is_address
from .store import Owned, Store

if TYPE_CHECKING:
    from . import sticky
    from .allocation import Allocation, Wish

DATA_DIR = "/var/lib/cni/networks"
_EXAMPLE = 'host-local reads "ipam": {"type": "host-local", …}'
_FEW = 128  # files: reading them takes less than a millisecond
POD_NAMESPACE, POD_NAME = "K8S_POD_NAMESPACE", "K8S_POD_NAME"


class IpamConf(RangeConf):
    """The `ipam` object; subnet and its companions directly in it are a range set of their own."""

    type: str = ""
    ranges: list[list[RangeConf]] = []
    routes: list[Route] = []
    data_dir: str = ""
    resolv_conf: str = ""
    reclaim_on_boot: bool = True
    sticky: bool = False
    conflict_check: ConflictCheck | None = None


class Requested(Folded):
    """Requested addresses, each an address or a prefix, of which only the address counts."""

    ips: list[str] = []

    def __post_init__(self) -> None:
        for text in self.ips:
            if text:
                _requested_ip(text)


class _RuntimeConfig(Requested):
    ip_ranges: list[list[RangeConf]] = []


class Args(Folded):
    """The key `args`, which runtimes fill in."""

    cni: Requested | None = None


class Conf(PluginConf):
    ipam: IpamConf | None = None
    args: Args | None = None
    runtime_config: _RuntimeConfig | None = None


# --- the verbs ---


def add(call: Call[Conf]) -> Result:
    """Reserve one address of each range set: the requested ones, or the next free one.

    After a failure nothing stays reserved. Raises CNIError.
    """
    ipam = _ipam(call)
    wanted = _requested(call)
    sets = _range_sets(call)
    dns = DNS()
    if ipam.resolv_conf:
        from . import resolvconf  # few configurations have `resolvConf`

        dns = resolvconf.read(ipam.resolv_conf)
    if not _allocating:  # even for a loaded module an import statement takes long
        from .allocation import Allocation, Wish  # DEL does not need it

        _allocating.append((Allocation, Wish))
    allocation_type, wish_type = _allocating[0]
    attachment = call.container_id, call.ifname
    allocation = allocation_type(_location(call), attachment, call.netns, call.log)
    call.undo.callback(allocation.undo)
    wish = wish_type(sets, wanted, _memory(call))
    ips = allocation.reserve(wish)
    if ipam.conflict_check is not None:
        if sys.platform == "win32":
            raise CNIError("conflictCheck is not offered on Windows", "remove the key")
        from . import conflicts

        ips = conflicts.settle(
            call, allocation, ips, wanted, lambda: allocation.reserve(wish), ipam.conflict_check
        )
    return Result(ips=ips, routes=ipam.routes, dns=dns)


_allocating: list[tuple[type[Allocation], type[Wish]]] = []  # ADD's classes, once loaded


def delete(call: Call[Conf]) -> None:
    """Release every address of the attachment; having none is success.

    Errors of the configuration are only logged, since no ADD can have succeeded with them. Raises
    CNIError for a reservation that may be the attachment's and cannot be read or removed: then DEL
    can be repeated. As in the reference, raises NoRoom, after the addresses are released.
    """
    location = _location(call)
    steps = Steps()
    is_valid = steps.run(_validate_for_delete, call)
    if is_valid or os.path.lexists(location.path):  # else the directory would be made
        steps.run(_release_all, call, location, steps)
    steps.finish()


def _validate_for_delete(call: Call[Conf]) -> bool:
    """Would ADD accept the configuration? If not, that is logged. Raises NoRoom."""
    try:
        return _validate(call)
    except NoRoom:
        raise
    except CNIError as error:
        call.log(f"host-local: the configuration is not valid, which DEL passes over: {error}")
        return False


def _release_all(call: Call[Conf], location: Location, steps: Steps) -> None:
    with _opened_for(call, location) as (store, owned):
        for name in owned.names:
            steps.run(_release, store, name, owned.content)
        for error in owned.errors:
            steps.run(_raise, explain_in("read", store.path, error))


def check(call: Call[Conf]) -> None:
    """Require that the attachment has an address."""
    _validate(call)
    with _opened_for(call, _location(call)) as (store, _):
        if not store.owned_by(call.container_id, call.ifname):
            raise CNIError(
                "host-local: Failed to find address added by container " + call.container_id,
                f"no file in {store.path} has its ID and {call.ifname}: it was never attached to "
                "this network, or somebody released its address, which another container may get: "
                "then recreate the container",
            )


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Release the addresses of this network's attachments that are not in `keep`.

    Releases all that it can, then raises CNIError for files that cannot be read or removed.
    """
    location = _location(call)
    try:
        os.stat(location.path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise explain("open", location.path, error) from None
    ids = frozenset(each.container_id for each in keep)
    kept = {content_of(*each) for each in keep}  # nearly all files: no closer look needed
    steps = Steps()

    def unreadable(error: CNIError) -> None:
        steps.run(_raise, error)

    # Read all files before taking the lock, since others may wait for it.
    stale = {
        name: content
        for name, content in scan(location.path, unreadable)
        if content not in kept and is_address(name) and not _is_kept(call, name, content, keep, ids)
    }
    with location.open() as store:
        for name, content in stale.items():
            if store.content(name) == content:
                steps.run(_release, store, name, content)
                call.note_removed("reservation", 1)
        store.recount()
    steps.finish()


def status(call: Call[Conf]) -> None:
    """Require a free address in each range set, and a writable directory.

    Raises NotAvailable (code 50). Takes no lock and changes nothing. Ranges that only an ADD's
    request has are not known here.
    """
    ipam = _ipam(call)
    location = _location(call)
    existing = path = location.path
    while not os.path.lexists(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing) or "."
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise NotAvailable(
            f"host-local: cannot write to {existing}",
            f"reservations are kept in {path}: make it a writable directory, or set ipam.dataDir",
        )
    if existing == path and (ipam.ranges or ipam.subnet is not None):
        from . import usage

        usage.check_free(location, _range_sets(call))


# --- configuration ---


def _validate(call: Call[Conf]) -> bool:
    """True if ADD would accept the configuration. Raises CNIError, as the reference does."""
    conf: object = call.conf
    if not isinstance(conf, Conf):  # in DEL: the valid parts of a broken one
        config.convert(call.raw, Conf)
    _requested(call)
    _range_sets(call)
    return True


def _ipam(call: Call[Conf]) -> IpamConf:
    if call.conf.ipam is None:
        raise _no_ipam()
    return call.conf.ipam


def _no_ipam() -> CNIError:
    return CNIError("IPAM config missing 'ipam' key", _EXAMPLE)


def _location(call: Call[Conf]) -> Location:
    """The place of the network's reservations; uses no other key of the configuration.

    Raises CNIError if `ipam` or its `dataDir` has a wrong type.
    """
    ipam = config.lookup(call.raw, "ipam")
    if ipam is None:
        raise _no_ipam()
    if not isinstance(ipam, dict):
        raise CNIError("`ipam` is not a JSON object", _EXAMPLE)
    data_dir = config.lookup(ipam, "dataDir") or DATA_DIR
    if not isinstance(data_dir, str):
        raise CNIError("`ipam.dataDir` is not a string", "it is the path of a directory")
    reclaim = config.lookup(ipam, "reclaimOnBoot")
    return Location.of(data_dir, call.network, reclaim is None or reclaim is True)


def _range_sets(call: Call[Conf]) -> list[RangeSet]:
    """runtimeConfig's range sets, the one directly in `ipam`, then ipam.ranges. Raises CNIError."""
    ipam, runtime = _ipam(call), call.conf.runtime_config
    configured = [*(runtime.ip_ranges if runtime is not None else ()), *configured_ranges(ipam)]
    stated = call.conf.cni_version
    return canonical_sets(configured, stated, config.is_at_least(stated, "0.3.0"), ipam.exclude)


def configured_ranges(ipam: IpamConf) -> list[list[RangeConf]]:
    """The range sets of a configuration, unchecked; a request may add others."""
    own: list[RangeConf] = [ipam] if ipam.subnet is not None else []
    return [own, *ipam.ranges] if own else ipam.ranges


def _requested(call: Call[Conf]) -> list[bytes]:
    """The requested addresses, each once, in the order of their sources. Raises CNIError."""
    _ipam(call)
    conf = call.conf
    of_args = conf.args.cni if conf.args is not None else None
    return requested(_cni_args(call).get("IP", ""), (of_args, conf.runtime_config))


def requested(of_cni_args: str, sources: Iterable[Requested | None]) -> list[bytes]:
    """Requested addresses (packed), each once: from IP of CNI_ARGS, then from these objects.

    Raises CNIError.
    """
    addresses = []
    if of_cni_args:
        try:
            addresses.append(_requested_ip(of_cni_args))
        except InvalidAddress as error:
            raise error.wrapped(f'ARGS: error parsing value of pair "IP={of_cni_args}": ') from None
    for source in sources:
        for text in source.ips if source is not None else []:
            if not text:
                raise CNIError(
                    "cannot understand ip: IP <nil> not v4 nor v6", "a requested address is empty"
                )
            addresses.append(_requested_ip(text))
    return list(dict.fromkeys(addresses))


def _cni_args(call: Call[Conf]) -> dict[str, str]:
    """The keys of CNI_ARGS that are used. Raises CNIError."""
    if not call.args:
        return {}
    from ...protocol import args

    known = {"IP", POD_NAMESPACE, POD_NAME} if _ipam(call).sticky else {"IP"}
    return args.parse(call.args, frozenset(known))


def _requested_ip(text: str) -> bytes:
    """``10.0.0.5`` or ``10.0.0.5/24``. Raises InvalidAddress (``invalid IP address x``)."""
    try:
        return parse_ip(format_ip(Prefix.parse(text).ip) if "/" in text else text)
    except InvalidAddress:
        raise InvalidAddress(
            f"invalid IP address {text}", "request an address as 10.0.0.5 or 10.0.0.5/24"
        ) from None


def _memory(call: Call[Conf]) -> sticky.Memory | None:
    """The memory of this pod's addresses; None without `sticky`, or if the runtime names no pod."""
    ipam, pairs = _ipam(call), _cni_args(call)
    if not ipam.sticky or not pairs.get(POD_NAME) or sys.platform == "win32":
        return None
    from . import sticky

    pod = (pairs.get(POD_NAMESPACE, ""), pairs[POD_NAME], call.ifname)
    return sticky.Memory(ipam.data_dir or DATA_DIR, call.network, pod)


# --- releasing ---


@contextmanager
def _opened_for(call: Call[Conf], location: Location) -> Iterator[tuple[Store, Owned]]:
    """The store, and the files that a DEL releases.

    Both use the files themselves if the index may be wrong about the attachment.

    If another program rewrites a file in place, the directory does not change, and the index does
    not notice. So if the index knows nothing of the attachment, the files of prevResult's addresses
    are read, and in a small directory all files, without the lock. In a large one that would take
    too long for repeated DELs, which are common; there GC finds such a file.
    """
    contents = content_of(call.container_id, call.ifname), content_of(call.container_id)
    with location.open() as store:
        owned = store.releasable(call.container_id, call.ifname)
        known = bool(owned.names or owned.errors) or store.has_read_all
        rewritten = not known and any(store.content(n) in contents for n in _previous(call))
        look = not known and not rewritten and store.file_count <= _FEW
        if not look:
            if rewritten:
                store.distrust()
                owned = store.releasable(call.container_id, call.ifname)
            yield store, owned
            return
    rewritten = any(content in contents for _, content in scan(location.path))
    with location.open() as store:
        if rewritten:
            store.distrust()
        yield store, store.releasable(call.container_id, call.ifname)


def _previous(call: Call[Conf]) -> list[str]:
    """The names of the files of prevResult's addresses, as far as it can be read."""
    result = config.lookup(call.raw, "prevResult")
    ips = config.lookup(result, "ips") if isinstance(result, dict) else None
    names = []
    for ip in ips if isinstance(ips, list) else ():
        address = config.lookup(ip, "address") if isinstance(ip, dict) else None
        if isinstance(address, str):
            try:
                names.append(format_ip(Prefix.parse(address).ip))
            except InvalidAddress:
                continue
    return names


def _release(store: Store, name: str, content: bytes) -> None:
    try:
        store.release(name, content)
    except OSError as error:
        raise explain_in("remove", store.path, error) from None


def _raise(error: CNIError) -> None:
    raise error


def _is_kept(
    call: Call[Conf], name: str, content: bytes, keep: frozenset[Attachment], ids: frozenset[str]
) -> bool:
    """Does a file stay, because it belongs to an attachment in `keep`, or is no reservation?"""
    if content == UNREADABLE:
        return True
    parts = content.decode("utf-8", "surrogateescape").split("\r\n")
    if len(parts) == 1:
        return parts[0] in ids  # an old version's file, without the interface; or an empty file
    if len(parts) == 2:
        return Attachment(*parts) in keep
    call.log(f"host-local: {name} is not a reservation of host-local: left alone")
    return True
