"""host-local: hands out addresses from ranges, recorded in files on this node (spec/host-local.md).

The whole of an ADD happens under one lock, and what it allocated is released under the same lock if
it fails. After a kill at any instruction, DEL of the attachment releases everything it held.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from ..call import Attachment, Call, Steps
from ..protocol import args, version
from ..protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from ..protocol.config import DNS, Folded, NetConf, Route
from ..protocol.errors import CNIError, NotAvailable
from ..protocol.result import IPConfig, Result
from . import resolvconf
from .ranges import RangeConf, RangeSet, canonical_sets
from .store import (
    LAST_RESERVED,
    UNREADABLE,
    Store,
    content_of,
    directory_of,
    explain_in,
    is_address,
    open_store,
)

DATA_DIR = "/var/lib/cni/networks"


class IpamConf(RangeConf):
    """The `ipam` object; subnet and its companions directly in it are a range set of their own."""

    type: str = ""
    ranges: list[list[RangeConf]] = []
    routes: list[Route] = []
    data_dir: str = ""
    resolv_conf: str = ""


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
    dns = resolvconf.read(ipam.resolv_conf) if ipam.resolv_conf else DNS()
    with _store(call) as store:
        made: list[str] = []
        try:
            ips = _allocate(call, store, sets, wanted, made)
        except BaseException:
            _release(call, store, made)
            raise
        call.undo.callback(_undo, call, made)
    return Result(ips=ips, routes=ipam.routes, dns=dns)


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
    steps = Steps()
    with _store(call) as store:
        for name, content in list(store.leases().items()):
            if is_address(name) and not _is_kept(call, name, content, keep, ids):
                steps.run(_release_stale, store, name)
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

        usage.check_free(path, _range_sets(call))


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
    return open_store(_ipam(call).data_dir or DATA_DIR, call.network)


def _range_sets(call: Call[Conf]) -> list[RangeSet]:
    """runtimeConfig's range sets, the one directly in `ipam`, then ipam.ranges. Raises CNIError."""
    ipam, runtime = _ipam(call), call.conf.runtime_config
    configured = list(runtime.ip_ranges) if runtime is not None else []
    if ipam.subnet is not None:
        configured.append([ipam])
    configured += ipam.ranges
    stated = call.conf.cni_version
    return canonical_sets(configured, stated, version.at_least(stated, "0.3.0"))


def _requested(call: Call[Conf]) -> list[bytes]:
    """The requested addresses, each once, in the order of their sources. Raises CNIError."""
    _ipam(call)
    conf = call.conf
    found = []
    pairs = args.parse(call.args, frozenset({"IP"}))
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


def _requested_ip(text: str) -> bytes:
    """``10.0.0.5`` or ``10.0.0.5/24``. Raises InvalidAddress (``invalid IP address x``)."""
    try:
        return parse_ip(format_ip(Prefix.parse(text).ip) if "/" in text else text)
    except InvalidAddress:
        raise InvalidAddress(
            f"invalid IP address {text}", "request an address as 10.0.0.5 or 10.0.0.5/24"
        ) from None


# --- allocation ---


def _allocate(
    call: Call[Conf], store: Store, sets: list[RangeSet], wanted: list[bytes], made: list[str]
) -> list[IPConfig]:
    """One address of each set; `made` gets the names of the files. Raises CNIError."""
    left = list(wanted)
    ips = []
    for index, each in enumerate(sets):
        asked = next((ip for ip in left if each.contains(ip)), None)
        try:
            if asked is None:
                ips.append(_next_free(call, store, each, index, made))
            else:
                left.remove(asked)
                ips.append(_take_requested(call, store, each, asked, made))
            store.set_last_reserved(index, made[-1])
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
    call: Call[Conf], store: Store, each: RangeSet, packed: bytes, made: list[str]
) -> IPConfig:
    name = format_ip(packed)
    found = each.range_for(packed)
    assert found is not None
    if packed == found.gateway:
        raise CNIError(
            f"requested ip {name} is subnet's gateway", f"request another address of {each}"
        )
    if not _reserve(call, store, name, made):
        from . import usage  # only errors and STATUS need it

        raise CNIError(
            f"requested IP address {name} is not available in range set {each}",
            f"{usage.holder(store.content(name) or b'')} holds it: {store.path}/{name}",
        )
    return _ip_config(name, found.subnet.length, found.gateway)


def _next_free(
    call: Call[Conf], store: Store, each: RangeSet, index: int, made: list[str]
) -> IPConfig:
    for name in store.owned_by(call.container_id, call.ifname):
        if is_address(name) and each.contains(parse_ip(name)):
            raise CNIError(
                f"{name} has been allocated to {call.container_id}, "
                "duplicate allocation is not allowed",
                f"{call.ifname} of this container was added before: DEL it first",
            )
    leases = store.leases()
    for packed, found in each.candidates(_last_reserved(call, store, index)):
        name = format_ip(packed)
        if not leases.get(name) and _reserve(call, store, name, made):
            return _ip_config(name, found.subnet.length, found.gateway)
    from . import usage

    raise CNIError(f"no IP addresses available in range set: {each}", usage.describe(store, each))


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


def _ip_config(name: str, length: int, gateway: bytes) -> IPConfig:
    return IPConfig(address=f"{name}/{length}", gateway=format_ip(gateway))


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
