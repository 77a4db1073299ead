"""host-local: hands out addresses from ranges, recorded in files on this node
(docs/spec/host-local.md).

The whole of an ADD happens under one lock, and what it allocated is released under the same lock if
it fails. After a kill at any instruction, DEL of the attachment releases everything it held.

Beyond the reference: time that does not depend on the number of reservations (index.py), those of
an earlier boot are released (whole.py), `exclude` (ranges.py), `sticky` (sticky.py), GC and STATUS.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ...call import Call, Steps
from ...protocol import args, version
from ...protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from ...protocol.config import DNS, Folded, NetConf, Route
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import IPConfig, Result
from .directory import directory_of, explain_in, index_of, open_store, scan
from .ranges import Range, RangeConf, RangeSet, canonical_sets
from .reservation import LAST_RESERVED, UNREADABLE, content_of, is_address
from .store import Store

if TYPE_CHECKING:
    from . import sticky

DATA_DIR = "/var/lib/cni/networks"
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


class _Requested(Folded):
    """Requested addresses, each an address or a prefix, of which only the address counts."""

    ips: list[str] = []

    def __post_init__(self) -> None:
        for text in self.ips:
            if text:
                _requested_ip(text)


class _RuntimeConfig(_Requested):
    ip_ranges: list[list[RangeConf]] = []


class _Args(Folded):
    cni: _Requested | None = None


class Conf(NetConf):
    ipam: IpamConf | None = None  # type: ignore[assignment]  # the whole object, and required
    args: _Args | None = None
    runtime_config: _RuntimeConfig | None = None


# --- the verbs ---


def add(call: Call[Conf]) -> Result:
    """Reserve one address of each range set: the requested ones, or the next free one.

    Nothing of this stays reserved if it fails. Raises CNIError.
    """
    ipam = _ipam(call)
    wanted = _requested(call)
    sets = _range_sets(call)
    dns = DNS()
    if ipam.resolv_conf:
        from . import resolvconf  # few use it

        dns = resolvconf.read(ipam.resolv_conf)
    return Result(ips=_allocated(call, sets, wanted), routes=ipam.routes, dns=dns)


def delete(call: Call[Conf]) -> None:
    """Release every address of the attachment; having none is success."""
    _requested(call)
    _range_sets(call)
    with _store(call) as store:
        for name in store.releasable(call.container_id, call.ifname):
            try:
                store.release(name)
            except OSError as error:  # as the reference, but not in silence
                call.log(f"host-local: cannot release {name}: {error.strerror}")


def check(call: Call[Conf]) -> None:
    """The attachment must hold an address."""
    _requested(call)
    _range_sets(call)
    with _store(call) as store:
        if not store.owned_by(call.container_id, call.ifname):
            raise CNIError(
                "host-local: Failed to find address added by container " + call.container_id,
                f"no file in {store.path} has its ID and {call.ifname}: somebody released its "
                "address, which another container may get; recreate the container",
            )


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Release what attachments that are not in `keep` hold in this network."""
    if not os.path.isdir(_directory(call)):
        return
    ids = frozenset(each.container_id for each in keep)
    # All files are read before the lock is taken, which others may be waiting for.
    stale = {
        name: content
        for name, content in scan(_directory(call))
        if is_address(name) and not _is_kept(call, name, content, keep, ids)
    }
    steps = Steps()
    with _store(call) as store:
        for name, content in stale.items():
            if store.content(name) == content:
                steps.run(_release_stale, store, name)
        store.recount()
    steps.finish()


def status(call: Call[Conf]) -> None:
    """Every range set must have a free address, and the directory must be writable.

    Raises NotAvailable (code 50). Takes no lock and changes nothing. Ranges that only come with a
    request are not known here.
    """
    ipam = _ipam(call)
    path = _directory(call)
    existing = path
    while not os.path.lexists(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing) or "."
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise NotAvailable(
            f"host-local: cannot write to {existing}",
            f"reservations are kept in {path}: make it a writable directory, or set ipam.dataDir",
        )
    if existing == path and (ipam.ranges or ipam.subnet is not None):
        from . import usage

        index = index_of(ipam.data_dir or DATA_DIR, call.network)
        usage.check_free(path, index, _range_sets(call), ipam.reclaim_on_boot)


# --- configuration ---


def _ipam(call: Call[Conf]) -> IpamConf:
    if call.conf.ipam is None:
        raise CNIError(
            "IPAM config missing 'ipam' key", 'host-local reads "ipam": {"type": "host-local", …}'
        )
    return call.conf.ipam


def _directory(call: Call[Conf]) -> str:
    return directory_of(_ipam(call).data_dir or DATA_DIR, call.network)


def _store(call: Call[Conf]) -> AbstractContextManager[Store]:
    ipam = _ipam(call)
    return open_store(ipam.data_dir or DATA_DIR, call.network, reclaim=ipam.reclaim_on_boot)


def _range_sets(call: Call[Conf]) -> list[RangeSet]:
    """runtimeConfig's range sets, the one directly in `ipam`, then ipam.ranges. Raises CNIError."""
    ipam, runtime = _ipam(call), call.conf.runtime_config
    configured = [*(runtime.ip_ranges if runtime is not None else ()), *configured_ranges(ipam)]
    stated = call.conf.cni_version
    return canonical_sets(configured, stated, version.at_least(stated, "0.3.0"), ipam.exclude)


def configured_ranges(ipam: IpamConf) -> list[list[RangeConf]]:
    """The range sets of a configuration, unchecked; a request may add others."""
    own: list[RangeConf] = [ipam] if ipam.subnet is not None else []
    return [own, *ipam.ranges] if own else ipam.ranges


def _requested(call: Call[Conf]) -> list[bytes]:
    """The requested addresses, each once, in the order of their sources. Raises CNIError."""
    _ipam(call)
    conf = call.conf
    found = []
    pairs = _cni_args(call)
    if pairs.get("IP"):
        try:
            found.append(_requested_ip(pairs["IP"]))
        except InvalidAddress as error:
            raise error.wrapped(f'ARGS: error parsing value of pair "IP={pairs["IP"]}": ') from None
    for source in (conf.args.cni if conf.args is not None else None, conf.runtime_config):
        for text in source.ips if source is not None else []:
            if not text:
                raise CNIError(
                    "cannot understand ip: IP <nil> not v4 nor v6", "a requested address is empty"
                )
            found.append(_requested_ip(text))
    return list(dict.fromkeys(found))


def _cni_args(call: Call[Conf]) -> dict[str, str]:
    """What of CNI_ARGS is read. Raises CNIError."""
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


# --- allocation ---


class _Exhausted(Exception):
    """A range set has no free address."""

    def __init__(self, ranges: RangeSet, index: int) -> None:
        super().__init__()
        self.ranges = ranges
        self.index = index


def _allocated(call: Call[Conf], sets: list[RangeSet], wanted: list[bytes]) -> list[IPConfig]:
    """The addresses, reserved. Raises CNIError.

    Before a range is called full, its files are counted, without the lock. If there are too few,
    somebody has just released some, or the index is wrong and the files are read instead.
    """
    for trust in (True, True, False):
        try:
            return _locked_allocation(call, sets, wanted, trust)
        except _Exhausted as full:
            from . import usage  # only errors and STATUS need it

            held = usage.held(_directory(call), full.ranges)
            if not trust or len(held) >= full.ranges.size:
                raise CNIError(
                    f"failed to allocate for range {full.index}: no IP addresses available in "
                    f"range set: {full.ranges}",
                    usage.describe(_directory(call), full.ranges, held),
                ) from None
    raise AssertionError  # the last round raises


def _locked_allocation(
    call: Call[Conf], sets: list[RangeSet], wanted: list[bytes], trust: bool
) -> list[IPConfig]:
    with _store(call) as store:
        if not trust:
            store.distrust()
        made: list[str] = []
        try:
            ips = _allocate(call, store, sets, wanted, made)
        except BaseException:
            _release(call, store, made)
            raise
        call.undo.callback(_undo, call, made)
    return ips


def _allocate(
    call: Call[Conf], store: Store, sets: list[RangeSet], wanted: list[bytes], made: list[str]
) -> list[IPConfig]:
    """One address of each set; `made` gets the names of the files. Raises CNIError, _Exhausted."""
    left = list(wanted)
    ips = []
    memory = _memory(call)
    for index, each in enumerate(sets):
        asked = next((ip for ip in left if each.contains(ip)), None)
        try:
            if asked is not None:
                left.remove(asked)
                ips.append(_take_requested(call, store, each, index, asked, made))
            else:
                ips.append(_take_free(call, store, each, index, made, memory))
        except CNIError as error:
            raise error.wrapped(f"failed to allocate for range {index}: ") from None
        except OSError as error:
            failure = explain_in("open", store.path, error)
            raise failure.wrapped(f"failed to allocate for range {index}: ") from None
    if left:
        raise CNIError(
            "failed to allocate all requested IPs: " + " ".join(map(format_ip, left)),
            f"each range set gives one address; the range sets are: {'; '.join(map(str, sets))}",
        )
    return ips


def _take_requested(
    call: Call[Conf], store: Store, each: RangeSet, index: int, packed: bytes, made: list[str]
) -> IPConfig:
    name = format_ip(packed)
    found = each.range_for(packed)
    assert found is not None
    if packed == found.gateway:
        raise CNIError(
            f"requested ip {name} is subnet's gateway", f"request another address of {each}"
        )
    why = "`exclude` of the configuration has it"
    if packed in each.gateways or not each.is_excluded(packed):
        if _reserve(call, store, name, made):
            store.set_last_reserved(index, name)
            return _ip_config(name, found)
        from . import usage

        holder = usage.holder(store.content(name) or b"")
        why = f"{holder} holds it: {store.path}/{name}"
    raise CNIError(f"requested IP address {name} is not available in range set {each}", why)


def _take_free(
    call: Call[Conf],
    store: Store,
    each: RangeSet,
    index: int,
    made: list[str],
    memory: sticky.Memory | None,
) -> IPConfig:
    """What the pod had before, if that is free, or the next one. Raises _Exhausted, CNIError."""
    for name in store.owned_by(call.container_id, call.ifname):
        if is_address(name) and each.contains(parse_ip(name)):
            raise CNIError(
                f"{name} has been allocated to {call.container_id}, "
                "duplicate allocation is not allowed",
                f"{call.ifname} of this container was added before: DEL it first",
            )
    packed = memory.recall(index) if memory is not None else None
    found = each.range_for(packed) if packed is not None else None
    if (
        packed is not None
        and found is not None
        and not each.is_excluded(packed)
        and _reserve(call, store, format_ip(packed), made)
    ):
        return _ip_config(format_ip(packed), found)  # round robin goes on where it was
    name, found = _next_free(call, store, each, index, made)
    store.set_last_reserved(index, name)
    if memory is not None:
        memory.keep(index, parse_ip(name))
    return _ip_config(name, found)


def _next_free(
    call: Call[Conf], store: Store, each: RangeSet, index: int, made: list[str]
) -> tuple[str, Range]:
    last = _last_reserved(call, store, index)
    while True:
        for found, low, high in each.spans(last):
            number = store.first_free(found.width, low, high)
            if number is not None:
                break
        else:
            raise _Exhausted(each, index)
        name = format_ip(found.packed(number))
        if _reserve(call, store, name, made):
            return name, found
        store.distrust()  # somebody made this file without the lock


def _reserve(call: Call[Conf], store: Store, name: str, made: list[str]) -> bool:
    """Noted in `made` before it is done, so that a signal in between leaves nothing behind."""
    made.append(name)
    if store.reserve(name, content_of(call.container_id, call.ifname)):
        return True
    made.pop()
    return False


def _last_reserved(call: Call[Conf], store: Store, index: int) -> bytes | None:
    try:
        return store.last_reserved(index)
    except OSError as error:  # costs round robin, once
        call.log(f"Error retrieving last reserved ip: {LAST_RESERVED}{index}: {error.strerror}")
        return None


def _ip_config(name: str, found: Range) -> IPConfig:
    return IPConfig(address=f"{name}/{found.subnet.length}", gateway=format_ip(found.gateway))


def _memory(call: Call[Conf]) -> sticky.Memory | None:
    """What the addresses of this pod were, with `sticky` and if the runtime names the pod."""
    ipam, pairs = _ipam(call), _cni_args(call)
    if not ipam.sticky or not pairs.get(POD_NAME) or sys.platform == "win32":
        return None
    from . import sticky

    pod = (pairs.get(POD_NAMESPACE, ""), pairs[POD_NAME], call.ifname)
    return sticky.Memory(ipam.data_dir or DATA_DIR, call.network, pod)


# --- releasing ---


def _release(call: Call[Conf], store: Store, names: list[str]) -> None:
    """Release those of `names` that are this attachment's."""
    content = content_of(call.container_id, call.ifname)
    for name in names:
        try:
            if store.content(name) == content:
                store.release(name)
        except OSError as error:
            call.log(f"host-local: cannot release {name}: {error.strerror}")


def _undo(call: Call[Conf], names: list[str]) -> None:
    with _store(call) as store:
        _release(call, store, names)


def _release_stale(store: Store, name: str) -> None:
    try:
        store.release(name)
    except OSError as error:
        raise explain_in("remove", store.path, error) from None


def _is_kept(
    call: Call[Conf], name: str, content: bytes, keep: frozenset[Attachment], ids: frozenset[str]
) -> bool:
    """Does a reservation belong to a valid attachment, or is the file not one of ours?"""
    if content == UNREADABLE:
        return True
    parts = content.decode("utf-8", "surrogateescape").split("\r\n")
    if len(parts) == 1:
        return parts[0] in ids  # of an old version; an empty one is nobody's
    if len(parts) == 2:
        return Attachment(*parts) in keep
    call.log(f"host-local: {name} is not a reservation of host-local: left alone")
    return True
